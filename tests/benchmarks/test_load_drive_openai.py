"""The OpenAI target against a real HTTP server: the same plan, the same records."""

import asyncio
import time
from typing import Any

import pytest

from benchmarks.loadtest.arrivals import Arrivals
from benchmarks.loadtest.errors import OptionError, TargetError
from benchmarks.loadtest.lengths import parse_lengths
from benchmarks.loadtest.records import Outcome, RequestRecord
from benchmarks.loadtest.schedule import make_plan
from benchmarks.loadtest.share import Share, drive
from benchmarks.loadtest.tally import Tally
from benchmarks.loadtest.targets import TargetSpec, ask_model, open_target, parse_target
from benchmarks.loadtest.workload import Behaviour, Workload
from tests.benchmarks.fake_openai import Reply, fake_openai, tokens


async def _send(port: int, num_requests: int, body: dict[str, Any], **options: Any) -> list[RequestRecord]:
    workload = Workload(parse_lengths("", "3"), parse_lengths("", "4"), ignore_eos=True, **options)
    plan = make_plan(workload, Arrivals("closed"), num_requests, vocab_size=50, seed=1)
    tally, counter = Tally(), iter(range(99))
    spec = TargetSpec("openai", "127.0.0.1", port, model="served", body=body)
    share = Share(plan.conversations, num_slots=1)
    async with open_target(spec) as target:
        zero = time.monotonic()
        take = counter.__next__
        await drive(target, share, tally, [], zero=zero, take=take, stop=asyncio.Event())
    return tally.records


async def test_tokens_and_usage() -> None:
    events = tokens([" a", " b", " c", " d"])
    async with fake_openai(lambda body: Reply(events, delay=0.02)) as (asked, port):
        records = await _send(port, 3, {"extra": 1})
    for record in records:
        assert (record.outcome, record.finish_reason) == ("success", "length")
        assert [count for _, count in record.chunks] == [1, 1, 1, 1]
        assert record.ttft is not None
        assert record.ttft >= 0.02
        assert min(record.itls) >= 0.005
        assert (record.num_prompt_tokens, record.num_output_tokens) == (3, 4)
    assert asked.num_connections == 1  # kept from one request to the next
    for body in asked.bodies:
        assert body == {
            "model": "served",
            "max_tokens": 4,
            "stream": True,
            "ignore_eos": True,
            "extra": 1,
            "stream_options": {"include_usage": True},
            "temperature": 0.0,
            "prompt": body["prompt"],
        }
        assert len(body["prompt"]) == 3


async def test_several_tokens_in_a_message_are_counted_by_usage() -> None:
    events = [
        {"choices": [{"text": " a b", "finish_reason": None}], "usage": {"completion_tokens": 2}},
        {"choices": [{"text": " c d e", "finish_reason": "stop"}], "usage": {"completion_tokens": 5}},
    ]
    async with fake_openai(lambda body: Reply(events)) as (_, port):
        (record,) = await _send(port, 1, {})
    assert [count for _, count in record.chunks] == [2, 3]
    assert record.finish_reason == "stop"


@pytest.mark.parametrize(
    ("reply", "outcome", "error"),
    [
        (Reply(status=429), "rejected", "HTTP 429: busy"),
        (Reply(status=503), "rejected", "HTTP 503: busy"),
        (Reply(status=500), "failed", "HTTP 500: busy"),
        (Reply([{"error": {"message": "broken"}}]), "failed", "{'message': 'broken'}"),
        (Reply(tokens([" a"])[1:]), "failed", "the stream ended without a finish_reason"),
        (Reply(tokens([" a"]), is_cut=True), "failed", "IncompleteReadError"),
    ],
)
async def test_outcomes_are_told_apart(reply: Reply, outcome: Outcome, error: str) -> None:
    async with fake_openai(lambda body: reply) as (_, port):
        records = await _send(port, 2, {})
    for record in records:
        assert record.outcome == outcome
        assert (record.error or "").startswith(error)


@pytest.mark.parametrize(("kind", "outcome"), [("cancel", "cancelled"), ("deadline", "deadline")])
async def test_clients_that_leave(kind: str, outcome: Outcome) -> None:
    behaviour = Behaviour(kind, 0.2)  # type: ignore[arg-type]
    async with fake_openai(lambda body: Reply(tokens([" a"] * 500), delay=0.01)) as (asked, port):
        records = await _send(port, 2, {}, behaviours=((1.0, behaviour),))
    for record in records:
        assert record.outcome == outcome
        assert record.e2e >= 0.2
        assert record.num_output_tokens == len(record.chunks) >= 1
    assert asked.num_connections == 2  # one that was left is not used again


async def test_turns_replay_ids() -> None:
    events = [{"choices": [{"text": " a", "token_ids": [40, 41], "finish_reason": "length"}]}]
    async with fake_openai(lambda body: Reply(events)) as (asked, port):
        await _send(port, 2, {}, num_turns=2)
    first, second = asked.bodies
    assert first["return_token_ids"]
    assert second["prompt"][:5] == [*first["prompt"], 40, 41]
    assert len(second["prompt"]) == 8


async def test_turns_replay_text() -> None:
    async with fake_openai(lambda body: Reply(tokens([" a", " b"]))) as (asked, port):
        await _send(port, 2, {}, num_turns=2, as_text=True)
    first, second = asked.bodies
    assert second["prompt"].startswith(first["prompt"] + " a b ")
    assert len(second["prompt"].split()) == 8


async def test_what_is_served() -> None:
    async with fake_openai(lambda body: Reply()) as (_, port):
        spec = parse_target(f"openai+http://127.0.0.1:{port}")
        model = await asyncio.to_thread(ask_model, spec, 5.0)
        assert (model.name, model.vocab_size, model.max_model_len) == ("served", 0, 64)
        other = TargetSpec("openai", "127.0.0.1", port, model="other")
        with pytest.raises(TargetError, match="--model other"):
            await asyncio.to_thread(ask_model, other, 5.0)


@pytest.mark.parametrize("url", ["http://h:1", "grpc://h", "grpc://h:1/x", "h:1"])
def test_targets_that_are_none(url: str) -> None:
    with pytest.raises(OptionError, match="--target"):
        parse_target(url)
