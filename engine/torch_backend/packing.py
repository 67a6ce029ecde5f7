"""Turns a step into one flat list of tokens, ordered as attention likes them. Host side, numpy only."""

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
    """

    layout: StepLayout
    token_ids: IntArray
    sample_index: IntArray
    num_decodes: int

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
    rows = np.concatenate((decode_rows, *map(_rows, short)))
    positions = np.concatenate((num_computed[decode_rows], *map(_positions, short)))
    token_ids = np.concatenate((np.zeros_like(decode_rows), *map(_token_ids, short)))
    order = np.argsort(positions, kind="stable")
    layout = StepLayout(
        rows=np.concatenate((rows[order], *map(_rows, long))),
        positions=np.concatenate((positions[order], *map(_positions, long))),
        num_lone=len(order),
        chunks=tuple(_spans(long, len(order))),
    )
    place = np.empty_like(order)
    place[order] = np.arange(len(order))  # of an unsorted token among the sorted
    num_decodes = len(decode_rows)
    last = {chunk.row: place[i] for chunk, i in zip(short, _ends(short, num_decodes), strict=True)}
    last.update({chunk.row: i for chunk, i in zip(long, _ends(long, len(order)), strict=True)})
    sampling = [last[chunk.row] for chunk in step.chunks if chunk.samples]
    return PackedStep(
        layout,
        np.concatenate((token_ids[order], *map(_token_ids, long))),
        np.concatenate((place[:num_decodes], np.array(sampling, dtype=np.int64))),
        num_decodes,
    )


def _rows(chunk: Chunk) -> IntArray:
    return np.full(len(chunk.token_ids), chunk.row, dtype=np.int64)


def _positions(chunk: Chunk) -> IntArray:
    return np.arange(chunk.start, chunk.start + len(chunk.token_ids), dtype=np.int64)


def _token_ids(chunk: Chunk) -> IntArray:
    return np.array(chunk.token_ids, dtype=np.int64)


def _ends(chunks: list[Chunk], start: int) -> list[int]:
    """Index of each chunk's last token, when they are packed from `start` on."""
    lengths = np.array([len(chunk.token_ids) for chunk in chunks], dtype=np.int64)
    return list(start + lengths.cumsum() - 1)


def _spans(chunks: list[Chunk], start: int) -> list[ChunkSpan]:
    ends = [int(last) + 1 for last in _ends(chunks, start)]
    return [
        ChunkSpan(end - len(c.token_ids), end, c.row, c.start) for c, end in zip(chunks, ends, strict=True)
    ]
