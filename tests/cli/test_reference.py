"""The page about commands names every command and option that there is, and none that there is not."""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from limeguard.cli.ima_emulator import make_parser as make_emulator_parser
from limeguard.cli.main import limeguard
from limeguard.cli.policy import make_parser as make_policy_parser
from limeguard.cli.push_agent import make_parser as make_push_parser
from limeguard.cli.reference import PAGES
from limeguard.cli.tenant import make_parser
from limeguard.cli.verifier import make_parser as make_verifier_parser
from limeguard.tenant.request import COMMANDS

FOLDER = Path(__file__).parents[2] / "docs" / "reference"
PAGE = (FOLDER / "cli.md").read_text()
CODE = " ".join(re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)))
LONG_OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")


def commands(group: click.Group) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield name, command
        if isinstance(command, click.Group):
            yield from ((f"{name} {below}", one) for below, one in commands(command))


def tenant_options() -> set[str]:
    parser = make_parser("limeguard tenant", plain=True)
    return {text for action in parser._actions for text in action.option_strings} - {"-h", "--help"}


def policy_options(parser: argparse.ArgumentParser | None = None) -> set[str]:
    parser = parser or make_policy_parser("limeguard policy", own=True)
    found: set[str] = set()
    for action in parser._actions:
        found.update(text for text in action.option_strings if text.startswith("--"))
        if isinstance(action, argparse._SubParsersAction):
            found.update(*(policy_options(one) for one in action.choices.values()))
    return found - {"--help"}


def click_options() -> set[str]:
    found: set[str] = set()
    for _, command in commands(limeguard):
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                found.update(text for text in (*parameter.opts, *parameter.secondary_opts) if text.startswith("--"))
    return found - {"--help", "--version"}


PARSERS = (make_emulator_parser(), make_push_parser("limeguard agent push"), make_verifier_parser())
OPTIONS = tenant_options() | click_options() | policy_options().union(*(policy_options(one) for one in PARSERS))


@pytest.mark.parametrize("name", [name for name, _ in commands(limeguard)])
def test_every_command_is_on_the_page(name: str) -> None:
    assert re.search(rf"(?<![\w-]){re.escape(name.rsplit(' ', maxsplit=1)[-1])}(?![\w-])", CODE)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_of_the_tenant_is_on_the_page(name: str) -> None:
    assert f"`{name}`" in PAGE


@pytest.mark.parametrize("option", sorted(OPTIONS))
def test_every_option_is_on_the_page(option: str) -> None:
    assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", CODE)


@pytest.mark.parametrize("name", ["api", "configuration", "findings", "lifecycle", "metrics"])
def test_the_page_is_what_the_tables_say(name: str) -> None:
    printed = PAGES[name]()
    assert (FOLDER / f"{name}.md").read_text() == printed, (
        f"write it anew: limeguard reference {name} > docs/reference/{name}.md"
    )


def test_the_schema_beside_the_pages_is_the_one_of_the_types() -> None:
    printed = PAGES["boot-policy-schema"]()
    assert (FOLDER / "boot-policy.schema.json").read_text() == printed, "write it anew: ./dev generate"


def test_no_option_is_on_the_page_that_does_not_exist() -> None:
    known = OPTIONS | {"--help", "--insecure"}
    assert set(LONG_OPTION.findall(PAGE)) - known == set()


@pytest.mark.parametrize("name", sorted(PAGES))
def test_the_command_prints_the_page(name: str) -> None:
    done = CliRunner().invoke(limeguard, ["reference", name])
    assert done.exit_code == 0
    assert done.output == PAGES[name]()


def references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (text for key, text in value.items() if key == "$ref")
        yield from (found for below in value.values() for found in references(below))
    elif isinstance(value, list):
        yield from (found for below in value for found in references(below))


@pytest.mark.parametrize("service", ["verifier", "registrar"])
def test_the_description_is_whole(service: str) -> None:
    document = json.loads(PAGES[f"openapi-{service}"]())
    assert document["openapi"] == "3.1.0"
    schemas = document["components"]["schemas"]
    assert set(references(document)) == {f"#/components/schemas/{name}" for name in schemas}
    seen: set[str] = set()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["summary"]
            assert operation["responses"]
            assert operation["operationId"] not in seen
            seen.add(operation["operationId"])
            named = {each["name"] for each in operation["parameters"] if each["in"] == "path"}
            assert named == set(re.findall(r"{(\w+)}", path))
            for scheme in operation["security"]:
                assert set(scheme) <= set(document["components"]["securitySchemes"])


@pytest.mark.parametrize("service", ["verifier", "registrar"])
def test_only_what_is_for_anybody_needs_no_authority(service: str) -> None:
    # trust: default-deny
    document = json.loads(PAGES[f"openapi-{service}"]())
    public = {
        f"{method} {path}"
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if operation["security"] == []
    }
    everywhere = {"get /version", "get /v3"}
    own = {
        "verifier": {
            "get /",
            "get /v2",
            "get /versions",
            "get /v2/verify/identity",
            "post /v2/verify/evidence",
            "get /healthz",
            "get /readyz",
            "post /v3/sessions",
            "patch /v3/sessions/{session_id}",
        },
        "registrar": {
            "post /v2/agents",
            "post /v2/agents/{agent_id}",
            "post /v3/agents",
            "put /v2/agents/{agent_id}",
            "put /v2/agents/{agent_id}/activate",
            "post /v2/agents/{agent_id}/activate",
            "post /v3/agents/{agent_id}/activate",
        },
    }
    assert public == everywhere | own[service]
