"""The page about commands names every command and option that there is, and none that there is not."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from limeguard.cli.main import limeguard
from limeguard.cli.tenant import make_parser
from limeguard.tenant.request import COMMANDS

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "cli.md").read_text()
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


def click_options() -> set[str]:
    found: set[str] = set()
    for _, command in commands(limeguard):
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                found.update(text for text in parameter.opts if text.startswith("--"))
    return found - {"--help", "--version"}


@pytest.mark.parametrize("name", [name for name, _ in commands(limeguard)])
def test_every_command_is_on_the_page(name: str) -> None:
    assert re.search(rf"(?<![\w-]){re.escape(name.rsplit(' ', maxsplit=1)[-1])}(?![\w-])", CODE)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_of_the_tenant_is_on_the_page(name: str) -> None:
    assert f"`{name}`" in PAGE


@pytest.mark.parametrize("option", sorted(tenant_options() | click_options()))
def test_every_option_is_on_the_page(option: str) -> None:
    assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", CODE)


def test_no_option_is_on_the_page_that_does_not_exist() -> None:
    known = tenant_options() | click_options() | {"--help", "--insecure"}
    assert set(LONG_OPTION.findall(PAGE)) - known == set()
