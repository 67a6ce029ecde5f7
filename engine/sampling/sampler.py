"""Sampling and stopping for the whole batch at once, on the device."""

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.sampling.inverse_cdf import draw_tokens, exp_in_blocks
from engine.sampling.philox import Philox, Purpose, uniform
from engine.sampling.rows import Column, Hints, RowBatch, RowState, select, to_index
from engine.sampling.truncation import thresholds
from scheduler.step import Finish, NewRow


class Sampler:
    """Turns logits into tokens and verdicts, by each row's SamplingParams (whose docstring defines them).

    A random row makes one uniform number from (seed, output index, number of tokens generated) and inverts
    its cumulative distribution in token-id order: its token depends neither on the row's number, nor on the
    rest of the batch, nor on whether the sequence was preempted.
    """

    def __init__(
        self,
        max_num_rows: int,
        vocab_size: int,
        max_model_len: int,
        eos_token_ids: tuple[int, ...],
        device: torch.device,
    ) -> None:
        self._vocab_size = vocab_size
        self._rows = RowState(max_num_rows, vocab_size, max_model_len, eos_token_ids, device)
        self._philox = Philox(device)

    def set_rows(self, new_rows: Sequence[NewRow]) -> None:
        """Replace the state of these rows. Their `sampling` is a SamplingParams, with a seed if random."""
        if new_rows:
            self._rows.write(new_rows)

    def sample(self, logits: Tensor, rows: Tensor, host_rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """One token for each row, which counts as generated. Never waits for the device.

        logits: [n, vocab_size] float32; overwritten where min_new_tokens bans stop ids.
        rows: [n] int64, all different. host_rows: the same, on the host.
        Returns token ids [n] int64 and `Finish` codes [n] int32. A row with NaN or +inf in it, or with
        nothing above -inf, gets Finish.ERROR and some token id in range; other rows are as without it.
        """
        assert logits.dtype == torch.float32
        assert logits.shape == (len(host_rows), self._vocab_size)
        batch = self._rows.gather(rows)
        hints = self._rows.hints(host_rows)
        if hints["bans"].any():
            _ban_stop_ids(logits, batch)
        largest, token_ids = logits.max(dim=-1)
        if hints["random"].any():
            index = to_index(hints["random"], logits.device)
            random = batch.select(index)
            tempered = _temper(select(logits, index), select(largest, index), random)
            drawn = self._draw(tempered, random, hints[hints["random"]])
            token_ids = drawn if index is None else token_ids.index_copy(0, index, drawn)
        self._rows.count_token(rows)
        return token_ids, _finishes(token_ids, largest, batch)

    def _draw(self, logits: Tensor, batch: RowBatch, hints: Hints) -> Tensor:
        """Token ids [n] of rows that are all random. logits: tempered, [n, vocab_size]."""
        blocks, weights = exp_in_blocks(logits)
        masses = blocks.sum(-1).double()
        if (hints["truncates"] | hints["min_p"]).any():
            floors = _floors(logits, masses, batch, hints)
            weights.masked_fill_(logits < floors.unsqueeze(1), 0)
            masses = blocks.sum(-1).double()
        return draw_tokens(blocks, masses, self._uniform(batch)).clamp_(max=self._vocab_size - 1)  # of NaN

    def _uniform(self, batch: RowBatch) -> Tensor:
        """[n] float64 in [0, 1)."""
        position = batch.words(Column.NUM_GENERATED)
        purpose = torch.full_like(position, Purpose.TOKEN)
        output_index = batch.words(Column.OUTPUT_INDEX)
        counter = torch.stack((position, purpose, output_index, torch.zeros_like(position)))
        key = torch.stack((batch.words(Column.SEED_LOW), batch.words(Column.SEED_HIGH)))
        return uniform(self._philox(counter, key))


def _temper(logits: Tensor, largest: Tensor, batch: RowBatch) -> Tensor:
    """Logits over the temperature, shifted so that the largest of a row is 0."""
    return (logits - largest.unsqueeze(1)).div_(batch.floats(Column.TEMPERATURE).unsqueeze(1))


def _floors(logits: Tensor, masses: Tensor, batch: RowBatch, hints: Hints) -> Tensor:
    """The smallest logit that each row keeps, [n]. Min-p is a ratio to the most likely token, of logit 0."""
    floors = batch.floats(Column.MIN_P).log()
    if not hints["truncates"].any():
        return floors
    index = to_index(hints["truncates"], logits.device)
    rows, hints = batch.select(index), hints[hints["truncates"]]
    bounds = thresholds(
        select(logits, index),
        select(masses, index).sum(-1),
        rows.integers(Column.TOP_K),
        rows.floats(Column.TOP_P),
        largest_k=int(hints["top_k"].max()) if hints["top_k"].all() else None,
    )
    bounds = torch.maximum(bounds, select(floors, index))
    return bounds if index is None else floors.index_copy(0, index, bounds)


def _ban_stop_ids(logits: Tensor, batch: RowBatch) -> None:
    """Set the logits of stop ids to -inf, in place, in rows that have not generated min_new_tokens yet."""
    too_early = batch.integers(Column.NUM_GENERATED) < batch.integers(Column.MIN_NEW_TOKENS)
    banned = too_early.unsqueeze(1) & (batch.stop_ids >= 0)
    index = batch.stop_ids.long().clamp(min=0)
    logits.scatter_(1, index, logits.gather(1, index).masked_fill_(banned, -torch.inf))


def _finishes(token_ids: Tensor, largest: Tensor, batch: RowBatch) -> Tensor:
    """`Finish` codes, [n] int32, of rows that just made `token_ids`. ERROR beats STOP, which beats LENGTH."""
    is_last = batch.integers(Column.NUM_GENERATED) + 1 >= batch.integers(Column.MAX_NEW_TOKENS)
    finishes = is_last * torch.full_like(batch.integers(Column.TOP_K), Finish.LENGTH)
    finishes.masked_fill_((batch.stop_ids == token_ids.unsqueeze(1)).any(1), Finish.STOP)
    return finishes.masked_fill_(~largest.isfinite(), Finish.ERROR)
