"""`keylime_ca` with its options, messages and exit codes, and `limeguard ca`."""

import json
import logging
import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from limeguard.authoring.ca import CertificateAuthority
from limeguard.authoring.keystore import unseal
from limeguard.authoring.settings import CaSettings
from limeguard.cli.ca import PROMPT, ca, main
from limeguard.settings import Sources


def no_question(_prompt: str) -> str:
    raise AssertionError("nothing should be asked")


class Host:
    """A working directory and a password in `ca.conf`."""

    def __init__(self, folder: Path) -> None:
        self.ca = folder / "ca"
        self.conf = folder / "ca.conf"
        self.password("secret")
        self.env = {"KEYLIME_DIR": str(folder), "KEYLIME_CA_CONFIG": str(self.conf)}

    def password(self, word: str) -> None:
        self.conf.write_text(f"[ca]\npassword = {word}\n")
        self.conf.chmod(0o600)

    def run(self, *argv: str) -> int:
        return main(argv, sources=Sources(self.env, ()), ask=no_question)

    def click(self, *argv: str) -> Result:
        return CliRunner(env=self.env).invoke(ca, argv)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    before = os.umask(0o022)
    yield Host(tmp_path)
    os.umask(before)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "ca"
    authority = CertificateAuthority(directory=folder, settings=CaSettings(), password="secret")
    authority.init()
    authority.create("node")
    return folder


@pytest.fixture
def ready(host: Host, made: Path) -> Host:
    """Return a host with an authority that has issued one certificate."""
    host.ca.mkdir(mode=0o700)
    for path in made.iterdir():
        (host.ca / path.name).write_bytes(path.read_bytes())
    return host


def test_the_life_of_an_authority(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for argv in (
        ("-c", "init"),
        ("-c", "create", "-n", "x"),
        ("--command", "pkg", "--name", "x"),
        ("-c", "revoke", "-n", "x"),
    ):
        assert host.run(*argv) == 0
    for line in (
        f"Reading configuration from ['{host.conf}']",
        f"CA certificate created successfully in {host.ca}",
        f"Created certificate for name x successfully in {host.ca}",
        "Creating cert package for x in x-pkg.zip",
    ):
        assert line in caplog.messages
    assert {record.name for record in caplog.records} == {"keylime.config", "keylime.ca-util"}
    assert stat.S_IMODE((host.ca / "x-pkg.zip").stat().st_mode) == 0o600
    assert zipfile.ZipFile(host.ca / "x-pkg.zip").testzip() is None


def test_another_directory_can_be_named(host: Host, tmp_path: Path) -> None:
    assert host.run("-c", "init", "-d", str(tmp_path / "other")) == 0
    assert (tmp_path / "other/cacert.crt").exists()


@pytest.mark.parametrize("argv", [(), ("-n", "x"), ("-c", "init", "--bogus")])
def test_wrong_options_are_a_usage_error_on_stderr(
    host: Host, argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        host.run(*argv)
    assert ended.value.code == 2
    assert "usage: keylime_ca" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("-c", "create"), "you must pass in a name for the certificate using -n (or --name)"),
        (("-c", "pkg"), "you must pass in a name"),
        (("-c", "revoke"), "you must pass in a name"),
        (("-c", "import-priv"), "you must pass in the last serial number the CA has used using -s (or --serial)"),
        (("-c", "import-priv", "-s", "x"), "not a serial number"),
        (("-c", "dance\x1b"), r"Invalid command: dance\x1b"),
    ],
)
def test_incomplete_commands_show_the_help(
    host: Host,
    argv: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert host.run(*argv) == 255
    assert message in caplog.records[-1].message
    assert "usage: keylime_ca" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("-c", "create", "-n", "../x"), "cannot be the name"),
        (("-c", "revoke", "-n", "nobody"), "There is no certificate for nobody"),
        (("-c", "import-priv", "-s", "1", "-f", "/not/there"), "/not/there"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    ready: Host, argv: tuple[str, ...], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert ready.run(*argv) == 1
    assert message in caplog.records[-1].message
    assert caplog.records[-1].exc_info is None


def test_the_password_is_asked_for_with_keylimes_words(ready: Host) -> None:
    """# trust: secret."""
    ready.password("default")
    asked: list[str] = []

    def answer(prompt: str) -> str:
        asked.append(prompt)
        return "secret"

    assert main(["-c", "revoke", "-n", "node"], sources=Sources(ready.env, ()), ask=answer) == 0
    assert asked == [PROMPT]
    assert PROMPT == "Please enter the password to decrypt your keystore: "


@pytest.mark.parametrize(("word", "message"), [("wrong", "Invalid password for keystore"), ("", "must not be empty")])
def test_a_wrong_or_empty_password_is_refused(
    ready: Host, word: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    ready.password("default")
    before = (ready.ca / "private.yml").read_bytes()
    assert main(["-c", "create", "-n", "x"], sources=Sources(ready.env, ()), ask=lambda _: word) == 1
    assert message in caplog.records[-1].message
    assert (ready.ca / "private.yml").read_bytes() == before


def test_a_private_key_is_imported(ready: Host, tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.write_bytes(unseal((ready.ca / "private.yml").read_bytes(), "secret").ca_key)
    directory = str(tmp_path / "new")
    assert ready.run("-c", "import-priv", "-f", str(key), "-s", "41", "-d", directory) == 0
    assert unseal((tmp_path / "new/private.yml").read_bytes(), "secret").last_serial == 41


def test_listing_and_showing_need_no_password(ready: Host, capsys: pytest.CaptureFixture[str]) -> None:
    ready.password("default")
    assert ready.run("-c", "list") == 0
    assert ready.run("-c", "show", "-n", "node") == 0
    shown = capsys.readouterr().out
    assert "2  node  until " in shown
    assert "subject  OU=53,O=Keylime,L=Lexington,ST=MA,CN=node,C=US" in shown


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_working_directory_out_of_reach_shows_the_help(host: Host, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert host.run("-c", "init") == 255


def test_a_missing_working_directory_shows_the_help(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    host.env["KEYLIME_DIR"] = "/not/there"
    assert host.run("-c", "init") == 255
    assert "Reading and writing in /not/there" in caplog.text


def test_bad_settings_are_said(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    host.conf.write_text("[ca]\npassword = x\ncert_bits = many\n")
    assert host.run("-c", "init") == 1
    assert "cert_bits" in caplog.text


def test_the_group_does_the_same_for_people(ready: Host) -> None:
    listed = ready.click("list", "--json")
    assert [(each["name"], each["serial"], each["revoked"]) for each in json.loads(listed.output)] == [
        ("node", 2, False)
    ]
    assert "serial 3" in ready.click("create", "web", "--san", "web.example", "--san", "10.0.0.1").output
    assert json.loads(ready.click("show", "web", "--json").output)["names"] == ["web.example", "10.0.0.1"]
    assert ready.click("revoke", "web").output == "web: serial 3 is revoked\n"
    assert ready.click("package", "web").output == f"{ready.ca}/web-pkg.zip\n"
    assert "revoked" in ready.click("list").output


def test_people_do_not_replace_an_authority_by_accident(ready: Host) -> None:
    """# trust: default-safe."""
    refused = ready.click("init")
    assert refused.exit_code == 1
    assert "--force" in refused.stderr
    assert ready.click("init", "--force").exit_code == 0


def test_errors_of_the_group_are_sentences(ready: Host) -> None:
    result = ready.click("show", "nobody")
    assert (result.exit_code, result.stderr) == (1, f"Error: There is no certificate for nobody in {ready.ca}.\n")
