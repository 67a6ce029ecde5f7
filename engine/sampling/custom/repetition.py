"""Outputs that go round in circles."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from engine.sampling.custom.context import RowContext, RowTokens
from engine.sampling.custom.interfaces import BatchedStoppingCriteria
from engine.sampling.custom.parameters import Limits

MAX_SIZE = 32
MAX_REPEATS = 8


@dataclass(frozen=True, slots=True)
class RepetitionParameters:
    max_size: Annotated[
        int, Limits(minimum=1, maximum=MAX_SIZE, description="tokens of the longest pattern that counts")
    ] = MAX_SIZE
    min_size: Annotated[int, Limits(minimum=1, maximum=MAX_SIZE, description="and of the shortest")] = 1
    num_repeats: Annotated[
        int, Limits(minimum=2, maximum=MAX_REPEATS, description="how often it stands there, in a row")
    ] = 4

    def __post_init__(self) -> None:
        if self.min_size > self.max_size:
            raise ValueError("min_size must not be above max_size")


class RepetitionStop(BatchedStoppingCriteria[RepetitionParameters]):
    """Stops when the output ends with the same min_size to max_size tokens, num_repeats times in a row."""

    parameters: ClassVar[type] = RepetitionParameters
    is_capturable: ClassVar[bool] = True

    def allocate(self, context: RowContext) -> None:
        self._context = context
        self._wants = torch.zeros((context.max_num_rows + 1, 3), dtype=torch.int64, device=context.device)
        # Counted back from the newest token: the place itself, and the one that lies a pattern before it.
        self._sizes = torch.arange(1, MAX_SIZE + 1, device=context.device).unsqueeze(1)
        self._places = torch.arange(MAX_SIZE * (MAX_REPEATS - 1), device=context.device)
        self._earlier = self._places + self._sizes

    def add(self, row: int, parameters: RepetitionParameters, tokens: RowTokens) -> None:
        wants = (parameters.min_size, parameters.max_size, parameters.num_repeats)
        self._context.write(self._wants, row, wants)

    def remove(self, row: int) -> None:
        self._wants[row] = 0

    def check(self, token_ids: Tensor, rows: Tensor) -> Tensor:
        smallest, largest, repeats = self._wants.index_select(0, rows).unsqueeze(2).unbind(1)
        tokens = self._context.last_tokens(rows, MAX_SIZE * MAX_REPEATS).int().flip(1)
        needed = self._sizes.T * (repeats - 1)  # [n, sizes]: equal pairs, from the newest token on
        is_equal = tokens[:, None, : len(self._places)] == tokens[:, self._earlier]  # [n, sizes, places]
        is_covered = self._places >= needed.unsqueeze(2)
        fits = self._sizes.T * repeats <= self._context.num_generated(rows).unsqueeze(1)
        asked = (smallest <= self._sizes.T) & (largest >= self._sizes.T)
        return ((is_equal | is_covered).all(2) & fits & asked).any(1)
