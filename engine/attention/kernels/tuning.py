"""Sizes of the kernels' tiles, by what was measured (benchmarks/attention.py) and what fits."""

from dataclasses import dataclass

import torch

from engine.attention.plan import AttentionShape

TILE_TOKENS = 64  # most tokens of a tile
# Programs a processor. One is too few to keep the memory busy, and starts a short context soonest.
_MOST = 8
_ENOUGH = 2


@dataclass(frozen=True, slots=True)
class Launch:
    """keys: of one iteration. The rest is Triton's."""

    keys: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class Tuning:
    """lone, chunk: of the two attention kernels. pack: query heads of a program of the chunk kernel; divides
    the query heads of a key/value head. Contexts of lone tokens are cut into about enough_pieces, all
    together, or into up to most_pieces where each still has least_tiles of lone.keys."""

    lone: Launch
    chunk: Launch
    pack: int
    most_pieces: int
    enough_pieces: int
    least_tiles: int


def tune(shape: AttentionShape, dtype: torch.dtype, device: torch.device) -> Tuning:
    """What suits the device; a CPU stands for a very small one."""
    num_processors = 1
    if device.type == "cuda":
        num_processors = torch.cuda.get_device_properties(device).multi_processor_count
    most, enough = (-(-num_processors * n // shape.num_kv_heads) for n in (_MOST, _ENOUGH))
    group = shape.num_heads // shape.num_kv_heads
    is_wide = shape.head_dim > 128
    if dtype == torch.float32:  # exact products do not run on tensor cores
        return Tuning(Launch(32, 4, 2), Launch(16 if is_wide else 32, 4, 1), 1, most, enough, 4)
    pack = 2 - group % 2
    chunk = Launch(32 if is_wide else 64, 4 * pack, 2 if is_wide else 3)
    return Tuning(Launch(32 if is_wide else 64, 4, 3), chunk, pack, most, enough, 4)
