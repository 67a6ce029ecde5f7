"""How requests go, each counted once, when it ends or is refused. Observed on the event loop."""

from collections import Counter
from collections.abc import Iterator

from engine.sampling.params import SamplingParams
from engine.serving.metrics import request_specs as specs
from engine.serving.metrics.histogram import (
    ITL_BUCKETS,
    LATENCY_BUCKETS,
    NUM_OUTPUTS_BUCKETS,
    NUM_PREEMPTIONS_BUCKETS,
    Histogram,
    token_buckets,
)
from engine.serving.metrics.request_specs import Interruption, Stage
from engine.serving.metrics.scheduling import by_reason
from engine.serving.metrics.specs import Family, single
from engine.serving.request_outputs import OutputEnd, RequestEnd
from scheduler.request import FinishReason

_BY_THEMSELVES = (FinishReason.STOP, FinishReason.LENGTH)


class RequestMetrics:
    """num_ended: accepted requests. num_rejected: the others. num_slow_readers: of either."""

    def __init__(self, max_model_len: int) -> None:
        """max_model_len: the longest sequence."""
        sizes = token_buckets(max_model_len)
        self.num_ended: Counter[FinishReason] = Counter(dict.fromkeys(FinishReason, 0))
        self.num_rejected: Counter[str] = Counter(dict.fromkeys(specs.REFUSALS, 0))
        self.num_slow_readers = 0
        self._interruptions = Counter({(why, stage): 0 for why in Interruption for stage in Stage})
        self._latency = Histogram(LATENCY_BUCKETS)
        self._prepare_time = Histogram(LATENCY_BUCKETS)
        self._queue_time = Histogram(LATENCY_BUCKETS)
        self._prefill_time = Histogram(LATENCY_BUCKETS)
        self._decode_time = Histogram(LATENCY_BUCKETS)
        self._inference_time = Histogram(LATENCY_BUCKETS)
        self._time_per_token = Histogram(ITL_BUCKETS)
        self._prompt_tokens = Histogram(sizes)
        self._generated_tokens = Histogram(sizes)
        self._computed_prompt_tokens = Histogram(sizes)
        self._max_tokens = Histogram(sizes)
        self._num_outputs = Histogram(NUM_OUTPUTS_BUCKETS)
        self._num_preemptions = Histogram(NUM_PREEMPTIONS_BUCKETS)

    def observe_prepared(self, seconds: float) -> None:
        """The engine has got a request, so long after its arrival."""
        self._prepare_time.observe(seconds)

    def observe_end(
        self, params: SamplingParams, end: RequestEnd, why: Interruption | None, *, is_submitted: bool
    ) -> None:
        """An accepted request has ended.

        params: as asked for. why: of an ABORT. is_submitted: whether the engine had it.
        """
        self._count_end(end.reason, end.timings.total, why, _stage(end, is_submitted))
        if end.usage.num_prompt_tokens:  # else the engine has not told how it went
            self._observe_times(end)
            self._observe_sizes(params, end)

    def observe_left(self, reason: FinishReason) -> None:
        """The client of a request was gone before it could be accepted."""
        self._count_end(reason, 0.0, Interruption.CLIENT_LEFT, Stage.PREPARING)

    def _count_end(
        self, reason: FinishReason, seconds: float, why: Interruption | None, stage: Stage
    ) -> None:
        self.num_ended[reason] += 1
        self._latency.observe(seconds)
        if (interruption := _interruption(reason, why)) is not None:
            self._interruptions[interruption, stage] += 1

    def _observe_times(self, end: RequestEnd) -> None:
        queued, first_token, total = end.timings.queued, end.timings.first_token, end.timings.total
        if queued is not None:
            self._queue_time.observe(queued)
            self._inference_time.observe(total - queued)
            if first_token is not None:
                self._prefill_time.observe(first_token - queued)
                self._decode_time.observe(total - first_token)
        for output in end.outputs:
            self._observe_output(output)

    def _observe_output(self, output: OutputEnd) -> None:
        if output.reason in _BY_THEMSELVES and output.num_sampled > 1 and output.decode_seconds is not None:
            self._time_per_token.observe(output.decode_seconds / (output.num_sampled - 1))

    def _observe_sizes(self, params: SamplingParams, end: RequestEnd) -> None:
        usage = end.usage
        self._prompt_tokens.observe(usage.num_prompt_tokens)
        self._computed_prompt_tokens.observe(usage.num_prompt_tokens - usage.num_cached_tokens)
        self._generated_tokens.observe(usage.num_generated_tokens)
        self._num_outputs.observe(params.num_outputs)
        self._num_preemptions.observe(end.num_preemptions)
        if params.max_new_tokens is not None:
            self._max_tokens.observe(params.max_new_tokens)

    def families(self) -> Iterator[Family]:
        yield by_reason(specs.ENDED, self.num_ended)
        yield by_reason(specs.REJECTIONS, self.num_rejected)
        interruptions = (((why.value, stage.value), n) for (why, stage), n in self._interruptions.items())
        yield Family(specs.INTERRUPTIONS, tuple(interruptions))
        yield single(specs.SLOW_READERS, self.num_slow_readers)
        for spec, histogram in (
            (specs.LATENCY, self._latency),
            (specs.PREPARE_TIME, self._prepare_time),
            (specs.QUEUE_TIME, self._queue_time),
            (specs.PREFILL_TIME, self._prefill_time),
            (specs.DECODE_TIME, self._decode_time),
            (specs.INFERENCE_TIME, self._inference_time),
            (specs.TIME_PER_TOKEN, self._time_per_token),
            (specs.PROMPT_TOKENS, self._prompt_tokens),
            (specs.GENERATED_TOKENS, self._generated_tokens),
            (specs.COMPUTED_PROMPT_TOKENS, self._computed_prompt_tokens),
            (specs.NUM_OUTPUTS, self._num_outputs),
            (specs.MAX_TOKENS, self._max_tokens),
            (specs.NUM_PREEMPTIONS, self._num_preemptions),
        ):
            yield single(spec, histogram.snapshot())


def _interruption(reason: FinishReason, why: Interruption | None) -> Interruption | None:
    if reason is FinishReason.ABORT:
        return why or Interruption.SHUTDOWN
    if reason is FinishReason.DEADLINE:
        return Interruption.DEADLINE
    return Interruption.MAX_SECONDS if reason is FinishReason.TIME else None


def _stage(end: RequestEnd, is_submitted: bool) -> Stage:
    if not is_submitted:
        return Stage.PREPARING
    return Stage.QUEUED if end.timings.queued is None else Stage.RUNNING
