"""The processors and criteria of all rows: what the samplers call (engine.sampling.hooks.CustomRows)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.sampling.custom.admission import Admission
from engine.sampling.custom.classic import ClassicCall
from engine.sampling.custom.context import RowContext
from engine.sampling.custom.registry import Kind, Registry
from engine.sampling.custom.stages import Occupant, Stage
from engine.sampling.custom.verdicts import CodeTable, Verdicts
from engine.sampling.params import SamplingParams
from engine.sampling.rows import RowState, select
from kvcache.storage import to_device
from scheduler.step import Finish, NewRow


class _Member(NamedTuple):
    """One row of a step that asked for something: its place there, and who has it."""

    place: int
    occupant: Occupant


class CustomRows:
    """Processors and criteria by row.

    process() and check() give every row what it asked for, in its order, and touch no other. The captured
    ones do, for whole batches, what is_capturable; needs_eager() says of a step whether that is enough.
    What fails fails its own requests: exceptions become messages. Only what the device itself cannot survive
    (torch.AcceleratorError) is passed on.
    """

    def __init__(self, registry: Registry, state: RowState) -> None:
        """Allocates the state of everything batched. Raises ConfigError for a plugin that cannot be set up.

        state: of the sampler that this is for.
        """
        self._history = state.tables.history
        self._context = RowContext(state)
        self._admission = Admission(registry, self._context)
        num_rows, num_criteria = self._context.max_num_rows, len(self._admission.batched[Kind.CRITERION])
        self._codes = CodeTable(num_criteria, num_rows, self._context.device)
        self._occupants: dict[int, Occupant] = {}
        self._scores: dict[int, Tensor] = {}  # by place, of the step under way, for classic criteria
        self._asks = np.zeros(num_rows, dtype=np.bool_)
        self._eager = np.zeros(num_rows, dtype=np.bool_)

    def set_rows(self, new_rows: Sequence[NewRow]) -> None:
        """Replace rows, after the RowState. A row that cannot have what it asked for gets an error at its
        next step.
        """
        codes: dict[int, dict[int, int]] = {}
        for new_row in new_rows:
            row, params = new_row.row, new_row.sampling
            assert isinstance(params, SamplingParams)
            if (previous := self._occupants.pop(row, None)) is not None:
                self._admission.leave(previous)
            occupant = self._admission.enter(new_row, params)
            if occupant.asks:
                self._occupants[row] = occupant
            self._asks[row] = occupant.asks
            self._eager[row] = self._admission.is_tainted(row) or not occupant.fits_graph
            codes[row] = occupant.codes
        self._codes.write(codes)

    def asks(self, host_rows: Sequence[int]) -> bool:
        """Whether any of the rows has a processor or criterion."""
        return bool(self._asks[np.asarray(host_rows, dtype=np.intp)].any())

    def needs_eager(self, host_rows: Sequence[int]) -> bool:
        """Whether a step of these rows has to call process() and check(), instead of a graph that holds
        process_captured() and check_captured().
        """
        return bool(self._eager[np.asarray(host_rows, dtype=np.intp)].any())

    def process(self, logits: Tensor, rows: Tensor, host_rows: Sequence[int]) -> dict[int, str]:
        """See hooks.CustomRows."""
        members = self._members(host_rows)
        for depth in range(max((len(occupant.processors) for _, occupant in members), default=0)):
            for stage, users in _by_stage(members, depth).items():
                self._try(stage, users, self._process, logits, rows)
        self._scores = {
            place: logits[place : place + 1].clone()
            for place, occupant in members
            if occupant.has_classic_criteria and occupant.error is None
        }
        return _errors(members)

    def check(
        self, token_ids: Tensor, finishes: Tensor, rows: Tensor, host_rows: Sequence[int]
    ) -> dict[int, str]:
        """See hooks.CustomRows. process() was called for the same rows."""
        members, verdicts = self._members(host_rows), Verdicts(finishes)
        shared: dict[Stage, list[_Member]] = {}
        for member in members:
            for index, stage in enumerate(member.occupant.criteria):
                if isinstance(stage.work, ClassicCall):
                    self._try(stage, [member], self._check_one, verdicts, Finish.CRITERION + index)
                else:
                    shared.setdefault(stage, []).append(member)
        for stage, users in shared.items():
            self._try(stage, users, self._check_shared, verdicts, token_ids, rows)
        self._scores = {}
        if members:
            verdicts.write(self._context.is_free_to_stop(rows))
        return _errors(members)

    def process_captured(self, logits: Tensor, rows: Tensor) -> None:
        """What is_capturable, on all rows, in the order of names. Reads everything on the device.

        logits: float32 [n, vocab_size], in place. rows: integers [n]; -1 or max_num_rows is padding.
        """
        padded = self._padded(rows)
        for stage in self._captured(Kind.PROCESSOR):
            stage.process(logits, padded, self._history)

    def check_captured(self, token_ids: Tensor, finishes: Tensor, rows: Tensor) -> None:
        """Likewise, after the tokens have been counted. token_ids: integers [n]. finishes: int32 [n]."""
        padded, verdicts = self._padded(rows), Verdicts(finishes)
        for stage in self._captured(Kind.CRITERION):
            holds = stage.check(token_ids.long(), padded)
            verdicts.add(holds, self._codes.of(stage.number, padded))
        verdicts.write(self._context.is_free_to_stop(padded))

    def _captured(self, kind: Kind) -> list[Stage]:
        return [stage for stage in self._admission.batched[kind].values() if stage.is_capturable]

    def _padded(self, rows: Tensor) -> Tensor:
        return torch.where(rows < 0, self._context.max_num_rows, rows).long()

    def _members(self, host_rows: Sequence[int]) -> list[_Member]:
        if not self._occupants:
            return []
        found = ((place, self._occupants.get(row)) for place, row in enumerate(host_rows))
        return [_Member(place, occupant) for place, occupant in found if occupant is not None]

    def _process(self, stage: Stage, places: Sequence[int], logits: Tensor, rows: Tensor) -> None:
        """Rows that did not ask are not even shown."""
        if isinstance(stage.work, ClassicCall):
            (place,) = places
            stage.process(logits[place : place + 1], rows, self._history)
            return
        index = self._index(places, len(rows))
        part = select(logits, index)
        stage.process(part, select(rows, index), self._history)
        if index is not None:
            logits.index_copy_(0, index, part)

    def _check_one(self, stage: Stage, places: Sequence[int], verdicts: Verdicts, code: int) -> None:
        assert isinstance(stage.work, ClassicCall)
        (place,) = places
        verdicts.add_one(place, code, stage.work.check(self._scores[place], self._history))

    def _check_shared(
        self, stage: Stage, places: Sequence[int], verdicts: Verdicts, token_ids: Tensor, rows: Tensor
    ) -> None:
        index = self._index(places, len(rows))
        part = select(rows, index)
        verdicts.add(stage.check(select(token_ids, index), part), self._codes.of(stage.number, part), index)

    def _index(self, places: Sequence[int], num_rows: int) -> Tensor | None:
        """None: all of them."""
        if len(places) == num_rows:
            return None
        return to_device(torch.tensor(places), self._context.device)

    def _try(self, stage: Stage, users: Sequence[_Member], work: Callable[..., None], *rest: object) -> None:
        """work(stage, places of those of the users that are well, *rest); all of these fail if it does."""
        well = [user for user in users if user.occupant.error is None]
        if not well:
            return
        try:
            work(stage, [user.place for user in well], *rest)
        except torch.AcceleratorError:
            raise
        except Exception as error:
            for _, occupant in well:
                occupant.fail(stage.title, error)
                self._eager[occupant.row] = True


def _by_stage(members: Sequence[_Member], depth: int) -> dict[Stage, list[_Member]]:
    """Who has which processor at this place of their order."""
    users: dict[Stage, list[_Member]] = {}
    for member in members:
        if depth < len(member.occupant.processors):
            users.setdefault(member.occupant.processors[depth], []).append(member)
    return users


def _errors(members: Sequence[_Member]) -> dict[int, str]:
    return {place: occupant.error for place, occupant in members if occupant.error is not None}
