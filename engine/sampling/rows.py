"""The sampling state of every row: one packed tensor on the device, and hints about it on the host."""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.sampling.params import MAX_STOP_TOKEN_IDS, SamplingParams
from kvcache.storage import to_device
from scheduler.step import NewRow

_MASK = 0xFFFFFFFF
_NO_TOKEN = -1
_SMALLEST_TEMPERATURE = float(np.finfo(np.float32).tiny)

# What the host remembers of a row, so as to choose a step's work without asking the device.
HINTS = np.dtype(
    [
        ("random", np.bool_),  # draws a random number; the others take the largest logit
        ("truncates", np.bool_),  # by top_k or top_p
        ("top_k", np.int32),  # 0 keeps all tokens
        ("min_p", np.bool_),  # min_p is above 0
        ("bans", np.bool_),  # stop ids are banned at first
    ]
)
Hints = npt.NDArray[np.void]


class Column(IntEnum):
    """Columns of the packed state, 32 bits each: integers, or the bits of a float32 where marked (f)."""

    ROW = 0
    TEMPERATURE = 1  # (f)
    TOP_K = 2  # 0: all; 1: greedy, at whatever temperature
    TOP_P = 3  # (f)
    MIN_P = 4  # (f)
    SEED_LOW = 5
    SEED_HIGH = 6
    OUTPUT_INDEX = 7
    NUM_GENERATED = 8
    MAX_NEW_TOKENS = 9
    MIN_NEW_TOKENS = 10
    NUM_STOP_IDS = 11
    STOP_IDS = 12  # and all columns after it: padded with the first of them, or -1 everywhere


class RowBatch:
    """The state of n rows, in the order of a step. Columns are tensors [n]."""

    def __init__(self, packed: Tensor) -> None:
        self._packed = packed

    def select(self, index: Tensor | None) -> "RowBatch":
        return RowBatch(select(self._packed, index))

    def integers(self, column: Column) -> Tensor:
        """int32."""
        return self._packed[:, column]

    def floats(self, column: Column) -> Tensor:
        """float32."""
        return self._packed[:, column].view(torch.float32)

    def words(self, column: Column) -> Tensor:
        """Unsigned 32-bit words, held in int64."""
        return self._packed[:, column].long() & _MASK

    @property
    def stop_ids(self) -> Tensor:
        """int32 [n, the most stop ids that a row can have]."""
        return self._packed[:, Column.STOP_IDS :]


class RowState:
    """Parameters and counters of `max_num_rows` rows, each kept until another sequence takes the row."""

    def __init__(self, max_num_rows: int, eos_token_ids: tuple[int, ...], device: torch.device) -> None:
        self._eos_token_ids = eos_token_ids
        self._width = Column.STOP_IDS + len(eos_token_ids) + MAX_STOP_TOKEN_IDS
        self._packed = torch.zeros(max_num_rows, self._width, dtype=torch.int32, device=device)
        self._hints = np.zeros(max_num_rows, dtype=HINTS)

    @property
    def packed(self) -> Tensor:
        """int32 [max_num_rows, columns], on the device: always the same memory."""
        return self._packed

    def write(self, new_rows: Sequence[NewRow]) -> None:
        """Replace rows, with one copy to the device."""
        packed = np.full((len(new_rows), self._width), _NO_TOKEN, dtype=np.int32)
        for words, new_row in zip(packed, new_rows, strict=True):
            self._write_row(words, new_row)
        source = to_device(torch.from_numpy(packed), self._packed.device)
        self._packed.index_copy_(0, source[:, Column.ROW].long(), source)

    def gather(self, rows: Tensor) -> RowBatch:
        """rows: int64 [n]."""
        return RowBatch(self._packed.index_select(0, rows))

    def hints(self, host_rows: Sequence[int]) -> Hints:
        return self._hints[np.asarray(host_rows, dtype=np.intp)]

    def count_token(self, rows: Tensor) -> None:
        """Each of `rows` (int64 [n], all different) has generated one more token."""
        ones = torch.ones_like(rows, dtype=torch.int32)
        self._packed[:, Column.NUM_GENERATED].index_add_(0, rows, ones)

    def _write_row(self, words: npt.NDArray[np.int32], new_row: NewRow) -> None:
        params = new_row.sampling
        assert isinstance(params, SamplingParams)
        stop_ids = params.stop_token_ids + (() if params.ignore_eos else self._eos_token_ids)
        words[Column.ROW] = new_row.row
        words[Column.OUTPUT_INDEX] = new_row.output_index
        words[Column.NUM_GENERATED] = new_row.num_generated_tokens
        words[Column.MAX_NEW_TOKENS] = new_row.max_new_tokens
        words[Column.MIN_NEW_TOKENS] = params.min_new_tokens
        words[Column.NUM_STOP_IDS] = len(stop_ids)
        if stop_ids:
            words[Column.STOP_IDS :] = stop_ids[0]
            words[Column.STOP_IDS : Column.STOP_IDS + len(stop_ids)] = stop_ids
        _write_distribution(words, params)
        self._hints[new_row.row] = (
            _is_random(params),
            params.top_k > 0 or params.top_p < 1,
            params.top_k,
            params.min_p > 0,
            bool(stop_ids) and params.min_new_tokens > new_row.num_generated_tokens,
        )


def select(tensor: Tensor, index: Tensor | None) -> Tensor:
    """tensor[index] along the first dimension; without an index, the tensor itself."""
    return tensor if index is None else tensor.index_select(0, index)


def to_index(mask: npt.NDArray[np.bool_], device: torch.device) -> Tensor | None:
    """Where the mask is true, int64 on the device; None when it is everywhere."""
    return None if mask.all() else to_device(torch.from_numpy(np.flatnonzero(mask)), device)


def _is_random(params: SamplingParams) -> bool:
    return params.temperature > 0 and params.top_k != 1


def _write_distribution(words: npt.NDArray[np.int32], params: SamplingParams) -> None:
    assert params.seed is not None or not _is_random(params), "a random request needs a seed (see with_seed)"
    seed = params.seed or 0
    words.view(np.uint32)[[Column.SEED_LOW, Column.SEED_HIGH]] = seed & _MASK, seed >> 32
    words[Column.TOP_K] = params.top_k if _is_random(params) else 1
    floats = words.view(np.float32)
    # Where float32 would round a temperature to zero, its smallest normal number is as good as greedy.
    floats[Column.TEMPERATURE] = max(params.temperature, _SMALLEST_TEMPERATURE)
    floats[Column.TOP_P] = params.top_p
    floats[Column.MIN_P] = params.min_p
