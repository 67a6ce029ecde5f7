"""As much of an HTTP/1.1 client as streaming needs: POST, kept connections, lines of a chunked body."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

_LINE_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


@dataclass(frozen=True, slots=True)
class Response:
    """lines: of the body, without their ends."""

    status: int
    lines: AsyncIterator[bytes]


class HttpPool:
    """Connections to one server, used again after a body has been read to its end."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._idle: list[Connection] = []

    async def close(self) -> None:
        for connection in self._idle:
            connection.writer.close()
        self._idle.clear()

    async def post(self, path: str, body: bytes) -> tuple[Response, "Lease"]:
        """Close the lease when done with the response. Raises OSError and EOFError."""
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode()
        while self._idle:
            connection = self._idle.pop()
            try:
                return await self._ask(connection, head + body)
            except (OSError, EOFError):
                connection.writer.close()  # the server had closed it meanwhile
        return await self._ask(await self._connect(), head + body)

    async def _connect(self) -> Connection:
        return Connection(*await asyncio.open_connection(self._host, self._port, limit=_LINE_LIMIT))

    async def _ask(self, connection: Connection, message: bytes) -> tuple[Response, "Lease"]:
        lease = Lease(self._idle, connection)
        try:
            connection.writer.write(message)
            status, headers = await _read_head(connection.reader)
        except BaseException:
            lease.close()
            raise
        return Response(status, _lines(_body(connection.reader, headers, lease))), lease


class Lease:
    """A connection in use: back to the idle ones if its body was read to the end, else closed."""

    def __init__(self, idle: list[Connection], connection: Connection) -> None:
        self._idle, self._connection = idle, connection
        self.is_read = False

    def close(self) -> None:
        if self.is_read:
            self._idle.append(self._connection)
        else:
            self._connection.writer.close()


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    fields = (line.partition(":") for line in head[1:] if line)
    return int(head[0].split()[1]), {name.lower(): value.strip().lower() for name, _, value in fields}


async def _body(
    reader: asyncio.StreamReader, headers: dict[str, str], lease: Lease
) -> AsyncGenerator[bytes, Any]:
    """Pieces as they come."""
    if headers.get("transfer-encoding") == "chunked":
        while size := int((await reader.readuntil(b"\n")).split(b";")[0], 16):
            yield await reader.readexactly(size)
            await reader.readexactly(2)
        while (await reader.readuntil(b"\n")).strip():
            pass  # trailers
    elif "content-length" in headers:
        yield await reader.readexactly(int(headers["content-length"]))
    else:
        while piece := await reader.read(1 << 16):
            yield piece
        return
    lease.is_read = headers.get("connection") != "close"


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    rest = b""
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line.rstrip(b"\r")
    if rest:
        yield rest
