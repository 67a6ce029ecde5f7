"""Rows in any state, and decode steps on them, without a scheduler."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from benchmarks.gpu_engine import Engine
from engine.sampling.params import SamplingParams
from kvcache.block_table import num_blocks_for
from scheduler.step import BlockIds, NewRow, PendingStep, StepInput

GREEDY = SamplingParams(ignore_eos=True)
_STEPS_IN_FLIGHT = 2
_NO_LIMIT = 1 << 30


def block_tables(engine: Engine, num_rows: int, num_tokens: int) -> list[BlockIds] | None:
    """Room for so many tokens in each row, in blocks from all over the pool. None: it is too small."""
    cache = engine.built.cache
    assert len(cache.groups) == 1, "a model without windows"
    num_blocks = num_blocks_for(num_tokens, cache.block_size)
    if num_rows * num_blocks > cache.num_blocks:
        return None
    ids = torch.randperm(cache.num_blocks)[: num_rows * num_blocks].view(num_rows, num_blocks)
    return [tuple(row) for row in ids.tolist()]


def new_rows(tables: Iterable[BlockIds], num_prompt_tokens: int, num_computed: int) -> tuple[NewRow, ...]:
    return tuple(
        NewRow(row, num_prompt_tokens, 0, num_computed, (table,), _NO_LIMIT, GREEDY, 0)
        for row, table in enumerate(tables)
    )


def decode_steps(rows: tuple[NewRow, ...], num_steps: int) -> Iterator[StepInput]:
    """The first one brings the rows."""
    ids = tuple(row.row for row in rows)
    for step_id in range(num_steps):
        new = rows if step_id == 0 else ()
        yield StepInput(step_id, decode_rows=ids, new_rows=new, num_tokens=len(ids))


@dataclass(frozen=True, slots=True)
class Ran:
    """Seconds. ends: when the tokens of each step were on the host. launches: of the host, a step."""

    started: float
    ends: list[float]
    launches: list[float]

    @property
    def seconds(self) -> float:
        return self.ends[-1] - self.started


def run_steps(engine: Engine, steps: Iterable[StepInput]) -> Ran:
    """Two in flight, as the loop has."""
    pending: deque[PendingStep] = deque()
    engine.stream.synchronize()
    ran = Ran(time.perf_counter(), [], [])
    for step in steps:
        if len(pending) == _STEPS_IN_FLIGHT:
            pending.popleft().result()
            ran.ends.append(time.perf_counter())
        started = time.perf_counter()
        pending.append(engine.runner.launch(step))
        ran.launches.append(time.perf_counter() - started)
    while pending:
        pending.popleft().result()
        ran.ends.append(time.perf_counter())
    return ran
