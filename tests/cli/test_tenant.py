"""The command as scripts and people run it: arguments, streams, layout, exit status."""

import asyncio
import json
import logging
import os
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.tenant_site import NODE, Site, SoftAgent, running_site

from limeguard.cli import tenant as cli

pytestmark = pytest.mark.services

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} - keylime\.[a-z_]+ - (DEBUG|INFO|WARNING|ERROR) - ")

Run = Callable[..., Awaitable[tuple[int, str, str]]]


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """Give logging back as it was: the command sets it up for its own process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    keylime = logging.getLogger("keylime")
    before = keylime.handlers[:], keylime.level, keylime.propagate
    raising = logging.raiseExceptions
    yield
    logging.raiseExceptions = raising
    root.handlers[:], root.level = handlers, level
    keylime.handlers[:], keylime.level, keylime.propagate = before


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    for name in list(os.environ):
        if name.startswith("KEYLIME_"):
            monkeypatch.delenv(name)
    async with running_site(tmp_path, SoftAgent(tmp_path, NODE)) as running:
        running.register()
        (tmp_path / "tenant.conf").write_text(
            "[tenant]\n"
            f"verifier_port = {running.ports['verifier']}\n"
            f"registrar_port = {running.ports['registrar']}\n"
            "require_ek_cert = False\n"
            "retry_interval = 0.01\n"
            "max_retries = 2\n"
        )
        monkeypatch.setenv("KEYLIME_DIR", str(tmp_path))
        monkeypatch.setenv("KEYLIME_TENANT_CONFIG", str(tmp_path / "tenant.conf"))
        yield running


@pytest.fixture
def keylime(site: Site, capsys: pytest.CaptureFixture[str]) -> Run:
    del site

    async def run(*argv: str) -> tuple[int, str, str]:
        status = await asyncio.to_thread(cli.keylime_tenant, argv)
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture
def plain(site: Site, capsys: pytest.CaptureFixture[str]) -> Run:
    del site

    async def run(*argv: str) -> tuple[int, str, str]:
        status = await asyncio.to_thread(cli.tenant, argv)
        out, err = capsys.readouterr()
        return status, out, err

    return run


def objects(out: str) -> list[Any]:
    """Do what scripts do: `grep '^{'` and parse."""
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


async def test_every_line_is_a_log_line_or_a_document(site: Site, keylime: Run) -> None:
    site.enrol()
    for command in ("reglist", "cvlist", "bulkinfo", "regstatus", "cvstatus", "status", "reactivate", "delete"):
        status, out, _ = await keylime("-c", command, "-u", NODE)
        assert status == 0
        for line in out.splitlines():
            assert not line or LINE.match(line) or line.startswith("{"), line


async def test_the_last_document_of_status_is_the_verifiers(site: Site, keylime: Run) -> None:
    site.enrol()
    status, out, _ = await keylime("-c", "status", "-u", NODE)
    assert status == 0
    registered, supervised = objects(out)
    assert registered[NODE]["operational_state"] == "Registered"
    assert supervised[NODE]["operational_state"] == "Get Quote"
    assert list(supervised) == [NODE]


async def test_regstatus_has_one_document(keylime: Run) -> None:
    status, out, _ = await keylime("-c", "regstatus", "-u", NODE)
    assert status == 0
    assert len(objects(out)) == 1


async def test_the_strings_that_scripts_match(site: Site, keylime: Run) -> None:
    site.enrol()
    registrar, verifier = site.ports["registrar"], site.ports["verifier"]
    expected: list[tuple[list[str], int, str]] = [
        (["-c", "cvlist"], 0, rf"{{'code': 200, 'status': 'Success', 'results': {{'uuids':.*'{NODE}'"),
        (["-c", "reglist"], 0, rf'{{"code": 200, "status": "Success", "results": {{"uuids":.*"{NODE}"'),
        (["-c", "cvstatus"], 0, rf'{{"{NODE}": {{"operational_state": "(Get Quote|Provide V)"'),
        (["-c", "bulkinfo"], 0, rf'INFO - Bulk Agent Info:\n{{"{NODE}": {{"operational_state": "Get Quote"'),
        (["-c", "reactivate"], 0, rf"INFO - Agent {NODE} re-activated(.|\n)*INFO - Agent {NODE} re-activated"),
        (["-c", "delete"], 0, rf"INFO - Agent {NODE} deleted from the CV"),
        (["-c", "cvstatus"], 1, rf"Verifier at 127\.0\.0\.1 with Port {verifier} does not have agent {NODE}"),
        (
            ["-c", "regstatus"],
            0,
            rf'{{"code": 200, "status": "Agent {NODE} exists on registrar 127\.0\.0\.1 port {registrar}\."',
        ),
        (["-c", "regdelete"], 0, ""),
        (
            ["-c", "regstatus"],
            1,
            rf'{{"code": 404, "status": "Agent {NODE} does not exist on registrar 127\.0\.0\.1 port {registrar}\."',
        ),
        (["-c", "regstatus"], 1, rf"ERROR - Agent {NODE} does not exist on Registrar"),
        (["-c", "bogus"], 1, "ERROR - Invalid command specified: bogus"),
    ]
    for argv, status, pattern in expected:
        found, out, _ = await keylime(*argv, "-u", NODE)
        assert found == status, argv
        assert re.search(pattern, out), (argv, out)


async def test_policies_are_printed_in_pythons_notation(tmp_path: Path, keylime: Run) -> None:
    path = tmp_path / "mb.json"
    path.write_text("{}")
    named = ["--mb-policy", str(path), "--mb-policy-name", "mypolicy"]
    _, out, _ = await keylime("-c", "addmbpolicy", *named)
    assert "\n{'code': 201, 'status': 'Created', 'results': {}}\n" in out
    _, out, _ = await keylime("-c", "showmbpolicy", *named)
    expected = "{'code': 200, 'status': 'Success', 'results': {'name': 'mypolicy', 'mb_policy': '{}'}}"
    assert f"showmbpolicy command response: 200.\n{expected}\n" in out
    _, out, _ = await keylime("-c", "addmbpolicy", *named)
    conflict = "{'code': 409, 'status': 'Measured boot policy with name mypolicy already exists', 'results': {}}"
    assert f"\n{conflict}\n" in out
    assert f"ERROR - {conflict}" in out
    _, out, _ = await keylime("-c", "deletembpolicy", *named)
    assert out.endswith("\n{}\n")


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["-c", "addruntimepolicy"], "runtime_policy is required to add a runtime policy"),
        (["--runtime-policy-url", "http://x"], "--runtime-policy-url needs --runtime-policy-checksum"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["-tp", "0"], "0 is no port"),
        (["-rp", "99999"], "99999 is no port"),
        (["-u"], "expected one argument"),
    ],
)
def test_wrong_arguments_are_usage_errors(argv: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.keylime_tenant(argv)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert text in err
    assert err.startswith("usage: keylime_tenant ")
    assert out == ""


ALL_OPTIONS = [
    *["-c", "add", "--push-model", "-t", "h", "-tp", "1", "--cv_targethost", "h", "-r", "h", "-rp", "1", "-v", "h"],
    *["-vp", "1", "-vi", "i", "-nvc", "-u", "n", "-f", "f", "--cert", "c", "-k", "k", "-p", "p", "--include", "i"],
    *["--runtime-policy", "r", "--runtime-policy-checksum", "c", "--runtime-policy-sig-key", "k"],
    *["--runtime-policy-name", "n", "--mb-policy", "m", "--mb_refstate", "m", "--mb-policy-name", "n"],
    *["--tpm_policy", "{}", "--verify", "--agent-api-version", "2.6", "--supported-version", "2.6"],
    *["--allowlist", "a", "--exclude", "e", "--allowlist-name", "n", "--sign_verification_key", "k"],
    *["--signature-verification-key", "k", "--signature-verification-key-sig", "s"],
    *["--signature-verification-key-sig-key", "k", "--signature-verification-key-url", "u"],
    *["--signature-verification-key-sig-url", "u", "--signature-verification-key-sig-url-key", "k"],
]


def test_every_option_of_keylimes_tenant_is_known() -> None:
    request, _ = cli.parse(cli.make_parser("x", plain=False), ALL_OPTIONS)
    assert request.agent_port == 1
    assert request.verifier_check is False
    assert request.mb_policy == "m"
    assert len(request.ima_keys) == 7
    request, _ = cli.parse(cli.make_parser("x", plain=False), ["--allowlist-url", "u"])
    assert request.allowlist_url == "u"


def test_long_options_may_be_shortened_while_they_are_clear() -> None:
    request, _ = cli.parse(cli.make_parser("x", plain=False), ["--uu", "n", "--comm", "status", "--targeth", "h"])
    assert (request.command, request.agent_id, request.agent_host) == ("status", "n", "h")
    with pytest.raises(SystemExit):
        cli.parse(cli.make_parser("x", plain=False), ["--runtime-policy-s", "x", "--runtime", "x"])


def test_the_command_defaults_to_add() -> None:
    assert cli.parse(cli.make_parser("x", plain=False), [])[0].command == "add"


async def test_invalid_ids_are_refused_before_anything_is_sent(site: Site, keylime: Run) -> None:
    status, out, _ = await keylime("-c", "add", "-u", "a/../b")
    assert status == 1
    assert "ERROR - The agent ID set via agent uuid parameter use invalid characters" in out
    assert site.calls == []


async def test_a_missing_client_certificate_is_named_and_fails_on_the_first_request(site: Site, keylime: Run) -> None:
    (site.folder / "cv_ca" / "client-private.pem").unlink()
    status, out, _ = await keylime("-c", "reglist")
    assert status == 1
    assert f"WARNING - Could not find file {site.folder}/cv_ca/client-private.pem provided in 'client_key'" in out
    assert "WARNING - TLS is disabled." in out
    assert "SSLError" in out
    assert site.lines() == []


async def test_a_ca_that_did_not_issue_the_server_leads_to_its_setting(
    site: Site, keylime: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEYLIME_TENANT_TRUSTED_SERVER_CA", f"['{site.agent.identity.certificate}']")
    status, out, _ = await keylime("-c", "reglist")
    assert status == 1
    assert "trusted_server_ca" in out
    assert site.lines() == []


async def test_all_problems_of_the_settings_are_said_together(keylime: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYLIME_TENANT_MAX_RETRIES", "many")
    monkeypatch.setenv("KEYLIME_TENANT_REGISTRAR_PORT", "0")
    status, out, _ = await keylime("-c", "reglist")
    assert status == 1
    assert "max_retries" in out
    assert "registrar_port" in out


LOGGING = """[loggers]
keys = root,keylime
[handlers]
keys = consoleHandler
[formatters]
keys = formatter
[formatter_formatter]
format = %(asctime)s.%(msecs)03d - %(name)s - %(levelname)s - %(message)s
datefmt = %Y-%m-%d %H:%M:%S
[logger_root]
level = DEBUG
handlers = consoleHandler
[handler_consoleHandler]
class = StreamHandler
level = DEBUG
formatter = formatter
args = (sys.stdout,)
[logger_keylime]
level = DEBUG
qualname = keylime
handlers =
"""


async def test_debug_logging_has_a_line_for_every_request(
    site: Site, keylime: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "logging.conf").write_text(LOGGING)
    monkeypatch.setenv("KEYLIME_LOGGING_CONFIG", str(tmp_path / "logging.conf"))
    payload = tmp_path / "payload"
    payload.write_text("the payload")
    status, out, err = await keylime("-c", "add", "-u", NODE, "-f", str(payload), "--verify")
    assert status == 0
    assert f"INFO:keylime.config:Reading configuration from ['{tmp_path}/logging.conf']" in err
    ports = site.ports
    for port, request in (
        (ports["registrar"], rf"GET /v2\.6/agents/{NODE}"),
        (ports["verifier"], rf"POST /v2\.6/agents/{NODE}"),
        (ports["agent"], r"GET /v2\.6/keys/verify\?challenge=[A-Za-z0-9]{20}"),
    ):
        assert re.search(rf'https://127\.0\.0\.1:{port} "{request} HTTP/1\.1" 200 ', out), request


# trust: secret
async def test_no_log_shows_a_payload_or_its_key(
    site: Site, keylime: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "logging.conf").write_text(LOGGING)
    monkeypatch.setenv("KEYLIME_LOGGING_CONFIG", str(tmp_path / "logging.conf"))
    payload = tmp_path / "payload"
    payload.write_text("the payload")
    status, out, err = await keylime("-c", "add", "-u", NODE, "-f", str(payload), "--verify")
    assert status == 0
    assert site.agent.payload_key is not None
    u = bytes(site.agent.halves[0][0])
    for secret in (site.agent.payload_key, u):
        for shown in (secret.hex(), repr(secret)):
            assert shown not in out + err
    assert "the payload" not in out + err


async def test_a_reader_that_goes_away_does_not_stop_an_enrolment(site: Site) -> None:
    site.enrol()
    code = "import sys; from limeguard.cli.tenant import keylime_tenant; sys.exit(keylime_tenant(sys.argv[1:]))"
    reading, writing = os.pipe()
    os.close(reading)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, "-c", "update", "-u", NODE), stdout=writing, stderr=asyncio.subprocess.PIPE
    )
    os.close(writing)
    _, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0
    assert err == b""
    assert site.nodes[NODE]["operational_state"] == 1


# --- for people and pipes --------------------------------------------------------------------------------------------


async def test_a_pipe_gets_json_alone(site: Site, plain: Run) -> None:
    site.enrol()
    status, out, err = await plain("cvstatus", "-u", NODE)
    assert status == 0
    assert json.loads(out)[NODE]["operational_state"] == "Get Quote"
    assert err == ""


async def test_status_has_both_sides_in_one_document(site: Site, plain: Run) -> None:
    site.enrol()
    _, out, _ = await plain("-c", "status", "-u", NODE)
    assert set(json.loads(out)) == {"registrar", "verifier"}


# trust: secret
async def test_the_key_share_in_a_record_is_not_shown(site: Site, plain: Run) -> None:
    site.enrol()
    for command in ("cvstatus", "bulkinfo"):
        _, out, _ = await plain(command, "-u", NODE)
        assert json.loads(out)[NODE]["v"] == "(hidden)"


async def test_commands_without_an_answer_say_that_it_is_done(site: Site, plain: Run) -> None:
    site.enrol()
    _, out, err = await plain("delete", "-u", NODE, "--verbose")
    assert json.loads(out) == {"ok": True}
    assert f"Agent {NODE} deleted from the CV" in err


async def test_failures_are_json_too(plain: Run) -> None:
    status, out, err = await plain("cvstatus", "-u", NODE)
    assert status == 1
    assert json.loads(out)["ok"] is False
    assert "error: " in err


async def test_the_version_is_told(plain: Run) -> None:
    _, out, _ = await plain("version")
    assert json.loads(out)["verifier"]["api_version"] == "2.6"


def test_two_commands_are_a_usage_error() -> None:
    with pytest.raises(SystemExit) as ended:
        cli.tenant(["status", "-c", "add"])
    assert ended.value.code == 2
