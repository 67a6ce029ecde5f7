"""Prefill: tokens/s of prompts in chunks of the token budget, beside the rate of matrix products."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from statistics import median

from benchmarks import gpu_peer as peer
from benchmarks.gpu_engine import Engine
from benchmarks.gpu_options import TOKEN_BUDGET
from benchmarks.gpu_reference import Reference, layer_products
from benchmarks.gpu_report import Aim, Report
from benchmarks.gpu_rows import block_tables, new_rows, run_steps
from scheduler.step import Chunk, NewRow, StepInput

PROMPTS = (512, 2048, 8192)
_PEER_PROMPT = 128
_NUM_RUNS = 5
_HEADER = (
    *("prompts", "budget", "steps", "ms", "tokens/s", "launch", "TFLOP/s", "of layers", "of 8192^3"),
    *("peer", "ratio"),
)


@dataclass(frozen=True, slots=True)
class Prefilled:
    """Seconds until the last token is on the host; launch: of the host, to enqueue all steps."""

    num_steps: int
    seconds: float
    launch: float


def measure_prefill(
    engine: Engine, reference: Reference, report: Report, peer_ms: Mapping[int, float]
) -> None:
    report.line(
        "TFLOP/s: of the weights' products alone, as a share of torch's rate for those of a layer, and"
    )
    report.line(f"for 8192^3. launch: milliseconds of the host for all steps. peer: {peer.NAME}, ms")
    largest = engine.routed.tokens.largest
    budgets = sorted({budget for budget in (TOKEN_BUDGET, 4096, largest) if budget <= largest})
    lengths = [(1, num_tokens, None) for num_tokens in PROMPTS]
    batches = [(batch, _PEER_PROMPT, peer_ms.get(batch)) for batch in peer.PREFILL_MS]
    rows = []
    for (num_prompts, num_tokens, milliseconds), budget in product((*lengths, *batches), budgets):
        if budget > max(num_prompts * num_tokens, TOKEN_BUDGET):
            continue  # as the next smaller one
        total = num_prompts * num_tokens
        case = partial(_prefill, engine, num_prompts, num_tokens, budget)
        prefilled = report.attempt(f"{num_prompts} x {num_tokens} tokens, budget {budget}", case)
        if prefilled is None:
            continue
        rate = _flops(engine, num_prompts, total) / prefilled.seconds
        share = rate / reference.layer_rate(min(total, budget))
        rows.append(
            [
                *(f"{num_prompts} x {num_tokens}", f"{budget}", f"{prefilled.num_steps}"),
                *(f"{prefilled.seconds * 1000:.2f}", f"{total / prefilled.seconds:,.0f}"),
                *(f"{prefilled.launch * 1000:.2f}", f"{rate / 1e12:.0f}"),
                *(f"{share:.1%}", f"{rate / reference.square:.1%}"),
                "-" if milliseconds is None else f"{milliseconds:.1f}",
                "-" if milliseconds is None else f"{prefilled.seconds * 1000 / milliseconds:.2f}",
            ]
        )
        if (num_prompts, num_tokens, budget) == (1, 2048, TOKEN_BUDGET):
            report.aims.append(
                Aim("prefill of 2048 tokens", share, peer.AIM_OF_PRODUCTS, "of layers' products", False)
            )
    report.table(_HEADER, rows)


def _prefill(engine: Engine, num_prompts: int, num_tokens: int, budget: int) -> Prefilled:
    """Medians, after a run that compiles what is missing."""
    config, rng = engine.model.config, random.Random(num_prompts)
    prompts = [tuple(rng.choices(range(config.vocab_size), k=num_tokens)) for _ in range(num_prompts)]
    tables = block_tables(engine, num_prompts, num_tokens + 1)
    assert tables is not None, "the pool holds the prompts"
    rows = new_rows(tables, num_tokens, 0)
    steps = list(_steps(prompts, rows, budget))
    runs = [run_steps(engine, steps) for _ in range(1 + _NUM_RUNS)][1:]
    seconds = median(ran.seconds for ran in runs)
    return Prefilled(len(steps), seconds, median(sum(ran.launches) for ran in runs))


def _steps(prompts: Sequence[tuple[int, ...]], rows: Sequence[NewRow], budget: int) -> Iterator[StepInput]:
    """Prompts in order, cut where a step is full."""
    chunks: list[Chunk] = []
    num_tokens = 0
    for row, prompt in enumerate(prompts):
        start = 0
        while start < len(prompt):
            end = min(len(prompt), start + budget - num_tokens)
            chunks.append(Chunk(row, start, prompt[start:end], samples=end == len(prompt)))
            num_tokens += end - start
            start = end
            if num_tokens == budget:
                yield _step(chunks, rows, num_tokens)
                chunks, num_tokens = [], 0
    if chunks:
        yield _step(chunks, rows, num_tokens)


def _step(chunks: list[Chunk], rows: Sequence[NewRow], num_tokens: int) -> StepInput:
    new = tuple(rows[chunk.row] for chunk in chunks if chunk.start == 0)
    return StepInput(0, chunks=tuple(chunks), new_rows=new, num_tokens=num_tokens)


def _flops(engine: Engine, num_samples: int, num_tokens: int) -> float:
    config = engine.model.config
    of_layer = sum(outputs * inputs for outputs, inputs in layer_products(config).values())
    head = num_samples * config.vocab_size * config.hidden_size
    return 2.0 * (num_tokens * of_layer * config.num_layers + head)
