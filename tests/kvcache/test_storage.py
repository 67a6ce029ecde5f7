"""The pool's tensors."""

import pytest
import torch

from kvcache.config import KVCacheConfig, group_layers
from kvcache.storage import KVCacheStorage, bytes_per_block

CPU = torch.device("cpu")
CONFIG = KVCacheConfig(num_blocks=6, block_size=4, groups=group_layers((None, 8, 8, None)))


@pytest.fixture
def storage() -> KVCacheStorage:
    return KVCacheStorage(CONFIG, num_kv_heads=2, head_dim=3, dtype=torch.float32, device=CPU)


def test_groups_share_tensors(storage: KVCacheStorage) -> None:
    """Layers 0 and 3 are one group, 1 and 2 the other: the j-th of each live in the same memory."""
    keys, values = storage.layer(0)
    assert keys.shape == values.shape == (6, 2, 4, 3)
    assert keys.data_ptr() == storage.layer(1)[0].data_ptr()
    assert keys.data_ptr() != storage.layer(3)[0].data_ptr()
    assert storage.layer(3)[0].data_ptr() == storage.layer(2)[0].data_ptr()
    assert not any(layer.any() for i in range(4) for layer in storage.layer(i))


def test_bytes(storage: KVCacheStorage) -> None:
    assert storage.num_bytes == 6 * bytes_per_block(CONFIG, 2, 3, torch.float32)
    assert bytes_per_block(CONFIG, 2, 3, torch.bfloat16) == 2 * 2 * 2 * 4 * 3 * 2


@pytest.mark.parametrize(
    ("copies", "expected"),
    [
        ([], [0, 1, 2, 3, 4, 5]),
        ([(0, 3), (1, 4)], [0, 1, 2, 0, 1, 5]),
        ([(0, 1), (1, 2)], [0, 0, 0, 3, 4, 5]),  # reads what an earlier copy wrote
        ([(0, 1), (2, 1)], [0, 2, 2, 3, 4, 5]),  # overwrites it
        ([(0, 1), (2, 0)], [2, 0, 2, 3, 4, 5]),  # overwrites what an earlier copy read
    ],
)
def test_copies_apply_one_after_the_other(
    copies: list[tuple[int, int]], expected: list[int], storage: KVCacheStorage
) -> None:
    for layer in range(4):
        for tensor in storage.layer(layer):
            tensor.copy_(torch.arange(6.0).view(6, 1, 1, 1).expand(tensor.shape))
    storage.copy_blocks(copies)
    for layer in range(4):
        for tensor in storage.layer(layer):
            assert tensor.amax((1, 2, 3)).tolist() == tensor.amin((1, 2, 3)).tolist() == expected
