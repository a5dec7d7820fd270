"""Revocation notices: whose are acted on, which programs run, and what happens when one fails."""

import asyncio
import base64
import datetime
import json
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID

from limeguard.agent.notices import (
    NoticeHandler,
    NoticeOptions,
    NoticeRefused,
    check_notice,
    load_notice_key,
    parse_action_list,
)

PRIVATE = rsa.generate_private_key(public_exponent=65537, key_size=2048)
MESSAGE = json.dumps({"type": "revocation", "ip": "127.0.0.1", "agent_id": "x", "meta_data": "{}"})


def certificate(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey = PRIVATE) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "RevocationNotifier")])
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = (
        builder.serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM)


def sign(message: str, salt: int | None = None) -> str:
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.MAX_LENGTH if salt is None else salt)
    return base64.b64encode(PRIVATE.sign(message.encode(), pss, hashes.SHA256())).decode()


class Site:
    """Folders as a processed payload leaves them."""

    def __init__(self, folder: Path) -> None:
        self.work = folder / "work"
        self.unzipped = self.work / "secure" / "unzipped"
        self.actions = folder / "libexec"
        for made in (self.unzipped, self.actions):
            made.mkdir(parents=True)
        self.options = NoticeOptions(
            work_folder=self.work,
            unzipped=self.unzipped,
            certificate=self.unzipped / "RevocationNotifier-cert.crt",
            actions=(),
            actions_folder=self.actions,
            allow_payload_actions=True,
        )
        self.options.certificate.write_bytes(certificate())

    def action(self, folder: Path, name: str, script: str, mode: int = 0o700) -> None:
        (folder / name).write_text("#!/bin/sh\n" + script)
        (folder / name).chmod(mode)

    def handler(self) -> NoticeHandler:
        handler = NoticeHandler(self.options)
        handler.learn_certificate()
        return handler

    def ran(self) -> list[str]:
        log = self.work / "ran"
        return log.read_text().split() if log.exists() else []


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


async def test_a_signed_notice_runs_the_actions_in_order(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    site.options = replace(site.options, actions=("first",))
    site.action(site.actions, "first", "echo first >> ran; echo out; echo err >&2\n")
    site.action(site.unzipped, "second", 'echo second >> ran; cp "$1" seen\n')
    (site.unzipped / "action_list").write_text("second")
    await site.handler().handle(MESSAGE, sign(MESSAGE))
    assert site.ran() == ["first", "second"]
    assert (site.work / "seen").read_text() == '{"agent_id":"x","ip":"127.0.0.1","meta_data":"{}","type":"revocation"}'
    for text in ("Executing revocation action first", "Action stdout: out", "Action stderr: err"):
        assert text in caplog.text


# trust: secret
async def test_the_file_with_the_notice_is_removed_even_when_nothing_runs(site: Site) -> None:
    site.action(site.unzipped, "plain", "true\n", mode=0o600)
    (site.unzipped / "action_list").write_text("plain")
    await site.handler().handle(MESSAGE, sign(MESSAGE))
    assert [path.name for path in site.work.iterdir()] == ["secure"]


# trust: fail-closed
@pytest.mark.parametrize(
    "signature",
    ["", "!", "AAAA", sign(MESSAGE + " "), sign(MESSAGE, salt=32), sign(MESSAGE)[:-8] + "AAAAAAA="],
)
async def test_a_notice_that_is_not_signed_runs_nothing(
    site: Site, signature: str, caplog: pytest.LogCaptureFixture
) -> None:
    site.action(site.unzipped, "act", "echo ran >> ran\n")
    (site.unzipped / "action_list").write_text("act")
    await site.handler().handle(MESSAGE, signature)
    assert not site.ran()
    assert "was refused" in caplog.text


async def test_before_a_payload_notices_are_dropped(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    await NoticeHandler(site.options).handle(MESSAGE, sign(MESSAGE))
    assert "no revocation certificate was delivered" in caplog.text


@pytest.mark.parametrize("spoil", ["", "garbage", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
async def test_without_a_usable_certificate_notices_are_dropped(
    site: Site, spoil: str, caplog: pytest.LogCaptureFixture
) -> None:
    site.options.certificate.write_text(spoil)
    handler = site.handler()
    await handler.handle(MESSAGE, sign(MESSAGE))
    assert "was dropped" in caplog.text
    site.options.certificate.unlink()
    handler.learn_certificate()
    assert "brought no revocation certificate" in caplog.text


def test_a_certificate_of_another_kind_is_refused() -> None:
    with pytest.raises(NoticeRefused, match="RSA"):
        load_notice_key(certificate(ec.generate_private_key(ec.SECP256R1())))


async def test_the_first_failure_ends_the_rest(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    for name, script in (("a", "echo a >> ran\n"), ("b", "exit 7\n"), ("c", "echo c >> ran\n")):
        site.action(site.unzipped, name, script)
    (site.unzipped / "action_list").write_text("a, b, c")
    await site.handler().handle(MESSAGE, sign(MESSAGE))
    assert site.ran() == ["a"]
    assert "action b failed (7)" in caplog.text


async def test_a_missing_action_ends_the_rest(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.action(site.unzipped, "c", "echo c >> ran\n")
    (site.unzipped / "action_list").write_text("missing c")
    await site.handler().handle(MESSAGE, sign(MESSAGE))
    assert not site.ran()
    assert "missing was not found" in caplog.text


async def test_actions_of_the_payload_can_be_turned_off(site: Site) -> None:
    site.options = replace(site.options, allow_payload_actions=False)
    site.action(site.unzipped, "act", "echo payload >> ran\n")
    (site.unzipped / "action_list").write_text("act")
    await site.handler().handle(MESSAGE, sign(MESSAGE))
    assert not site.ran()
    site.action(site.actions, "act", "echo installed >> ran\n")
    await site.handler().handle(MESSAGE, sign(MESSAGE))
    assert site.ran() == ["installed"]


async def test_a_notice_that_is_no_json_runs_nothing(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    await site.handler().handle("{", sign("{"))
    assert "could not be acted on" in caplog.text


# trust: hygiene
async def test_control_characters_of_an_action_do_not_reach_the_log(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    site.action(site.unzipped, "act", r"printf 'a\033[2Jb\n'" + "\n")
    (site.unzipped / "action_list").write_text("act")
    await site.handler().handle(MESSAGE, sign(MESSAGE))
    assert "\x1b" not in caplog.text
    assert r"a\x1b[2Jb" in caplog.text


# trust: bounded
async def test_an_action_that_talks_without_end_is_cut_and_an_ended_agent_kills_it(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    site.action(site.unzipped, "act", "head -c 1000000 /dev/zero | tr '\\0' 'x'; echo done >> ran; sleep 1000\n")
    (site.unzipped / "action_list").write_text("act")
    task = asyncio.create_task(site.handler().handle(MESSAGE, sign(MESSAGE)))
    while not site.ran():
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(caplog.text) < 100_000


# trust: no-ambient-files
@pytest.mark.parametrize("name", ["../act", "/bin/sh", "a/b", ".hidden", "-rf", "a\x00b", "x" * 200])
def test_a_name_that_could_lead_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(NoticeRefused):
        parse_action_list(f"good {name}")


# trust: bounded
def test_a_list_of_too_many_actions_is_refused() -> None:
    assert parse_action_list(" a,b\n\tc ,, ") == ("a", "b", "c")
    with pytest.raises(NoticeRefused, match="more than"):
        parse_action_list("a " * 65)


def test_the_signature_covers_the_exact_bytes() -> None:
    check_notice(PRIVATE.public_key(), MESSAGE, sign(MESSAGE))
    with pytest.raises(NoticeRefused):
        check_notice(PRIVATE.public_key(), MESSAGE.replace(" ", ""), sign(MESSAGE))
