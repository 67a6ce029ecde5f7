"""The sampling kernels, compiled, against the torch sampler on the same GPU."""

import math

import pytest
import torch
from torch import Tensor

from engine.sampling.params import SamplingParams
from tests.engine.sampling.kernel_cases import DEVICE, UNWRITTEN, Pair, new_row

pytestmark = pytest.mark.gpu

NUM_ROWS = 256
SCALES = (0.3, 1.0, 3.0, 8.0)  # from nearly flat to nearly certain
MAX_DIFFERING = 1 / 2000  # of tokens: a draw, or a bound of top-p, within the rounding of a float32 sum


def params_of(row: int) -> SamplingParams:
    """Twelve kinds of row."""
    stop_token_ids = tuple(range(3, 3 + row % 64))
    kinds = [
        SamplingParams(),
        SamplingParams(temperature=1.0, seed=row),
        SamplingParams(temperature=0.8, top_k=50, top_p=0.95, seed=row),
        SamplingParams(temperature=0.9, top_p=0.95, seed=row),
        SamplingParams(temperature=2.0, min_p=0.01, seed=row),
        SamplingParams(temperature=1.2, top_k=3000, top_p=0.99, min_p=0.001, seed=2**63 + row),
        SamplingParams(temperature=1.0, top_p=0.9999, min_new_tokens=5, stop_token_ids=(7,), seed=row),
        SamplingParams(min_new_tokens=3, stop_token_ids=stop_token_ids),
        SamplingParams(temperature=1.0, top_k=800, seed=row),
        SamplingParams(temperature=0.7, top_p=0.3, min_p=0.05, seed=row),
        SamplingParams(temperature=1.0, top_k=50, min_new_tokens=9, stop_token_ids=stop_token_ids, seed=row),
        SamplingParams(temperature=5.0, top_k=1, seed=row),
    ]
    return kinds[row % len(kinds)]


def make_pair(vocab_size: int) -> Pair:
    pair = Pair(NUM_ROWS, vocab_size, NUM_ROWS + 3)
    pair.set_rows([new_row(row, params_of(row), limit=15, output_index=row % 5) for row in range(NUM_ROWS)])
    return pair


def random_logits(vocab_size: int, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator(DEVICE).manual_seed(seed)
    scales = torch.tensor(SCALES, device=DEVICE).repeat_interleave(NUM_ROWS // len(SCALES)).unsqueeze(1)
    logits = torch.randn(NUM_ROWS, vocab_size, generator=generator, device=DEVICE) * scales
    return logits.to(dtype)


@pytest.mark.parametrize(
    ("vocab_size", "dtype"),
    [(500, torch.float16), (32_000, torch.bfloat16), (128_256, torch.float32), (262_144, torch.bfloat16)],
)
def test_tokens_and_verdicts(vocab_size: int, dtype: torch.dtype) -> None:
    pair = make_pair(vocab_size)
    order = torch.randperm(NUM_ROWS, generator=torch.Generator().manual_seed(0)).tolist()
    num_differing, num_steps = 0, 24
    for seed in range(num_steps):
        logits = random_logits(vocab_size, dtype, seed)
        expected, actual = pair.step(logits, order, num_padding=3)
        differs = actual[0] != expected[0]
        num_differing += int(differs.sum())
        assert torch.equal(actual[1][~differs], expected[1][~differs])
        kinds = sorted({order[index] % 12 for index in differs.nonzero().flatten().tolist()})
        print(f"step {seed}: {int(differs.sum())} differ, of kinds {kinds}")
    assert num_differing <= num_steps * NUM_ROWS * MAX_DIFFERING


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bad_rows_end_alone(bad: float) -> None:
    vocab_size = 32_000
    pair = make_pair(vocab_size)
    logits = random_logits(vocab_size, torch.bfloat16, 0)
    logits[::3] = bad
    logits[1::3, 31_000] = bad
    expected, actual = pair.step(logits, range(NUM_ROWS))
    assert torch.equal(actual[1], expected[1])
    assert ((actual[0] >= 0) & (actual[0] < vocab_size)).all()
    differs = (actual[0] != expected[0]) & (expected[1] < 3)
    assert not differs.any()


def test_a_graph_replays_what_the_torch_sampler_draws() -> None:
    vocab_size = 32_000
    pair = make_pair(vocab_size)
    warm = make_pair(vocab_size)
    logits = random_logits(vocab_size, torch.bfloat16, 0)
    warm.step(logits, range(NUM_ROWS))  # compiles
    rows = torch.arange(NUM_ROWS, dtype=torch.int32, device=DEVICE)
    out = torch.full((2, NUM_ROWS), UNWRITTEN, dtype=torch.int32, device=DEVICE)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        pair.actual.sample(logits, rows, pair.last_token, out)
    num_differing = 0
    for seed in range(20):
        logits.copy_(random_logits(vocab_size, torch.bfloat16, seed))
        if seed % 5 == 4:
            replaced = [new_row(row, params_of(row + 1), limit=30) for row in range(0, NUM_ROWS, 7)]
            pair.set_rows(replaced)
        graph.replay()
        expected = pair.expect(logits, range(NUM_ROWS))
        num_differing += int((out[0] != expected[0]).sum())
        assert torch.equal(pair.last_token, out[0])
    assert num_differing <= 20 * NUM_ROWS * MAX_DIFFERING


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_a_step_never_waits_for_the_device() -> None:
    pair = make_pair(32_000)
    logits = random_logits(32_000, torch.bfloat16, 0)
    pair.step(logits, range(NUM_ROWS))
    rows = torch.arange(NUM_ROWS, dtype=torch.int32, device=DEVICE)
    out = torch.zeros(2, NUM_ROWS, dtype=torch.int32, device=DEVICE)
    torch.cuda.set_sync_debug_mode("error")
    try:
        pair.actual.set_rows([new_row(row, params_of(row)) for row in range(NUM_ROWS)])
        pair.actual.sample(logits, rows, pair.last_token, out)
    finally:
        torch.cuda.set_sync_debug_mode("default")
