"""The sampling kernels give the tokens and verdicts of the torch sampler: in Triton's interpreter, where
there is no GPU, with blocks so small that a small vocabulary takes every path.
"""

import math
from random import Random

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from engine.sampling.kernels import Tuning
from engine.sampling.params import MAX_STOP_TOKEN_IDS, SamplingParams
from scheduler.step import Finish
from tests.engine.sampling.kernel_cases import DEVICE, EOS, Pair, new_row

# The interpreter computes with numpy, which warns where a kernel rounds to infinity or spreads NaN.
pytestmark = pytest.mark.filterwarnings(
    "ignore:overflow encountered:RuntimeWarning", "ignore:invalid value encountered:RuntimeWarning"
)

VOCAB_SIZE = 300
SMALL = Tuning(block=8, chunk=8, tile=4, few=16, small=8)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@st.composite
def sampling_params(draw: st.DrawFn) -> SamplingParams:
    min_new_tokens = draw(st.integers(0, 3))
    stop_token_ids = tuple(draw(st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=4)))
    temperature = draw(st.sampled_from([0.0, 1e-300, 1e-3, 0.7, 1.0, 100.0]))
    restricted = temperature > 0
    return SamplingParams(
        temperature=temperature,
        top_k=draw(st.sampled_from([0, 0, 1, 2, 5, 30, 200, 299, 2**31 - 1])) if restricted else 0,
        top_p=draw(st.sampled_from([1.0, 1.0, 1e-6, 0.5, 0.9, 0.999])) if restricted else 1.0,
        min_p=draw(st.sampled_from([0.0, 0.0, 1e-3, 0.2, 1.0])) if restricted else 0.0,
        seed=draw(st.integers(0, 2**64 - 1)),
        min_new_tokens=min_new_tokens,
        stop_token_ids=stop_token_ids,
        ignore_eos=draw(st.booleans()),
    )


def random_logits(num_rows: int, scale: float, dtype: torch.dtype, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(num_rows, VOCAB_SIZE, generator=generator) * scale).to(dtype).to(DEVICE)


@settings(deadline=None, max_examples=4, phases=[Phase.explicit, Phase.generate])  # shrinking takes minutes
@given(
    st.lists(sampling_params(), min_size=2, max_size=5),
    st.sampled_from([0.0, 0.3, 3.0, 20.0]),
    st.sampled_from(DTYPES),
    st.sampled_from([SMALL, Tuning()]),
    st.randoms(use_true_random=False),
)
def test_mixed_rows_over_several_steps(
    params: list[SamplingParams], scale: float, dtype: torch.dtype, tuning: Tuning, random: Random
) -> None:
    num_rows = len(params)
    pair = Pair(num_rows + 2, VOCAB_SIZE, num_rows + 1, tuning)
    pair.set_rows([new_row(row + 2, each, limit=2, output_index=row % 3) for row, each in enumerate(params)])
    for seed in range(2):
        rows = random.sample(range(2, num_rows + 2), random.randint(1, num_rows))
        logits = random_logits(len(rows), scale, dtype, seed)
        expected, actual = pair.step(logits, rows, num_padding=random.randrange(2))
        assert torch.equal(actual, expected)


RANDOM = [
    SamplingParams(temperature=1.0, seed=1),
    SamplingParams(temperature=0.5, top_k=3, seed=2),
    SamplingParams(temperature=2.0, top_k=100, top_p=0.9, min_p=0.01, seed=2**64 - 1),
    SamplingParams(temperature=1.5, top_p=0.95, seed=4),
    SamplingParams(temperature=1.0, top_p=0.6, min_p=0.3, seed=5),
    SamplingParams(temperature=3.0, min_p=0.1, seed=2**32),
    SamplingParams(temperature=1.0, top_k=298, seed=7),
]


@pytest.mark.parametrize(("scale", "tuning"), [(0.1, SMALL), (3.0, SMALL), (0.1, Tuning()), (3.0, Tuning())])
def test_few_and_many_survivors(scale: float, tuning: Tuning) -> None:
    pair = Pair(len(RANDOM), VOCAB_SIZE, len(RANDOM), tuning)
    pair.set_rows([new_row(row, params) for row, params in enumerate(RANDOM)])
    expected, actual = pair.step(random_logits(len(RANDOM), scale, torch.float32, 0), range(len(RANDOM)))
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bad_rows_end_alone(bad: float) -> None:
    params = [SamplingParams(), RANDOM[0], RANDOM[2]]
    pair = Pair(9, VOCAB_SIZE, 9)
    pair.set_rows([new_row(row, params[row % 3]) for row in range(9)])
    logits = random_logits(9, 2.0, torch.float32, 0)
    logits[3:6] = bad
    logits[6:, 250] = bad
    expected, actual = pair.step(logits, range(9))
    assert torch.equal(actual[:, :3], expected[:, :3])
    assert actual[1].tolist() == expected[1].tolist()
    assert actual[1, 3:6].tolist() == [Finish.ERROR] * 3
    assert ((actual[0] >= 0) & (actual[0] < VOCAB_SIZE)).all()
    # What was wrong with the logits is forgotten, and the counters have gone on.
    expected, actual = pair.step(random_logits(9, 2.0, torch.float32, 1), range(9))
    assert torch.equal(actual, expected)


def test_ties_and_the_ends_of_the_vocabulary() -> None:
    params = [SamplingParams(), RANDOM[0], RANDOM[3]]
    pair = Pair(3, VOCAB_SIZE, 3, SMALL)
    pair.set_rows([new_row(row, each) for row, each in enumerate(params)])
    logits = torch.full((3, VOCAB_SIZE), -math.inf, device=DEVICE)
    logits[:, [7, 8, VOCAB_SIZE - 1]] = 1.0
    drawn = set()
    for _ in range(8):
        expected, actual = pair.step(logits, range(3))
        assert torch.equal(actual, expected)
        assert actual[0, 0] == 7
        drawn.update(actual[0, 1:].tolist())
    assert drawn == {7, 8, VOCAB_SIZE - 1}


def test_as_many_stop_ids_as_there_may_be_are_banned_then_stop() -> None:
    stop_token_ids = tuple(range(10, 10 + MAX_STOP_TOKEN_IDS))
    greedy = SamplingParams(stop_token_ids=stop_token_ids, min_new_tokens=2)
    hot = SamplingParams(temperature=1.0, seed=3, stop_token_ids=stop_token_ids, min_new_tokens=2)
    pair = Pair(4, VOCAB_SIZE, 4, SMALL)
    pair.set_rows([new_row(row, params) for row, params in enumerate([greedy, hot, greedy, hot])])
    logits = torch.zeros(4, VOCAB_SIZE, device=DEVICE)
    logits[:, [EOS, 10, 73]] = torch.tensor([20.0, 40.0, 30.0], device=DEVICE)
    logits[2:, 73] = 50.0
    for step in range(4):
        expected, actual = pair.step(logits, range(4))
        assert torch.equal(actual, expected)
        assert (actual[1] == (Finish.STOP if step >= 2 else Finish.NONE)).all()


def test_rows_are_replaced_and_resume() -> None:
    pair = Pair(3, VOCAB_SIZE, 3)
    pair.set_rows([new_row(row, RANDOM[0], limit=9) for row in range(3)])
    for seed in range(3):
        expected, actual = pair.step(random_logits(2, 1.0, torch.float32, seed), [2, 0])
        assert torch.equal(actual, expected)
        pair.set_rows([new_row(2, RANDOM[seed + 1], generated=8, limit=9, output_index=5)])
        pair.set_rows([])


def test_a_step_of_padding_writes_zeros() -> None:
    pair = Pair(2, VOCAB_SIZE, 3)
    logits = torch.full((3, VOCAB_SIZE), math.nan, device=DEVICE)
    out = torch.ones(2, 3, dtype=torch.int32, device=DEVICE)
    rows = torch.full((3,), -1, dtype=torch.int32, device=DEVICE)
    pair.actual.sample(logits, rows, pair.last_token, out)
    assert not out.any()
    assert (pair.last_token < 0).all()
