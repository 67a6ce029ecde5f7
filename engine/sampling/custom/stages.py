"""What processes or checks rows: an object of one row, or one for all rows, made when the server starts."""

import logging
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.errors import ConfigError
from engine.sampling.custom.classic import ClassicCall
from engine.sampling.custom.context import RowContext
from engine.sampling.custom.interfaces import BatchedLogitsProcessor, BatchedStoppingCriteria
from engine.sampling.custom.registry import Entry, Kind, Registry
from scheduler.step import Finish

_log = logging.getLogger(__name__)

Work = ClassicCall | BatchedLogitsProcessor[object] | BatchedStoppingCriteria[object]


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """title: what messages call it. number: its place among the batched ones of its kind, -1 if classic."""

    title: str
    work: Work
    number: int = -1

    @property
    def is_capturable(self) -> bool:
        return not isinstance(self.work, ClassicCall) and self.work.is_capturable

    def process(self, logits: Tensor, rows: Tensor, history: Tensor) -> None:
        """logits: float32 [n, vocab_size], in place; n is 1 if classic. Raises what the work raises."""
        if isinstance(self.work, ClassicCall):
            self.work.process(logits, history)
            return
        assert isinstance(self.work, BatchedLogitsProcessor)
        result: object = self.work.apply(logits, rows)
        if result is not None:
            raise TypeError("apply() must change logits in place and return None")

    def check(self, token_ids: Tensor, rows: Tensor) -> Tensor:
        """bool [n]. Of a batched one. Raises what the work raises."""
        assert isinstance(self.work, BatchedStoppingCriteria)
        verdict: object = self.work.check(token_ids, rows)
        if not isinstance(verdict, Tensor) or verdict.dtype != torch.bool or verdict.shape != rows.shape:
            raise TypeError(f"check() must return a bool tensor of shape {list(rows.shape)}")
        return verdict


@dataclass(slots=True)
class Occupant:
    """The output that has a row. error: why it cannot go on; what it asked for is not called any more."""

    row: int
    processors: list[Stage] = field(default_factory=list)
    criteria: list[Stage] = field(default_factory=list)
    error: str | None = None

    @property
    def has_classic_criteria(self) -> bool:
        return any(isinstance(stage.work, ClassicCall) for stage in self.criteria)

    def fail(self, who: str, error: Exception) -> None:
        """who: what the message says has raised it."""
        _log.warning("%s failed, which ends a request", who, exc_info=error)
        self.error = f"{who}: {type(error).__name__}: {error}"

    @property
    def asks(self) -> bool:
        return bool(self.processors or self.criteria or self.error)

    @property
    def codes(self) -> dict[int, int]:
        """`Finish` codes of its batched criteria, by their numbers."""
        stages = enumerate(self.criteria)
        return {stage.number: Finish.CRITERION + index for index, stage in stages if stage.number >= 0}

    @property
    def fits_graph(self) -> bool:
        """Whether a graph, which applies processors in the order of their numbers, does what it asks for."""
        numbers = [stage.number for stage in self.processors]
        all_capturable = all(stage.is_capturable for stage in (*self.processors, *self.criteria))
        return self.error is None and all_capturable and numbers == sorted(numbers)


def allocate(registry: Registry, kind: Kind, context: RowContext) -> dict[str, Stage]:
    """The batched ones, ready, by name in the order of the registry.

    Raises ConfigError: one cannot be set up, or changes rows that it was never asked for.
    """
    entries = [entry for entry in registry.entries(kind) if entry.is_batched]
    return {entry.name: _allocate(entry, number, context) for number, entry in enumerate(entries)}


def _allocate(entry: Entry, number: int, context: RowContext) -> Stage:
    try:
        work = entry.make()
        work.allocate(context)
        stage = Stage(entry.title, work, number)
        _check_neutral(stage, context)
    except (torch.AcceleratorError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        words = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{entry.title} ({entry.source}) cannot be set up: {words}") from error
    return stage


def _check_neutral(stage: Stage, context: RowContext) -> None:
    """On a row and on the padding, neither of which was added."""
    rows = torch.tensor([0, context.max_num_rows], device=context.device)
    if isinstance(stage.work, BatchedStoppingCriteria):
        stage.check(torch.zeros_like(rows), rows)
        return
    logits = torch.linspace(-4, 4, 2 * context.vocab_size, device=context.device).reshape(2, -1)
    changed = logits.clone()
    stage.process(changed, rows, torch.empty(0))
    if not torch.equal(changed, logits):
        raise ValueError("apply() changes rows that were never added")
