"""Steps by hand: what goes to the device, and what comes of it."""

import pytest

from kvcache.config import KVCacheConfig
from kvcache.manager import KVCacheManager
from scheduler import (
    Chunk,
    Finish,
    FinishReason,
    NewBlocks,
    NewRow,
    Request,
    Scheduler,
    SchedulerConfig,
    SequenceOutput,
    SequenceSummary,
    StepInput,
    StepOutput,
)
from tests.scheduler.conftest import MakeHarness
from tests.scheduler.fake_device import FakeSampling


def new_scheduler(num_blocks: int = 16, max_num_seqs: int = 4, budget: int = 8) -> Scheduler:
    kv = KVCacheManager(KVCacheConfig(num_blocks, block_size=4))
    return Scheduler(SchedulerConfig(max_num_seqs, budget, max_model_len=64), kv)


def test_the_whole_life_of_a_request() -> None:
    scheduler = new_scheduler()
    scheduler.add(Request("a", range(10), max_new_tokens=3, sampling="any", arrival_time=0.5))

    assert scheduler.schedule(1.0) == StepInput(
        step_id=0,
        chunks=(Chunk(row=0, start=0, token_ids=tuple(range(8)), samples=False),),
        new_rows=(NewRow(0, 10, 0, 0, ((0, 1, 2),), 3, "any", 0, tuple(range(10))),),
        num_tokens=8,
    )
    assert scheduler.update(StepOutput(0, []), 2.0) == []
    assert scheduler.schedule(3.0) == StepInput(
        step_id=1, chunks=(Chunk(row=0, start=8, token_ids=(8, 9), samples=True),), num_tokens=2
    )
    assert scheduler.update(StepOutput(1, [70], [Finish.NONE]), 4.0) == [SequenceOutput("a", 0, (70,))]
    assert scheduler.schedule(5.0) == StepInput(step_id=2, decode_rows=(0,), num_tokens=1)
    assert scheduler.update(StepOutput(2, [71], [Finish.NONE]), 6.0) == [SequenceOutput("a", 0, (71,))]
    assert scheduler.schedule(7.0) == StepInput(step_id=3, decode_rows=(0,), num_tokens=1)
    summary = SequenceSummary(
        finish_reason=FinishReason.LENGTH,
        num_prompt_tokens=10,
        num_cached_tokens=0,
        num_generated_tokens=3,
        num_preemptions=0,
        arrival_time=0.5,
        first_scheduled_time=1.0,
        first_token_time=4.0,
        finished_time=8.0,
    )
    assert scheduler.update(StepOutput(3, [72], [Finish.LENGTH]), 8.0) == [
        SequenceOutput("a", 0, (72,), summary)
    ]
    assert not scheduler.has_work
    assert scheduler.schedule(9.0) is None


def test_blocks_are_asked_for_once_in_a_block() -> None:
    scheduler = new_scheduler()
    scheduler.add(Request("a", [1, 2, 3], max_new_tokens=10))
    updates = []
    for step_id in range(9):
        step = scheduler.schedule(0.0)
        assert step is not None
        updates.append(step.new_blocks)
        scheduler.update(StepOutput(step_id, [5], [Finish.NONE]), 0.0)
    # Step 2 writes position 4, and step 6 position 8.
    assert updates[2] == (NewBlocks(row=0, group=0, start=1, block_ids=(1,)),)
    assert updates[6] == (NewBlocks(row=0, group=0, start=2, block_ids=(2,)),)
    assert [bool(update) for update in updates].count(True) == 2


def test_a_step_serves_decodes_then_running_chunks_then_waiting(make_harness: MakeHarness) -> None:
    harness = make_harness(budget=8)
    harness.add("decoding", 2, 9)
    harness.step()
    harness.add("long", 12, 9)
    harness.step()
    harness.add("new", 4, 9)
    step = harness.step()
    assert step is not None
    assert step.decode_rows == (0,)
    assert [(chunk.row, chunk.start, len(chunk.token_ids)) for chunk in step.chunks] == [(1, 7, 5), (2, 0, 2)]
    assert [new.row for new in step.new_rows] == [2]
    assert step.num_tokens == 8
    harness.drain()
    harness.check_all_done()


def test_prompts_share_the_budget_by_rank(make_harness: MakeHarness) -> None:
    harness = make_harness(budget=8, policy="priority")
    harness.add("low", 20, 2)
    harness.step()
    harness.add("high", 13, 2, priority=1)
    step = harness.step()
    assert step is not None
    assert [(chunk.row, chunk.start, len(chunk.token_ids)) for chunk in step.chunks] == [(1, 0, 8)]
    step = harness.step()
    assert step is not None
    assert [(chunk.row, chunk.start, len(chunk.token_ids)) for chunk in step.chunks] == [(1, 8, 5), (0, 8, 3)]
    harness.drain()
    harness.check_all_done()


def test_a_prompt_that_was_computed_is_not_computed_again(make_harness: MakeHarness) -> None:
    harness = make_harness()
    prompt = list(range(11))
    harness.add("first", prompt, 2)
    harness.drain()
    harness.add("second", prompt, 2)
    step = harness.step()
    assert step is not None
    assert step.new_rows[0].num_computed_tokens == 8
    assert step.chunks[0].start == 8
    harness.drain()
    assert harness.ends["second", 0].num_cached_tokens == 8
    assert harness.outputs["second", 0] == harness.outputs["first", 0]
    stats = harness.scheduler.stats()
    assert (stats.num_prefix_queried_tokens, stats.num_prefix_hit_tokens) == (22, 8)
    harness.check_all_done()


@pytest.mark.parametrize(("max_new_tokens", "num_cached_tokens"), [(9, 12), (10, 12), (11, 16), (12, 16)])
def test_generated_tokens_are_shared_too(
    make_harness: MakeHarness, max_new_tokens: int, num_cached_tokens: int
) -> None:
    """Whole blocks of them, without the last token: it was sampled, but never computed."""
    harness = make_harness()
    first = harness.add("first", 6, max_new_tokens)
    harness.drain()
    harness.add("second", [*first.prompt_token_ids, *harness.outputs["first", 0], 0, 0], 2)
    harness.drain()
    assert harness.ends["second", 0].num_cached_tokens == num_cached_tokens
    harness.check_all_done()


def test_a_prompt_is_shared_chunk_by_chunk(make_harness: MakeHarness) -> None:
    harness = make_harness(budget=8)
    prompt = list(range(30))
    harness.add("first", prompt, 2)
    harness.step()
    harness.step()
    harness.scheduler.abort("first")
    harness.add("second", prompt, 2)
    harness.drain()
    assert harness.ends["second", 0].num_cached_tokens == 16
    harness.check_all_done()


def test_a_step_is_scheduled_before_the_last_one_is_read() -> None:
    scheduler = new_scheduler()
    scheduler.add(Request("a", [1, 2], max_new_tokens=3))
    assert scheduler.schedule(0.0) is not None
    assert scheduler.schedule(0.0) == StepInput(step_id=1, decode_rows=(0,), num_tokens=1)
    assert scheduler.stats().num_steps_in_flight == 2
    scheduler.update(StepOutput(0, [7], [Finish.NONE]), 0.0)
    assert scheduler.schedule(0.0) is not None
    # Three tokens are read or pending: there is nothing more to compute.
    assert scheduler.schedule(0.0) is None
    scheduler.check_invariants()
    scheduler.update(StepOutput(1, [8], [Finish.NONE]), 0.0)
    assert scheduler.schedule(0.0) is None
    (output,) = scheduler.update(StepOutput(2, [9], [Finish.LENGTH]), 0.0)
    assert output.summary is not None
    assert not scheduler.has_work


def test_the_token_after_the_last_is_dropped() -> None:
    scheduler = new_scheduler()
    scheduler.add(Request("a", [1, 2], max_new_tokens=9))
    for _ in range(2):
        scheduler.schedule(0.0)
    (output,) = scheduler.update(StepOutput(0, [7], [Finish.STOP]), 0.0)
    assert output.summary is not None
    assert output.summary.finish_reason is FinishReason.STOP
    assert output.token_ids == (7,)
    # Its row and blocks are free at once, although step 1 still writes them: the next one's steps come later.
    scheduler.add(Request("b", [3, 4], max_new_tokens=9))
    step = scheduler.schedule(0.0)
    assert step is not None
    assert step.new_rows[0].row == 0
    assert step.new_rows[0].block_ids == ((0,),)
    assert scheduler.update(StepOutput(1, [8], [Finish.NONE]), 0.0) == []
    scheduler.check_invariants()
    assert scheduler.update(StepOutput(2, [5], [Finish.NONE]), 0.0) == [SequenceOutput("b", 0, (5,))]
    assert scheduler.stats().num_generated_tokens == 2


def test_what_a_step_in_flight_computes_is_not_yet_shared() -> None:
    """The step may fail, and another request would read what it has not written."""
    scheduler = new_scheduler(budget=16)
    scheduler.add(Request("a", range(9), max_new_tokens=2))
    scheduler.schedule(0.0)
    scheduler.add(Request("b", range(9), max_new_tokens=2))
    step = scheduler.schedule(0.0)
    assert step is not None
    assert step.new_rows[0].num_computed_tokens == 0
    scheduler.update(StepOutput(0, [7], [Finish.NONE]), 0.0)
    scheduler.add(Request("c", range(9), max_new_tokens=2))
    step = scheduler.schedule(0.0)
    assert step is not None
    assert step.new_rows[0].num_computed_tokens == 8


def test_a_row_without_a_distribution_ends_alone(make_harness: MakeHarness) -> None:
    harness = make_harness()
    harness.add("bad", 9, 9, sampling=FakeSampling(error_after=3))
    harness.add("good", 5, 9)
    harness.drain()
    summary = harness.ends["bad", 0]
    assert summary.finish_reason is FinishReason.ERROR
    assert summary.error is not None
    assert "not a distribution" in summary.error
    assert summary.num_generated_tokens == 3
    assert harness.ends["good", 0].finish_reason is FinishReason.LENGTH
    harness.check_all_done()


def test_stats_count_what_happened(make_harness: MakeHarness) -> None:
    harness = make_harness(budget=8, num_blocks=10)
    harness.add("a", 10, 3)
    harness.add("b", 2, 5, sampling=FakeSampling(stop_token_ids=tuple(range(50))))
    harness.add("c", 30, 5)
    harness.step()
    harness.step()
    stats = harness.scheduler.stats()
    assert (stats.num_running, stats.num_waiting) == (1, 1)  # b has stopped, and c waits for blocks
    assert (stats.num_free_blocks, stats.num_blocks) == (7, 10)
    assert stats.kv_usage == pytest.approx(0.3)
    harness.drain()
    stats = harness.scheduler.stats()
    assert stats.num_finished == {FinishReason.STOP: 1, FinishReason.LENGTH: 2}
    assert stats.num_prompt_tokens == 42
    assert stats.num_generated_tokens == 9
    assert stats.num_chunk_tokens == 42
    assert stats.num_decode_rows == 2 + 4
    assert stats.num_preemptions == stats.num_preempted_tokens == 0
    assert stats.num_steps == len(harness.device.steps)
    harness.check_all_done()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((0, 8, 64), "max_num_seqs=0"),
        ((4, 3, 64), "max_num_batched_tokens=3: must be at least max_num_seqs=4"),
        ((4, 8, 1), "max_model_len=1"),
        ((4, 8, 64, "lifo"), "policy='lifo': must be one of fcfs, priority"),
    ],
)
def test_config_names_what_is_wrong(options: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SchedulerConfig(*options)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request("a", [1], 1), "'a' is running"),
        (Request("b", [], 1), "prompt"),
        (Request("b", [1], 0), "new token"),
        (Request("b", [1], 1, num_outputs=0), "num_outputs=0"),
        (Request("b", [1], 1, num_outputs=5), "num_outputs=5: must be in .1, 4"),
        (Request("b", [1] * 60, 5), "65 tokens: at most max_model_len=64"),
        (Request("b", [1] * 40, 2), "42 tokens do not fit the KV cache of 10 blocks"),
    ],
)
def test_what_could_never_run_is_refused(request_: Request, message: str) -> None:
    scheduler = new_scheduler(num_blocks=10)
    scheduler.add(Request("a", [1, 2], 1))
    with pytest.raises(ValueError, match=message):
        scheduler.add(request_)
    assert scheduler.stats().num_waiting == 1


def test_the_largest_that_fits_runs(make_harness: MakeHarness) -> None:
    harness = make_harness(num_blocks=10, max_model_len=41)
    harness.add("a", 40, 1)  # its last token is never computed
    harness.drain()
    harness.check_all_done()


def test_an_id_can_be_used_again(make_harness: MakeHarness) -> None:
    harness = make_harness()
    harness.add("a", 5, 2)
    harness.drain()
    first = harness.ends.pop(("a", 0))
    harness.add("a", 5, 3)
    harness.drain()
    assert (first.num_generated_tokens, harness.ends["a", 0].num_generated_tokens) == (2, 3)


def test_steps_are_read_in_order() -> None:
    scheduler = new_scheduler()
    scheduler.add(Request("a", [1, 2], max_new_tokens=3))
    scheduler.schedule(0.0)
    scheduler.schedule(0.0)
    with pytest.raises(AssertionError, match="order"):
        scheduler.update(StepOutput(1, [7], [Finish.NONE]), 0.0)


def test_a_device_that_forgets_the_length_is_found_out() -> None:
    scheduler = new_scheduler()
    scheduler.add(Request("a", [1, 2], max_new_tokens=1))
    scheduler.schedule(0.0)
    with pytest.raises(AssertionError, match="did not end it"):
        scheduler.update(StepOutput(0, [7], [Finish.NONE]), 0.0)
