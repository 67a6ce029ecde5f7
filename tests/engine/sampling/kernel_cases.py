"""The torch sampler and the kernels side by side, on the same rows and logits."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from engine.sampling.kernels import DeviceSampler, Tuning
from engine.sampling.params import SamplingParams
from engine.sampling.sampler import Sampler
from scheduler.step import NewRow

EOS = 2
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
UNWRITTEN = -7
MAX_MODEL_LEN = 64


class Step(NamedTuple):
    """Token ids and `Finish` codes, int32 [2, n] each."""

    expected: Tensor
    actual: Tensor


def new_row(
    row: int, params: SamplingParams, *, generated: int = 0, limit: int = 1 << 30, output_index: int = 0
) -> NewRow:
    return NewRow(row, 1, generated, 0, (), limit, params, output_index)


class Pair:
    """Both samplers. Of their num_rows rows, up to num_samples sample in a step."""

    def __init__(self, num_rows: int, vocab_size: int, num_samples: int, tuning: Tuning = Tuning()) -> None:  # noqa: B008
        self.expected = Sampler(num_rows, vocab_size, MAX_MODEL_LEN, (EOS,), DEVICE)
        self.actual = DeviceSampler(num_rows, vocab_size, MAX_MODEL_LEN, (EOS,), num_samples, DEVICE, tuning)
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
