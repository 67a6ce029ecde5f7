"""JSON messages between a process and its worker, over a socket."""

import json
import socket
import time
from typing import Any

_LENGTH_BYTES = 4


def send(connection: socket.socket, message: dict[str, Any]) -> None:
    """Within the socket's own timeout, if it has one."""
    body = json.dumps(message).encode()
    connection.sendall(len(body).to_bytes(_LENGTH_BYTES, "big") + body)


def receive(connection: socket.socket, timeout_seconds: float | None = None) -> dict[str, Any]:
    """Raises TimeoutError, or EOFError when the other side is gone."""
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    length = int.from_bytes(_receive_exactly(connection, _LENGTH_BYTES, deadline), "big")
    message: dict[str, Any] = json.loads(_receive_exactly(connection, length, deadline))
    return message


def _receive_exactly(connection: socket.socket, num_bytes: int, deadline: float | None) -> bytes:
    body = bytearray()
    while len(body) < num_bytes:
        if deadline is not None:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError
            connection.settimeout(remaining)
        part = connection.recv(min(num_bytes - len(body), 1 << 16))
        if not part:
            raise EOFError
        body += part
    return bytes(body)
