import pytest

from kvcache.config import KVCacheConfig, LayerGroup, group_layers


def test_equal_layers_form_one_group() -> None:
    assert group_layers((None, None, None)) == (LayerGroup((0, 1, 2)),)
    assert group_layers((512, 512)) == (LayerGroup((0, 1), 512),)


def test_groups_have_one_window_and_equally_many_layers() -> None:
    alternating = group_layers((512, None) * 3)
    assert alternating == (LayerGroup((0, 2, 4), 512), LayerGroup((1, 3, 5)))

    two_of_three = group_layers((512, 512, None) * 2)
    assert two_of_three == (LayerGroup((0, 1), 512), LayerGroup((3, 4), 512), LayerGroup((2, 5)))


def test_every_layer_is_in_one_group() -> None:
    groups = group_layers((None,) * 28 + (4096,) * 4)
    assert len(groups) == 8
    assert sorted(layer for group in groups for layer in group.layers) == list(range(32))


@pytest.mark.parametrize(("num_blocks", "block_size"), [(0, 16), (-1, 16), (8, 0)])
def test_a_pool_has_blocks_and_a_block_has_tokens(num_blocks: int, block_size: int) -> None:
    with pytest.raises(ValueError, match="positive"):
        KVCacheConfig(num_blocks, block_size)


@pytest.mark.parametrize("groups", [(), (LayerGroup((0,)), LayerGroup((1, 2)))])
def test_groups_must_be_equally_large(groups: tuple[LayerGroup, ...]) -> None:
    with pytest.raises(ValueError, match="equally many layers"):
        KVCacheConfig(8, groups=groups)


def test_a_window_holds_the_query_itself() -> None:
    assert LayerGroup((0,), 1).window == 1
    with pytest.raises(ValueError, match="window of 0"):
        LayerGroup((0,), 0)
