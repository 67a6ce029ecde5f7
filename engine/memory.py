"""How the memory of a device is shared out between weights, KV blocks and activations. Numbers only."""

from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

from engine.config import EngineOptions
from engine.errors import ConfigError
from kvcache.block_table import max_held_blocks
from kvcache.config import KVCacheConfig, LayerGroup


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """Bytes, and what they hold.

    free_bytes: found free on the device once the weights were loaded. set_aside: (name, bytes) of what steps
    need beside the pool: activations of the largest step, and on a GPU kernels and graphs. num_tokens: tokens
    that the pool holds in all, windows not counted.
    """

    weight_bytes: int
    free_bytes: int
    set_aside: tuple[tuple[str, int], ...]
    kv_bytes: int
    num_blocks: int
    num_tokens: int

    def rows(self) -> list[tuple[str, str]]:
        """What a person wants to see of it: (name, amount)."""
        tokens = f"{self.num_blocks} blocks, {self.num_tokens} tokens"
        return [
            ("weights", format_bytes(self.weight_bytes)),
            ("free after loading", format_bytes(self.free_bytes)),
            *((name, format_bytes(num_bytes)) for name, num_bytes in self.set_aside),
            ("KV cache", f"{format_bytes(self.kv_bytes)} ({tokens})"),
        ]


@dataclass(frozen=True, slots=True)
class PoolDemand:
    """What the pool is for. block_bytes: of one block, keys and values of all layers of a group.

    set_aside: see MemoryBudget.
    """

    groups: tuple[LayerGroup, ...]
    max_model_len: int
    block_bytes: int
    weight_bytes: int
    set_aside: tuple[tuple[str, int], ...]

    @property
    def set_aside_bytes(self) -> int:
        return sum(num_bytes for _, num_bytes in self.set_aside)


def size_pool(
    options: EngineOptions, demand: PoolDemand, free_bytes: int, *, is_cpu: bool
) -> tuple[KVCacheConfig, MemoryBudget]:
    """How many blocks the options and free_bytes give.

    On a CPU, where the memory is shared with everything else, no more than max_num_seqs sequences of full
    length need. Raises ConfigError, with the budget and what would fit, when one sequence of max_model_len
    does not fit: nothing is lowered silently.
    """
    cache = options.cache

    def blocks_needed(num_tokens: int) -> int:
        budget, size = options.max_num_batched_tokens, cache.block_size
        return sum(max_held_blocks(num_tokens, group.window, budget, size) for group in demand.groups)

    usable = max(0, int(free_bytes * cache.fraction) - demand.set_aside_bytes)
    if cache.num_bytes is not None and cache.num_bytes > free_bytes - demand.set_aside_bytes:
        limit = f"{format_bytes(free_bytes)} are free, steps need {format_bytes(demand.set_aside_bytes)}"
        raise ConfigError(f"KV cache of {format_bytes(cache.num_bytes)}: {limit}")
    num_blocks = (usable if cache.num_bytes is None else cache.num_bytes) // demand.block_bytes
    if is_cpu and cache.num_bytes is None:
        num_blocks = min(num_blocks, options.max_num_seqs * blocks_needed(demand.max_model_len))
    budget = _budget(demand, free_bytes, num_blocks, cache.block_size)
    if num_blocks < blocks_needed(demand.max_model_len):
        fitting = bisect_right(range(1, demand.max_model_len), num_blocks, key=blocks_needed)
        raise ConfigError(_too_small(demand, budget, blocks_needed(demand.max_model_len), fitting))
    return KVCacheConfig(num_blocks, cache.block_size, demand.groups, cache.enable_prefix_caching), budget


def _budget(demand: PoolDemand, free_bytes: int, num_blocks: int, block_size: int) -> MemoryBudget:
    return MemoryBudget(
        weight_bytes=demand.weight_bytes,
        free_bytes=free_bytes,
        set_aside=demand.set_aside,
        kv_bytes=num_blocks * demand.block_bytes,
        num_blocks=num_blocks,
        num_tokens=num_blocks // len(demand.groups) * block_size,
    )


def _too_small(demand: PoolDemand, budget: MemoryBudget, num_needed: int, fitting: int) -> str:
    table = "\n".join(f"  {name:<20}{amount}" for name, amount in budget.rows())
    need = f"{num_needed} blocks, {format_bytes(num_needed * demand.block_bytes)}"
    advice = f"set max_model_len to {fitting}, or give" if fitting >= 2 else "give"
    return (
        f"one sequence of max_model_len={demand.max_model_len} tokens needs {need} of KV cache:\n{table}\n"
        f"{advice} the KV cache more memory"
    )


def free_host_bytes(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What this process can still take of the machine, or of its container. None: the system does not
    tell.
    """
    try:
        free = _read_fields(proc / "meminfo")["MemAvailable:"] * 1024
    except (OSError, KeyError):
        return None
    try:
        limit, used = (int((cgroup / name).read_text()) for name in ("memory.max", "memory.current"))
        reclaimable = _read_fields(cgroup / "memory.stat").get("inactive_file", 0)
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return free
    return min(free, max(0, limit - used + reclaimable))


def _read_fields(path: Path) -> dict[str, int]:
    """Lines of a name, a number, and perhaps a unit."""
    fields = (line.split() for line in path.read_text().splitlines())
    return {words[0]: int(words[1]) for words in fields if len(words) > 1 and words[1].isdecimal()}


def format_bytes(num_bytes: int) -> str:
    """ "3.4 MiB", "12 GiB"."""
    amount, units = float(num_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while amount >= 1024 and len(units) > 1:
        amount /= 1024
        units.pop(0)
    return f"{amount:.3g} {units[0]}" if amount < 1000 else f"{amount:.0f} {units[0]}"
