"""The torch sampler and the kernels side by side, on the same rows and logits."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.sampling.hooks import CustomRows
from engine.sampling.kernels import Custom, DeviceSampler, Tuning
from engine.sampling.params import SamplingParams
from engine.sampling.report import REPORT_WIDTH, read_reports
from engine.sampling.rows import Flag, RowState
from engine.sampling.sampler import Sampler
from engine.sampling.tables import pack_bits
from scheduler.step import NewRow, TokenLogprobs

EOS = 2
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
UNWRITTEN = -7
MAX_MODEL_LEN = 64


Reports = list[TokenLogprobs | None]


class Step(NamedTuple):
    """Token ids and `Finish` codes, int32 [2, n] each."""

    expected: Tensor
    actual: Tensor


def new_row(
    row: int,
    params: SamplingParams,
    *,
    generated: int = 0,
    limit: int = 1 << 30,
    output_index: int = 0,
    token_ids: tuple[int, ...] = (),
) -> NewRow:
    """token_ids: a prompt of at least one token, and `generated` more; or none, where nothing looks at
    them.
    """
    num_prompt = max(1, len(token_ids) - generated)
    return NewRow(row, num_prompt, generated, 0, (), limit, params, output_index, token_ids)


class FullStep(NamedTuple):
    """Token ids and `Finish` codes, int32 [2, n]; reports; and processed logits, float32 [n, vocab_size],
    those of rows that have none being zeros.
    """

    expected: Tensor
    actual: Tensor
    expected_reports: Reports
    actual_reports: Reports
    expected_processed: Tensor
    actual_processed: Tensor


class Pair:
    """Both samplers. Of their num_rows rows, up to num_samples sample in a step."""

    def __init__(
        self,
        num_rows: int,
        vocab_size: int,
        num_samples: int,
        tuning: Tuning = Tuning(),  # noqa: B008
        custom: CustomRows | None = None,
        max_model_len: int = MAX_MODEL_LEN,
    ) -> None:
        self.expected_state = RowState(num_rows, vocab_size, max_model_len, (EOS,), DEVICE)
        self.expected = Sampler(
            num_rows, vocab_size, max_model_len, (EOS,), DEVICE, custom, self.expected_state
        )
        self.actual = DeviceSampler(num_rows, vocab_size, max_model_len, (EOS,), num_samples, DEVICE, tuning)
        self.last_token = torch.full((num_rows,), UNWRITTEN, dtype=torch.int32, device=DEVICE)

    def set_rows(self, new_rows: Sequence[NewRow]) -> None:
        self.expected.set_rows(new_rows)
        self.actual.set_rows(new_rows)

    def expect(self, logits: Tensor, rows: Sequence[int]) -> Tensor:
        index = torch.tensor(list(rows), device=DEVICE)
        sampled = self.expected.sample(logits.float().clone(), index, rows)
        return torch.stack((sampled.token_ids.int(), sampled.finishes))

    def step(self, logits: Tensor, rows: Sequence[int], num_padding: int = 0) -> Step:
        """logits: [len(rows), vocab_size]. Checks what is true of any step, but not that the tokens agree."""
        expected = self.expect(logits, rows)
        padded = torch.cat((logits, logits.new_full((num_padding, logits.shape[1]), torch.nan)))
        unchanged = padded.clone()
        out = torch.full((2, len(padded)), UNWRITTEN, dtype=torch.int32, device=DEVICE)
        padded_rows = torch.tensor([*rows, *[-1] * num_padding], dtype=torch.int32, device=DEVICE)
        before = self.last_token.clone()
        self.actual.sample(padded, padded_rows, self.last_token, out)
        assert torch.equal(padded.nan_to_num(), unchanged.nan_to_num())
        assert not out[:, len(rows) :].any()
        before[list(rows)] = out[0, : len(rows)]
        assert torch.equal(self.last_token, before)
        return Step(expected, out[:, : len(rows)])

    def full_step(
        self, logits: Tensor, rows: Sequence[int], num_padding: int = 0, custom: Custom | None = None
    ) -> FullStep:
        """`step`, by DeviceSampler.sample_processed. custom: what the torch sampler's rows have as well."""
        index = torch.tensor(list(rows), device=DEVICE)
        expected_processed = logits.float().clone()
        sampled = self.expected.sample(expected_processed, index, rows)
        padded = torch.cat((logits, logits.new_full((num_padding, logits.shape[1]), torch.nan)))
        unchanged = padded.clone()
        out = torch.full((2, len(padded)), UNWRITTEN, dtype=torch.int32, device=DEVICE)
        report = torch.full((len(padded), REPORT_WIDTH), UNWRITTEN, dtype=torch.int32, device=DEVICE)
        padded_rows = torch.tensor([*rows, *[-1] * num_padding], dtype=torch.int32, device=DEVICE)
        self.actual.sample_processed(padded, padded_rows, self.last_token, out, report, custom)
        assert torch.equal(padded.nan_to_num(), unchanged.nan_to_num())
        assert not out[:, len(rows) :].any()
        assert torch.equal(self.last_token[index], out[0, : len(rows)])
        hints = self.actual.hints(rows)
        num_reported = hints["num_reported"].tolist()
        reports_nothing = torch.tensor(
            [count < 0 for count in num_reported] + [True] * num_padding, device=DEVICE
        )
        assert (report[reports_nothing] == UNWRITTEN).all()
        changes = torch.from_numpy(hints["flags"] & Flag.CHANGES > 0).to(DEVICE).unsqueeze(1)
        return FullStep(
            torch.stack((sampled.token_ids.int(), sampled.finishes)),
            out[:, : len(rows)],
            _reports(sampled.report, num_reported),
            _reports(report, num_reported),
            expected_processed.where(changes, 0),
            self.actual.processed(len(rows)).where(changes, 0),
        )

    def assert_same_state(self) -> None:
        """Counters, top_p, counts and histories, bit for bit."""
        expected, actual = self.expected_state, self.actual.state
        assert torch.equal(actual.packed, expected.packed)
        assert torch.equal(actual.tables.seen, expected.tables.seen)
        assert torch.equal(actual.tables.seen_bits.cpu(), bits_of(actual.tables.seen))
        assert torch.equal(actual.tables.history, expected.tables.history)


def bits_of(seen: Tensor) -> Tensor:
    """RowTables.seen_bits, of RowTables.seen."""
    return torch.from_numpy(np.stack([pack_bits(row != 0) for row in seen.cpu().numpy()]))


def _reports(report: Tensor | None, num_reported: list[int]) -> Reports:
    if report is None:
        return [None] * len(num_reported)
    return read_reports(report[: len(num_reported)].cpu().numpy(), num_reported)


def assert_same_reports(actual: Reports, expected: Reports) -> None:
    """The same ids; values within rounding."""
    for mine, other in zip(actual, expected, strict=True):
        assert (mine is None) == (other is None)
        if mine is None or other is None:
            continue
        assert mine.token_ids == other.token_ids
        assert mine.logprob == pytest.approx(other.logprob, abs=2e-5)
        assert mine.logprobs == pytest.approx(other.logprobs, abs=2e-5)
