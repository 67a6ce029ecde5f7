"""What changes logits before a token is drawn: biases, penalties, bans and masks, of rows that ask for them.

float32, one rounding an operation, so that the kernels can give the same bits.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.sampling.bans import Bans, ban, completed_words, repeated_ngrams
from engine.sampling.rows import Column, Flag, Hints, RowBatch, select, to_index
from engine.sampling.tables import PROMPT_SHIFT, RowTables

_OUTPUT_MASK = (1 << PROMPT_SHIFT) - 1


class Processing:
    """One step's changes, in the order of SamplingParams, for n rows; nothing is done for rows that do not
    ask for it, and nothing waits for the device.

    logits: [n, vocab_size] float32, changed in place. batch, hints: of the n rows. rows: int64 [n], their
    numbers.
    """

    def __init__(
        self, logits: Tensor, tables: RowTables, batch: RowBatch, hints: Hints, rows: Tensor
    ) -> None:
        self._logits = logits
        self._tables = tables
        self._batch = batch
        self._hints = hints
        self._rows = rows

    def run(self) -> None:
        flags = self._hints["flags"]
        for change, mask in (
            (self._add_biases, self._hints["num_biases"] > 0),
            (self._penalize, flags & Flag.PENALIZES > 0),
            (self._ban_ngrams, self._hints["ngram_size"] > 0),
            (self._ban_words, self._hints["num_bad_words"] > 0),
            (self._ban_stop_ids, self._hints["bans"]),
            (self._mask, flags & Flag.MASKS > 0),
        ):
            if mask.any():
                change(mask)

    def _add_biases(self, mask: npt.NDArray[np.bool_]) -> None:
        """logit + bias."""
        positions, rows, batch = self._select(mask)
        most = int(self._hints["num_biases"].max())
        ids, biases = (
            table.index_select(0, rows)[:, :most] for table in (self._tables.bias_ids, self._tables.biases)
        )
        # Stale entries repeat the first: writes to the same place must agree.
        is_set = torch.arange(most, device=rows.device) < batch.integers(Column.NUM_BIASES).unsqueeze(1)
        ids = torch.where(is_set, ids, ids[:, :1]).long()
        index = (positions.unsqueeze(1), ids)
        self._logits[index] += torch.where(is_set, biases, biases[:, :1])

    def _penalize(self, mask: npt.NDArray[np.bool_]) -> None:
        index = to_index(mask, self._logits.device)
        seen = self._tables.seen.index_select(0, select(self._rows, index))
        penalized = penalize(select(self._logits, index), seen, self._batch.select(index))
        self._replace(index, penalized)

    def _ban_ngrams(self, mask: npt.NDArray[np.bool_]) -> None:
        positions, rows, batch = self._select(mask)
        history, lengths = self._history(rows, batch)
        largest = int(self._hints["ngram_size"].max())
        bans = repeated_ngrams(history, lengths, batch.integers(Column.NGRAM_SIZE), largest)
        ban(self._logits, positions, bans)

    def _ban_words(self, mask: npt.NDArray[np.bool_]) -> None:
        positions, rows, batch = self._select(mask)
        history, lengths = self._history(rows, batch)
        most = int(self._hints["num_bad_words"].max())
        bans = completed_words(
            self._tables.bad_ids.index_select(0, rows),
            self._tables.bad_ends.index_select(0, rows)[:, :most],
            batch.integers(Column.NUM_BAD_WORDS),
            int(self._hints["longest_bad_word"].max()),
            history,
            lengths,
        )
        ban(self._logits, positions, bans)

    def _ban_stop_ids(self, mask: npt.NDArray[np.bool_]) -> None:
        """In rows that have not generated min_new_tokens yet."""
        positions, _, batch = self._select(mask)
        too_early = batch.integers(Column.NUM_GENERATED) < batch.integers(Column.MIN_NEW_TOKENS)
        is_banned = too_early.unsqueeze(1) & (batch.stop_ids >= 0)
        ban(self._logits, positions, Bans(batch.stop_ids.long().clamp(min=0), is_banned))

    def _mask(self, mask: npt.NDArray[np.bool_]) -> None:
        index = to_index(mask, self._logits.device)
        words = self._tables.masks.index_select(0, select(self._rows, index))
        allowed = unpack_mask(words, self._logits.shape[1])
        self._replace(index, select(self._logits, index).masked_fill(~allowed, -torch.inf))

    def _select(self, mask: npt.NDArray[np.bool_]) -> tuple[Tensor, Tensor, RowBatch]:
        """Places in the step, int64; row numbers, int64; and state of the rows in the mask."""
        index = to_index(mask, self._logits.device)
        positions = index if index is not None else torch.arange(len(self._rows), device=self._rows.device)
        return positions, select(self._rows, index), self._batch.select(index)

    def _history(self, rows: Tensor, batch: RowBatch) -> tuple[Tensor, Tensor]:
        """Tokens, int32 [n, width], and how many there are, int32 [n]."""
        lengths = batch.integers(Column.NUM_PROMPT) + batch.integers(Column.NUM_GENERATED)
        history = self._tables.history
        if lengths.device.type == "cpu":  # elsewhere asking for the longest would wait
            history = history[:, : max(1, int(lengths.max()))]
        return history.index_select(0, rows), lengths

    def _replace(self, index: Tensor | None, changed: Tensor) -> None:
        if index is None:
            self._logits.copy_(changed)
        else:
            self._logits.index_copy_(0, index, changed)


def penalize(logits: Tensor, seen: Tensor, batch: RowBatch) -> Tensor:
    """For a token that counts as seen: v / repetition where v > 0, else v * repetition; then (v - presence)
    - frequency * count. In this order, each operation rounded to float32.

    logits: float32 [n, vocab_size]. seen: int32 [n, vocab_size], see RowTables.
    """
    flags = batch.integers(Column.FLAGS).unsqueeze(1)
    output, prompt = seen & _OUTPUT_MASK, seen >> PROMPT_SHIFT
    is_repeated = (output > 0) | ((prompt > 0) & (flags & Flag.REPEATS_PROMPT > 0))
    factor = batch.floats(Column.REPETITION).unsqueeze(1)
    repeated = torch.where(logits > 0, logits / factor, logits * factor)
    logits = torch.where(is_repeated, repeated, logits)
    count = output + torch.where(flags & Flag.ADDS_PROMPT > 0, prompt, 0)
    presence = batch.floats(Column.PRESENCE).unsqueeze(1) * (count > 0)
    return logits - presence - batch.floats(Column.FREQUENCY).unsqueeze(1) * count


def unpack_mask(words: Tensor, vocab_size: int) -> Tensor:
    """bool [n, vocab_size] of bits, int32 [n, ceil(vocab_size / 32)]; see RowTables.masks."""
    bits = torch.arange(32, dtype=torch.int32, device=words.device)
    return ((words.unsqueeze(2) >> bits) & 1).flatten(1)[:, :vocab_size].bool()
