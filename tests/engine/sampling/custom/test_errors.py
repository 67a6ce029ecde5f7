"""What plugins do wrong ends the requests that named them, and no other."""

import math
from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from engine.errors import ConfigError
from engine.sampling.custom import BatchedLogitsProcessor, BatchedStoppingCriteria, Registry, RowTokens
from engine.sampling.params import SamplingParams
from scheduler.step import Finish
from tests.engine.sampling.custom.support import (
    VOCAB,
    Affine,
    Batch,
    BatchedAffine,
    BatchedMultiple,
    Multiple,
    make_registry,
    random_logits,
    spec,
)

Process = Callable[[int, Tensor, Tensor], object]


def fail(*_: object) -> Tensor:
    raise RuntimeError("no such luck")


WRONG_SCORES: dict[str, tuple[Process, str]] = {
    "raises": (fail, "RuntimeError: no such luck"),
    "none": (lambda step, ids, scores: None, "TypeError: must return the scores, not NoneType"),
    "shape": (lambda step, ids, scores: scores[0], "must return scores like those it got"),
    "dtype": (lambda step, ids, scores: scores.double(), "must return scores like those it got"),
    "nan": (lambda step, ids, scores: scores * math.nan, "ValueError: returned NaN"),
    "-inf": (lambda step, ids, scores: scores.fill_(-math.inf), "nothing above -inf"),
}
WRONG_VERDICTS: dict[str, tuple[Process, str]] = {
    "raises": (fail, "RuntimeError: no such luck"),
    "none": (lambda step, ids, scores: None, "must return a bool"),
    "integer": (lambda step, ids, scores: 1, "must return a bool"),
    "many": (lambda step, ids, scores: torch.ones(2, dtype=torch.bool), "must return a bool"),
}


class FailingAdd(BatchedAffine):
    def add(self, row: int, parameters: Affine, tokens: RowTokens) -> None:
        super().add(row, parameters, tokens)
        raise RuntimeError("add failed")


class FailingApply(BatchedAffine):
    def apply(self, logits: Tensor, rows: Tensor) -> None:
        if self._state.index_select(0, rows)[:, 0].ne(1).any():  # someone asked
            logits.zero_()
            raise RuntimeError("apply failed")


class FailingRemove(BatchedAffine):
    def remove(self, row: int) -> None:
        raise RuntimeError("remove failed")


class FailingCheck(BatchedMultiple):
    def check(self, token_ids: Tensor, rows: Tensor) -> Tensor:
        if self._of.index_select(0, rows).ne(1).any():
            return token_ids
        return super().check(token_ids, rows)


def run_beside_others(registry: Registry, params: SamplingParams) -> str:
    """One row with these, among three that are well. Its message."""
    batch, alone = Batch(registry), Batch()
    well = SamplingParams(
        logits_processors=(spec("classic", scale=2.0), spec("batched", shift=1.0)),
        stopping_criteria=(spec("classic", of=1),),
    )
    others = [0, 1, 3]
    for row in others:
        batch.enter(row, well if row else SamplingParams())
        alone.enter(row, well if row else SamplingParams())
    batch.enter(2, params)
    for seed in range(2):
        logits, same = random_logits(4, seed), random_logits(4, seed)[others]
        sampled, expected = batch.step([0, 1, 2, 3], logits), alone.step(others, same)
        assert torch.equal(logits[others], same)
        assert sampled.token_ids[others].tolist() == expected.token_ids.tolist()
        assert sampled.finishes[others].tolist() == expected.finishes.tolist() == [0, 16, 16]
        assert sampled.finishes[2] == Finish.ERROR
        assert list(sampled.errors) == [2]
        assert batch.custom.needs_eager([2])
    message = sampled.errors[2]
    batch.enter(2, well)
    assert batch.step([2], random_logits(1, 0)).errors == {}
    return message


@pytest.mark.parametrize("case", WRONG_SCORES)
def test_a_classic_processor_fails_alone(case: str) -> None:
    work, words = WRONG_SCORES[case]
    registry = make_registry()
    registry.add_logits_processor("wrong", lambda parameters: work)  # type: ignore[arg-type, return-value]
    message = run_beside_others(registry, SamplingParams(logits_processors=(spec("classic"), spec("wrong"))))
    assert message.startswith("logits processor 'wrong': ")
    assert words in message


@pytest.mark.parametrize("case", WRONG_VERDICTS)
def test_a_classic_criterion_fails_alone(case: str) -> None:
    work, words = WRONG_VERDICTS[case]
    registry = make_registry()
    registry.add_stopping_criterion("wrong", lambda parameters: work)  # type: ignore[arg-type, return-value]
    message = run_beside_others(registry, SamplingParams(stopping_criteria=(spec("wrong"),)))
    assert message.startswith("stopping criterion 'wrong': ")
    assert words in message


@pytest.mark.parametrize("factory", [fail, lambda parameters: 5])
def test_a_factory_fails_alone(factory: Callable[[object], object]) -> None:
    registry = make_registry()
    registry.add_logits_processor("wrong", factory)  # type: ignore[arg-type]
    message = run_beside_others(registry, SamplingParams(logits_processors=(spec("batched"), spec("wrong"))))
    assert "no such luck" in message or "must make something callable, not int" in message


@pytest.mark.parametrize("maker", [FailingAdd, FailingApply])
def test_a_batched_processor_fails_alone(maker: type[BatchedLogitsProcessor[Affine]]) -> None:
    registry = make_registry()
    registry.add_logits_processor("wrong", maker)
    message = run_beside_others(registry, SamplingParams(logits_processors=(spec("wrong", scale=3.0),)))
    assert message.startswith("logits processor 'wrong': RuntimeError: a")


def test_a_batched_criterion_fails_alone() -> None:
    registry = make_registry()
    registry.add_stopping_criterion("wrong", FailingCheck)
    message = run_beside_others(registry, SamplingParams(stopping_criteria=(spec("wrong", of=2),)))
    assert message == "stopping criterion 'wrong': TypeError: check() must return a bool tensor of shape [1]"


def test_parameters_that_intake_should_have_refused_fail_alone() -> None:
    params = SamplingParams(logits_processors=(spec("batched", scale=99.0),))
    message = run_beside_others(make_registry(), params)
    assert "logits_processors[0].parameters.scale=99.0: must be at most 8" in message


def test_a_row_that_is_not_let_go_of_runs_without_a_graph() -> None:
    registry = make_registry()
    registry.add_logits_processor("wrong", FailingRemove)
    batch = Batch(registry)
    batch.enter(0, SamplingParams(logits_processors=(spec("wrong", scale=3.0),)))
    assert not batch.custom.needs_eager([0])
    batch.enter(0, SamplingParams())
    assert batch.custom.needs_eager([0])
    logits, errors = batch.process([0], torch.ones(1, VOCAB))
    assert torch.equal(logits, torch.ones(1, VOCAB))
    assert errors == {}


def test_what_add_left_behind_is_removed() -> None:
    registry = make_registry()
    registry.add_logits_processor("wrong", FailingAdd)
    batch = Batch(registry)
    batch.enter(0, SamplingParams(logits_processors=(spec("wrong", scale=3.0),)))
    logits = torch.ones(1, VOCAB)
    batch.custom.process_captured(logits, torch.tensor([0]))
    assert torch.equal(logits, torch.ones(1, VOCAB))


def test_the_device_failing_fails_everything() -> None:
    def lost(*_: object) -> Tensor:
        raise torch.AcceleratorError("unspecified launch failure")

    registry = make_registry()
    registry.add_logits_processor("lost", lambda parameters: lost)  # type: ignore[arg-type, return-value]
    batch = Batch(registry)
    batch.enter(0, SamplingParams(logits_processors=(spec("lost"),)))
    with pytest.raises(torch.AcceleratorError):
        batch.step([0], random_logits(1, 0))


class AllRows(BatchedAffine):
    def apply(self, logits: Tensor, rows: Tensor) -> None:
        logits += 1


class Returning(BatchedAffine):
    def apply(self, logits: Tensor, rows: Tensor) -> None:
        return logits  # type: ignore[return-value]


class Unready(BatchedAffine):
    def allocate(self, context: object) -> None:
        raise OSError("no table")


class Integers(BatchedStoppingCriteria[Multiple]):
    parameters: ClassVar[type] = Multiple

    def allocate(self, context: object) -> None: ...

    def add(self, row: int, parameters: Multiple, tokens: RowTokens) -> None: ...

    def remove(self, row: int) -> None: ...

    def check(self, token_ids: Tensor, rows: Tensor) -> Tensor:
        return token_ids


@pytest.mark.parametrize(
    ("maker", "words"),
    [
        (AllRows, "changes rows that were never added"),
        (Returning, "in place and return None"),
        (Unready, "OSError: no table"),
        (Integers, "must return a bool tensor"),
    ],
)
def test_what_cannot_be_set_up_is_told_at_the_start(maker: type, words: str) -> None:
    registry = make_registry()
    add = registry.add_stopping_criterion if maker is Integers else registry.add_logits_processor
    add("wrong", maker)
    with pytest.raises(ConfigError, match=words) as raised:
        Batch(registry)
    assert f"{maker.__module__}.{maker.__qualname__}" in str(raised.value)
