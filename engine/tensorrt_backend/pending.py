"""What a launched step will answer: sampling that is enqueued now or later, and its copies to the host."""

from collections.abc import Mapping

import torch

from engine.fetched import Fetched
from engine.sampling.answer import Answer, Scores
from engine.tensorrt_backend.executor import Executor
from engine.tensorrt_backend.step_buffers import StepBuffers
from engine.tensorrt_backend.step_sampling import SamplingPlan, StepSampling
from scheduler.step import StepOutput


class PendingSamples:
    """The rows that sample in a step."""

    def __init__(
        self,
        plan: SamplingPlan,
        sampling: StepSampling,
        buffers: StepBuffers,
        executor: Executor,
        rows: torch.Tensor,
        is_done: bool,
        scores: Mapping[int, Scores],
    ) -> None:
        """rows: int32 [bucket], those of the plan, then -1; their logits are in the buffers. is_done: they
        have been sampled from. scores: by the index of the chunk.
        """
        self._plan, self._sampling, self._buffers, self._executor = plan, sampling, buffers, executor
        self._rows = rows
        self._is_done = is_done
        self._scores = scores
        self._errors: Mapping[int, str] = {}
        self._out: Fetched | None = None
        self._report: Fetched | None = None

    def enqueue(self) -> None:
        """Sample, and start to copy. Later calls do nothing."""
        if self._out is not None:
            return
        num_rows, buffers = len(self._rows), self._buffers
        if not self._is_done:
            self._errors = self._sampling.enqueue(self._plan, buffers.logits[:num_rows], self._rows)
        if self._plan.num_reported:
            self._report = self._executor.fetch(buffers.report[:num_rows])
        self._out = self._executor.fetch(buffers.output(num_rows))

    def read(self, step_id: int) -> StepOutput:
        """Waits for the device."""
        assert self._out is not None, "sampling was enqueued"
        num_samples = len(self._plan.rows)
        report = None if self._report is None else self._report.wait()
        answer = Answer(self._out.wait()[:, :num_samples], report, self._plan.num_reported, self._errors)
        scores = {index: each.read() for index, each in self._scores.items()}
        return self._sampling.take(self._plan, answer.to_output(step_id, scores))
