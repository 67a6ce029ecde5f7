"""Requests with several outputs: one computes the prompt, the others are forked from it."""

import pytest

from scheduler import FinishReason
from tests.scheduler.conftest import MakeHarness
from tests.scheduler.fake_device import FakeSampling


def test_the_prompt_is_computed_once(make_harness: MakeHarness) -> None:
    harness = make_harness(budget=8, max_num_seqs=4)
    harness.add("a", 10, 3, num_outputs=3)
    first, second, third, *_ = [harness.step() for _ in range(5)]
    assert first is not None
    assert second is not None
    assert third is not None
    assert [(chunk.row, len(chunk.token_ids)) for chunk in (*first.chunks, *second.chunks)] == [
        (0, 8),
        (0, 2),
    ]
    # The first output decodes. The others compute the last prompt token, and sample their own first token.
    assert third.decode_rows == (0,)
    assert [(chunk.row, chunk.start, len(chunk.token_ids)) for chunk in third.chunks] == [
        (1, 9, 1),
        (2, 9, 1),
    ]
    assert [(new.row, new.num_computed_tokens, new.output_index) for new in third.new_rows] == [
        (1, 9, 1),
        (2, 9, 2),
    ]
    # All three write into the block they share: two copies, and the last one keeps it.
    assert [source for source, _ in third.block_copies] == [2, 2]
    assert [(update.row, update.start) for update in third.new_blocks] == [(0, 2)]
    harness.drain()
    harness.check_all_done()
    assert len({tuple(tokens) for tokens in harness.outputs.values()}) == 3
    assert harness.scheduler.stats().num_prompt_tokens == 10
    assert harness.scheduler.stats().num_chunk_tokens == 12


def test_all_outputs_know_how_much_of_the_prompt_was_cached(make_harness: MakeHarness) -> None:
    harness = make_harness()
    prompt = list(range(9))
    harness.add("first", prompt, 1)
    harness.drain()
    harness.add("a", prompt, 2, num_outputs=2)
    harness.drain()
    assert [harness.ends["a", index].num_cached_tokens for index in range(2)] == [8, 8]
    harness.check_all_done()


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize("num_prompt_tokens", [1, 2, 4, 5, 8, 9])
@pytest.mark.parametrize("windows", [(None,), (3,), (None, 2)])
def test_prompts_that_end_anywhere_in_a_block(
    make_harness: MakeHarness, in_flight: int, num_prompt_tokens: int, windows: tuple[int | None, ...]
) -> None:
    harness = make_harness(in_flight=in_flight, windows=windows)
    harness.add("a", num_prompt_tokens, 6, num_outputs=4)
    harness.add("single token", num_prompt_tokens, 1, num_outputs=2)
    harness.drain()
    harness.check_all_done()


def test_all_outputs_need_a_row_before_the_first_runs(make_harness: MakeHarness) -> None:
    harness = make_harness(max_num_seqs=4)
    harness.add("a", 3, 6, num_outputs=2)
    harness.add("b", 3, 4, num_outputs=3)
    harness.add("c", 3, 4)
    harness.step()
    stats = harness.scheduler.stats()
    assert (stats.num_running, stats.num_waiting) == (2, 4)  # both outputs of a: forked as soon as launched
    harness.drain()
    assert harness.ends["a", 1].first_scheduled_time == harness.ends["a", 0].first_scheduled_time
    first_scheduled_time = harness.ends["b", 0].first_scheduled_time
    assert first_scheduled_time is not None
    assert first_scheduled_time > harness.ends["a", 0].finished_time
    harness.check_all_done()


def test_rows_are_kept_for_outputs_to_be_forked(make_harness: MakeHarness) -> None:
    harness = make_harness(max_num_seqs=3, budget=4)
    harness.add("a", 10, 2, num_outputs=3)
    harness.add("b", 1, 2)
    for _ in range(3):
        harness.step()
        assert harness.scheduler.stats().num_waiting >= 1
    assert harness.scheduler.stats().num_running == 3
    harness.drain()
    harness.check_all_done()


@pytest.mark.parametrize("in_flight", [1, 2])
def test_a_leader_preempted_before_the_fork_starts_again(make_harness: MakeHarness, in_flight: int) -> None:
    harness = make_harness(max_num_seqs=2, budget=4, policy="priority", in_flight=in_flight)
    harness.add("low", 22, 4, num_outputs=2)
    harness.step()
    harness.add("high", 3, 4, priority=1)
    harness.drain()
    assert harness.ends["low", 0].num_preemptions == 1
    assert harness.ends["low", 1].num_preemptions == 0
    harness.check_all_done()


def test_outputs_preempted_after_the_fork_resume_alone(make_harness: MakeHarness) -> None:
    harness = make_harness(num_blocks=7, max_num_seqs=4)
    harness.add("a", 6, 12, num_outputs=4)
    harness.drain()
    assert harness.scheduler.stats().num_preemptions > 0
    assert harness.ends["a", 0].num_preemptions == 0
    harness.check_all_done()


def test_an_output_without_room_for_its_copy_yields(make_harness: MakeHarness) -> None:
    harness = make_harness(num_blocks=3)
    harness.add("a", 8, 3, num_outputs=2)
    harness.step()
    assert harness.scheduler.stats().num_running == 2
    step = harness.step()  # the first output takes the last block
    assert step is not None
    assert (step.decode_rows, step.chunks) == ((0,), ())
    harness.drain()
    assert (harness.ends["a", 0].num_preemptions, harness.ends["a", 1].num_preemptions) == (0, 1)
    harness.check_all_done()


@pytest.mark.parametrize("num_steps", range(6))
@pytest.mark.parametrize("in_flight", [1, 2])
def test_an_abort_ends_all_outputs(make_harness: MakeHarness, num_steps: int, in_flight: int) -> None:
    harness = make_harness(budget=4, max_num_seqs=4, in_flight=in_flight)
    harness.add("a", 10, 9, num_outputs=3)
    for _ in range(num_steps):
        harness.step()
    assert harness.scheduler.abort("a", FinishReason.DEADLINE)
    harness.step()
    assert [summary.finish_reason for summary in harness.ends.values()] == [FinishReason.DEADLINE] * 3
    harness.drain()
    harness.check_all_done()


@pytest.mark.parametrize("num_steps", range(5))
@pytest.mark.parametrize("output_index", [0, 1, 2])
def test_one_output_can_end_before_the_others(
    make_harness: MakeHarness, num_steps: int, output_index: int
) -> None:
    """Also the leader: the next output takes over, from the start if it has to."""
    harness = make_harness(budget=4, max_num_seqs=4)
    harness.add("a", 10, 5, num_outputs=3)
    for _ in range(num_steps):
        harness.step()
    assert harness.scheduler.finish("a", output_index)
    assert harness.scheduler.finish("a", output_index), "it ends only at the next step"
    harness.step()
    assert not harness.scheduler.finish("a", output_index)
    harness.drain()
    tokens = harness.outputs.pop(("a", output_index))
    assert harness.ends.pop(("a", output_index)).finish_reason is FinishReason.STOP
    assert tokens == harness.expected("a", output_index)[: len(tokens)]
    for (_, index), summary in harness.ends.items():
        assert summary.finish_reason is FinishReason.LENGTH
        assert harness.outputs["a", index] == harness.expected("a", index)
    assert harness.kv.num_free_blocks == harness.kv.num_blocks


def test_an_output_without_a_distribution_leaves_the_others(make_harness: MakeHarness) -> None:
    harness = make_harness()
    harness.add("a", 5, 5, num_outputs=2, sampling=FakeSampling(error_after=0))
    harness.add("b", 5, 5, num_outputs=2)
    harness.drain()
    assert {key: end.finish_reason.name for key, end in harness.ends.items()} == {
        ("a", 0): "ERROR",
        ("a", 1): "ERROR",
        ("b", 0): "LENGTH",
        ("b", 1): "LENGTH",
    }
    harness.check_all_done()
