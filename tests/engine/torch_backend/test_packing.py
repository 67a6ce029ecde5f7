"""Packing: one flat list of tokens, and where in it each sampled one is."""

import numpy as np

from engine.attention.layout import ChunkSpan
from engine.torch_backend.packing import pack
from scheduler.step import Chunk, StepInput

NUM_COMPUTED = np.array([50, 7, 0, 30, 0, 90], dtype=np.int64)


def test_lone_tokens_by_position_then_long_chunks() -> None:
    """Decode rows 0, 1 and 5; a long chunk, a short one that samples, and a short one that does not."""
    chunks = (
        Chunk(2, 0, (11, 12, 13, 14), samples=True),
        Chunk(3, 30, (21, 22), samples=True),
        Chunk(4, 0, (31,), samples=False),
    )
    packed = pack(StepInput(0, (0, 1, 5), chunks), NUM_COMPUTED, max_lone_chunk=2)
    layout = packed.layout
    assert layout.positions.tolist() == [0, 7, 30, 31, 50, 90, 0, 1, 2, 3]
    assert layout.rows.tolist() == [4, 1, 3, 3, 0, 5, 2, 2, 2, 2]
    assert packed.token_ids.tolist() == [31, 0, 21, 22, 0, 0, 11, 12, 13, 14]
    assert layout.num_lone == 6
    assert layout.chunks == (ChunkSpan(6, 10, row=2, position=0),)
    # As StepOutput orders them: decode rows, then the chunks that sample.
    assert packed.sample_rows.tolist() == [0, 1, 5, 2, 3]
    assert layout.positions[packed.sample_index].tolist() == [50, 7, 90, 3, 31]
    assert packed.num_decodes == 3


def test_chunks_alone() -> None:
    packed = pack(StepInput(0, (), (Chunk(5, 90, (1, 2, 3), samples=False),)), NUM_COMPUTED, max_lone_chunk=1)
    assert packed.layout.num_lone == 0
    assert packed.layout.chunks == (ChunkSpan(0, 3, row=5, position=90),)
    assert packed.sample_index.tolist() == []
