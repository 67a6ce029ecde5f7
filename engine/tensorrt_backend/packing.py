"""Turns a step that has chunks into one flat list of tokens. Host side, numpy only."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scheduler.step import Chunk, StepInput

Words = NDArray[np.int32]

# A chunk up to this long attends token by token: its tokens share a row's K/V in the cache of the GPU, and
# most of a tile would be padding.
MAX_LONE_CHUNK = 4


@dataclass(frozen=True, slots=True)
class PackedStep:
    """N tokens and n rows that sample, all int32.

    rows, positions, token_ids: [N]; the first num_lone attend alone, decode rows before short chunks.
    Decode rows have `from_state` for a position and 0 for a token. tiles: [num_tiles, 2], see PagedAttention.
    sample_rows, sample_index: [n], in the order of StepOutput. scored: by the index of its chunk, the packed
    tokens after which each of Chunk.next_token_ids comes.
    """

    rows: Words
    positions: Words
    token_ids: Words
    num_lone: int
    tiles: Words
    sample_rows: Words
    sample_index: Words
    scored: Mapping[int, Words]


def pack(step: StepInput, *, from_state: int, tile_tokens: int, max_num_lone: int) -> PackedStep:
    """tile_tokens: most tokens of a tile. max_num_lone: at least as many as there are decode rows."""
    num_decodes = len(step.decode_rows)
    short, long = _partition(step.chunks, max_num_lone - num_decodes)
    rows = [np.array(step.decode_rows, dtype=np.int32)]
    positions = [np.full(num_decodes, from_state, dtype=np.int32)]
    token_ids = [np.zeros(num_decodes, dtype=np.int32)]
    for chunk in (*short, *long):
        num_tokens = len(chunk.token_ids)
        rows.append(np.full(num_tokens, chunk.row, dtype=np.int32))
        positions.append(np.arange(chunk.start, chunk.start + num_tokens, dtype=np.int32))
        token_ids.append(np.array(chunk.token_ids, dtype=np.int32))
    num_lone = num_decodes + sum(len(chunk.token_ids) for chunk in short)
    ends = _ends((*short, *long), num_decodes)
    sampling = [chunk.row for chunk in step.chunks if chunk.samples]
    return PackedStep(
        rows=np.concatenate(rows),
        positions=np.concatenate(positions),
        token_ids=np.concatenate(token_ids),
        num_lone=num_lone,
        tiles=np.array(list(_tiles(long, num_lone, tile_tokens)), dtype=np.int32).reshape(-1, 2),
        sample_rows=np.array((*step.decode_rows, *sampling), dtype=np.int32),
        sample_index=np.array((*range(num_decodes), *(ends[row] - 1 for row in sampling)), dtype=np.int32),
        scored={
            index: np.arange(len(chunk.next_token_ids), dtype=np.int32)
            + ends[chunk.row]
            - len(chunk.token_ids)
            for index, chunk in enumerate(step.chunks)
            if chunk.next_token_ids
        },
    )


def _partition(chunks: tuple[Chunk, ...], max_num_tokens: int) -> tuple[list[Chunk], list[Chunk]]:
    """Those that attend token by token, at most max_num_tokens in all, and the others."""
    short: list[Chunk] = []
    long: list[Chunk] = []
    for chunk in chunks:
        num_tokens = len(chunk.token_ids)
        is_short = num_tokens <= min(MAX_LONE_CHUNK, max_num_tokens)
        max_num_tokens -= num_tokens if is_short else 0
        (short if is_short else long).append(chunk)
    return short, long


def _ends(chunks: tuple[Chunk, ...], start: int) -> dict[int, int]:
    """Where the chunk of each row ends when they are packed from `start` on."""
    ends = {}
    for chunk in chunks:
        start += len(chunk.token_ids)
        ends[chunk.row] = start
    return ends


def _tiles(chunks: list[Chunk], start: int, tile_tokens: int) -> Iterator[tuple[int, int]]:
    for chunk in chunks:
        end = start + len(chunk.token_ids)
        for first in range(start, end, tile_tokens):
            yield first, min(tile_tokens, end - first)
        start = end
