"""The agent as a process on a software TPM: started, killed, restarted, refused, stopped."""

import asyncio
import json
import os
import random
import signal
import socket
import ssl
import tempfile
import time
import warnings
from base64 import b64decode, b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.agent.conftest import AGENT_ID, AgentProcess, FakeRegistrar, MakeAgent, envelope, registered_ak
from tests.agent.swtpm_site import SoftwareTpm
from tests.agent.test_payload import archive
from tests.agent.test_secure_store import may_mount
from tests.fakes.pki import Authority, client_context

from limeguard.crypto.keysplit import (
    bootstrap_auth_tag,
    challenge_hmac,
    encrypt_key_share,
    encrypt_payload,
    split,
)
from limeguard.evidence.tpm.quote import QuotedPcrs, parse_quote, verify_quote
from limeguard.evidence.tpm.structures import PublicArea
from limeguard.web.answers import Unreachable
from limeguard.web.app import Response
from limeguard.wire import agent_v2
from limeguard.wire.agent_v2 import QuoteAnswer, UKey

pytestmark = pytest.mark.e2e

KEY, V = bytes(range(32)), b"\xaa" * 32
ACCEPTED = frozenset({"sha256", "sha384"})
KILLS = int(os.environ.get("LIMEGUARD_KILLS", "20"))


def proven(answer: QuoteAnswer, ak: PublicArea, nonce: str) -> QuotedPcrs:
    found = verify_quote(parse_quote(answer.quote), key=ak, nonce=nonce.encode(), accepted_hashes=ACCEPTED)
    assert isinstance(found, QuotedPcrs), found
    return found


@pytest.mark.parametrize(
    ("key", "scheme", "hash_name"),
    [("rsa", "rsassa", "sha256"), ("ecc", "ecdsa", "sha256"), ("ecc384", "ecdsa", "sha384")],
)
async def test_a_node_registers_and_its_quotes_are_proven(
    make_agent: MakeAgent, registrar: FakeRegistrar, tpm: SoftwareTpm, key: str, scheme: str, hash_name: str
) -> None:
    agent = make_agent(tpm_encryption_alg=key, tpm_signing_alg=scheme, tpm_hash_alg=hash_name)
    agent.start()
    await agent.wait_for(f"SUCCESS: Agent {AGENT_ID} activated")
    await agent.wait_for("Listening on")
    record = registrar.nodes[AGENT_ID]
    assert record.active
    assert record.body["mtls_cert"] == "disabled"
    assert (record.body["ip"], record.body["port"]) == ("127.0.0.1", agent.port)
    # swtpm_setup makes certificates for the RSA-2048 and the P-384 EK only
    assert record.body["ekcert"].startswith("-----BEGIN CERTIFICATE-----\n") == (key != "ecc")
    answer = agent_v2.decode_quote((await agent.get("/v2.6/quotes/identity?nonce=NONCE1")).body)
    found = proven(answer, registered_ak(registrar), "NONCE1")
    assert answer.pubkey is not None
    binding = found.bank.digest(answer.pubkey.encode())
    assert found.values == {16: found.bank.digest(bytes(found.bank.size) + binding)}
    path = agent_v2.integrity_path("2.6", "NONCE2", "0x80", partial=True, ima_entry=0)
    answer = agent_v2.decode_quote((await agent.get(path)).body)
    assert set(proven(answer, registered_ak(registrar), "NONCE2").values) == {7, 16}
    assert await agent.stop() == 0
    assert tpm.handles() == []
    assert "Traceback" not in agent.text


async def test_an_agent_killed_at_any_moment_starts_again_as_the_same_node(
    make_agent: MakeAgent, registrar: FakeRegistrar, tpm: SoftwareTpm
) -> None:
    agent = make_agent()
    agent.start()
    await agent.wait_for("activated")
    first = registrar.nodes[AGENT_ID].body["aik_tpm"]
    moments = random.Random(7)
    for _ in range(KILLS):
        agent.kill()
        agent.start()
        await asyncio.sleep(moments.uniform(0.3, 1.5))
    agent.kill()
    count = agent.text.count("activated")
    agent.start()
    await agent.wait_for("activated", count + 1)
    assert registrar.nodes[AGENT_ID].body["aik_tpm"] == first
    await agent.wait_for_port()
    answer = agent_v2.decode_quote((await agent.get("/v2.6/quotes/identity?nonce=LAST")).body)
    proven(answer, registered_ak(registrar), "LAST")
    assert await agent.stop() == 0
    assert tpm.handles() == []


@pytest.mark.parametrize("moment", [0.2, 0.5, 0.7, 0.9, 1.1])
async def test_a_signal_at_any_moment_leaves_nothing_in_the_tpm(
    make_agent: MakeAgent, tpm: SoftwareTpm, moment: float
) -> None:
    agent = make_agent()
    agent.start()
    await asyncio.sleep(moment)
    assert agent.process is not None
    agent.process.send_signal(signal.SIGTERM)
    assert await agent.ended() in {0, -signal.SIGTERM}
    assert tpm.handles() == []
    assert "Traceback" not in agent.text


# trust: bound-identity
async def test_a_registrar_that_knows_another_tpm_ends_the_agent_at_once(
    make_agent: MakeAgent, registrar: FakeRegistrar, tpm: SoftwareTpm
) -> None:
    registrar.versions = envelope(404, "Not Found", {})
    agent = make_agent()
    refusal = envelope(403, "Agent re-registration with different TPM identity is forbidden", {})
    registrar.failures = [envelope(404, "Not Found", {}), refusal]
    agent.start()
    assert await agent.ended() == 1
    assert [line.split()[0] for line in registrar.requests] == ["GET", "POST"]
    assert "Delete the node from the registrar" in agent.text
    assert tpm.handles() == []


async def test_a_busy_registrar_is_asked_again_and_an_old_one_in_its_own_version(
    make_agent: MakeAgent, registrar: FakeRegistrar
) -> None:
    agent = make_agent()
    registrar.failures = [
        Response(503, b"busy"),
        envelope(400, "too new", {}),
        envelope(500, "again", {}),
        Response(429, b"", headers={"Retry-After": "0"}),
    ]
    agent.start()
    await agent.wait_for("activated")
    posts = [line.split("/")[1] for line in registrar.requests if line.startswith("POST")]
    assert posts[:2] == ["v2.6", "v2.5"]  # /version gave no answer: newest first
    assert await agent.stop() == 0


async def test_a_registrar_that_is_not_there_is_tried_as_often_as_configured(make_agent: MakeAgent) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    agent = make_agent(registrar_port=str(port), exponential_backoff_max_retries="2")
    agent.start()
    assert await agent.ended() == 1
    assert agent.text.count("Network error") == 3
    assert "connection failed" in agent.text
    assert f"connecting to 127.0.0.1:{port}" in agent.text


async def test_a_signal_ends_the_wait_for_a_registrar(make_agent: MakeAgent, registrar: FakeRegistrar) -> None:
    registrar.failures = [Response(500, b"")] * 1000
    agent = make_agent(exponential_backoff_initial_delay="60000")
    agent.start()
    await agent.wait_for("Registering again in 60.0 s")
    started = time.monotonic()
    assert await agent.stop() == 0
    assert time.monotonic() - started < 5


async def test_a_spoilt_challenge_is_not_opened_and_not_fatal_to_the_tpm(
    make_agent: MakeAgent, registrar: FakeRegistrar, tpm: SoftwareTpm
) -> None:
    agent = make_agent(exponential_backoff_max_retries="1")
    version = envelope(200, "Success", {"current_version": "2.6", "supported_versions": ["2.6"]})
    for blob in (b"garbage", b""):
        registrar.failures += [version, envelope(200, "Success", {"blob": b64encode(blob).decode()})]
    agent.start()
    assert await agent.ended() == 1
    assert "challenge cannot be opened" in agent.text
    assert tpm.handles() == []


# --- TLS ------------------------------------------------------------------------------------------------------------


# trust: default-deny
async def test_only_clients_of_the_configured_authority_get_in(
    make_agent: MakeAgent, registrar: FakeRegistrar, tmp_path: Path
) -> None:
    ours, theirs = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs")
    (tmp_path / "both.crt").write_text("")
    agent = make_agent(enable_agent_mtls="true", trusted_client_ca=str(ours.identity.certificate))
    agent.start()
    await agent.wait_for("Listening on")
    pinned = tmp_path / "agent.crt"
    pinned.write_text(registrar.nodes[AGENT_ID].body["mtls_cert"])
    good = client_context(ours.issue("verifier"), pinned)
    assert (await agent.get("/version", good)).status == 200
    for identity in (None, theirs.issue("verifier")):
        with pytest.raises(Unreachable):
            await agent.get("/version", client_context(identity, pinned))
    with pytest.raises(Unreachable):
        await agent.get("/version")  # no TLS at all
    assert await agent.stop() == 0


# trust: downgrade
async def test_old_tls_is_refused(make_agent: MakeAgent, tmp_path: Path) -> None:
    ours = Authority(tmp_path / "ours")
    agent = make_agent(enable_agent_mtls="true", trusted_client_ca=str(ours.identity.certificate))
    agent.start()
    await agent.wait_for("Listening on")
    old = client_context(ours.issue("verifier"))
    old.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a version that Python itself advises against
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(Unreachable) as problem:
        await agent.get("/version", old)
    assert problem.value.kind in {"tls", "connect", "protocol"}


# trust: fail-closed
async def test_an_agent_that_would_trust_nobody_does_not_start(make_agent: MakeAgent, tpm: SoftwareTpm) -> None:
    agent = make_agent(enable_agent_mtls="true")
    agent.start()
    assert await agent.ended() == 1
    assert "trusted_client_ca" in agent.text
    assert tpm.handles() == []
    assert "Traceback" not in agent.text


# --- payload --------------------------------------------------------------------------------------------------------


async def deliver(agent: AgentProcess, plain: bytes) -> None:
    pem = agent_v2.decode_pubkey((await agent.get("/v2.6/keys/pubkey")).body)
    message = UKey(
        encrypted_share=encrypt_key_share(pem, split(KEY, V)),
        auth_tag=bytes.fromhex(bootstrap_auth_tag(KEY, AGENT_ID)),
        payload=encrypt_payload(KEY, bytes(range(16)), plain),
    )
    assert (await agent.post("/v2.6/keys/ukey", agent_v2.encode_ukey(message))).status == 200
    assert (await agent.post("/v2.6/keys/vkey", agent_v2.encode_vkey(encrypt_key_share(pem, V)))).status == 200


@pytest.mark.skipif(not may_mount(), reason="needs root that may mount")
async def test_a_payload_arrives_in_memory_and_nowhere_else(make_agent: MakeAgent, tmp_path: Path) -> None:
    # trust: secret - everything the run wrote outside the secure folder is searched
    agent = make_agent()
    agent.start()
    await agent.wait_for("Listening on")
    script = b"#!/bin/sh\necho ran > $PWD/ran\n"
    await deliver(agent, archive(("autorun.sh", script), ("word.txt", b"the secret word")))
    await agent.wait_for("Payload processed")
    unzipped = agent.folder / "secure" / "unzipped"
    assert (unzipped / "ran").read_text() == "ran\n"
    assert os.path.ismount(agent.folder / "secure")
    answer = await agent.get("/v2.6/keys/verify?challenge=ABC")
    assert agent_v2.decode_hmac(answer.body) == challenge_hmac(KEY, "ABC")
    assert await agent.stop() == 0
    secrets = [b"the secret word", KEY, V, split(KEY, V)]
    secrets += [text.hex().encode() for text in secrets] + [b64encode(text) for text in secrets]
    searched = 0
    for path in tmp_path.rglob("*"):
        if path.is_file() and unzipped not in path.parents:
            content = path.read_bytes()
            assert not any(secret in content for secret in secrets), path
            searched += 1
            if agent.folder in path.parents:
                assert not path.stat().st_mode & 0o077, path
    assert searched >= 5


async def test_without_memory_the_payload_is_refused_and_attestation_goes_on(
    make_agent: MakeAgent, registrar: FakeRegistrar, tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()  # a PATH without `mount`
    agent = make_agent()
    agent.environment["PATH"] = str(tmp_path / "bin")
    agent.start()
    await agent.wait_for("Listening on")
    await deliver(agent, archive(("autorun.sh", b"true")))
    await agent.wait_for("is not a tmpfs, and secrets are not written to disk")
    assert not (agent.folder / "secure" / "unzipped").exists()
    answer = agent_v2.decode_quote((await agent.get("/v2.6/quotes/identity?nonce=STILL")).body)
    proven(answer, registered_ak(registrar), "STILL")


# trust: fail-closed
async def test_payloads_of_anybody_are_refused_unless_asked_for(make_agent: MakeAgent) -> None:
    agent = make_agent(enable_insecure_payload="false")
    agent.start()
    assert await agent.ended() == 1
    assert "'enable_insecure_payload' has to be set to 'True'" in agent.text
    agent = make_agent(enable_insecure_payload="false", payload_script="")
    agent.start()
    await agent.wait_for("payloads cannot be deployed")
    assert "mTLS disabled" in agent.text
    await agent.wait_for("Listening on")
    await deliver(agent, b"plain")
    await agent.wait_for("A payload was refused")


# --- the rest -------------------------------------------------------------------------------------------------------


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Make a folder that every account can walk through, which those of pytest are not."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give up")
async def test_root_is_given_up_before_the_tpm_is_used(make_agent: MakeAgent, open_folder: Path) -> None:
    # trust: no-ambient-files
    agent = make_agent(open_folder, run_as="nobody:nogroup")
    (open_folder / "ima.log").write_text("10 00 ima-ng sha256:00 boot_aggregate\n")
    (open_folder / "ima.log").chmod(0o600)  # readable by root alone, and still read
    os.chown(agent.folder, 65534, 65534)
    agent.start()
    await agent.wait_for("Running the service as nobody:nogroup...")
    await agent.wait_for("Listening on")
    assert agent.process is not None
    status = Path(f"/proc/{agent.process.pid}/status").read_text()
    assert "Uid:\t65534\t65534\t65534\t65534" in status
    path = agent_v2.integrity_path("2.6", "N", "0x400", partial=True, ima_entry=0)
    answer = agent_v2.decode_quote((await agent.get(path)).body)
    assert answer.ima_measurement_list == "10 00 ima-ng sha256:00 boot_aggregate\n"
    assert (agent.folder / "agent_data.json").stat().st_uid == 65534
    assert await agent.stop() == 0


async def test_a_taken_port_is_said_before_the_node_is_registered(
    make_agent: MakeAgent, registrar: FakeRegistrar
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        agent = make_agent(port=str(taken.getsockname()[1]))
        agent.start()
        assert await agent.ended() == 1
    assert "cannot listen" in agent.text
    assert not registrar.requests


async def test_a_missing_tpm_is_one_sentence_and_no_noise(make_agent: MakeAgent) -> None:
    agent = make_agent(tcti="swtpm:host=localhost,port=1")
    agent.start()
    assert await agent.ended() == 1
    assert "The TPM cannot be reached" in agent.text
    assert "tcti:" not in agent.text
    assert "Traceback" not in agent.text


async def test_the_node_s_file_is_that_of_the_rust_agent(make_agent: MakeAgent, registrar: FakeRegistrar) -> None:
    agent = make_agent(uuid="hash_ek")
    agent.start()
    await agent.wait_for("activated")
    (agent_id,) = registrar.nodes
    kept = json.loads((agent.folder / "agent_data.json").read_text())
    assert bytes(kept["ek_hash"]).decode() == agent_id
    assert (kept["ak_hash_alg"], kept["ak_sign_alg"]) == ("Sha256", "RsaSsa")
    assert bytes(kept["ak_public"]) == b64decode(registrar.nodes[agent_id].body["aik_tpm"])[2:]


# trust: bounded
async def test_slow_and_silent_clients_do_not_hold_the_others_up(make_agent: MakeAgent) -> None:
    agent = make_agent()
    agent.start()
    await agent.wait_for("Listening on")
    idle = [await asyncio.open_connection("127.0.0.1", agent.port) for _ in range(50)]
    for _, writer in idle[:25]:
        writer.write(
            b"POST /v2.6/keys/ukey HTTP/1.1\r\nContent-Length: 1000\r\nContent-Type: application/json\r\n\r\n{"
        )
    started = time.monotonic()
    assert (await agent.get("/v2.6/quotes/identity?nonce=abc")).status == 200
    assert time.monotonic() - started < 5
    for _, writer in idle:
        writer.close()
    assert await agent.stop() == 0


# trust: bounded
async def test_a_flood_of_quotes_is_answered_or_refused_with_a_retryable_status(make_agent: MakeAgent) -> None:
    agent = make_agent()
    agent.start()
    await agent.wait_for("Listening on")
    answers = await asyncio.gather(*(agent.get("/v2.6/quotes/identity?nonce=abc") for _ in range(120)))
    statuses = {answer.status for answer in answers}
    assert statuses <= {200, 500}
    assert 200 in statuses
    assert (await agent.get("/v2.6/quotes/identity?nonce=abc")).status == 200
