"""A start of the TensorRT backend in a process of its own: seconds of each phase, up to the first token.

    python -m benchmarks.gpu_start MODEL_DIR PLAN_DIR     prints one line of JSON

`measure_starts` runs it twice over the same new directories: cold, with no plan and no compiled kernel on
disk, then warm.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import gpu_peer as peer
from benchmarks.gpu_report import Aim, Report

_TIMEOUT = 200.0  # seconds
_PROMPT_TOKENS = 128
_PHASES = ("weights", "plans", "kernels", "graphs")


def start(model_dir: Path, plan_dir: Path) -> dict[str, Any]:
    """Seconds. "ready": from the end of the imports, phases and all else; "first_token": after that."""
    started = time.perf_counter()
    import engine.tensorrt_backend.build  # noqa: F401  (which build_backend would import, within its time)
    from benchmarks.gpu_options import engine_options
    from engine.backends import build_backend
    from engine.sampling.params import SamplingParams
    from scheduler.step import Chunk, NewRow, StepInput

    imported = time.perf_counter()
    built = build_backend(engine_options(model_dir, plan_dir))
    ready = time.perf_counter()
    blocks = tuple(range(-(-_PROMPT_TOKENS // built.cache.block_size)))
    tables = (blocks,) * len(built.cache.groups)
    row = NewRow(0, _PROMPT_TOKENS, 0, 0, tables, 1, SamplingParams(ignore_eos=True), 0)
    chunk = Chunk(0, 0, tuple(range(100, 100 + _PROMPT_TOKENS)), samples=True)
    step = StepInput(0, chunks=(chunk,), new_rows=(row,), num_tokens=_PROMPT_TOKENS)
    built.runner.launch(step).result()
    return {
        "imports": imported - started,
        "ready": ready - imported,
        "first_token": time.perf_counter() - ready,
        "phases": dict(built.start.phases),
        "rejected": list(built.start.rejected),
    }


def measure_starts(model_dir: Path, plan_dir: Path, kernel_dir: Path, report: Report) -> None:
    """plan_dir, and kernel_dir for what Triton and the driver compile: empty or missing."""
    starts = {kind: _start_apart(model_dir, plan_dir, kernel_dir) for kind in ("cold", "warm")}
    rows = [_cells(kind, found) for kind, found in starts.items()]
    report.line("seconds; ready: all phases and the rest, after the imports; process: all of it, and its end")
    report.table(("", "imports", *_PHASES, "ready", "first token", "process"), rows)
    for line in starts["cold"]["rejected"]:
        report.line(f"rejected: {line}")
    first, imports = peer.FIRST_TOKEN_SECONDS, peer.IMPORT_SECONDS
    report.line(f"{peer.NAME}: {first:.0f} s to the first token, after {imports:.0f} s of imports")
    limits = {"cold": peer.AIM_COLD_SECONDS, "warm": peer.AIM_WARM_SECONDS}
    for kind, found in starts.items():
        seconds = found["imports"] + found["ready"]
        report.aims.append(Aim(f"start, {kind}: imports, and all until ready", seconds, limits[kind], "s"))


def _start_apart(model_dir: Path, plan_dir: Path, kernel_dir: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.gpu_start", str(model_dir), str(plan_dir)]
    caches = {"TRITON_CACHE_DIR": f"{kernel_dir}/triton", "CUDA_CACHE_PATH": f"{kernel_dir}/cuda"}
    started = time.perf_counter()
    done = subprocess.run(
        command, env={**os.environ, **caches}, capture_output=True, text=True, timeout=_TIMEOUT, check=False
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"exit status {done.returncode}: {done.stdout[-500:]}\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "process": seconds}


def _cells(kind: str, found: dict[str, Any]) -> list[str]:
    phases = [found["phases"].get(name, 0.0) for name in _PHASES]
    seconds = [found["imports"], *phases, found["ready"], found["first_token"], found["process"]]
    return [kind, *(f"{each:.2f}" for each in seconds)]


if __name__ == "__main__":
    print(json.dumps(start(Path(sys.argv[1]), Path(sys.argv[2]))), flush=True)
