"""Grammars of the rows of a batch: which tokens each allows next. On the host, where grammars are."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.sampling.params import SamplingParams
from engine.sampling.tables import mask_of, num_mask_words
from kvcache.storage import to_device
from scheduler.step import Finish, NewRow, StepOutput

Masks = npt.NDArray[np.int32]


class Guide(Protocol):
    """Where one output stands in its grammar (guided.grammar.Guide)."""

    def advance(self, token_ids: Sequence[int]) -> None:
        """These were sampled. Raises if they cannot follow, or cannot be judged."""
        ...

    def fill(self, mask: Masks) -> None:
        """Bit i % 32 of word i // 32 becomes 1 where token i may follow. Raises if that cannot be found."""
        ...


class Grammar(Protocol):
    """What a request's text has to match (guided.grammar.Grammar)."""

    def start(self) -> Guide: ...


class _GuidedRow:
    """error: why the row cannot go on. A grammar that fails, however it does, fails its own request."""

    def __init__(self, grammar: Grammar, allowed: Masks | None) -> None:
        """allowed: further restriction, a mask."""
        self.error: str | None = None
        self._guide: Guide | None = None
        self._allowed = allowed
        self._try(lambda: self._begin(grammar))

    def advance(self, token_ids: Sequence[int]) -> None:
        self._try(lambda: self._started.advance(token_ids))

    def fill(self, mask: Masks) -> None:
        self._try(lambda: self._started.fill(mask))
        if self.error is not None:
            mask.fill(-1)  # something has to be sampled, although it will not count
        elif self._allowed is not None:
            mask &= self._allowed

    @property
    def _started(self) -> Guide:
        assert self._guide is not None
        return self._guide

    def _begin(self, grammar: Grammar) -> None:
        self._guide = grammar.start()

    def _try(self, work: Callable[[], None]) -> None:
        if self.error is None:
            try:
                work()
            except Exception as error:
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
        for mask, sample in zip(masks, samples, strict=True):
            sample.guided.fill(mask)
        return masks

    def take(self, samples: Sequence[GuidedSample], output: StepOutput) -> StepOutput:
        """The step was read: grammars follow its tokens. Rows whose grammar failed end with an error."""
        errors = dict(output.errors)
        for place, _, guided in samples:
            if output.finishes[place] == Finish.ERROR and guided.error is None:
                continue
            guided.advance((output.token_ids[place],))
            if guided.error is not None:
                errors[place] = guided.error
                output.finishes[place] = Finish.ERROR
        return replace(output, errors=errors) if errors else output

    def _start(self, new_row: NewRow, params: SamplingParams) -> _GuidedRow:
        grammar: Grammar = params.grammar  # type: ignore[assignment]  # opaque to SamplingParams
        allowed = mask_of(params.allowed_token_ids, self._vocab_size) if params.allowed_token_ids else None
        guided = _GuidedRow(grammar, allowed)
        if generated := new_row.token_ids[new_row.num_prompt_tokens :]:
            guided.advance(generated)
        return guided


def write_masks(table: Tensor, samples: Sequence[GuidedSample], masks: Masks) -> None:
    """Into the rows of a table of masks, int32 [rows, words], on the current stream."""
    rows = to_device(torch.tensor([sample.row for sample in samples]), table.device)
    table.index_copy_(0, rows, to_device(torch.from_numpy(masks), table.device))
