"""Processors and criteria of the tests, each in a classic and a batched form, and a batch of rows to run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from engine.sampling.custom import (
    BatchedLogitsProcessor,
    BatchedStoppingCriteria,
    CustomRows,
    Limits,
    LogitsProcessor,
    Registry,
    RowContext,
    RowTokens,
    StoppingCriteria,
)
from engine.sampling.custom.builtin import register_builtin
from engine.sampling.hooks import CapturableRows
from engine.sampling.params import NamedSpec, SamplingParams
from engine.sampling.rows import RowState
from engine.sampling.sampler import Sampled, Sampler
from scheduler.step import NewRow

VOCAB = 50
NUM_ROWS = 6
MAX_LEN = 40
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Affine:
    """scores * scale + shift * (the last token's id + tokens generated): neither commutes with another."""

    scale: Annotated[float, Limits(minimum=-8, maximum=8)] = 1.0
    shift: Annotated[float, Limits(minimum=-8, maximum=8)] = 0.0


class ClassicAffine(LogitsProcessor):
    parameters: ClassVar[type] = Affine

    def __init__(self, parameters: Affine) -> None:
        self._parameters = parameters

    def __call__(self, step: int, input_ids: Tensor, scores: Tensor) -> Tensor:
        shift = self._parameters.shift * (int(input_ids[0, -1]) + step)
        return scores * self._parameters.scale + shift


class BatchedAffine(BatchedLogitsProcessor[Affine]):
    """The same."""

    parameters: ClassVar[type] = Affine
    is_capturable: ClassVar[bool] = True

    def allocate(self, context: RowContext) -> None:
        self._context = context
        self._state = torch.tensor([[1.0, 0.0]]).repeat(context.max_num_rows + 1, 1)

    def add(self, row: int, parameters: Affine, tokens: RowTokens) -> None:
        self._context.write(self._state, row, (parameters.scale, parameters.shift))

    def remove(self, row: int) -> None:
        self._context.write(self._state, row, (1.0, 0.0))

    def apply(self, logits: Tensor, rows: Tensor) -> None:
        scale, shift = self._state.index_select(0, rows).unsqueeze(2).unbind(1)
        last = self._context.last_tokens(rows, 1) + self._context.num_generated(rows).unsqueeze(1)
        logits.mul_(scale).add_(shift * last)


class SecondAffine(BatchedAffine):
    """Another name for it."""


class EagerAffine(BatchedAffine):
    """It again, which cannot be captured."""

    is_capturable: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class Multiple:
    """Holds where the newest token and the number of tokens make a multiple of this."""

    of: Annotated[int, Limits(minimum=1, maximum=1000)]


class ClassicMultiple(StoppingCriteria):
    parameters: ClassVar[type] = Multiple

    def __init__(self, parameters: Multiple) -> None:
        self._of = parameters.of

    def __call__(self, step: int, input_ids: Tensor, scores: Tensor) -> bool:
        assert input_ids.dtype == torch.int64
        assert scores.shape == (1, VOCAB)
        return (int(input_ids[0, -1]) + input_ids.shape[1] + step) % self._of == 0


class TensorMultiple(ClassicMultiple):
    """The same, answering as a tensor."""

    def __call__(self, step: int, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        return torch.tensor([super().__call__(step, input_ids, scores)])


class BatchedMultiple(BatchedStoppingCriteria[Multiple]):
    parameters: ClassVar[type] = Multiple
    is_capturable: ClassVar[bool] = True

    def allocate(self, context: RowContext) -> None:
        self._context = context
        self._of = torch.ones(context.max_num_rows + 1, dtype=torch.int64)  # of rows not added: always true

    def add(self, row: int, parameters: Multiple, tokens: RowTokens) -> None:
        self._of[row] = parameters.of

    def remove(self, row: int) -> None:
        self._of[row] = 1

    def check(self, token_ids: Tensor, rows: Tensor) -> Tensor:
        step = self._context.num_generated(rows) - 1
        sums = token_ids + self._context.num_tokens(rows) + step
        return sums % self._of.index_select(0, rows) == 0


class SecondMultiple(BatchedMultiple):
    """Another name for it."""


def make_registry() -> Registry:
    registry = Registry()
    register_builtin(registry)
    registry.add_logits_processor("classic", ClassicAffine)
    registry.add_logits_processor("batched", BatchedAffine)
    registry.add_logits_processor("second", SecondAffine)
    registry.add_logits_processor("eager", EagerAffine)
    registry.add_stopping_criterion("classic", ClassicMultiple)
    registry.add_stopping_criterion("tensor", TensorMultiple)
    registry.add_stopping_criterion("batched", BatchedMultiple)
    registry.add_stopping_criterion("second", SecondMultiple)
    return registry


def spec(name: str, **parameters: object) -> NamedSpec:
    return NamedSpec(name, parameters)


class Batch:
    """A real sampler whose rows have custom processors and criteria."""

    def __init__(self, registry: Registry | None = None, max_len: int = MAX_LEN) -> None:
        self.state = RowState(NUM_ROWS, VOCAB, max_len, (), CPU)
        self.custom = CustomRows(registry or make_registry(), self.state)
        hooks: CapturableRows = self.custom
        self.sampler = Sampler(NUM_ROWS, VOCAB, max_len, (), CPU, hooks, self.state)
        self.tokens: dict[int, list[int]] = {}

    def enter(
        self, row: int, params: SamplingParams, prompt: Sequence[int] = (1,), generated: Sequence[int] = ()
    ) -> None:
        token_ids = (*prompt, *generated)
        limit = params.max_new_tokens or 1000
        new_row = NewRow(row, len(prompt), len(generated), 0, (), limit, params, 0, token_ids)
        self.tokens[row] = list(token_ids)
        self.sampler.set_rows([new_row])

    def step(self, rows: Sequence[int], logits: Tensor) -> Sampled:
        sampled = self.sampler.sample(logits, torch.tensor(list(rows)), list(rows))
        for row, token_id in zip(rows, sampled.token_ids.tolist(), strict=True):
            self.tokens[row].append(token_id)
        return sampled

    def process(self, rows: Sequence[int], logits: Tensor) -> tuple[Tensor, Mapping[int, str]]:
        """What the processors alone make of it."""
        changed = logits.clone()
        return changed, self.custom.process(changed, torch.tensor(list(rows)), list(rows))


def random_logits(num_rows: int, seed: int) -> Tensor:
    return torch.randn((num_rows, VOCAB), generator=torch.Generator().manual_seed(seed))
