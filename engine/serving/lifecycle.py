"""From start to exit code: serve until a signal or the engine's death, then drain."""

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from engine.serving.async_engine import AsyncEngine
from engine.serving.grpc_server import GrpcServer
from engine.serving.options import ServerOptions

logger = logging.getLogger("inflight")

# Once the engine has stopped, streams only have their last message to send.
_SECONDS_TO_SEND_LAST_MESSAGES = 2.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


async def serve(
    engine: AsyncEngine, options: ServerOptions, *, grace_seconds: float, on_ready: Callable[[str], None]
) -> int:
    """Start the engine and serve it. Returns the exit code: 0 after SIGTERM or SIGINT, 1 if the engine died.

    on_ready: called with the address once the server listens. On the first signal health turns NOT_SERVING
    and new requests are refused; what runs has grace_seconds to finish, then it is aborted. The second signal
    aborts it at once. Raises ConfigError when it cannot listen.
    """
    await engine.start()
    server = GrpcServer(engine, options)
    died = asyncio.ensure_future(engine.wait_dead())
    try:
        with _signals() as signalled:
            on_ready(await server.start())
            await _first(signalled.acquire(), asyncio.shield(died))
            await server.set_not_serving()
            if not died.done():
                logger.info("shutting down: requests have %g s to finish", grace_seconds)
                await _first(engine.drain(grace_seconds), signalled.acquire(), asyncio.shield(died))
        if died.done():
            logger.critical("the engine is dead: %s", died.result())
        return 1 if died.done() else 0
    finally:
        died.cancel()
        await engine.stop()
        await server.stop(_SECONDS_TO_SEND_LAST_MESSAGES)


@contextmanager
def _signals() -> Iterator[asyncio.Semaphore]:
    """A semaphore that SIGTERM and SIGINT release."""
    loop, received = asyncio.get_running_loop(), asyncio.Semaphore(0)
    for number in _SIGNALS:
        loop.add_signal_handler(number, received.release)
    try:
        yield received
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


async def _first(*awaitables: Awaitable[object]) -> None:
    """Wait until one is done, and cancel the others. Raises what it raised."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
