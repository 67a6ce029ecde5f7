"""The rows' state on the device: what a step sends, what a step that decodes takes. In the interpreter."""

from typing import cast

import pytest
import torch

from engine.tensorrt_backend.device_state import DeviceState
from engine.tensorrt_backend.kernels import FROM_STATE, take_tokens
from engine.tensorrt_backend.uploads import Uploads
from scheduler.step import Chunk, NewBlocks, NewRow, StepInput
from tests.support.host_runner import HostUploads

CPU = torch.device("cpu")


@pytest.fixture
def uploads() -> HostUploads:
    return HostUploads(256)


@pytest.fixture
def state(uploads: HostUploads) -> DeviceState:
    """Two groups, three rows, four blocks."""
    return DeviceState(2, 3, 4, cast(Uploads, uploads), CPU)


def new_row(row: int, num_computed: int, *block_ids: tuple[int, ...]) -> NewRow:
    return NewRow(row, 9, 0, num_computed, block_ids, 5, None, 0)


def test_new_rows_and_blocks(state: DeviceState) -> None:
    state.update(StepInput(0, new_rows=(new_row(1, 7, (5, 6), (8,)),)))
    state.update(StepInput(1, new_blocks=(NewBlocks(1, 1, 1, (9, 4)), NewBlocks(2, 0, 3, (2,)))))
    assert state.block_tables.tolist() == [
        [[0] * 4, [5, 6, 0, 0], [0, 0, 0, 2]],
        [[0] * 4, [8, 9, 4, 0], [0] * 4],
    ]
    assert state.num_computed.tolist() == [0, 7, 0]


def test_a_chunk_brings_its_row_to_its_end(state: DeviceState) -> None:
    """Also that of a row which is new in the same step."""
    chunk = Chunk(2, 16, (1, 2, 3), samples=False)
    state.update(StepInput(0, chunks=(chunk,), new_rows=(new_row(2, 16, (1,), (1,)),)))
    assert state.num_computed.tolist() == [0, 0, 19]


def test_a_chunk_that_is_decoded_leaves_that_to_the_step(state: DeviceState) -> None:
    chunk = Chunk(2, 16, (77,), samples=True)
    state.update(StepInput(0, chunks=(chunk,), new_rows=(new_row(2, 16, (1,), (1,)),)), decodes=True)
    assert state.num_computed.tolist() == [0, 0, 16]
    assert state.last_token.tolist() == [0, 0, 77]


def test_a_step_without_differences_sends_nothing(state: DeviceState, uploads: HostUploads) -> None:
    state.update(StepInput(0, decode_rows=(0, 1, 2), num_tokens=3))
    assert uploads.num_uploads == 0


def test_many_differences_are_sent_in_parts(uploads: HostUploads) -> None:
    state = DeviceState(1, 2, 300, cast(Uploads, uploads), CPU)
    blocks = tuple(range(1, 301))
    state.update(StepInput(0, new_rows=(new_row(1, 3, blocks),)))
    assert uploads.num_uploads > 1
    assert state.block_tables[0, 1].tolist() == list(blocks)
    assert state.block_tables[0, 0].sum() == 0


def take(rows: list[int], positions: list[int], token_ids: list[int], *, all_decode: bool) -> list[list[int]]:
    """Positions, token ids and num_computed afterwards. Row r has computed 10 r tokens, last 100 + r."""
    row, position, token = (torch.tensor(words, dtype=torch.int32) for words in (rows, positions, token_ids))
    num_computed = torch.arange(0, 40, 10, dtype=torch.int32)
    last_token = torch.arange(100, 104, dtype=torch.int32)
    take_tokens(row, position, token, num_computed, last_token, all_decode=all_decode)
    return [position.tolist(), token.tolist(), num_computed.tolist()]


def test_rows_that_decode_go_on_from_the_state() -> None:
    found = take([2, -1, 0], [7, 7, 7], [5, 5, 5], all_decode=True)
    assert found == [[20, -1, 0], [102, 0, 100], [1, 10, 21, 30]]


def test_rows_with_chunks_bring_their_own_tokens() -> None:
    found = take([3, 1, 1, -1], [FROM_STATE, 4, 5, -1], [0, 50, 51, 0], all_decode=False)
    assert found == [[30, 4, 5, -1], [103, 50, 51, 0], [0, 10, 20, 31]]
