"""The engine that the GPU benchmarks drive by hand: the one file of theirs that looks inside it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from benchmarks.gpu_report import Report
from engine.attention.kernels import PagedAttention, StepAttention
from engine.config import EngineOptions
from engine.loading import BuiltBackend, LoadedModel
from engine.sampling.custom.plugins import build_registry
from engine.tensorrt_backend.buckets import Router
from engine.tensorrt_backend.build import _Build
from engine.tensorrt_backend.choices import Choice, Selection, read_selection
from engine.tensorrt_backend.decoder_pass import StepTokens
from engine.tensorrt_backend.executor import StreamExecutor
from engine.tensorrt_backend.forms import Segments
from engine.tensorrt_backend.graphs import measure
from engine.tensorrt_backend.runner import RoutedSegments, TensorRTRunner
from engine.tensorrt_backend.step_sampling import Part


@dataclass(frozen=True, slots=True)
class Engine:
    """selection: None where it was not kept on disk."""

    built: BuiltBackend
    model: LoadedModel
    runner: TensorRTRunner
    selection: Selection | None

    @property
    def routed(self) -> RoutedSegments:
        return self.runner._routed

    @property
    def stream(self) -> torch.cuda.Stream:
        executor = self.runner._executor
        assert isinstance(executor, StreamExecutor)
        return executor.stream

    @property
    def kv_token_bytes(self) -> int:
        """Keys and values of one token, of all layers."""
        config = self.model.config
        return 2 * config.kv_size * config.num_layers * self.model.dtype.itemsize

    def fill_pool(self) -> None:
        """With random numbers: attention over zeros would be another measurement."""
        self.runner._storage._pool.normal_()
        torch.cuda.synchronize()

    def replay_decode(self, num_rows: int, num_steps: int) -> float:
        """Milliseconds a step of the graph that serves so many rows, replayed without pause."""
        graph = self.runner._graphs[self.routed.decode.bucket_for(num_rows), Part.PLAIN]
        start, end = (torch.Event(self.model.device, enable_timing=True) for _ in range(2))
        with torch.cuda.stream(self.stream):
            graph.replay()
            start.record()
            for _ in range(num_steps):
                graph.replay()
            end.record()
        self.stream.synchronize()
        return float(start.elapsed_time(end)) / num_steps

    def parts(self, num_rows: int) -> "DecodeParts":
        """Of the last decode step that was run, which had so many rows."""
        return DecodeParts(self, self.routed.decode.bucket_for(num_rows))


class DecodeParts:
    """The parts of a decode step, each to be measured as a graph of its own: milliseconds.

    Rows, positions and tokens are those that the last decode step has left in the buffers.
    """

    def __init__(self, engine: Engine, bucket: int) -> None:
        runner = engine.runner
        self._engine, self._bucket, self._buffers = engine, bucket, runner._buffers
        self._decoder, self._sampling = runner._decoder, runner._sampling
        buffers = self._buffers
        self._rows = buffers.decode_rows[:bucket]
        self._tokens = StepTokens(self._rows, buffers.positions[:bucket], buffers.token_ids[:bucket], bucket)
        self._segments = engine.routed.segments[bucket]

    def segments(self) -> float:
        """All but the last segment, without attention."""
        return self._measure(self._enqueue_segments)

    def attention(self) -> float:
        return self._measure(self._enqueue_attention)

    def last(self) -> float:
        """The last segment: o_proj and MLP of the last layer, the head."""
        return self._measure(lambda: self._decoder.logits(self._segments, self._residual()))

    def sampling(self) -> float:
        return self._measure(lambda: self._sample(self._buffers.logits[: self._bucket]))

    def whole(self, segments: Segments | None = None) -> float:
        """All of it. segments: another form of them, with the same kernels for attention and sampling."""
        form = self._segments if segments is None else segments
        return self._measure(lambda: self._enqueue_whole(form))

    def _measure(self, enqueue: Callable[[], object]) -> float:
        return measure(enqueue, self._engine.stream) / 1000

    def _residual(self) -> torch.Tensor:
        return self._buffers.residuals[(self._decoder.num_layers - 1) % 2][: self._bucket]

    def _enqueue_segments(self) -> None:
        buffers, size, segments = self._buffers, self._bucket, self._segments
        streams = [residual[:size] for residual in buffers.residuals]
        qkv, attended = buffers.qkv[:size], buffers.attended[:size]
        segments.first(self._tokens.token_ids, streams[0], qkv)
        for layer in range(1, self._decoder.num_layers):
            segments.middle(layer, attended, streams[(layer - 1) % 2], streams[layer % 2], qkv)

    def _enqueue_attention(self) -> None:
        decoder, buffers, size = self._decoder, self._buffers, self._bucket
        groups: list[PagedAttention] = list(decoder._attention)
        steps: list[StepAttention] = [
            group.begin(self._rows, self._tokens.positions, None, size) for group in groups
        ]
        for layer in range(decoder.num_layers):
            keys, values = decoder._storage.layer(layer)
            step = steps[decoder._group_of[layer]]
            step.attend(buffers.qkv[:size], keys, values, buffers.attended[:size])

    def _sample(self, logits: torch.Tensor) -> None:
        self._sampling.capture(Part.PLAIN, logits, self._rows)

    def _enqueue_whole(self, form: Segments) -> None:
        self._sample(self._decoder.logits(form, self._decoder.layers(form, self._tokens)))


def build_engine(options: EngineOptions) -> Engine:
    build = _Build(options, None, build_registry(()))
    built = build.run()
    file = build._selection_file()
    assert isinstance(built.runner, TensorRTRunner)
    return Engine(built, build._model, built.runner, None if file is None else read_selection(file))


def describe_engine(engine: Engine, report: Report) -> None:
    """Phases, memory, the time of every form in every bucket, routes and what they gain."""
    built = engine.built
    phases = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in built.start.phases)
    report.line(f"phases: {phases}")
    report.table(("memory", ""), built.memory.rows())
    for line in built.start.rejected:
        report.line(f"rejected: {line}")
    if engine.selection is None:
        return
    num_middles = max(1, engine.model.config.num_layers - 1)
    report.line("\nmicroseconds of a middle segment, by form (*: chosen)")
    _forms(engine.selection.layers, num_middles, report)
    report.line("\nmicroseconds of the last segment (o_proj and MLP of the last layer, head), by form")
    _forms(engine.selection.last, 1, report)
    layers = {bucket: choice.microseconds for bucket, choice in engine.selection.layers.items()}
    decode = {bucket: layers[bucket] + last.microseconds for bucket, last in engine.selection.last.items()}
    for name, times, router in (
        ("decode steps", decode, engine.routed.decode),
        ("steps with chunks", layers, engine.routed.tokens),
    ):
        report.line(f"{name}, buckets served by a larger one, which is faster by: {_routes(router, times)}")


def _forms(choices: Mapping[int, Choice], divisor: int, report: Report) -> None:
    names = list(dict.fromkeys(name for choice in choices.values() for name in choice.measured))

    def cell(choice: Choice, name: str) -> str:
        if name not in choice.measured:
            return "-"
        mark = "*" if name == choice.form else " "
        return f"{choice.measured[name] / divisor:.1f}{mark}"

    rows = [[f"{bucket}", *(cell(choice, name) for name in names)] for bucket, choice in choices.items()]
    report.table(("tokens", *names), rows)


def _routes(router: Router, microseconds: Mapping[int, float]) -> str:
    routes = [
        f"{size} -> {best}: {microseconds[size] / microseconds[best] - 1:.0%}"
        for size, best in router.routes()
    ]
    return ", ".join(routes) or "none"
