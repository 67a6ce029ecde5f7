"""A step as one list of tokens: what stands where."""

import numpy as np

from engine.tensorrt_backend.packing import MAX_LONE_CHUNK, PackedStep, pack
from scheduler.step import Chunk, StepInput

FROM_STATE = -2


def packed(decode_rows: tuple[int, ...], *chunks: Chunk, max_num_lone: int = 64) -> PackedStep:
    step = StepInput(0, decode_rows, chunks)
    return pack(step, from_state=FROM_STATE, tile_tokens=8, max_num_lone=max_num_lone)


def chunk(row: int, start: int, num_tokens: int, *, samples: bool = True) -> Chunk:
    return Chunk(row, start, tuple(range(100 * row, 100 * row + num_tokens)), samples)


def test_decode_rows_then_short_chunks_then_tiles() -> None:
    step = packed((5, 3), chunk(1, 20, 18), chunk(2, 7, 2), chunk(4, 0, 9, samples=False))
    assert step.rows.tolist() == [5, 3, 2, 2] + [1] * 18 + [4] * 9
    assert step.positions.tolist() == [-2, -2, 7, 8, *range(20, 38), *range(9)]
    assert step.token_ids.tolist() == [0, 0, 200, 201, *range(100, 118), *range(400, 409)]
    assert step.num_lone == 4
    assert step.tiles.tolist() == [[4, 8], [12, 8], [20, 2], [22, 8], [30, 1]]


def test_samples_in_the_order_of_the_output() -> None:
    """Decode rows, then chunks as the scheduler named them, wherever they were packed."""
    step = packed((5, 3), chunk(1, 20, 18), chunk(2, 7, 2), chunk(4, 0, 9, samples=False))
    assert step.sample_rows.tolist() == [5, 3, 1, 2]
    assert step.sample_index.tolist() == [0, 1, 21, 3]
    assert step.rows[step.sample_index].tolist() == step.sample_rows.tolist()


def test_no_more_lone_tokens_than_asked_for() -> None:
    short = [chunk(row, 0, MAX_LONE_CHUNK) for row in range(3)]
    step = packed((7, 8), *short, max_num_lone=2 + 2 * MAX_LONE_CHUNK)
    assert step.num_lone == 2 + 2 * MAX_LONE_CHUNK
    assert step.tiles.tolist() == [[step.num_lone, MAX_LONE_CHUNK]]


def test_everything_is_int32() -> None:
    step = packed((), chunk(0, 0, 1, samples=False))
    assert step.tiles.shape == (0, 2)
    assert len(step.sample_rows) == len(step.sample_index) == 0
    arrays = (step.rows, step.positions, step.token_ids, step.tiles, step.sample_rows, step.sample_index)
    assert {array.dtype for array in arrays} == {np.dtype(np.int32)}
