"""A step being put together, and what is remembered of one that has been launched."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from kvcache.manager import Growth, KVCacheManager
from scheduler.request import Sequence
from scheduler.step import Chunk, NewBlocks, NewRow, StepInput


@dataclass(slots=True)
class Batch:
    """A plan: nothing in it has happened yet, so a planned sequence that is preempted is simply dropped.

    max_num_tokens: the budget. decodes: sequences that compute one token each. chunks: how many known tokens
    of a sequence to compute. growths: what the plan's grants of room changed. preempted: who had to go for
    it.
    """

    max_num_tokens: int
    decodes: list[Sequence] = field(default_factory=list)
    chunks: dict[Sequence, int] = field(default_factory=dict)
    growths: dict[Sequence, Growth] = field(default_factory=dict)
    preempted: list[Sequence] = field(default_factory=list)
    num_chunk_tokens: int = 0

    @property
    def num_tokens(self) -> int:
        return len(self.decodes) + self.num_chunk_tokens

    @property
    def num_tokens_left(self) -> int:
        return self.max_num_tokens - self.num_tokens

    def add_chunk(self, sequence: Sequence, num_tokens: int) -> None:
        self.chunks[sequence] = num_tokens
        self.num_chunk_tokens += num_tokens

    def drop(self, sequence: Sequence) -> None:
        """A preempted sequence leaves the plan, if it was in it."""
        self.preempted.append(sequence)
        self.growths.pop(sequence, None)
        self.num_chunk_tokens -= self.chunks.pop(sequence, 0)
        if sequence in self.decodes:
            self.decodes.remove(sequence)

    def to_step_input(self, step_id: int, kv: KVCacheManager) -> StepInput:
        return StepInput(
            step_id=step_id,
            decode_rows=tuple([sequence.row for sequence in self.decodes]),
            chunks=tuple(_chunk(sequence, num_tokens) for sequence, num_tokens in self.chunks.items()),
            new_rows=tuple(_new_row(sequence, kv) for sequence in self.chunks if not sequence.on_device),
            new_blocks=tuple(self._new_blocks()),
            block_copies=tuple(copy for growth in self.growths.values() for copy in growth.copies),
            num_tokens=self.num_tokens,
        )

    def _new_blocks(self) -> Iterator[NewBlocks]:
        """A row that is new to the device comes with its whole table instead."""
        for sequence, growth in self.growths.items():
            if sequence.on_device:
                for update in growth.updates:
                    yield NewBlocks(sequence.row, update.group, update.start, update.block_ids)


def _chunk(sequence: Sequence, num_tokens: int) -> Chunk:
    start, end = sequence.num_computed_tokens, sequence.num_computed_tokens + num_tokens
    token_ids = tuple(sequence.token_ids[start:end])
    scored: tuple[int, ...] = ()
    if sequence.request.scores_prompt and sequence.num_scored_tokens < sequence.num_prompt_tokens:
        scored = tuple(sequence.request.prompt_token_ids[start + 1 : end + 1])
    return Chunk(
        sequence.row, start, token_ids, samples=end == len(sequence.token_ids), next_token_ids=scored
    )


def _new_row(sequence: Sequence, kv: KVCacheManager) -> NewRow:
    return NewRow(
        row=sequence.row,
        num_prompt_tokens=sequence.num_prompt_tokens,
        num_generated_tokens=sequence.num_generated_tokens,
        num_computed_tokens=sequence.num_computed_tokens,
        block_ids=kv.block_tables(sequence.sequence_id),
        max_new_tokens=sequence.request.max_new_tokens,
        sampling=sequence.request.sampling,
        output_index=sequence.output_index,
        token_ids=tuple(sequence.token_ids),
    )


@dataclass(frozen=True, slots=True)
class PartialChunk:
    """A launched chunk after which nothing is sampled. num_preemptions: the sequence's, at launch."""

    sequence: Sequence
    num_computed_tokens: int
    num_preemptions: int


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """sampling: the sequences that get a token, in the order of StepOutput. scored: those of chunks with
    next_token_ids, by the index of the chunk, and where the chunk begins.
    """

    sampling: list[Sequence]
    partial: list[PartialChunk]
    scored: dict[int, tuple[Sequence, int]] = field(default_factory=dict)

    @property
    def sequences(self) -> list[Sequence]:
        return self.sampling + [chunk.sequence for chunk in self.partial]
