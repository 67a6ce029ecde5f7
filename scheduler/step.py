"""What crosses from the scheduler to a device and back. Frozen; only differences, never whole states.

A *row* is a sequence's stable place in the device's batch state (block tables, last token, position, sampling
parameters, random state). A step computes, in this packed order, one token for each of `decode_rows`, then
the tokens of each of `chunks`. The token of a decode row is the one that the device itself sampled last for
that row: the host may not have read it yet, which is what lets step N+1 be launched before step N is read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple, Protocol

BlockIds = tuple[int, ...]


class Finish(IntEnum):
    """Device-side verdict on a row after it sampled."""

    NONE = 0
    STOP = 1  # the sampled token is one of the row's stop ids (or its end-of-sequence id)
    LENGTH = 2  # the row has generated its last allowed token
    ERROR = 3  # the row's logits are no distribution (NaN, or no finite maximum): its token means nothing
    CRITERION = 16  # and every number above it: CRITERION + i is the i-th stopping criterion of the request


@dataclass(frozen=True, slots=True)
class NewRow:
    """A sequence that takes a row: everything the device must know. Replaces whatever the row held before.

    num_prompt_tokens / num_generated_tokens: the latter is above zero when a preempted sequence resumes.
    num_computed_tokens: tokens whose K/V are in the pool already (prefix hits, forks).
    max_new_tokens: generated tokens after which the device answers Finish.LENGTH.
    block_ids: one table per layer group; entries that a window has passed hold NULL_BLOCK.
    sampling: the request's sampling parameters, opaque to the scheduler; output_index makes the n outputs of
    one request draw different random numbers.
    token_ids: all known tokens, num_prompt_tokens + num_generated_tokens of them.
    """

    row: int
    num_prompt_tokens: int
    num_generated_tokens: int
    num_computed_tokens: int
    block_ids: tuple[BlockIds, ...]
    max_new_tokens: int
    sampling: object
    output_index: int
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class NewBlocks:
    """Entries of one row's table in one group to write: table[start : start + len(block_ids)] = block_ids."""

    row: int
    group: int
    start: int
    block_ids: BlockIds


@dataclass(frozen=True, slots=True)
class Chunk:
    """Known tokens of one row, from position `start`: of a prompt, or of what a preemption has lost.

    samples: whether the chunk ends at the sequence's last known token, so that a token is sampled after it.
    next_token_ids: the prompt's token after each of token_ids, where their log-probabilities are asked for;
    the last prompt token has none, so there may be one less than token_ids.
    """

    row: int
    start: int
    token_ids: tuple[int, ...]
    samples: bool
    next_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class StepInput:
    """One step. Order of effects on the device: new_rows, new_blocks, block_copies, then the computation.

    block_copies: (source, destination) block ids, for all layers of the group(s) they are used in
    (copy-on-write), one after the other: a copy may read or overwrite what an earlier one has written.
    num_tokens: packed tokens = len(decode_rows) + the tokens of all chunks.
    """

    step_id: int
    decode_rows: tuple[int, ...] = ()
    chunks: tuple[Chunk, ...] = ()
    new_rows: tuple[NewRow, ...] = ()
    new_blocks: tuple[NewBlocks, ...] = ()
    block_copies: tuple[tuple[int, int], ...] = ()
    num_tokens: int = 0


class TokenLogprobs(NamedTuple):
    """Natural logarithms of probabilities: of one token, and of the most likely ones at its place, best
    first.

    Of the model's own distribution, before penalties, bans and temperature. For a row of a beam search there
    is no token (its logprob is 0), and the others are the row's best continuations by processed score.
    """

    logprob: float
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class StepOutput:
    """token_ids, finishes: an entry for each of decode_rows, then for each chunk that samples, in order.

    finishes: `Finish` codes. logprobs: likewise, None for rows that did not ask; or None for all.
    errors: what a processor or criterion of a row raised, or its grammar, by that order's index: the row's
    token means nothing. prompt_logprobs: of Chunk.next_token_ids, by the index of the chunk.
    """

    step_id: int
    token_ids: list[int]
    finishes: list[int] = field(default_factory=list)
    logprobs: Sequence[TokenLogprobs | None] | None = None
    errors: Mapping[int, str] = field(default_factory=dict)
    prompt_logprobs: Mapping[int, Sequence[TokenLogprobs]] = field(default_factory=dict)


class PendingStep(Protocol):
    """A launched step."""

    def result(self) -> StepOutput:
        """Block until the step's tokens are on the host. Raises what went wrong in the step."""
        ...


class Runner(Protocol):
    """A device that runs steps in launch order."""

    @property
    def max_steps_in_flight(self) -> int:
        """How many steps may be launched and not yet read. 1 is synchronous, 2 overlaps host and device."""
        ...

    def launch(self, step: StepInput) -> PendingStep:
        """Enqueue one step. FatalStepError: no further step can run. Any other error: this step failed."""
        ...
