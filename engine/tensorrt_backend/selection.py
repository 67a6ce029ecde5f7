"""Chooses the form of every bucket that is right and fastest here, and which bucket serves how many tokens.

Measured once on a GPU, then kept on disk beside the plans.
"""

import logging
from collections.abc import Iterable
from dataclasses import fields

import torch

from engine.loading import LoadedModel
from engine.tensorrt_backend.candidates import BLAS, SKINNY, TORCH, Buckets, Candidates, Report
from engine.tensorrt_backend.choices import Choice, Selection, choices, read_selection, write_selection
from engine.tensorrt_backend.disk_cache import CacheFile
from engine.tensorrt_backend.forms import ComposedSegments, Segments
from engine.tensorrt_backend.graphs import measure
from engine.tensorrt_backend.runner import RoutedSegments
from engine.tensorrt_backend.self_check import SelfCheck
from engine.tensorrt_backend.step_buffers import StepBuffers

_LOG = logging.getLogger(__name__)

_MAX_LAYERS = 8  # measured in turn: together their weights are many times the GPU's cache
_ENOUGH = 0.8  # of the bandwidth of a copy, at which matrix products are as good as they get
_COPY_BYTES = 1 << 27  # twice, which is several times a GPU's cache


class Selector:
    """One start's search for forms."""

    def __init__(
        self,
        model: LoadedModel,
        buckets: Buckets,
        candidates: Candidates,
        buffers: StepBuffers,
        stream: torch.cuda.Stream,
    ) -> None:
        self._rejected: list[str] = []
        self._settled: set[int] = set()
        self._usable_forms: dict[tuple[str, int, str], bool] = {}
        self._model, self._buckets, self._candidates = model, buckets, candidates
        self._buffers, self._stream = buffers, stream
        self._check = SelfCheck(model)
        for tensor in (*buffers.residuals, buffers.attended, buffers.last_attended, buffers.last_residual):
            tensor.normal_()  # a GPU multiplies zeros faster than anything it will meet
        torch.cuda.synchronize(model.device)  # what was made on other streams is there

    def select(self, file: CacheFile | None, report: Report) -> Selection:
        """From what was measured before, if all of it still passes the check; else measured now."""
        if file is not None and (known := read_selection(file)) is not None:
            self._prepare_chosen(known, report)
            if all(self._usable(choice.form, bucket, part) for part, bucket, choice in choices(known)):
                return known
            _LOG.warning("what was measured before is not used: %s", self._rejected[-1])
        self._settle()
        buckets = self._buckets.tokens
        wanted = [(name, bucket) for bucket in buckets for name in self._names(bucket)]
        self._candidates.prepare(wanted, self._stream, report)
        selection = Selection(
            layers={bucket: self._choose(bucket, "layers") for bucket in self._buckets.tokens},
            last={bucket: self._choose(bucket, "last") for bucket in self._buckets.decode},
            rejected=tuple(self._rejected),
        )
        if file is not None:
            write_selection(file, selection)
        return selection

    def routed(self, selection: Selection) -> RoutedSegments:
        """The segments of every bucket as chosen."""
        make, layers = self._candidates.make, selection.layers
        decode, tokens = selection.routers()
        segments: dict[int, Segments] = {}
        for bucket, choice in layers.items():
            segments[bucket] = make(choice.form, bucket)
            last = selection.last.get(bucket)
            if last is not None and last.form != choice.form:
                segments[bucket] = ComposedSegments(segments[bucket], make(last.form, bucket))
        return RoutedSegments(segments, decode, tokens)

    def _prepare_chosen(self, known: Selection, report: Report) -> None:
        wanted = ((choice.form, bucket) for _, bucket, choice in choices(known))
        self._candidates.prepare(wanted, self._stream, report)

    def _settle(self) -> None:
        """Find the buckets where the own kernels leave so little to gain that no plan has to be compiled."""
        floor = self._floor()
        for bucket in self._buckets.decode:
            if SKINNY not in self._candidates.names(bucket) or not self._usable(SKINNY, bucket, "layers"):
                continue
            microseconds = self._measure(self._candidates.make(SKINNY, bucket), bucket, "layers")
            if microseconds * _ENOUGH <= floor:
                self._settled.add(bucket)

    def _floor(self) -> float:
        """Microseconds that reading the weights of the middle segments takes at the speed of a copy."""
        layers, device = self._model.weights.layers, self._model.device
        source, destination = torch.empty((2, _COPY_BYTES // 4), device=device)
        # By a kernel: a graph's copy of memory to memory is slower.
        copied = measure(lambda: torch.neg(source, out=destination), self._stream)
        weights = (getattr(layers[0], field.name) for field in fields(layers[0]))
        layer_bytes: int = sum(weight.nbytes for weight in weights if weight is not None)
        return (len(layers) - 1) * layer_bytes * copied / (2 * _COPY_BYTES)

    def _names(self, bucket: int) -> list[str]:
        """Forms to be tried. The head of a settled bucket may still be faster by other products."""
        return [SKINNY, BLAS] if bucket in self._settled else self._candidates.names(bucket)

    def _choose(self, bucket: int, part: str) -> Choice:
        measured = {
            name: self._measure(self._candidates.make(name, bucket), bucket, part)
            for name in self._names(bucket)
            if self._usable(name, bucket, part)
        }
        if not measured:
            measured = {TORCH: self._measure(self._candidates.make(TORCH, bucket), bucket, part)}
        form = min(measured, key=lambda name: measured[name])
        return Choice(form, measured[form], measured)

    def _usable(self, name: str, bucket: int, part: str) -> bool:
        if name == TORCH:
            return True
        if (name, bucket, part) not in self._usable_forms:
            self._usable_forms[name, bucket, part] = self._passes(name, bucket, part)
        return self._usable_forms[name, bucket, part]

    def _passes(self, name: str, bucket: int, part: str) -> bool:
        try:
            with torch.cuda.stream(self._stream):
                problem = self._check.problem(self._candidates.make(name, bucket), bucket, part=part)
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise  # no fault of the form
        except Exception as error:  # a plan that the library refuses, a kernel that does not compile here
            problem = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        if problem is not None:
            self._rejected.append(f"{name}, {bucket} tokens: {problem}")
            _LOG.warning("not used: %s", self._rejected[-1])
        return problem is None

    @torch.inference_mode()
    def _measure(self, segments: Segments, bucket: int, part: str) -> float:
        if part == "last":
            return measure(lambda: self._enqueue_last(segments, bucket), self._stream)
        num_layers = self._model.config.num_layers
        layers = range(1, min(num_layers, _MAX_LAYERS + 1))
        if not layers:
            return measure(lambda: self._enqueue_first(segments, bucket), self._stream)
        some = measure(lambda: self._enqueue_middles(segments, bucket, layers), self._stream)
        return some / len(layers) * (num_layers - 1)

    def _enqueue_first(self, segments: Segments, bucket: int) -> None:
        buffers = self._buffers
        token_ids = torch.zeros(bucket, dtype=torch.int32, device=self._model.device)
        segments.first(token_ids, buffers.residuals[0][:bucket], buffers.qkv[:bucket])

    def _enqueue_middles(self, segments: Segments, bucket: int, layers: Iterable[int]) -> None:
        buffers = self._buffers
        for layer in layers:
            segments.middle(
                layer,
                buffers.attended[:bucket],
                buffers.residuals[0][:bucket],
                buffers.residuals[1][:bucket],
                buffers.qkv[:bucket],
            )

    def _enqueue_last(self, segments: Segments, bucket: int) -> None:
        buffers = self._buffers
        segments.last(buffers.last_attended[:bucket], buffers.last_residual[:bucket], buffers.logits[:bucket])
