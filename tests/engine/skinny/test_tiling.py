"""What tilings promise, for products of any shape on any GPU."""

from hypothesis import given
from hypothesis import strategies as st

from engine.skinny.tiling import DeviceLimits, ProductShape, choose_tiling, token_block

LIMITS = (
    DeviceLimits(num_sms=132, shared_memory=232448, has_pdl=True),  # H100, H200
    DeviceLimits(num_sms=170, shared_memory=101376, has_pdl=True),  # RTX 5090
    DeviceLimits(num_sms=40, shared_memory=65536, has_pdl=False),  # T4
)
SHAPES = st.builds(
    ProductShape,
    kind=st.sampled_from(("residual", "scaled", "swiglu")),
    num_outputs=st.integers(1, 300_000),
    num_columns=st.integers(1, 60_000),
)


@given(SHAPES, st.integers(1, 128), st.sampled_from((2, 4)), st.sampled_from(LIMITS))
def test_tilings_fit_and_cover(
    shape: ProductShape, num_tokens: int, itemsize: int, limits: DeviceLimits
) -> None:
    block_n = token_block(num_tokens)
    tiling = choose_tiling(shape, block_n, itemsize, limits)
    in_flight = tiling.num_stages * (tiling.block_m + block_n) * tiling.block_k * itemsize
    assert in_flight <= limits.shared_memory
    assert tiling.num_stages >= 2
    assert tiling.num_splits == 1 or shape.num_tiles(tiling.block_m) * tiling.num_splits <= limits.num_sms
    assert tiling.num_splits * tiling.block_k <= max(shape.num_columns, tiling.block_k)


def test_token_blocks() -> None:
    assert [token_block(n) for n in (1, 16, 17, 32, 33, 128)] == [16, 16, 32, 32, 64, 128]
