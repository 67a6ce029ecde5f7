"""What passes between the async engine and whatever serves it: frozen, free of torch and of gRPC."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from scheduler.request import FinishReason

MAX_REQUEST_ID_LENGTH = 128  # characters, all of them printable ASCII
# Of a request: prompt tokens times (1 + prompt_logprobs). Each takes some 100 bytes, until it is read.
MAX_PROMPT_LOGPROBS = 2**18
MAX_PROMPT_LOGPROBS_TOGETHER = 4 * MAX_PROMPT_LOGPROBS  # of all requests


class EngineState(Enum):
    SERVING = "serving"
    DRAINING = "draining"  # finishes what it accepted, takes nothing new
    DEAD = "dead"  # stopped, or no further step can run


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """What the deltas of one request carry.

    text: generated text. token_ids: generated ids. echo: the prompt comes first, as text and/or ids likewise.
    interval: seconds between two deltas of an output, or a function that tells them each time; what comes
    sooner is merged into one. The first and the last delta are not held back.
    """

    text: bool = True
    token_ids: bool = False
    echo: bool = False
    interval: float | Callable[[], float] = 0.0


class TokenLogprob(NamedTuple):
    """A token, the natural logarithm of its probability, and its text by itself.

    top: the most likely tokens at its place, best first; theirs are empty.
    """

    token_id: int
    logprob: float
    text: str
    top: "tuple[TokenLogprob, ...]" = ()


@dataclass(frozen=True, slots=True)
class OutputFinish:
    """Why one output ended. At most one of the four below is set, and only with reason STOP.

    stop_token_id: the stop token id or end-of-sequence id that was sampled. stop_regex: the expression.
    criterion: the name of the stopping criterion that was met.
    cumulative_logprob: of all tokens of the output, where log-probabilities were asked for, or best_of.
    score: of a hypothesis of a beam search.
    """

    reason: FinishReason
    stop_string: str | None = None
    stop_token_id: int | None = None
    stop_regex: str | None = None
    criterion: str | None = None
    cumulative_logprob: float | None = None
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a whole request.

    cached: prompt tokens found in the prefix cache. generated: of all outputs.
    """

    num_prompt_tokens: int
    num_cached_tokens: int
    num_generated_tokens: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds since the request arrived.

    queued: until a sequence of it first ran. first_token: until its first token. None if that never happened.
    total: until its last output ended.
    """

    queued: float | None
    first_token: float | None
    total: float


@dataclass(frozen=True, slots=True)
class OutputDelta:
    """What one output gained since its previous delta. A reader that falls behind gets fewer, larger ones.

    logprobs: one for each generated token that the delta tells of. prompt_logprobs: of the prompt's next
    tokens from the second one on, in deltas of output 0, before any token.
    finish: on the last delta of each output, and only there.
    usage, timings: on the last delta of the whole stream, and only there.
    """

    output_index: int
    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish: OutputFinish | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """A snapshot. Running and waiting count sequences (a request has `n` of them).

    num_free_blocks includes cached blocks that nothing uses: they are given away when needed.
    """

    num_running: int
    num_waiting: int
    num_blocks: int
    num_free_blocks: int

    @property
    def kv_usage(self) -> float:
        """Share of the KV blocks in use, 0 to 1."""
        return 1 - self.num_free_blocks / self.num_blocks


@dataclass(frozen=True, slots=True)
class NamedInfo:
    """A logits processor or stopping criterion that requests can name.

    schema_json: the JSON schema of its parameters.
    """

    name: str
    description: str
    schema_json: str


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is served, and the limits that requests meet.

    architecture: as in config.json, "LlamaForCausalLM". vocab_size: ids that a prompt may contain are in
    [0, vocab_size). max_model_len: tokens of the longest sequence, prompt and output, that the model, the
    options and the KV pool take. eos_token_ids: ids that end an output unless ignore_eos.
    tokenizer_sha256: hex digest of tokenizer.json, for clients that tokenize themselves.
    max_prompt_chars: a longer prompt cannot fit max_model_len tokens and is refused before it is tokenized:
    max_model_len times the characters of the vocabulary's longest token.
    policy: "fcfs" or "priority"; a priority other than 0 is refused with fcfs.
    """

    name: str
    architecture: str
    vocab_size: int
    max_model_len: int
    dtype: str
    tokenizer_sha256: str
    eos_token_ids: tuple[int, ...]
    max_prompt_chars: int
    block_size: int
    policy: str
    max_num_seqs: int
    max_num_queued: int
    logits_processors: tuple[NamedInfo, ...] = ()
    stopping_criteria: tuple[NamedInfo, ...] = ()
