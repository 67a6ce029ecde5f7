"""What the scheduler and its loop tell about themselves."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from kvcache.manager import KVCacheManager
from scheduler.request import FinishReason


class PreemptionReason(Enum):
    """What a sequence was preempted for."""

    GROWTH = "growth"  # a running sequence needed blocks for its next tokens
    ADMISSION = "admission"  # a waiting sequence that ranks better needed blocks
    ROWS = "rows"  # a waiting sequence that ranks better needed a row


class FailureReason(Enum):
    """Why a sequence ended with FinishReason.ERROR."""

    STEP = "step"  # the step that it had a part in raised
    LOGITS = "logits"  # the model's output is no distribution over tokens
    CUSTOM = "custom"  # a processor, criterion or grammar of its request raised


_NO_PREEMPTIONS = dict.fromkeys(PreemptionReason, 0)
_NO_FAILURES = dict.fromkeys(FailureReason, 0)


@dataclass(slots=True)
class Counters:
    """Totals since the start. Mutable, and the scheduler's own."""

    num_steps: int = 0
    num_decode_rows: int = 0
    num_chunk_tokens: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_generated_tokens: int = 0
    num_finished: Counter[FinishReason] = field(default_factory=Counter)
    preemptions: Counter[PreemptionReason] = field(default_factory=lambda: Counter(_NO_PREEMPTIONS))
    preempted_tokens: Counter[PreemptionReason] = field(default_factory=lambda: Counter(_NO_PREEMPTIONS))
    failures: Counter[FailureReason] = field(default_factory=lambda: Counter(_NO_FAILURES))


@dataclass(frozen=True, slots=True)
class SchedulerStats:
    """A snapshot. The first group of fields are present values, the others totals since the start.

    kv_usage: held blocks over all blocks, 0 to 1. num_decode_rows / num_chunk_tokens: of all launched steps;
    their sum over num_steps is the mean number of tokens a step. num_prompt_tokens: prompts of the requests
    that have been admitted, once a request, and num_cached_tokens those of them that were found in the prefix
    cache. num_generated_tokens: sampled tokens that
    reached their sequence; of a beam search those of its outputs, when it ends. num_finished: outputs
    by reason. preemptions: how often a sequence lost its blocks. preempted_tokens: computed tokens that
    were given up so (what of them is found in the prefix cache need not be computed again). failures: of
    sequences; their siblings, which end with them, do not count. num_running / num_waiting: sequences, every
    beam counts.
    num_prefix_queried_tokens / num_prefix_hit_tokens: see KVCacheManager.prefix_stats.
    """

    num_running: int
    num_waiting: int
    num_steps_in_flight: int
    num_free_blocks: int
    num_blocks: int
    kv_usage: float

    num_steps: int
    num_decode_rows: int
    num_chunk_tokens: int
    num_prompt_tokens: int
    num_cached_tokens: int
    num_generated_tokens: int
    num_finished: Mapping[FinishReason, int]
    preemptions: Mapping[PreemptionReason, int]
    preempted_tokens: Mapping[PreemptionReason, int]
    failures: Mapping[FailureReason, int]
    num_prefix_queried_tokens: int
    num_prefix_hit_tokens: int

    @property
    def num_preemptions(self) -> int:
        return sum(self.preemptions.values())

    @property
    def num_preempted_tokens(self) -> int:
        return sum(self.preempted_tokens.values())


def snapshot(
    counters: Counters, kv: KVCacheManager, num_running: int, num_waiting: int, num_steps_in_flight: int
) -> SchedulerStats:
    return SchedulerStats(
        num_running=num_running,
        num_waiting=num_waiting,
        num_steps_in_flight=num_steps_in_flight,
        num_free_blocks=kv.num_free_blocks,
        num_blocks=kv.num_blocks,
        kv_usage=kv.usage,
        num_steps=counters.num_steps,
        num_decode_rows=counters.num_decode_rows,
        num_chunk_tokens=counters.num_chunk_tokens,
        num_prompt_tokens=counters.num_prompt_tokens,
        num_cached_tokens=counters.num_cached_tokens,
        num_generated_tokens=counters.num_generated_tokens,
        num_finished=dict(counters.num_finished),
        preemptions=dict(counters.preemptions),
        preempted_tokens=dict(counters.preempted_tokens),
        failures=dict(counters.failures),
        num_prefix_queried_tokens=kv.prefix_stats.num_queried_tokens,
        num_prefix_hit_tokens=kv.prefix_stats.num_hit_tokens,
    )


@dataclass(frozen=True, slots=True)
class StepStats:
    """One step that went well, told by the loop once it has been read. Durations in seconds of the loop's
    clock.

    schedule_seconds: deciding what runs. launch_seconds: handing it to the device. wait_seconds: until its
    tokens were on the host (the device's lead over the host). update_seconds: taking them in.
    interval_seconds: since the step before was taken in, or since there was work again; all intervals add up
    to the time in which there was work. idle_seconds: how much of that passed, before this step was launched,
    while no step was launched or being launched, so that the device had nothing to do.
    """

    step_id: int
    num_decode_rows: int
    num_chunk_tokens: int
    schedule_seconds: float
    launch_seconds: float
    wait_seconds: float
    update_seconds: float
    interval_seconds: float = 0.0
    idle_seconds: float = 0.0
