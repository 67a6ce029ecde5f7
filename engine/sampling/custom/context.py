"""What a batched processor or criterion may know of the rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.sampling.rows import Column, RowState
from engine.sampling.tables import fill


@dataclass(frozen=True, slots=True)
class RowTokens:
    """The tokens that a sequence has when it takes a row: all of its prompt, and what it has generated
    already if it was preempted.
    """

    token_ids: tuple[int, ...]
    num_prompt_tokens: int

    @property
    def generated(self) -> tuple[int, ...]:
        return self.token_ids[self.num_prompt_tokens :]


class RowContext:
    """Of max_num_rows rows, and a last one, of number max_num_rows, that pads the batch of a CUDA graph.

    So state of a processor has max_num_rows + 1 rows. What the methods answer is computed on the device,
    without a wait, and may be captured in a graph. In apply() it counts the tokens before the one to sample,
    in check() that one too. The padding has no tokens.
    """

    def __init__(self, state: RowState) -> None:
        self._packed = state.packed
        self._history = state.tables.history
        self.vocab_size = state.tables.vocab_size
        self.max_model_len = self._history.shape[1]
        self.max_num_rows = len(self._packed)
        self.device = self._packed.device

    def num_generated(self, rows: Tensor) -> Tensor:
        """rows: int64 [n]. int64 [n]: tokens of the output so far."""
        return self._column(rows, Column.NUM_GENERATED)

    def num_tokens(self, rows: Tensor) -> Tensor:
        """rows: int64 [n]. int64 [n]: tokens of prompt and output so far."""
        return self._column(rows, Column.NUM_PROMPT) + self._column(rows, Column.NUM_GENERATED)

    def is_free_to_stop(self, rows: Tensor) -> Tensor:
        """rows: int64 [n]. bool [n]: min_new_tokens are generated."""
        return self.num_generated(rows) >= self._column(rows, Column.MIN_NEW_TOKENS)

    def tokens_at(self, rows: Tensor, positions: Tensor) -> Tensor:
        """rows: int64 [n], of sequences that asked for the caller. positions: int64 [n, k], 0 is the
        prompt's first token. int64 [n, k]: the tokens there, -1 where there is none.
        """
        inside = (positions >= 0) & (positions < self.num_tokens(rows).unsqueeze(1))
        places = positions.clamp(0, self.max_model_len - 1)
        tokens = self._history[self._existing(rows).unsqueeze(1), places].long()
        return tokens.masked_fill(~inside, -1)

    def last_tokens(self, rows: Tensor, count: int) -> Tensor:
        """rows: int64 [n]. int64 [n, count]: the last tokens, the newest at the end; -1 before the first."""
        ends = self.num_tokens(rows).unsqueeze(1)
        return self.tokens_at(rows, ends + torch.arange(-count, 0, device=self.device))

    def write(self, target: Tensor, row: int, values: Sequence[float]) -> None:
        """target[row, :len(values)] = values, without the wait that assigning them makes. target: [rows,
        at least len(values)].
        """
        fill(target[row], values)

    def _column(self, rows: Tensor, column: Column) -> Tensor:
        values = self._packed[:, column].index_select(0, self._existing(rows)).long()
        return values.masked_fill(rows >= self.max_num_rows, 0)

    def _existing(self, rows: Tensor) -> Tensor:
        return rows.clamp(max=self.max_num_rows - 1)
