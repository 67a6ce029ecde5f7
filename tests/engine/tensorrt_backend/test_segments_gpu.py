"""Segments as plans compute what the torch backend does, of every architecture; contexts and kernel cache.

Errors are relative, of whole tensors: |plan - exact| / |exact|, where exact is torch in float64 on the same
weights. In 16 bits torch itself errs, and a plan may err twice as much.
"""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.errors import TensorRTError
from engine.tensorrt_backend.contexts import PlanEngine, PlanRuntime, SegmentContext
from engine.tensorrt_backend.disk_cache import CacheFile
from engine.tensorrt_backend.kernel_cache import KernelCache
from engine.tensorrt_backend.library import Library, load_library
from engine.tensorrt_backend.plan_segments import PlanSegments
from engine.tensorrt_backend.plans import PlanSpec, build_plan
from engine.tensorrt_backend.segments import SegmentForm, SegmentKind, segment_spec
from engine.torch_backend.segments import TorchSegments
from tests.engine.conftest import MODELS
from tests.support.decoders import Decoder, converted, model_config, random_decoder

pytestmark = pytest.mark.gpu

N, ROWS = 6, 3  # tokens of a step, and those of them that sample
Buffers = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def library() -> Library:
    return load_library()


@pytest.fixture(scope="module")
def runtime(library: Library) -> PlanRuntime:
    """With one kernel cache for all tests, so that equal networks are compiled once."""
    return PlanRuntime(library, KernelCache(library, None, "any", "any"))


@pytest.fixture(scope="module")
def arena() -> torch.Tensor:
    return torch.empty(1 << 26, dtype=torch.uint8, device="cuda")


@pytest.fixture
def plan_segments(
    library: Library, runtime: PlanRuntime, arena: torch.Tensor
) -> Callable[[Decoder, SegmentForm], PlanSegments]:
    def make(decoder: Decoder, form: SegmentForm) -> PlanSegments:
        dtype = decoder.weights.embedding.dtype
        contexts = {}
        for kind in SegmentKind:
            bucket = ROWS if kind is SegmentKind.LAST else N
            spec = PlanSpec(segment_spec(kind, decoder.config, dtype, form), (bucket, 16))
            engine = runtime.load(build_plan(library, spec), spec)
            contexts[kind] = _ready(engine, bucket, arena)
        scratch = torch.empty(2, N, decoder.config.hidden_size, dtype=dtype, device="cuda")
        first, middle, last = (contexts[kind] for kind in SegmentKind)
        return PlanSegments(decoder.weights, first, middle, last, list(scratch))

    return make


def _ready(engine: PlanEngine, bucket: int, arena: torch.Tensor) -> SegmentContext:
    context = engine.create_context(bucket, torch.cuda.current_stream().cuda_stream)
    context.set_memory(arena)
    return context


def _buffers(decoder: Decoder) -> Buffers:
    config, dtype = decoder.config, decoder.weights.embedding.dtype
    generator = torch.Generator("cuda").manual_seed(3)
    ids = torch.randint(config.vocab_size, (N,), generator=generator, device="cuda", dtype=torch.int32)
    shapes = {"qkv": (N, config.qkv_size), "logits": (ROWS, config.vocab_size)}
    shapes |= {"residual_0": (N, config.hidden_size), "residual_1": (N, config.hidden_size)}
    buffers = {
        name: torch.full(shape, torch.nan, dtype=dtype, device="cuda") for name, shape in shapes.items()
    }
    return {
        "token_ids": ids,
        "attended": torch.empty(N, config.q_size, dtype=dtype, device="cuda"),
        **buffers,
    }


def _run(segments: Any, decoder: Decoder, buffers: Buffers) -> list[torch.Tensor]:
    """A decoder whose attention gives each token its own query: every segment's outputs, in order."""
    residual, following = buffers["residual_0"], buffers["residual_1"]
    qkv, attended = buffers["qkv"], buffers["attended"]
    segments.first(buffers["token_ids"], residual, qkv)
    outputs = [residual.clone(), qkv.clone()]
    for layer in range(1, decoder.config.num_layers):
        attended.copy_(qkv[:, : decoder.config.q_size])
        segments.middle(layer, attended, residual, following, qkv)
        residual, following = following, residual
        outputs += [residual.clone(), qkv.clone()]
    attended.copy_(qkv[:, : decoder.config.q_size])
    segments.last(attended[:ROWS], residual[:ROWS], buffers["logits"])
    return [*outputs, buffers["logits"].clone()]


def _exact(decoder: Decoder) -> list[torch.Tensor]:
    wide = converted(decoder, torch.float64)
    return _run(TorchSegments(wide.config, wide.weights), wide, _buffers(wide))


def _errors(outputs: list[torch.Tensor], exact: list[torch.Tensor]) -> torch.Tensor:
    pairs = zip(outputs, exact, strict=True)
    return torch.stack([(a.double() - b).norm() / b.norm() for a, b in pairs])


@pytest.mark.parametrize("form", [SegmentForm.FUSED, SegmentForm.APART])
@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_in_float32(name: str, form: SegmentForm, plan_segments: Any) -> None:
    decoder = random_decoder(model_config(name), torch.float32, "cuda")
    outputs = _run(plan_segments(decoder, form), decoder, _buffers(decoder))
    assert _errors(outputs, _exact(decoder)).max() < 1e-5


@pytest.mark.parametrize("form", [SegmentForm.FUSED_MARKED, SegmentForm.APART_MARKED])
@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_in_bfloat16(name: str, form: SegmentForm, plan_segments: Any) -> None:
    _check_16_bits(random_decoder(model_config(name), torch.bfloat16, "cuda"), plan_segments, form)


@pytest.mark.parametrize("form", [SegmentForm.FUSED, SegmentForm.APART])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_other_forms_in_16_bits(dtype: torch.dtype, form: SegmentForm, plan_segments: Any) -> None:
    _check_16_bits(random_decoder(model_config("qwen3"), dtype, "cuda"), plan_segments, form)


def _check_16_bits(decoder: Decoder, plan_segments: Any, form: SegmentForm) -> None:
    exact = _exact(decoder)
    torchs = _run(TorchSegments(decoder.config, decoder.weights), decoder, _buffers(decoder))
    outputs = _run(plan_segments(decoder, form), decoder, _buffers(decoder))
    errors, limits = _errors(outputs, exact), 2 * _errors(torchs, exact) + 1e-3
    assert bool((errors < limits).all()), f"{errors.tolist()} against {limits.tolist()}"


@pytest.mark.parametrize("form", [SegmentForm.FUSED, SegmentForm.APART_MARKED])
def test_a_captured_step_computes_with_each_layers_own_weights(form: SegmentForm, plan_segments: Any) -> None:
    decoder = random_decoder(model_config("llama-biases"), torch.bfloat16, "cuda")
    segments, buffers = plan_segments(decoder, form), _buffers(decoder)
    eager = _run(segments, decoder, buffers)
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.graph(graph, stream=stream):
        captured = _run(segments, decoder, buffers)
    graph.replay()
    assert all(map(torch.equal, captured, eager))
    decoder.weights.layers[2].o.neg_()  # weights are inputs: a change needs no new plan
    graph.replay()
    assert not torch.equal(captured[-1], eager[-1])
    assert all(map(torch.equal, captured, _run(segments, decoder, buffers)))


def test_contexts_can_be_created_by_several_threads(library: Library, arena: torch.Tensor) -> None:
    buckets = (1, 4, 8, 16)
    spec = PlanSpec(segment_spec(SegmentKind.MIDDLE, model_config("qwen3"), torch.bfloat16), buckets)
    runtime = PlanRuntime(library, KernelCache(library, None, "any", "any"))
    engine = runtime.load(build_plan(library, spec), spec)
    with ThreadPoolExecutor(4) as pool:
        contexts = list(pool.map(lambda bucket: _ready(engine, bucket, arena), buckets))
    assert [context.bucket for context in contexts] == list(buckets)
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    assert all(context.is_capturable(stream.cuda_stream) for context in contexts)


def test_memory_that_is_too_small_or_not_aligned_is_refused(
    library: Library, runtime: PlanRuntime, arena: torch.Tensor
) -> None:
    spec = PlanSpec(segment_spec(SegmentKind.MIDDLE, model_config("llama2"), torch.bfloat16), (16,))
    context = _ready(runtime.load(build_plan(library, spec), spec), 16, arena)
    with pytest.raises(TensorRTError, match="256-byte aligned"):
        context.set_memory(arena[8:])
    if context.memory_bytes:
        with pytest.raises(TensorRTError, match=f"needs {context.memory_bytes}"):
            context.set_memory(arena[: context.memory_bytes - 1])


def test_a_damaged_plan_is_refused(library: Library, runtime: PlanRuntime) -> None:
    spec = PlanSpec(segment_spec(SegmentKind.FIRST, model_config("llama2"), torch.bfloat16), (4,))
    plan = build_plan(library, spec)
    with pytest.raises(TensorRTError, match="first-bfloat16: "):
        runtime.load(b"\0" * 64 + plan[64:], spec)


@pytest.fixture
def kernels_on_disk(library: Library, tmp_path: Path) -> Callable[[], KernelCache]:
    if not library.has_runtime_cache:
        pytest.skip("this library compiles no kernels where a context is made")
    return lambda: KernelCache(library, tmp_path / "kernels.bin", "this gpu", "this driver")


def _create_one(library: Library, kernels: KernelCache) -> None:
    spec = PlanSpec(segment_spec(SegmentKind.LAST, model_config("qwen2"), torch.bfloat16), (8,))
    PlanRuntime(library, kernels).load(build_plan(library, spec), spec).create_context(8, 0)
    torch.cuda.synchronize()


def test_kernels_are_kept_on_disk(
    library: Library, kernels_on_disk: Callable[[], KernelCache], tmp_path: Path
) -> None:
    kernels = kernels_on_disk()
    _create_one(library, kernels)
    kernels.save()
    written = (tmp_path / "kernels.bin").stat()
    assert written.st_size > 1000
    again = kernels_on_disk()
    _create_one(library, again)
    again.save()
    assert (tmp_path / "kernels.bin").stat().st_size == written.st_size  # nothing was compiled


def test_kernels_that_the_library_refuses_are_compiled_again(
    library: Library,
    kernels_on_disk: Callable[[], KernelCache],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    key = {"library": library.name, "version": library.version, "gpu": "this gpu", "driver": "this driver"}
    CacheFile(tmp_path / "kernels.bin", key).write(b"not kernels" * 100)
    kernels = kernels_on_disk()
    with caplog.at_level(logging.INFO, "engine"):
        _create_one(library, kernels)
    assert [record.message.split(":")[0] for record in caplog.records] == ["kernels are compiled again"]
    kernels.save()
    assert (tmp_path / "kernels.bin").stat().st_size > 2000
