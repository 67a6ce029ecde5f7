"""What becomes of one request's token ids: text, stops, log-probabilities, ends, usage. The output thread's
alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from engine.sampling.params import SamplingParams
from engine.serving.best_of import BestOf
from engine.serving.output_text import OutputText
from engine.serving.scoring import TokenScorer
from engine.serving.types import OutputDelta, OutputFinish, OutputOptions, Timings, TokenLogprob, Usage
from scheduler.request import FinishReason, Request, SequenceOutput, SequenceSummary
from scheduler.step import TokenLogprobs

# The first of these among a request's outputs is its own reason: what went wrong outweighs what went well.
_GRAVITY = (
    FinishReason.ERROR,
    FinishReason.DEADLINE,
    FinishReason.ABORT,
    FinishReason.TIME,
    FinishReason.LENGTH,
    FinishReason.STOP,
)


class OutputEnd(NamedTuple):
    """How one output went. num_sampled: tokens, also those after a stop string. decode_seconds: from its
    first token to its end; None if it has no token.
    """

    reason: FinishReason
    num_sampled: int
    decode_seconds: float | None


@dataclass(frozen=True, slots=True)
class RequestEnd:
    """How a request went, all its outputs having ended.

    error: what went wrong, with FinishReason.ERROR. outputs: in the order of their ends.
    """

    reason: FinishReason
    usage: Usage
    timings: Timings
    num_preemptions: int = 0
    error: str | None = None
    outputs: tuple[OutputEnd, ...] = ()


class Taken(NamedTuple):
    """delta: for the reader, if there is anything to tell. end: with the last output of the request.

    wanted: what to ask the engine for: STOP ends this output, ERROR all others. before: other outputs, whole,
    which the reader gets first.
    """

    delta: OutputDelta | None = None
    end: RequestEnd | None = None
    wanted: FinishReason | None = None
    before: tuple[OutputDelta, ...] = ()


class _Output:
    """One output on its way to the reader."""

    def __init__(self, text: OutputText | None) -> None:
        self.finish: OutputFinish | None = None
        self.num_tokens = 0
        self._logprob = 0.0
        self._text = text

    @property
    def reason(self) -> FinishReason | None:
        return None if self.finish is None else self.finish.reason

    @property
    def stop(self) -> str | None:
        """The stop string or expression that was found."""
        return None if self._text is None else self._text.stop

    def drop_text(self) -> None:
        self._text = None

    def read(self, token_ids: Sequence[int]) -> tuple[str, int]:
        """The text of new tokens, and how many of them belong to the output."""
        text, num_tokens = "", len(token_ids)
        if self.stop is not None:
            num_tokens = 0  # sampled before the engine knew
        elif self._text is not None:
            text, num_tokens = self._text.add(token_ids)
        self.num_tokens += num_tokens
        return text, num_tokens

    def read_last(self, token_ids: Sequence[int], has_stop: bool) -> tuple[str, int]:
        """As `read`, for the last tokens. has_stop: the last of them is a stop token."""
        stop = token_ids[-1:] if has_stop else ()
        text, num_kept = self.read(token_ids[: len(token_ids) - len(stop)])
        if self.stop is None:
            self.num_tokens += len(stop)
            num_kept += len(stop)
            text += self._text.end(*stop) if self._text is not None else ""
        return text, num_kept

    def add_logprobs(self, logprobs: Sequence[TokenLogprobs]) -> None:
        for scored in logprobs:
            self._logprob += scored.logprob

    def end(self, finish: OutputFinish, is_scored: bool) -> None:
        """A stop string or expression makes a STOP of any other end."""
        if self._text is not None and self.stop is not None:
            by_regex = self._text.is_regex
            string, regex = (None, self.stop) if by_regex else (self.stop, None)
            finish = OutputFinish(FinishReason.STOP, stop_string=string, stop_regex=regex)
        if is_scored:
            finish = replace(finish, cumulative_logprob=self._logprob)
        self.finish = finish


class RequestOutputs:
    """The outputs of one request.

    For its reader an output ends when the scheduler has ended it, so its blocks are back by then. A stop
    string is found here, before the scheduler knows: the text up to it is passed on at once, the engine is
    asked to finish the output, and what it samples until it does is dropped. Expressions likewise.

    A token is generated, counted, and passed on where ids are wanted, up to and including the one that ended
    the output: the stop token, or the token that completed the stop string. include_stop decides on text
    alone. (vLLM and TGI count likewise.)

    last_times: when tokens of each output last came, in the engine's seconds; whoever measures it writes it.
    """

    def __init__(
        self,
        request: Request,
        params: SamplingParams,
        options: OutputOptions,
        texts: Sequence[OutputText | None],
        scorer: TokenScorer,
        prompt_text: str = "",
    ) -> None:
        """params: as the client asked. texts: one for each output; None where neither text nor stop strings
        or expressions are asked for. prompt_text: for echo.
        """
        self.request = request
        self.last_times: list[float | None] = [None] * len(texts)
        self._params = params
        self._options = options
        self._prompt_text = prompt_text
        self._scorer = scorer
        self._outputs = [_Output(text) for text in texts]
        self._best = BestOf(params.num_outputs) if params.best_of is not None else None
        self._is_scored = params.logprobs is not None or params.best_of is not None
        self._num_prompt_scored = 1  # the first token has no log-probability
        self._summaries: dict[int, SequenceSummary] = {}
        self._error: str | None = None

    @property
    def arrival_time(self) -> float:
        return self.request.arrival_time

    def guide(self, grammar: object) -> None:
        """Before the engine gets the request: what its `guided` was compiled to."""
        params = self.request.sampling
        assert isinstance(params, SamplingParams), params
        self.request = replace(self.request, sampling=replace(params, grammar=grammar))

    def echo(self) -> Iterator[OutputDelta]:
        """What comes before anything that is generated."""
        if self._options.echo:
            text = self._prompt_text if self._options.text else ""
            token_ids = tuple(self.request.prompt_token_ids) if self._options.token_ids else ()
            for index in range(self._params.num_outputs):
                yield OutputDelta(index, text, token_ids)

    def take(self, sent: SequenceOutput) -> Taken:
        """What the engine sent for one output."""
        taken = self._take(sent) if sent.summary is None else self._take_last(sent, sent.summary)
        if self._best is None or taken.delta is None:
            return taken
        prompt = self._best.hold(taken.delta)
        if taken.end is None:
            return taken._replace(delta=prompt)
        *before, last = self._best.best()
        return taken._replace(delta=last, before=(*([prompt] if prompt is not None else ()), *before))

    def fail(self, error: str, sent: SequenceOutput) -> Taken:
        """Instead of a `take` that raised: the request is to end with this error."""
        self._error = self._error or error
        for output in self._outputs:
            output.drop_text()
        return self.take(sent)._replace(wanted=FinishReason.ERROR)

    def _take(self, sent: SequenceOutput) -> Taken:
        output = self._outputs[sent.output_index]
        was_open = output.stop is None
        text, num_kept = output.read(sent.token_ids)
        delta = self._delta(sent, text, num_kept)
        wanted = FinishReason.STOP if was_open and output.stop is not None else None
        has_news = delta.text or delta.token_ids or delta.logprobs or delta.prompt_logprobs
        return Taken(delta if has_news and self._error is None else None, wanted=wanted)

    def _take_last(self, sent: SequenceOutput, summary: SequenceSummary) -> Taken:
        assert sent.output_index not in self._summaries, "an output ends once"
        output, reason = self._outputs[sent.output_index], summary.finish_reason
        has_stop = reason is FinishReason.STOP and summary.criterion is None
        text, num_kept = output.read_last(sent.token_ids, has_stop)
        delta = self._delta(sent, text, num_kept)
        output.end(self._finish(sent.token_ids, summary), self._is_scored)
        self._summaries[sent.output_index] = summary
        wanted = None
        if output.reason is FinishReason.ERROR and self._error is None:
            self._error, wanted = summary.error or "the step failed", FinishReason.ERROR
        end = self._end() if len(self._summaries) == len(self._outputs) else None
        if self._error is not None:
            return Taken(None, end, wanted)
        usage, timings = (end.usage, end.timings) if end is not None else (None, None)
        return Taken(replace(delta, finish=output.finish, usage=usage, timings=timings), end)

    def _finish(self, token_ids: Sequence[int], summary: SequenceSummary) -> OutputFinish:
        reason, stop_token_id, criterion = summary.finish_reason, None, None
        if summary.criterion is not None:
            criterion = self._params.stopping_criteria[summary.criterion].name
        elif reason is FinishReason.STOP and token_ids:
            stop_token_id = token_ids[-1]
        return OutputFinish(reason, stop_token_id=stop_token_id, criterion=criterion, score=summary.score)

    def _delta(self, sent: SequenceOutput, text: str, num_kept: int) -> OutputDelta:
        delta = OutputDelta(
            sent.output_index,
            text if self._options.text else "",
            sent.token_ids[:num_kept] if self._options.token_ids else (),
        )
        if not sent.logprobs and not sent.prompt_logprobs:
            return delta
        logprobs = sent.logprobs[:num_kept]
        self._outputs[sent.output_index].add_logprobs(logprobs)
        told = logprobs if self._params.logprobs is not None else ()
        return replace(
            delta,
            logprobs=self._scorer.score(sent.token_ids, told),
            prompt_logprobs=self._score_prompt(sent.prompt_logprobs),
        )

    def _score_prompt(self, logprobs: Sequence[TokenLogprobs]) -> tuple[TokenLogprob, ...]:
        begin = self._num_prompt_scored
        self._num_prompt_scored += len(logprobs)
        return self._scorer.score(self.request.prompt_token_ids[begin : self._num_prompt_scored], logprobs)

    def _end(self) -> RequestEnd:
        summaries, arrival = self._summaries.values(), self.request.arrival_time
        first = self._summaries[0]  # the others find what this one has computed, but that was no saving
        num_tokens = sum(output.num_tokens for output in self._outputs)
        reasons = {output.reason for output in self._outputs} if self._error is None else {FinishReason.ERROR}
        return RequestEnd(
            reason=next(reason for reason in _GRAVITY if reason in reasons),
            usage=Usage(first.num_prompt_tokens, first.num_cached_tokens, num_tokens),
            timings=Timings(
                queued=_earliest(arrival, [summary.first_scheduled_time for summary in summaries]),
                first_token=_earliest(arrival, [summary.first_token_time for summary in summaries]),
                total=max(summary.finished_time for summary in summaries) - arrival,
            ),
            num_preemptions=sum(summary.num_preemptions for summary in summaries),
            error=self._error,
            outputs=tuple(map(_output_end, summaries)),
        )


def _output_end(summary: SequenceSummary) -> OutputEnd:
    first = summary.first_token_time
    seconds = None if first is None else summary.finished_time - first
    return OutputEnd(summary.finish_reason, summary.num_generated_tokens, seconds)


def _earliest(arrival: float, times: Sequence[float | None]) -> float | None:
    """Seconds from the arrival to the first of the times that are known."""
    known = [time for time in times if time is not None]
    return min(known) - arrival if known else None
