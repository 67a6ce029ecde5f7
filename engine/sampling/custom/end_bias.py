"""Outputs that draw to a close."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from engine.sampling.custom.context import RowContext, RowTokens
from engine.sampling.custom.interfaces import BatchedLogitsProcessor
from engine.sampling.custom.parameters import Limits, TokenId

MAX_TOKENS = 16
_MAX_GROWTH = 1e100  # what grows for long stays finite: as float64, and what is added as float32
_MAX_ADDED = 1e30


@dataclass(frozen=True, slots=True)
class EndBiasParameters:
    token_ids: Annotated[
        tuple[TokenId, ...], Limits(min_length=1, max_length=MAX_TOKENS, description="what ends the output")
    ]
    start: Annotated[int, Limits(minimum=0, maximum=2**31 - 1, description="generated tokens to wait for")]
    factor: Annotated[float, Limits(minimum=1.0, maximum=2.0, description="growth with each token")] = 1.02


class EndBias(BatchedLogitsProcessor[EndBiasParameters]):
    """Makes tokens that end the output likelier the longer it is: after `start` tokens, to each one's logit
    are added |logit| * (factor^(tokens since then) - 1).

    This is transformers' ExponentialDecayLengthPenalty, (start, factor) its exponential_decay_length_penalty.
    """

    parameters: ClassVar[type] = EndBiasParameters
    is_capturable: ClassVar[bool] = True

    def allocate(self, context: RowContext) -> None:
        num_rows, device = context.max_num_rows + 1, context.device
        self._context = context
        self._ids = torch.zeros((num_rows, MAX_TOKENS), dtype=torch.int64, device=device)
        self._starts = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self._factors = torch.ones(num_rows, dtype=torch.float64, device=device)

    def add(self, row: int, parameters: EndBiasParameters, tokens: RowTokens) -> None:
        # The rest repeats the first: writes to the same place must agree.
        padding = parameters.token_ids[:1] * (MAX_TOKENS - len(parameters.token_ids))
        self._context.write(self._ids, row, parameters.token_ids + padding)
        self._starts[row] = parameters.start
        self._factors[row] = parameters.factor

    def remove(self, row: int) -> None:
        self._factors[row] = 1.0
        self._ids[row] = 0

    def apply(self, logits: Tensor, rows: Tensor) -> None:
        ids = self._ids.index_select(0, rows)
        num_late = self._context.num_generated(rows) - self._starts.index_select(0, rows)
        growth = self._factors.index_select(0, rows).pow(num_late.clamp(min=0)).clamp(max=_MAX_GROWTH) - 1
        before = logits.gather(1, ids)
        after = before + (before.abs().double() * growth.unsqueeze(1)).clamp(max=_MAX_ADDED).float()
        is_late = (growth > 0).unsqueeze(1) & before.isfinite()
        logits.scatter_(1, ids, torch.where(is_late, after, before))
