"""Turns a step into one flat list of tokens, ordered as attention likes them. Host side, numpy only."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from engine.attention.layout import ChunkSpan, IntArray, StepLayout
from scheduler.step import Chunk, StepInput


@dataclass(frozen=True, slots=True)
class PackedStep:
    """N tokens, all int64.

    layout: rows and positions of the tokens, [N].
    token_ids: [N], 0 for a decode row's, which the device knows.
    sample_index: [n], the packed token after which each entry of StepOutput samples, decode rows first.
    num_decodes: how many of these are decode rows.
    scored: by the index of its chunk, the packed tokens after which each of Chunk.next_token_ids comes.
    """

    layout: StepLayout
    token_ids: IntArray
    sample_index: IntArray
    num_decodes: int
    scored: Mapping[int, IntArray]

    @property
    def sample_rows(self) -> IntArray:
        return self.layout.rows[self.sample_index]


def pack(step: StepInput, num_computed: IntArray, max_lone_chunk: int) -> PackedStep:
    """num_computed: tokens of each row computed before this step.

    Decode rows, and the tokens of chunks of at most max_lone_chunk tokens, attend each on its own. They come
    first, by rising position, so that those of similar context stand together.
    """
    short = [chunk for chunk in step.chunks if len(chunk.token_ids) <= max_lone_chunk]
    long = [chunk for chunk in step.chunks if len(chunk.token_ids) > max_lone_chunk]
    decode_rows = np.array(step.decode_rows, dtype=np.int64)
    rows = _joined(decode_rows, _rows, short)
    positions = _joined(num_computed[decode_rows], _positions, short)
    token_ids = _joined(np.zeros_like(decode_rows), _token_ids, short)
    order = np.argsort(positions, kind="stable")
    layout = StepLayout(
        rows=_joined(rows[order], _rows, long),
        positions=_joined(positions[order], _positions, long),
        num_lone=len(order),
        chunks=tuple(_spans(long, len(order))),
    )
    place = np.empty_like(order)
    place[order] = np.arange(len(order))  # of an unsorted lone token among the sorted
    packed = {chunk.row: place[_span(chunk, end)] for chunk, end in _ends(short, len(decode_rows))}
    packed |= {chunk.row: _span(chunk, end) for chunk, end in _ends(long, len(order))}
    sampling = [packed[chunk.row][-1] for chunk in step.chunks if chunk.samples]
    return PackedStep(
        layout,
        _joined(token_ids[order], _token_ids, long),
        np.concatenate((place[: len(decode_rows)], np.array(sampling, dtype=np.int64))),
        len(decode_rows),
        {
            index: packed[chunk.row][: len(chunk.next_token_ids)]
            for index, chunk in enumerate(step.chunks)
            if chunk.next_token_ids
        },
    )


def _joined(first: IntArray, part: Callable[[Chunk], IntArray], chunks: list[Chunk]) -> IntArray:
    return np.concatenate((first, *map(part, chunks))) if chunks else first


def _rows(chunk: Chunk) -> IntArray:
    return np.full(len(chunk.token_ids), chunk.row, dtype=np.int64)


def _positions(chunk: Chunk) -> IntArray:
    return np.arange(chunk.start, chunk.start + len(chunk.token_ids), dtype=np.int64)


def _token_ids(chunk: Chunk) -> IntArray:
    return np.array(chunk.token_ids, dtype=np.int64)


def _ends(chunks: list[Chunk], start: int) -> Iterator[tuple[Chunk, int]]:
    """Each chunk, and where it ends when they are packed from `start` on."""
    for chunk in chunks:
        start += len(chunk.token_ids)
        yield chunk, start


def _span(chunk: Chunk, end: int) -> IntArray:
    return np.arange(end - len(chunk.token_ids), end, dtype=np.int64)


def _spans(chunks: list[Chunk], start: int) -> Iterator[ChunkSpan]:
    for chunk, end in _ends(chunks, start):
        yield ChunkSpan(end - len(chunk.token_ids), end, chunk.row, chunk.start)
