"""Sizes of the kernels' tiles, by what was measured (benchmarks/attention.py) and what fits."""

from dataclasses import dataclass

import torch

from engine.attention.plan import AttentionShape

TILE_TOKENS = 64  # most tokens of a tile
_LONE_PROGRAMS_PER_PROCESSOR = 8


@dataclass(frozen=True, slots=True)
class Launch:
    """keys: of one iteration. The rest is Triton's."""

    keys: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class Tuning:
    """lone, chunk: of the two attention kernels. pack: query heads of a program of the chunk kernel; divides
    the query heads of a key/value head. num_splits: pieces that contexts are cut into, over all tokens.
    least_tiles: of a piece, in lone.keys."""

    lone: Launch
    chunk: Launch
    pack: int
    num_splits: int
    least_tiles: int


def tune(shape: AttentionShape, dtype: torch.dtype, device: torch.device) -> Tuning:
    """What suits the device; a CPU stands for a very small one."""
    num_processors = 1
    if device.type == "cuda":
        num_processors = torch.cuda.get_device_properties(device).multi_processor_count
    num_splits = -(-num_processors * _LONE_PROGRAMS_PER_PROCESSOR // shape.num_kv_heads)
    group = shape.num_heads // shape.num_kv_heads
    if dtype == torch.float32:  # exact products do not run on tensor cores
        return Tuning(Launch(32, 4, 2), Launch(32, 4, 1), 1, num_splits, 4)
    pack = 2 - group % 2
    is_wide = shape.head_dim > 128
    chunk = Launch(32 if is_wide else 64, 4 * pack, 2 if is_wide else 3)
    return Tuning(Launch(32 if is_wide else 64, 4, 3), chunk, pack, num_splits, 4)
