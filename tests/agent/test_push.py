"""The push agent at work, over HTTP against a verifier in this process, with a TPM in software."""

import asyncio
import contextlib
import logging
import re
from base64 import b64decode
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from tests.fakes.push_verifier import PushVerifierFake, refusal

from limeguard.agent.attester import Attester
from limeguard.agent.device import TpmError
from limeguard.agent.logs import open_boot_log, open_ima_log
from limeguard.agent.push import PushAgent
from limeguard.agent.push_evidence import EvidenceSource, Names
from limeguard.agent.push_step import Rules, Step
from limeguard.agent.registration import RegistrationFailed
from limeguard.agent.worker import TpmThread
from limeguard.clients.verifier_push import PushVerifier, bases
from limeguard.crypto.keys import spki_pem
from limeguard.simulator.softtpm import SoftNode
from limeguard.web.app import Response
from limeguard.web.client import HttpClient
from limeguard.web.serve import Listener

NODE = "d432fbb3-d2f1-4a97-9ef7-75bd81c00000"
LINES = [f"10 {number:040x} ima-ng sha256:{number:064x} /usr/bin/file-{number}\n" for number in range(5)]
RULES = Rules(interval=60, first_delay=10, retries=2, longest_delay=300)


@dataclass
class SoftAttester:
    """What the agent wants of a TPM, by one in software."""

    node: SoftNode
    broken: bool = False

    def certify(self, challenge: bytes) -> tuple[bytes, bytes]:
        if self.broken:
            raise TpmError("The TPM does not answer.")
        return self.node.ak.certify(self.node.ak.area, challenge)

    def quote_parts(self, nonce: bytes, mask: int, binding: bytes) -> tuple[bytes, bytes, bytes]:
        hash_alg = self.node.ak.hash_alg
        self.node.pcrs[16] = hash_alg.digest(bytes(hash_alg.size) + hash_alg.digest(binding))
        chosen = {n: self.node.pcrs[n] for n in range(24) if (mask | 1 << 16) >> n & 1}
        return self.node.ak.quote_parts(nonce, chosen, hash_alg.name, self.node.clock)

    def bank_pcrs(self) -> tuple[int, ...]:
        return tuple(range(24))


@dataclass
class Rig:
    """An agent, its verifiers, and what it did."""

    agent: PushAgent
    attester: SoftAttester
    verifiers: list[PushVerifierFake]
    ima_file: Path
    waits: list[float] = field(default_factory=list)
    registrations: int = 0

    @property
    def verifier(self) -> PushVerifierFake:
        return self.verifiers[0]

    async def waits_for(self, count: int) -> list[float]:
        """Let the agent work until it has waited so often; return the waits without what is added at random."""
        now = Step(self.agent.state)
        begun = len(self.waits)
        while len(self.waits) < begun + count:
            now = await self.agent.turn(now)
        return self.waits[begun:]


@contextlib.asynccontextmanager
async def rig(
    folder: Path, kind: str = "rsa2048", rules: Rules = RULES, *, timeout: float = 5.0, **changed: Any
) -> AsyncIterator[Rig]:
    node = SoftNode.create(kind)
    ima_file, boot_file = folder / "ima", folder / "boot"
    ima_file.write_text("".join(LINES[:3]))
    boot_file.write_bytes(b"log")
    attester = SoftAttester(node)
    fakes = [PushVerifierFake(NODE, node.ak.area, **changed) for _ in range(rules.verifiers)]
    async with contextlib.AsyncExitStack() as stack:
        http = HttpClient(None, timeout=timeout, max_answer=1 << 20)
        stack.push_async_callback(http.close)
        thread = TpmThread()
        stack.push_async_callback(thread.stop)
        links = []
        for fake in fakes:
            listener = Listener(fake.answer, "127.0.0.1", 0)
            await listener.start()
            stack.push_async_callback(listener.stop)
            links.append(PushVerifier(f"http://127.0.0.1:{listener.port}/", "v3.0", NODE, http))
        ima_log, boot_log = open_ima_log(ima_file), open_boot_log(boot_file)
        assert ima_log is not None
        assert boot_log is not None
        stack.callback(ima_log.close)
        stack.callback(boot_log.close)
        source = EvidenceSource(
            thread, cast("Attester", attester), node.ak.area, ima_log, boot_log, 1_700_000_000, Names("ak", "2.1")
        )

        async def register() -> None:
            made.registrations += 1

        async def sleep(seconds: float) -> None:
            made.waits.append(seconds)

        agent = PushAgent(rules=rules, register=register, verifiers=links, evidence=source, sleep=sleep)
        made = Rig(agent, attester, fakes, ima_file)
        yield made


@pytest.mark.parametrize("kind", ["rsa2048", "ecc256", "ecc384"])
async def test_a_node_attests_with_every_kind_of_key(tmp_path: Path, kind: str) -> None:
    async with rig(tmp_path, kind, items=("tpm_quote", "uefi_log", "ima_log")) as it:
        assert await it.waits_for(2) == [30, 30]
        found = it.verifier.proven[1]
        assert set(found.values) == {0, 10, 16}
        binding = spki_pem(it.attester.node.ak.area.public_key()).encode()
        assert found.values[16] == found.bank.digest(bytes(found.bank.size) + found.bank.digest(binding))
        assert [log["evidence_type"] for log in it.verifier.logs] == ["uefi_log", "ima_log"] * 2
        assert b64decode(it.verifier.logs[0]["data"]["entries"]) == b"log"
        assert it.registrations == 1
        assert [call.split(" ")[0] for call in it.verifier.calls] == ["POST", "PATCH", "POST", "PATCH", "POST", "PATCH"]


async def test_the_offer_says_how_long_the_list_is_and_only_what_is_new_is_sent(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        await it.waits_for(1)
        assert it.verifier.logs[-1]["data"] == {"entries": "".join(LINES[:3]), "entry_count": 3}
        with it.ima_file.open("a") as file:
            file.write("".join(LINES[3:]) + "10 half a line")
        it.verifier.offset = 3
        await it.waits_for(1)
        offers = [offer["evidence_supported"][2]["capabilities"]["entry_count"] for offer in it.verifier.offered]
        assert offers == [3, 5]
        assert it.verifier.logs[-1]["data"] == {"entries": "".join(LINES[3:]), "entry_count": 2}
        assert it.verifier.offered[0]["system_info"] == {"boot_time": "2023-11-14T22:13:20Z"}


@pytest.mark.parametrize(
    "change",
    [{"scheme": "rsapss"}, {"items": ("tpm_quote", "newer_log")}, {"offset": 9}],
)
async def test_what_cannot_be_given_is_said_so(tmp_path: Path, change: dict[str, Any]) -> None:
    async with rig(tmp_path, **change) as it:
        assert await it.waits_for(2) == [60, 60]
        assert it.verifier.errors == 2
        assert it.verifier.proven == []
        # Saying so did not cost the session.
        assert sum("sessions" in call for call in it.verifier.calls) == 2


async def test_a_verifier_without_questions_gets_no_answers(tmp_path: Path) -> None:
    async with rig(tmp_path, items=()) as it:
        assert await it.waits_for(3) == [60, 60, 60]
        assert [call for call in it.verifier.calls if call.startswith("PATCH") and "attest" in call] == []
        assert sum("sessions" in call for call in it.verifier.calls) == 2


async def test_a_session_that_ended_is_opened_again_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with rig(tmp_path) as it:
        await it.waits_for(1)
        it.verifier.tokens.clear()
        assert await it.waits_for(1) == [30]
        assert len(it.verifier.proven) == 2
        assert "Received 401 Unauthorized, retrying immediately to re-authenticate" in caplog.text


async def test_a_verifier_that_forgets_its_own_tokens_is_not_hammered(tmp_path: Path) -> None:
    # trust: bounded
    async with rig(tmp_path) as it:
        it.verifier.interfere = lambda _, path: refusal(401, "") if "attestations" in path else None
        assert await it.waits_for(3) == [60, 60, 60]
        assert len([call for call in it.verifier.calls if call == "POST /v3.0/sessions"]) == 3


async def test_a_node_that_is_not_enrolled_says_so_and_waits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with rig(tmp_path, enrolled=False) as it:
        assert await it.waits_for(4) == [1, 1, 60, 60]
        assert "Authentication failed with evaluation: fail" in caplog.text
        it.verifier.enrolled = True
        assert await it.waits_for(1) == [30]


async def test_the_same_evidence_is_repeated_after_no_answer(tmp_path: Path) -> None:
    bodies: list[bytes] = []

    async with rig(tmp_path) as it:
        real = it.agent.verifiers[0]._http.request

        async def noted(method: str, url: str, **options: Any) -> Any:
            if method == "PATCH" and "attestations" in url:
                bodies.append(options["body"])
            return await real(method, url, **options)

        it.agent.verifiers[0]._http.request = noted  # type: ignore[method-assign]
        answers = [Response(503), refusal(503, "verification_in_progress", Retry_After="4")]
        it.verifier.interfere = lambda method, path: (
            answers.pop() if answers and method == "PATCH" and "attestations" in path else None
        )
        asked, grown, regular = await it.waits_for(3)
        assert asked == 4
        assert 20 <= grown <= 24
        assert regular == 30
        assert len(bodies) == 3
        assert len(set(bodies)) == 1


async def test_the_next_verifier_takes_over(tmp_path: Path) -> None:
    async with rig(tmp_path, rules=Rules(interval=60, first_delay=10, retries=2, verifiers=2)) as it:
        await it.waits_for(1)
        it.verifiers[0].interfere = lambda _method, _path: Response(502)
        assert await it.waits_for(1) == [30]
        assert (len(it.verifiers[0].proven), len(it.verifiers[1].proven)) == (1, 1)
        # trust: secret - a token goes to the verifier that gave it and to no other
        assert it.verifiers[0].tokens.isdisjoint(it.verifiers[1].tokens)


@pytest.mark.parametrize("place", ["http://127.0.0.1:1/x", "//evil.example/x", "", "http://[::1", "/a\tb"])
async def test_no_token_goes_where_a_location_of_another_server_points(tmp_path: Path, place: str) -> None:
    # trust: secret
    async with rig(tmp_path, location=place) as it:
        await it.waits_for(1)
        assert it.verifier.proven == []
        assert not [call for call in it.verifier.calls if call.startswith("PATCH") and "sessions" not in call]


async def test_a_verifier_that_hangs_is_given_up_in_time(tmp_path: Path) -> None:
    async with rig(tmp_path, timeout=0.2) as it:
        hanging = asyncio.Event()
        answer = it.verifier.answer

        async def never(incoming: Any) -> Response:
            await hanging.wait()
            return await answer(incoming)

        it.verifier.answer = never  # type: ignore[method-assign]
        listener = Listener(never, "127.0.0.1", 0)
        await listener.start()
        it.agent.verifiers[0].base = f"http://127.0.0.1:{listener.port}"
        (wait,) = await it.waits_for(1)
        assert 10 <= wait <= 12.1
        hanging.set()
        await listener.stop()


async def test_a_broken_tpm_and_a_broken_registrar_end_nothing(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        failures: list[Exception] = [
            RegistrationFailed("no"),
            OSError("no"),
            TpmError("no"),
            KeyError("a fault of ours"),
        ]

        async def register() -> None:
            if failures:
                raise failures.pop()

        it.agent.register = register
        assert await it.waits_for(4) == [60] * 4
        it.attester.broken = True
        assert await it.waits_for(1) == [60]
        it.attester.broken = False
        assert await it.waits_for(1) == [30]


async def test_no_token_is_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # trust: secret
    caplog.set_level(1)
    async with rig(tmp_path) as it:
        await it.waits_for(1)
        (token,) = it.verifier.tokens
        assert token not in caplog.text
        assert token not in repr(it.agent)
        assert 'authorization: "Bearer ********"' in caplog.text
        it.agent.verifiers[0]._show_tokens = True
        await it.waits_for(1)
        assert re.search(rf'authorization: "Bearer {re.escape(token)}"', caplog.text)
    assert logging.getLogger("keylime_push_model_agent").level == logging.NOTSET


@pytest.mark.parametrize(
    ("url", "plain", "good"),
    [
        ("https://verifier.example:8881", False, True),
        ("https://[::1]:8881", False, True),
        ("https://verifier.example/below", False, True),
        ("http://verifier.example", False, False),
        ("http://verifier.example", True, True),
        ("verifier.example", False, False),
        ("https://user:word@verifier.example", False, False),
        ("https://verifier.example:99999", False, False),
        ("https://", False, False),
        ("ftp://verifier.example", True, False),
    ],
)
def test_what_may_be_the_address_of_a_verifier(url: str, plain: bool, good: bool) -> None:
    # trust: downgrade
    if good:
        assert bases([url], plain_allowed=plain) == (url,)
    else:
        with pytest.raises(ValueError, match="verifier_url"):
            bases([url], plain_allowed=plain)
