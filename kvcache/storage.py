"""The pool's tensors: the K/V of all layers of a device. The one file of this package that knows torch."""

from collections.abc import Iterable, Iterator

import torch

from kvcache.config import KVCacheConfig

_MAX_RUN = 8  # blocks that are copied at once


def bytes_per_block(config: KVCacheConfig, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
    """Bytes that one block of the pool takes, keys and values of all layers of a group."""
    num_layers = len(config.groups[0].layers)
    return 2 * num_layers * num_kv_heads * config.block_size * head_dim * dtype.itemsize


class KVCacheStorage:
    """Keys and values, [num_blocks, num_kv_heads, block_size, head_dim] for each layer of a group.

    Groups share the tensors: the j-th layer of every group lives in the j-th pair, in blocks of its own. A
    head's tokens of a block are contiguous, which on a CPU is a few percent faster to attend over than
    heads inside tokens. Starts as zeros.
    """

    def __init__(
        self,
        config: KVCacheConfig,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (config.num_blocks, num_kv_heads, config.block_size, head_dim)
        num_layers = len(config.groups[0].layers)
        # [layer, key or value, *shape]
        self._pool = torch.zeros((num_layers, 2, *shape), dtype=dtype, device=device)
        pairs = [(pair[0], pair[1]) for pair in self._pool]
        self._layers = {layer: pairs[j] for group in config.groups for j, layer in enumerate(group.layers)}

    @property
    def block_size(self) -> int:
        """Tokens of a block."""
        return self._pool.shape[4]

    @property
    def num_bytes(self) -> int:
        return self._pool.nbytes

    def layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of one of the model's layers, of all blocks."""
        return self._layers[layer]

    def copy_blocks(self, copies: Iterable[tuple[int, int]]) -> None:
        """Copy (source, destination) blocks in all layers, as if one after the other."""
        for sources, destinations in _independent_runs(copies):
            source, destination = (
                to_device(torch.tensor(ids), self._pool.device) for ids in (sources, destinations)
            )
            self._pool.index_copy_(2, destination, self._pool.index_select(2, source))


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy of a host tensor that the host does not wait for; on a CPU the tensor itself.

    From pageable memory it would wait for all work that is queued.
    """
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def _independent_runs(copies: Iterable[tuple[int, int]]) -> Iterator[tuple[list[int], list[int]]]:
    """Runs that may be copied at once: none reads or writes what an earlier copy of its run has written.

    Short ones, because the blocks of a run are in memory twice for a while.
    """
    sources: list[int] = []
    destinations: list[int] = []
    for source, destination in copies:
        if source in destinations or destination in destinations or len(sources) == _MAX_RUN:
            yield sources, destinations
            sources, destinations = [], []
        sources.append(source)
        destinations.append(destination)
    if sources:
        yield sources, destinations
