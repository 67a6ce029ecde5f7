"""From what criteria say of rows to `Finish` codes: the first criterion of a request that holds is told."""

import numpy as np
import torch
from torch import Tensor

from engine.sampling.rows import select
from kvcache.storage import to_device
from scheduler.step import Finish

_NO_VERDICT = 2**31 - 1


class CodeTable:
    """The code that each batched criterion has in each row: int32 [criteria, max_num_rows + 1], 0 where it
    was not asked for.
    """

    def __init__(self, num_criteria: int, max_num_rows: int, device: torch.device) -> None:
        self._host = np.zeros((num_criteria, max_num_rows + 1), dtype=np.int32)
        self._device = torch.zeros(self._host.shape, dtype=torch.int32, device=device)

    def write(self, codes: dict[int, dict[int, int]]) -> None:
        """Replace rows: by row, the codes by the number of the criterion. At most one copy to the device."""
        changed = [row for row, by_number in codes.items() if by_number or self._host[:, row].any()]
        if not changed:
            return
        for row in changed:
            self._host[:, row] = 0
            for number, code in codes[row].items():
                self._host[number, row] = code
        words = torch.from_numpy(np.concatenate((np.asarray([changed]), self._host[:, changed])))
        words = to_device(words, self._device.device)
        self._device.index_copy_(1, words[0], words[1:].int())

    def of(self, number: int, rows: Tensor) -> Tensor:
        """int32 [n]. rows: int64 [n]."""
        return self._device[number].index_select(0, rows)


class Verdicts:
    """The smallest code that holds for each of n rows of a step. Nothing waits for the device."""

    def __init__(self, finishes: Tensor) -> None:
        """finishes: int32 [n]."""
        self._finishes = finishes
        self._codes = torch.full_like(finishes, _NO_VERDICT)

    def add(self, holds: Tensor, codes: Tensor, index: Tensor | None = None) -> None:
        """holds: bool, codes: int32 of the rows at `index` (int64), or of all."""
        held = torch.where(holds & (codes > 0), codes, _NO_VERDICT)
        held = torch.minimum(held, select(self._codes, index))
        self._codes = held if index is None else self._codes.index_copy(0, index, held)

    def add_one(self, place: int, code: int, holds: bool | Tensor) -> None:
        """holds: a bool, or a bool tensor without dimensions, for the row at `place`."""
        if isinstance(holds, Tensor):
            held = torch.where(holds.to(self._codes.device), code, _NO_VERDICT).int()
            self._codes[place] = torch.minimum(self._codes[place], held)
        elif holds:
            self._codes[place].clamp_(max=code)

    def write(self, is_free: Tensor) -> None:
        """Into finishes, in place, where they are NONE or LENGTH and is_free, bool [n], is true."""
        replaceable = (self._finishes == Finish.NONE) | (self._finishes == Finish.LENGTH)
        held = replaceable & is_free & (self._codes != _NO_VERDICT)
        self._finishes.copy_(torch.where(held, self._codes, self._finishes))
