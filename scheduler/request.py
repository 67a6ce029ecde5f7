"""A request, the sequences it becomes, and why they end."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from scheduler.beams import BeamParams, BeamSearch, Candidate
from scheduler.step import TokenLogprobs


class FinishReason(Enum):
    """Why a sequence ended. Every accepted sequence ends exactly once, with exactly one of these."""

    STOP = "stop"  # a stop token id, the end-of-sequence id, or a stop string
    LENGTH = "length"  # max_new_tokens, or the longest sequence that the model or the pool takes
    TIME = "time"  # the request's own limit of seconds: what was generated until then is its output
    ABORT = "abort"  # the client cancelled, disconnected, or stopped reading
    DEADLINE = "deadline"  # the call's deadline passed
    ERROR = "error"  # a step failed


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asked for, validated. The scheduler never looks into `sampling`.

    max_new_tokens: tokens that each output may generate, at least 1; the caller has checked that
    len(prompt_token_ids) + max_new_tokens fits the model and the pool.
    priority: higher runs sooner (policy "priority" only). arrival_time: seconds, the caller's clock.
    max_seconds: after its arrival, at which every output that has not ended ends with TIME; None is no limit.
    scores_prompt: log-probabilities of the prompt's tokens are asked for, so all of it has to be computed.
    beam: search instead of sampling. Its outputs are the num_outputs (at most `width`) best hypotheses, best
    first, each told at once when the search is over.
    """

    request_id: str
    prompt_token_ids: Seq[int]
    max_new_tokens: int
    sampling: object = None
    num_outputs: int = 1
    priority: int = 0
    arrival_time: float = 0.0
    max_seconds: float | None = None
    scores_prompt: bool = False
    beam: BeamParams | None = None

    @property
    def num_sequences(self) -> int:
        """Rows that it takes."""
        return self.num_outputs if self.beam is None else self.beam.width


@dataclass(slots=True)
class RequestTimes:
    """Seconds on the caller's clock; None until it happened."""

    arrival: float
    first_scheduled: float | None = None
    first_token: float | None = None


class SequenceStatus(Enum):
    """What a sequence holds, and where it stands."""

    FOLLOWING = "following"  # no blocks: to be forked from the leader, which computes the prompt they share
    WAITING = "waiting"  # no row and no blocks
    RUNNING = "running"  # a row and blocks
    PARKED = "parked"  # no row and no blocks: a beam that needs none until its search goes on
    FINISHED = "finished"  # nothing


Rank = tuple[int, int, int]  # smaller runs sooner; no two sequences have the same (see policy.py)


@dataclass(slots=True, eq=False)
class BeamGroup:
    """The sequences of one beam search, `width` of them. They end together.

    beams: those that hold search.beams, in that order; before the first candidates it is the leader alone.
    candidates: of the beams whose step has been read. The search goes on when it has those of all.
    """

    search: BeamSearch
    sequences: "list[Sequence]"
    beams: "list[Sequence]"
    candidates: "dict[Sequence, list[Candidate]]" = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Sequence:
    """One stream of tokens of a request.

    num_computed_tokens counts tokens whose K/V some launched step writes. num_pending_tokens counts tokens
    that a launched step samples and the host has not read. The one rule of scheduling: a step may compute
    num_tokens - num_computed_tokens more tokens, where num_tokens includes the pending ones.

    Output 0 of a request with several outputs is their leader until its prompt is computed: `followers` are
    the outputs to be forked from it then. A beam has a `group`; the tokens after its prompt are its beam's,
    and are no output. Whatever beam it holds, it reports the output of its output_index, if there is one.

    on_device: whether a launched step has told the device about its row. max_num_computed_tokens: how many
    tokens it can ever have computed (its last token is never an input). num_slots: tokens that the KV cache
    has granted room for, and no more than the former: as long as num_computed_tokens is below, there is
    nothing to ask. num_publishable_tokens: computed tokens from which on there is a block to publish.
    checkpoint: length of token_ids above which update() has more to do than to append. num_scored_tokens: of
    the prompt, whose log-probabilities have been told if they were asked for; the first has none.
    """

    sequence_id: int
    request: Request
    output_index: int
    rank: Rank
    times: RequestTimes
    followers: "list[Sequence]" = field(default_factory=list)
    status: SequenceStatus = SequenceStatus.WAITING
    row: int = -1
    on_device: bool = False
    num_computed_tokens: int = 0
    num_pending_tokens: int = 0
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    num_slots: int = 0
    num_publishable_tokens: int = 0
    num_scored_tokens: int = 1
    group: BeamGroup | None = None
    finish_reason: FinishReason | None = None
    token_ids: list[int] = field(init=False)
    max_num_computed_tokens: int = field(init=False)
    checkpoint: int = field(init=False)

    def __post_init__(self) -> None:
        self.token_ids = list(self.request.prompt_token_ids)
        self.max_num_computed_tokens = len(self.token_ids) + self.request.max_new_tokens - 1
        self.checkpoint = len(self.token_ids)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids) + self.num_pending_tokens

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def num_generated_tokens(self) -> int:
        return len(self.token_ids) - len(self.request.prompt_token_ids)

    @property
    def is_output(self) -> bool:
        """False for the beams of a search beyond its outputs."""
        return self.output_index < self.request.num_outputs

    @property
    def findable_token_ids(self) -> Seq[int]:
        """Tokens that may be found in the prefix cache: not those that have to be computed to be scored."""
        is_scored = not self.request.scores_prompt or self.num_scored_tokens >= self.num_prompt_tokens
        return self.token_ids if is_scored else ()

    def summarize(
        self, reason: FinishReason, now: float, last: "LastToken", error: str | None
    ) -> "SequenceSummary":
        return SequenceSummary(
            finish_reason=reason,
            num_prompt_tokens=self.num_prompt_tokens,
            num_cached_tokens=self.num_cached_tokens,
            num_generated_tokens=self.num_generated_tokens,
            num_preemptions=self.num_preemptions,
            arrival_time=self.times.arrival,
            first_scheduled_time=self.times.first_scheduled,
            first_token_time=self.times.first_token,
            finished_time=now,
            error=error,
            criterion=last.criterion,
            score=last.score,
        )


@dataclass(frozen=True, slots=True)
class SequenceSummary:
    """How a sequence went, once it has ended."""

    finish_reason: FinishReason
    num_prompt_tokens: int
    num_cached_tokens: int  # of the prompt, found in the prefix cache when it first ran
    num_generated_tokens: int
    num_preemptions: int
    arrival_time: float
    first_scheduled_time: float | None
    first_token_time: float | None
    finished_time: float
    error: str | None = None  # what went wrong, with FinishReason.ERROR
    criterion: int | None = None  # which of the request's stopping criteria ended it, with FinishReason.STOP
    score: float | None = None  # of a beam search's hypothesis: see BeamParams.length_penalty


class LastToken(NamedTuple):
    """What a sequence ends with: the token, its log-probabilities if asked for, and the stopping criterion.
    For an output of a beam search: all its tokens, and its score.
    """

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    criterion: int | None = None
    score: float | None = None


class SequenceOutput(NamedTuple):
    """New tokens of one sequence, and its summary with the last of them.

    logprobs: one for each of token_ids, or none. prompt_logprobs: of the prompt's next tokens, in order, the
    first token having none; each comes once, before any token.

    A NamedTuple, not a frozen dataclass: one is made for every token, and it is three times cheaper to make.
    """

    request_id: str
    output_index: int
    token_ids: tuple[int, ...]
    summary: SequenceSummary | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
