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
    if device.type != "cuda":  # Triton's interpreter; enough for small products to be split
        return DeviceLimits(num_sms=40, shared_memory=1 << 16, has_pdl=False)
    properties = torch.cuda.get_device_properties(device)
    shared_memory = properties.shared_memory_per_block_optin  # type: ignore[attr-defined] # not in the stub
    return DeviceLimits(properties.multi_processor_count, shared_memory, properties.major >= 9)


@dataclass(frozen=True, slots=True)
class Tiling:
    """block_m: rows of W a program (of a swiglu: half from gate, half from up). block_k: columns a step, of
    which num_stages are in flight. num_splits: programs that share a tile's columns."""

    block_m: int
    block_k: int
    num_splits: int
    num_stages: int


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
    """Either one program a multiprocessor, with as much in flight as helps, or two that take turns.

    From about 1,000 tilings of an 8B decoder's products, measured on an H200. What counts is that all
    programs run at once (or there are very many), and that each has about 100 KB of W and x in flight.
    """
    block_m = 128 if shape.kind == "swiglu" else 64
    tiles = shape.num_tiles(block_m)
    if tiles <= limits.num_sms:
        block_k, num_stages, available = 128 // itemsize, 8, limits.shared_memory
    else:
        is_wide = tiles > 4 * limits.num_sms  # a head
        if is_wide and block_n == MAX_NUM_TOKENS:
            block_m = 128
        num_stages, available = 4 if is_wide else 3, limits.shared_memory // 2
        column_bytes = 256 if block_n == 16 or (is_wide and block_n < MAX_NUM_TOKENS) else 128
        if 2 * (block_m + block_n) * column_bytes > available:  # of a GPU with little of it
            column_bytes = 128
        block_k = column_bytes // itemsize
    steps = -(-shape.num_columns // block_k)
    num_splits = max(1, min(limits.num_sms // tiles, steps // 4))
    fitting = available // ((block_m + block_n) * block_k * itemsize)
    return Tiling(block_m, block_k, num_splits, max(2, min(num_stages, fitting)))
