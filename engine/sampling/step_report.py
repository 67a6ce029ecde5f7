"""The report of one step: log-probabilities of rows that ask for them, of the model's own distribution."""

import torch
from torch import Tensor

from engine.sampling.logprobs import report_best, report_tokens
from engine.sampling.report import REPORT_WIDTH
from engine.sampling.rows import Flag, Hints, select, to_index


class StepReport:
    """Made before logits are processed, finished after tokens are drawn. Rows that do not report cost
    nothing.

    Logits of beam-search rows become log-probabilities at once, as transformers' beam search has them
    processed.
    """

    def __init__(self, logits: Tensor, hints: Hints) -> None:
        """logits: float32 [n, vocab_size]."""
        self._hints = hints
        self._is_beam = hints["flags"] & Flag.BEAM > 0
        self._is_plain = (hints["num_reported"] >= 0) & ~self._is_beam
        self._logprobs: Tensor | None = None
        if self._is_plain.any():
            index = to_index(self._is_plain, logits.device)
            self._logprobs = torch.log_softmax(select(logits, index), -1)
        if self._is_beam.any():
            index = to_index(self._is_beam, logits.device)
            _put(logits, index, torch.log_softmax(select(logits, index), -1))

    def finish(self, logits: Tensor, token_ids: Tensor) -> Tensor | None:
        """int32 [n, REPORT_WIDTH], or None when no row reports. logits: processed."""
        if not (self._is_plain | self._is_beam).any():
            return None
        report = torch.zeros(len(logits), REPORT_WIDTH, dtype=torch.int32, device=logits.device)
        if self._logprobs is not None:
            index = to_index(self._is_plain, logits.device)
            num_top = int(self._hints["num_reported"][self._is_plain].max())
            _put(report, index, report_tokens(self._logprobs, select(token_ids, index), num_top))
        if self._is_beam.any():
            index = to_index(self._is_beam, logits.device)
            num_top = int(self._hints["num_reported"][self._is_beam].max())
            _put(report, index, report_best(select(logits, index), num_top))
        return report


def _put(target: Tensor, index: Tensor | None, values: Tensor) -> None:
    """target[index] = values."""
    if index is None:
        target.copy_(values)
    else:
        target.index_copy_(0, index, values)
