"""DeviceSampler.sample_processed and score, compiled, against torch on the same GPU."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from engine.sampling.logprobs import report_tokens
from engine.sampling.params import SamplingParams
from engine.sampling.report import REPORT_WIDTH, read_reports
from scheduler.step import NewRow
from tests.engine.sampling.kernel_cases import (
    DEVICE,
    UNWRITTEN,
    FullStep,
    Pair,
    Reports,
    bits_of,
    new_row,
)
from tests.engine.sampling.processed_cases import PARAMS, PROMPT, RaisesSeven, likely_logits

pytestmark = pytest.mark.gpu

NUM_ROWS = 8 * len(PARAMS)
MAX_DIFFERING = 1 / 1000  # of tokens, and of reports: what is within the rounding of a float32 sum
IS_BEAM = torch.tensor([params.beam is not None for params in PARAMS] * 8, device=DEVICE)


def make_pair(vocab_size: int, custom: RaisesSeven | None = None) -> Pair:
    pair = Pair(NUM_ROWS, vocab_size, NUM_ROWS + 3, custom=custom)
    pair.set_rows(rows_from(range(NUM_ROWS)))
    return pair


def rows_from(rows: Sequence[int]) -> list[NewRow]:
    return [
        new_row(row, PARAMS[row % len(PARAMS)], limit=30, output_index=row, token_ids=PROMPT[: 2 + row % 9])
        for row in rows
    ]


def num_differing(actual: Reports, expected: Reports) -> int:
    """Reports with other ids or values, beyond rounding."""
    count = 0
    for mine, other in zip(actual, expected, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None and other is not None:
            values, others = (torch.tensor([each.logprob, *each.logprobs]) for each in (mine, other))
            count += mine.token_ids != other.token_ids or not torch.allclose(values, others, atol=1e-4)
    return count


def align(pair: Pair) -> None:
    """Give both samplers the same state, where a token has differed."""
    source, target = pair.expected_state, pair.actual.state
    target.packed.copy_(source.packed)
    target.tables.seen.copy_(source.tables.seen)
    target.tables.seen_bits.copy_(bits_of(source.tables.seen))
    target.tables.history.copy_(source.tables.history)


def check_logits(step: FullStep) -> None:
    assert torch.equal(step.actual_processed[~IS_BEAM], step.expected_processed[~IS_BEAM])
    torch.testing.assert_close(
        step.actual_processed[IS_BEAM], step.expected_processed[IS_BEAM], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("vocab_size", "dtype"),
    [(500, torch.float16), (32_000, torch.float32), (128_256, torch.bfloat16), (262_144, torch.bfloat16)],
)
def test_every_kind_of_row(vocab_size: int, dtype: torch.dtype) -> None:
    pair = make_pair(vocab_size)
    tokens, reports, num_steps = 0, 0, 12
    for seed in range(num_steps):
        logits = likely_logits(NUM_ROWS, (0.3, 1.0, 3.0, 8.0)[seed % 4], dtype, seed, vocab_size)
        step = pair.full_step(logits, range(NUM_ROWS), num_padding=3)
        check_logits(step)
        differs = step.actual[0] != step.expected[0]
        assert torch.equal(step.actual[1][~differs], step.expected[1][~differs])
        tokens += int(differs.sum())
        same = (~differs).nonzero().flatten().tolist()
        reports += num_differing(
            [step.actual_reports[row] for row in same], [step.expected_reports[row] for row in same]
        )
        if tokens == 0:
            pair.assert_same_state()
        kinds = sorted({row % len(PARAMS) for row in differs.nonzero().flatten().tolist()})
        print(f"step {seed}: {int(differs.sum())} differ, of kinds {kinds}; {reports} reports up to now")
        align(pair)
    assert tokens <= num_steps * NUM_ROWS * MAX_DIFFERING
    assert reports <= num_steps * NUM_ROWS * MAX_DIFFERING


def test_a_graph_replays_all_that_rows_ask_for() -> None:
    vocab_size = 32_000
    pair = make_pair(vocab_size, RaisesSeven())
    logits = likely_logits(NUM_ROWS, 3.0, torch.bfloat16, 0, vocab_size)
    make_pair(vocab_size).full_step(logits, range(NUM_ROWS))  # compiles
    rows = torch.arange(NUM_ROWS, dtype=torch.int32, device=DEVICE)
    out = torch.full((2, NUM_ROWS), UNWRITTEN, dtype=torch.int32, device=DEVICE)
    report = torch.zeros(NUM_ROWS, REPORT_WIDTH, dtype=torch.int32, device=DEVICE)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        pair.actual.sample_processed(logits, rows, pair.last_token, out, report, RaisesSeven.on_device)
    differing, num_steps = 0, 12
    for seed in range(num_steps):
        logits.copy_(likely_logits(NUM_ROWS, 3.0, torch.bfloat16, seed, vocab_size))
        if seed % 5 == 4:
            pair.set_rows(rows_from(range(0, NUM_ROWS, 3)))
        graph.replay()
        sampled = pair.expected.sample(logits.float(), torch.arange(NUM_ROWS, device=DEVICE), range(NUM_ROWS))
        differs = out[0] != sampled.token_ids
        differing += int(differs.sum())
        assert torch.equal(out[1][~differs], sampled.finishes[~differs])
        assert sampled.report is not None
        counts = pair.actual.hints(range(NUM_ROWS))["num_reported"].tolist()
        assert report[torch.tensor(counts) < 0].eq(0).all()
        kept = (~differs).nonzero().flatten().tolist()
        mine, other = (
            read_reports(each.cpu().numpy()[kept], [counts[row] for row in kept])
            for each in (report, sampled.report)
        )
        differing += num_differing(mine, other)
        align(pair)
    assert differing <= num_steps * NUM_ROWS * MAX_DIFFERING


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(32_000, torch.float32), (128_256, torch.bfloat16), (262_144, torch.float16)]
)
def test_scores(vocab_size: int, dtype: torch.dtype) -> None:
    pair = Pair(1, vocab_size, 64)
    logits = likely_logits(64, 3.0, dtype, 1, vocab_size)
    logits[1] = 1.0  # all tokens tie
    token_ids = torch.randint(0, vocab_size, (64,), dtype=torch.int32, device=DEVICE)
    expected = report_tokens(logits.float().log_softmax(-1), token_ids.long(), 20)
    report = torch.zeros_like(expected)
    pair.actual.score(logits, token_ids, 20, report)
    mine, other = (read_reports(each.cpu().numpy(), [20] * 64) for each in (report, expected))
    assert num_differing(mine, other) == 0


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_a_step_never_waits_for_the_device() -> None:
    vocab_size = 32_000
    pair = make_pair(vocab_size)
    logits: Tensor = likely_logits(NUM_ROWS, 3.0, torch.bfloat16, 0, vocab_size)
    pair.full_step(logits, range(NUM_ROWS))
    rows = torch.arange(NUM_ROWS, dtype=torch.int32, device=DEVICE)
    out = torch.zeros(2, NUM_ROWS, dtype=torch.int32, device=DEVICE)
    report = torch.zeros(NUM_ROWS, REPORT_WIDTH, dtype=torch.int32, device=DEVICE)
    torch.cuda.set_sync_debug_mode("error")
    try:
        pair.actual.set_rows(rows_from(range(NUM_ROWS)))
        pair.actual.sample_processed(logits, rows, pair.last_token, out, report)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_long_histories_and_lists() -> None:
    """n-grams over many programs, biases and bad words as many as there may be."""
    history = tuple(torch.randint(0, 300, (20_000,), generator=torch.Generator().manual_seed(0)).tolist())
    params = [
        SamplingParams(no_repeat_ngram_size=2),
        SamplingParams(logit_bias=tuple((31 * index, (-1.0) ** index) for index in range(1024))),
        SamplingParams(bad_word_ids=tuple((*history[-3:], index) for index in range(256))),
    ]
    pair = Pair(3, 32_000, 3, max_model_len=32_768)
    pair.set_rows([new_row(row, each, token_ids=history) for row, each in enumerate(params)])
    step = pair.full_step(likely_logits(3, 3.0, torch.bfloat16, 0, 32_000), range(3))
    assert torch.equal(step.actual_processed, step.expected_processed)
    assert torch.equal(step.actual, step.expected)
    pair.assert_same_state()
