"""Who has to go when blocks or rows run out, who may come in, and that it ends."""

import pytest

from tests.scheduler.conftest import Harness, MakeHarness, make_prompt
from tests.scheduler.fake_device import FakeSampling


def decode_until(harness: Harness, request_id: str, num_tokens: int) -> None:
    while len(harness.outputs[request_id, 0]) < num_tokens:
        harness.step()


@pytest.mark.parametrize("in_flight", [1, 2])
def test_who_needs_a_block_takes_it_from_the_worst_ranked(make_harness: MakeHarness, in_flight: int) -> None:
    harness = make_harness(num_blocks=7, in_flight=in_flight)
    harness.add("old", 4, 12)  # four blocks in the end, and three for each of the others
    harness.add("mid", 3, 9)
    harness.add("new", 3, 9)
    harness.drain()
    preemptions = {request_id: summary.num_preemptions for (request_id, _), summary in harness.ends.items()}
    assert preemptions == {"old": 0, "mid": 0, "new": 1}
    stats = harness.scheduler.stats()
    assert stats.num_preemptions == 1
    assert stats.num_preempted_tokens > 0
    harness.check_all_done()


def test_the_worst_ranked_yields_itself(make_harness: MakeHarness) -> None:
    harness = make_harness(num_blocks=4, prefix_caching=False)
    harness.add("old", 5, 6)
    harness.add("new", 3, 9)
    decode_until(harness, "new", 2)
    # Both hold two blocks, all there are. Old's cover its 10 computed tokens only up to 8.
    decode_until(harness, "old", 5)
    assert harness.scheduler.stats().num_preemptions == 1
    assert harness.scheduler.stats().num_waiting == 1
    harness.drain()
    assert harness.ends["old", 0].num_preemptions == 0
    harness.check_all_done()


def test_a_preempted_sequence_resumes_from_the_prefix_cache(make_harness: MakeHarness) -> None:
    harness = make_harness(num_blocks=7, budget=32)
    harness.add("old", 8, 16)
    harness.add("new", 8, 8)
    decode_until(harness, "old", 9)
    assert harness.scheduler.stats().num_preemptions == 1
    harness.drain()
    resumed = next(step for step in harness.device.steps[1:] if step.new_rows)
    (new_row,) = resumed.new_rows
    assert new_row.num_generated_tokens == 5
    assert new_row.num_computed_tokens >= 4, "nothing of it was found"
    (chunk,) = resumed.chunks
    assert chunk.samples
    assert harness.ends["new", 0].num_cached_tokens == 0, "its own blocks are no hit of its prompt"
    harness.check_all_done()


def test_a_preempted_sequence_waits_for_its_pending_token(make_harness: MakeHarness) -> None:
    harness = make_harness(num_blocks=4, in_flight=3)
    harness.add("old", 8, 5)
    harness.add("new", 4, 5)
    harness.launch()  # both prompts
    step = harness.launch()
    assert step is not None
    assert step.decode_rows == (0,), "new yields, with its first token pending"
    harness.add("late", 1, 1)  # there is room for it, but it must not overtake
    step = harness.launch()
    assert step is not None
    assert (step.decode_rows, step.chunks) == ((0,), ())
    harness.read()
    assert len(harness.outputs["new", 0]) == 1
    harness.drain()
    assert harness.ends["new", 0].num_preemptions == 1
    harness.check_all_done()


def test_a_planned_decode_is_dropped_when_a_chunk_needs_its_blocks(make_harness: MakeHarness) -> None:
    harness = make_harness(num_blocks=8, budget=4, max_num_seqs=4, policy="priority")
    harness.add("low", 2, 20)
    decode_until(harness, "low", 5)
    harness.add("high", 14, 3, num_outputs=3, priority=1)
    for _ in range(5):
        harness.step()  # its prompt takes four blocks; low took the seventh
    step = harness.step()  # high's first output takes the last one for a copy, the second one needs another
    assert step is not None
    assert step.decode_rows == (1,)
    assert [chunk.row for chunk in step.chunks] == [2, 3]
    assert harness.scheduler.stats().num_waiting == 1
    harness.drain()
    assert {key: summary.num_preemptions for key, summary in harness.ends.items() if key[0] == "high"} == {
        ("high", index): 0 for index in range(3)
    }
    harness.check_all_done()


def test_a_planned_chunk_is_dropped_when_a_better_one_takes_the_row(make_harness: MakeHarness) -> None:
    harness = make_harness(budget=8, max_num_seqs=1, policy="priority")
    harness.add("low", 12, 2)
    harness.step()
    harness.add("high", 7, 2, priority=1)
    step = harness.step()
    assert step is not None
    assert [(chunk.start, len(chunk.token_ids)) for chunk in step.chunks] == [(0, 7)], (
        "all of the budget is back"
    )
    harness.drain()
    harness.check_all_done()


@pytest.mark.parametrize("in_flight", [1, 2])
def test_under_priority_a_waiting_sequence_preempts_lower_ones(
    make_harness: MakeHarness, in_flight: int
) -> None:
    harness = make_harness(num_blocks=8, policy="priority", in_flight=in_flight)
    for name in ("a", "b"):
        harness.add(name, 8, 8)
    decode_until(harness, "b", 2)
    harness.add("urgent", 12, 4, priority=5)
    decode_until(harness, "urgent", 1)
    assert harness.scheduler.stats().num_preemptions >= 1
    harness.drain()
    assert harness.ends["urgent", 0].num_preemptions == 0
    assert harness.ends["b", 0].num_preemptions >= harness.ends["a", 0].num_preemptions
    assert harness.ends["urgent", 0].finished_time < harness.ends["a", 0].finished_time
    harness.check_all_done()


def test_under_priority_a_waiting_sequence_takes_a_row(make_harness: MakeHarness) -> None:
    harness = make_harness(max_num_seqs=2, policy="priority")
    for name in ("a", "b", "c"):
        harness.add(name, 3, 8)
    decode_until(harness, "b", 2)
    harness.add("urgent", 3, 2, priority=1)
    step = harness.step()
    assert step is not None
    assert [new.num_prompt_tokens for new in step.new_rows] == [3]
    assert len(step.decode_rows) == 1, "the victim is not in the step any more"
    assert harness.scheduler.stats().num_preemptions == 1
    harness.drain()
    assert harness.ends["b", 0].num_preemptions == 1
    assert harness.ends["b", 0].finished_time < harness.ends["c", 0].finished_time
    harness.check_all_done()


def test_equals_do_not_preempt_each_other(make_harness: MakeHarness) -> None:
    harness = make_harness(max_num_seqs=2, policy="priority")
    for name in ("a", "b"):
        harness.add(name, 3, 8, priority=1)
    harness.step()
    harness.add("same", 3, 8, priority=1)
    harness.add("less", 3, 8, priority=0)
    harness.drain()
    assert harness.scheduler.stats().num_preemptions == 0
    order = sorted(harness.ends, key=lambda key: harness.ends[key].finished_time)
    assert order[-1] == ("less", 0)


def test_fcfs_ignores_priorities(make_harness: MakeHarness) -> None:
    harness = make_harness(max_num_seqs=1)
    harness.add("first", 3, 8, priority=0)
    harness.add("second", 3, 8, priority=9)
    harness.drain()
    assert harness.ends["first", 0].finished_time < harness.ends["second", 0].finished_time
    assert harness.scheduler.stats().num_preemptions == 0


def test_nobody_overtakes_one_that_does_not_fit(make_harness: MakeHarness) -> None:
    harness = make_harness(num_blocks=8)
    harness.add("first", 20, 8)
    harness.add("large", 20, 2)
    harness.add("small", 1, 2)
    decode_until(harness, "first", 2)
    assert harness.scheduler.stats().num_waiting == 2
    harness.drain()
    assert harness.ends["large", 0].first_scheduled_time is not None
    assert harness.ends["small", 0].first_scheduled_time is not None
    assert harness.ends["large", 0].first_scheduled_time <= harness.ends["small", 0].first_scheduled_time
    harness.check_all_done()


def test_admission_leaves_each_running_sequence_a_block(make_harness: MakeHarness) -> None:
    harness = make_harness(num_blocks=5)
    harness.add("a", 3, 9)
    harness.add("b", 3, 9)
    harness.add("c", 3, 9)  # its block is free, and one for each of the others
    harness.add("d", 3, 9)  # would leave one for the three before it
    harness.step()
    assert harness.scheduler.stats().num_running == 3
    harness.drain()
    harness.check_all_done()


def test_a_refused_prompt_is_not_looked_up_again_for_nothing(
    make_harness: MakeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = make_harness(num_blocks=8)
    lookups: list[int] = []
    add = harness.kv.add

    def counted(sequence_id: int, token_ids: list[int]) -> int:
        lookups.append(sequence_id)
        return add(sequence_id, token_ids)

    monkeypatch.setattr(harness.kv, "add", counted)
    harness.add("first", 8, 16)
    harness.add("large", 28, 2)
    decode_until(harness, "first", 15)
    assert lookups.count(1) == 1
    harness.drain()
    assert lookups.count(1) == 2
    harness.check_all_done()


def test_admission_leaves_a_block_for_each_output_to_be_forked(make_harness: MakeHarness) -> None:
    harness = make_harness(num_blocks=12, budget=8)
    harness.add("a", 14, 2, num_outputs=3)  # 4 blocks at first
    harness.add("b", 17, 2)  # 5 blocks, and one for each of the three
    harness.add("c", 1, 2)
    harness.step()
    harness.step()
    assert harness.scheduler.stats().num_running == 4
    harness.drain()
    assert harness.scheduler.stats().num_preemptions == 0

    harness = make_harness(num_blocks=11, budget=8)
    harness.add("a", 14, 2, num_outputs=3)
    harness.add("b", 17, 2)
    harness.step()
    harness.step()
    assert harness.scheduler.stats().num_running == 3, (
        "b waits: it would take the last block from the outputs"
    )
    harness.drain()
    assert harness.scheduler.stats().num_preemptions == 0
    harness.check_all_done()


def test_admission_leaves_a_block_in_each_layer_group(make_harness: MakeHarness) -> None:
    harness = make_harness(num_blocks=8, windows=(None, 50))
    harness.add("a", 3, 3)
    harness.add("b", 3, 3)
    harness.add("c", 3, 3)  # four blocks are free, and six needed: two for each of them
    harness.step()
    assert harness.scheduler.stats().num_running == 2
    harness.drain()
    harness.check_all_done()


def test_windows_give_back_blocks_while_a_prompt_is_computed(make_harness: MakeHarness) -> None:
    harness = make_harness(num_blocks=20, windows=(4,), budget=8)
    harness.add("a", 40, 2)
    harness.step()
    free = [harness.scheduler.stats().num_free_blocks]
    for _ in range(4):
        harness.step()
        free.append(harness.scheduler.stats().num_free_blocks)
    assert free == [10, 11, 13, 15, 17]
    harness.drain()
    harness.check_all_done()


def test_what_a_resumed_sequence_computes_again_is_shared_at_once(make_harness: MakeHarness) -> None:
    harness = make_harness(num_blocks=6, budget=24, policy="priority")
    prompt = list(range(13))
    harness.add("low", prompt, 4)
    harness.step()
    harness.add("high", 20, 2, priority=1)
    decode_until(harness, "high", 2)
    decode_until(harness, "low", 2)
    assert harness.ends["high", 0].num_preemptions == 0
    harness.scheduler.abort("low")
    harness.add("same prompt", prompt, 2)
    harness.drain()
    assert harness.ends["low", 0].num_preemptions == 1
    assert harness.ends["same prompt", 0].num_cached_tokens == 12
    harness.check_all_done()


def test_a_prompt_that_fits_by_its_window_alone_is_admitted_alone(make_harness: MakeHarness) -> None:
    """40 tokens are 10 blocks of a pool of 9, but a window of 8 and chunks of 8 never hold more than 5."""
    harness = make_harness(num_blocks=9, windows=(8,), budget=8, max_num_seqs=4)
    harness.add("long", 40, 6)
    harness.add("short", 2, 6)
    harness.step()
    harness.step()
    assert harness.scheduler.stats().num_running == 1
    decode_until(harness, "long", 1)
    harness.step()
    assert harness.scheduler.stats().num_running == 2
    harness.drain()
    assert harness.scheduler.stats().num_preemptions == 0
    harness.check_all_done()


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize("prefix_caching", [True, False])
@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_half_the_pool_still_finishes_everything(
    make_harness: MakeHarness, in_flight: int, prefix_caching: bool, policy: str
) -> None:
    """The bound: between two preemptions of a sequence, it and better-ranked ones have grown by more blocks
    of new tokens than it left free for them, so by two at least. One that enters with `max_new_tokens`
    crosses into a new block at most `max_new_tokens / block_size + 1` times in its life."""
    harness = make_harness(
        num_blocks=40,
        max_num_seqs=12,
        budget=32,
        in_flight=in_flight,
        prefix_caching=prefix_caching,
        policy=policy,
    )
    lengths = [(4 + 5 * index % 17, 10 + 7 * index % 23) for index in range(12)]
    for index, (num_prompt_tokens, max_new_tokens) in enumerate(lengths):
        harness.add(str(index), num_prompt_tokens, max_new_tokens)
    assert sum(-(-sum(length) // 4) for length in lengths) > 2 * 40, "the pool is no more than half the need"
    harness.drain()
    assert harness.scheduler.stats().num_preemptions > 0, "nothing was short"
    num_crossings = 0
    for index, (_, max_new_tokens) in enumerate(lengths):
        num_crossings += max_new_tokens // 4 + 1
        assert harness.ends[str(index), 0].num_preemptions <= num_crossings // 2
    assert harness.ends["0", 0].num_preemptions == 0
    assert max(summary.num_preemptions for summary in harness.ends.values()) <= 4
    harness.check_all_done()


def test_shared_prefixes_count_once(make_harness: MakeHarness) -> None:
    """Eight requests over one prompt of 8 blocks run together in a pool of 20."""
    harness = make_harness(num_blocks=20, max_num_seqs=8)
    prompt = make_prompt("system", 33)
    harness.add("0", prompt, 1)
    harness.drain()
    for index in range(1, 6):
        harness.add(str(index), prompt, 3, sampling=FakeSampling(seed=index))
    harness.step()
    assert harness.scheduler.stats().num_running == 5
    harness.drain()
    harness.check_all_done()
