"""How a product is cut into programs: rules from measurements, in terms of the shape and the GPU."""

from dataclasses import dataclass
from typing import Literal

import torch

Kind = Literal["residual", "scaled", "swiglu"]
"""What is done with a product: see engine.skinny.kernels.product.skinny_product."""

MAX_NUM_TOKENS = 128


@dataclass(frozen=True, slots=True)
class DeviceLimits:
    """num_sms: multiprocessors. shared_memory: bytes that one program may take.
    has_pdl: whether a kernel can start before the one in front of it has ended."""

    num_sms: int
    shared_memory: int
    has_pdl: bool


def device_limits(device: torch.device) -> DeviceLimits:
    if device.type != "cuda":  # Triton's interpreter
        return DeviceLimits(num_sms=4, shared_memory=1 << 16, has_pdl=False)
    properties = torch.cuda.get_device_properties(device)
    shared_memory = properties.shared_memory_per_block_optin  # type: ignore[attr-defined] # not in the stub
    return DeviceLimits(properties.multi_processor_count, shared_memory, properties.major >= 9)


@dataclass(frozen=True, slots=True)
class Tiling:
    """block_m: rows of W a program (of a pair of them: half from gate, half from up). block_k: columns a
    step, num_stages steps are in flight. num_splits: programs that share a tile's columns.
    prefetch: columns of W to ask for before the kernel in front has ended."""

    block_m: int
    block_k: int
    num_splits: int
    num_stages: int
    num_warps: int
    prefetch: int


@dataclass(frozen=True, slots=True)
class ProductShape:
    """num_outputs: columns of the result, which for swiglu has half as many as W has rows."""

    kind: Kind
    num_outputs: int
    num_columns: int

    def num_tiles(self, block_m: int) -> int:
        return -(-self.num_outputs // (block_m // 2 if self.kind == "swiglu" else block_m))


def token_block(num_tokens: int) -> int:
    """Tokens in a tile: the next power of two, and at least what a matrix unit takes."""
    assert 1 <= num_tokens <= MAX_NUM_TOKENS
    return max(16, 1 << (num_tokens - 1).bit_length())


def choose_tiling(shape: ProductShape, block_n: int, itemsize: int, limits: DeviceLimits) -> Tiling:
    """About one program a multiprocessor, each with as much in flight as fits."""
    block_m = 128 if shape.kind == "swiglu" or shape.num_tiles(64) > 2 * limits.num_sms else 64
    block_k = (128 if block_n * block_m < 128 * 128 else 64) * 2 // itemsize
    steps = -(-shape.num_columns // block_k)
    num_splits = max(1, min(limits.num_sms // shape.num_tiles(block_m), steps // 4))
    stage = (block_m + block_n) * block_k * itemsize
    num_stages = max(2, min(6, limits.shared_memory * 9 // 10 // stage, _WANTED_IN_FLIGHT // stage))
    return Tiling(block_m, block_k, num_splits, num_stages, num_warps=4, prefetch=2 * block_k)


_WANTED_IN_FLIGHT = 200 << 10  # bytes of a program
