"""Sizing the pool, and what does not fit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config import CacheOptions, EngineOptions
from engine.errors import ConfigError
from engine.memory import PoolDemand, format_bytes, free_host_bytes, size_pool
from engine.torch_backend.build import build
from kvcache.config import KVCacheConfig, LayerGroup
from kvcache.manager import KVCacheManager

Make = Callable[..., Any]
MIB = 1 << 20
FULL = (LayerGroup((0, 1)),)
MIXED = (LayerGroup((0, 1)), LayerGroup((2, 3), window=100))


def demand(groups: tuple[LayerGroup, ...] = FULL, max_model_len: int = 1024) -> PoolDemand:
    return PoolDemand(
        groups, max_model_len, block_bytes=4096, weight_bytes=3 * MIB, set_aside=(("activations", 5 * MIB),)
    )


def options(**cache: Any) -> EngineOptions:
    return EngineOptions(Path("model"), max_num_seqs=8, cache=CacheOptions(**cache))


def test_a_fraction_of_what_is_free() -> None:
    cache, budget = size_pool(options(fraction=0.5), demand(), 100 * MIB, is_cpu=False)
    assert cache.num_blocks == 45 * MIB // 4096
    assert budget.kv_bytes == cache.num_blocks * 4096
    assert budget.num_tokens == cache.num_blocks * 16
    assert budget.kv_bytes + 5 * MIB <= 50 * MIB


def test_a_cpu_takes_no_more_than_the_sequences_can_use() -> None:
    cache, _ = size_pool(options(), demand(), 100 * MIB, is_cpu=True)
    assert cache.num_blocks == 8 * 1024 // 16


def test_bytes_are_taken_as_given() -> None:
    cache, budget = size_pool(options(num_bytes=40 * MIB + 1), demand(), 100 * MIB, is_cpu=True)
    assert cache.num_blocks == 40 * MIB // 4096
    assert dict(budget.rows())["KV cache"] == "40 MiB (10240 blocks, 163840 tokens)"
    with pytest.raises(ConfigError, match=r"KV cache of 96 MiB: 100 MiB are free, steps need 5 MiB"):
        size_pool(options(num_bytes=96 * MIB), demand(), 100 * MIB, is_cpu=True)


@pytest.mark.parametrize("groups", [FULL, MIXED])
def test_the_longest_sequence_must_fit(groups: tuple[LayerGroup, ...]) -> None:
    """The least pool that is accepted is the least that the manager can run it in."""
    pools = (KVCacheManager(KVCacheConfig(n, 16, groups)) for n in range(1, 1000))
    least = next(pool.num_blocks for pool in pools if pool.fits(1024, options().max_num_batched_tokens))
    size_pool(options(num_bytes=least * 4096), demand(groups), 100 * MIB, is_cpu=True)
    with pytest.raises(ConfigError, match="set max_model_len to") as caught:
        size_pool(options(num_bytes=(least - 1) * 4096), demand(groups), 100 * MIB, is_cpu=True)
    message = str(caught.value)
    assert "weights" in message
    assert f"{least} blocks" in message
    fitting = int(message.split("set max_model_len to ")[1].split(",")[0])
    size_pool(options(num_bytes=(least - 1) * 4096), demand(groups, fitting), 100 * MIB, is_cpu=True)
    with pytest.raises(ConfigError):
        size_pool(options(num_bytes=(least - 1) * 4096), demand(groups, fitting + 1), 100 * MIB, is_cpu=True)


def test_no_room_at_all() -> None:
    with pytest.raises(ConfigError, match="give the KV cache more memory"):
        size_pool(options(), demand(), 2 * MIB, is_cpu=True)


def test_build(tiny_model: Make) -> None:
    path = tiny_model("qwen2-mixed").path
    engine = build(EngineOptions(path, device="cpu", max_num_seqs=4, max_model_len=100))
    assert engine.model.max_model_len == 100
    assert engine.dtype == torch.float32
    assert engine.runner.max_steps_in_flight == 1
    assert engine.memory.weight_bytes == 4 * sum(
        p.numel() for p in tiny_model("qwen2-mixed").reference.parameters()
    )
    assert engine.memory.num_blocks == engine.cache.num_blocks
    # 4 sequences of 7 blocks of full attention and 4 of a window: 24 - 1 + 512 tokens reach further than 100.
    assert engine.cache.num_blocks == 4 * (7 + 7)
    manager = KVCacheManager(engine.cache)
    assert manager.fits(100, 512)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_model_len": 257}, r"max_model_len 257: must be in \[2, 256\]"),
        ({"max_model_len": 1}, "max_model_len 1"),
        ({"cache": CacheOptions(num_bytes=1 << 60)}, "KV cache of"),
        ({"cache": CacheOptions(num_bytes=1000)}, "one sequence of max_model_len=256"),
    ],
)
def test_wrong_options(changes: dict[str, Any], message: str, tiny_model: Make) -> None:
    with pytest.raises(ConfigError, match=message):
        build(EngineOptions(tiny_model("llama2").path, device="cpu", **changes))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_cuda(tiny_model: Make) -> None:
    with pytest.raises(ConfigError, match="device 'cuda': "):
        build(EngineOptions(tiny_model("llama2").path, device="cuda"))


def test_free_memory_of_machines_and_containers(tmp_path: Path) -> None:
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    assert free_host_bytes(proc, cgroup) is None
    proc.mkdir()
    (proc / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:  4000 kB\nHugePages_Total: 0\n")
    assert free_host_bytes(proc, cgroup) == 4000 * 1024
    cgroup.mkdir()
    (cgroup / "memory.current").write_text("3000000\n")
    (cgroup / "memory.stat").write_text("anon 5\ninactive_file 500000\n")
    (cgroup / "memory.max").write_text("max\n")
    assert free_host_bytes(proc, cgroup) == 4000 * 1024
    (cgroup / "memory.max").write_text("4000000\n")
    assert free_host_bytes(proc, cgroup) == 1_500_000


@pytest.mark.parametrize(
    ("num_bytes", "shown"),
    [(0, "0 B"), (1000, "1000 B"), (1536, "1.5 KiB"), (5 << 30, "5 GiB"), (3 << 50, "3072 TiB")],
)
def test_format_bytes(num_bytes: int, shown: str) -> None:
    assert format_bytes(num_bytes) == shown
