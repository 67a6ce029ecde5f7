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
    FULL = "full"  # the model, and everything that a row can ask for
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
    """Sampling of one step after the other, in the rows' state. custom: None if the server has no plugins."""

    def __init__(
        self,
        sampler: DeviceSampler,
        state: DeviceState,
        buffers: StepBuffers,
        vocab_size: int,
        custom: CapturableRows | None,
    ) -> None:
        self._sampler, self._state, self._buffers = sampler, state, buffers
        self._guided = GuidedRows(vocab_size)
        self._custom = custom

    def set_rows(self, new_rows: Sequence[NewRow]) -> None:
        """Enqueued on the current stream."""
        self._sampler.set_rows(new_rows)
        self._guided.set_rows(new_rows)
        if self._custom is not None and new_rows:
            self._custom.set_rows(new_rows)

    def plan(self, rows: tuple[int, ...]) -> SamplingPlan:
        hints = self._sampler.hints(rows)
        if not hints["full"].any():
            return SamplingPlan(rows, Part.PLAIN)
        guided = self._guided.start(rows)
        reported = hints["num_reported"]
        is_eager = bool(guided) or (self._custom is not None and self._custom.needs_eager(rows))
        return SamplingPlan(
            rows,
            Part.MODEL if is_eager else Part.FULL,
            guided,
            reported.tolist() if (reported >= 0).any() else [],
        )

    def capture(self, part: Part, logits: torch.Tensor, rows: torch.Tensor) -> None:
        """What of it a graph holds. logits: [n, vocab]. rows: int32 [n], -1 in padding."""
        if part is Part.PLAIN:
            self._sampler.sample(logits, rows, self._state.last_token, self._buffers.output(len(rows)))
        elif part is Part.FULL:
            self._enqueue_full(logits, rows, self._process_captured)
            self._check_captured(rows)

    def enqueue(self, plan: SamplingPlan, logits: torch.Tensor, rows: torch.Tensor) -> Mapping[int, str]:
        """All of it, outside of a graph. Errors of rows, by their place in the plan."""
        if plan.guided:
            write_masks(self._sampler.tables.masks, plan.guided, self._guided.fill(plan.guided))
        if not plan.is_full:
            self.capture(Part.PLAIN, logits, rows)
            return {}
        errors: dict[int, str] = {}
        num_samples, custom = len(plan.rows), self._custom
        rows_64 = rows[:num_samples].long()

        def process(processed: torch.Tensor, _: torch.Tensor) -> None:
            if custom is not None:
                errors.update(custom.process(processed[:num_samples], rows_64, plan.rows))

        self._enqueue_full(logits, rows, process)
        if custom is not None:
            token_ids, finishes = self._buffers.output(len(rows))[:, :num_samples]
            errors |= custom.check(token_ids.long(), finishes, rows_64, plan.rows)
        return errors

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

    def _enqueue_full(
        self,
        logits: torch.Tensor,
        rows: torch.Tensor,
        process: Callable[[torch.Tensor, torch.Tensor], None],
    ) -> None:
        n, buffers = len(rows), self._buffers
        last_token, out = self._state.last_token, buffers.output(n)
        self._sampler.sample_processed(logits, rows, last_token, out, buffers.report[:n], process)

    def _process_captured(self, processed: torch.Tensor, rows: torch.Tensor) -> None:
        if self._custom is not None:
            self._custom.process_captured(processed, self._neutral(rows))

    def _check_captured(self, rows: torch.Tensor) -> None:
        if self._custom is not None:
            token_ids, finishes = self._buffers.output(len(rows))
            self._custom.check_captured(token_ids.long(), finishes, self._neutral(rows))

    def _neutral(self, rows: torch.Tensor) -> torch.Tensor:
        """int64: padding becomes the row behind the last, for which nothing is ever asked."""
        return rows.masked_fill(rows < 0, len(self._state.last_token)).long()
