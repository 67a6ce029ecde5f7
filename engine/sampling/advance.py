"""What a sampled token changes in its row's state: counts, history, and the top_p of the next one."""

import torch
from torch import Tensor

from engine.sampling.rows import Column, Flag, Hints, RowBatch, RowState, select, to_index
from engine.sampling.tables import MAX_SEEN, PROMPT_SHIFT

_OUTPUT_MASK = (1 << PROMPT_SHIFT) - 1


def advance(state: RowState, rows: Tensor, token_ids: Tensor, batch: RowBatch, hints: Hints) -> None:
    """Each of `rows` has generated one more token. rows, token_ids: int64 [n], rows all different. batch,
    hints: of these rows before it. Does not wait for the device.
    """
    if (hints["full"] | hints["decays"]).any():
        for mask, change in (
            (hints["flags"] & Flag.COUNTS > 0, _count),
            (hints["flags"] & Flag.KEEPS > 0, _keep),
            (hints["decays"], _decay),
        ):
            if mask.any():
                index = to_index(mask, rows.device)
                change(state, select(rows, index), select(token_ids, index), batch.select(index))
    state.count_token(rows)


def _count(state: RowState, rows: Tensor, token_ids: Tensor, batch: RowBatch) -> None:
    seen = state.tables.seen
    counts = seen[rows, token_ids]
    seen[rows, token_ids] = counts + (counts & _OUTPUT_MASK < MAX_SEEN)


def _keep(state: RowState, rows: Tensor, token_ids: Tensor, batch: RowBatch) -> None:
    history = state.tables.history
    position = (batch.integers(Column.NUM_PROMPT) + batch.integers(Column.NUM_GENERATED)).long()
    index = (rows, position.clamp(max=history.shape[1] - 1))
    history[index] = torch.where(position < history.shape[1], token_ids.int(), history[index])


def _decay(state: RowState, rows: Tensor, token_ids: Tensor, batch: RowBatch) -> None:
    first, least = batch.floats(Column.TOP_P_FIRST), batch.floats(Column.TOP_P_MIN)
    decayed = batch.floats(Column.TOP_P) * batch.floats(Column.TOP_P_DECAY)
    decayed = torch.maximum(decayed, torch.minimum(least, first))
    resets = batch.integers(Column.TOP_P_RESET_ID) == token_ids
    top_p = torch.where(resets, first, decayed).view(torch.int32)
    state.packed[:, Column.TOP_P].index_copy_(0, rows, top_p)
