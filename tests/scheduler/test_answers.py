"""What a device answers beside tokens: log-probabilities, errors of rows, stopping criteria; and time."""

from dataclasses import replace

import pytest

from kvcache.config import KVCacheConfig
from kvcache.manager import KVCacheManager
from scheduler import Finish, FinishReason, Request, Scheduler, SchedulerConfig, SequenceOutput, StepOutput
from scheduler.step import StepInput, TokenLogprobs


def new_scheduler(num_blocks: int = 16, budget: int = 8) -> Scheduler:
    kv = KVCacheManager(KVCacheConfig(num_blocks, block_size=4))
    return Scheduler(SchedulerConfig(4, budget, max_model_len=64), kv)


def launch(scheduler: Scheduler, now: float = 0.0) -> StepInput:
    step = scheduler.schedule(now)
    assert step is not None
    return step


def answer(step: StepInput) -> StepOutput:
    """A token for each that samples, and scores of prompt tokens: minus the token id."""
    num_samples = len(step.decode_rows) + sum(chunk.samples for chunk in step.chunks)
    scores = {
        index: [TokenLogprobs(-float(token_id)) for token_id in chunk.next_token_ids]
        for index, chunk in enumerate(step.chunks)
        if chunk.next_token_ids
    }
    return StepOutput(step.step_id, [7] * num_samples, [Finish.NONE] * num_samples, prompt_logprobs=scores)


def ends(outputs: list[SequenceOutput]) -> dict[str, FinishReason]:
    return {each.request_id: each.summary.finish_reason for each in outputs if each.summary is not None}


def test_log_probabilities_come_with_their_tokens() -> None:
    scheduler = new_scheduler()
    for name in "ab":
        scheduler.add(Request(name, [1, 2], max_new_tokens=2))
    of_b = TokenLogprobs(-0.5, (7, 3), (-0.5, -1.0))
    step = launch(scheduler)
    told = {
        each.request_id: each
        for each in scheduler.update(replace(answer(step), logprobs=[None, of_b]), now=0.0)
    }
    assert (told["a"].logprobs, told["b"].logprobs) == ((), (of_b,))
    step = launch(scheduler)
    output = replace(answer(step), finishes=[Finish.LENGTH] * 2, logprobs=[None, of_b])
    told = {each.request_id: each for each in scheduler.update(output, now=0.0)}
    assert (told["a"].logprobs, told["b"].logprobs) == ((), (of_b,)), "the last one too"


def test_an_error_of_a_row_ends_its_request_alone() -> None:
    scheduler = new_scheduler()
    for name in "ab":
        scheduler.add(Request(name, [1, 2], max_new_tokens=5))
    step = launch(scheduler)
    output = replace(answer(step), finishes=[Finish.ERROR, Finish.NONE], errors={0: "its processor raised"})
    told = scheduler.update(output, now=0.0)
    assert ends(told) == {"a": FinishReason.ERROR}
    assert [each.summary.error for each in told if each.summary] == ["its processor raised"]
    assert [(each.request_id, each.token_ids) for each in told] == [("a", ()), ("b", (7,))]
    assert scheduler.has_work
    scheduler.check_invariants()


def test_a_stopping_criterion_is_a_stop_that_tells_which() -> None:
    scheduler = new_scheduler()
    scheduler.add(Request("a", [1, 2], max_new_tokens=5))
    step = launch(scheduler)
    (told,) = scheduler.update(replace(answer(step), finishes=[Finish.CRITERION + 2]), now=0.0)
    assert told.token_ids == (7,)
    assert told.summary is not None
    assert (told.summary.finish_reason, told.summary.criterion) == (FinishReason.STOP, 2)


def test_a_time_limit_ends_running_and_waiting_requests() -> None:
    scheduler = new_scheduler(num_blocks=4)
    scheduler.add(Request("runs", [1] * 8, max_new_tokens=5, arrival_time=0.0, max_seconds=2.5))
    scheduler.add(Request("waits", [1] * 9, max_new_tokens=5, arrival_time=0.5, max_seconds=1.0))
    scheduler.add(Request("goes on", [2] * 3, max_new_tokens=5, arrival_time=0.0, max_seconds=9.0))
    step = launch(scheduler, 1.0)
    assert ends(scheduler.update(answer(step), 1.4)) == {}
    step = launch(scheduler, 1.6)
    assert ends(scheduler.update(answer(step), 1.7)) == {"waits": FinishReason.TIME}
    step = launch(scheduler, 2.4)
    told = scheduler.update(answer(step), 2.5)
    assert ends(told) == {"runs": FinishReason.TIME}
    assert [each.token_ids for each in told if each.request_id == "runs"] == [()], "its token came too late"
    assert scheduler.has_work
    scheduler.check_invariants()


def test_time_limits_of_requests_that_have_ended_are_forgotten() -> None:
    scheduler = new_scheduler()
    for index in range(300):
        scheduler.add(Request(str(index), [1], max_new_tokens=5, max_seconds=1e6))
        scheduler.abort(str(index))
        scheduler.schedule(0.0)
        scheduler.take_outputs()
    assert len(scheduler._roster._time_limits) < 100


@pytest.mark.parametrize("budget", [4, 5, 8, 30])
def test_prompt_scores_come_once_and_in_order(budget: int) -> None:
    """Whatever the chunks; and nothing is taken from the prefix cache, which holds no scores."""
    scheduler = new_scheduler(budget=budget)
    prompt = list(range(10, 31))
    scheduler.add(Request("first", prompt, max_new_tokens=1))
    while scheduler.has_work:
        step = launch(scheduler)
        assert not any(chunk.next_token_ids for chunk in step.chunks), "none were asked for"
        scheduler.update(replace(answer(step), finishes=[Finish.LENGTH] * len(answer(step).token_ids)), 0.0)
    scheduler.add(Request("a", prompt, max_new_tokens=2, num_outputs=2, scores_prompt=True))
    scores: list[TokenLogprobs] = []
    while len(scores) < 20:
        step = launch(scheduler)
        for told in scheduler.update(answer(step), now=0.0):
            assert told.output_index == 0 or not told.prompt_logprobs
            scores += told.prompt_logprobs
    assert [score.logprob for score in scores] == [-float(token_id) for token_id in prompt[1:]]


def test_a_preempted_prompt_is_not_scored_again() -> None:
    scheduler = new_scheduler(num_blocks=7, budget=4)
    scheduler.add(Request("old", [1] * 4, max_new_tokens=20))
    scheduler.add(Request("a", list(range(10, 22)), max_new_tokens=9, scores_prompt=True))
    left: dict[int, int] = {}  # by row, tokens that it may still generate
    scores: list[float] = []
    while scheduler.has_work:
        step = launch(scheduler)
        left |= {row.row: row.max_new_tokens - row.num_generated_tokens for row in step.new_rows}
        rows = [*step.decode_rows, *(chunk.row for chunk in step.chunks if chunk.samples)]
        for row in rows:
            left[row] -= 1
        finishes: list[int] = [Finish.NONE if left[row] else Finish.LENGTH for row in rows]
        for told in scheduler.update(replace(answer(step), finishes=finishes), 0.0):
            scores += [each.logprob for each in told.prompt_logprobs]
    assert scheduler.stats().num_preemptions > 0
    assert scores == [-float(token_id) for token_id in range(11, 22)]
