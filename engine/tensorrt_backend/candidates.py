"""The ways in which the segments of a bucket can be computed here: plans in several forms, own kernels."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from engine.blas.segments import BlasScratch, BlasSegments
from engine.errors import TensorRTError
from engine.loading import LoadedModel
from engine.model.config import ModelConfig
from engine.skinny.scratch import SkinnyScratch
from engine.skinny.segments import SkinnySegments
from engine.skinny.tiling import MAX_NUM_TOKENS
from engine.tensorrt_backend.contexts import PlanEngine, SegmentContext
from engine.tensorrt_backend.forms import Segments
from engine.tensorrt_backend.plan_segments import PlanSegments
from engine.tensorrt_backend.plans import PlanSpec
from engine.tensorrt_backend.segments import SegmentForm, SegmentKind, segment_spec
from engine.torch_backend.segments import TorchSegments

SKINNY = "skinny"
BLAS = "blas"
TORCH = "torch"

FORMS = frozenset({*(form.value for form in SegmentForm), SKINNY, BLAS, TORCH})
"""All names that `Candidates.make` takes."""

# Up to where marked outputs help: with more tokens the matrix products are not bound by memory alone.
_MAX_MARKED = 16
_NUM_THREADS = 8  # that compile kernels

Report = Callable[[int, int], None]
_Key = tuple[SegmentKind, SegmentForm, int]


@dataclass(frozen=True, slots=True)
class Buckets:
    """tokens: of any step, rising. decode: those among them that also sample in all of their rows."""

    tokens: tuple[int, ...]
    decode: tuple[int, ...]


def plan_specs(config: ModelConfig, dtype: torch.dtype, buckets: Buckets) -> Iterator[PlanSpec]:
    """All plans of a model."""
    yield PlanSpec(segment_spec(SegmentKind.FIRST, config, dtype), buckets.tokens)
    if config.num_layers > 1:
        for form in SegmentForm:
            if sizes := _sizes(form, buckets.tokens):
                yield PlanSpec(segment_spec(SegmentKind.MIDDLE, config, dtype, form), sizes)
    yield PlanSpec(segment_spec(SegmentKind.LAST, config, dtype), buckets.decode)


def _sizes(form: SegmentForm, sizes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in sizes if not form.is_marked or size <= _MAX_MARKED)


class Candidates:
    """Makes the segments of a bucket, by the name of a form. Contexts are made once and share memory."""

    def __init__(self, model: LoadedModel, buckets: Buckets, engines: Iterable[PlanEngine]) -> None:
        self._model = model
        self._buckets = buckets
        self._engines: Mapping[tuple[SegmentKind, SegmentForm], PlanEngine] = {
            (engine.spec.segment.kind, engine.spec.segment.form): engine for engine in engines
        }
        self._contexts: dict[_Key, SegmentContext] = {}
        self._refused: dict[_Key, TensorRTError] = {}
        self._arena: torch.Tensor | None = None
        hidden = model.config.hidden_size
        marked = (2, _MAX_MARKED, hidden)
        self._unread = list(torch.empty(marked, dtype=model.dtype, device=model.device))
        max_skinny = min(MAX_NUM_TOKENS, buckets.tokens[-1])
        config, device, dtype = model.config, model.device, model.dtype
        self._skinny_scratch = SkinnyScratch(config, max_skinny, device=device, dtype=dtype)
        self._blas_scratch = BlasScratch(config, buckets.tokens[-1], device=device, dtype=dtype)

    def names(self, bucket: int) -> list[str]:
        """Of all forms that a bucket can have, but for torch's."""
        forms = [form.value for form in SegmentForm if not form.is_marked or bucket <= _MAX_MARKED]
        if self._model.config.num_layers == 1:
            forms = [SegmentForm.FUSED.value]
        # In float16 the small-batch kernels overflow where others do not: they norm after they multiply.
        has_skinny = bucket <= MAX_NUM_TOKENS and self._model.dtype != torch.float16
        return [*forms, BLAS, *([SKINNY] if has_skinny else [])]

    def prepare(self, wanted: Iterable[tuple[str, int]], stream: torch.cuda.Stream, report: Report) -> None:
        """Make the contexts of (form, bucket) pairs, several at a time; theirs is one piece of memory.

        What the library refuses is told by `make`.
        """
        keys = {key for name, bucket in wanted for key in self._keys(name, bucket)} - set(self._contexts)
        handle = stream.cuda_stream

        def create(key: _Key) -> SegmentContext | TensorRTError:
            torch.cuda.set_device(self._model.device)
            if key[:2] not in self._engines:
                return TensorRTError(f"{key[0].value} segment, {key[1].value}: there is no plan")
            try:
                return self._engines[key[:2]].create_context(key[2], handle)
            except TensorRTError as error:
                return error

        # The largest first: they take longest.
        ordered = sorted(keys, key=lambda key: -key[2])
        with ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="kernels") as pool:
            for done, (key, context) in enumerate(zip(ordered, pool.map(create, ordered), strict=True), 1):
                if isinstance(context, TensorRTError):
                    self._refused[key] = context
                else:
                    self._contexts[key] = context
                report(done, len(ordered))
        self._share_memory()

    def keep(self, wanted: Iterable[tuple[str, int]]) -> None:
        """Let go of the contexts, and their kernels, of all other (form, bucket) pairs."""
        keys = {key for name, bucket in wanted for key in self._keys(name, bucket)}
        self._contexts = {key: context for key, context in self._contexts.items() if key in keys}

    @property
    def activation_bytes(self) -> int:
        return 0 if self._arena is None else self._arena.nbytes

    def make(self, name: str, bucket: int) -> Segments:
        """Of a pair that was prepared, or of a form without plans.

        Raises TensorRTError where one of its plans was refused.
        """
        if name == SKINNY:
            return SkinnySegments(self._model.config, self._model.weights, bucket, self._skinny_scratch)
        if name == BLAS:
            return BlasSegments(self._model.config, self._model.weights, self._blas_scratch)
        if name == TORCH:
            return TorchSegments(self._model.config, self._model.weights)
        form = SegmentForm(name)
        for key in self._keys(name, bucket):
            if key in self._refused:
                raise self._refused[key]
        contexts = {key[0]: self._contexts[key] for key in self._keys(name, bucket)}
        return PlanSegments(
            self._model.weights,
            contexts[SegmentKind.FIRST],
            contexts.get(SegmentKind.MIDDLE),
            contexts.get(SegmentKind.LAST),
            self._unread if form.is_marked else (),
        )

    def _keys(self, name: str, bucket: int) -> Iterator[_Key]:
        if name in (SKINNY, BLAS, TORCH):
            return
        yield SegmentKind.FIRST, SegmentForm.FUSED, bucket
        if self._model.config.num_layers > 1:
            yield SegmentKind.MIDDLE, SegmentForm(name), bucket
        if bucket in self._buckets.decode:
            yield SegmentKind.LAST, SegmentForm.FUSED, bucket

    def _share_memory(self) -> None:
        """Steps run one after another, so the largest need is enough for all."""
        size = max((context.memory_bytes for context in self._contexts.values()), default=0)
        if size > self.activation_bytes:
            self._arena = torch.empty(size, dtype=torch.uint8, device=self._model.device)
        if self._arena is not None:
            for context in self._contexts.values():
                context.set_memory(self._arena)
