"""A whole start, without a GPU: what only a GPU has is replaced, and the library refuses every context there.

So plans are built and kept, then rejected, and forms without plans are chosen. test_runner_gpu.py starts for
real.
"""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.config import CacheOptions, EngineOptions
from engine.demo import MODEL_DIR
from engine.errors import TensorRTError
from engine.loading import BuiltBackend
from engine.tensorrt_backend import build, selection
from engine.tensorrt_backend.gpu import Gpu
from engine.tensorrt_backend.plans import PlanSpec
from tests.engine.conftest import Server
from tests.support.host_runner import HostExecutor, HostUploads


class _NoGpu:
    """PlanRuntime of a machine where no plan can be loaded."""

    def __init__(self, *_: object) -> None:
        pass

    def load(self, plan: bytes, spec: PlanSpec) -> Any:
        assert plan
        return SimpleNamespace(spec=spec, create_context=self._refuse)

    def _refuse(self, bucket: int, stream: int) -> None:
        raise TensorRTError(f"{bucket} tokens: no GPU")


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was measured: every form takes longer than the one before it."""
    found: list[float] = []

    def measure(enqueue: Any, stream: object) -> float:
        enqueue()
        found.append(100.0 + len(found))
        return found[-1]

    monkeypatch.setattr(selection, "measure", measure)
    monkeypatch.setattr(build, "PlanRuntime", _NoGpu)
    monkeypatch.setattr(build, "current_gpu", lambda device: Gpu("Some GPU", (9, 0), "13.0", 1 << 34))
    monkeypatch.setattr(build, "free_bytes", lambda device: 1 << 32)
    monkeypatch.setattr(build, "StreamExecutor", lambda stream: HostExecutor())
    monkeypatch.setattr(build, "Uploads", lambda max_num_words, device: HostUploads(max_num_words))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: SimpleNamespace(cuda_stream=0, device=device))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    return found


def start(plan_dir: Path, phases: list[str]) -> BuiltBackend:
    options = EngineOptions(
        MODEL_DIR,
        device="cpu",
        dtype="float32",
        backend="tensorrt",
        max_num_seqs=2,
        max_num_batched_tokens=8,
        max_model_len=64,
        plan_dir=plan_dir,
        cache=CacheOptions(num_bytes=4 << 20),
    )
    return build.build(options, lambda phase, done, total: phases.append(phase))


def test_cold_then_warm(tmp_path: Path, times: list[float]) -> None:
    phases: list[str] = []
    cold = start(tmp_path, phases)
    assert list(dict.fromkeys(phases)) == ["weights", "plans", "kernels", "graphs"]
    assert [name for name, _ in cold.start.phases] == ["weights", "plans", "kernels", "graphs"]
    names = [name for name, _ in cold.memory.rows()]
    assert names == [
        *("weights", "free after loading", "activations", "plans and kernels", "graphs", "KV cache")
    ]
    assert any("fused, 8 tokens: 8 tokens: no GPU" in line for line in cold.start.rejected)
    assert dict(cold.start.details)["layers"] == "1 to 8 blas"
    num_measured = len(times)
    assert num_measured > 0
    warm = start(tmp_path, phases)
    assert len(times) == num_measured, "nothing is measured again"
    assert (warm.start.rejected, warm.start.details) == (cold.start.rejected, cold.start.details)
    served = Server(warm, max_num_seqs=2, max_num_batched_tokens=8).serve([[5, 6, 7]], num_new_tokens=2)
    assert len(served.texts[0]) == 2
