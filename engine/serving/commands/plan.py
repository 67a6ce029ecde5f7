"""Build the TensorRT plans of a model ahead of time, for the next `inflight serve` to find.

Give the options that the server will be given: plans are made for its numbers of tokens. No weights are read.
With tensorrt_rtx no GPU is needed, and the plans are for all GPUs: copy the folder to where the server runs.
Kernels are still compiled, once, at the first start on a GPU.
"""

import argparse
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

from engine.config import DTYPES, EngineOptions, choose_limits
from engine.errors import BackendUnavailableError, ConfigError
from engine.memory import format_bytes
from engine.model.huggingface import load_config
from engine.serving.commands.serve_options import add_limits, add_plan_dir

if TYPE_CHECKING:
    from engine.tensorrt_backend.library import Library
    from engine.tensorrt_backend.plan_cache import CachedPlan

_ADVICE = (
    "Run it where that GPU is, or use tensorrt_rtx, which needs none: pip install tensorrt_rtx==1.4.0.76"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model_dir", metavar="MODEL_DIR", type=Path, help="a Hugging Face directory")
    add_plan_dir(parser.add_argument)
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="auto: the checkpoint's")
    add_limits(parser.add_argument)


def run(args: argparse.Namespace) -> int:
    if args.plan_dir is None:
        raise ConfigError("plan_dir: this user has no home directory, so there is no default: give one")
    limits = choose_limits("tensorrt", args.max_num_seqs, args.max_num_batched_tokens)
    options = EngineOptions(
        model_dir=args.model_dir,
        dtype=args.dtype,
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        plan_dir=args.plan_dir,
    )
    load_config(options.model_dir)  # what cannot be served is said before torch takes its seconds
    logging.basicConfig(level="INFO", format="%(message)s")
    _build(options)
    return 0


def _build(options: EngineOptions) -> None:
    """Print each plan as it is done."""
    import torch

    from engine.backends import why_no_packages
    from engine.loading import choose_dtype

    if (reason := why_no_packages()) is not None:
        raise BackendUnavailableError(f"no plans can be built here: {reason}")
    from engine.tensorrt_backend.build import build_plans
    from engine.tensorrt_backend.library import load_library

    library, config = load_library("auto"), load_config(options.model_dir)
    gpu = find_gpu(library)
    dtype = choose_dtype(options.dtype, config, torch.device("cuda"))
    print(f"{library.name} {library.version}, for {'any GPU' if library.is_rtx else gpu}, {options.plan_dir}")
    started = time.perf_counter()
    for spec, plan in build_plans(options, library, config, dtype, gpu):
        _show(spec.segment.name, plan, time.perf_counter() - started)
        if not plan.is_kept:
            raise ConfigError(f"plan_dir {options.plan_dir}: plans cannot be kept there, see above")
        started = time.perf_counter()


def _show(name: str, plan: "CachedPlan", seconds: float) -> None:
    how = f"built in {seconds:.1f} s" if plan.was_built else "there already"
    print(f"{name:<32}{format_bytes(len(plan.content)):>8}  {how}", flush=True)


def find_gpu(library: "Library") -> str | None:
    """Its name; None where there is none and the library needs none.

    Raises BackendUnavailableError where it needs one, or does not support the one that is there.
    """
    from engine.loading import choose_device
    from engine.nvidia import why_no_cuda

    if (reason := why_no_cuda()) is None:
        from engine.tensorrt_backend.gpu import current_gpu

        gpu = current_gpu(choose_device("cuda"))
        library.check_gpu(gpu.name, gpu.capability)
        return gpu.name
    if not library.can_build_without_gpu:
        wants = f"{library.name} {library.version} builds plans only for a GPU that it finds"
        raise BackendUnavailableError(f"{wants}, and {reason}. {_ADVICE}")
    return None
