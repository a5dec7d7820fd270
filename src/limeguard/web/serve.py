"""Sockets for an `App`: listeners with and without TLS, bounds on slow and large peers, and an orderly stop."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from limeguard.telemetry import clean, get_logger
from limeguard.web.app import App, BodyTimeout, BodyTooLarge, Incoming, Response

log = get_logger("keylime.web")

FIRST_REQUEST_SECONDS = 20.0
"""A connection that has not sent a whole request head by then is closed: a slow peer holds no place for long."""
BODY_SECONDS = 60.0
"""A body that has not arrived by then is given up."""
LINGER_SECONDS = 2.0
"""How long the rest of a refused body is read and dropped, so that its sender gets to see the refusal."""
KEEPALIVE_SECONDS = 75.0
HANDSHAKE_SECONDS = 15.0

Answer = Callable[[Incoming], Awaitable[Response]]


class _Connection(RequestHandler):
    """aiohttp's connection, with a bound on the time to the first request and errors that tell nothing."""

    __slots__ = ("_first_request_timer",)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        loop = asyncio.get_running_loop()
        self._first_request_timer = loop.call_later(FIRST_REQUEST_SECONDS, self._close_if_silent)

    def _close_if_silent(self) -> None:
        if self._request_count == 0 and self._current_request is None:
            self.force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._first_request_timer.cancel()
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what could not be read as HTTP with the bare status."""
        del message
        log.debug("Unreadable request from %s: %s", clean(request.remote), clean(exc))
        response = web.Response(status=status, headers={"Server": "limeguard"})
        response.force_close()
        return response


class _Server(web.Server):
    """aiohttp's low-level server with our kind of connection."""

    def __call__(self) -> RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


def _certificate_name(request: web.BaseRequest) -> str | None:
    """Return the common name of the verified client certificate, or None."""
    transport = request.transport
    peer: dict[str, Any] | None = transport.get_extra_info("peercert") if transport is not None else None
    for relative_name in (peer or {}).get("subject", ()):
        for key, value in relative_name:
            if key == "commonName":
                return str(value)
    return None


def _body_reader(request: web.BaseRequest) -> Callable[[int], Awaitable[bytes]]:
    async def read(limit: int) -> bytes:
        if (request.content_length or 0) > limit:
            raise BodyTooLarge
        if request.content.is_eof():  # nearly always: small bodies come together with their head
            body = request.content.read_nowait()
            if len(body) > limit:
                raise BodyTooLarge
            return body
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in request.content.iter_any():
                    size += len(chunk)
                    if size > limit:
                        raise BodyTooLarge
                    parts.append(chunk)
        except TimeoutError:
            raise BodyTimeout from None
        return b"".join(parts)

    return read


def _adapt(answer: Answer, *, secure: bool) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        response = await answer(
            Incoming(
                method=request.method,
                target=request.raw_path,
                headers=request.headers,
                read_body=_body_reader(request),
                certificate_name=_certificate_name(request) if secure else None,
                secure=secure,
                peer=request.remote or "",
            )
        )
        headers = {"Server": "limeguard", **response.headers}
        if response.status != 204:
            headers["Content-Type"] = response.content_type
        reply = web.Response(status=response.status, body=response.body, headers=headers)
        if response.status in {408, 413} or response.headers.get("Connection") == "close":
            reply.force_close()
        return reply

    return handle


class Listener:
    """One listening socket of a service."""

    def __init__(
        self,
        answer: App | Answer,
        host: str,
        port: int,
        context: ssl.SSLContext | None = None,
        *,
        reuse_port: bool = False,
    ) -> None:
        """Prepare; `context` None means plain HTTP, port 0 lets the system choose.

        `reuse_port` lets other processes of this user listen on the same port; the system shares connections out.
        """
        self._reuse_port = reuse_port or None
        self._answer: Answer = answer.handle if isinstance(answer, App) else answer
        self._host, self._port, self._context = host, port, context
        self._runner: web.ServerRunner | None = None
        self.port = port

    async def start(self) -> None:
        """Bind and accept. Raises OSError when the address cannot be bound."""
        server = _Server(
            _adapt(self._answer, secure=self._context is not None),
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=KEEPALIVE_SECONDS,
            lingering_time=LINGER_SECONDS,
        )
        runner = web.ServerRunner(server, shutdown_timeout=5.0)
        await runner.setup()
        site = web.TCPSite(
            runner, self._host, self._port, ssl_context=self._context, backlog=1024, reuse_port=self._reuse_port
        )
        try:
            await site.start()
        except BaseException:
            await runner.cleanup()
            raise
        self._runner = runner
        address = runner.addresses[0]
        self.port = int(address[1])

    async def stop(self) -> None:
        """Stop accepting, let running requests end for a few seconds, close."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
