"""What the sampler calls where requests bring logits processors and stopping criteria of their own."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from scheduler.step import NewRow


class CustomRows(Protocol):
    """Processors and criteria of all rows. It was given the sampler's RowState when it was made.

    In `process` and `check`, rows is int64 [n] on the device, host_rows the same on the host, and logits,
    token ids and finishes have an entry for each of them, in that order. What they return are errors:
    messages, by index into that order; those rows get Finish.ERROR, and no other row may notice.
    """

    def set_rows(self, new_rows: Sequence[NewRow]) -> None:
        """These rows have been replaced, in the RowState too."""
        ...

    def process(self, logits: Tensor, rows: Tensor, host_rows: Sequence[int]) -> Mapping[int, str]:
        """Change logits, float32 [n, vocab_size], in place. All other processing but the temperature is
        done; the RowState is as of the last token.
        """
        ...

    def check(
        self, token_ids: Tensor, finishes: Tensor, rows: Tensor, host_rows: Sequence[int]
    ) -> Mapping[int, str]:
        """Write Finish.CRITERION + i over finishes, int32 [n], where the row's i-th criterion is met and the
        entry is NONE or LENGTH. token_ids: int64 [n], counted and kept already in the RowState.
        """
        ...


class CapturableRows(CustomRows, Protocol):
    """The same where steps are CUDA graphs."""

    def asks(self, host_rows: Sequence[int]) -> bool:
        """Whether any of these rows has a processor or criterion."""
        ...

    def needs_eager(self, host_rows: Sequence[int]) -> bool:
        """Whether some of these rows ask for what cannot be captured."""
        ...

    def process_captured(self, logits: Tensor, rows: Tensor) -> None:
        """`process` by capturable processors alone, for every row of a graph: they read on the device what a
        row asks for. rows: int32 [n], -1 in padding.
        """
        ...

    def check_captured(self, token_ids: Tensor, finishes: Tensor, rows: Tensor) -> None:
        """`check` likewise."""
        ...
