"""`limeguard config`: what it shows, what it hides, what it refuses, and the reference page it prints."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from limeguard.cli.config import COMPONENTS, config
from limeguard.settings import Sources, examine, variable_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "configuration.md"


class Host:
    """A configuration file for each program, named by variables, so that no file of this machine counts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.env: dict[str, str] = {"KEYLIME_DIR": str(folder)}
        for component in COMPONENTS:
            self.write(component.name, f"[{component.name}]\n")

    def write(self, component: str, text: str) -> Path:
        path = self._folder / f"{component}.conf"
        path.write_text(text)
        path.chmod(0o600)
        self.env[f"KEYLIME_{component.upper()}_CONFIG"] = str(path)
        return path

    def run(self, *args: str, **env: str) -> Result:
        return CliRunner(env={**self.env, **env}).invoke(config, args)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_every_option_has_a_help_or_a_reason() -> None:
    for component in COMPONENTS:
        for option in component.options:
            assert option.help or option.unused, f"{component.name} {option.name}"
            assert option.default_value == option.kind.parse(option.default)


VARIABLES = [variable_of(each.name, option) for each in COMPONENTS for option in each.options]
ODD = st.sampled_from(
    ["", "default", "all", "[]", "['']", "0", "1", "-1", "true", "sqlite", "push", "[::1]", "ecc", "{}"]
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(VARIABLES), ODD | st.text(max_size=30), max_size=12))
def test_any_environment_gives_settings_and_a_list_of_what_is_wrong(env: dict[str, str]) -> None:
    """# trust: safe-parsing."""
    for component in COMPONENTS:
        seen = examine(component, Sources(env, ()))
        assert len(seen.found) == len(component.options)
        assert all(str(problem) for problem in (*seen.problems, *seen.warnings))


def test_effective_settings_name_value_and_origin(host: Host) -> None:
    path = host.write("verifier", "[verifier]\n\nport = 9\n")
    shown = host.run("show", "--effective", "--component", "verifier", KEYLIME_VERIFIER_UUID="mine").output
    lines = {line.split(" = ")[0]: line for line in shown.splitlines() if " = " in line}
    assert lines["port"].endswith(f"# {path}:3")
    assert lines["uuid"].startswith("uuid = mine ")
    assert lines["uuid"].endswith("# KEYLIME_VERIFIER_UUID")
    assert lines["ip"].endswith("# built-in default")
    assert lines["registrar_port"].endswith("has no effect")
    assert "[revocations]" in shown.splitlines()


def test_without_effective_only_what_was_set_is_shown(host: Host) -> None:
    host.write("registrar", "[registrar]\nport = 9\n")
    shown = host.run("show").output
    assert [line for line in shown.splitlines() if not line.startswith("#")].count("port = 9") == 0
    assert "port = 9" in shown
    assert "tls_port" not in shown
    assert "nothing is set" in shown


def test_json_is_alone_on_stdout(host: Host) -> None:
    host.write("tenant", "[tenant]\nverifier_ip = 10.0.0.1\n")
    shown = json.loads(host.run("show", "--effective", "--json").stdout)
    assert set(shown) == {"verifier", "registrar", "tenant", "agent", "ca"}
    assert shown["tenant"]["verifier_ip"]["value"] == "10.0.0.1"
    assert not shown["verifier"]["verification_timeout"]["acted_on"]


def test_secrets_are_masked_everywhere(host: Host) -> None:
    """# trust: secret."""
    secret = "hunter2"
    host.write("ca", f"[ca]\npassword = {secret}\ncert_bits = x\n")
    host.write("tenant", f"[tenant]\nclient_key_password = {secret}\n")
    host.write(
        "registrar", f"[registrar]\nserver_key_password = {secret}\ndatabase_url = postgresql://u:{secret}@h/d\n"
    )
    host.write(
        "verifier",
        f"[verifier]\nserver_key_password = {secret}\nclient_key_password = {secret}\n"
        f"database_url = postgresql://u:{secret}@h/d?password={secret}\npersistent_store_url = redis://x?password={secret}\n"
        f"[revocations]\nwebhook_url = https://u:{secret}@h/\n",
    )
    options = ["server_key_password", "payload_key_password", "idevid_password", "iak_password", "tpm_ownerpassword"]
    host.write("agent", "[agent]\n" + "".join(f'{name} = "{secret}"\n' for name in options))
    for args in (("show", "--effective"), ("show",), ("show", "--json", "--effective"), ("check",)):
        result = host.run(*args)
        assert secret not in result.output + result.stderr
    assert host.run("show").output.count("********") >= 10


def test_a_check_of_good_settings_passes(host: Host) -> None:
    result = host.run("check")
    assert result.exit_code == 0
    assert result.output.splitlines() == [f"{component.name}: good" for component in COMPONENTS]


def test_a_check_lists_every_problem_of_every_program(host: Host) -> None:
    verifier = host.write("verifier", "[verifier]\nport = x\nquote_interval = -1\nporrt = 1\n")
    agent = host.write("agent", "[agent]\nip = 10.0.0.1\n")
    result = host.run("check")
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert (
        f"error: verifier: {verifier}:2: [verifier] port: 'x' is not a whole number; write one from 1 to 65535" in lines
    )
    assert any(f"{verifier}:3: [verifier] quote_interval" in line for line in lines)
    assert any(line.startswith("warning: verifier:") and "did you mean port?" in line for line in lines)
    assert f'error: agent: {agent}:2: [agent] ip: the value is not TOML; write ip = "10.0.0.1"' in lines
    assert "verifier: cannot be used, 2 to correct" in lines
    assert "tenant: good" in lines


def test_showing_bad_settings_says_so_and_fails(host: Host) -> None:
    host.write("tenant", "[tenant]\nverifier_port = x\n")
    result = host.run("show", "--component", "tenant")
    assert result.exit_code == 1
    assert "verifier_port" in result.stderr


def test_control_characters_of_a_file_do_not_reach_the_terminal(host: Host) -> None:
    """# trust: hygiene."""
    host.write("verifier", "[verifier]\nuuid = a\x1b[31mb\n\x1b[2J = 1\n")
    for args in (("show",), ("check",)):
        assert "\x1b" not in host.run(*args).output
