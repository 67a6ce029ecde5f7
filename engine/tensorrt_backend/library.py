"""The one file that imports TensorRT: full `tensorrt` (10.13 and later) or `tensorrt_rtx`, behind one record.

Both have one API with small differences; the flags of `Library` say which this one has, by looking, so that
no other file asks for a name or a version. Everything else takes the library's module through `Library`; its
type is Any, for the stubs of the two do not agree.
"""

import importlib
import logging
import re
from collections import deque
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from engine.errors import BackendUnavailableError, TensorRTError

_LOG = logging.getLogger(__name__)

PREFERENCES = ("auto", "tensorrt", "tensorrt_rtx")
"""What `load_library` takes. auto: the first that can be used."""

_PINNED_RTX = "1.4.0.76"
_MIN_VERSION = {"tensorrt": (10, 13), "tensorrt_rtx": (1, 4)}
_INSTALL = {
    "tensorrt": "pip install 'tensorrt>=10.13'  (data-centre GPUs)",
    "tensorrt_rtx": f"pip install tensorrt_rtx=={_PINNED_RTX}  (RTX GPUs, H100, H200; plans without a GPU)",
}
_MIN_CAPABILITY = (7, 5)
_HOPPER = (9, 0)
_MAX_RTX_ON_HOPPER = (1, 6)
_NUM_KEPT_ERRORS = 8

_DTYPES = {
    torch.float32: "FLOAT",
    torch.float16: "HALF",
    torch.bfloat16: "BF16",
    torch.int32: "INT32",
    torch.int64: "INT64",
    torch.int8: "INT8",
    torch.uint8: "UINT8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "FP8",
}


@dataclass(frozen=True, slots=True)
class Library:
    """An imported library and what it can do.

    name: "tensorrt" or "tensorrt_rtx". version: as the library says it. module: the Python module. logger:
    the process's ILogger, to give to builders and runtimes.
    """

    name: str
    version: str
    module: Any
    logger: Any
    is_rtx: bool  # kernels are compiled where a context is made, not where the plan is built
    can_build_without_gpu: bool
    has_runtime_cache: bool
    has_engine_validity: bool
    has_capture_query: bool
    has_float32_products: bool  # tensorrt_rtx multiplies float32 matrices in TF32, whatever its flag says
    errors: deque[str]  # the library's own words since the last failure

    def failure(self, what: str) -> TensorRTError:
        """An error to raise: what was attempted, and what the library has said since the last one."""
        words = "; ".join(self.errors) or f"{self.name} {self.version} gave no reason"
        self.errors.clear()
        return TensorRTError(f"{what}: {words}")

    def check(self, result: Any, what: str) -> Any:
        """The result. Raises TensorRTError where it is None or False, the two ways the library says no."""
        if result is None or result is False:
            raise self.failure(what)
        return result

    def dtype(self, dtype: torch.dtype) -> Any:
        """The library's DataType. Raises TensorRTError for one that it has not."""
        if dtype not in _DTYPES:
            raise TensorRTError(f"{dtype} has no counterpart in {self.name}")
        return getattr(self.module.DataType, _DTYPES[dtype])

    def torch_dtype(self, dtype: Any) -> torch.dtype:
        """torch's counterpart of a DataType. Raises TensorRTError where there is none."""
        for ours, name in _DTYPES.items():
            if getattr(self.module.DataType, name) == dtype:
                return ours
        raise TensorRTError(f"{dtype} has no counterpart in torch")

    def check_gpu(self, name: str, capability: tuple[int, int]) -> None:
        """Raises BackendUnavailableError, saying what to do, where this version cannot use the GPU.

        capability: compute capability, (9, 0) for an H100 or H200.
        """
        shown = f"{name} (compute capability {capability[0]}.{capability[1]})"
        if capability < _MIN_CAPABILITY:
            raise BackendUnavailableError(
                f"{shown}: {self.name} needs 7.5 (Turing) or later; use --backend torch"
            )
        if self.is_rtx and capability == _HOPPER and _version(self.version) > _MAX_RTX_ON_HOPPER:
            raise BackendUnavailableError(
                f"{shown}: tensorrt_rtx {self.version} refuses it, 1.4 to 1.6 run there. Do: "
                f"pip install tensorrt_rtx=={_PINNED_RTX}"
            )


def load_library(prefer: str = "auto") -> Library:
    """Import one of PREFERENCES.

    Raises BackendUnavailableError: none installed, broken, or too old, each with what to do.
    """
    if prefer not in PREFERENCES:
        raise BackendUnavailableError(f"library {prefer!r}: must be one of {', '.join(PREFERENCES)}")
    names = PREFERENCES[1:] if prefer == "auto" else (prefer,)
    problems = []
    for name in names:
        try:
            return _load(name)
        except BackendUnavailableError as error:
            problems.append(str(error))
    raise BackendUnavailableError("no usable TensorRT\n" + "\n".join(f"  {problem}" for problem in problems))


def library_of(engine: Any) -> Library:
    """The library that made this object. Raises BackendUnavailableError where it cannot be used."""
    return load_library("tensorrt_rtx" if "rtx" in type(engine).__module__ else "tensorrt")


@cache
def _load(name: str) -> Library:
    # Cached for the process, because the library registers the first logger it is given for all that follows.
    module = _import(name)
    version = str(module.__version__)
    if _version(version) < _MIN_VERSION[name]:
        lowest = ".".join(map(str, _MIN_VERSION[name]))
        raise BackendUnavailableError(
            f"{name}: version {version} is too old, {lowest} is the lowest. Do: {_INSTALL[name]}"
        )
    errors: deque[str] = deque(maxlen=_NUM_KEPT_ERRORS)
    is_rtx = hasattr(module, "ComputeCapability")
    return Library(
        name=name,
        version=version,
        module=module,
        logger=_logger(module, errors),
        is_rtx=is_rtx,
        can_build_without_gpu=is_rtx,
        has_runtime_cache=hasattr(module, "IRuntimeCache"),
        has_engine_validity=hasattr(module.Runtime, "get_engine_validity"),
        has_capture_query=hasattr(module.IExecutionContext, "is_stream_capturable"),
        has_float32_products=not is_rtx,
        errors=errors,
    )


def _import(name: str) -> Any:
    """The package, or its bare bindings, which import without the package around them."""
    found_broken = None
    for module in (name, f"{name}_bindings"):
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError:
            continue
        except (ImportError, OSError, RuntimeError) as error:
            found_broken = f"{module} does not load: {error}"
    raise BackendUnavailableError(f"{name}: {found_broken or 'not installed'}. Do: {_INSTALL[name]}")


def _version(text: str) -> tuple[int, int]:
    numbers = re.findall(r"\d+", text)
    return (int(numbers[0]), int(numbers[1]))


def _logger(module: Any, errors: deque[str]) -> Any:
    """Keeps errors for the exception that follows; passes warnings on for those who debug."""
    severity = module.ILogger.Severity

    class Logger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, level: Any, message: str) -> None:
            if level in (severity.ERROR, severity.INTERNAL_ERROR):
                errors.append(message.strip())
                _LOG.debug("error: %s", message)
            elif level == severity.WARNING:
                _LOG.debug("warning: %s", message)

    return Logger()
