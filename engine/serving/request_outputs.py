"""What becomes of one request's token ids: text, stop strings, ends, usage. The output thread's alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from engine.serving.output_text import OutputText
from engine.serving.types import OutputDelta, OutputFinish, OutputOptions, Timings, Usage
from scheduler.request import FinishReason, Request, SequenceOutput, SequenceSummary

# The first of these among a request's outputs is its own reason: what went wrong outweighs what went well.
_GRAVITY = (
    FinishReason.ERROR,
    FinishReason.DEADLINE,
    FinishReason.ABORT,
    FinishReason.LENGTH,
    FinishReason.STOP,
)


@dataclass(frozen=True, slots=True)
class RequestEnd:
    """How a request went, all its outputs having ended. error: what went wrong, with FinishReason.ERROR."""

    reason: FinishReason
    usage: Usage
    timings: Timings
    num_preemptions: int = 0
    error: str | None = None


class Taken(NamedTuple):
    """delta: for the reader, if there is anything to tell. end: with the last output of the request.

    wanted: what to ask the engine for: STOP ends this output, ERROR all others.
    """

    delta: OutputDelta | None = None
    end: RequestEnd | None = None
    wanted: FinishReason | None = None


class _Output:
    """One output on its way to the reader. last_time: when its last tokens came, in the engine's seconds."""

    def __init__(self, text: OutputText | None) -> None:
        self.finish: OutputFinish | None = None
        self.last_time: float | None = None
        self.num_tokens = 0
        self._text = text

    @property
    def reason(self) -> FinishReason | None:
        return None if self.finish is None else self.finish.reason

    @property
    def stop_string(self) -> str | None:
        return None if self._text is None else self._text.stop_string

    def drop_text(self) -> None:
        self._text = None

    def read(self, token_ids: Sequence[int]) -> tuple[str, Sequence[int]]:
        """The text of new tokens, and those of them that belong to the output."""
        text, num_tokens = "", len(token_ids)
        if self.stop_string is not None:
            num_tokens = 0  # sampled before the engine knew
        elif self._text is not None:
            text, num_tokens = self._text.add(token_ids)
        self.num_tokens += num_tokens
        return text, token_ids[:num_tokens]

    def read_last(self, token_ids: Sequence[int], reason: FinishReason) -> tuple[str, Sequence[int]]:
        """As `read`, for the last tokens; sets `finish`. A stop string makes a STOP of any other end."""
        stop = token_ids[-1:] if reason is FinishReason.STOP else ()
        text, kept = self.read(token_ids[: len(token_ids) - len(stop)])
        if self.stop_string is None:
            self.num_tokens += len(stop)
            kept = token_ids
            text += self._text.end(*stop) if self._text is not None else ""
        if self.stop_string is not None:
            self.finish = OutputFinish(FinishReason.STOP, stop_string=self.stop_string)
        else:
            self.finish = OutputFinish(reason, stop_token_id=stop[0] if stop else None)
        return text, kept


class RequestOutputs:
    """The outputs of one request.

    For its reader an output ends when the scheduler has ended it, so its blocks are back by then. A stop
    string
    is found here, before the scheduler knows: the text up to it is passed on at once, the engine is asked to
    finish the output, and what it samples until it does is dropped.

    A token is generated, counted, and passed on where ids are wanted, up to and including the one that ended
    the
    output: the stop token, or the token that completed the stop string. include_stop decides on text alone.
    (vLLM and TGI count likewise.)
    """

    def __init__(
        self,
        request: Request,
        options: OutputOptions,
        texts: Sequence[OutputText | None],
        prompt_text: str = "",
    ) -> None:
        """texts: one for each output; None where neither text nor stop strings are asked for.

        prompt_text: for echo.
        """
        self.request = request
        self._options = options
        self._prompt_text = prompt_text
        self._outputs = [_Output(text) for text in texts]
        self._summaries: dict[int, SequenceSummary] = {}
        self._error: str | None = None

    def echo(self) -> Iterator[OutputDelta]:
        """What comes before anything that is generated."""
        if self._options.echo:
            for index in range(len(self._outputs)):
                yield self._delta(index, self._prompt_text, self.request.prompt_token_ids)

    def take(self, sent: SequenceOutput) -> Taken:
        """What the engine sent for one output."""
        output = self._outputs[sent.output_index]
        if sent.summary is not None:
            return self._take_last(output, sent, sent.summary)
        was_open = output.stop_string is None
        delta = self._delta(sent.output_index, *output.read(sent.token_ids))
        wanted = FinishReason.STOP if was_open and output.stop_string is not None else None
        has_news = self._error is None and (delta.text or delta.token_ids)
        return Taken(delta if has_news else None, wanted=wanted)

    def fail(self, error: str, sent: SequenceOutput) -> Taken:
        """Instead of a `take` that raised: the request is to end with this error."""
        self._error = self._error or error
        for output in self._outputs:
            output.drop_text()
        return self.take(sent)._replace(wanted=FinishReason.ERROR)

    def seconds_since_last(self, output_index: int, now: float) -> float | None:
        """Since this output's previous tokens; None for its first."""
        output = self._outputs[output_index]
        last, output.last_time = output.last_time, now
        return None if last is None else now - last

    def _take_last(self, output: _Output, sent: SequenceOutput, summary: SequenceSummary) -> Taken:
        assert sent.output_index not in self._summaries, "an output ends once"
        text, token_ids = output.read_last(sent.token_ids, summary.finish_reason)
        self._summaries[sent.output_index] = summary
        wanted = None
        if output.reason is FinishReason.ERROR and self._error is None:
            self._error, wanted = summary.error or "the step failed", FinishReason.ERROR
        end = self._end() if len(self._summaries) == len(self._outputs) else None
        if self._error is not None:
            return Taken(None, end, wanted)
        delta = self._delta(sent.output_index, text, token_ids)
        usage, timings = (end.usage, end.timings) if end is not None else (None, None)
        return Taken(replace(delta, finish=output.finish, usage=usage, timings=timings), end)

    def _delta(self, output_index: int, text: str, token_ids: Sequence[int]) -> OutputDelta:
        return OutputDelta(
            output_index,
            text if self._options.text else "",
            tuple(token_ids) if self._options.token_ids else (),
        )

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
        )


def _earliest(arrival: float, times: Sequence[float | None]) -> float | None:
    """Seconds from the arrival to the first of the times that are known."""
    known = [time for time in times if time is not None]
    return min(known) - arrival if known else None
