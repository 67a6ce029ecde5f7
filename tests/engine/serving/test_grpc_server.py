"""The server as a whole: health, reflection, its port, signals, and the exit code."""

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from engine.errors import ConfigError
from engine.nvidia import lost_device
from engine.serving.grpc_server import SERVICE, GrpcServer
from engine.serving.lifecycle import serve
from engine.serving.options import ServerOptions
from engine.serving.types import EngineState
from inflight import v1
from scheduler.errors import FatalStepError
from scheduler.step import StepInput
from tests.support.fake_engine import FakeEngine, FakeEngineOptions, Gate, fake_engine
from tests.support.fake_model import FakeRunner
from tests.support.grpc_server import SECONDS_UNTIL_STUCK, Served

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
ON_ANY_PORT = ServerOptions(port=0)


async def health(client: v1.Client, service: str = "") -> Any:
    stub: Any = health_pb2_grpc.HealthStub(client.channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status


@pytest.mark.parametrize("service", ["", "inflight.v1.Generation"])
async def test_health_follows_the_server(served: Served, service: str) -> None:
    assert await health(served.client, service) == SERVING
    await served.server.set_not_serving()
    assert await health(served.client, service) == NOT_SERVING
    assert await served.client.tokenize("a") == [97]  # what is not a request is still answered


async def test_health_of_an_unknown_service_is_not_found(served: Served) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health(served.client, "nobody")
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def test_reflection_lists_the_services(served: Served) -> None:
    channel: Any = served.client.channel
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    names = [service.name async for reply in call for service in reply.list_services_response.service]
    assert {SERVICE, "grpc.health.v1.Health"} <= set(names)


async def test_a_port_in_use_is_a_config_error(served: Served) -> None:
    port = int(served.address.rsplit(":", 1)[1])
    second = GrpcServer(served.fake.engine, ServerOptions(port=port))
    with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
        await second.start()


async def serve_while(
    fake: FakeEngine,
    use: Callable[[v1.Client], Coroutine[Any, Any, None]],
    grace_seconds: float = SECONDS_UNTIL_STUCK,
) -> int:
    """The exit code of serve(), `use` having been run as soon as it was ready."""
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    async with asyncio.timeout(SECONDS_UNTIL_STUCK):
        serving = asyncio.create_task(
            serve(fake.engine, ON_ANY_PORT, grace_seconds=grace_seconds, on_ready=address.set_result)
        )
        async with v1.Client(await address) as client:
            await use(client)
            return await serving


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


async def until_health(client: v1.Client, status: Any) -> None:
    while await health(client) != status:
        pass


async def last_event(call: v1.GenerateCall) -> v1.GenerateResponse:
    return [event async for event in call][-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_an_idle_server_with_0(number: signal.Signals) -> None:
    async def use(client: v1.Client) -> None:
        assert (await client.generate_once("a", max_new_tokens=1)).outputs[0].text == "b"
        send(number)

    fake = fake_engine()
    assert await serve_while(fake, use) == 0
    assert fake.engine.state is EngineState.DEAD
    fake.check_is_empty()


async def test_what_runs_may_finish_and_what_is_new_is_refused() -> None:
    gate = Gate()
    fake = fake_engine(FakeEngineOptions(runner=FakeRunner(before_step=gate)))

    async def use(client: v1.Client) -> None:
        call = client.generate("a", max_new_tokens=50)
        await gate.arrival()
        send(signal.SIGTERM)
        await until_health(client, NOT_SERVING)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.generate_once("a")
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        gate.open()
        last = await last_event(call)
        assert last.finish.reason == v1.FinishReason.FINISH_REASON_LENGTH
        assert last.usage.generated_tokens == 50

    assert await serve_while(fake, use) == 0
    fake.check_is_empty()


@pytest.mark.parametrize("way", ["grace is over", "second signal"])
async def test_what_does_not_finish_in_time_is_aborted(way: str) -> None:
    gate = Gate()
    options = FakeEngineOptions(num_blocks=8192, max_model_len=30_000, runner=FakeRunner(before_step=gate))
    fake = fake_engine(options)

    async def use(client: v1.Client) -> None:
        call = client.generate("a", ignore_eos=True)
        await gate.arrival()
        send(signal.SIGTERM)
        await until_health(client, NOT_SERVING)
        if way == "second signal":
            send(signal.SIGTERM)
        gate.open()
        last = await last_event(call)
        assert last.finish.reason == v1.FinishReason.FINISH_REASON_ABORT
        assert last.HasField("usage")

    grace_seconds = 0.0 if way == "grace is over" else SECONDS_UNTIL_STUCK
    assert await serve_while(fake, use, grace_seconds) == 0
    fake.check_is_empty()


async def test_a_lost_gpu_fails_every_request_turns_health_off_and_ends_with_1(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cause = "CUDA error: an illegal memory access was encountered"
    reason = lost_device(RuntimeError(f"{cause}\nCompile with `TORCH_USE_CUDA_DSA` to enable assertions."))
    gate = Gate()

    def die(step: StepInput) -> None:
        gate(step)
        raise FatalStepError(reason)

    async def use(client: v1.Client) -> None:
        stub: Any = health_pb2_grpc.HealthStub(client.channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        assert (await watch.read()).status == SERVING
        runs, waits = (client.generate_once("a") for _ in range(2))
        await gate.arrival()
        gate.open()
        codes = []
        for answer in await asyncio.gather(runs, waits, return_exceptions=True):
            assert isinstance(answer, grpc.aio.AioRpcError)
            codes.append(answer.code().name)
            assert f"the GPU is lost to this process ({cause}): restart it" in (answer.details() or "")
        assert sorted(codes) == ["INTERNAL", "UNAVAILABLE"]  # what waited can run elsewhere, from the start
        assert (await watch.read()).status == NOT_SERVING

    fake = fake_engine(FakeEngineOptions(max_num_seqs=1, runner=FakeRunner(before_step=die)))
    assert await serve_while(fake, use) == 1
    (last,) = (record for record in caplog.records if record.levelname == "CRITICAL")
    assert last.getMessage() == f"the engine is dead: FatalStepError: {reason}"


async def test_an_engine_that_hangs_ends_the_server_with_1() -> None:
    gate = Gate()
    fake = fake_engine(FakeEngineOptions(runner=FakeRunner(before_step=gate)), step_timeout=0.2)

    async def use(client: v1.Client) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.generate_once("a")
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        gate.open()

    assert await serve_while(fake, use) == 1


async def test_a_server_that_cannot_listen_stops_its_engine(served: Served) -> None:
    fake = fake_engine()
    port = int(served.address.rsplit(":", 1)[1])
    with pytest.raises(ConfigError, match="cannot listen"):
        await serve(fake.engine, ServerOptions(port=port), grace_seconds=1.0, on_ready=print)
    assert fake.engine.state is EngineState.DEAD
