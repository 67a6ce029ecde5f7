"""The TensorRT step on a GPU, in the shape of Llama-3.1-8B, beside what the GPU can do and what vLLM does.

    python -m benchmarks.tensorrt_step
    python -m benchmarks.tensorrt_step --only decode,prefill --layers 4

Random weights in bf16, written once to --model-dir. Sections: start (cold and warm, in processes of their
own), engine (memory, forms, routes), decode, prefill, requests, host. One that fails does not keep the next
from running. Exit status 1 if one failed or an aim is missed.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from triton import knobs

from benchmarks import gpu_peer as peer
from benchmarks.gpu_checkpoint import NUM_LAYERS, config_json, read_checkpoint, write_checkpoint
from benchmarks.gpu_decode import measure_decode
from benchmarks.gpu_engine import Engine, build_engine, describe_engine
from benchmarks.gpu_host import measure_host
from benchmarks.gpu_options import engine_options
from benchmarks.gpu_prefill import measure_prefill
from benchmarks.gpu_reference import Reference, measure_reference
from benchmarks.gpu_report import Report
from benchmarks.gpu_requests import BUDGETS, measure_requests
from benchmarks.gpu_start import measure_starts
from engine.model.huggingface import parse_config
from engine.tensorrt_backend.gpu import current_gpu
from engine.tensorrt_backend.library import load_library

SECTIONS = ("start", "engine", "decode", "prefill", "requests", "host")


class Benchmark:
    """What the sections share. The engine has buckets for the largest token budget that is tried."""

    def __init__(self, arguments: argparse.Namespace, report: Report) -> None:
        self.device = torch.device("cuda", 0)
        self._report = report
        self._num_layers: int = arguments.layers
        self._model_dir: Path = arguments.model_dir / f"llama-8b-shape-{arguments.layers}"
        self._plan_dir: Path = arguments.plan_dir / "kept"
        self._fresh_dir = arguments.plan_dir
        self._reference: Reference | None = None
        self._engine: Engine | None = None

    def prepare(self) -> None:
        """Says what is measured and with what; measures the ceilings; has the weights in the page cache."""
        gpu, library = current_gpu(self.device), load_library()
        versions = f"{library.name} {library.version}, torch {torch.__version__}"
        self._report.line(f"{gpu.name}, CUDA {gpu.driver} by its driver, {versions}")
        config = parse_config(config_json(self._num_layers), {})
        self._reference = measure_reference(config, self.device, self._report)
        if not (self._model_dir / "config.json").exists():
            write_checkpoint(self._model_dir, self._num_layers, self.device)
            torch.cuda.empty_cache()
        num_bytes = read_checkpoint(self._model_dir)
        self._report.line(f"{self._model_dir}: {num_bytes / 1e9:.2f} GB, in the page cache")

    def start(self) -> None:
        self._fresh_dir.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix="fresh-", dir=self._fresh_dir))
        measure_starts(self._model_dir, fresh / "plans", fresh / "kernels", self._report)
        # So that the engine finds its kernels compiled.
        self._plan_dir = fresh / "plans"
        knobs.cache.dir = str(fresh / "kernels" / "triton")

    def build(self) -> None:
        self._engine = build_engine(engine_options(self._model_dir, self._plan_dir, max(BUDGETS)))
        describe_engine(self._engine, self._report)

    def decode(self) -> None:
        measure_decode(self.engine, self.reference, self._report, self._beside(peer.DECODE_MS))

    def prefill(self) -> None:
        measure_prefill(self.engine, self.reference, self._report, self._beside(peer.PREFILL_MS))

    def requests(self) -> None:
        measure_requests(self.engine, self._report)

    def host(self) -> None:
        measure_host(self.engine, self._report)

    @property
    def engine(self) -> Engine:
        assert self._engine is not None, "there is no engine: its section failed"
        return self._engine

    @property
    def reference(self) -> Reference:
        assert self._reference is not None, "there are no ceilings: their section failed"
        return self._reference

    def _beside(self, milliseconds: Mapping[int, float]) -> Mapping[int, float]:
        """The peer's numbers, if the model has as many layers as its."""
        return milliseconds if self._num_layers == NUM_LAYERS else {}


def main() -> int:
    arguments = _parse()
    if not torch.cuda.is_available():
        print("benchmarks.tensorrt_step needs an NVIDIA GPU; there is none here", file=sys.stderr)
        return 2
    chosen = set(arguments.only.split(",")) if arguments.only else set(SECTIONS)
    if unknown := chosen - set(SECTIONS):
        print(f"--only: {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}", file=sys.stderr)
        return 2
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
    path = None if arguments.out is None else arguments.out / "tensorrt_step.txt"
    report = Report(path, arguments.max_seconds)
    with torch.inference_mode():
        _run(Benchmark(arguments, report), report, chosen)
    return 0 if report.summary() else 1


def _run(benchmark: Benchmark, report: Report, chosen: set[str]) -> None:
    work: dict[str, Callable[[], None]] = {
        "requests": benchmark.requests,
        "decode": benchmark.decode,
        "prefill": benchmark.prefill,
        "host": benchmark.host,
    }
    report.section("reference", benchmark.prepare)
    if "start" in chosen:
        report.section("start", benchmark.start)
    if chosen & {"engine", *work}:
        report.section("engine", benchmark.build)
    for name in work:
        if name in chosen:
            report.section(name, work[name])


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    temporary = Path(tempfile.gettempdir())
    parser.add_argument("--model-dir", type=Path, default=temporary, help="for the weights, 16 GB")
    parser.add_argument("--plan-dir", type=Path, default=temporary / "inflight-plans", help="for all caches")
    parser.add_argument("--layers", type=int, default=NUM_LAYERS, help="fewer for a quick try (default: 32)")
    parser.add_argument("--only", default="", help=f"some of {','.join(SECTIONS)}")
    parser.add_argument("--out", type=Path, help="a directory for a copy of what is printed")
    parser.add_argument("--max-seconds", type=float, default=420, help="begin nothing after that")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
