"""Grammars of the rows of a batch: which tokens each allows next. On the host, where grammars are."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.sampling.params import SamplingParams
from engine.sampling.tables import mask_of, num_mask_words
from kvcache.storage import to_device
from scheduler.step import Finish, NewRow, StepOutput

Masks = npt.NDArray[np.int32]
_MAX_NUM_THREADS = 4  # with 16, waking them took longer than the masks of 64 rows (H200 machine)


class Executor(Protocol):
    """Many guides of one kind of grammar at once (guided.executor.GuideExecutor)."""

    def advance(self, tokens: Sequence[tuple[Any, int]]) -> Mapping[int, Exception]:
        """Each guide by a token. Returns the errors of those that cannot go on, by index."""
        ...

    def fill(self, guides: Mapping[int, Any], masks: Masks) -> Mapping[int, Exception]:
        """guides: by row of masks, int32 [rows, words]: bit i % 32 of word i // 32 becomes 1 where token
        i may follow. Returns errors likewise, by row.
        """
        ...


class Grammar(Protocol):
    """What a request's text has to match (guided.grammar.Grammar)."""

    def start(self, token_ids: Sequence[int]) -> object:
        """A guide: where one output stands that has these tokens already. Raises if they do not match."""
        ...

    def make_executor(self, num_threads: int) -> Executor:
        """For guides of all grammars of this kind."""
        ...


class _GuidedRow:
    """allowed: further restriction, a mask. error: why the row cannot go on."""

    def __init__(self, kind: type, allowed: Masks | None, start: Callable[[], object]) -> None:
        self.kind = kind
        self.allowed = allowed
        self.guide: object = None
        self.error: str | None = None
        try:
            self.guide = start()
        except Exception as error:  # a grammar that fails, however it does, fails its own request
            self.fail(error)

    def fail(self, error: Exception) -> None:
        self.error = f"guided decoding: {error}"


class GuidedSample(NamedTuple):
    """One of the rows that sample in a step: its place among them, its number, and its grammar."""

    place: int
    row: int
    guided: _GuidedRow


class GuidedRows:
    """The host's part of guided decoding. A step's masks can be filled once the last step's tokens are known,
    so between the two lies what the model computes, which needs no mask.

    start() -> fill() -> (sampling) -> take(): in this order for each step, steps one after the other.
    """

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._rows: dict[int, _GuidedRow] = {}
        self._executors: dict[type, Executor] = {}  # made with the first grammar of a kind

    def set_rows(self, new_rows: Iterable[NewRow]) -> None:
        """Replace rows. One that resumes goes on behind what it has generated."""
        for new_row in new_rows:
            params = new_row.sampling
            self._rows.pop(new_row.row, None)
            if isinstance(params, SamplingParams) and params.grammar is not None:
                self._rows[new_row.row] = self._start(new_row, params)

    def start(self, host_rows: Sequence[int]) -> list[GuidedSample]:
        """Those of the rows that sample which have a grammar."""
        if not self._rows:
            return []
        found = ((place, row, self._rows.get(row)) for place, row in enumerate(host_rows))
        return [GuidedSample(place, row, guided) for place, row, guided in found if guided is not None]

    def fill(self, samples: Sequence[GuidedSample]) -> Masks:
        """What each may sample, int32 [len(samples), words]."""
        masks = np.zeros((len(samples), num_mask_words(self._vocab_size)), dtype=np.int32)
        for kind, executor in self._executors.items():
            guides = {index: each.guided.guide for index, each in enumerate(samples) if _runs(each, kind)}
            for index, error in executor.fill(guides, masks).items():
                samples[index].guided.fail(error)
        for mask, (_, _, guided) in zip(masks, samples, strict=True):
            if guided.error is not None:
                mask.fill(-1)  # something has to be sampled, although it will not count
            elif guided.allowed is not None:
                mask &= guided.allowed
        return masks

    def take(self, samples: Sequence[GuidedSample], output: StepOutput) -> StepOutput:
        """The step was read: grammars follow its tokens. Rows whose grammar failed end with an error."""
        errors = dict(output.errors)
        for kind, executor in self._executors.items():
            taken = [
                each for each in samples if _runs(each, kind) and output.finishes[each.place] != Finish.ERROR
            ]
            tokens = [(each.guided.guide, output.token_ids[each.place]) for each in taken]
            for index, error in executor.advance(tokens).items():
                taken[index].guided.fail(error)
        for place, _, guided in samples:
            if guided.error is not None:
                errors[place] = guided.error
                output.finishes[place] = Finish.ERROR
        return replace(output, errors=errors) if errors else output

    def _start(self, new_row: NewRow, params: SamplingParams) -> _GuidedRow:
        grammar: Grammar = params.grammar  # type: ignore[assignment]  # opaque to SamplingParams
        kind = type(grammar)
        if kind not in self._executors:
            self._executors[kind] = grammar.make_executor(min(_MAX_NUM_THREADS, len(os.sched_getaffinity(0))))
        allowed = mask_of(params.allowed_token_ids, self._vocab_size) if params.allowed_token_ids else None
        generated = new_row.token_ids[new_row.num_prompt_tokens :]
        return _GuidedRow(kind, allowed, lambda: grammar.start(generated))


def write_masks(table: Tensor, samples: Sequence[GuidedSample], masks: Masks) -> None:
    """Into the rows of a table of masks, int32 [rows, words], on the current stream."""
    rows = to_device(torch.tensor([sample.row for sample in samples]), table.device)
    table.index_copy_(0, rows, to_device(torch.from_numpy(masks), table.device))


def _runs(sample: GuidedSample, kind: type) -> bool:
    return sample.guided.kind is kind and sample.guided.error is None
