"""Rows and samplers. Row i of `make_sampler` has the i-th parameters and output index i."""

from collections.abc import Callable, Sequence

import pytest
import torch

from engine.sampling.params import SamplingParams
from engine.sampling.sampler import Sampler
from scheduler.step import NewRow

EOS = 2


@pytest.fixture
def make_row() -> Callable[..., NewRow]:
    def make(
        row: int, sampling: SamplingParams, *, generated: int = 0, limit: int = 1 << 30, output_index: int = 0
    ) -> NewRow:
        return NewRow(row, 1, generated, 0, (), limit, sampling, output_index)

    return make


@pytest.fixture
def make_sampler(make_row: Callable[..., NewRow]) -> Callable[..., Sampler]:
    def make(params: Sequence[SamplingParams], vocab_size: int) -> Sampler:
        sampler = Sampler(len(params), vocab_size, 64, (EOS,), torch.device("cpu"))
        sampler.set_rows([make_row(row, sampling, output_index=row) for row, sampling in enumerate(params)])
        return sampler

    return make
