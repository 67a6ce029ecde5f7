"""A real HTTP server with OpenAI's completions, scripted."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Reply:
    """events: each one is a piece of a chunked body of its own; delay: seconds before each."""

    events: Sequence[dict[str, Any]] = ()
    status: int = 200
    delay: float = 0.0
    is_cut: bool = False  # the connection is closed in the middle of the body


@dataclass
class Asked:
    """bodies of requests in order of arrival; connections: how many there were."""

    bodies: list[dict[str, Any]] = field(default_factory=list)
    num_connections: int = 0


def tokens(words: Sequence[str], *, reason: str = "length", num_prompt: int = 3) -> list[dict[str, Any]]:
    """A token an event, then the usage."""
    choices: list[dict[str, Any]] = [{"text": word, "finish_reason": None} for word in words]
    choices[-1]["finish_reason"] = reason
    usage = {"prompt_tokens": num_prompt, "completion_tokens": len(words)}
    return [*({"choices": [choice]} for choice in choices), {"choices": [], "usage": usage}]


@asynccontextmanager
async def fake_openai(reply: Callable[[dict[str, Any]], Reply]) -> AsyncIterator[tuple[Asked, int]]:
    """What was asked, and the port on 127.0.0.1."""
    asked = Asked()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.num_connections += 1
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await _answer(head.decode(), reader, writer, asked, reply)
        except (EOFError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield asked, server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _answer(
    head: str,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    asked: Asked,
    reply: Callable[[dict[str, Any]], Reply],
) -> None:
    if head.startswith("GET /v1/models "):
        models = json.dumps({"data": [{"id": "served", "max_model_len": 64}]}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(models), models))
        return
    length = next(int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("Content-Length"))
    body = json.loads(await reader.readexactly(length))
    asked.bodies.append(body)
    answer = reply(body)
    if answer.status != 200:
        writer.write(b"HTTP/1.1 %d No\r\nContent-Length: 4\r\n\r\nbusy" % answer.status)
        return
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for event in answer.events:
        await asyncio.sleep(answer.delay)
        piece = b"data: " + json.dumps(event).encode() + b"\n\n"
        writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
    if answer.is_cut:
        raise ConnectionError
    writer.write(b"d\r\ndata: [DONE]\n\r\n1\r\n\n\r\n0\r\n\r\n")  # an event in two pieces
