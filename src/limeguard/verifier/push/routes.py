"""The verifier's routes of version 3: sessions, and attestations of nodes that push. Decode, call, encode."""

from collections.abc import Awaitable, Callable
from typing import Final

from limeguard.store.database import StoreUnavailable
from limeguard.telemetry import clean, get_logger
from limeguard.verifier.push.relay import NotHereError
from limeguard.verifier.push.rounds import PushRefused, PushRounds
from limeguard.verifier.push.sessions import BadProof, SessionRefused, Sessions
from limeguard.web.app import JSON_TYPE, Handler, Request, Response, Route, auth_error, empty, says_json, with_header
from limeguard.wire import attestation_v3, jsonapi, verifier_v3
from limeguard.wire.attestation_v3 import NoEvidence
from limeguard.wire.jsonapi import ANSWER_TYPE, MEDIA_TYPE, NotADocument
from limeguard.wire.offer_v3 import Invalid

log = get_logger("keylime.verifier")

NO_DATA: Final = "Request body must include attestation evidence data."
STORE_AWAY_SECONDS: Final = 5
"""Seconds after which an agent may come again while the database is away."""
NOT_HERE_SECONDS: Final = 1
"""Seconds after which an agent may come again whose node nobody answers for just now."""
MAX_SESSION: Final = 64 * 1024
"""Bytes of a request about a session; proofs with RSA-4096 stay below 2,000."""
MAX_OFFER: Final = 1024 * 1024
"""Bytes of an offer; those of deployed agents have some 2,000."""
MAX_DIGITS: Final = 18

Call = Callable[[Request], Awaitable[Response]]


def push_routes(sessions: Sessions, rounds: PushRounds, at_owner: Callable[[Handler], Handler]) -> tuple[Route, ...]:
    """Return the routes over sessions, which every worker knows, and attestations, which are `at_owner` of the node."""
    session, attestation = _SessionHandlers(sessions), _AttestationHandlers(rounds)

    def owned(call: Call) -> Handler:
        return _guarded(at_owner(call))

    offer = owned(attestation.create)
    return (
        _public("POST", verifier_v3.SESSIONS, "create_session", session.open),
        _public("PATCH", verifier_v3.SESSION, "extend_session", session.prove),
        Route("GET", verifier_v3.ATTESTATIONS, "list_attestations", owned(attestation.list)),
        Route("POST", verifier_v3.ATTESTATIONS, "submit_attestation", offer, max_body=MAX_OFFER),
        Route("GET", verifier_v3.LATEST_ATTESTATION, "read_attestation", owned(attestation.read)),
        Route("PATCH", verifier_v3.LATEST_ATTESTATION, "submit_attestation", owned(attestation.submit)),
        Route("GET", verifier_v3.ATTESTATION, "read_attestation", owned(attestation.read)),
        Route("PATCH", verifier_v3.ATTESTATION, "submit_attestation", owned(attestation.submit)),
    )


def _public(method: str, pattern: str, action: str, call: Call) -> Route:
    """Return a route for agents that have no token yet, and so for anybody: it reads little."""
    return Route(method, pattern, action, _guarded(call), credentials=False, max_body=MAX_SESSION)


def _guarded(call: Call) -> Handler:
    """Turn what a handler raises into the shape that the wire has for it."""

    async def handle(request: Request) -> Response:
        try:
            return await call(request)
        except NotADocument as problem:
            log.info("%s %s is no document: %s", clean(request.method), clean(request.path), clean(problem))
            return empty(400)
        except SessionRefused as refused:
            return _later(auth_error(refused.status, refused.title, refused.detail), refused.retry_after)
        except PushRefused as refused:
            body = jsonapi.encode_error(refused.status, refused.code, refused.detail, _path(request))
            return _later(Response(refused.status, body, ANSWER_TYPE), refused.retry_after)
        except NotHereError:
            detail = f"No process that answers for agent '{request.params['agent_id']}' can be found at this moment."
            body = jsonapi.encode_error(503, "verifier_not_ready", detail, _path(request))
            # Another connection may come to another worker, or machine.
            headers = {"Retry-After": str(NOT_HERE_SECONDS), "Connection": "close"}
            return Response(503, body, ANSWER_TYPE, headers)
        except Invalid as invalid:
            return Response(422, jsonapi.encode_problems(invalid.problems, _path(request)), ANSWER_TYPE)
        except NoEvidence:
            return Response(400, jsonapi.encode_error(400, "invalid_request", NO_DATA, _path(request)), ANSWER_TYPE)
        except StoreUnavailable as problem:
            log.error("%s %s: %s", clean(request.method), clean(request.path), clean(problem))  # noqa: TRY400
            refusal = auth_error(503, "Service Unavailable", "The verifier cannot use its database now")
            return _later(refusal, STORE_AWAY_SECONDS)

    return handle


def _later(response: Response, seconds: int | None) -> Response:
    """Say when to come again. Never on a good answer: deployed agents repeat any request whose answer says so."""
    if seconds is None:
        return response
    return with_header(response, "Retry-After", str(seconds))


def _path(request: Request) -> str:
    return request.path.rstrip("/")


def _media_type(request: Request) -> str:
    return request.headers.get("Content-Type", "").partition(";")[0].strip().lower()


class _SessionHandlers:
    """Handlers about sessions."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def open(self, request: Request) -> Response:
        self._sessions.admit(request.peer)
        body = _json_body(request)
        opening = verifier_v3.decode_opening(body, strict=_media_type(request) == MEDIA_TYPE)
        return Response(200, verifier_v3.encode_opened(await self._sessions.open(opening)), JSON_TYPE)

    async def prove(self, request: Request) -> Response:
        provided = verifier_v3.decode_provided(_json_body(request), strict=_media_type(request) == MEDIA_TYPE)
        try:
            view = await self._sessions.prove(request.params["session_id"], provided)
        except BadProof as bad:
            return Response(401, verifier_v3.encode_evaluated(bad.view), JSON_TYPE)
        return Response(200, verifier_v3.encode_evaluated(view), JSON_TYPE)


def _json_body(request: Request) -> bytes:
    """Return the body; one that is not called JSON is not read, so that what it should say is missing."""
    if not says_json(request) or not request.body:
        raise SessionRefused(400, "Bad Request", verifier_v3.NO_AGENT_ID)
    return request.body


class _AttestationHandlers:
    """Handlers about attestations."""

    def __init__(self, rounds: PushRounds) -> None:
        self._rounds = rounds

    async def create(self, request: Request) -> Response:
        if _media_type(request) != MEDIA_TYPE:
            return empty(415)
        made, path = await self._rounds.negotiate(request.params["agent_id"], request.body), _path(request)
        body = attestation_v3.encode_asked(made.view, made.number, path)
        return Response(201, body, ANSWER_TYPE, {"Location": f"{path}/{made.number}"})

    async def submit(self, request: Request) -> Response:
        if _media_type(request) != MEDIA_TYPE:
            return empty(415)
        taken = self._rounds.submit(request.params["agent_id"], _number(request), request.body)
        number = taken.attestation.number
        path = f"{_path(request).rpartition('/')[0]}/{number}"
        body = attestation_v3.encode_taken(taken.attestation.view, number, path, taken.seconds_to_next)
        return Response(202, body, ANSWER_TYPE)

    async def read(self, request: Request) -> Response:
        number, attributes = await self._rounds.attestation(request.params["agent_id"], _number(request))
        path = _path(request)
        own = f"{path.rpartition('/')[0]}/{number}"
        return Response(200, attestation_v3.encode_attestation(number, attributes, own, path), ANSWER_TYPE)

    async def list(self, request: Request) -> Response:
        found = await self._rounds.attestations(request.params["agent_id"])
        return Response(200, attestation_v3.encode_attestations(found, _path(request)), ANSWER_TYPE)


def _number(request: Request) -> int | None:
    """Return the number that the path names, None for the latest. Raises PushRefused."""
    text = request.params.get("index")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS):
        detail = f"No attestation {clean(text, 40)} exists for agent '{request.params['agent_id']}'."
        raise PushRefused(404, "not_found", detail)
    return int(text)
