"""However requests are batched, chunked, preempted, forked, cached and pipelined: their tokens are those that
each would have got alone."""

import random

import pytest

from scheduler import FinishReason
from tests.scheduler.conftest import Harness, MakeHarness, make_prompt
from tests.scheduler.fake_device import VOCABULARY, FakeSampling

WINDOWS = [(None,), (6,), (None, 5), (1,), (9, None, 2)]


def add_random(harness: Harness, rng: random.Random, name: str) -> None:
    shared = make_prompt("system prompt", rng.choice([0, 0, 7, 16, 25]))
    sampling = FakeSampling(
        seed=rng.randrange(3),
        stop_token_ids=tuple(rng.sample(range(VOCABULARY), rng.choice([0, 2]))),
        error_after=rng.choice([None] * 9 + [3]),
    )
    harness.add(
        name,
        shared + make_prompt(rng.choice("xyz"), rng.randint(1, 20)),
        rng.randint(1, 40),
        num_outputs=rng.choice([1, 1, 1, 2, 4]),
        priority=rng.randrange(3),
        sampling=sampling,
    )


@pytest.mark.parametrize("in_flight", [1, 2, 3])
@pytest.mark.parametrize("windows", WINDOWS)
@pytest.mark.parametrize("num_blocks", [24, 80])
@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_tokens_are_those_of_each_request_alone(
    make_harness: MakeHarness,
    in_flight: int,
    windows: tuple[int | None, ...],
    num_blocks: int,
    policy: str,
) -> None:
    rng = random.Random(repr((in_flight, windows, num_blocks, policy)))
    harness = make_harness(
        num_blocks * len(windows),
        windows=windows,
        policy=policy,
        in_flight=in_flight,
        max_num_seqs=rng.choice([4, 9]),
        budget=rng.choice([9, 30]),
        prefix_caching=rng.random() < 0.8,
    )
    for index in range(24):
        add_random(harness, rng, str(index))
        for _ in range(rng.randrange(4)):
            harness.step()
        if rng.random() < 0.15:
            harness.scheduler.abort(str(rng.randint(0, index)))
    harness.drain()
    harness.check_all_done()
    reasons = {summary.finish_reason for summary in harness.ends.values()}
    assert {FinishReason.LENGTH, FinishReason.STOP} <= reasons


def test_the_random_runs_preempt_and_hit(make_harness: MakeHarness) -> None:
    """Or they would show little."""
    rng = random.Random(0)
    harness = make_harness(24, in_flight=2, max_num_seqs=9, budget=30)
    for index in range(24):
        add_random(harness, rng, str(index))
    harness.drain()
    harness.check_all_done()
    stats = harness.scheduler.stats()
    assert stats.num_preemptions > 5
    assert stats.num_prefix_hit_tokens > 50
