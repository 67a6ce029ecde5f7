"""What the device keeps of every row between steps, and the differences that a step brings."""

from collections.abc import Iterator

import numpy as np
import torch

from engine.tensorrt_backend.kernels import scatter_words
from engine.tensorrt_backend.uploads import Uploads
from scheduler.step import NewBlocks, StepInput


class DeviceState:
    """Block tables, last tokens and positions of `max_num_rows` rows, all int32 in one tensor.

    num_computed, last_token: [max_num_rows]. block_tables: [num_groups, max_num_rows, max_num_blocks];
    entries past a row's length are stale. The device itself advances num_computed and last_token of rows that
    decode; only what it cannot know is sent.
    """

    def __init__(
        self, num_groups: int, max_num_rows: int, max_num_blocks: int, uploads: Uploads, device: torch.device
    ) -> None:
        num_words = max_num_rows * (2 + num_groups * max_num_blocks)
        self._words = torch.zeros(num_words, dtype=torch.int32, device=device)
        self._uploads = uploads
        self._num_rows = max_num_rows
        self._num_blocks = max_num_blocks
        self.num_computed = self._words[:max_num_rows]
        self.last_token = self._words[max_num_rows : 2 * max_num_rows]
        tables = self._words[2 * max_num_rows :]
        self.block_tables = tables.view(num_groups, max_num_rows, max_num_blocks)

    def update(self, step: StepInput, *, decodes: bool = False) -> None:
        """Enqueue the step's new rows and blocks, and how far its chunks bring their rows.

        decodes: chunks are of one token, and their rows are to decode it: it becomes their last one.
        """
        entries: dict[int, int] = {}
        for row in step.new_rows:
            entries[row.row] = row.num_computed_tokens
            for group, block_ids in enumerate(row.block_ids):
                entries.update(self._table_entries(NewBlocks(row.row, group, 0, block_ids)))
        for blocks in step.new_blocks:
            entries.update(self._table_entries(blocks))
        for chunk in step.chunks:
            if decodes:
                entries[chunk.row] = chunk.start
                entries[self._num_rows + chunk.row] = chunk.token_ids[0]
            else:
                entries[chunk.row] = chunk.start + len(chunk.token_ids)
        if entries:
            self._send(entries)

    def _send(self, entries: dict[int, int]) -> None:
        indices = np.fromiter(entries.keys(), dtype=np.int32, count=len(entries))
        values = np.fromiter(entries.values(), dtype=np.int32, count=len(entries))
        size = self._uploads.max_num_words // 4
        for start in range(0, len(entries), size):
            part = slice(start, start + size)
            scatter_words(self._words, *self._uploads.upload((indices[part], values[part])))

    def _table_entries(self, blocks: NewBlocks) -> Iterator[tuple[int, int]]:
        """(index into the words, block id)."""
        table = blocks.group * self._num_rows + blocks.row
        return enumerate(blocks.block_ids, 2 * self._num_rows + table * self._num_blocks + blocks.start)
