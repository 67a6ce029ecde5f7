"""Memory between the kernels of a segment."""

from collections.abc import Sequence

import torch

from engine.model.config import ModelConfig
from engine.skinny.tiling import (
    DeviceLimits,
    ProductShape,
    Tiling,
    choose_tiling,
    device_limits,
    token_block,
)


class SkinnyScratch:
    """One for all buckets that run on one stream, sized for the largest.

    scaled: [N, hidden], the residual stream times a norm's weight. sums: float32, its sums of squares.
    activated: [N, intermediate]. residual: [N, hidden], between the attention and the MLP.
    partials, arrivals: see kernels/product.py.
    """

    def __init__(
        self, config: ModelConfig, max_num_tokens: int, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.limits: DeviceLimits = device_limits(device)
        self._shapes = product_shapes(config)
        self._itemsize = dtype.itemsize
        block_n = token_block(max_num_tokens)

        def empty(*size: int, dtype: torch.dtype = dtype) -> torch.Tensor:
            return torch.empty(size, device=device, dtype=dtype)

        self.scaled = empty(max_num_tokens, config.hidden_size)
        self.residual = empty(max_num_tokens, config.hidden_size)
        self.activated = empty(max_num_tokens, config.intermediate_size)
        needs = [self._needs(n) for n in _token_blocks(block_n)]
        self.sums = empty(max(need[0] for need in needs), dtype=torch.float32)
        self.partials = empty(max(need[1] for need in needs), dtype=torch.float32)
        self.arrivals = torch.zeros(max(need[2] for need in needs), device=device, dtype=torch.int32)

    def tiling(self, shape: ProductShape, block_n: int) -> Tiling:
        return choose_tiling(shape, block_n, self._itemsize, self.limits)

    def _needs(self, block_n: int) -> tuple[int, int, int]:
        """Elements of (sums, partials, arrivals)."""
        sums = partials = arrivals = 1
        for shape in self._shapes:
            tiling = self.tiling(shape, block_n)
            tiles = shape.num_tiles(tiling.block_m)
            arrivals = max(arrivals, tiles)
            if shape.kind == "residual":
                sums = max(sums, tiles * block_n)
            if tiling.num_splits > 1:
                partials = max(partials, tiles * tiling.num_splits * tiling.block_m * block_n)
        return sums, partials, arrivals


def product_shapes(config: ModelConfig) -> Sequence[ProductShape]:
    """o, gate_up, down, qkv, head."""
    hidden, intermediate = config.hidden_size, config.intermediate_size
    return (
        ProductShape("residual", hidden, config.q_size),
        ProductShape("swiglu", intermediate, hidden),
        ProductShape("residual", hidden, intermediate),
        ProductShape("scaled", config.qkv_size, hidden),
        ProductShape("scaled", config.vocab_size, hidden),
    )


def _token_blocks(largest: int) -> list[int]:
    """16, 32, ... up to the largest."""
    return [16 << i for i in range((largest // 16).bit_length())]
