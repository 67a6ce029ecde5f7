"""Token sequences that end an output."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from engine.sampling.custom.context import RowContext, RowTokens
from engine.sampling.custom.interfaces import BatchedStoppingCriteria
from engine.sampling.custom.parameters import Limits, TokenId

MAX_SEQUENCES = 16
MAX_LENGTH = 32
_ANY = -2  # no token, and not what stands before the first one


@dataclass(frozen=True, slots=True)
class SequencesParameters:
    sequences: Annotated[
        tuple[Annotated[tuple[TokenId, ...], Limits(min_length=1, max_length=MAX_LENGTH)], ...],
        Limits(min_length=1, max_length=MAX_SEQUENCES, description="any of them ends the output"),
    ]


class TokenSequences(BatchedStoppingCriteria[SequencesParameters]):
    """Stops when the output ends with one of these sequences of token ids (TensorRT-LLM's stop_words_list).
    They may begin in the prompt, but not end there.
    """

    parameters: ClassVar[type] = SequencesParameters
    is_capturable: ClassVar[bool] = True

    def allocate(self, context: RowContext) -> None:
        shape = (context.max_num_rows + 1, MAX_SEQUENCES * MAX_LENGTH)
        self._context = context
        self._sequences = torch.full(shape, _ANY, dtype=torch.int64, device=context.device)

    def add(self, row: int, parameters: SequencesParameters, tokens: RowTokens) -> None:
        padded = [[_ANY] * (MAX_LENGTH - len(each)) + list(each) for each in parameters.sequences]
        self.remove(row)
        self._context.write(self._sequences, row, [token_id for each in padded for token_id in each])

    def remove(self, row: int) -> None:
        self._sequences[row] = _ANY

    def check(self, token_ids: Tensor, rows: Tensor) -> Tensor:
        wanted = self._sequences.index_select(0, rows).view(len(rows), MAX_SEQUENCES, MAX_LENGTH)
        tokens = self._context.last_tokens(rows, MAX_LENGTH).unsqueeze(1)
        matches = ((wanted == tokens) | (wanted == _ANY)).all(2)
        return (matches & (wanted[:, :, -1] != _ANY)).any(1)
