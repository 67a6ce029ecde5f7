"""What a device keeps of every row between steps, updated by differences."""

from collections.abc import Iterator

import numpy as np
import torch

from engine.attention.layout import IntArray
from kvcache.storage import to_device
from scheduler.step import NewBlocks, NewRow, StepInput


class BatchState:
    """Block tables and last tokens of `max_num_rows` rows, stable until another sequence takes the row.

    block_tables: int32 [num_groups, max_num_rows, max_num_blocks]; entries past a row's length are stale.
    last_token: int64 [max_num_rows], what the device sampled last for the row. num_computed: int64
    [max_num_rows], on the host, which always knows how far each row has been computed even where it has not
    read what was sampled.
    """

    def __init__(self, num_groups: int, max_num_rows: int, max_num_blocks: int, device: torch.device) -> None:
        self.block_tables = torch.zeros(
            (num_groups, max_num_rows, max_num_blocks), dtype=torch.int32, device=device
        )
        self.last_token = torch.zeros(max_num_rows, dtype=torch.int64, device=device)
        self.num_computed: IntArray = np.zeros(max_num_rows, dtype=np.int64)

    def update(self, step: StepInput) -> None:
        """Apply the step's new rows and new blocks: one copy to the device, one indexed write."""
        for row in step.new_rows:
            self.num_computed[row.row] = row.num_computed_tokens
        entries: dict[int, int] = {}
        for row in step.new_rows:
            entries.update(self._row_entries(row))
        for blocks in step.new_blocks:
            entries.update(self._entries(blocks))
        if entries:
            packed = np.array([list(entries), list(entries.values())], dtype=np.int64)
            index, block_ids = to_device(torch.from_numpy(packed), self.block_tables.device)
            self.block_tables.view(-1).index_copy_(0, index, block_ids.int())

    def _row_entries(self, row: NewRow) -> Iterator[tuple[int, int]]:
        for group, block_ids in enumerate(row.block_ids):
            yield from self._entries(NewBlocks(row.row, group, 0, block_ids))

    def _entries(self, blocks: NewBlocks) -> Iterator[tuple[int, int]]:
        """(index into the flat tables, block id)."""
        _, num_rows, num_blocks = self.block_tables.shape
        start = (blocks.group * num_rows + blocks.row) * num_blocks + blocks.start
        return enumerate(blocks.block_ids, start)
