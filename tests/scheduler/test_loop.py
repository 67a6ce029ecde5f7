"""The loop on a fake device: whatever fails, everybody gets an end, and the others go on."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from scheduler import FatalStepError, FinishReason, Request, SequenceOutput, StepLoop, StepStats
from tests.scheduler.conftest import Harness, MakeHarness, make_prompt
from tests.scheduler.fake_device import FakeSampling, expected_tokens


@dataclass
class Client:
    """Collects what the loop tells, and waits for ends. Every reading of its clock is one second later."""

    harness: Harness
    loop: StepLoop = field(init=False)
    tokens: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    reasons: dict[tuple[str, int], FinishReason] = field(default_factory=dict)
    errors: dict[tuple[str, int], str | None] = field(default_factory=dict)
    requests: dict[str, Request] = field(default_factory=dict)
    steps: list[StepStats] = field(default_factory=list)
    batches: list[list[SequenceOutput]] = field(default_factory=list)
    on_batch: Callable[[], None] | None = None
    told: asyncio.Event = field(default_factory=asyncio.Event)
    now: float = 0.0

    def __post_init__(self) -> None:
        self.loop = StepLoop(
            self.harness.scheduler,
            self.harness.device,
            self.take,
            on_step=self.steps.append,
            clock=self.clock,
            max_consecutive_failures=3,
        )

    def clock(self) -> float:
        self.now += 1
        return self.now

    def take(self, outputs: list[SequenceOutput]) -> None:
        assert outputs, "an empty batch is not worth a call"
        self.batches.append(outputs)
        for output in outputs:
            key = (output.request_id, output.output_index)
            assert key not in self.reasons, "an output after the last"
            self.tokens.setdefault(key, []).extend(output.token_ids)
            if output.summary is not None:
                self.reasons[key] = output.summary.finish_reason
                self.errors[key] = output.summary.error
        self.told.set()
        if self.on_batch is not None:
            self.on_batch()

    def submit(
        self, request_id: str, num_prompt_tokens: int, max_new_tokens: int, num_outputs: int = 1
    ) -> None:
        prompt = make_prompt(request_id, num_prompt_tokens)
        request = Request(request_id, prompt, max_new_tokens, FakeSampling(), num_outputs)
        self.loop.submit(request)
        self.requests[request_id] = request

    def stop_when_done(self) -> None:
        """From now on, once every submitted sequence has ended."""
        num_sequences = sum(request.num_outputs for request in self.requests.values())
        self.on_batch = lambda: self.loop.stop() if len(self.reasons) == num_sequences else None

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                self.told.clear()
                await self.told.wait()

    async def ends(self, *keys: tuple[str, int]) -> None:
        await self.until(lambda: self.reasons.keys() >= set(keys))

    async def tokens_of(self, request_id: str, output_index: int, num_tokens: int) -> None:
        await self.until(lambda: len(self.tokens.get((request_id, output_index), ())) >= num_tokens)

    def check(self) -> None:
        """Nobody got a wrong token, and everything was given back."""
        for (request_id, output_index), tokens in self.tokens.items():
            groups = self.harness.device.config.groups
            expected = expected_tokens(self.requests[request_id], output_index, groups)
            complete = self.reasons[request_id, output_index] is FinishReason.LENGTH
            assert tokens == (expected if complete else expected[: len(tokens)])
        assert len(self.reasons) == sum(request.num_outputs for request in self.requests.values())
        assert self.harness.kv.num_free_blocks == self.harness.kv.num_blocks
        self.harness.scheduler.check_invariants()


MakeClient = Callable[..., Client]


@pytest.fixture
def make_client(make_harness: MakeHarness) -> MakeClient:
    return lambda **options: Client(make_harness(**options))


@asynccontextmanager
async def running(client: Client) -> AsyncIterator[asyncio.Task[None]]:
    """The loop as a task; stopped and awaited in the end, if it has not ended itself."""
    task = asyncio.create_task(client.loop.run())
    try:
        yield task
    finally:
        client.loop.stop()
        await asyncio.wait([task])


@pytest.mark.parametrize("in_flight", [1, 2, 3])
async def test_everything_runs(make_client: MakeClient, in_flight: int) -> None:
    client = make_client(in_flight=in_flight, num_blocks=16)
    for index in range(6):
        client.submit(str(index), 3 + index, 9, num_outputs=1 + index % 3)
    client.stop_when_done()
    await client.loop.run()
    assert set(client.reasons.values()) == {FinishReason.LENGTH}
    client.check()


async def test_steps_overlap(make_client: MakeClient) -> None:
    client = make_client(in_flight=2)
    depths: list[int] = []
    client.submit("a", 3, 9)
    client.on_batch = lambda: depths.append(len(client.harness.device.in_flight))
    async with running(client):
        await client.ends(("a", 0))
    assert depths == [1] * 8 + [0], "one step was always running while another one was read"
    client.check()


async def test_an_idle_loop_sleeps_and_wakes(make_client: MakeClient) -> None:
    client = make_client()
    async with running(client):
        for _ in range(3):
            await asyncio.sleep(0)
        now = client.now
        assert client.loop.busy_since is None
        for _ in range(3):
            await asyncio.sleep(0)
        assert client.now == now, "it turns although there is nothing to do"
        client.submit("a", 3, 2)
        await client.ends(("a", 0))
        client.submit("b", 3, 2)
        await client.ends(("b", 0))
    client.check()


async def test_the_heart_beats_while_it_is_busy(make_client: MakeClient) -> None:
    client = make_client()
    beats: list[tuple[float | None, float]] = []
    client.on_batch = lambda: beats.append((client.loop.busy_since, client.loop.heartbeat))
    client.submit("a", 3, 4)
    async with running(client):
        await client.ends(("a", 0))
        await asyncio.sleep(0)
    assert len({busy_since for busy_since, _ in beats}) == 1
    busy_since, _ = beats[0]
    assert busy_since is not None
    heartbeats = [heartbeat for _, heartbeat in beats]
    assert heartbeats == sorted(set(heartbeats))
    assert heartbeats[0] == busy_since
    assert client.loop.busy_since is None


@pytest.mark.parametrize("in_flight", [1, 2])
async def test_requests_come_and_go_between_steps(make_client: MakeClient, in_flight: int) -> None:
    client = make_client(in_flight=in_flight)
    async with running(client):
        client.submit("a", 3, 100)
        await client.tokens_of("a", 0, 5)
        client.submit("b", 3, 5, num_outputs=2)
        await client.ends(("b", 0), ("b", 1))
        assert client.loop.abort("a", FinishReason.DEADLINE)
        await client.ends(("a", 0))
        assert not client.loop.abort("a")
        client.submit("c", 3, 100, num_outputs=2)
        await client.tokens_of("c", 1, 5)
        assert client.loop.finish("c", 1)
        await client.ends(("c", 1))
        assert not client.loop.finish("c", 1)
        assert ("c", 0) not in client.reasons
        client.loop.abort("c")
        await client.ends(("c", 0))
    assert client.reasons["a", 0] is FinishReason.DEADLINE
    assert client.reasons["c", 1] is FinishReason.STOP
    client.check()


@pytest.mark.parametrize("num_turns", range(8))
@pytest.mark.parametrize("in_flight", [1, 2])
async def test_abort_in_every_state(make_client: MakeClient, num_turns: int, in_flight: int) -> None:
    client = make_client(in_flight=in_flight, budget=8, num_blocks=8)
    async with running(client):
        client.submit("a", 14, 4, num_outputs=2)
        client.submit("b", 9, 6)
        for _ in range(num_turns):
            await asyncio.sleep(0)
        client.loop.abort("b")
        await client.ends(("a", 0), ("a", 1), ("b", 0))
    client.check()


async def test_a_waiting_request_is_aborted_while_others_run(make_client: MakeClient) -> None:
    client = make_client(num_blocks=4)
    async with running(client):
        client.submit("a", 10, 6)
        client.submit("b", 10, 6)
        await asyncio.sleep(0)
        client.loop.abort("b")
        await client.ends(("b", 0))
        assert ("a", 0) not in client.reasons
        await client.ends(("a", 0))
    client.check()


async def test_an_abort_before_the_first_step_is_told(make_client: MakeClient) -> None:
    client = make_client()
    client.submit("a", 3, 4)
    client.loop.abort("a")
    async with running(client):
        await client.ends(("a", 0))
    assert client.harness.device.steps == []
    client.check()


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize("where", ["fail_launch", "fail_result"])
async def test_a_failed_step_fails_its_requests_alone(
    make_client: MakeClient, where: str, in_flight: int
) -> None:
    client = make_client(in_flight=in_flight, max_num_seqs=2)
    getattr(client.harness.device, where).update({1: ValueError("bad kernel"), 7: KeyError()})
    for name in ("a", "b", "c", "d", "e"):
        client.submit(name, 3, 9)
    client.stop_when_done()
    await client.loop.run()
    assert [client.reasons[name, 0].name for name in "abcde"] == ["ERROR"] * 4 + ["LENGTH"]
    assert client.errors["a", 0] == "ValueError: bad kernel"
    assert client.errors["d", 0] == "KeyError"
    client.check()


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize("where", ["fail_launch", "fail_result"])
async def test_a_fatal_step_ends_everything(make_client: MakeClient, where: str, in_flight: int) -> None:
    client = make_client(in_flight=in_flight, max_num_seqs=2)
    getattr(client.harness.device, where)[2] = FatalStepError("device lost")
    for name in ("a", "b", "c"):
        client.submit(name, 3, 9, num_outputs=2)
    with pytest.raises(FatalStepError, match="device lost"):
        await client.loop.run()
    assert set(client.reasons.values()) == {FinishReason.ERROR}
    assert set(client.errors.values()) == {"FatalStepError: device lost"}
    client.check()
    with pytest.raises(RuntimeError, match="no more requests"):
        client.submit("late", 3, 1)


async def test_too_many_failures_in_a_row_are_fatal(make_client: MakeClient) -> None:
    client = make_client(max_num_seqs=1)
    client.harness.device.fail_launch.update({step_id: ValueError("bad") for step_id in (0, 1, 4, 5, 6, 7)})
    for index in range(8):
        client.submit(str(index), 3, 1)
    with pytest.raises(FatalStepError, match="3 steps failed in a row, at last: ValueError: bad") as raised:
        await client.loop.run()
    assert isinstance(raised.value.__cause__, ValueError)
    assert Counter(reason.name for reason in client.reasons.values()) == {"ERROR": 6, "LENGTH": 2}
    assert [client.errors[name, 0] for name in "01456"] == ["ValueError: bad"] * 5
    assert client.errors["7", 0] == f"FatalStepError: {raised.value}"
    client.check()


async def test_a_bug_in_the_scheduler_is_fatal(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make_client()
    client.submit("a", 3, 9)
    client.submit("b", 3, 9)

    def broken(_: object) -> None:
        raise AssertionError("lost a block")

    monkeypatch.setattr(client.harness.kv, "commit", broken)
    monkeypatch.setattr(client.harness.kv, "free", broken)
    monkeypatch.setattr(client.harness.scheduler, "update", lambda *_: broken(None))
    with pytest.raises(FatalStepError, match="lost a block"):
        await client.loop.run()
    assert client.reasons == {("a", 0): FinishReason.ERROR, ("b", 0): FinishReason.ERROR}


async def test_a_listener_that_raises_is_fatal(make_client: MakeClient) -> None:
    client = make_client()
    client.submit("a", 3, 9)

    def raise_once() -> None:
        client.on_batch = None
        raise LookupError("nobody listens")

    client.on_batch = raise_once
    with pytest.raises(FatalStepError, match="LookupError: nobody listens"):
        await client.loop.run()
    assert client.reasons == {("a", 0): FinishReason.ERROR}
    client.check()


@pytest.mark.parametrize("num_turns", range(5))
@pytest.mark.parametrize("in_flight", [1, 2])
async def test_stop_ends_what_is_left(make_client: MakeClient, num_turns: int, in_flight: int) -> None:
    client = make_client(in_flight=in_flight, max_num_seqs=2)
    for name in ("a", "b", "c"):
        client.submit(name, 3, 50)
    async with running(client) as task:
        for _ in range(num_turns):
            await asyncio.sleep(0)
        client.loop.stop()
        with pytest.raises(RuntimeError):
            client.submit("late", 3, 1)
        await task
    assert list(client.reasons.values()) == [FinishReason.ABORT] * 3
    assert not client.harness.device.in_flight, "steps in flight were read"
    client.check()


async def test_stop_wakes_an_idle_loop(make_client: MakeClient) -> None:
    client = make_client()
    async with running(client) as task:
        await asyncio.sleep(0)
        client.loop.stop()
        await task


async def test_a_device_that_is_lost_while_stopping(make_client: MakeClient) -> None:
    client = make_client(in_flight=2)
    client.harness.device.fail_result[1] = FatalStepError("device lost")
    client.submit("a", 3, 50)
    client.on_batch = client.loop.stop
    with pytest.raises(FatalStepError):
        await client.loop.run()
    assert client.reasons == {("a", 0): FinishReason.ERROR}
    client.check()


async def test_a_cancelled_loop_ends_everybody(make_client: MakeClient) -> None:
    client = make_client()
    client.submit("a", 3, 50)
    async with running(client) as task:
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert client.reasons == {("a", 0): FinishReason.ABORT}
    client.check()


@pytest.mark.parametrize("in_flight", [1, 2])
async def test_a_batch_a_step(make_client: MakeClient, in_flight: int) -> None:
    client = make_client(in_flight=in_flight, budget=8)
    client.submit("a", 12, 3)
    client.submit("b", 3, 4)
    client.stop_when_done()
    await client.loop.run()
    # The first step computes a part of a's prompt, and samples nothing.
    assert [len(batch) for batch in client.batches] == [2, 2, 2, 1]
    assert [(step.num_decode_rows, step.num_chunk_tokens) for step in client.steps[:3]] == [
        (0, 8),
        (0, 7),
        (2, 0),
    ]
    assert [step.step_id for step in client.steps] == list(range(len(client.steps)))
    for step in client.steps:  # each reading of the clock is a second later
        assert (step.schedule_seconds, step.launch_seconds, step.wait_seconds, step.update_seconds) == (
            1,
            1,
            1,
            1,
        )


async def test_nobody_needs_to_watch_the_steps(make_client: MakeClient) -> None:
    client = make_client()
    client.loop = StepLoop(client.harness.scheduler, client.harness.device, client.take)
    client.submit("a", 3, 3)
    client.stop_when_done()
    await client.loop.run()
    assert client.steps == []
    client.check()
