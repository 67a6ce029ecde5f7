"""What processors and criteria are told of rows."""

import torch

from engine.sampling.custom import RowContext
from engine.sampling.params import SamplingParams
from tests.engine.sampling.custom.support import NUM_ROWS, VOCAB, Batch, spec


def test_tokens_of_rows_and_of_padding() -> None:
    batch = Batch()
    asking = SamplingParams(logits_processors=(spec("batched"),), min_new_tokens=2)
    batch.enter(1, asking, prompt=(5, 6, 7))
    batch.enter(NUM_ROWS - 1, asking, prompt=(8,), generated=(9,))
    context = RowContext(batch.state)
    rows = torch.tensor([NUM_ROWS - 1, NUM_ROWS, 1])
    assert context.num_tokens(rows).tolist() == [2, 0, 3]
    assert context.num_generated(rows).tolist() == [1, 0, 0]
    assert context.last_tokens(rows, 3).tolist() == [[-1, 8, 9], [-1, -1, -1], [5, 6, 7]]
    positions = torch.tensor([[0, 1], [0, 1], [2, 3]])
    assert context.tokens_at(rows, positions).tolist() == [[8, 9], [-1, -1], [7, -1]]

    logits = torch.zeros(2, VOCAB)
    logits[0, 4] = logits[1, 3] = 1
    assert batch.step([1, NUM_ROWS - 1], logits).token_ids.tolist() == [4, 3]
    assert context.last_tokens(rows, 3).tolist() == [[8, 9, 3], [-1, -1, -1], [6, 7, 4]]
    assert context.num_generated(rows).tolist() == [2, 0, 1]
    assert context.is_free_to_stop(rows[[0, 2]]).tolist() == [True, False]


def test_write() -> None:
    context = RowContext(Batch().state)
    table = torch.zeros(2, 3)
    context.write(table, 1, (1, 2.5))
    assert table.tolist() == [[0, 0, 0], [1, 2.5, 0]]
