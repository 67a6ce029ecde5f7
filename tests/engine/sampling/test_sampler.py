import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.sampling.inverse_cdf import BLOCK_SIZE, draw_tokens, exp_in_blocks
from engine.sampling.params import MAX_STOP_TOKEN_IDS, SamplingParams
from engine.sampling.sampler import Sampler
from scheduler.step import Finish, NewRow

MakeRow = Callable[..., NewRow]
MakeSampler = Callable[..., Sampler]
CPU = torch.device("cpu")
EOS = 2

MIXED = [
    SamplingParams(),
    SamplingParams(temperature=1.0, seed=1),
    SamplingParams(temperature=1.5, top_k=30, seed=2),
    SamplingParams(temperature=0.9, top_p=0.95, seed=3),
    SamplingParams(temperature=2.0, min_p=0.01, seed=4),
    SamplingParams(temperature=1.2, top_k=3000, top_p=0.99, min_p=0.001, seed=2**63 + 5),
    SamplingParams(temperature=1.0, top_p=0.9999, min_new_tokens=5, stop_token_ids=(7,), seed=6),
    SamplingParams(min_new_tokens=3, stop_token_ids=(11, 13)),
]


def logits_of(row: int, position: int, vocab_size: int = 5000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * row + position)
    return torch.randn(vocab_size, generator=generator) * (1 + row % 3)


def run(sampler: Sampler, row: int, source: int, positions: range) -> list[tuple[int, int]]:
    """One row by itself, on the logits of the row `source` of the mixed batch."""
    results = []
    for position in positions:
        token_ids, finishes, *_ = sampler.sample(
            logits_of(source, position).unsqueeze(0), torch.tensor([row]), [row]
        )
        results.append((int(token_ids), int(finishes)))
    return results


@pytest.fixture(scope="module")
def together() -> list[list[tuple[int, int]]]:
    """Tokens and verdicts of the mixed batch, by row and step."""
    sampler = Sampler(len(MIXED), 5000, 64, (EOS,), CPU)
    sampler.set_rows([NewRow(row, 1, 0, 0, (), 8, params, row % 2) for row, params in enumerate(MIXED)])
    steps = []
    for position in range(8):
        logits = torch.stack([logits_of(row, position) for row in range(len(MIXED))])
        token_ids, finishes, *_ = sampler.sample(logits, torch.arange(len(MIXED)), range(len(MIXED)))
        steps.append(list(zip(token_ids.tolist(), finishes.tolist(), strict=True)))
    return [list(row) for row in zip(*steps, strict=True)]


@pytest.mark.parametrize("source", range(len(MIXED)))
def test_a_row_is_the_same_alone_and_on_another_row(
    source: int, together: list[list[tuple[int, int]]], make_row: MakeRow
) -> None:
    sampler = Sampler(20, 5000, 64, (EOS,), CPU)
    sampler.set_rows([make_row(17, MIXED[source], limit=8, output_index=source % 2)])
    assert run(sampler, 17, source, range(8)) == together[source]


@pytest.mark.parametrize("source", range(len(MIXED)))
def test_a_row_resumes_after_preemption(
    source: int, together: list[list[tuple[int, int]]], make_row: MakeRow
) -> None:
    sampler = Sampler(20, 5000, 64, (EOS,), CPU)
    sampler.set_rows([make_row(3, MIXED[source], limit=8, output_index=source % 2)])
    first = run(sampler, 3, source, range(4))
    sampler.set_rows(
        [
            make_row(3, SamplingParams(temperature=1.0, seed=99)),
            make_row(5, MIXED[source], generated=4, limit=8, output_index=source % 2),
        ]
    )
    assert first + run(sampler, 5, source, range(4, 8)) == together[source]


def test_the_order_of_rows_in_a_step_is_free(
    together: list[list[tuple[int, int]]], make_row: MakeRow
) -> None:
    sampler = Sampler(len(MIXED), 5000, 64, (EOS,), CPU)
    sampler.set_rows([make_row(row, params, output_index=row % 2) for row, params in enumerate(MIXED)])
    order = [5, 0, 7, 3, 1]
    token_ids, *_ = sampler.sample(
        torch.stack([logits_of(row, 0) for row in order]), torch.tensor(order), order
    )
    assert token_ids.tolist() == [together[row][0][0] for row in order]


def test_outputs_of_one_request_and_different_seeds_differ(make_row: MakeRow) -> None:
    sampler = Sampler(3, 5000, 64, (), CPU)
    params, other = SamplingParams(temperature=9.0, seed=1), SamplingParams(temperature=9.0, seed=1 + 2**32)
    sampler.set_rows([make_row(0, params), make_row(1, params, output_index=1), make_row(2, other)])
    token_ids, *_ = sampler.sample(torch.zeros(3, 5000), torch.arange(3), range(3))
    assert len(set(token_ids.tolist())) == 3


def test_greedy_takes_the_largest_whatever_restricts_it(make_sampler: MakeSampler) -> None:
    params = [
        SamplingParams(),
        SamplingParams(top_k=1),
        SamplingParams(temperature=5.0, top_k=1, seed=0),
        SamplingParams(temperature=1e-300, seed=0),
        SamplingParams(temperature=1e-6, seed=0),
        SamplingParams(temperature=100.0, top_p=1e-300, seed=0),
        SamplingParams(temperature=100.0, min_p=1.0, seed=0),
    ]
    logits = torch.stack([logits_of(row, 0) for row in range(len(params))])
    sampler = make_sampler(params, 5000)
    token_ids, *_ = sampler.sample(logits.clone(), torch.arange(len(params)), range(len(params)))
    assert torch.equal(token_ids, logits.argmax(-1))


def choose(sampler: Sampler, token_id: int, row: int = 0) -> Finish:
    """Force a token by its logit; the verdict."""
    logits = torch.zeros(1, 100)
    logits[0, token_id] = 50.0
    token_ids, finishes, *_ = sampler.sample(logits, torch.tensor([row]), [row])
    assert token_ids.tolist() == [token_id]
    return Finish(int(finishes))


@pytest.mark.parametrize(
    ("params", "token_id", "finish"),
    [
        (SamplingParams(), EOS, Finish.STOP),
        (SamplingParams(), 5, Finish.NONE),
        (SamplingParams(ignore_eos=True), EOS, Finish.NONE),
        (SamplingParams(ignore_eos=True, stop_token_ids=(EOS,)), EOS, Finish.STOP),
        (SamplingParams(stop_token_ids=(0, 99)), 0, Finish.STOP),
        (SamplingParams(stop_token_ids=(0, 99)), 99, Finish.STOP),
        (SamplingParams(stop_token_ids=tuple(range(10, 10 + MAX_STOP_TOKEN_IDS))), 73, Finish.STOP),
        (SamplingParams(temperature=0.5, seed=0, stop_token_ids=(8,)), 8, Finish.STOP),
    ],
)
def test_stop_ids(params: SamplingParams, token_id: int, finish: Finish, make_sampler: MakeSampler) -> None:
    assert choose(make_sampler([params], 100), token_id) is finish


def test_length_comes_with_the_last_allowed_token_and_stop_wins_over_it(make_row: MakeRow) -> None:
    sampler = Sampler(2, 100, 64, (EOS,), CPU)
    sampler.set_rows(
        [make_row(0, SamplingParams(), limit=3), make_row(1, SamplingParams(), generated=4, limit=5)]
    )
    assert [choose(sampler, 5) for _ in range(3)] == [Finish.NONE, Finish.NONE, Finish.LENGTH]
    assert choose(sampler, EOS, row=1) is Finish.STOP


def test_min_new_tokens_bans_stops_until_it_is_reached(make_row: MakeRow) -> None:
    params = SamplingParams(min_new_tokens=2, stop_token_ids=(0, 7))
    sampler = Sampler(3, 10, 64, (EOS,), CPU)
    free = SamplingParams(ignore_eos=True, min_new_tokens=2)
    sampler.set_rows([make_row(0, params), make_row(1, free), make_row(2, params, generated=1)])
    logits = torch.zeros(3, 10)
    logits[:, [0, 7, EOS, 4]] = torch.tensor([9.0, 8.0, 7.0, 6.0])
    steps = [sampler.sample(logits.clone(), torch.arange(3), range(3))[0].tolist() for _ in range(3)]
    assert steps == [[4, 0, 4], [4, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("params", MIXED)
@pytest.mark.parametrize("bad", ["nan", "one nan", "inf", "-inf"])
def test_a_bad_row_ends_alone(params: SamplingParams, bad: str, make_sampler: MakeSampler) -> None:
    good = torch.stack([logits_of(row, 0) for row in range(3)])
    broken = good.clone()
    broken[1] = torch.full_like(broken[1], float(bad.split()[-1])) if bad != "one nan" else broken[1]
    if bad == "one nan":
        broken[1, 4000] = math.nan
    rows = torch.arange(3)
    expected, *_ = make_sampler([params] * 3, 5000).sample(good, rows, range(3))
    token_ids, finishes, *_ = make_sampler([params] * 3, 5000).sample(broken, rows, range(3))
    assert finishes.tolist() == [Finish.NONE, Finish.ERROR, Finish.NONE]
    assert token_ids[[0, 2]].equal(expected[[0, 2]])
    assert 0 <= int(token_ids[1]) < 5000


def test_one_plus_infinity_is_an_error_too(make_sampler: MakeSampler) -> None:
    logits = torch.zeros(1, 100)
    logits[0, 3] = math.inf
    _, finishes, *_ = make_sampler([SamplingParams()], 100).sample(logits, torch.tensor([0]), [0])
    assert finishes.tolist() == [Finish.ERROR]


def test_a_random_row_without_a_seed_is_our_bug(make_sampler: MakeSampler) -> None:
    with pytest.raises(AssertionError, match="with_seed"):
        make_sampler([SamplingParams(temperature=1.0)], 10)


def test_dtypes_and_an_empty_step(make_sampler: MakeSampler) -> None:
    sampler = make_sampler([SamplingParams()], 10)
    token_ids, finishes, *_ = sampler.sample(torch.zeros(0, 10), torch.zeros(0, dtype=torch.int64), [])
    assert token_ids.dtype == torch.int64
    assert finishes.dtype == torch.int32
    assert len(token_ids) == len(finishes) == 0


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 1e-30, 1e-8, 0.3, 1.0]), min_size=1, max_size=2 * BLOCK_SIZE + 1),
    st.sampled_from([0.0, 2.0**-53, 0.25, 0.5, 1 - 2.0**-53]),
)
def test_tokens_of_weight_zero_are_never_drawn(weights: list[float], fraction: float) -> None:
    weights[len(weights) // 2] = 1.0
    blocks, _ = exp_in_blocks(torch.tensor([weights]).log())
    masses = blocks.sum(-1).double()
    token_id = int(draw_tokens(blocks, masses, torch.tensor([fraction], dtype=torch.float64)))
    assert weights[token_id] > 0


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_a_step_on_a_gpu_never_waits_and_draws_what_the_cpu_draws(make_row: MakeRow) -> None:
    new_rows = [make_row(row, params) for row, params in enumerate(MIXED)]
    logits = torch.stack([logits_of(row, 0) for row in range(len(MIXED))])
    rows = torch.arange(len(MIXED))
    results = []
    for device in (CPU, torch.device("cuda")):
        sampler = Sampler(len(MIXED), 5000, 64, (EOS,), device)
        sampler.set_rows(new_rows)
        there, rows_there = logits.to(device), rows.to(device)
        torch.cuda.set_sync_debug_mode("error")
        try:
            token_ids, *_ = sampler.sample(there, rows_there, range(len(MIXED)))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        results.append(token_ids.tolist())
    assert results[0] == results[1]
