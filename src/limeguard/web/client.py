"""A pooled HTTP client that keeps its promises towards hostile peers.

Every call has a total time and a size bound, follows no redirect, keeps no cookie, and unpacks nothing. A peer with a
pinned certificate is compared with the pin before a byte of the request is sent; pinned peers share one TLS context.
"""

import ssl
from collections.abc import Mapping
from typing import Any

import aiohttp
from aiohttp import ClientRequest, DummyCookieJar, Fingerprint, TCPConnector

from limeguard.telemetry import clean, get_logger
from limeguard.web.answers import Answer, Pin, Unreachable

log = get_logger("keylime.http")


class _SharedContextConnector(TCPConnector):
    """Uses our own context for pinned peers too.

    aiohttp replaces the context by one without a client certificate when a request carries a fingerprint.
    """

    def _get_ssl_context(self, req: ClientRequest) -> ssl.SSLContext | None:
        if req.is_ssl() and isinstance(req.ssl, Fingerprint) and isinstance(self._ssl, ssl.SSLContext):
            return self._ssl
        return super()._get_ssl_context(req)


class HttpClient:
    """Connections to many peers over one TLS context. Made inside a running loop; `close` it."""

    def __init__(
        self,
        context: ssl.SSLContext | None,
        *,
        timeout: float,
        max_answer: int,
        connections: int = 0,
        per_host: int = 0,
        keepalive: float = 30.0,
    ) -> None:
        """Bound each call to `timeout` seconds in all and `max_answer` bytes of body; 0 connections is no bound."""
        self._max_answer = max_answer
        self._pins: dict[Pin, Fingerprint] = {}
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        connector = _SharedContextConnector(
            ssl=context if context is not None else True,
            limit=connections,
            limit_per_host=per_host,
            keepalive_timeout=keepalive,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            headers={"Accept-Encoding": "identity", "User-Agent": "limeguard"},
        )

    async def request(
        self,
        method: str,
        url: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        pin: Pin | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the bound of one call, given to aiohttp
    ) -> Answer:
        """Send one request and return its whole answer. Raises Unreachable."""
        options: dict[str, Any] = {} if pin is None else {"ssl": self._fingerprint(pin)}
        bound = self._timeout if timeout is None else aiohttp.ClientTimeout(total=timeout)
        try:
            async with self._session.request(
                method, url, data=body, headers=headers, allow_redirects=False, timeout=bound, **options
            ) as response:
                content = await self._read(response)
        except TimeoutError as late:
            raise Unreachable("timeout", "no complete answer in time") from late
        except aiohttp.ServerFingerprintMismatch as wrong:
            raise Unreachable("certificate", "the peer's certificate is not the registered one") from wrong
        except (aiohttp.ClientSSLError, ssl.SSLError) as problem:
            raise Unreachable("tls", clean(problem)) from problem
        except aiohttp.ClientConnectorError as problem:
            # The text of the whole error names an object of the library; the system's reason is what helps.
            raise Unreachable("connect", clean(f"Cannot connect: {problem.os_error}")) from problem
        except (aiohttp.ClientError, OSError, ValueError) as problem:
            raise Unreachable("protocol", clean(f"{type(problem).__name__}: {problem}")) from problem
        base, _, target = url.partition("://")[2].partition("/")
        log.debug(
            '%s://%s "%s /%s HTTP/1.1" %d %d',
            url.partition(":")[0],
            base,
            method,
            target,
            response.status,
            len(content),
        )
        return Answer(response.status, content, response.headers)

    def _fingerprint(self, pin: Pin) -> Fingerprint:
        """Return the library's pin, the same object each time: its pool tells connections apart by it."""
        if pin not in self._pins:
            self._pins[pin] = Fingerprint(pin.sha256)
        return self._pins[pin]

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        if (response.content_length or 0) > self._max_answer:
            response.close()
            raise Unreachable("too_large", f"the answer announces more than {self._max_answer} bytes")
        parts: list[bytes] = []
        size = 0
        async for chunk in response.content.iter_any():
            size += len(chunk)
            if size > self._max_answer:
                response.close()
                raise Unreachable("too_large", f"the answer is larger than {self._max_answer} bytes")
            parts.append(chunk)
        return b"".join(parts) if len(parts) != 1 else parts[0]

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()
