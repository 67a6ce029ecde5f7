"""Sizes of the kernels' tiles, by what was measured (benchmarks/attention.py) and what fits."""

from dataclasses import dataclass

import torch
from triton.runtime import driver

from engine.attention.plan import AttentionShape

TILE_TOKENS = 64  # most tokens of a tile
# Programs a processor. One is too few to keep the memory busy, and starts a short context soonest.
_MOST = 8
_ENOUGH = 2
_SMALL_SHARED_BYTES = 101376  # of a program, on the GPUs that have least (compute capability 8.6, 8.9)


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
    num_processors, shared_bytes = 1, _SMALL_SHARED_BYTES
    if device.type == "cuda":
        properties = driver.active.utils.get_device_properties(torch.cuda.current_device())
        num_processors, shared_bytes = properties["multiprocessor_count"], properties["max_shared_mem"]
    most, enough = (-(-num_processors * n // shape.num_kv_heads) for n in (_MOST, _ENOUGH))
    group = shape.num_heads // shape.num_kv_heads
    is_wide = shape.head_dim > 128
    if dtype == torch.float32:  # exact products do not run on tensor cores
        return Tuning(Launch(32, 4, 2), Launch(16 if is_wide else 32, 4, 1), 1, most, enough, 4)
    lone = Launch(32 if is_wide else 64, 4, 2)
    pack = 2 - group % 2
    return Tuning(lone, _chunk_launch(pack, 256 if is_wide else 128, shared_bytes), pack, most, enough, 4)


def _chunk_launch(pack: int, columns: int, shared_bytes: int) -> Launch:
    """The most keys that fit into a program's shared memory, beside its queries; of 2-byte elements."""
    rows = pack * TILE_TOKENS
    sizes = ((128, 2), (64, 2), (32, 2), (32, 1)) if pack == 2 else ((64, 2), (32, 2), (32, 1))
    for keys, num_stages in sizes:
        # Accumulators of 256 columns leave registers for few keys.
        if (columns <= 128 or keys == 32) and (2 * keys * num_stages + rows) * columns * 2 < shared_bytes:
            break
    return Launch(keys, 4 * pack, num_stages)
