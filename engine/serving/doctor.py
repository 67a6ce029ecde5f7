"""What of this machine matters to the server: what was found, and what to do where something is missing."""

import os
import platform
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from engine.backends import GPU_MODULES, has_module, why_no_compiler, why_not_tensorrt
from engine.config import EngineOptions
from engine.demo import MODEL_DIR
from engine.errors import BackendUnavailableError
from engine.memory import format_bytes
from engine.nvidia import find_driver, why_no_cuda
from engine.serving.version import version
from engine.tensorrt_backend.library import load_library

_MIN_FREE_BYTES = 256 << 20  # several models' plans and kernels


@dataclass(frozen=True, slots=True)
class Finding:
    """problem: what is wrong, and what to do about it, as far as someone wants a GPU; None: nothing is."""

    name: str
    found: str
    problem: str | None = None


def examine(plan_dir: Path | None) -> list[Finding]:
    """Everything from the driver to the backends. Works on any machine, whatever is installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch warns of a driver is among the findings
        return [
            Finding("inflight", f"{version()}, Python {platform.python_version()}"),
            _driver(),
            _torch(),
            *_gpus(),
            _tensorrt(),
            *(_package(module, requirement) for module, requirement in GPU_MODULES.items()),
            _compiler(),
            _plan_cache(plan_dir),
            *_backends(),
        ]


def _driver() -> Finding:
    driver = find_driver()
    if driver is None:
        return Finding("driver", "none", "without an NVIDIA GPU and its driver, models run on the CPU")
    supported = f", CUDA up to {_driver_cuda()}" if has_module("cuda.bindings") else ""
    return Finding("driver", f"{driver}{supported}")


def _driver_cuda() -> str:
    from engine.tensorrt_backend.gpu import driver_version

    return driver_version()


def _torch() -> Finding:
    built_for = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    problem = why_no_cuda() if find_driver() is not None else None
    return Finding("torch", f"{torch.__version__}, {built_for}", problem)


def _gpus() -> Iterator[Finding]:
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        name = f"GPU {index}"
        try:
            properties = torch.cuda.get_device_properties(index)
            free, total = torch.cuda.mem_get_info(index)
        except RuntimeError as error:
            yield Finding(name, "fails", str(error).splitlines()[0])
            continue
        capability = (properties.major, properties.minor)
        memory = f"{format_bytes(free)} of {format_bytes(total)} free"
        shown = f"{properties.name}, compute capability {properties.major}.{properties.minor}, {memory}"
        yield Finding(name, shown, _gpu_problem(properties.name, capability))


def _gpu_problem(name: str, capability: tuple[int, int]) -> str | None:
    """What the installed library says of a GPU."""
    try:
        library = load_library("auto")
    except BackendUnavailableError:
        return None  # which has a finding of its own
    try:
        library.check_gpu(name, capability)
    except BackendUnavailableError as error:
        return str(error)
    return None


def _tensorrt() -> Finding:
    try:
        library = load_library("auto")
    except BackendUnavailableError as error:
        return Finding("TensorRT", "none that can be used", str(error))
    return Finding("TensorRT", f"{library.name} {library.version}")


def _package(module: str, requirement: str) -> Finding:
    if not has_module(module):
        return Finding(module, "not installed", f"Do: pip install '{requirement}'")
    try:
        return Finding(module, metadata.version(module.replace(".", "-")))
    except metadata.PackageNotFoundError:  # of another distribution, such as a vendor's build
        return Finding(module, "installed")


def _compiler() -> Finding:
    return Finding("C compiler", shutil.which("gcc") or shutil.which("clang") or "none", why_no_compiler())


def _plan_cache(directory: Path | None) -> Finding:
    if directory is None:
        return Finding("plan cache", "none", "this user has no home directory. Do: give --plan-dir")
    files = [path for path in directory.glob("*") if path.is_file()] if directory.is_dir() else []
    num_plans = sum(path.suffix == ".plan" for path in files)
    held = f"{num_plans} plans, {format_bytes(sum(path.stat().st_size for path in files))}"
    return Finding("plan cache", f"{directory}: {held}", _why_not_writable(directory))


def _why_not_writable(directory: Path) -> str | None:
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return f"{existing} cannot be written, so each start builds again. Do: give another --plan-dir"
    if (free := shutil.disk_usage(existing).free) < _MIN_FREE_BYTES:
        return f"{format_bytes(free)} are free there, {format_bytes(_MIN_FREE_BYTES)} would be enough"
    return None


def _backends() -> Iterator[Finding]:
    """What `inflight serve` would run, and what not."""
    reason = why_not_tensorrt(EngineOptions(MODEL_DIR))
    device = "the CPU" if why_no_cuda() is not None else torch.cuda.get_device_name()
    compiler = why_no_compiler() if reason is None else None
    runs = "does not run here" if reason else f"{'may fail' if compiler else 'runs'}, on {device}"
    yield Finding("tensorrt backend", runs, reason or compiler)
    yield Finding("torch backend", f"runs, on {device}")
    yield Finding("inflight serve", f"takes {'torch' if reason else 'tensorrt'}, on {device}")
