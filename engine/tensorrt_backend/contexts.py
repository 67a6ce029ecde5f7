"""Plans on a GPU: engines, and contexts that run one of them for one bucket."""

from collections.abc import Sequence
from typing import Any

import torch

from engine.errors import BackendUnavailableError, TensorRTError
from engine.tensorrt_backend.kernel_cache import KernelCache
from engine.tensorrt_backend.library import Library
from engine.tensorrt_backend.plans import PlanSpec
from engine.tensorrt_backend.segments import SegmentSpec

Binding = tuple[str, int]
"""A tensor's name and its address on the device."""


class SegmentContext:
    """A segment of N tokens, ready to be enqueued. For one thread at a time.

    memory_bytes: of activation memory, to be given with `set_memory` before the first enqueue.
    """

    def __init__(self, library: Library, context: Any, segment: SegmentSpec, bucket: int, size: int) -> None:
        self.segment = segment
        self.bucket = bucket
        self.memory_bytes = size
        self._library = library
        self._context = context
        self._memory: torch.Tensor | None = None
        self._set_address = context.set_tensor_address
        self._execute = context.execute_async_v3

    def set_memory(self, memory: torch.Tensor) -> None:
        """Activation memory, contiguous, 256-byte aligned, of at least memory_bytes; kept as long as this.

        Contexts whose work never overlaps may have the same.
        """
        if memory.nbytes < self.memory_bytes or memory.data_ptr() % 256:
            raise TensorRTError(
                f"{self.segment.name}: {memory.nbytes} bytes of memory at {memory.data_ptr():#x}: "
                f"needs {self.memory_bytes}, 256-byte aligned"
            )
        self._memory = memory
        self._context.set_device_memory(memory.data_ptr(), memory.nbytes)

    def enqueue(self, bindings: Sequence[Binding], stream: int) -> None:
        """Run on the stream. Tensors that are not named keep the address they had; all must have one.

        Neither allocates nor waits. Raises TensorRTError.
        """
        for name, address in bindings:
            if not self._set_address(name, address):
                raise self._library.failure(f"{self.segment.name}: binding {name} to {address:#x}")
        if not self._execute(stream):
            raise self._library.failure(f"{self.segment.name}: enqueueing {self.bucket} tokens")

    def is_capturable(self, stream: int) -> bool:
        """Whether an enqueue on this stream can be captured in a CUDA graph."""
        if not self._library.has_capture_query:
            return True
        return bool(self._context.is_stream_capturable(stream))


class PlanEngine:
    """A plan on the device, from which each bucket gets contexts."""

    def __init__(self, library: Library, engine: Any, spec: PlanSpec, kernels: KernelCache) -> None:
        self.spec = spec
        self._library = library
        self._engine = engine
        self._kernels = kernels

    def create_context(self, bucket: int, stream: int) -> SegmentContext:
        """For one of the spec's buckets; compiles its kernels where the library does that on the GPU (0.1
        to 1.3 s). Threads may create contexts at once. stream: what follows on it may use the context.

        Raises TensorRTError.
        """
        profile = self.spec.buckets.index(bucket)
        what = f"{self.spec.segment.name}: a context for {bucket} tokens"
        context = create_context(self._library, self._engine, self._kernels, profile, stream)
        for tensor in self.spec.segment.activations:
            self._library.check(context.set_input_shape(tensor.name, tensor.shape_of(bucket)), what)
        size = int(self._engine.get_device_memory_size_for_profile_v2(profile))
        return SegmentContext(self._library, context, self.spec.segment, bucket, size)


class PlanRuntime:
    """Loads plans on the current GPU."""

    def __init__(self, library: Library, kernels: KernelCache) -> None:
        self._library = library
        self._kernels = kernels
        self._runtime = create_runtime(library)

    def load(self, plan: bytes, spec: PlanSpec) -> PlanEngine:
        """spec: what the plan was built from. Raises TensorRTError."""
        engine = deserialize(self._library, self._runtime, plan, spec.segment.name)
        return PlanEngine(self._library, engine, spec, self._kernels)


def create_runtime(library: Library) -> Any:
    """The library's Runtime. Raises BackendUnavailableError."""
    try:
        return library.module.Runtime(library.logger)
    except (TypeError, RuntimeError) as error:
        raise BackendUnavailableError(
            f"{library.failure(f'{library.name} does not start ({error})')}. Does `nvidia-smi` show a GPU, "
            "and a driver at least as new as the CUDA that the package was made for?"
        ) from error


def create_context(library: Library, engine: Any, kernels: KernelCache, profile: int, stream: int) -> Any:
    """An IExecutionContext of an optimization profile, whose activation memory the caller gives. The profile
    is never to be changed: what was captured would break.

    Raises TensorRTError.
    """
    trt, config = library.module, engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    if library.is_rtx:
        # Graphs are captured around the plans, and a kernel that is compiled later would break them.
        config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
        eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        config.dynamic_shapes_kernel_specialization_strategy = eager
    kernels.attach(config)
    context = library.check(engine.create_execution_context(config), "creating an execution context")
    switched = context.set_optimization_profile_async(profile, stream)
    library.check(switched, f"choosing optimization profile {profile}")
    return context


def deserialize(library: Library, runtime: Any, plan: bytes, name: str) -> Any:
    """The plan's ICudaEngine. Raises TensorRTError; a plan of another version or GPU is refused first."""
    library.errors.clear()
    if library.has_engine_validity:
        _check_validity(library, runtime, plan, name)
    return library.check(runtime.deserialize_cuda_engine(plan), f"{name}: loading the plan")


def _check_validity(library: Library, runtime: Any, plan: bytes, name: str) -> None:
    trt = library.module
    validity, diagnostics = runtime.get_engine_validity(plan[: runtime.engine_header_size])
    problems = {
        problem.lower().replace("_", " ")
        for problem, flag in trt.EngineInvalidityDiagnostics.__members__.items()
        if diagnostics & int(flag)
    }
    # A GPU that is not supported officially may run plans all the same: loading tells.
    if validity == trt.EngineValidity.INVALID and problems != {"unsupported cc"}:
        shown = ", ".join(sorted(problems)) or "no reason given"
        raise library.failure(f"{name}: {library.name} {library.version} cannot run the plan: {shown}")
