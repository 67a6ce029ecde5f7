"""What the clients record is what the server did: times, outcomes, turns. One event loop, real gRPC."""

import asyncio
import itertools
import time
from typing import Any

import grpc
import pytest

from benchmarks.loadtest.arrivals import Arrivals
from benchmarks.loadtest.lengths import parse_lengths
from benchmarks.loadtest.records import Outcome, RequestRecord
from benchmarks.loadtest.schedule import Plan, make_plan
from benchmarks.loadtest.share import Limits, Share, drive
from benchmarks.loadtest.tally import Tally
from benchmarks.loadtest.targets import TargetSpec, open_target
from benchmarks.loadtest.workload import Behaviour, Workload
from inflight.v1 import generation_pb2 as pb
from tests.benchmarks.fake_server import VOCAB_SIZE, Script, fake_server, next_id

CLOCK = 0.15  # seconds that a busy machine may add between a server's write and a client's read


def _plan(num_requests: int, arrivals: Arrivals, num_tokens: int = 5, **options: Any) -> Plan:
    workload = Workload(
        parse_lengths("", "8"),
        parse_lengths("", str(num_tokens)),
        **options,
    )
    return make_plan(workload, arrivals, num_requests, vocab_size=VOCAB_SIZE, seed=5)


async def _send(
    port: int, plan: Plan, *, num_slots: int = 0, limits: Limits | None = None
) -> tuple[list[RequestRecord], float]:
    """Records by index, and the start on time.monotonic."""
    tally, counter = Tally(), itertools.count()
    share = Share(plan.conversations, num_slots=num_slots, limits=limits or Limits())
    async with open_target(TargetSpec("grpc", "127.0.0.1", port)) as target:
        zero = time.monotonic() + 0.01
        take = counter.__next__
        await drive(target, share, tally, [], zero=zero, take=take, stop=asyncio.Event())
    assert tally.num_sent == len(tally.records)
    return sorted(tally.records, key=lambda record: record.index), zero


async def test_times_are_those_of_the_server() -> None:
    script = Script(first=0.1, interval=0.03, num_together=2)
    plan = _plan(6, Arrivals("constant", rate=40.0), num_tokens=7)
    async with fake_server(script) as (server, port):
        records, zero = await _send(port, plan)
    seen_by_prompt = {tuple(seen.request.token_ids.ids): seen for seen in server.seen}
    for record, conversation in zip(records, plan.conversations, strict=True):
        (turn,) = conversation.turns
        assert isinstance(turn.prompt, tuple)
        seen = seen_by_prompt[turn.prompt]
        assert record.scheduled == conversation.due
        assert 0 <= record.lag < CLOCK
        assert 0 <= seen.arrived - (zero + record.sent) < CLOCK
        assert [num_tokens for _, num_tokens in record.chunks] == [2, 2, 2, 1]
        delays = [zero + at - then for (at, _), then in zip(record.chunks, seen.written, strict=True)]
        assert all(0 <= delay < CLOCK for delay in delays)
        assert record.ttft is not None
        assert 0.1 <= record.ttft < 0.1 + 2 * CLOCK
        assert len(record.itls) == 5
        assert sum(record.itls) == pytest.approx(record.chunks[-1][0] - record.chunks[0][0])
        assert 0.19 <= record.e2e < 0.19 + 2 * CLOCK
        assert (record.outcome, record.finish_reason) == ("success", "length")
        assert (record.num_prompt_tokens, record.num_output_tokens, record.num_wanted_tokens) == (8, 7, 7)


_SCRIPTS: dict[int, tuple[Script, Outcome, str]] = {
    0: (Script(), "success", ""),
    1: (Script(status=grpc.StatusCode.RESOURCE_EXHAUSTED), "rejected", "RESOURCE_EXHAUSTED: as scripted"),
    2: (Script(status=grpc.StatusCode.UNAVAILABLE), "rejected", "UNAVAILABLE: as scripted"),
    3: (Script(status=grpc.StatusCode.UNAVAILABLE, num_before=2), "failed", "UNAVAILABLE: as scripted"),
    4: (Script(status=grpc.StatusCode.INTERNAL), "failed", "INTERNAL: as scripted"),
    5: (Script(status=grpc.StatusCode.DEADLINE_EXCEEDED), "failed", "DEADLINE_EXCEEDED: as scripted"),
}


async def test_outcomes_are_told_apart() -> None:
    def script(request: pb.GenerateRequest, number: int) -> Script:
        return _SCRIPTS[number][0]

    async with fake_server(script) as (_, port):
        records, _ = await _send(port, _plan(len(_SCRIPTS), Arrivals("closed")), num_slots=1)
    assert [(record.outcome, record.error or "") for record in records] == [
        (outcome, error) for _, outcome, error in _SCRIPTS.values()
    ]
    assert [len(record.chunks) for record in records] == [5, 0, 0, 2, 0, 0]
    assert records[3].num_output_tokens == 2


@pytest.mark.parametrize(("kind", "outcome"), [("cancel", "cancelled"), ("deadline", "deadline")])
async def test_clients_that_leave(kind: str, outcome: Outcome) -> None:
    behaviour = Behaviour(kind, 0.2)  # type: ignore[arg-type]
    plan = _plan(3, Arrivals("at-once"), num_tokens=1000, behaviours=((1.0, behaviour),))
    async with fake_server(Script(interval=0.02)) as (server, port):
        records, _ = await _send(port, plan)
    for record in records:
        assert (record.outcome, record.behaviour) == (outcome, kind)
        assert 0.2 <= record.e2e < 0.2 + 2 * CLOCK
        assert record.num_output_tokens == len(record.chunks) >= 1
    assert [seen.ended for seen in server.seen] == ["aborted"] * 3


async def test_a_deadline_that_holds_is_a_success() -> None:
    plan = _plan(2, Arrivals("at-once"), behaviours=((1.0, Behaviour("deadline", 30.0)),))
    async with fake_server(Script()) as (_, port):
        records, _ = await _send(port, plan)
    assert [record.outcome for record in records] == ["success"] * 2


async def test_slow_readers_take_their_time() -> None:
    plan = _plan(2, Arrivals("at-once"), behaviours=((1.0, Behaviour("slow", 0.05)),))
    async with fake_server(Script()) as (_, port):
        records, _ = await _send(port, plan)
    for record in records:
        assert record.outcome == "success"
        assert record.e2e >= 0.25
        assert min(record.itls) >= 0.05


async def test_a_closed_loop_has_as_many_as_it_should() -> None:
    async with fake_server(Script(first=0.05)) as (server, port):
        records, _ = await _send(port, _plan(9, Arrivals("closed", concurrency=3)), num_slots=3)
    assert [record.outcome for record in records] == ["success"] * 9
    changes = sorted(
        [(record.sent, 1) for record in records] + [(record.ended, -1) for record in records],
        key=lambda change: (change[0], change[1]),
    )
    assert max(itertools.accumulate(change for _, change in changes)) == 3
    assert all(0 <= record.lag < CLOCK for record in records)
    assert len(server.seen) == 9


async def test_turns_replay_the_answers() -> None:
    plan = _plan(5, Arrivals("at-once"), num_tokens=4, num_turns=3, think_seconds=0.1)
    async with fake_server(Script(num_together=3)) as (server, port):
        records, _ = await _send(port, plan)
    answer = tuple(next_id(index) for index in range(4))
    prompts = {tuple(seen.request.token_ids.ids) for seen in server.seen}
    expected = set()
    for conversation in plan.conversations:
        history: tuple[int, ...] = ()
        for turn in conversation.turns:
            assert isinstance(turn.prompt, tuple)
            expected.add(history + turn.prompt)
            history += turn.prompt + answer
    assert prompts == expected
    assert [record.turn for record in records] == [0, 1, 2, 0, 1]
    for before, after in itertools.pairwise(records[:3]):
        assert after.scheduled >= before.ended + 0.1 - 1e-3
        assert after.sent >= after.scheduled
    assert [record.num_prompt_tokens for record in records[:3]] == [8, 20, 32]


async def test_a_conversation_ends_with_a_turn_that_failed() -> None:
    def script(request: pb.GenerateRequest, number: int) -> Script:
        return Script(status=grpc.StatusCode.INTERNAL) if number == 1 else Script()

    async with fake_server(script) as (_, port):
        records, _ = await _send(port, _plan(4, Arrivals("at-once"), num_turns=4))
    assert [record.outcome for record in records] == ["success", "failed"]


async def test_what_outlasts_the_grace_is_incomplete() -> None:
    async with fake_server(Script(first=0.01, interval=60.0)) as (server, port):
        records, _ = await _send(port, _plan(3, Arrivals("at-once")), limits=Limits(grace=0.3))
    assert [(record.outcome, len(record.chunks)) for record in records] == [("incomplete", 1)] * 3
    assert all(record.ended >= 0.3 for record in records)
    assert [seen.ended for seen in server.seen] == ["aborted"] * 3


@pytest.mark.parametrize("num_slots", [0, 2])
async def test_nothing_is_sent_after_max_seconds(num_slots: int) -> None:
    arrivals = Arrivals("closed", concurrency=2) if num_slots else Arrivals("constant", rate=50.0)
    async with fake_server(Script(first=0.02)) as (_, port):
        records, _ = await _send(
            port, _plan(1000, arrivals), num_slots=num_slots, limits=Limits(max_seconds=0.3)
        )
    assert 1 <= len(records) < 100
    assert all(record.outcome == "success" and record.sent < 0.3 for record in records)


async def test_options_reach_the_server() -> None:
    options: dict[str, Any] = {
        "ignore_eos": True,
        "sampling": ((1.0, (("temperature", 0.5), ("top_k", 7))),),
    }
    async with fake_server(Script()) as (server, port):
        await _send(port, _plan(1, Arrivals("at-once"), **options))
    (seen,) = server.seen
    assert seen.request.stopping.ignore_eos
    assert seen.request.stopping.max_new_tokens == 5
    assert (seen.request.sampling.temperature, seen.request.sampling.top_k) == (0.5, 7)
