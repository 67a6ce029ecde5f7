"""What passes between the async engine and whatever serves it: frozen, free of torch and of gRPC."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from scheduler.request import FinishReason

MAX_REQUEST_ID_LENGTH = 128  # characters, all of them printable ASCII


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


@dataclass(frozen=True, slots=True)
class OutputFinish:
    """Why one output ended. At most one of the two below is set, and only with reason STOP.

    stop_token_id: the stop token id or end-of-sequence id that was sampled.
    """

    reason: FinishReason
    stop_string: str | None = None
    stop_token_id: int | None = None


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

    finish: on the last delta of each output, and only there.
    usage, timings: on the last delta of the whole stream, and only there.
    """

    output_index: int
    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish: OutputFinish | None = None
    usage: Usage | None = None
    timings: Timings | None = None


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
