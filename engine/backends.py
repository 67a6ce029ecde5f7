"""Which backend runs a model here, and why not the other."""

import logging
import shutil
import sysconfig
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from subprocess import SubprocessError

import torch

from engine.config import EngineOptions
from engine.errors import BackendUnavailableError
from engine.loading import BuiltBackend, PhaseProgress, choose_device
from engine.nvidia import find_driver, why_no_cuda
from engine.sampling.custom import Registry, build_registry

_log = logging.getLogger(__name__)

GPU_MODULES = {"triton": "triton>=3.6,<3.7", "cuda.bindings": "cuda-bindings>=13"}
"""What the TensorRT backend needs beside TensorRT: modules, and what pip is to install for them."""


def choose_backend(options: EngineOptions) -> str:
    """ "tensorrt" or "torch". "auto" takes tensorrt on a GPU where it can run, and logs why where it cannot.

    Raises BackendUnavailableError when tensorrt was asked for and cannot run, ConfigError for a device that
    is not there.
    """
    if options.backend == "torch":
        return "torch"
    reason = why_not_tensorrt(options)
    if reason is None:
        return "tensorrt"
    if options.backend == "tensorrt":
        raise BackendUnavailableError(f"backend 'tensorrt' cannot run here: {reason}")
    if choose_device(options.device).type == "cuda":
        _log.warning("the torch backend runs on this GPU, slower than TensorRT would: %s", reason)
    elif options.device == "auto" and find_driver() is not None:
        _log.warning("this runs on the CPU: %s", reason)
    return "torch"


def why_not_tensorrt(options: EngineOptions) -> str | None:
    """What keeps the TensorRT backend from running here, and what to do about it; None: it runs."""
    if options.device == "cpu":
        return "it needs an NVIDIA GPU, and the device asked for is 'cpu'"
    return why_no_cuda() or why_no_packages() or _why_not_this_gpu()


def why_no_packages() -> str | None:
    """Which of the optional packages that TensorRT plans and kernels need is missing; None: all are there."""
    for module, requirement in GPU_MODULES.items():
        if not has_module(module):
            return f"{module} is not installed. Do: pip install '{requirement}'"
    if (found := _other_triton()) is not None:
        return f"triton {found} was never tried with these kernels. Do: pip install '{GPU_MODULES['triton']}'"
    from engine.tensorrt_backend.library import load_library

    try:
        load_library("auto")
    except BackendUnavailableError as error:
        return str(error)
    return None


def _other_triton() -> str | None:
    """Its version, if it is none that the kernels are written for."""
    try:
        found = version("triton")
    except PackageNotFoundError:  # a build from source, by somebody who knows
        return None
    return None if found.startswith("3.6.") else found


def why_no_compiler() -> str | None:
    """What Triton lacks to compile the launchers of kernels, which it keeps from then on; None: nothing."""
    if not (shutil.which("gcc") or shutil.which("clang")):
        return "Triton needs a C compiler. Do: apt-get install gcc"
    headers = Path(sysconfig.get_paths()["include"])
    if not (headers / "Python.h").exists():
        return f"Triton needs Python's headers, {headers / 'Python.h'}. Do: apt-get install python3-dev"
    return None


def _why_not_this_gpu() -> str | None:
    from engine.tensorrt_backend.gpu import current_gpu
    from engine.tensorrt_backend.library import load_library

    gpu = current_gpu(choose_device("cuda"))
    try:
        load_library("auto").check_gpu(gpu.name, gpu.capability)
    except BackendUnavailableError as error:
        return str(error)
    return None


def has_module(name: str) -> bool:
    """It can be found; nothing is imported but its parents."""
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # of a parent package
        return False


def build_backend(options: EngineOptions, progress: PhaseProgress | None = None) -> BuiltBackend:
    """Load options.model_dir for the backend that the options and the machine give.

    Raises ModelError (unsupported, or a broken checkpoint), ConfigError (does not fit the machine, or its GPU
    or a plugin fails) or TensorRTError (the library refuses what it should take).
    """
    backend, registry = choose_backend(options), build_registry(options.plugins)
    try:
        return _build(backend, options, progress, registry)
    except torch.AcceleratorError as error:
        reason = str(error).splitlines()[0]
        advice = "`nvidia-smi` shows whether it is healthy and who uses it, `dmesg` may hold an Xid error"
        raise BackendUnavailableError(f"the GPU failed at the start ({reason}): {advice}") from error


def _build_tensorrt(
    options: EngineOptions, progress: PhaseProgress | None, registry: Registry
) -> BuiltBackend:
    from engine.tensorrt_backend.build import build

    if (problem := why_no_compiler()) is None:
        return build(options, progress, registry)
    _log.warning("kernels that were not compiled here before will fail: %s", problem)
    try:
        return build(options, progress, registry)
    except (torch.AcceleratorError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, SubprocessError) as error:  # Triton's
        raise BackendUnavailableError(f"kernels could not be compiled: {problem}") from error


def _build(
    backend: str, options: EngineOptions, progress: PhaseProgress | None, registry: Registry
) -> BuiltBackend:
    if backend == "tensorrt":
        return _build_tensorrt(options, progress, registry)
    from engine.torch_backend.build import build as build_torch

    return build_torch(options, progress, registry)
