"""The attention kernels in Triton's interpreter (which has no bfloat16 products) against dense attention."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.attention.kernels import TILE_TOKENS
from engine.attention.kernels.tuning import Launch, Tuning
from tests.engine.attention.kernel_cases import Case, Heads, Row, Step, check

if torch.cuda.is_available():
    pytest.skip("kernels are compiled here: test_kernels_gpu.py", allow_module_level=True)

CPU = torch.device("cpu")
SMALL = Tuning(Launch(32, 4, 2), Launch(32, 4, 2), pack=1, most_pieces=8, enough_pieces=5, least_tiles=2)
HEADS = Heads(4, 2, 16)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    lengths = st.tuples(st.integers(0, 90), st.sampled_from([1, 1, 1, 2, 5]))
    rows = [Row(*draw(lengths)) for _ in range(draw(st.integers(0, 2)))]
    chunks = st.tuples(st.integers(0, 50), st.sampled_from([1, 6, 30, TILE_TOKENS + 3]))
    rows += [Row(*draw(chunks), is_lone=False) for _ in range(draw(st.integers(not rows, 1)))]
    num_kv_heads, group = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3, 4]))
    heads = Heads(num_kv_heads * group, num_kv_heads, draw(st.sampled_from([16, 20, 32])))
    return Case(
        tuple(rows),
        heads,
        draw(st.sampled_from([1, 3, 16, 64])),
        draw(st.sampled_from([None, None, 1, 6, 40])),
        (draw(st.integers(0, 2)), draw(st.integers(0, 2))),
        SMALL,
    )


@settings(max_examples=8, deadline=None)
@given(case=cases(), seed=st.integers(0, 2**16))
def test_equals_dense_attention(case: Case, seed: int) -> None:
    check(case, torch.float32, CPU, 1e-5, seed)


@pytest.mark.parametrize(("dtype", "window"), [(torch.float32, None), (torch.float16, 100)])
def test_pieces_and_tiles_of_the_default_sizes(dtype: torch.dtype, window: int | None) -> None:
    """Long enough to be split; a mixed step, with padding."""
    rows = (Row(290), Row(3, 3), Row(30, 67, is_lone=False))
    check(Case(rows, HEADS, window=window, num_padding=(1, 1)), dtype, CPU, 1e-3)


def test_more_query_heads_than_the_least_matrix_product() -> None:
    check(Case((Row(40), Row(0, 7, is_lone=False)), Heads(20, 1, 32), tuning=SMALL), torch.float32, CPU, 1e-5)


def test_buckets_share_scratch_memory() -> None:
    """A step may be begun over tensors whose contents the next step changes, as a captured graph does."""
    case = Case((Row(60), Row(17), Row(2, 2)), HEADS, tuning=SMALL)
    step = Step(case, torch.float32, CPU, 1)
    group = step.group()
    for count in (1, 4, 2):
        layer = group.begin(step.rows[:count], step.positions[:count], None, count)
        keys, values = step.pool(with_new=False)
        out = torch.empty(count, HEADS.num_heads * HEADS.head_dim)
        layer.attend(step.qkv[:count], keys, values, out)
        torch.testing.assert_close(out, step.dense()[:count], rtol=0, atol=1e-5)


def test_strided_rows() -> None:
    """qkv and out as columns of wider tensors."""
    case = Case((Row(20), Row(5, 9, is_lone=False)), HEADS, tuning=SMALL)
    step = Step(case, torch.float32, CPU, 2)
    keys, values = step.pool(with_new=False)
    width = HEADS.num_heads * HEADS.head_dim
    qkv = torch.cat((step.qkv, torch.full_like(step.qkv, torch.nan)), 1)[:, : step.qkv.shape[1]]
    wide = torch.full((len(step.qkv), width + 3), torch.nan)
    layer = step.group().begin(step.rows, step.positions, step.tiles, step.num_lone)
    layer.attend(qkv, keys, values, wide[:, :width])
    torch.testing.assert_close(wide[:, :width], step.dense(), rtol=0, atol=1e-5)
    assert wide[:, width:].isnan().all()


def test_pools_of_more_elements_than_32_bits_count() -> None:
    """The addresses, that is: the pool is a small one."""
    case = Case((Row(40, 2), Row(5, 9, is_lone=False)), HEADS, tuning=SMALL)
    step = Step(case, torch.float32, CPU, 3)
    group = step.group()
    group.is_wide = True
    keys, values = step.pool(with_new=False)
    out = torch.empty(len(step.qkv), HEADS.num_heads * HEADS.head_dim)
    group.begin(step.rows, step.positions, step.tiles, step.num_lone).attend(step.qkv, keys, values, out)
    torch.testing.assert_close(out, step.dense(), rtol=0, atol=1e-5)
