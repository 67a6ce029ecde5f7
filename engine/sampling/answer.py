"""What a step has sampled, from words on the host to scheduler.step.StepOutput."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from engine.fetched import Fetched
from engine.sampling.report import read_reports
from scheduler.step import Finish, StepOutput, TokenLogprobs

Words = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Answer:
    """All on the host.

    sampled: integers [2, n], token ids and `Finish` codes. report: int32 [n, REPORT_WIDTH], None if no row
    reports; num_reported: what each row does, see read_reports. errors: by row.
    """

    sampled: Tensor
    report: Tensor | None = None
    num_reported: Sequence[int] = ()
    errors: Mapping[int, str] | None = None

    def to_output(
        self, step_id: int, prompt_logprobs: Mapping[int, Sequence[TokenLogprobs]] | None = None
    ) -> StepOutput:
        token_ids, finishes = self.sampled.tolist()
        for place in self.errors or ():
            finishes[place] = int(Finish.ERROR)
        return StepOutput(
            step_id,
            token_ids,
            finishes,
            logprobs=None if self.report is None else read_reports(self.report.numpy(), self.num_reported),
            errors=self.errors or {},
            prompt_logprobs=prompt_logprobs or {},
        )


@dataclass(frozen=True, slots=True)
class Scores:
    """Log-probabilities of the next tokens of a chunk, on their way. parts: int32 [m, REPORT_WIDTH] each."""

    num_reported: int
    parts: Sequence[Fetched]

    def read(self) -> list[TokenLogprobs]:
        """Waits for the device."""
        scores: list[TokenLogprobs] = []
        for part in self.parts:
            words = part.wait().numpy()
            read = read_reports(words, [self.num_reported] * len(words))
            scores.extend(each for each in read if each is not None)
        return scores
