"""Compares the segments of a bucket with torch's before anything is served by them.

A plan can be wrong without an error: one harmless-looking form of a segment came back as NaN on an H200.
"""

from collections.abc import Callable, Iterator

import torch
from torch.nn import functional

from engine.loading import LoadedModel
from engine.tensorrt_backend.forms import Segments
from engine.torch_backend.segments import TorchSegments

# Relative error, ||out - reference|| / ||reference||, of any row or block of columns. Two orders of
# summation differ by far less.
_TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}

_BLOCK = 64  # columns, as few as a kernel's tile has
_ROWS_AT_ONCE = 64

_Run = Callable[[Segments, list[torch.Tensor]], None]


class SelfCheck:
    """Random inputs, the same at every start."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._reference = TorchSegments(model.config, model.weights)
        self._tolerance = _TOLERANCES[model.dtype]

    @torch.inference_mode()
    def problem(self, segments: Segments, bucket: int, *, part: str) -> str | None:
        """What differs, in one line; None: nothing does. part: "layers" (first and middle) or "last".

        Runs on the current stream and waits for it.
        """
        config = self._model.config
        runs = self._last(bucket) if part == "last" else self._layers(bucket)
        widths = [config.vocab_size] if part == "last" else [config.hidden_size, config.qkv_size]
        for name, run in runs:
            found = [self._run(run, form, bucket, widths) for form in (segments, self._reference)]
            errors = [_relative_error(*pair) for pair in zip(*found, strict=True)]
            wrong = [error for error in errors if not error <= self._tolerance]  # as NaN is
            if wrong:
                return f"{name}: relative error {wrong[0]:.2g}, at most {self._tolerance:g} is normal"
        return None

    def _layers(self, bucket: int) -> Iterator[tuple[str, _Run]]:
        config = self._model.config
        generator, attended, residual = self._inputs(bucket)
        ids = torch.randint(config.vocab_size, (bucket,), generator=generator, device=self._model.device)
        yield "first segment", lambda form, out: form.first(ids.int(), out[0], out[1])
        # Two layers where there are, because one could be computed with the weights of the other.
        for layer in sorted({1, config.num_layers - 1}) if config.num_layers > 1 else ():
            yield f"middle segment of layer {layer}", _middle(layer, attended, residual)

    def _last(self, bucket: int) -> Iterator[tuple[str, _Run]]:
        _, attended, residual = self._inputs(bucket)
        yield "last segment", lambda form, out: form.last(attended, residual, out[0])

    def _inputs(self, bucket: int) -> tuple[torch.Generator, torch.Tensor, torch.Tensor]:
        model = self._model
        generator = torch.Generator(model.device).manual_seed(bucket)
        attended, residual = (
            torch.randn((bucket, width), generator=generator, device=model.device).to(model.dtype)
            for width in (model.config.q_size, model.config.hidden_size)
        )
        return generator, attended, residual

    def _run(self, run: _Run, form: Segments, bucket: int, widths: list[int]) -> list[torch.Tensor]:
        """The outputs, which are NaN where nothing is written."""
        out = [
            torch.full((bucket, width), torch.nan, dtype=self._model.dtype, device=self._model.device)
            for width in widths
        ]
        run(form, out)
        return out


def _middle(layer: int, attended: torch.Tensor, residual: torch.Tensor) -> _Run:
    return lambda form, out: form.middle(layer, attended, residual, out[0], out[1])


def _relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest of any row and of any block of columns: in the whole, a lost tile would hardly show."""
    errors, sizes = [], []
    for rows in range(0, len(found), _ROWS_AT_ONCE):  # a head's output is large, and float32 twice that
        part = slice(rows, rows + _ROWS_AT_ONCE)
        reference = expected[part].float()
        errors.append(_by_blocks((found[part].float() - reference).square()))
        sizes.append(_by_blocks(reference.square()))
    error, size = torch.cat(errors), torch.cat(sizes)  # [rows, blocks of columns]
    by_row, by_block = error.sum(1) / size.sum(1), error.sum(0) / size.sum(0)
    return float(torch.maximum(by_row.max(), by_block.max()).sqrt())


def _by_blocks(squares: torch.Tensor) -> torch.Tensor:
    """Sums over blocks of columns: [n, width] -> [n, blocks]."""
    padding = -squares.shape[1] % _BLOCK
    return functional.pad(squares, (0, padding)).view(len(squares), -1, _BLOCK).sum(2)
