"""A hundred clients that do as they please, on an engine whose pool is small and whose steps fail at times.

Afterwards every block is free, every request had exactly one end, and the engine still answers.
"""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from engine.errors import InflightError, NotFoundError, StepFailedError
from engine.sampling.params import SamplingParams
from engine.serving.types import EngineState, OutputDelta, OutputOptions
from scheduler.request import FinishReason
from scheduler.step import StepInput
from tests.support.fake_engine import FakeEngine, FakeEngineOptions, running_engine
from tests.support.fake_model import EOS, FakeRunner, next_byte

NUM_CLIENTS = 100
RUBBISH: tuple[tuple[str | list[int], dict[str, Any]], ...] = (
    ("", {}),
    ("a" * 500, {}),
    ([], {}),
    ([97, 100_000], {}),
    ([-5], {}),
    ("\udcff", {}),
    ("a", {"max_new_tokens": 10_000}),
    ("a", {"stop_token_ids": (100_000,)}),
    ("a", {"num_outputs": 100, "temperature": 1.0}),
)


async def tick(rng: random.Random) -> None:
    """Let others run for a moment, mostly a short one."""
    for _ in range(int(rng.expovariate(0.2))):
        await asyncio.sleep(0)


def check_stream(prompt: str, deltas: list[OutputDelta], is_complete: bool) -> None:
    """Right text, and one end each, as far as it was read."""
    text, ends = Counter[int](), Counter[int]()
    for delta in deltas:
        start = text[delta.output_index]
        expected = "".join(chr(ord(prompt[-1]) + 1 + start + i) for i in range(len(delta.text)))
        assert delta.text == expected
        text[delta.output_index] += len(delta.text)
        assert not ends[delta.output_index], "nothing follows an end"
        ends[delta.output_index] += delta.finish is not None
    assert not any(delta.usage for delta in deltas[:-1])
    if is_complete:
        assert deltas[-1].usage is not None
        assert set(ends) == set(range(len(ends)))
        assert set(ends.values()) == {1}


@dataclass(slots=True)
class Crowd:
    """Clients of one engine. begun: requests that reached it, by id; an id may be tried twice."""

    fake: FakeEngine
    rng: random.Random
    begun: Counter[str] = field(default_factory=Counter)

    def generate(self, request_id: str) -> tuple[str, AsyncGenerator[OutputDelta, None]]:
        rng = self.rng
        prompt = chr(rng.randrange(40, 60)) * rng.randrange(1, 30)
        num_outputs = rng.choice([1, 1, 1, 2, 4])
        params = SamplingParams(
            max_new_tokens=rng.choice([1, 5, 20, 60]),
            num_outputs=num_outputs,
            temperature=1.0,
            stop_strings=rng.choice([(), (chr(rng.randrange(45, 90)),), ("XY", "QRS")]),
            ignore_eos=rng.random() < 0.5,
        )
        output = OutputOptions(text=True, token_ids=rng.random() < 0.5, interval=rng.choice([0, 0, 0.001]))
        return prompt, self.fake.engine.generate(request_id, prompt, params, output=output)

    async def read(self, request_id: str, *, is_slow: bool = False, num_deltas: int | None = None) -> None:
        """Until the end, or until num_deltas have been read."""
        prompt, stream = self.generate(request_id)
        deltas: list[OutputDelta] = []
        failed = False
        self.begun[request_id] += 1
        async with aclosing(stream):
            try:
                while num_deltas is None or len(deltas) < num_deltas:
                    deltas.append(await anext(stream))
                    if is_slow:
                        await tick(self.rng)
            except StopAsyncIteration:
                assert deltas[-1].usage is not None
            except StepFailedError:
                failed = True
        check_stream(prompt, deltas, is_complete=num_deltas is None and not failed)

    # What clients do

    async def read_all(self, request_id: str) -> None:
        await self.read(request_id)

    async def read_slowly(self, request_id: str) -> None:
        await self.read(request_id, is_slow=True)

    async def leave_early(self, request_id: str) -> None:
        await self.read(request_id, num_deltas=self.rng.randrange(1, 5))

    async def cancel(self, request_id: str) -> None:
        task = asyncio.ensure_future(self.read(request_id))
        await tick(self.rng)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    async def time_out(self, request_id: str) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self.rng.expovariate(200)):
                await self.read(request_id)

    async def abort(self, request_id: str) -> None:
        task = asyncio.ensure_future(self.read(request_id))
        await tick(self.rng)
        with suppress(NotFoundError):
            await self.fake.engine.abort(
                request_id, self.rng.choice([FinishReason.ABORT, FinishReason.DEADLINE])
            )
        await task

    async def send_rubbish(self, request_id: str) -> None:
        prompt, params = self.rng.choice(RUBBISH)
        self.begun[request_id] += 1
        with pytest.raises(InflightError):
            await anext(self.fake.engine.generate(request_id, prompt, SamplingParams(**params)))

    async def send_twice(self, request_id: str) -> None:
        answers = await asyncio.gather(self.read(request_id), self.read(request_id), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, InflightError):
                raise answer

    async def come_and_go(self, number: int) -> None:
        acts: list[Callable[[str], Awaitable[None]]] = [
            *(self.read_all, self.read_slowly, self.leave_early, self.cancel),
            *(self.time_out, self.abort, self.send_rubbish, self.send_twice),
        ]
        await tick(self.rng)
        with suppress(InflightError):  # refused: the queue is short
            await self.rng.choice(acts)(f"client-{number}")


def unreliable_runner(rng: random.Random, max_steps_in_flight: int) -> FakeRunner:
    def fail_at_times(step: StepInput) -> None:
        if rng.random() < 0.02:
            raise ValueError("bad luck")

    def successor(token_id: int) -> int:
        return EOS if token_id == 110 else 111 if token_id == EOS else next_byte(token_id)

    return FakeRunner(successor, fail_at_times, max_steps_in_flight)


@pytest.mark.parametrize("seed", range(8))
async def test_every_request_ends_once_and_gives_everything_back(
    seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "inflight")
    rng = random.Random(seed)
    runner = unreliable_runner(random.Random(seed), max_steps_in_flight=1 + seed % 2)
    options = FakeEngineOptions(num_blocks=40, max_num_queued=60, runner=runner)
    async with running_engine(options) as fake:  # which checks at its end that all blocks are free
        crowd = Crowd(fake, rng)
        await asyncio.gather(*(crowd.come_and_go(number) for number in range(NUM_CLIENTS)))
        await fake.engine._streams.idle.wait()
        assert fake.engine.state is EngineState.SERVING
        metrics = fake.engine.metrics
        assert metrics.num_ended.total() + metrics.num_rejected.total() == crowd.begun.total()
        assert metrics.num_ended[FinishReason.LENGTH] > 5
    lines = Counter(
        record.getMessage().split(":")[0] for record in caplog.records if record.name == "inflight"
    )
    assert lines == Counter({f"request {request_id}": count for request_id, count in crowd.begun.items()})
