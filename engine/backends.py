"""Which backend runs a model here, and why not the other."""

import logging
from importlib.util import find_spec

from engine.config import EngineOptions
from engine.errors import BackendUnavailableError
from engine.loading import BuiltBackend, PhaseProgress, choose_device

_log = logging.getLogger(__name__)


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
    return "torch"


def why_not_tensorrt(options: EngineOptions) -> str | None:
    """What keeps the TensorRT backend from running here, and what to do about it; None: it runs."""
    if choose_device(options.device).type != "cuda":
        return "it needs an NVIDIA GPU, and torch finds none"
    for module in ("triton", "cuda.bindings"):
        if not _has_module(module):
            return f"the package {module.replace('.', '-')} is missing: pip install 'inflight-engine[gpu]'"
    from engine.tensorrt_backend.library import load_library

    try:
        load_library("auto")
    except BackendUnavailableError as error:
        return str(error)
    return None


def _has_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # of a parent package
        return False


def build_backend(options: EngineOptions, progress: PhaseProgress | None = None) -> BuiltBackend:
    """Load options.model_dir for the backend that the options and the machine give.

    Raises ModelError (unsupported, or a broken checkpoint) or ConfigError (does not fit the machine).
    """
    if choose_backend(options) == "tensorrt":
        from engine.tensorrt_backend.build import build as build_tensorrt

        return build_tensorrt(options, progress)
    from engine.torch_backend.build import build as build_torch

    return build_torch(options, progress)
