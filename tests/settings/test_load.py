"""Which source wins, and that everything wrong is said at once."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from limeguard.settings import (
    Component,
    IfSet,
    SettingsError,
    Sources,
    Syntax,
    examine,
    load,
)
from limeguard.settings.kinds import ADDRESS, BOOLEAN, EXACT_TEXT, LIST, LOOSE_LIST, PORT, TEXT, integer
from limeguard.settings.options import mask_all, mask_url, not_yet, option


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    version: str = option(TEXT, "2.6", "version")
    ip: str = option(ADDRESS, "127.0.0.1", "address")
    port: int = option(PORT, "8881", "port")
    strict: bool = option(BOOLEAN, "True", "strict")
    names: tuple[str, ...] = option(LIST, "['a']", "names")
    password: str = option(EXACT_TEXT, "", "password", mask=mask_all)
    database_url: str = option(TEXT, "sqlite", "database", mask=mask_url)
    webhook_url: str = option(TEXT, "", "other section", section="revocations")
    work_dir: Path = Path("/nowhere")


SERVER = Component(
    "verifier",
    Sample,
    (
        *not_yet([("mode", TEXT, "pull")], "no push", IfSet.REFUSE),
        *not_yet([("measured", TEXT, "x")], "no boot logs", IfSet.WARN),
        *not_yet([("session", integer(0), "5")], "only push"),
    ),
    clashes=lambda s: [("ip", "never with port 1")] if s.port == 1 else [],
    cautions=lambda s: [] if s.strict else [("strict", "unsafe")],
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSample:
    registrar_ip: str = option(ADDRESS, "127.0.0.1", "address", empty_is_default=True)
    port: int = option(PORT, "9002", "port", empty_is_default=True)
    actions: tuple[str, ...] = option(LOOSE_LIST, "", "actions")
    keylime_dir: str = option(TEXT, "/var/lib/keylime", "dir", empty_is_default=True)
    tpm_ownerpassword: str = option(EXACT_TEXT, "", "password", mask=mask_all)
    work_dir: Path = Path("/nowhere")


AGENT = Component("agent", AgentSample, syntax=Syntax.TOML, work_dir_option="keylime_dir")


@dataclass
class Host:
    """Directories like those of a machine, and an environment."""

    base: Path

    def write(self, place: str, text: str, mode: int = 0o600) -> Path:
        path = self.base / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path

    def sources(self, **env: str) -> Sources:
        return Sources(env, (self.base / "usr", self.base / "etc"), self.base)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def texts(problems: object) -> list[str]:
    return [str(problem) for problem in problems]  # type: ignore[attr-defined]  # a test helper


def test_without_files_the_defaults_hold_and_the_log_says_so(host: Host) -> None:
    """# trust: default-safe."""
    loaded = load(SERVER, host.sources())
    assert loaded.settings == Sample(work_dir=Path("/var/lib/keylime"))
    assert [notice.level for notice in loaded.notices] == [logging.WARNING]
    assert "Config file not found" in loaded.notices[0].text


def test_the_local_file_hides_the_vendor_file(host: Host) -> None:
    host.write("usr/verifier.conf", "[verifier]\nip = 10.0.0.1\nport = 5\n")
    local = host.write("etc/verifier.conf", "[verifier]\nport = 7\n")
    loaded = load(SERVER, host.sources())
    assert (loaded.settings.ip, loaded.settings.port) == ("127.0.0.1", 7)
    assert loaded.notices[0].text == f"Reading configuration from ['{local}']"


def test_snippets_of_both_places_override_in_order(host: Host) -> None:
    host.write("usr/verifier.conf", "[verifier]\nip = 10.0.0.1\nport = 5\n")
    host.write("usr/verifier.conf.d/20-a", "[verifier]\nport = 20\n")
    host.write("usr/verifier.conf.d/10-b.conf", "[verifier]\nport = 10\nip = 10.0.0.2\n")
    host.write("etc/verifier.conf.d/00.txt", "[verifier]\nport = 30\n")
    (host.base / "etc/verifier.conf.d/directory").mkdir()
    loaded = load(SERVER, host.sources())
    assert (loaded.settings.ip, loaded.settings.port) == ("10.0.0.2", 30)
    assert [notice.text for notice in loaded.notices][1:] == [
        f"Applied configuration snippets from {host.base}/usr/verifier.conf.d",
        f"Applied configuration snippets from {host.base}/etc/verifier.conf.d",
    ]


def test_snippets_without_a_base_file_do_not_count_for_a_server(host: Host) -> None:
    host.write("etc/verifier.conf.d/00.conf", "[verifier]\nport = 30\n")
    assert load(SERVER, host.sources()).settings.port == 8881


def test_a_named_file_is_the_only_one(host: Host) -> None:
    host.write("etc/verifier.conf", "[verifier]\nip = 10.0.0.1\n")
    host.write("etc/verifier.conf.d/00.conf", "[verifier]\nport = 30\n")
    named = host.write("own.conf", "[verifier]\nnames = ['x']\n")
    settings = load(SERVER, host.sources(KEYLIME_VERIFIER_CONFIG=str(named))).settings
    assert settings == Sample(names=("x",), work_dir=Path("/var/lib/keylime"))


def test_a_named_file_that_is_missing_is_passed_over_by_a_server(host: Host) -> None:
    host.write("etc/verifier.conf", "[verifier]\nport = 3\n")
    assert load(SERVER, host.sources(KEYLIME_VERIFIER_CONFIG="/not/there")).settings.port == 3


def test_a_named_file_that_is_missing_is_fatal_for_an_agent(host: Host) -> None:
    with pytest.raises(SettingsError, match="not a file"):
        load(AGENT, host.sources(KEYLIME_AGENT_CONFIG="/not/there"))


def test_variables_win_over_files_and_are_logged_without_values(host: Host) -> None:
    """# trust: secret."""
    host.write("etc/verifier.conf", "[verifier]\nport = 3\n")
    sources = host.sources(
        KEYLIME_VERIFIER_PORT="4", KEYLIME_VERIFIER_REVOCATIONS_WEBHOOK_URL="u", KEYLIME_VERIFIER_PASSWORD="hunter2"
    )
    loaded = load(SERVER, sources)
    assert (loaded.settings.port, loaded.settings.webhook_url, loaded.settings.password) == (4, "u", "hunter2")
    notices = [notice.text for notice in loaded.notices]
    assert "Option port in section [verifier] is overridden by the variable KEYLIME_VERIFIER_PORT" in notices
    assert "hunter2" not in str(loaded)


def test_an_option_of_another_section_has_no_short_variable(host: Host) -> None:
    loaded = load(SERVER, host.sources(KEYLIME_VERIFIER_WEBHOOK_URL="u"))
    assert not loaded.settings.webhook_url
    assert "no option has this variable" in str(loaded.warnings[0])


def test_what_kubernetes_adds_to_the_environment_is_no_setting(host: Host) -> None:
    sources = host.sources(
        KEYLIME_VERIFIER_PORT="tcp://10.96.0.1:8881",
        KEYLIME_VERIFIER_SERVICE_HOST="10.96.0.1",
        KEYLIME_VERIFIER_PORT_8881_TCP_ADDR="10.96.0.1",
    )
    loaded = load(SERVER, sources)
    assert loaded.settings.port == 8881
    assert not loaded.warnings


def test_quotes_around_text_are_taken_off(host: Host) -> None:
    host.write("etc/verifier.conf", '[verifier]\nip = "10.0.0.1"\nversion = " 2.5 "\n')
    settings = load(SERVER, host.sources()).settings
    assert (settings.ip, settings.version) == ("10.0.0.1", "2.5")


def test_everything_wrong_is_said_together_with_file_line_and_remedy(host: Host) -> None:
    path = host.write("etc/verifier.conf", "[verifier]\nport = 8881x\n\nstrict = ja\nnames = a, b\n")
    with pytest.raises(SettingsError) as refused:
        load(SERVER, host.sources(KEYLIME_VERIFIER_IP="not an ip"))
    assert texts(refused.value.problems) == [
        "KEYLIME_VERIFIER_IP: [verifier] ip: 'not an ip' is no address; write an IPv4 or IPv6 address or a host name",
        f"{path}:2: [verifier] port: '8881x' is not a whole number; write one from 1 to 65535",
        f"{path}:4: [verifier] strict: 'ja' is neither true nor false; write True or False",
        (
            f"{path}:5: [verifier] names: 'a, b' is not a list; write it in brackets with quoted elements, "
            "such as ['first', 'second']"
        ),
    ]


def test_unknown_names_are_warned_of_with_a_guess(host: Host) -> None:
    path = host.write("etc/verifier.conf", "[verifier]\nporrt = 1\nzzz = 1\n[revocation]\nx = 1\ny = 2\n")
    loaded = load(SERVER, host.sources(KEYLIME_VERIFIER_STRCT="1"))
    assert texts(loaded.warnings) == [
        "KEYLIME_VERIFIER_STRCT: no option has this variable; did you mean KEYLIME_VERIFIER_STRICT?",
        f"{path}:2: [verifier] porrt: unknown option, ignored; did you mean port?",
        f"{path}:3: [verifier] zzz: unknown option, ignored",
        f"{path}:5: [revocation]: unknown section, ignored; did you mean revocations?",
    ]


def test_options_not_acted_on_are_known_and_matter_only_when_they_would_change_something(host: Host) -> None:
    host.write("etc/verifier.conf", "[verifier]\nmode = pull\nmeasured = x\nsession = 9\n")
    assert not load(SERVER, host.sources()).warnings
    host.write("etc/verifier.conf", "[verifier]\nmode = push\nmeasured = y\n")
    seen = examine(SERVER, host.sources())
    assert "not supported by this version: no push; write mode = pull" in str(seen.problems[0])
    assert "has no effect in this version: no boot logs" in str(seen.warnings[0])


def test_values_that_do_not_go_together_are_refused(host: Host) -> None:
    host.write("etc/verifier.conf", "[verifier]\nport = 1\n")
    with pytest.raises(SettingsError, match="never with port 1"):
        load(SERVER, host.sources())


def test_what_is_allowed_and_unsafe_is_warned_of(host: Host) -> None:
    host.write("etc/verifier.conf", "[verifier]\nstrict = no\n")
    assert "unsafe" in str(load(SERVER, host.sources()).warnings[0])


def test_secrets_do_not_show(host: Host) -> None:
    """# trust: secret."""
    path = host.write(
        "etc/verifier.conf",
        "[verifier]\npassword = hunter2\ndatabase_url = postgresql://u:hunter2@db/x?password=hunter2\nport = x\n",
        0o644,
    )
    seen = examine(SERVER, host.sources())
    found = {each.option.name: each.text for each in seen.found}
    assert found["password"] == "********"
    assert found["database_url"] == "postgresql://u:********@db/x?password=********"
    assert "hunter2" not in repr(seen.settings) + str(texts(seen.problems)) + str(texts(seen.warnings))
    assert str(path) in str(seen.warnings[0])
    assert "holds a password and everybody may read it" in str(seen.warnings[0])


def test_a_file_that_everybody_may_write_is_refused(host: Host) -> None:
    """# trust: no-ambient-files."""
    host.write("etc/verifier.conf", "[verifier]\n", 0o666)
    with pytest.raises(SettingsError, match="everybody may write"):
        load(SERVER, host.sources())


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_refused_with_mode_and_owner(host: Host) -> None:
    host.write("etc/verifier.conf", "[verifier]\n", 0o000)
    with pytest.raises(SettingsError, match=r"CRITICAL CONFIG ERROR.*mode 0000"):
        load(SERVER, host.sources())


@pytest.mark.parametrize("content", [b"\xff\xfe", b"#" * (1024 * 1024 + 1)])
def test_a_file_that_is_no_text_or_too_large_is_refused(host: Host, content: bytes) -> None:
    """# trust: bounded."""
    host.write("etc/verifier.conf", "").write_bytes(content)
    with pytest.raises(SettingsError):
        load(SERVER, host.sources())


def test_an_agent_merges_all_files(host: Host) -> None:
    host.write("usr/agent.conf", '[agent]\nregistrar_ip = "10.0.0.1"\nport = 1\nactions = "a, b"\n')
    host.write("usr/agent.conf.d/00", "[agent]\nport = 2\n")
    host.write("etc/agent.conf", "[agent]\nport = 3\n")
    assert load(AGENT, host.sources()).settings.port == 3
    host.write("etc/agent.conf.d/00", "[agent]\nport = 4\n")
    loaded = load(AGENT, host.sources(KEYLIME_AGENT_ACTIONS="c"))
    assert (loaded.settings.registrar_ip, loaded.settings.port, loaded.settings.actions) == ("10.0.0.1", 4, ("c",))
    assert "Environment configuration actions=c" in [notice.text for notice in loaded.notices]


def test_empty_values_of_an_agent_are_defaults(host: Host) -> None:
    host.write("etc/agent.conf", '[agent]\nregistrar_ip = ""\nport = ""\n')
    settings = load(AGENT, host.sources()).settings
    assert (settings.registrar_ip, settings.port) == ("127.0.0.1", 9002)


def test_an_agents_secrets_are_masked_in_the_log(host: Host) -> None:
    """# trust: secret."""
    loaded = load(AGENT, host.sources(KEYLIME_AGENT_TPM_OWNERPASSWORD="hunter2"))
    assert "Environment configuration tpm_ownerpassword=********" in [notice.text for notice in loaded.notices]


def test_a_table_is_no_value(host: Host) -> None:
    host.write("etc/agent.conf", "stray = 1\n[agent]\nport = { a = 1 }\n")
    seen = examine(AGENT, host.sources())
    assert "not a value that an option can have" in str(seen.problems[0])
    assert "stands outside of [agent]" in str(seen.warnings[0])


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, "/var/lib/keylime"),
        ({"KEYLIME_DIR": "/d"}, "/d"),
        ({"KEYLIME_DIR": ""}, "/var/lib/keylime"),
        ({"KEYLIME_TEST": "on"}, "/here"),
        ({"KEYLIME_TEST": "True", "KEYLIME_DIR": "/d"}, "/d"),
        ({"KEYLIME_TEST": "off"}, "/var/lib/keylime"),
    ],
)
def test_the_working_directory_follows_the_environment(env: dict[str, str], expected: str) -> None:
    sources = Sources(env, (), Path("/here"))
    loaded = load(SERVER, sources)
    assert loaded.settings.work_dir == Path(expected)
    assert sources.testing == any(notice.text.startswith("KEYLIME_TEST is on") for notice in loaded.notices)


@pytest.mark.parametrize(("env", "expected"), [({}, "/own"), ({"KEYLIME_DIR": "/d"}, "/d")])
def test_an_agent_may_name_its_working_directory(host: Host, env: dict[str, str], expected: str) -> None:
    host.write("etc/agent.conf", '[agent]\nkeylime_dir = "/own"\n')
    assert load(AGENT, host.sources(**env)).settings.work_dir == Path(expected)


def test_notices_and_warnings_go_to_the_log(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    host.write("etc/verifier.conf", "[verifier]\nstrict = no\n")
    with caplog.at_level(logging.INFO):
        load(SERVER, host.sources()).announce(logging.getLogger("keylime.config"))
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
    assert all(record.name == "keylime.config" for record in caplog.records)
