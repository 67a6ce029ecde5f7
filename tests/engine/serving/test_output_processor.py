"""What becomes of token ids: text, stop strings, ends, usage. No threads but in the last tests."""

import queue
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from engine.sampling.params import NamedSpec, SamplingParams
from engine.serving.intake import Asked, Intake
from engine.serving.metrics import Metrics
from engine.serving.output_processor import Delivery, EngineEnd, OutputProcessor
from engine.serving.request_outputs import OutputEnd, RequestEnd, RequestOutputs, Taken
from engine.serving.types import OutputDelta, OutputFinish, OutputOptions, Timings, TokenLogprob, Usage
from scheduler.beams import BeamParams
from scheduler.request import FinishReason, SequenceOutput, SequenceSummary
from scheduler.step import TokenLogprobs
from tests.support.fake_engine import fake_engine
from tests.support.fake_model import EOS, LONG, byte_tokenizer
from tests.support.scrape import scrape

TOKENIZER = byte_tokenizer()
BOTH = OutputOptions(text=True, token_ids=True)
SUMMARY = SequenceSummary(
    finish_reason=FinishReason.LENGTH,
    num_prompt_tokens=4,
    num_cached_tokens=0,
    num_generated_tokens=99,  # what the scheduler counts is not what the reader got
    num_preemptions=1,
    arrival_time=10.0,
    first_scheduled_time=11.0,
    first_token_time=12.0,
    finished_time=13.0,
)


def outputs_of(prompt: str = "seed", output: OutputOptions = BOTH, **params: Any) -> RequestOutputs:
    params = {"max_new_tokens": 50, "temperature": 1.0} | params
    asked = Asked("id", prompt, SamplingParams(**params), 0, output, arrival_time=10.0)
    return Intake(TOKENIZER, fake_engine().engine.model_info).prepare(asked)


def send(
    outputs: RequestOutputs,
    tokens: Sequence[int] | str,
    reason: FinishReason | None = None,
    index: int = 0,
    **summary: Any,
) -> tuple[OutputDelta | None, RequestEnd | None, FinishReason | None]:
    """Tokens, and the end if there is a reason. Texts stand for their bytes."""
    token_ids = tuple(tokens.encode() if isinstance(tokens, str) else tokens)
    ended = None if reason is None else replace(SUMMARY, finish_reason=reason, **summary)
    taken = outputs.take(SequenceOutput("id", index, token_ids, ended))
    assert taken.before == ()
    return taken.delta, taken.end, taken.wanted


def read(outputs: RequestOutputs, pieces: Sequence[Sequence[int] | str], reason: FinishReason) -> OutputDelta:
    """All deltas of output 0 as one. The engine sends the reason with the last piece, come what may."""
    text = ""
    token_ids: tuple[int, ...] = ()
    for number, piece in enumerate(pieces, 1):
        delta, _, _ = send(outputs, piece, reason if number == len(pieces) else None)
        if delta is not None:
            text, token_ids = text + delta.text, token_ids + delta.token_ids
    assert delta is not None
    return replace(delta, text=text, token_ids=token_ids)


def splits(text: str) -> Iterator[list[str]]:
    """Every way to cut a text into pieces."""
    for cuts in range(2 ** (len(text) - 1)):
        pieces = [text[0]]
        for position, character in enumerate(text[1:]):
            if cuts >> position & 1:
                pieces.append(character)
            else:
                pieces[-1] += character
        yield pieces


def test_text_and_ids_as_they_come() -> None:
    outputs = outputs_of()
    assert send(outputs, "a") == (OutputDelta(0, "a", (97,)), None, None)
    assert send(outputs, "bc") == (OutputDelta(0, "bc", (98, 99)), None, None)
    usage, timings = Usage(4, 0, 4), Timings(queued=1.0, first_token=2.0, total=3.0)
    delta, end, wanted = send(outputs, "d", FinishReason.LENGTH)
    assert delta == OutputDelta(0, "d", (100,), OutputFinish(FinishReason.LENGTH), usage, timings)
    output = OutputEnd(FinishReason.LENGTH, num_sampled=99, decode_seconds=1.0)
    assert end == RequestEnd(FinishReason.LENGTH, usage, timings, num_preemptions=1, outputs=(output,))
    assert wanted is None


@pytest.mark.parametrize("output", [OutputOptions(text=False, token_ids=True), OutputOptions()])
def test_only_what_is_asked_for(output: OutputOptions) -> None:
    delta, _, _ = send(outputs_of(output=output), "a")
    assert delta == OutputDelta(0, "a" if output.text else "", (97,) if output.token_ids else ())


def test_half_a_character_waits_for_its_other_half() -> None:
    outputs = outputs_of(output=OutputOptions())
    first, second = "é".encode()
    assert send(outputs, [first]) == (None, None, None)
    assert send(outputs, [second]) == (OutputDelta(0, "é"), None, None)
    assert send(outputs, [first])[0] is None
    delta, _, _ = send(outputs, "", FinishReason.ABORT)
    assert delta is not None
    assert delta.text == "\N{REPLACEMENT CHARACTER}"


def test_text_goes_on_where_the_prompt_stopped() -> None:
    first, second = "é".encode()
    asked = Asked("id", [first], SamplingParams(max_new_tokens=1), 0, OutputOptions(), 0.0)
    outputs = Intake(TOKENIZER, fake_engine().engine.model_info).prepare(asked)
    delta, _, _ = send(outputs, [second], FinishReason.LENGTH)
    assert delta is not None
    assert delta.text == "é"


@pytest.mark.parametrize("include_stop", [False, True])
def test_stop_string_however_its_tokens_come(include_stop: bool) -> None:
    """Nothing of a stop string gets out before it is known, and nothing after it ever."""
    for pieces in splits("xststop!"):
        outputs = outputs_of(stop_strings=("stop",), include_stop=include_stop)
        shown, was_asked = "", 0
        for piece in pieces:
            delta, end, wanted = send(outputs, piece)
            assert end is None, "only the engine ends an output"
            shown += delta.text if delta is not None else ""
            assert include_stop or "xst".startswith(shown)
            was_asked += wanted is FinishReason.STOP
        assert was_asked == 1
        delta, end, wanted = send(outputs, "", FinishReason.STOP)
        assert delta is not None
        assert shown + delta.text == ("xststop" if include_stop else "xst")
        assert delta.finish == OutputFinish(FinishReason.STOP, stop_string="stop")
        assert delta.usage == Usage(4, 0, num_generated_tokens=7)  # not the "!", whatever piece it came in
        assert (end and end.reason, wanted) == (FinishReason.STOP, None)


def test_ids_end_with_the_token_that_completed_the_stop_string() -> None:
    delta = read(outputs_of(stop_strings=("cd",)), ["ab", "cde", "fgh"], FinishReason.LENGTH)
    assert (delta.text, bytes(delta.token_ids)) == ("ab", b"abcd")
    assert delta.usage is not None
    assert delta.usage.num_generated_tokens == 4


def test_stop_string_inside_a_token() -> None:
    delta = read(outputs_of(stop_strings=("<stop>",)), ["a", [LONG], "b"], FinishReason.LENGTH)
    assert (delta.text, delta.token_ids) == ("aone", (97, LONG))
    assert delta.finish == OutputFinish(FinishReason.STOP, stop_string="<stop>")


def test_text_held_back_for_a_stop_string_is_shown_at_the_end() -> None:
    outputs = outputs_of(output=OutputOptions(), stop_strings=("stop",))
    assert send(outputs, "sto") == (None, None, None)
    delta, _, _ = send(outputs, "", FinishReason.LENGTH)
    assert delta is not None
    assert (delta.text, delta.finish) == ("sto", OutputFinish(FinishReason.LENGTH))


def test_an_expression_ends_the_output_as_a_stop_string_does() -> None:
    for pieces in splits("xst0p!"):
        delta = read(outputs_of(stop_regex=("[a-z]t[0-9]p",)), pieces, FinishReason.LENGTH)
        assert (delta.text, delta.finish) == ("x", OutputFinish(FinishReason.STOP, stop_regex="[a-z]t[0-9]p"))
        assert bytes(delta.token_ids) == b"xst0p"


def test_expressions_and_stop_strings_together() -> None:
    both: dict[str, Any] = {"stop_regex": ("b+c",), "stop_strings": ("d",)}
    by_string = read(outputs_of(**both), ["ab", "d", "bc"], FinishReason.LENGTH)
    assert (by_string.text, by_string.finish) == ("ab", OutputFinish(FinishReason.STOP, stop_string="d"))
    by_regex = read(outputs_of(**both, include_stop=True), ["ab", "bc", "d"], FinishReason.LENGTH)
    assert (by_regex.text, by_regex.finish) == ("abbc", OutputFinish(FinishReason.STOP, stop_regex="b+c"))


def test_expressions_are_not_looked_for_in_the_first_tokens() -> None:
    outputs = outputs_of(stop_regex=("^ab",), min_new_tokens=2)
    delta = read(outputs, ["ab", "ab", "c"], FinishReason.LENGTH)
    assert (delta.text, delta.finish) == ("ababc", OutputFinish(FinishReason.LENGTH))


@pytest.mark.parametrize(
    "reason", [FinishReason.LENGTH, FinishReason.ABORT, FinishReason.DEADLINE, FinishReason.TIME]
)
def test_a_stop_string_found_first_is_the_reason(reason: FinishReason) -> None:
    assert read(outputs_of(stop_strings=("b",)), ["a", "b", "c"], reason).finish == OutputFinish(
        FinishReason.STOP, stop_string="b"
    )
    completed_by_last = read(outputs_of(stop_strings=("b",)), ["a", "b"], reason)
    assert completed_by_last.finish == OutputFinish(FinishReason.STOP, stop_string="b")


def test_stop_strings_are_found_where_no_text_is_asked_for() -> None:
    output = OutputOptions(text=False, token_ids=True)
    delta = read(outputs_of(output=output, stop_strings=("b",)), ["a", "b", "c"], FinishReason.LENGTH)
    assert (delta.text, bytes(delta.token_ids)) == ("", b"ab")


def test_stop_strings_are_not_looked_for_in_the_first_tokens() -> None:
    outputs = outputs_of(stop_strings=("ab",), min_new_tokens=3)
    delta = read(outputs, ["ab", "a", "b", "ab", "c"], FinishReason.LENGTH)
    # The third token is one of the first three, so what begins in it is not looked for either.
    assert (delta.text, bytes(delta.token_ids)) == ("abab", b"ababab")


def test_a_stop_token_counts_and_has_no_text() -> None:
    outputs = outputs_of(stop_token_ids=(ord("c"),))
    delta = read(outputs, ["ab", "c"], FinishReason.STOP)
    assert (delta.text, bytes(delta.token_ids)) == ("ab", b"abc")
    assert delta.finish == OutputFinish(FinishReason.STOP, stop_token_id=ord("c"))
    assert delta.usage is not None
    assert delta.usage.num_generated_tokens == 3


@pytest.mark.parametrize(("token_id", "text"), [(ord("c"), "abc"), (EOS, "ab<eos>")])
def test_a_stop_token_has_text_if_it_is_to_be_included(token_id: int, text: str) -> None:
    delta = read(outputs_of(include_stop=True), ["a", [ord("b"), token_id]], FinishReason.STOP)
    assert delta.text == text


def test_a_stop_string_before_the_stop_token_in_one_piece() -> None:
    delta = read(outputs_of(stop_strings=("b",)), ["a", [98, 99, EOS]], FinishReason.STOP)
    assert delta.finish == OutputFinish(FinishReason.STOP, stop_string="b")
    assert delta.token_ids == (97, 98)


def test_echo_is_the_prompt_of_each_output() -> None:
    outputs = outputs_of("ab", replace(BOTH, echo=True), num_outputs=2)
    assert list(outputs.echo()) == [OutputDelta(i, "ab", (97, 98)) for i in range(2)]
    assert list(outputs_of("ab").echo()) == []


def test_usage_comes_with_the_last_of_several_outputs() -> None:
    outputs = outputs_of(num_outputs=3)
    first, end, _ = send(outputs, "a", FinishReason.LENGTH, 2, num_cached_tokens=4, first_token_time=20.0)
    assert (first and first.finish, first and first.usage, end) == (
        OutputFinish(FinishReason.LENGTH),
        None,
        None,
    )
    send(outputs, "abc", FinishReason.STOP, 0, num_cached_tokens=1, finished_time=14.0)
    last, end, _ = send(
        outputs, "ab", FinishReason.ABORT, 1, first_scheduled_time=None, first_token_time=None
    )
    usage, timings = Usage(4, 1, 6), Timings(queued=1.0, first_token=2.0, total=4.0)
    assert last is not None
    assert (last.usage, last.timings) == (usage, timings)
    assert end is not None
    assert replace(end, outputs=()) == RequestEnd(
        FinishReason.ABORT, usage, timings, num_preemptions=3
    )  # the gravest
    assert [output.reason.value for output in end.outputs] == ["length", "stop", "abort"], "as they ended"


def test_one_output_that_fails_fails_the_request() -> None:
    outputs = outputs_of(num_outputs=3)
    assert send(outputs, "a", FinishReason.LENGTH, 0)[0] is not None
    assert send(outputs, "", FinishReason.ERROR, 1, error="boom") == (None, None, FinishReason.ERROR)
    assert send(outputs, "b", None, 2) == (None, None, None)
    delta, end, wanted = send(outputs, "", FinishReason.ABORT, 2)
    assert (delta, wanted) == (None, None)
    assert end is not None
    assert (end.reason, end.error) == (FinishReason.ERROR, "boom")


def test_a_criterion_is_named_and_its_token_is_text() -> None:
    criteria = (NamedSpec("once"), NamedSpec("twice"))
    outputs = outputs_of(stopping_criteria=criteria)
    send(outputs, "a")
    delta, _, _ = send(outputs, "b", FinishReason.STOP, criterion=1)
    assert delta is not None
    assert (delta.text, delta.finish) == ("b", OutputFinish(FinishReason.STOP, criterion="twice"))


def scores(token_ids: Sequence[int], top: int = 0) -> tuple[TokenLogprobs, ...]:
    """Of each token -id / 8, which adds up exactly; the others are the ids after it."""
    return tuple(
        TokenLogprobs(
            -token_id / 8,
            tuple(range(token_id, token_id + top)),
            tuple(-(token_id + rank) / 8 for rank in range(top)),
        )
        for token_id in token_ids
    )


def test_log_probabilities_come_with_their_tokens_and_texts() -> None:
    outputs = outputs_of(logprobs=2)
    sent = SequenceOutput("id", 0, (97, 98), logprobs=scores((97, 98), 2))
    delta = outputs.take(sent).delta
    assert delta is not None
    first, second = delta.logprobs
    assert first == TokenLogprob(
        97, -97 / 8, "a", (TokenLogprob(97, -97 / 8, "a"), TokenLogprob(98, -98 / 8, "b"))
    )
    assert second.token_id == 98
    last = replace(SUMMARY, finish_reason=FinishReason.STOP)
    delta = outputs.take(SequenceOutput("id", 0, (EOS,), last, scores((EOS,), 2))).delta
    assert delta is not None
    assert delta.finish is not None
    assert delta.finish.cumulative_logprob == -(97 + 98 + EOS) / 8
    assert [scored.text for scored in delta.logprobs] == ["<eos>"]


def test_log_probabilities_end_with_the_token_that_completed_the_stop_string() -> None:
    outputs = outputs_of(stop_strings=("b",), logprobs=0)
    delta = outputs.take(SequenceOutput("id", 0, (97, 98, 99), None, scores((97, 98, 99)))).delta
    assert delta is not None
    assert [scored.token_id for scored in delta.logprobs] == [97, 98]
    assert outputs.take(SequenceOutput("id", 0, (100,), None, scores((100,)))).delta is None
    delta = outputs.take(SequenceOutput("id", 0, (101,), SUMMARY, scores((101,)))).delta
    assert delta is not None
    assert delta.finish == OutputFinish(FinishReason.STOP, stop_string="b", cumulative_logprob=-(97 + 98) / 8)


def test_no_texts_where_no_text_is_asked_for() -> None:
    outputs = outputs_of(output=OutputOptions(text=False, token_ids=True), logprobs=1)
    delta = outputs.take(SequenceOutput("id", 0, (97,), None, scores((97,), 1))).delta
    assert delta is not None
    assert delta.logprobs == (TokenLogprob(97, -97 / 8, "", (TokenLogprob(97, -97 / 8, ""),)),)


def test_the_prompts_log_probabilities_come_piece_by_piece_with_its_tokens() -> None:
    outputs = outputs_of("seed", prompt_logprobs=0)
    taken = [
        outputs.take(SequenceOutput("id", 0, (), prompt_logprobs=scores(piece))).delta
        for piece in (b"e", b"ed")
    ]
    found = [
        (each.text, each.logprob) for delta in taken if delta is not None for each in delta.prompt_logprobs
    ]
    assert found == [("e", -101 / 8), ("e", -101 / 8), ("d", -100 / 8)]


def test_the_best_of_several_come_at_the_end_with_new_numbers() -> None:
    outputs = outputs_of(num_outputs=2, best_of=3, prompt_logprobs=0)
    prompt = outputs.take(SequenceOutput("id", 0, (), prompt_logprobs=scores(b"eed")))
    assert prompt.delta is not None
    assert len(prompt.delta.prompt_logprobs) == 3
    for index, text in enumerate((b"yz", b"bb", b"aa")):
        assert outputs.take(SequenceOutput("id", index, tuple(text), None, scores(text))) == Taken()
    for index in (2, 0):
        assert outputs.take(SequenceOutput("id", index, (), SUMMARY)) == Taken()
    taken = outputs.take(SequenceOutput("id", 1, (99,), SUMMARY, scores((99,))))
    (first,), second = taken.before, taken.delta
    assert second is not None
    assert (first.output_index, first.text, first.usage) == (0, "aa", None)
    assert (second.output_index, second.text) == (1, "yz")
    assert second.usage == Usage(4, 0, num_generated_tokens=7)  # of all three
    assert first.finish == OutputFinish(FinishReason.LENGTH, cumulative_logprob=-2 * 97 / 8)
    assert (first.logprobs, second.logprobs) == ((), ())  # not asked for
    assert taken.end is not None


def test_an_error_in_one_of_the_best_fails_all() -> None:
    outputs = outputs_of(num_outputs=1, best_of=2)
    failed = replace(SUMMARY, finish_reason=FinishReason.ERROR, error="boom")
    assert outputs.take(SequenceOutput("id", 0, (97,), SUMMARY, scores((97,)))) == Taken()
    taken = outputs.take(SequenceOutput("id", 1, (), failed))
    assert (taken.delta, taken.before) == (None, ())
    assert taken.end is not None
    assert taken.end.error == "boom"


def test_hypotheses_of_a_beam_search_come_whole_with_their_scores() -> None:
    outputs = outputs_of(num_outputs=2, temperature=0.0, beam=BeamParams(3))
    delta, _, _ = send(outputs, [97, EOS], FinishReason.STOP, 0, score=-0.5)
    assert delta is not None
    assert (delta.text, delta.finish) == ("a", OutputFinish(FinishReason.STOP, stop_token_id=EOS, score=-0.5))
    delta, end, _ = send(outputs, "bc", FinishReason.LENGTH, 1, score=-0.75)
    assert delta is not None
    assert (delta.text, delta.finish) == ("bc", OutputFinish(FinishReason.LENGTH, score=-0.75))
    assert end is not None


class Processing:
    """An OutputProcessor whose deliveries, and requests to the engine, queue up."""

    def __init__(self) -> None:
        self.delivered: queue.SimpleQueue[list[Delivery] | EngineEnd] = queue.SimpleQueue()
        self.asked: queue.SimpleQueue[tuple[str, int | None, FinishReason]] = queue.SimpleQueue()
        self.metrics = Metrics(fake_engine().scheduler.stats)
        self.now = 10.0
        self.processor = OutputProcessor(
            self.delivered.put, lambda *args: self.asked.put(args), self.metrics, lambda: self.now
        )
        self.processor.start()

    def add(self, request_id: str, **params: Any) -> RequestOutputs:
        outputs = outputs_of(**params)
        outputs.request = replace(outputs.request, request_id=request_id)
        self.processor.add(outputs)
        return outputs

    def step(self, now: float, *outputs: SequenceOutput) -> None:
        self.now = now
        self.processor.put(list(outputs))


@pytest.fixture
def processing() -> Iterator[Processing]:
    processing = Processing()
    yield processing
    processing.processor.end(None)
    while not isinstance(processing.delivered.get(timeout=30), EngineEnd):
        pass


def test_a_step_is_delivered_at_once(processing: Processing) -> None:
    processing.add("a")
    processing.add("b", stop_strings=("2",))
    processing.step(10.0, SequenceOutput("a", 0, (49,)), SequenceOutput("b", 0, (50,)))
    assert processing.delivered.get(timeout=30) == [
        Delivery("a", OutputDelta(0, "1", (49,)), None),
        Delivery("b", OutputDelta(0, "", (50,)), None),
    ]
    assert processing.asked.get(timeout=30) == ("b", 0, FinishReason.STOP)


def test_a_request_whose_text_cannot_be_made_fails_alone(
    processing: Processing, caplog: pytest.LogCaptureFixture
) -> None:
    bad = processing.add("bad", num_outputs=2)
    processing.add("good")

    def explode(token_ids: Sequence[int]) -> tuple[str, int]:
        raise RuntimeError("no such token")

    bad._outputs[1]._text.add = explode  # type: ignore[union-attr, method-assign]
    tokens = [SequenceOutput("bad", i, (49,)) for i in range(2)]
    processing.step(10.0, *tokens, SequenceOutput("good", 0, (50,)))
    assert processing.asked.get(timeout=30) == ("bad", None, FinishReason.ERROR)
    ended = replace(SUMMARY, finish_reason=FinishReason.ERROR)
    processing.step(11.0, *(SequenceOutput("bad", i, (), ended) for i in range(2)))
    first, second = processing.delivered.get(timeout=30), processing.delivered.get(timeout=30)
    assert isinstance(first, list)
    assert [delivery.request_id for delivery in first] == ["bad", "good"]
    assert isinstance(second, list)
    (delivery,) = second
    assert delivery.end is not None
    assert (delivery.delta, delivery.end.error) == (None, "RuntimeError: no such token")
    assert "request bad: no text for its tokens" in caplog.text


def test_latencies_are_of_the_tokens_not_of_the_thread(processing: Processing) -> None:
    processing.add("a")
    processing.add("b")
    processing.step(10.5, SequenceOutput("a", 0, (49,)), SequenceOutput("b", 0, (49,)))
    processing.step(10.52, SequenceOutput("a", 0, (49,)), SequenceOutput("b", 0, (49,)))
    processing.step(10.6, SequenceOutput("a", 0, (49, 49, 49, 49)))
    processing.processor.end(None)
    while not isinstance(processing.delivered.get(timeout=30), EngineEnd):
        pass
    processing.processor.end(None)
    processing.delivered.put(EngineEnd(None))  # for the fixture: this thread has ended
    found = scrape(processing.metrics)
    first, between = "inflight_time_to_first_token_seconds", "inflight_inter_token_latency_seconds"
    assert (found[f"{first}_count"], found[f"{between}_count"]) == (2, 6)
    assert found[f"{first}_sum"] == pytest.approx(2 * 0.5)
    assert found[f"{between}_sum"] == pytest.approx(2 * 0.02 + 0.08)
    assert found[f"{between}_bucket 0.025"] == 6
    assert found[f"{between}_bucket 0.015"] == 0


def test_a_processor_that_fails_says_so(caplog: pytest.LogCaptureFixture) -> None:
    processing = Processing()
    processing.step(10.0, SequenceOutput("unknown", 0, (49,)))
    end = processing.delivered.get(timeout=30)
    assert isinstance(end, EngineEnd)
    assert isinstance(end.error, KeyError)
    assert "the output thread failed" in caplog.text
