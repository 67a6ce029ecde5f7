"""Requests for beam search: what goes to the device, how they give way, and how they end."""

from collections import Counter

import pytest

from kvcache.config import KVCacheConfig
from kvcache.manager import KVCacheManager
from scheduler import FinishReason, Request, Scheduler, SchedulerConfig, StepInput
from scheduler.beams import BeamParams
from tests.scheduler.conftest import Harness, MakeHarness
from tests.scheduler.fake_device import FakeSampling

STOPS = (3, 14, 15)


def steps_of(harness: Harness) -> list[StepInput]:
    harness.drain()
    harness.check_all_done()
    return harness.device.steps


def test_the_prompt_is_computed_once(make_harness: MakeHarness) -> None:
    harness = make_harness(budget=8)
    harness.add("a", 10, 3, num_outputs=2, beam=BeamParams(4))
    first, second, *others = steps_of(harness)
    assert [(chunk.row, len(chunk.token_ids)) for chunk in (*first.chunks, *second.chunks)] == [
        (0, 8),
        (0, 2),
    ]
    assert [new.row for new in first.new_rows] == [0]
    assert len(others) == 2, "the last token of a hypothesis is never computed"
    for index, step in enumerate(others):
        assert step.decode_rows == ()
        assert sorted(chunk.row for chunk in step.chunks) == [0, 1, 2, 3]
        assert all(chunk.start == 10 + index and chunk.samples for chunk in step.chunks)
        assert all(len(chunk.token_ids) == 1 for chunk in step.chunks)
        for new, chunk in zip(step.new_rows, step.chunks, strict=True):
            assert (new.row, new.num_computed_tokens) == (chunk.row, 10 + index)
            assert new.token_ids[-1:] == chunk.token_ids
            assert new.num_generated_tokens == 1 + index


def test_no_step_of_a_beam_is_launched_before_the_last_is_read(make_harness: MakeHarness) -> None:
    harness = make_harness(in_flight=2)
    harness.add("a", 5, 4, beam=BeamParams(2))
    assert harness.launch() is not None
    assert harness.launch() is None
    harness.read()
    assert harness.launch() is not None
    assert harness.launch() is None
    harness.drain()
    harness.check_all_done()


@pytest.mark.parametrize("num_prompt_tokens", [1, 4, 6, 8])
def test_only_a_last_block_that_is_not_full_is_copied(
    make_harness: MakeHarness, num_prompt_tokens: int
) -> None:
    """A parent with n children is copied n - 1 times, one of them keeps its block; none if that is full."""
    harness = make_harness()
    harness.add("a", num_prompt_tokens, 12, beam=BeamParams(4))
    _, *steps = steps_of(harness)
    assert any(step.block_copies for step in steps)
    for step in steps:
        lasts = [new.token_ids[:-1] for new in step.new_rows]
        num_shared = len(lasts) - len(set(lasts))
        is_full = len(lasts[0]) % 4 == 0
        assert len(step.block_copies) == (0 if is_full else num_shared)
        held = [new.block_ids[0] for new in step.new_rows]
        assert len({table[len(last) // 4] for table, last in zip(held, lasts, strict=True)}) == len(held)


def test_beams_share_what_they_have_in_common(make_harness: MakeHarness) -> None:
    """Four beams over a prompt of 8 blocks hold little more than one: a pool of 14 blocks does."""
    harness = make_harness(num_blocks=14, budget=40)
    harness.add("a", 32, 6, beam=BeamParams(4))
    harness.drain()
    assert harness.scheduler.stats().num_preemptions == 0
    harness.check_all_done()


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize("windows", [(None,), (5,), (None, 3)])
@pytest.mark.parametrize("prefix_caching", [False, True])
def test_a_pool_that_holds_one_beam_is_enough(
    make_harness: MakeHarness, in_flight: int, windows: tuple[int | None, ...], prefix_caching: bool
) -> None:
    num_blocks = 6 * len(windows)
    harness = make_harness(num_blocks, windows=windows, in_flight=in_flight, prefix_caching=prefix_caching)
    harness.add("a", 9, 14, num_outputs=3, beam=BeamParams(3, stop_token_ids=STOPS))
    harness.add("b", 9, 14, num_outputs=2, beam=BeamParams(4, early_stopping="never"))
    harness.add("c", 9, 14)
    harness.drain()
    assert harness.scheduler.stats().num_preemptions > 0
    harness.check_all_done()


def test_a_better_request_takes_rows_from_beams(make_harness: MakeHarness) -> None:
    harness = make_harness(max_num_seqs=4, policy="priority")
    harness.add("low", 6, 20, num_outputs=4, beam=BeamParams(4))
    for _ in range(4):
        harness.step()
    harness.add("high", 6, 5, num_outputs=3, priority=1)
    harness.drain()
    assert sum(harness.ends["low", index].num_preemptions for index in range(4)) >= 3
    assert harness.ends["high", 0].num_preemptions == 0
    harness.check_all_done()


def test_nobody_overtakes_a_parked_beam(make_harness: MakeHarness) -> None:
    """Its blocks would be taken, and the newcomer preempted as soon as the search goes on."""
    harness = make_harness(num_blocks=8, budget=8, max_num_seqs=3)
    harness.add("a", 9, 18, beam=BeamParams(3))
    for _ in range(9):
        harness.step()
        if harness.scheduler.stats().num_preemptions:
            break
    harness.add("b", 3, 5)
    harness.drain()
    assert harness.ends["b", 0].num_preemptions == 0
    harness.check_all_done()


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize("num_blocks", [6, 64])
@pytest.mark.parametrize("num_steps", range(8))
def test_an_abort_ends_the_search(
    make_harness: MakeHarness, num_steps: int, num_blocks: int, in_flight: int
) -> None:
    harness = make_harness(num_blocks, budget=8, in_flight=in_flight)
    harness.add("a", 10, 9, num_outputs=3, beam=BeamParams(4))
    harness.add("b", 4, 9)
    for _ in range(num_steps):
        harness.step()
    assert harness.scheduler.abort("a", FinishReason.DEADLINE)
    harness.step()
    ends = [harness.ends["a", index] for index in range(3)]
    assert [(end.finish_reason, end.num_generated_tokens) for end in ends] == [(FinishReason.DEADLINE, 0)] * 3
    harness.drain()
    harness.check_all_done()


def test_finishing_one_output_finishes_all(make_harness: MakeHarness) -> None:
    harness = make_harness()
    harness.add("a", 10, 9, num_outputs=2, beam=BeamParams(3))
    harness.step()
    assert not harness.scheduler.finish("a", 2), "the third beam is no output"
    assert harness.scheduler.finish("a", 1)
    harness.step()
    assert [end.finish_reason for end in harness.ends.values()] == [FinishReason.STOP] * 2
    harness.drain()
    harness.check_all_done()


@pytest.mark.parametrize("step_id", range(4))
def test_a_failed_step_ends_the_searches_in_it(make_harness: MakeHarness, step_id: int) -> None:
    harness = make_harness(in_flight=2)
    harness.device.fail_result[step_id] = RuntimeError("out of luck")
    harness.add("a", 5, 9, num_outputs=2, beam=BeamParams(3))
    harness.drain()
    assert [end.finish_reason for end in harness.ends.values()] == [FinishReason.ERROR] * 2
    harness.add("b", 5, 9, num_outputs=2, beam=BeamParams(3))
    harness.drain()
    harness.check_all_done()


def test_a_beam_without_a_distribution_ends_its_search_alone(make_harness: MakeHarness) -> None:
    harness = make_harness()
    harness.add("bad", 5, 9, num_outputs=2, sampling=FakeSampling(error_after=3), beam=BeamParams(3))
    harness.add("good", 5, 9, num_outputs=2, beam=BeamParams(3))
    harness.drain()
    for index in range(2):
        assert "not a distribution" in (harness.ends["bad", index].error or "")
        assert harness.ends["good", index].finish_reason is FinishReason.LENGTH
    harness.check_all_done()


def test_outputs_come_at_once_with_their_scores(make_harness: MakeHarness) -> None:
    harness = make_harness()
    harness.add("a", 5, 9, num_outputs=3, beam=BeamParams(4, stop_token_ids=tuple(range(8))))
    outputs = []
    while harness.scheduler.has_work:
        harness.launch()
        outputs += harness.read()
    assert [output.output_index for output in outputs] == [0, 1, 2]
    summaries = [output.summary for output in outputs if output.summary is not None]
    scores = [summary.score for summary in summaries if summary.score is not None]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    for output, summary in zip(outputs, summaries, strict=True):
        stopped = output.token_ids[-1] < 8
        assert summary.finish_reason is (FinishReason.STOP if stopped else FinishReason.LENGTH)
        assert (summary.first_scheduled_time, summary.first_token_time) == (1.0, 2.0)
    reasons = Counter(summary.finish_reason for summary in summaries)
    assert reasons.keys() == {FinishReason.STOP, FinishReason.LENGTH}
    stats = harness.scheduler.stats()
    assert stats.num_prompt_tokens == 5
    assert stats.num_finished == reasons
    harness.check_all_done()


def test_all_sequences_of_a_search_count(make_harness: MakeHarness) -> None:
    harness = make_harness(budget=8)
    harness.add("a", 10, 9, beam=BeamParams(4))
    seen = []
    for _ in range(3):
        stats = harness.scheduler.stats()
        seen.append((stats.num_running, stats.num_waiting))
        harness.step()
    assert seen == [(0, 4), (1, 3), (4, 0)]
    harness.drain()
    harness.check_all_done()


def test_after_its_seconds_a_search_ends_with_what_it_has(make_harness: MakeHarness) -> None:
    harness = make_harness()
    harness.add("a", 5, 40, num_outputs=3, beam=BeamParams(3, stop_token_ids=(3,)), max_seconds=13.0)
    harness.add("none", 40, 9, beam=BeamParams(2), max_seconds=1.0)
    harness.drain()
    ends = [harness.ends["a", index] for index in range(3)]
    assert FinishReason.TIME in {end.finish_reason for end in ends}
    assert all(0 < end.num_generated_tokens < 40 and end.score is not None for end in ends)
    none = harness.ends["none", 0]
    assert (none.finish_reason, none.num_generated_tokens, none.score) == (FinishReason.TIME, 0, None)
    assert harness.kv.num_free_blocks == harness.kv.num_blocks


def test_outputs_without_a_hypothesis_say_so(make_harness: MakeHarness) -> None:
    """A single token is possible at each place, so there is a single text."""
    harness = make_harness()
    harness.add("a", 5, 6, num_outputs=2, sampling=FakeSampling(num_possible=1), beam=BeamParams(3))
    harness.drain()
    assert harness.outputs["a", 0] == [0] * 6
    assert harness.ends["a", 0].finish_reason is FinishReason.LENGTH
    assert harness.ends["a", 1].finish_reason is FinishReason.ERROR
    assert "no more than 1 hypotheses" in (harness.ends["a", 1].error or "")
    harness.check_all_done()


def test_a_search_that_widens_later(make_harness: MakeHarness) -> None:
    """Two tokens are possible at each place: there are two beams at first, and the third has no row."""
    harness = make_harness(max_num_seqs=4)
    harness.add("a", 5, 12, num_outputs=3, sampling=FakeSampling(num_possible=2), beam=BeamParams(3))
    harness.add("b", 5, 30)
    harness.drain()
    rows = [len(step.new_rows) for step in harness.device.steps[1:5]]
    assert rows == [2, 3, 3, 3]
    harness.check_all_done()


def test_later_requests_find_what_a_search_has_computed(make_harness: MakeHarness) -> None:
    harness = make_harness()
    first = harness.add("a", 6, 12, beam=BeamParams(2))
    harness.drain()
    harness.add("b", [*first.prompt_token_ids, *harness.outputs["a", 0]], 2)
    harness.drain()
    assert harness.ends["b", 0].num_cached_tokens == 16
    harness.check_all_done()


def test_aborting_everything(make_harness: MakeHarness) -> None:
    harness = make_harness(num_blocks=8)
    harness.add("a", 9, 12, num_outputs=2, beam=BeamParams(3))
    harness.add("b", 9, 12, num_outputs=2, beam=BeamParams(3))
    for _ in range(6):
        harness.step()
    harness.take(harness.scheduler.abort_all(FinishReason.ABORT, harness.now))
    assert [end.finish_reason for end in harness.ends.values()] == [FinishReason.ABORT] * 4
    harness.drain()
    harness.check_all_done()


@pytest.mark.parametrize(
    ("num_outputs", "width", "message"),
    [
        (3, 2, "num_outputs=3: must be in .1, 2"),
        (1, 5, "a beam width of 5: at most 4"),
        (0, 2, "num_outputs=0"),
    ],
)
def test_what_could_never_run_is_refused(num_outputs: int, width: int, message: str) -> None:
    kv = KVCacheManager(KVCacheConfig(16, block_size=4))
    scheduler = Scheduler(SchedulerConfig(4, 8, max_model_len=64), kv)
    with pytest.raises(ValueError, match=message):
        scheduler.add(Request("a", [1, 2], 5, num_outputs=num_outputs, beam=BeamParams(width)))
    assert not scheduler.has_work
