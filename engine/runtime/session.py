"""A TensorRT engine with its tensors, shapes and memory: TensorRT-LLM's `Session` (up to its release 1.2).

Differences: dtypes are torch's; the activation memory is the session's own, and all its contexts share it;
wrong tensors are refused with what the engine takes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from engine.errors import InvalidArgumentError
from engine.tensorrt_backend.contexts import create_context, create_runtime, deserialize
from engine.tensorrt_backend.kernel_cache import KernelCache
from engine.tensorrt_backend.library import Library, library_of, load_library

Stream = int | torch.cuda.Stream
"""A CUDA stream, or its handle."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor of an engine. shape: -1 where it is not known yet."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    def numel(self) -> int:
        return prod(self.shape)


class Session:
    """An engine (or plan) on the current GPU, and at least one context that runs it.

    Contexts share one piece of activation memory, so their runs must follow one another: on one stream, or
    ordered by events.
    """

    def __init__(self, library: Library, runtime: Any, engine: Any) -> None:
        self.runtime = runtime
        self.engine = engine
        self._library = library
        self._trt = library.module
        self._kernels = KernelCache(library, None, gpu="", driver="")
        self._names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self._memory = torch.empty(max(self.context_mem_size, 1), dtype=torch.uint8, device="cuda")
        self.context = self.create_context()

    @classmethod
    def from_serialized_engine(cls, engine: bytes, library: str = "auto") -> "Session":
        """A plan that was built by this version of the library (of `library`, see `load_library`).

        Raises BackendUnavailableError or TensorRTError, with what is wrong.
        """
        loaded = load_library(library)
        runtime = create_runtime(loaded)
        return cls(loaded, runtime, deserialize(loaded, runtime, engine, "serialized engine"))

    @classmethod
    def from_engine(cls, engine: Any) -> "Session":
        """An ICudaEngine of either library. The caller keeps the runtime that it came from alive."""
        return cls(library_of(engine), None, engine)

    @property
    def context_mem_size(self) -> int:
        """Bytes of the activation memory."""
        return int(self.engine.device_memory_size_v2)

    @property
    def inputs(self) -> list[TensorInfo]:
        return [self._info(name) for name in self._names if self._is_input(name)]

    @property
    def outputs(self) -> list[TensorInfo]:
        return [self._info(name) for name in self._names if not self._is_input(name)]

    def create_context(self, profile: int = 0) -> Any:
        """Another IExecutionContext, for the engine's optimization profile of this index.

        Raises TensorRTError.
        """
        stream = torch.cuda.current_stream()
        context = create_context(self._library, self.engine, self._kernels, profile, stream.cuda_stream)
        context.set_device_memory(self._memory.data_ptr(), self._memory.nbytes)
        stream.synchronize()  # a run may use any other stream
        return context

    def set_shapes(
        self, tensors: Mapping[str, torch.Tensor | Sequence[int]], context: Any | None = None
    ) -> None:
        """Set the shapes of inputs, given as tensors or shapes; names that are no inputs are left alone.

        Raises InvalidArgumentError naming the tensor, its dtype, and the range of the context's profile.
        """
        for name in (name for name in tensors if name in self._names and self._is_input(name)):
            given = tensors[name]
            if isinstance(given, torch.Tensor):
                info = TensorInfo(name, given.dtype, tuple(given.shape))
            else:
                info = TensorInfo(name, self._info(name).dtype, tuple(given))
            self._set_shape(info, self.context if context is None else context)

    def infer_shapes(self, inputs: Iterable[TensorInfo], context: Any | None = None) -> list[TensorInfo]:
        """Set these inputs' shapes; the outputs that they lead to.

        Raises InvalidArgumentError naming the tensor, its dtype, and the range of the context's profile, or
        an input whose shape is missing.
        """
        context = self.context if context is None else context
        for info in inputs:
            if info.name not in self._names or not self._is_input(info.name):
                names = ", ".join(tensor.name for tensor in self.inputs)
                raise InvalidArgumentError(info.name, _shown(info), f"no input of the engine: {names}")
            self._set_shape(info, context)
        for name in context.infer_shapes():
            raise InvalidArgumentError(name, "no shape", self._accepted(name, context))
        return [
            TensorInfo(info.name, info.dtype, tuple(context.get_tensor_shape(info.name)))
            for info in self.outputs
        ]

    def run(
        self,
        inputs: Mapping[str, torch.Tensor | int],
        outputs: Mapping[str, torch.Tensor | int],
        stream: Stream,
        context: Any | None = None,
    ) -> bool:
        """Enqueue on the stream; does not wait. The inputs' shapes must have been set.

        Tensors by name, or their addresses, which are taken as they are. They must live until the stream is
        done with them. Raises InvalidArgumentError for a tensor that is missing, or is not contiguous, of the
        engine's dtype, on its device and of the shape that was set; False where the library refuses.
        """
        context = self.context if context is None else context
        given = {**inputs, **outputs}
        for name in self._names:
            if name not in given:
                raise InvalidArgumentError(name, "missing", self._accepted(name, context))
            value = given[name]
            if isinstance(value, torch.Tensor):
                self._check_tensor(name, value, context)
                value = value.data_ptr()
            if not context.set_tensor_address(name, value):
                return False
        handle = stream if isinstance(stream, int) else stream.cuda_stream
        return bool(context.execute_async_v3(handle))

    def _set_shape(self, info: TensorInfo, context: Any) -> None:
        lowest, _, highest = self._range(info.name, context)
        is_inside = len(info.shape) == len(lowest) and all(
            low <= size <= high for low, size, high in zip(lowest, info.shape, highest, strict=True)
        )
        if info.dtype != self._info(info.name).dtype or not is_inside:
            raise InvalidArgumentError(info.name, _shown(info), self._accepted(info.name, context))
        what = f"setting the shape of {info.name} to {list(info.shape)}"
        self._library.check(context.set_input_shape(info.name, info.shape), what)

    def _check_tensor(self, name: str, tensor: torch.Tensor, context: Any) -> None:
        info = self._info(name)
        expected = TensorInfo(name, info.dtype, tuple(context.get_tensor_shape(name)))
        given = TensorInfo(name, tensor.dtype, tuple(tensor.shape))
        is_host = self.engine.get_tensor_location(name) == self._trt.TensorLocation.HOST
        device = "cpu" if is_host else "cuda"
        if given != expected or tensor.device.type != device or not tensor.is_contiguous():
            shown = f"{_shown(given)} on {tensor.device}"
            if not tensor.is_contiguous():
                shown += ", not contiguous"
            limit = f"must be {_shown(expected)}, contiguous, on {device}; {self._accepted(name, context)}"
            raise InvalidArgumentError(name, shown, limit)

    def _accepted(self, name: str, context: Any) -> str:
        dtype = str(self._info(name).dtype).removeprefix("torch.")
        if not self._is_input(name):
            return f"the engine puts out {dtype}"
        lowest, _, highest = self._range(name, context)
        profile = context.active_optimization_profile
        return f"the engine takes {dtype} of shapes {lowest} to {highest} (profile {profile})"

    def _range(self, name: str, context: Any) -> tuple[list[int], ...]:
        """The least, the best and the largest shape of an input in the context's profile."""
        shapes = self.engine.get_tensor_profile_shape(name, context.active_optimization_profile)
        return tuple(list(shape) for shape in shapes)

    def _info(self, name: str) -> TensorInfo:
        dtype = self._library.torch_dtype(self.engine.get_tensor_dtype(name))
        return TensorInfo(name, dtype, tuple(self.engine.get_tensor_shape(name)))

    def _is_input(self, name: str) -> bool:
        return bool(self.engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT)


def _shown(info: TensorInfo) -> str:
    return f"{str(info.dtype).removeprefix('torch.')} {list(info.shape)}"
