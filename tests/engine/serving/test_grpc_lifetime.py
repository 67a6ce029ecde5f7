"""How requests end that do not end well, over real gRPC, and that nothing is left of them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from engine.serving.options import ServerOptions
from inflight import v1
from scheduler.errors import FatalStepError
from scheduler.request import FinishReason
from scheduler.step import StepInput
from tests.support.fake_engine import FakeEngineOptions, Gate
from tests.support.fake_model import FakeRunner
from tests.support.grpc_server import SECONDS_UNTIL_STUCK, Served, served_engine

Code = grpc.StatusCode
ABORTED = v1.FinishReason.FINISH_REASON_ABORT
LENGTH = v1.FinishReason.FINISH_REASON_LENGTH
LONG = 4000  # tokens


@asynccontextmanager
async def gated_server(**options: Any) -> AsyncIterator[tuple[Served, Gate]]:
    """One sequence at a time, at most two tokens in a step, and steps wait at a gate. Well in the end."""
    gate = Gate()
    defaults = {"max_num_seqs": 1, "max_num_batched_tokens": 2, "max_model_len": 4096, "num_blocks": 2048}
    fake_options = FakeEngineOptions(**(defaults | options), runner=FakeRunner(before_step=gate))
    async with asyncio.timeout(SECONDS_UNTIL_STUCK), served_engine(fake_options) as served:
        yield served, gate
        gate.open()
        await served.check_is_well()


async def failure(call: Any) -> grpc.aio.AioRpcError:
    """The error with which a call ends, streaming or not."""
    end = last_event(call) if isinstance(call, v1.GenerateCall) else call
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await end
    return caught.value


async def last_event(call: v1.GenerateCall) -> v1.GenerateResponse:
    return [event async for event in call][-1]


async def reach(state: str, served: Served, gate: Gate) -> None:
    """The newest request is in this state, and the next step stands at the gate."""
    if state == "waiting":
        while not (await served.client.load()).num_waiting:
            gate.pass_one()
            await gate.arrival()
        return
    await gate.arrival()
    if state == "generating":
        gate.pass_one()
        await gate.arrival()


async def until_ended(reason: FinishReason, served: Served, gate: Gate) -> None:
    """Until a request has ended so: steps pass meanwhile, because requests end between them."""
    while not served.fake.engine.metrics.num_ended[reason]:
        gate.pass_one()
        await served.client.load()


@pytest.mark.parametrize("way", ["cancel", "disconnect", "deadline"])
@pytest.mark.parametrize("state", ["waiting", "in its prompt", "generating"])
async def test_who_leaves_frees_everything(state: str, way: str) -> None:
    async with gated_server() as (served, gate), v1.Client(served.address) as client:
        first = None
        if state == "waiting":
            first = served.client.generate("a", max_new_tokens=LONG, ignore_eos=True)
            await gate.arrival()
        prompt = "a" * 100 if state == "in its prompt" else "a"
        call = client.generate(prompt, ignore_eos=True, timeout=1.0 if way == "deadline" else None)
        await reach(state, served, gate)
        if way == "cancel":
            call.cancel()
        elif way == "disconnect":
            await client.close()
        else:
            assert (await failure(call)).code() == Code.DEADLINE_EXCEEDED
        reason = FinishReason.DEADLINE if way == "deadline" else FinishReason.ABORT
        await until_ended(reason, served, gate)
        gate.open()
        if first is not None:
            assert (await last_event(first)).usage.generated_tokens == LONG


async def test_a_deadline_ends_generate_once_too() -> None:
    async with gated_server() as (served, gate):
        error = await failure(served.client.generate_once("a", ignore_eos=True, timeout=0.2))
        assert error.code() == Code.DEADLINE_EXCEEDED
        await until_ended(FinishReason.DEADLINE, served, gate)


async def test_abort_ends_the_stream_with_what_there_is() -> None:
    async with gated_server() as (served, gate):
        call = served.client.generate("a", request_id="mine", ignore_eos=True)
        await reach("generating", served, gate)
        await served.client.abort("mine")
        gate.open()
        events = [event async for event in call]
        assert "".join(event.text for event in events).startswith("b")
        assert events[-1].finish == v1.Finish(reason=ABORTED)
        assert events[-1].usage.prompt_tokens == 1
        assert (await failure(served.client.abort("mine"))).code() == Code.NOT_FOUND


async def test_abort_of_a_waiting_request() -> None:
    async with gated_server() as (served, gate):
        first = served.client.generate("a", max_new_tokens=LONG, ignore_eos=True)
        await gate.arrival()
        second = served.client.generate("a", request_id="second")
        await reach("waiting", served, gate)
        await served.client.abort("second")
        gate.open()
        assert (await last_event(second)).finish.reason == ABORTED
        assert (await last_event(first)).finish.reason == LENGTH


async def test_an_id_is_taken_until_its_request_has_ended() -> None:
    async with gated_server() as (served, gate):
        first = served.client.generate("a", request_id="mine", max_new_tokens=3)
        await gate.arrival()
        error = await failure(served.client.generate("b", request_id="mine"))
        assert error.code() == Code.ALREADY_EXISTS
        assert "'mine'" in (error.details() or "")
        cancelled = served.client.generate("b", request_id="mine")
        cancelled.cancel()  # must not take the first one along
        gate.open()
        assert (await last_event(first)).finish.reason == LENGTH
        again = await served.client.generate_once("a", request_id="mine", max_new_tokens=3)
        assert again.outputs[0].text == "bcd"


async def test_a_full_queue_refuses_at_once() -> None:
    async with gated_server(max_num_queued=1) as (served, gate):
        running = served.client.generate("a", max_new_tokens=LONG, ignore_eos=True)
        await gate.arrival()
        waiting = served.client.generate("a", max_new_tokens=3)
        await reach("waiting", served, gate)
        for call in (served.client.generate("a"), served.client.generate_once("a")):
            error = await failure(call)
            assert error.code() == Code.RESOURCE_EXHAUSTED
            assert "full" in (error.details() or "")
        gate.open()
        assert (await last_event(running)).finish.reason == LENGTH
        assert (await last_event(waiting)).finish.reason == LENGTH


async def test_a_step_that_fails_ends_its_requests_only() -> None:
    def fail_once(step: StepInput) -> None:
        if any(chunk.token_ids[-1] == ord("!") for chunk in step.chunks):
            raise RuntimeError("out of luck")

    options = FakeEngineOptions(max_num_seqs=1, runner=FakeRunner(before_step=fail_once))
    async with served_engine(options) as served:
        others = [served.client.generate_once("a", max_new_tokens=20) for _ in range(3)]
        error = await failure(served.client.generate("!"))
        assert error.code() == Code.INTERNAL
        assert "out of luck" in (error.details() or "")
        for other in others:
            assert (await other).usage.generated_tokens == 20
        await served.check_is_well()


async def test_a_dead_engine_is_unavailable() -> None:
    def die(step: StepInput) -> None:
        raise FatalStepError("the device is lost")

    async with served_engine(FakeEngineOptions(runner=FakeRunner(before_step=die))) as served:
        first = await failure(served.client.generate("a"))
        assert first.code() in (Code.INTERNAL, Code.UNAVAILABLE)
        assert "the device is lost" in await served.fake.engine.wait_dead()
        second = await failure(served.client.generate("a"))
        assert second.code() == Code.UNAVAILABLE
        assert "the device is lost" in (second.details() or "")


async def test_a_draining_engine_refuses_and_finishes() -> None:
    gate = Gate()
    async with served_engine(FakeEngineOptions(runner=FakeRunner(before_step=gate))) as served:
        running = served.client.generate("a", max_new_tokens=5)
        await gate.arrival()
        drain = asyncio.create_task(served.fake.engine.drain(SECONDS_UNTIL_STUCK))
        await asyncio.sleep(0)
        error = await failure(served.client.generate("a"))
        assert error.code() == Code.UNAVAILABLE
        assert "draining" in (error.details() or "")
        gate.open()
        assert (await last_event(running)).finish.reason == LENGTH
        await drain


async def test_a_reader_that_stalls_is_aborted_and_holds_up_nobody() -> None:
    """Its window is small, so that the server soon cannot get rid of its messages."""
    window = (("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0))
    options = FakeEngineOptions(num_blocks=32_768, max_model_len=120_000, max_num_queued=0)
    server_options = ServerOptions(port=0, stream_interval=0.0, stall_seconds=0.3)
    async with asyncio.timeout(SECONDS_UNTIL_STUCK), served_engine(options, server_options) as served:
        async with v1.Client(served.address, options=window) as client:
            call = client.generate("a", ignore_eos=True, token_ids=True)
            await call.request_id()
            while not served.fake.engine.metrics.num_ended[FinishReason.ABORT]:
                await served.client.generate_once("a", max_new_tokens=3)
            error = await failure(call)
            assert error.code() == Code.RESOURCE_EXHAUSTED
            assert "did not read the stream for 0.3 s" in (error.details() or "")
            assert served.fake.engine.metrics.requests.num_slow_readers == 1
        await served.check_is_well()
