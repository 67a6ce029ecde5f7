"""Which bucket serves how many tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.tensorrt_backend.buckets import Router, decode_buckets, token_buckets


@pytest.mark.parametrize("max_num_seqs", [1, 2, 3, 64, 100, 256, 2000])
def test_decode_buckets_reach_as_far_as_rows_do(max_num_seqs: int) -> None:
    buckets = decode_buckets(max_num_seqs)
    assert buckets[-1] == max_num_seqs
    assert list(buckets) == sorted(set(buckets))


@pytest.mark.parametrize("limits", [(1, 1), (4, 40), (64, 512), (256, 2048), (256, 256), (512, 100_000)])
def test_token_buckets_hold_those_of_decoding(limits: tuple[int, int]) -> None:
    buckets = token_buckets(*limits)
    assert set(decode_buckets(limits[0])) <= set(buckets)
    assert buckets[-1] == limits[1]
    assert list(buckets) == sorted(set(buckets))


def test_a_larger_bucket_takes_over_where_it_is_clearly_faster() -> None:
    router = Router({8: 100.0, 16: 99.0, 32: 120.0, 64: 90.0, 96: 130.0})
    assert [router.bucket_for(n) for n in (1, 8, 9, 16, 17, 64, 65, 96)] == [64] * 6 + [96] * 2
    assert router.used == [64, 96]
    assert router.routes() == [(8, 64), (16, 64), (32, 64)]


def test_measurements_that_hardly_differ_change_nothing() -> None:
    router = Router({8: 100.0, 16: 99.0, 32: 98.0})
    assert router.used == [8, 16, 32]


times = st.dictionaries(st.integers(1, 300), st.floats(1, 1000), min_size=1, max_size=12)


@given(times, st.data())
def test_every_number_of_tokens_fits_its_bucket(microseconds: dict[int, float], data: st.DataObject) -> None:
    router = Router(microseconds)
    assert router.largest == max(microseconds)
    num_tokens = data.draw(st.integers(1, router.largest))
    bucket = router.bucket_for(num_tokens)
    assert bucket >= num_tokens
    assert bucket in router.used
    smallest = min(size for size in microseconds if size >= num_tokens)
    assert microseconds[bucket] <= microseconds[smallest]
