"""The server's process of grpc_overhead: one engine, read through gRPC by others or on its own event loop."""

import asyncio
import multiprocessing
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.thread_profile import Profile
    from engine.config import EngineOptions
    from engine.serving.async_engine import AsyncEngine


@dataclass(frozen=True, slots=True)
class Settings:
    """backend, device, dtype: as of `inflight serve`. None: its default."""

    model_dir: Path
    backend: str
    device: str
    dtype: str
    plan_dir: Path | None
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    max_model_len: int | None
    num_threads: int | None
    stream_interval: float | None
    max_messages_per_second: float | None


@dataclass(frozen=True, slots=True)
class Load:
    """Streams that start together. seed: of the prompts, random ids, so no two loads share a prefix."""

    num_streams: int
    num_prompt_tokens: int
    num_new_tokens: int
    vocab_size: int
    seed: int

    def prompts(self) -> list[list[int]]:
        rng, vocabulary = random.Random(self.seed), range(3, self.vocab_size)
        return [rng.choices(vocabulary, k=self.num_prompt_tokens) for _ in range(self.num_streams)]


@dataclass(frozen=True, slots=True)
class Stream:
    """What its reader saw: seconds on the machine's monotonic clock, and numbers."""

    sent: float
    first: float
    ended: float
    num_tokens: int
    num_messages: int


@dataclass(frozen=True, slots=True)
class Ready:
    """The server listens. vocab_size: ids that all tokenizers and models take are below."""

    address: str
    description: str
    vocab_size: int


@dataclass(frozen=True, slots=True)
class Server:
    """The process, seen from the parent."""

    ready: Ready
    connection: Connection = field(repr=False)

    def run(self, load: Load) -> list[Stream]:
        """Read by the server's own process."""
        return self._ask("run", load)  # type: ignore[no-any-return]

    def start_profile(self) -> None:
        self._ask("profile", None)

    def stop_profile(self) -> "Profile":
        return self._ask("report", None)  # type: ignore[no-any-return]

    def _ask(self, command: str, argument: Any) -> Any:
        self.connection.send((command, argument))
        answer = self.connection.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer


@contextmanager
def server(settings: Settings) -> "Iterator[Server]":
    """EOFError if it does not start; it has printed why."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_main, args=(settings, theirs))
    process.start()
    theirs.close()
    try:
        yield Server(ours.recv(), ours)
        ours.send(("stop", None))
    finally:
        ours.close()
        process.join(30)
        process.kill()


async def read(prompts: Sequence[Sequence[int]], one: Callable[[Sequence[int]], Any]) -> list[Stream]:
    """All at once. one: makes the asynchronous iterator over numbers of new tokens, one a message."""

    async def follow(prompt: Sequence[int]) -> Stream:
        first, num_tokens, num_messages = 0.0, 0, 0
        sent = time.monotonic()
        async for number in one(prompt):
            if number and not num_tokens:
                first = time.monotonic()
            num_tokens += number
            num_messages += 1
        return Stream(sent, first, time.monotonic(), num_tokens, num_messages)

    return list(await asyncio.gather(*(follow(prompt) for prompt in prompts)))


def _main(settings: Settings, connection: Connection) -> None:
    import uvloop

    uvloop.run(_serve(settings, connection))


async def _serve(settings: Settings, connection: Connection) -> None:
    from engine.backends import choose_backend
    from engine.serving.build import build_engine
    from engine.serving.grpc_server import GrpcServer
    from engine.serving.options import ServerOptions

    options = _engine_options(settings, "torch")
    built = build_engine(_engine_options(settings, choose_backend(options)))
    given = {
        "stream_interval": settings.stream_interval,
        "max_messages_per_second": settings.max_messages_per_second,
    }
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    async with built.engine as engine:
        grpc_server = GrpcServer(engine, ServerOptions(port=0, **chosen))
        address = await grpc_server.start()
        info = engine.model_info
        description = (
            f"{info.name} ({info.architecture}, {info.dtype}) with {built.backend} on {built.device}"
        )
        connection.send(Ready(address, description, info.vocab_size))
        await _obey(connection, engine)
        await grpc_server.stop(1.0)


def _engine_options(settings: Settings, backend: str) -> "EngineOptions":
    """backend: decides the limits that are not given."""
    from engine.config import EngineOptions, choose_limits

    limits = choose_limits(backend, settings.max_num_seqs, settings.max_num_batched_tokens)
    return EngineOptions(
        settings.model_dir,
        device=settings.device,
        dtype=settings.dtype,
        max_model_len=settings.max_model_len,
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        num_threads=settings.num_threads,
        backend=settings.backend,
        plan_dir=settings.plan_dir,
    )


async def _obey(connection: Connection, engine: "AsyncEngine") -> None:
    from benchmarks.thread_profile import Sampler

    sampler = Sampler()

    async def run(load: Load) -> list[Stream]:
        return await in_process(engine, load)

    async def profile(_: None) -> None:
        nonlocal sampler
        sampler = Sampler()
        sampler.start()

    async def report(_: None) -> "Profile":
        return sampler.stop()

    commands: dict[str, Callable[[Any], Awaitable[Any]]] = {
        "run": run,
        "profile": profile,
        "report": report,
    }
    while (received := await asyncio.to_thread(connection.recv))[0] != "stop":
        command, argument = received
        try:
            answer = await commands[command](argument)
        except Exception as error:
            answer = error
        connection.send(answer)


async def in_process(engine: "AsyncEngine", load: Load) -> list[Stream]:
    """Every step's tokens as they come, as text and ids."""
    from engine.sampling.params import SamplingParams
    from engine.serving.types import OutputOptions

    params = SamplingParams(max_new_tokens=load.num_new_tokens, ignore_eos=True)
    output = OutputOptions(token_ids=True)
    ids = iter(range(load.num_streams))

    async def numbers(prompt: Sequence[int]) -> Any:
        name = f"in-process-{load.seed}-{next(ids)}"
        async for delta in engine.generate(name, prompt, params, output=output):
            yield len(delta.token_ids)

    return await read(load.prompts(), numbers)
