"""The part of a step after its logits: which kernels it takes, and whether they are in the step's graph."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import torch

from engine.sampling.guides import GuidedRows, GuidedSample, write_masks
from engine.sampling.hooks import CapturableRows
from engine.sampling.kernels import DeviceSampler
from engine.tensorrt_backend.device_state import DeviceState
from engine.tensorrt_backend.step_buffers import StepBuffers
from scheduler.step import NewRow, StepOutput


class Part(Enum):
    """What a graph of a decode bucket holds."""

    PLAIN = "plain"  # the model, and sampling from its logits as they are
    FULL = "full"  # the model, and everything that a row can ask for by itself
    CUSTOM = "custom"  # the same, with the processors and criteria that can be captured
    MODEL = "model"  # the model alone: sampling waits for a grammar, or runs code that no graph can hold


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """What the rows that sample in a step ask for. rows: in the order of StepOutput.

    num_reported: see rows.HINTS; empty if no row reports.
    """

    rows: tuple[int, ...]
    part: Part
    guided: Sequence[GuidedSample] = ()
    num_reported: Sequence[int] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        return self.part is not Part.PLAIN


class StepSampling:
    """Sampling of one step after the other, in the rows' state."""

    def __init__(
        self,
        sampler: DeviceSampler,
        custom: CapturableRows,
        state: DeviceState,
        buffers: StepBuffers,
        vocab_size: int,
    ) -> None:
        self._sampler, self._custom, self._state, self._buffers = sampler, custom, state, buffers
        self._guided = GuidedRows(vocab_size)

    def set_rows(self, new_rows: Sequence[NewRow]) -> None:
        """Enqueued on the current stream."""
        self._sampler.set_rows(new_rows)
        self._guided.set_rows(new_rows)
        if new_rows:
            self._custom.set_rows(new_rows)

    def plan(self, rows: tuple[int, ...]) -> SamplingPlan:
        hints = self._sampler.hints(rows)
        if not hints["full"].any():
            return SamplingPlan(rows, Part.PLAIN)
        guided, reported = self._guided.start(rows), hints["num_reported"]
        part = Part.CUSTOM if self._custom.asks(rows) else Part.FULL
        if guided or self._custom.needs_eager(rows):
            part = Part.MODEL
        return SamplingPlan(rows, part, guided, reported.tolist() if (reported >= 0).any() else [])

    def capture(self, part: Part, logits: torch.Tensor, rows: torch.Tensor) -> None:
        """What of it a graph holds. logits: [n, vocab]. rows: int32 [n], -1 in padding."""
        if part is Part.PLAIN:
            self._sampler.sample(logits, rows, self._state.last_token, self._buffers.output(len(rows)))
        elif part is Part.FULL:
            self._enqueue_full(logits, rows, None)
        elif part is Part.CUSTOM:
            self._enqueue_full(logits, rows, self._custom.process_captured)
            token_ids, finishes = self._buffers.output(len(rows))
            self._custom.check_captured(token_ids, finishes, rows)

    def enqueue(self, plan: SamplingPlan, logits: torch.Tensor, rows: torch.Tensor) -> Mapping[int, str]:
        """All of it, outside of a graph. Errors of rows, by their place in the plan."""
        if plan.guided:
            write_masks(self._sampler.tables.masks, plan.guided, self._guided.fill(plan.guided))
        if not plan.is_full:
            self.capture(Part.PLAIN, logits, rows)
            return {}
        if not self._custom.asks(plan.rows):
            self.capture(Part.FULL, logits, rows)
            return {}
        return self._enqueue_custom(plan.rows, logits, rows)

    def take(self, plan: SamplingPlan, output: StepOutput) -> StepOutput:
        """A step was read, before the next one's is enqueued."""
        return self._guided.take(plan.guided, output) if plan.guided else output

    def num_scored(self, row: int) -> int:
        """How many tokens each token of the row's prompt reports, see rows.HINTS."""
        return int(self._sampler.hints([row])["num_scored"][0])

    def score(
        self, logits: torch.Tensor, token_ids: torch.Tensor, num_reported: int, report: torch.Tensor
    ) -> None:
        """See DeviceSampler.score."""
        self._sampler.score(logits, token_ids, num_reported, report)

    def _enqueue_custom(
        self, host_rows: tuple[int, ...], logits: torch.Tensor, rows: torch.Tensor
    ) -> dict[int, str]:
        errors: dict[int, str] = {}
        num_samples, custom = len(host_rows), self._custom
        rows_64 = rows[:num_samples].long()

        def process(processed: torch.Tensor, _: torch.Tensor) -> None:
            errors.update(custom.process(processed[:num_samples], rows_64, host_rows))

        self._enqueue_full(logits, rows, process)
        token_ids, finishes = self._buffers.output(len(rows))[:, :num_samples]
        return errors | dict(custom.check(token_ids.long(), finishes, rows_64, host_rows))

    def _enqueue_full(
        self,
        logits: torch.Tensor,
        rows: torch.Tensor,
        process: Callable[[torch.Tensor, torch.Tensor], None] | None,
    ) -> None:
        n, buffers = len(rows), self._buffers
        last_token, out = self._state.last_token, buffers.output(n)
        self._sampler.sample_processed(logits, rows, last_token, out, buffers.report[:n], process)
