"""From what a request names to the stages of the row that it takes, and back."""

import logging

import torch

from engine.sampling.custom.classic import ClassicCall
from engine.sampling.custom.context import RowContext, RowTokens
from engine.sampling.custom.interfaces import BatchedLogitsProcessor
from engine.sampling.custom.registry import Kind, Registry
from engine.sampling.custom.stages import Occupant, Stage, allocate
from engine.sampling.params import NamedSpec, SamplingParams
from scheduler.step import NewRow

_log = logging.getLogger(__name__)

Batched = dict[Kind, dict[str, Stage]]


class Admission:
    """Makes objects of the classic kind, and adds rows to the batched ones. Nothing that these raise gets out
    but torch.AcceleratorError, which no row can survive.
    """

    def __init__(self, registry: Registry, context: RowContext) -> None:
        """Raises ConfigError for a plugin that cannot be set up."""
        self._registry = registry
        self._vocab_size = context.vocab_size
        self.batched: Batched = {kind: allocate(registry, kind, context) for kind in Kind}
        self._stuck: set[tuple[int, Stage]] = set()

    def enter(self, new_row: NewRow, params: SamplingParams) -> Occupant:
        occupant = Occupant(new_row.row)
        tokens = RowTokens(new_row.token_ids, new_row.num_prompt_tokens)
        for kind, specs, stages in (
            (Kind.PROCESSOR, params.logits_processors, occupant.processors),
            (Kind.CRITERION, params.stopping_criteria, occupant.criteria),
        ):
            for index, spec in enumerate(specs):
                if kind is Kind.PROCESSOR and self._is_idle(spec.name, params):
                    continue
                try:
                    stages.append(self._make(kind, index, spec, new_row.row, tokens))
                except torch.AcceleratorError:
                    raise
                except Exception as error:
                    occupant.fail(f"{kind.title} {spec.name!r}", error)
                    return occupant
        return occupant

    def leave(self, occupant: Occupant) -> None:
        for stage in (*occupant.processors, *occupant.criteria):
            self._remove(stage, occupant.row)

    def is_tainted(self, row: int) -> bool:
        """Something did not let go of the row, and may affect it in a CUDA graph."""
        return any(row == other for other, _ in self._stuck)

    def _make(self, kind: Kind, index: int, spec: NamedSpec, row: int, tokens: RowTokens) -> Stage:
        entry, parameters = self._registry.resolve(kind, index, spec, self._vocab_size)
        if not entry.is_batched:
            return Stage(entry.title, ClassicCall(entry.make(parameters), row, tokens))
        stage = self.batched[kind][spec.name]
        assert not isinstance(stage.work, ClassicCall)
        try:
            stage.work.add(row, parameters, tokens)
        except Exception:
            self._remove(stage, row)
            raise
        return stage

    def _remove(self, stage: Stage, row: int) -> None:
        if isinstance(stage.work, ClassicCall):
            return
        try:
            stage.work.remove(row)
            self._stuck.discard((row, stage))
        except torch.AcceleratorError:
            raise
        except Exception:
            _log.exception("%s: remove(%d) failed", stage.title, row)
            self._stuck.add((row, stage))

    def _is_idle(self, name: str, params: SamplingParams) -> bool:
        """A processor that cannot change which token is chosen, of an output where nothing else sees it."""
        stage = self.batched[Kind.PROCESSOR].get(name)
        if stage is None or params.is_random:
            return False
        assert isinstance(stage.work, BatchedLogitsProcessor)
        criteria = self.batched[Kind.CRITERION]
        return not stage.work.changes_argmax and all(
            spec.name in criteria for spec in params.stopping_criteria
        )
