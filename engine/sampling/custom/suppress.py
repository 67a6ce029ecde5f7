"""Tokens that an output may not begin with."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from engine.sampling.custom.context import RowContext, RowTokens
from engine.sampling.custom.interfaces import BatchedLogitsProcessor
from engine.sampling.custom.parameters import Limits, TokenId

MAX_TOKENS = 64


@dataclass(frozen=True, slots=True)
class SuppressParameters:
    token_ids: Annotated[
        tuple[TokenId, ...], Limits(min_length=1, max_length=MAX_TOKENS, description="what is not chosen")
    ]
    num_tokens: Annotated[
        int, Limits(minimum=1, maximum=2**31 - 1, description="tokens of the output before it may be")
    ] = 1


class SuppressUntil(BatchedLogitsProcessor[SuppressParameters]):
    """The first num_tokens tokens of the output are none of token_ids. With the default, 1, this is
    transformers' SuppressTokensAtBeginLogitsProcessor.
    """

    parameters: ClassVar[type] = SuppressParameters
    is_capturable: ClassVar[bool] = True

    def allocate(self, context: RowContext) -> None:
        num_rows, device = context.max_num_rows + 1, context.device
        self._context = context
        self._ids = torch.zeros((num_rows, MAX_TOKENS), dtype=torch.int64, device=device)
        self._ends = torch.zeros(num_rows, dtype=torch.int64, device=device)

    def add(self, row: int, parameters: SuppressParameters, tokens: RowTokens) -> None:
        # The rest repeats the first: writes to the same place must agree.
        padding = parameters.token_ids[:1] * (MAX_TOKENS - len(parameters.token_ids))
        self._context.write(self._ids, row, parameters.token_ids + padding)
        self._ends[row] = parameters.num_tokens

    def remove(self, row: int) -> None:
        self._ends[row] = 0
        self._ids[row] = 0

    def apply(self, logits: Tensor, rows: Tensor) -> None:
        ids = self._ids.index_select(0, rows)
        is_early = self._context.num_generated(rows) < self._ends.index_select(0, rows)
        bans = logits.gather(1, ids).masked_fill(is_early.unsqueeze(1), -torch.inf)
        logits.scatter_(1, ids, bans)
