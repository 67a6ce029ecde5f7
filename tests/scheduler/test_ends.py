"""Every way to end, from every state: exactly one end for each sequence, and everything given back."""

import pytest

from scheduler import FinishReason, Request
from tests.scheduler.conftest import Harness, MakeHarness


def reach(harness: Harness, state: str) -> None:
    """Bring request "a" into a state, in a pool of 4 blocks. "b" is there to be left alone."""
    if state == "waiting":
        harness.add("b", 12, 2)
        harness.add("a", 12, 2)
        harness.step()
        assert harness.scheduler.stats().num_waiting == 1
    elif state == "preempted":  # and, with two steps in flight, with a token pending
        harness.add("b", 8, 5)
        harness.add("a", 4, 5)
        for _ in range(harness.device.max_steps_in_flight):
            harness.launch()
        if harness.device.max_steps_in_flight == 1:
            harness.read()
            harness.launch()
        assert harness.scheduler.stats().num_preemptions == 1
    else:
        harness.add("a", 12, 4)
        harness.add("b", 1, 2)
        for _ in range(["new", "partly computed", "decoding"].index(state)):
            harness.step()


@pytest.mark.parametrize("state", ["new", "waiting", "partly computed", "decoding", "preempted"])
@pytest.mark.parametrize("in_flight", [1, 2])
def test_abort_from_every_state(make_harness: MakeHarness, state: str, in_flight: int) -> None:
    harness = make_harness(num_blocks=4, budget=12, in_flight=in_flight)
    reach(harness, state)
    assert harness.scheduler.abort("a")
    assert ("a", 0) not in harness.ends, "nothing happens before the next step boundary"
    if len(harness.in_flight) == in_flight:
        harness.read()
    else:
        harness.launch()
        harness.take(harness.scheduler.take_outputs())
    assert harness.ends["a", 0].finish_reason is FinishReason.ABORT
    assert not harness.scheduler.abort("a")
    harness.drain()
    assert harness.ends["b", 0].finish_reason is FinishReason.LENGTH
    harness.check_all_done()


def test_an_abort_within_schedule_is_told_without_a_step(make_harness: MakeHarness) -> None:
    harness = make_harness()
    harness.add("a", 3, 2)
    harness.scheduler.abort("a", FinishReason.DEADLINE)
    assert harness.scheduler.schedule(7.0) is None
    (output,) = harness.scheduler.take_outputs()
    assert (output.request_id, output.token_ids) == ("a", ())
    assert output.summary is not None
    assert output.summary.finish_reason is FinishReason.DEADLINE
    assert (output.summary.first_scheduled_time, output.summary.finished_time) == (None, 7.0)
    assert harness.scheduler.take_outputs() == []


def test_an_abort_comes_before_the_tokens_of_the_step(make_harness: MakeHarness) -> None:
    """A passed deadline is never told as a stop or a length."""
    harness = make_harness()
    harness.add("a", 3, 1)
    harness.launch()
    harness.scheduler.abort("a", FinishReason.DEADLINE)
    harness.read()
    assert harness.ends["a", 0].finish_reason is FinishReason.DEADLINE
    assert harness.outputs["a", 0] == []


def test_the_first_reason_counts(make_harness: MakeHarness) -> None:
    harness = make_harness()
    harness.add("a", 3, 5)
    harness.step()
    harness.scheduler.finish("a", 0, FinishReason.STOP)
    harness.scheduler.abort("a", FinishReason.ABORT)
    harness.step()
    assert harness.ends["a", 0].finish_reason is FinishReason.STOP
    assert harness.scheduler.stats().num_finished == {FinishReason.STOP: 1}
    harness.check_all_done()


def test_who_is_unknown_cannot_be_ended(make_harness: MakeHarness) -> None:
    harness = make_harness()
    harness.add("a", 3, 5)
    assert not harness.scheduler.abort("b")
    assert not harness.scheduler.finish("b", 0)
    assert not harness.scheduler.finish("a", 1)


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize("where", ["fail_launch", "fail_result"])
@pytest.mark.parametrize("step_id", [0, 1, 2])
def test_a_failed_step_ends_the_requests_in_it_alone(
    make_harness: MakeHarness, where: str, step_id: int, in_flight: int
) -> None:
    harness = make_harness(budget=8, max_num_seqs=2, in_flight=in_flight)
    getattr(harness.device, where)[step_id] = RuntimeError("out of luck")
    for name in ("a", "b", "c", "d"):
        harness.add(name, 10, 6)
    harness.drain()
    failed = {key[0] for key, end in harness.ends.items() if end.finish_reason is FinishReason.ERROR}
    assert failed == ({"a"} if step_id == 0 else {"a", "b"})
    assert harness.ends["a", 0].error == "out of luck"
    assert harness.ends["c", 0].error is None
    harness.check_all_done()


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize("where", ["fail_launch", "fail_result"])
def test_nobody_reads_what_a_failed_step_should_have_written(
    make_harness: MakeHarness, where: str, in_flight: int
) -> None:
    harness = make_harness(in_flight=in_flight)
    getattr(harness.device, where)[0] = RuntimeError("out of luck")
    prompt = list(range(12))
    harness.add("fails", prompt, 3)
    harness.add("fails too", prompt, 3)
    harness.launch()
    harness.add("same prompt", prompt, 3)
    harness.drain()
    assert harness.ends["same prompt", 0].num_cached_tokens == 0
    assert harness.outputs["same prompt", 0] == harness.expected("same prompt")
    harness.check_all_done()


def test_a_chunk_is_not_published_once_its_blocks_were_given_up(make_harness: MakeHarness) -> None:
    """Not even if the sequence has got others for the same tokens since, from a step that may fail."""
    harness = make_harness(in_flight=3, max_num_seqs=2, budget=8, policy="priority")
    harness.device.fail_result[2] = RuntimeError("out of luck")
    prompt = list(range(20))
    harness.add("low", prompt, 3)
    harness.launch()
    harness.add("high", 3, 3, num_outputs=2, priority=1)
    harness.launch()
    assert harness.scheduler.stats().num_preemptions == 1
    harness.scheduler.abort("high")
    harness.launch()
    assert harness.scheduler.stats().num_running == 1
    harness.read()
    harness.add("same prompt", prompt, 3, priority=1)
    harness.launch()
    harness.drain()
    assert harness.ends["low", 0].finish_reason is FinishReason.ERROR
    harness.check_all_done()


def test_a_failed_step_ends_outputs_not_yet_in_it(make_harness: MakeHarness) -> None:
    """The step that computes the prompt of several outputs fails after they have been forked."""
    harness = make_harness(in_flight=2)
    harness.device.fail_result[0] = RuntimeError("out of luck")
    harness.add("a", 5, 4, num_outputs=3)
    harness.add("b", 12, 4)  # is only partly in step 0
    harness.drain()
    assert [end.finish_reason for end in harness.ends.values()] == [FinishReason.ERROR] * 4
    harness.check_all_done()


def test_a_failed_step_ends_outputs_forked_from_one_that_has_ended(make_harness: MakeHarness) -> None:
    """They read what the step should have written, although their leader has no part in anything any more."""
    harness = make_harness(in_flight=2)
    harness.device.fail_result[0] = RuntimeError("out of luck")
    harness.add("a", 5, 4, num_outputs=2)
    harness.launch()
    harness.scheduler.finish("a", 0)
    harness.launch()
    harness.drain()
    assert harness.ends["a", 0].finish_reason is FinishReason.STOP
    assert harness.ends["a", 1].finish_reason is FinishReason.ERROR
    harness.check_all_done()


def test_a_failed_step_does_not_end_a_later_request_of_the_same_name(make_harness: MakeHarness) -> None:
    harness = make_harness(in_flight=2)
    harness.device.fail_result[1] = RuntimeError("out of luck")
    harness.add("a", 5, 4)
    harness.launch()
    harness.launch()
    harness.scheduler.abort("a")
    harness.read()
    del harness.ends["a", 0]
    harness.add("a", 5, 4)
    harness.drain()
    assert harness.ends["a", 0].finish_reason is FinishReason.LENGTH
    assert harness.outputs["a", 0] == harness.expected("a")


@pytest.mark.parametrize("num_steps", range(5))
def test_abort_all(make_harness: MakeHarness, num_steps: int) -> None:
    harness = make_harness(num_blocks=8, budget=8, in_flight=2)
    for name in ("a", "b", "c"):
        harness.add(name, 7, 9, num_outputs=2)
    for _ in range(num_steps):
        harness.step()
    harness.launch()
    harness.take(harness.scheduler.abort_all(FinishReason.ERROR, harness.now, "the device is lost"))
    assert {(end.finish_reason, end.error) for end in harness.ends.values()} == {
        (FinishReason.ERROR, "the device is lost")
    }
    while harness.in_flight:
        assert harness.read() == []
    harness.check_all_done()
    harness.add("next", 5, 3)
    harness.drain()
    harness.check_all_done()


def test_abort_all_forgets_older_aborts(make_harness: MakeHarness) -> None:
    harness = make_harness()
    harness.add("a", 5, 3)
    harness.scheduler.abort("a")
    harness.scheduler.abort_all(FinishReason.ERROR, 0.0)
    harness.add("a", 5, 3)
    harness.drain()
    assert harness.ends["a", 0].finish_reason is FinishReason.LENGTH


def test_abort_all_tells_everybody_even_if_bookkeeping_is_broken(
    make_harness: MakeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = make_harness()
    for name in ("a", "b"):
        harness.add(name, 7, 9)
    harness.step()

    def broken(sequence_id: int) -> None:
        raise AssertionError(sequence_id)

    monkeypatch.setattr(harness.kv, "free", broken)
    with pytest.raises(AssertionError):
        harness.scheduler.abort_all(FinishReason.ERROR, 0.0)
    assert [output.request_id for output in harness.scheduler.take_outputs()] == ["a", "b"]


def test_sequences_that_can_never_run_are_found_out(
    make_harness: MakeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = make_harness()
    harness.add("a", 3, 2)
    monkeypatch.setattr(type(harness.scheduler), "_admit", lambda *_: None)
    with pytest.raises(AssertionError, match="none can run"):
        harness.scheduler.schedule(0.0)


def test_a_request_keeps_its_own_prompt(make_harness: MakeHarness) -> None:
    harness = make_harness()
    prompt = [1, 2, 3]
    harness.scheduler.add(Request("a", prompt, 2))
    prompt.append(4)
    step = harness.scheduler.schedule(0.0)
    assert step is not None
    assert step.chunks[0].token_ids == (1, 2, 3)
