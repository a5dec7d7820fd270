"""Notices for ZeroMQ subscribers: one frame with the JSON, no topic. Needs the extra `zeromq`."""

from typing import Any

from limeguard.store.notices import Notice
from limeguard.verifier.notices import Channel


class Publisher(Channel):
    """A PUB socket. Subscribers that are away miss what is sent, as this kind of socket has it."""

    def __init__(self, ip: str, port: int) -> None:
        """Bind. Raises OSError for an address that cannot be used, or when the library is not there."""
        try:
            import zmq
        except ImportError:
            raise OSError(
                "enabled_revocation_notifications has zeromq, which needs its library: pip install 'limeguard[zeromq]'"
            ) from None
        host = f"[{ip}]" if ":" in ip else ip
        self._context: Any = zmq.Context()
        self._socket: Any = self._context.socket(zmq.PUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.IPV6, int(":" in ip))
        try:
            self._socket.bind(f"tcp://{host}:{port}")
        except zmq.ZMQError as problem:
            self.close()
            raise OSError(f"zmq_ip and zmq_port: tcp://{host}:{port} cannot be bound: {problem}") from None

    async def send(self, _notice: Notice, body: bytes) -> None:
        """Hand a notice to whoever is subscribed."""
        self._socket.send(body)

    def close(self) -> None:
        """Unbind."""
        self._socket.close()
        self._context.term()
