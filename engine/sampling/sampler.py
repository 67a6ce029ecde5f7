"""Sampling and stopping for the whole batch at once, on the device."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from engine.sampling.advance import advance
from engine.sampling.distribution import temper, weigh
from engine.sampling.hooks import CustomRows
from engine.sampling.inverse_cdf import draw_tokens
from engine.sampling.philox import Philox, Purpose, uniform
from engine.sampling.processing import Processing
from engine.sampling.rows import Column, Flag, Hints, RowBatch, RowState, select, to_index
from engine.sampling.step_report import StepReport
from engine.sampling.tables import RowTables
from kvcache.storage import to_device
from scheduler.step import Finish, NewRow


class Sampled(NamedTuple):
    """token_ids: int64 [n]. finishes: int32 [n], `Finish` codes.

    report: int32 [n, REPORT_WIDTH], see engine.sampling.report; None when no row reports. errors: what custom
    processors and criteria of a row raised, by its index in the step.
    """

    token_ids: Tensor
    finishes: Tensor
    report: Tensor | None
    errors: Mapping[int, str]


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
        custom: CustomRows | None = None,
        state: RowState | None = None,
    ) -> None:
        """state: the rows, made as here, where `custom` had to know them first."""
        self._vocab_size = vocab_size
        self.state = state or RowState(max_num_rows, vocab_size, max_model_len, eos_token_ids, device)
        self._philox = Philox(device)
        self._custom = custom

    @property
    def tables(self) -> RowTables:
        return self.state.tables

    def hints(self, host_rows: Sequence[int]) -> Hints:
        """What these rows ask for."""
        return self.state.hints(host_rows)

    def set_rows(self, new_rows: Sequence[NewRow]) -> None:
        """Replace the state of these rows. Their `sampling` is a SamplingParams, with a seed if random."""
        if new_rows:
            self.state.write(new_rows)
            if self._custom is not None:
                self._custom.set_rows(new_rows)

    def sample(self, logits: Tensor, rows: Tensor, host_rows: Sequence[int]) -> Sampled:
        """One token for each row, which counts as generated. Never waits for the device.

        logits: [n, vocab_size] float32; overwritten in rows that process them.
        rows: [n] int64, all different. host_rows: the same, on the host.
        A row whose processed logits have NaN or +inf in them, or nothing above -inf, gets Finish.ERROR and
        some token id in range; other rows are as without it. Rows of a beam search make no token: they report
        candidates, and get no Finish but ERROR.
        """
        assert logits.dtype == torch.float32
        assert logits.shape == (len(host_rows), self._vocab_size)
        batch = self.state.gather(rows)
        hints = self.hints(host_rows)
        is_full = bool(hints["full"].any())
        report = StepReport(logits, hints) if is_full else None
        errors = self._process(logits, rows, host_rows, batch, hints)
        largest, token_ids = logits.max(dim=-1)
        if hints["random"].any():
            index = to_index(hints["random"], logits.device)
            random = batch.select(index)
            tempered = temper(select(logits, index), select(largest, index), random)
            drawn = self._draw(tempered, random, hints[hints["random"]])
            token_ids = drawn if index is None else token_ids.index_copy(0, index, drawn)
        advance(self.state, rows, token_ids, batch, hints)
        finishes = _finishes(token_ids, largest, batch)
        if is_full:
            _keep_beams_going(finishes, batch)
        if self._custom is not None:
            errors |= self._custom.check(token_ids, finishes, rows, host_rows)
        if errors:
            failed = to_device(torch.tensor(list(errors)), finishes.device)
            finishes.index_fill_(0, failed, Finish.ERROR)
        words = None if report is None else report.finish(logits, token_ids)
        return Sampled(token_ids, finishes, words, errors)

    def distribution(self, logits: Tensor, rows: Tensor, host_rows: Sequence[int]) -> Tensor:
        """What `sample` would draw from, if it were called now: probabilities, float64 [n, vocab_size].

        Arguments as there, of rows that are all random; logits are processed. The tests' view of a step.
        """
        batch, hints = self.state.gather(rows), self.hints(host_rows)
        assert hints["random"].all()
        self._process(logits, rows, host_rows, batch, hints)
        blocks, masses = weigh(temper(logits, logits.amax(-1), batch), batch, hints)
        return blocks.flatten(1)[:, : self._vocab_size].double() / masses.sum(-1, keepdim=True)

    def _process(
        self, logits: Tensor, rows: Tensor, host_rows: Sequence[int], batch: RowBatch, hints: Hints
    ) -> dict[int, str]:
        """Errors of custom processors, by index."""
        if (hints["full"] | hints["bans"]).any():
            Processing(logits, self.state.tables, batch, hints, rows).run()
        return {} if self._custom is None else dict(self._custom.process(logits, rows, host_rows))

    def _draw(self, logits: Tensor, batch: RowBatch, hints: Hints) -> Tensor:
        """Token ids [n] of rows that are all random. logits: tempered, [n, vocab_size]."""
        blocks, masses = weigh(logits, batch, hints)
        return draw_tokens(blocks, masses, self._uniform(batch)).clamp_(max=self._vocab_size - 1)  # of NaN

    def _uniform(self, batch: RowBatch) -> Tensor:
        """[n] float64 in [0, 1)."""
        position = batch.words(Column.NUM_GENERATED)
        purpose = torch.full_like(position, Purpose.TOKEN)
        output_index = batch.words(Column.OUTPUT_INDEX)
        counter = torch.stack((position, purpose, output_index, torch.zeros_like(position)))
        key = torch.stack((batch.words(Column.SEED_LOW), batch.words(Column.SEED_HIGH)))
        return uniform(self._philox(counter, key))


def _finishes(token_ids: Tensor, largest: Tensor, batch: RowBatch) -> Tensor:
    """`Finish` codes, [n] int32, of rows that just made `token_ids`. ERROR beats STOP, which beats LENGTH."""
    is_last = batch.integers(Column.NUM_GENERATED) + 1 >= batch.integers(Column.MAX_NEW_TOKENS)
    finishes = is_last * torch.full_like(batch.integers(Column.TOP_K), Finish.LENGTH)
    finishes.masked_fill_((batch.stop_ids == token_ids.unsqueeze(1)).any(1), Finish.STOP)
    return finishes.masked_fill_(~largest.isfinite(), Finish.ERROR)


def _keep_beams_going(finishes: Tensor, batch: RowBatch) -> None:
    """Their search decides when they end, unless by an error."""
    is_beam = batch.integers(Column.FLAGS) & Flag.BEAM > 0
    finishes.masked_fill_(is_beam & (finishes != Finish.ERROR), Finish.NONE)
