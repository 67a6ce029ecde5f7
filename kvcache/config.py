"""What a KV cache is made of: numbers only, shared by the manager (ids) and the storage (tensors)."""

from dataclasses import dataclass
from math import gcd


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers that share one block table per sequence, because they see the same tokens.

    window: tokens that a query sees, itself included; None sees all of them.
    layers: indices of the model's layers. Every group of a cache has as many, so that a block of the pool
    holds `block_size` tokens of any one group (the layout is that of vLLM's hybrid KV-cache groups).
    """

    layers: tuple[int, ...]
    window: int | None = None

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise ValueError(f"a window of {self.window} tokens: a query sees at least itself")


@dataclass(frozen=True, slots=True)
class KVCacheConfig:
    """num_blocks: blocks of the pool, of `block_size` tokens each, shared by all groups."""

    num_blocks: int
    block_size: int = 16
    groups: tuple[LayerGroup, ...] = (LayerGroup((0,)),)
    enable_prefix_caching: bool = True

    def __post_init__(self) -> None:
        if self.num_blocks < 1 or self.block_size < 1:
            raise ValueError(f"{self.num_blocks} blocks of {self.block_size} tokens: both must be positive")
        if not self.groups or len({len(group.layers) for group in self.groups}) != 1:
            raise ValueError("a cache needs at least one layer group, all with equally many layers")


def group_layers(windows: tuple[int | None, ...]) -> tuple[LayerGroup, ...]:
    """Partition layers, given each one's window, into groups of equal size with one window each.

    The size is the greatest common divisor of the numbers of layers per window: 28 full and 4 windowed layers
    give seven full groups and one windowed group of 4 layers.
    """
    layers_of: dict[int | None, list[int]] = {}
    for layer, window in enumerate(windows):
        layers_of.setdefault(window, []).append(layer)
    size = gcd(*(len(layers) for layers in layers_of.values()))
    return tuple(
        LayerGroup(tuple(layers[start : start + size]), window)
        for window, layers in layers_of.items()
        for start in range(0, len(layers), size)
    )
