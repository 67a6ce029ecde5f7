"""Ends that nobody planned: aborted, left, failed, drained, stopped, dead. Every block comes back."""

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import pytest

from engine.errors import NotFoundError, StepFailedError, UnavailableError
from engine.sampling.params import SamplingParams
from engine.serving.async_engine import AsyncEngine
from engine.serving.types import EngineState, OutputDelta, OutputFinish, OutputOptions
from scheduler.errors import FatalStepError
from scheduler.request import FinishReason
from scheduler.step import StepInput
from tests.support.fake_engine import FakeEngine, FakeEngineOptions, Gate, fake_engine, running_engine
from tests.support.fake_model import FakeRunner

END_REASONS = (FinishReason.ABORT, FinishReason.DEADLINE)


def start(
    engine: AsyncEngine, prompt: str | list[int] = "a", request_id: str = "id", **params: Any
) -> "asyncio.Future[list[OutputDelta]]":
    """A reader that takes everything."""

    async def collect() -> list[OutputDelta]:
        return [delta async for delta in engine.generate(request_id, prompt, SamplingParams(**params))]

    return asyncio.ensure_future(collect())


def finishes(deltas: list[OutputDelta]) -> list[FinishReason]:
    """One for each output; checks that the stream ends once, with the last."""
    assert [delta.usage is not None for delta in deltas] == [False] * (len(deltas) - 1) + [True]
    found = {delta.output_index: delta.finish.reason for delta in deltas if delta.finish is not None}
    assert len(found) == sum(delta.finish is not None for delta in deltas)
    return [found[index] for index in sorted(found)]


class SlowTokenizer:
    """Stands between an engine's intake and its tokenizer, and holds every prompt back."""

    def __init__(self, fake: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.arrived, self._passed = threading.Semaphore(0), threading.Event()
        encode = fake.engine._tokenizer.encode

        def wait_and_encode(text: str, add_special_tokens: bool = True) -> list[int]:
            self.arrived.release()
            self._passed.wait()
            return encode(text, add_special_tokens)

        monkeypatch.setattr(fake.engine._tokenizer, "encode", wait_and_encode)

    def open(self) -> None:
        self._passed.set()


# Aborts, in every state


@pytest.mark.parametrize("reason", END_REASONS)
async def test_abort_while_it_is_tokenized(monkeypatch: pytest.MonkeyPatch, reason: FinishReason) -> None:
    async with running_engine() as fake:
        tokenizer = SlowTokenizer(fake, monkeypatch)
        reading = start(fake.engine, num_outputs=2, temperature=1.0)
        await asyncio.to_thread(tokenizer.arrived.acquire)
        await fake.engine.abort("id", reason)
        assert finishes(await reading) == [reason, reason]  # although the tokenizer is still at it
        with pytest.raises(NotFoundError):
            await fake.engine.abort("id")
        tokenizer.open()
    assert fake.runner.num_steps == 0


async def test_abort_when_it_has_just_been_tokenized() -> None:
    """Between the end of the tokenizing and the reader's learning of it."""
    async with running_engine() as fake:
        reading = start(fake.engine)
        await asyncio.sleep(0)
        stream = fake.engine._streams.find("id")
        assert stream is not None
        assert stream.preparing is not None
        # Called before the reader, who waits for the same, gets to run
        stream.preparing.add_done_callback(lambda _: fake.engine._abort(stream, FinishReason.ABORT))
        assert finishes(await reading) == [FinishReason.ABORT]
    assert fake.runner.num_steps == 0


@pytest.mark.parametrize("reason", END_REASONS)
async def test_abort_while_it_waits(reason: FinishReason) -> None:
    gate = Gate()
    async with running_engine(FakeEngineOptions(max_num_seqs=1, runner=FakeRunner(before_step=gate))) as fake:
        first = start(fake.engine, request_id="first", max_new_tokens=5)
        await gate.arrival()
        waiting = start(fake.engine, [97], request_id="waiting")
        await asyncio.sleep(0)
        await fake.engine.abort("waiting", reason)
        gate.open()
        deltas = await waiting
        assert finishes(deltas) == [reason]
        assert deltas[-1].timings is not None
        assert deltas[-1].timings.queued is None
        assert finishes(await first) == [FinishReason.LENGTH]


@pytest.mark.parametrize("reason", END_REASONS)
@pytest.mark.parametrize("num_steps", [1, 2, 5])
@pytest.mark.parametrize("max_steps_in_flight", [1, 2])
async def test_abort_while_it_runs(reason: FinishReason, num_steps: int, max_steps_in_flight: int) -> None:
    """A prompt of 40 tokens is computed by 3 steps of 16: the fifth step generates the third token."""
    gate = Gate()
    runner = FakeRunner(before_step=gate, max_steps_in_flight=max_steps_in_flight)
    async with running_engine(FakeEngineOptions(runner=runner)) as fake:
        reading = start(fake.engine, "a" * 40)
        for _ in range(num_steps - 1):
            await gate.arrival()
            gate.pass_one()
        await gate.arrival()
        assert fake.engine.load().num_running == 1
        await fake.engine.abort("id", reason)
        await fake.engine.abort("id", FinishReason.ABORT)  # the first one counts
        gate.open()
        deltas = await reading
    assert finishes(deltas) == [reason]
    assert "bcdef".startswith("".join(delta.text for delta in deltas))
    assert fake.runner.num_steps <= num_steps + max_steps_in_flight


async def test_abort_of_several_outputs() -> None:
    gate = Gate()
    async with running_engine(FakeEngineOptions(runner=FakeRunner(before_step=gate))) as fake:
        reading = start(fake.engine, num_outputs=3, temperature=1.0)
        for _ in range(2):
            await gate.arrival()
            gate.pass_one()
        await gate.arrival()
        await fake.engine.abort("id")
        gate.open()
        assert finishes(await reading) == [FinishReason.ABORT] * 3


async def test_abort_of_what_has_ended_or_never_was() -> None:
    async with running_engine() as fake:
        with pytest.raises(NotFoundError, match="'id'"):
            await fake.engine.abort("id")
        assert finishes(await start(fake.engine, max_new_tokens=1)) == [FinishReason.LENGTH]
        with pytest.raises(NotFoundError, match="'id'"):
            await fake.engine.abort("id")


# Readers that leave, in every state


async def test_leave_while_it_is_tokenized(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_engine() as fake:
        tokenizer = SlowTokenizer(fake, monkeypatch)
        reading = start(fake.engine)
        await asyncio.to_thread(tokenizer.arrived.acquire)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        tokenizer.open()
    assert fake.runner.num_steps == 0


async def test_leave_while_it_waits() -> None:
    gate = Gate()
    async with running_engine(FakeEngineOptions(max_num_seqs=1, runner=FakeRunner(before_step=gate))) as fake:
        first = start(fake.engine, request_id="first", max_new_tokens=5)
        await gate.arrival()
        waiting = start(fake.engine, [97], request_id="waiting")
        await asyncio.sleep(0)
        waiting.cancel()
        gate.open()
        assert finishes(await first) == [FinishReason.LENGTH]


@pytest.mark.parametrize("num_steps", [1, 2, 5])
async def test_leave_while_it_runs(num_steps: int) -> None:
    gate = Gate()
    async with running_engine(FakeEngineOptions(runner=FakeRunner(before_step=gate))) as fake:
        reading = start(fake.engine, "a" * 40)
        for _ in range(num_steps - 1):
            await gate.arrival()
            gate.pass_one()
        await gate.arrival()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        gate.open()
    assert fake.runner.num_steps <= num_steps + 1


async def test_leave_between_two_deltas_and_before_the_last() -> None:
    async with running_engine() as fake:
        for request_id in ("one", "two"):
            deltas = fake.engine.generate(request_id, "a", SamplingParams(max_new_tokens=50))
            async with aclosing(deltas):
                await anext(deltas)
        ended: AsyncGenerator[OutputDelta, None] = fake.engine.generate("ended", "a", SamplingParams())
        await anext(ended)
        if (stream := fake.engine._streams.find("ended")) is not None:
            await stream.ended
        await ended.aclose()


async def test_a_reader_that_leaves_may_say_why() -> None:
    gate = Gate()
    async with running_engine(FakeEngineOptions(runner=FakeRunner(before_step=gate))) as fake:
        why = FinishReason.DEADLINE
        deltas = fake.engine.generate("id", "a", SamplingParams(), left_because=lambda: why)
        gate.pass_one()
        await anext(deltas)
        await deltas.aclose()
        gate.open()
    assert fake.engine.metrics.num_ended == Counter({reason: int(reason is why) for reason in FinishReason})


async def test_an_engine_that_was_never_started_can_be_stopped() -> None:
    await fake_engine().engine.stop()


async def test_an_iteration_that_never_began_is_nothing() -> None:
    async with running_engine() as fake:
        await fake.engine.generate("id", "a", SamplingParams()).aclose()
        assert finishes(await start(fake.engine, max_new_tokens=1)) == [FinishReason.LENGTH]


# Steps that fail


def failing(steps: set[int], error: Exception) -> Callable[[StepInput], None]:
    def fail(step: StepInput) -> None:
        if step.step_id in steps:
            raise error

    return fail


async def test_a_failed_step_ends_its_requests_and_the_engine_goes_on() -> None:
    runner = FakeRunner(before_step=failing({3}, ValueError("bad luck")))
    async with running_engine(FakeEngineOptions(runner=runner)) as fake:
        with pytest.raises(StepFailedError, match="ValueError: bad luck"):
            await start(fake.engine, max_new_tokens=20, num_outputs=2, temperature=1.0)
        assert finishes(await start(fake.engine, max_new_tokens=5)) == [FinishReason.LENGTH]
        assert fake.engine.state is EngineState.SERVING
        assert fake.engine.metrics.num_ended[FinishReason.ERROR] == 1


async def test_what_came_before_a_failure_is_read_first() -> None:
    runner = FakeRunner(before_step=failing({3}, ValueError("bad luck")))
    async with running_engine(FakeEngineOptions(runner=runner)) as fake:
        deltas, text = fake.engine.generate("id", "a", SamplingParams()), ""
        while text != "bcd":
            text += (await anext(deltas)).text
        with pytest.raises(StepFailedError):
            await anext(deltas)


async def test_a_request_that_the_scheduler_refuses_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot, as all limits have been checked; if it does, the reader must not wait for ever."""
    async with running_engine() as fake:
        monkeypatch.setattr(fake.scheduler, "_check", lambda request: [][0])
        with pytest.raises(StepFailedError, match="IndexError"):
            await start(fake.engine, num_outputs=2, temperature=1.0)
        monkeypatch.undo()
        assert finishes(await start(fake.engine, max_new_tokens=2)) == [FinishReason.LENGTH]


@pytest.mark.parametrize(
    ("steps", "error", "reason"),
    [
        ({2}, FatalStepError("the device is lost"), "FatalStepError: the device is lost"),
        (set(range(2, 100)), ValueError("again"), "8 steps failed in a row, at last: ValueError: again"),
    ],
)
async def test_an_engine_that_cannot_go_on_dies_and_tells_everybody(
    steps: set[int], error: Exception, reason: str
) -> None:
    runner = FakeRunner(before_step=failing(steps, error))
    fake = fake_engine(FakeEngineOptions(max_num_seqs=2, runner=runner))  # 10 steps, if each ends two of 20
    async with fake.engine as engine:
        readers = [start(engine, [97], str(i), max_new_tokens=30 + i) for i in range(20)]
        assert reason in await engine.wait_dead()
        assert engine.state is EngineState.DEAD
        for answer in await asyncio.gather(*readers, return_exceptions=True):
            assert isinstance(answer, StepFailedError | UnavailableError)
            assert str(error) in str(answer)
        with pytest.raises(UnavailableError, match="dead"):
            await start(engine)
        await engine.drain(60)  # there is nothing to wait for
    fake.check_is_empty()


async def test_requests_that_waited_when_the_engine_died_can_be_tried_elsewhere() -> None:
    gate = Gate()

    def die(step: StepInput) -> None:
        gate(step)
        if step.step_id == 3:
            raise FatalStepError("the device is lost")

    fake = fake_engine(FakeEngineOptions(max_num_seqs=1, runner=FakeRunner(before_step=die)))
    async with fake.engine as engine:
        running = start(engine, [97], "running", max_new_tokens=20)
        await gate.arrival()
        waiting = start(engine, [97], "waiting", max_new_tokens=20)
        await asyncio.sleep(0)  # the engine has it after this step
        gate.open()
        with pytest.raises(StepFailedError, match="the device is lost"):
            await running
        with pytest.raises(UnavailableError, match=r"^FatalStepError: the device is lost"):
            await waiting
    fake.check_is_empty()


async def test_requests_that_are_tokenized_when_the_engine_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = FakeRunner(before_step=failing({0}, FatalStepError("the device is lost")))
    fake = fake_engine(FakeEngineOptions(runner=runner))
    async with fake.engine as engine:
        tokenizer = SlowTokenizer(fake, monkeypatch)
        reading = start(engine)
        await asyncio.to_thread(tokenizer.arrived.acquire)
        with pytest.raises(StepFailedError, match="the device is lost"):
            await start(engine, [97], "fatal")
        with pytest.raises(UnavailableError, match="dead: FatalStepError: the device is lost"):
            await reading
        tokenizer.open()


# The end of the engine


async def test_drain_refuses_new_requests_and_finishes_those_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = Gate()
    async with running_engine(FakeEngineOptions(runner=FakeRunner(before_step=gate))) as fake:
        tokenizer = SlowTokenizer(fake, monkeypatch)
        tokenizing = start(fake.engine, "a", "tokenizing", max_new_tokens=3)
        await asyncio.to_thread(tokenizer.arrived.acquire)
        reading = start(fake.engine, [97], max_new_tokens=3)
        await gate.arrival()
        draining = asyncio.ensure_future(fake.engine.drain(60))
        await asyncio.sleep(0)
        assert fake.engine.state is EngineState.DRAINING
        with pytest.raises(UnavailableError, match="draining"):
            await start(fake.engine, request_id="new")
        gate.open()
        tokenizer.open()
        await draining
        assert reading.done()
        assert finishes(await reading) == finishes(await tokenizing) == [FinishReason.LENGTH]


async def test_drain_aborts_what_takes_longer_than_the_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()
    async with running_engine(FakeEngineOptions(runner=FakeRunner(before_step=gate))) as fake:
        tokenizer = SlowTokenizer(fake, monkeypatch)
        tokenizing = start(fake.engine, "a", "tokenizing")
        await asyncio.to_thread(tokenizer.arrived.acquire)
        reading = start(fake.engine, [97])
        await gate.arrival()
        draining = asyncio.ensure_future(fake.engine.drain(0))
        assert finishes(await tokenizing) == [FinishReason.ABORT]
        assert not draining.done()
        gate.open()
        await draining
        assert finishes(await reading) == [FinishReason.ABORT]
        tokenizer.open()


async def test_drain_does_not_wait_for_readers_longer_than_the_grace() -> None:
    gate = Gate()
    async with running_engine(FakeEngineOptions(runner=FakeRunner(before_step=gate))) as fake:
        deltas = fake.engine.generate("stalled", "a", SamplingParams())
        gate.pass_one()
        await anext(deltas)
        gate.open()
        await fake.engine.drain(0)
        rest = [delta async for delta in deltas]
        assert rest[-1].finish is not None


async def test_a_drain_that_is_cancelled_harms_nobody() -> None:
    gate = Gate()
    async with running_engine(FakeEngineOptions(runner=FakeRunner(before_step=gate))) as fake:
        reading = start(fake.engine)
        await gate.arrival()
        draining = asyncio.ensure_future(fake.engine.drain(0))
        for _ in range(5):
            await asyncio.sleep(0)  # until it waits for the aborted to end
        draining.cancel()
        with pytest.raises(asyncio.CancelledError):
            await draining
        gate.open()
        assert finishes(await reading) == [FinishReason.ABORT]


async def test_stop_ends_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()
    fake = fake_engine(FakeEngineOptions(max_num_seqs=1, runner=FakeRunner(before_step=gate)))
    async with fake.engine as engine:
        tokenizer = SlowTokenizer(fake, monkeypatch)
        tokenizing = start(engine, "a", "tokenizing")
        await asyncio.to_thread(tokenizer.arrived.acquire)
        running = start(engine, [97], "running")
        await gate.arrival()
        waiting = start(engine, [97], "waiting")
        await asyncio.sleep(0)
        gate.open()
        await engine.stop()
        assert engine.state is EngineState.DEAD
        assert await engine.wait_dead() == "stopped"
        assert finishes(await running)[0] in (FinishReason.ABORT, FinishReason.LENGTH)
        assert finishes(await waiting)[0] in (FinishReason.ABORT, FinishReason.LENGTH)
        with pytest.raises(UnavailableError, match="stopping"):
            await tokenizing
        tokenizer.open()
        with pytest.raises(UnavailableError, match="dead: stopped"):
            await start(engine)
    fake.check_is_empty()  # and stopping again was nothing


async def test_its_threads_end_with_it() -> None:
    before = set(threading.enumerate())
    async with running_engine() as fake:
        await start(fake.engine, max_new_tokens=2)
        started = set(threading.enumerate()) - before
        assert {thread.name.partition("_")[0] for thread in started} == {"engine", "outputs", "tokenize"}
    for thread in started:
        thread.join(timeout=30)
        assert not thread.is_alive()


async def test_text_that_nobody_asked_for_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_engine() as fake:
        monkeypatch.setattr("engine.serving.intake.OutputText", None)
        output = OutputOptions(text=False, token_ids=True)
        params = SamplingParams(max_new_tokens=3)
        deltas = [delta async for delta in fake.engine.generate("id", [97], params, output=output)]
    assert b"".join(bytes(delta.token_ids) for delta in deltas) == b"bcd"
    assert deltas[-1].finish == OutputFinish(FinishReason.LENGTH)
