"""The metrics of requests: what they are called and what they mean."""

from enum import Enum

from engine.serving.metrics.specs import Label, Spec, counter, histogram
from scheduler.request import FinishReason


class Interruption(Enum):
    """Why a request ended before its output did."""

    CLIENT_LEFT = "client_left"  # it cancelled, vanished, or did not read
    ABORT_CALL = "abort_call"  # of the service's method Abort
    SHUTDOWN = "shutdown"  # the engine was stopped
    DEADLINE = "deadline"  # of the call
    MAX_SECONDS = "max_seconds"  # the request's own limit


class Stage(Enum):
    """How far a request got."""

    PREPARING = "preparing"  # being read or tokenized, or its grammar compiled
    QUEUED = "queued"  # in the engine, and never ran
    RUNNING = "running"  # ran, though it may have been preempted


def _label(name: str, values: type[Enum]) -> tuple[Label, ...]:
    return (Label(name, tuple(each.value for each in values)),)


REFUSALS = ("invalid", "duplicate", "overloaded", "unavailable")

ENDED = counter(
    "request_success",
    "requests",
    "Accepted requests that ended, by reason; the gravest one where the outputs of a request differ. The "
    "name is vLLM's: `abort`, `deadline` and `error` are no success",
    "`error`: see sequence_failures and the log. `abort` and `deadline`: see request_interruptions.",
    _label("finished_reason", FinishReason),
)
REJECTIONS = counter(
    "admission_rejections",
    "requests",
    "Requests not accepted: the request is wrong (invalid), its id is in use (duplicate), all places are "
    "taken (overloaded), or the engine stops or is dead (unavailable)",
    "`overloaded`: more comes than the engine takes; add an engine, or raise --max-num-queued if clients can "
    "wait. `invalid`: a client has a bug; the log says which field.",
    (Label("reason", REFUSALS),),
)
INTERRUPTIONS = counter(
    "request_interruptions",
    "requests",
    "Accepted requests that ended before their output did: why, and how far they were. Adds up to "
    "request_success with abort, deadline or time",
    "`queued`: clients lose patience before their turn; see request_queue_time_seconds. `running`: answers "
    "take longer than clients wait; what was computed for them is lost.",
    (*_label("reason", Interruption), *_label("stage", Stage)),
)
SLOW_READERS = counter(
    "slow_readers",
    "requests",
    "Requests aborted because their client did not read its stream for --stall-seconds; they also count as "
    "client_left in request_interruptions, unless they had ended",
    "Clients or proxies that hang: they hold places in the queue meanwhile.",
)
LATENCY = histogram(
    "e2e_request_latency_seconds",
    "seconds",
    "From a request's arrival to the end of its last output; every accepted request",
    "See which part it is: queue, prefill or decode time.",
)
PREPARE_TIME = histogram(
    "request_prepare_time_seconds",
    "seconds",
    "From a request's arrival until the engine has it: tokenizing, compiling its grammar",
    "Long prompts or new grammars, or a CPU that is shared; see grammar_compilation_time_seconds.",
)
QUEUE_TIME = histogram(
    "request_queue_time_seconds",
    "seconds",
    "From a request's arrival until it first ran, prepare time included",
    "Rising: more comes than the engine can take.",
)
PREFILL_TIME = histogram(
    "request_prefill_time_seconds",
    "seconds",
    "From when a request first ran to its first token",
    "Long prompts, or steps shared with many: raise --max-num-batched-tokens; see prefix_cache_hits.",
)
DECODE_TIME = histogram(
    "request_decode_time_seconds",
    "seconds",
    "From a request's first token to the end of its last output",
    "Long outputs, or slow steps: see request_time_per_output_token_seconds.",
)
INFERENCE_TIME = histogram(
    "request_inference_time_seconds",
    "seconds",
    "From when a request first ran to the end of its last output: prefill and decode time",
    "As for its parts.",
)
TIME_PER_TOKEN = histogram(
    "request_time_per_output_token_seconds",
    "seconds",
    "Mean time between the tokens of an output, of those that ended by themselves with two tokens at least",
    "High at a full batch: lower --max-num-seqs to trade throughput for speed. Preemptions show here too.",
)
PROMPT_TOKENS = histogram(
    "request_prompt_tokens",
    "tokens",
    "Prompt tokens of a request that reached the engine and ended",
    "A shift: other traffic than the limits were chosen for.",
)
GENERATED_TOKENS = histogram(
    "request_generation_tokens",
    "tokens",
    "Tokens of all outputs of such a request, as its client was told",
    "Much below request_params_max_tokens is normal; at it: answers are cut off.",
)
COMPUTED_PROMPT_TOKENS = histogram(
    "request_prefill_kv_computed_tokens",
    "tokens",
    "Prompt tokens of such a request that were not found in the prefix cache",
    "Near request_prompt_tokens with shared beginnings: prefixes do not stay in the cache.",
)
NUM_OUTPUTS = histogram(
    "request_params_n",
    "outputs",
    "Outputs that such a request asked for",
    "Large: each output takes a place in the batch.",
)
MAX_TOKENS = histogram(
    "request_params_max_tokens",
    "tokens",
    "max_new_tokens of such a request, where it says so",
    "Far above what is generated: harmless here, nothing is reserved for it.",
)
NUM_PREEMPTIONS = histogram(
    "request_num_preemptions",
    "preemptions",
    "Times that sequences of such a request were preempted",
    "More than 0 for many: see num_preemptions.",
)
SPECS: tuple[Spec, ...] = (
    *(ENDED, REJECTIONS, INTERRUPTIONS, SLOW_READERS, LATENCY, PREPARE_TIME, QUEUE_TIME, PREFILL_TIME),
    *(DECODE_TIME, INFERENCE_TIME, TIME_PER_TOKEN, PROMPT_TOKENS, GENERATED_TOKENS),
    *(COMPUTED_PROMPT_TOKENS, NUM_OUTPUTS, MAX_TOKENS, NUM_PREEMPTIONS),
)
