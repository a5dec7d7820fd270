"""The agent's HTTP interface: one operation per request, each with its exact refusals (Keylime REST API, agent).

Decides what a parameter may be. The order of checks and all texts are part of the protocol.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import parse_qsl

from limeguard.agent.bootstrap import Bootstrap, NoticeQueue
from limeguard.agent.keys import TransportKey
from limeguard.agent.logs import BootLog, ImaLog, LogTooLarge
from limeguard.agent.shares import HalfU
from limeguard.agent.table import Operation, Refusal, resolve
from limeguard.agent.templates import Algorithms
from limeguard.crypto.keysplit import KeyShareError, challenge_hmac, decrypt_key_share
from limeguard.telemetry import clean, get_logger
from limeguard.web.app import BodyTimeout, BodyTooLarge, Incoming, Response, clean_request_id, json_response
from limeguard.wire import agent_v2
from limeguard.wire.envelope import BadRequest

log = get_logger("keylime_agent")

MAX_BODY = 2 * 1024 * 1024
MAX_QUERY_FIELDS = 32
BOOT_LOG_PCR = 0
"""A mask that holds it asks for the boot log too."""
WRONG_SIZE = "a key half has"
"""How the text begins that tells an opened half of the wrong length from one that could not be opened."""
_ALPHANUMERIC = re.compile(r"[A-Za-z0-9]+")
_MASK = re.compile(r"[0-9A-Fa-f]{1,8}")
_DECIMAL = re.compile(r"[0-9]{1,18}")
_JSON_TYPE = re.compile(r"application/(?:[\w.+-]+\+)?json\s*(?:;.*)?", re.IGNORECASE | re.DOTALL)


class Quoter(Protocol):
    """What signs PCR values."""

    async def quote(self, nonce: bytes, mask: int) -> str:
        """Return the quote string over the PCRs of `mask` and PCR 16. Raises QuoteFailed."""

    @property
    def key_number(self) -> int:
        """Return the number of the AK that `/agent/info` shows."""


class QuoteFailed(Exception):  # noqa: N818 - a fact about the TPM
    """There is no quote now; the reason was logged."""


@dataclass(frozen=True, slots=True)
class Node:
    """What the agent answers from."""

    agent_id: str
    versions: tuple[str, ...]
    algorithms: Algorithms
    transport: TransportKey
    quoter: Quoter
    ima_log: ImaLog | None
    boot_log: BootLog | None
    boot_time: int | None
    bootstrap: Bootstrap
    notices: NoticeQueue


@dataclass(frozen=True, slots=True)
class _Call:
    version: str
    query: Mapping[str, str]
    body: bytes


class AgentApi:
    """Answers every request to the agent; give `answer` to a listener."""

    def __init__(self, node: Node) -> None:
        """Answer for this node."""
        self._node = node
        self._handlers: Mapping[Operation, Callable[[_Call], Awaitable[bytes]]] = {
            Operation.VERSION: self._version,
            Operation.PUBKEY: self._pubkey,
            Operation.VERIFY: self._verify,
            Operation.UKEY: self._ukey,
            Operation.VKEY: self._vkey,
            Operation.IDENTITY: self._identity,
            Operation.INTEGRITY: self._integrity,
            Operation.INFO: self._info,
            Operation.REVOCATION: self._revocation,
        }

    async def answer(self, incoming: Incoming) -> Response:
        """Answer one request. Never raises: a fault of ours is logged and answered with 500."""
        path, _, query = incoming.target.partition("?")
        found = resolve(incoming.method, path, self._node.versions)
        if isinstance(found, Refusal):
            response = _refusal(found)
        else:
            try:
                call = _Call(found.version, _query(query), await _body(incoming))
                response = json_response(200, await self._handlers[found.operation](call))
            except _Failed as failed:
                response = json_response(failed.status, agent_v2.encode_error(failed.status, failed.text))
            except BadRequest as problem:
                response = json_response(400, agent_v2.encode_error(400, problem.status_text))
            except Exception:
                log.exception("Error while answering %s %s", clean(incoming.method), clean(path))
                response = json_response(500, agent_v2.encode_error(500, "Internal error"))
        request_id = clean_request_id(incoming.headers.get("X-Request-ID", ""))
        log.info("%s %s %s -> %d", clean(incoming.peer), clean(incoming.method), clean(path), response.status)
        headers = {**response.headers, **({"X-Request-ID": request_id} if request_id else {})}
        return Response(response.status, response.body, response.content_type, headers)

    async def _version(self, _call: _Call) -> bytes:
        if not self._node.versions:
            raise _Failed(500, "Misconfigured API version")
        return agent_v2.encode_version(self._node.versions)

    async def _info(self, call: _Call) -> bytes:
        algorithms = self._node.algorithms
        return agent_v2.encode_info(
            agent_v2.AgentInfo(
                agent_uuid=self._node.agent_id,
                tpm_hash_alg=algorithms.hash,
                tpm_enc_alg=agent_v2.key_algorithm_name(algorithms.key, call.version),
                tpm_sign_alg=algorithms.signing,
                ak_handle=self._node.quoter.key_number,
            )
        )

    # --- keys -------------------------------------------------------------------------------------------------------

    async def _pubkey(self, _call: _Call) -> bytes:
        return agent_v2.encode_pubkey(self._node.transport.public_pem)

    async def _verify(self, call: _Call) -> bytes:
        challenge = _required(call, "challenge")
        if not challenge:
            raise _Failed(400, "No challenge provided.")
        if not _ALPHANUMERIC.fullmatch(challenge):
            raise _Failed(400, f"Parameters should be strictly alphanumeric: {challenge}")
        key = self._node.bootstrap.key
        if key is None:
            raise _Failed(400, "Bootstrap key not yet available.")
        return agent_v2.encode_hmac(challenge_hmac(key, challenge))

    async def _ukey(self, call: _Call) -> bytes:
        message = agent_v2.decode_ukey(call.body)
        share = await self._decrypt(message.encrypted_share, "Invalid decrypted key")
        self._node.bootstrap.take_u(HalfU(share, message.auth_tag, message.payload))
        return agent_v2.encode_success()

    async def _vkey(self, call: _Call) -> bytes:
        share = await self._decrypt(agent_v2.decode_vkey(call.body), "Decrypted key is invalid")
        self._node.bootstrap.take_v(share)
        return agent_v2.encode_success()

    async def _decrypt(self, encrypted: bytes, wrong_size: str) -> bytes:
        try:
            return await asyncio.to_thread(decrypt_key_share, self._node.transport.private, encrypted)
        except KeyShareError as problem:
            opened = str(problem).startswith(WRONG_SIZE)
            raise _Failed(400, f"{wrong_size if opened else 'Failed to decrypt encrypted_key'}: {problem}") from None

    # --- quotes -----------------------------------------------------------------------------------------------------

    async def _identity(self, call: _Call) -> bytes:
        nonce = _required(call, "nonce")
        if not _ALPHANUMERIC.fullmatch(nonce):
            raise _Failed(400, f"Parameters should be strictly alphanumeric: {nonce}")
        if len(nonce) > agent_v2.MAX_NONCE:
            raise _Failed(400, f"Nonce is too long (max size {agent_v2.MAX_NONCE}): {nonce}")
        quote = await self._quote(nonce, 0)
        return agent_v2.encode_quote(self._quote_answer(call, quote, pubkey=self._node.transport.public_pem))

    async def _integrity(self, call: _Call) -> bytes:
        nonce, mask, with_key, entry = _integrity_parameters(call)
        # The quote comes first: a log read after it can only be ahead of the PCR, never behind.
        quote = await self._quote(nonce, mask)
        text, first = await self._ima_lines(entry)
        answer = self._quote_answer(
            call,
            quote,
            pubkey=self._node.transport.public_pem if with_key else None,
            ima_measurement_list=text,
            ima_measurement_list_entry=first,
            mb_measurement_list=await self._boot_events() if mask >> BOOT_LOG_PCR & 1 else None,
        )
        # Encoding a log of many megabytes must not hold up the other requests.
        return await asyncio.to_thread(agent_v2.encode_quote, answer) if text else agent_v2.encode_quote(answer)

    async def _quote(self, nonce: str, mask: int) -> str:
        try:
            return await self._node.quoter.quote(nonce.encode("ascii"), mask)
        except QuoteFailed:
            raise _Failed(500, "Unable to retrieve quote") from None

    def _quote_answer(
        self,
        call: _Call,
        quote: str,
        *,
        pubkey: str | None,
        ima_measurement_list: str | None = None,
        ima_measurement_list_entry: int | None = None,
        mb_measurement_list: str | None = None,
    ) -> agent_v2.QuoteAnswer:
        algorithms = self._node.algorithms
        return agent_v2.QuoteAnswer(
            quote=quote,
            hash_alg=algorithms.hash,
            enc_alg=agent_v2.key_algorithm_name(algorithms.key, call.version),
            sign_alg=algorithms.signing,
            pubkey=pubkey,
            ima_measurement_list=ima_measurement_list,
            ima_measurement_list_entry=ima_measurement_list_entry,
            mb_measurement_list=mb_measurement_list,
            boottime=self._node.boot_time or 0,
        )

    async def _ima_lines(self, entry: int) -> tuple[str | None, int | None]:
        if self._node.ima_log is None:
            return None, None
        try:
            part = await asyncio.to_thread(self._node.ima_log.read_from, entry)
        except (OSError, LogTooLarge) as problem:
            log.error("The IMA log could not be read: %s", clean(problem))  # noqa: TRY400 - a sentence, no traceback
            raise _Failed(500, "Unable to retrieve quote") from problem
        return part.text, part.first

    async def _boot_events(self) -> str | None:
        if self._node.boot_log is None:
            return None
        try:
            return await asyncio.to_thread(self._node.boot_log.read)
        except (OSError, LogTooLarge) as problem:
            log.warning("The boot log could not be read: %s", clean(problem))
            return None

    async def _revocation(self, call: _Call) -> bytes:
        notice = agent_v2.decode_notice(call.body)
        self._node.notices.take(notice.msg, notice.signature)
        return agent_v2.encode_success()


class _Failed(Exception):  # noqa: N818 - an answer on its way out
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


def _refusal(refusal: Refusal) -> Response:
    headers = {} if refusal.allow is None else {"Allow": refusal.allow}
    if not refusal.text:
        return Response(refusal.status, headers=headers)
    answer = json_response(refusal.status, agent_v2.encode_error(refusal.status, refusal.text))
    return Response(answer.status, answer.body, answer.content_type, headers)


def _query(text: str) -> dict[str, str]:
    try:
        return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS, errors="replace"))
    except ValueError:
        raise _Failed(400, "Query deserialize error: too many fields") from None


async def _body(incoming: Incoming) -> bytes:
    """Read the body of a POST, which must be JSON of at most 2 MiB; a GET's body is not read."""
    if incoming.method != "POST":
        return b""
    if not _JSON_TYPE.fullmatch(incoming.headers.get("Content-Type", "").strip()):
        raise _Failed(400, "Content type error")
    try:
        return await incoming.read_body(MAX_BODY)
    except BodyTooLarge:
        raise _Failed(400, f"Json payload is larger than allowed (limit: {MAX_BODY} bytes).") from None
    except BodyTimeout:
        raise _Failed(408, "The body did not arrive in time") from None


def _required(call: _Call, name: str) -> str:
    if name not in call.query:
        raise _Failed(400, f"Query deserialize error: missing field `{name}`")
    return call.query[name]


def _integrity_parameters(call: _Call) -> tuple[str, int, bool, int]:
    """Return nonce, mask, whether the transport key is wanted, and the first IMA line wanted."""
    nonce, mask_text, partial = (_required(call, name) for name in ("nonce", "mask", "partial"))
    for name, value in (("nonce", nonce), ("mask", mask_text)):
        if not _ALPHANUMERIC.fullmatch(value):
            raise _Failed(400, f"{name} should be strictly alphanumeric: {value}")
    digits = mask_text.removeprefix("0x")
    if not _MASK.fullmatch(digits):
        raise _Failed(400, f"mask should be a hex encoded 32-bit integer: {mask_text}")
    if len(nonce) > agent_v2.MAX_NONCE:
        raise _Failed(400, f"Nonce is too long (max size: {agent_v2.MAX_NONCE}): {len(nonce)}")
    if partial not in {"0", "1"}:
        raise _Failed(400, "uri must contain key 'partial' and value '0' or '1'")
    mask = int(digits, 16)
    if mask >> 24:
        log.warning("A quote of PCRs above 23 was asked for (mask %s)", mask_text)
        raise _Failed(500, "Unable to retrieve quote")
    wanted = call.query.get("ima_ml_entry", "0")
    return nonce, mask, partial == "0", int(wanted) if _DECIMAL.fullmatch(wanted) else 0
