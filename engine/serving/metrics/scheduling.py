"""The scheduler's own numbers, read when someone scrapes."""

from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import TypeVar

from engine.serving.metrics.specs import Family, Label, Spec, counter, gauge, single
from scheduler.stats import FailureReason, PreemptionReason, SchedulerStats

Key = TypeVar("Key", bound=Enum | str)

RUNNING = gauge(
    "num_requests_running",
    "sequences",
    "Sequences in the batch; a request with n outputs has n",
    "At max_num_seqs while others wait: the batch is full; raise --max-num-seqs if the KV cache has room.",
)
WAITING = gauge(
    "num_requests_waiting",
    "sequences",
    "Sequences that the engine has accepted and that wait for a place in the batch",
    "Rising: more comes than the engine can take; route elsewhere, or add an engine.",
)
KV_USAGE = gauge(
    "kv_cache_usage_perc",
    "ratio, 0 to 1",
    "KV blocks that sequences hold over all KV blocks; 1 is full",
    "Near 1 with preemptions: the cache limits the batch; give it more memory, or lower --max-num-seqs.",
)
PROMPT_TOKENS = counter(
    "prompt_tokens",
    "tokens",
    "Prompt tokens of the requests that began to run, cached ones included, once a request",
    "Load: compare its rate with the capacity that was measured.",
)
CACHED_TOKENS = counter(
    "prompt_tokens_cached",
    "tokens",
    "Those of the prompt tokens that were found in the prefix cache, and not computed",
    "A low share of prompts that share beginnings: see prefix_cache_hits.",
)
GENERATED_TOKENS = counter(
    "generation_tokens",
    "tokens",
    "Tokens sampled for sequences that had not ended; of a beam search those of its outputs",
    "Flat with sequences running: steps fail or hang; see the log.",
)
PREFIX_QUERIES = counter(
    "prefix_cache_queries",
    "tokens",
    "Tokens looked up in the prefix cache, again after a preemption",
    "Zero with traffic: the prefix cache is off.",
)
PREFIX_HITS = counter(
    "prefix_cache_hits",
    "tokens",
    "Tokens whose KV blocks were found there",
    "Hits over queries falling: too little room to keep prefixes, or requests of one family go elsewhere.",
)
_PREEMPTION_REASON = Label("reason", tuple(reason.value for reason in PreemptionReason))
PREEMPTIONS = counter(
    "num_preemptions",
    "preemptions",
    "Times that a sequence lost its blocks: to the growth of a running one, or to the admission (for its "
    "blocks or its row) of a waiting one that ranks better",
    "A steady rate: the KV cache is too small for the batch; lower --max-num-seqs, or give it more memory.",
    (_PREEMPTION_REASON,),
)
PREEMPTED_TOKENS = counter(
    "preempted_tokens",
    "tokens",
    "Computed tokens that preemptions gave up; what the prefix cache still has of them comes back for free",
    "More than a few percent of the tokens computed: work is done twice; as for num_preemptions.",
    (_PREEMPTION_REASON,),
)
FAILURES = counter(
    "sequence_failures",
    "sequences",
    "Sequences that failed: a step with them raised, the model's output was no distribution, or a custom "
    "processor, criterion or grammar of their request raised",
    "Any `step` or `logits`: see the log; a damaged checkpoint, a dtype that overflows, or a bug. `custom`: "
    "tell the owner of the plugin.",
    (Label("reason", tuple(reason.value for reason in FailureReason)),),
)
STEPS = counter(
    "engine_steps",
    "steps",
    "Steps launched",
    "Flat with sequences running: the engine hangs; its watchdog ends it after --step-timeout.",
)
COMPUTED_TOKENS = counter(
    "computed_tokens",
    "tokens",
    "Tokens that the launched steps compute: one a decoding sequence, or chunks of known tokens",
    "Mostly `chunk` while streams stutter: prompts take the steps; lower --max-num-batched-tokens.",
    (Label("kind", ("decode", "chunk")),),
)
SPECS: tuple[Spec, ...] = (
    *(RUNNING, WAITING, KV_USAGE, PROMPT_TOKENS, CACHED_TOKENS, GENERATED_TOKENS, PREFIX_QUERIES),
    *(PREFIX_HITS, PREEMPTIONS, PREEMPTED_TOKENS, FAILURES, STEPS, COMPUTED_TOKENS),
)


class SchedulerMetrics:
    """stats: called by the thread that scrapes."""

    def __init__(self, stats: Callable[[], SchedulerStats]) -> None:
        self._stats = stats

    def families(self) -> Iterator[Family]:
        stats = self._stats()
        yield single(RUNNING, stats.num_running)
        yield single(WAITING, max(0, stats.num_waiting))  # a difference of two numbers, one read later
        yield single(KV_USAGE, stats.kv_usage)
        yield single(PROMPT_TOKENS, stats.num_prompt_tokens)
        yield single(CACHED_TOKENS, stats.num_cached_tokens)
        yield single(GENERATED_TOKENS, stats.num_generated_tokens)
        yield single(PREFIX_QUERIES, stats.num_prefix_queried_tokens)
        yield single(PREFIX_HITS, stats.num_prefix_hit_tokens)
        yield by_reason(PREEMPTIONS, stats.preemptions)
        yield by_reason(PREEMPTED_TOKENS, stats.preempted_tokens)
        yield by_reason(FAILURES, stats.failures)
        yield single(STEPS, stats.num_steps)
        kinds = ((("decode",), stats.num_decode_rows), (("chunk",), stats.num_chunk_tokens))
        yield Family(COMPUTED_TOKENS, kinds)


def by_reason(spec: Spec, counts: Mapping[Key, int]) -> Family:
    """A metric with one label, whose values are the keys."""
    samples = ((key.value if isinstance(key, Enum) else key, count) for key, count in counts.items())
    return Family(spec, tuple(((str(value),), count) for value, count in samples))
