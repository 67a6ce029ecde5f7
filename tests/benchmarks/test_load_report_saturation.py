"""Over-saturation is found where a queue grows, and seldom where it does not."""

import numpy as np
import pytest

from benchmarks.loadtest.distribution import Floats
from benchmarks.loadtest.saturation import Saturation, Trend, saturation, trend
from benchmarks.loadtest.window import steady_state
from tests.benchmarks.load_report_cases import even_queue, lasting, random_queue, request

NUM_RUNS = 60


def _share_over(load: float, num_servers: int) -> float:
    runs = (random_queue(load, num_servers, seed) for seed in range(NUM_RUNS))
    return sum(saturation(run, steady_state(run, is_closed_loop=False)).is_over for run in runs) / NUM_RUNS


@pytest.mark.parametrize("num_servers", [1, 64])
@pytest.mark.parametrize(("load", "most"), [(0.5, 0.1), (0.8, 0.15)])
def test_a_server_that_keeps_up_is_seldom_accused(load: float, most: float, num_servers: int) -> None:
    assert _share_over(load, num_servers) <= most


@pytest.mark.parametrize("num_servers", [1, 64])
@pytest.mark.parametrize(("load", "least"), [(1.2, 0.45), (1.5, 0.9)])
def test_a_growing_queue_is_found(load: float, least: float, num_servers: int) -> None:
    assert _share_over(load, num_servers) >= least


@pytest.mark.parametrize(("rate", "is_over"), [(9.9, False), (10.0, False), (11.0, True), (20.0, True)])
def test_without_noise_the_capacity_is_exact(rate: float, is_over: bool) -> None:
    records = even_queue(rate)
    assert saturation(records, steady_state(records, is_closed_loop=False)).is_over is is_over


def test_both_must_grow() -> None:
    longer = lasting([(index / 10, index / 10 + 1 + index / 50) for index in range(200)])
    same_ttft = [request(r.index, r.sent, 0.1, [r.ended - r.sent - 0.1]) for r in longer]
    found = [
        saturation(records, steady_state(records, is_closed_loop=False)) for records in (longer, same_ttft)
    ]
    assert found[0].is_over
    assert found[1].concurrency is not None
    assert found[1].concurrency.grows
    assert not found[1].is_over


def test_too_few_requests_tell_nothing() -> None:
    records = even_queue(20.0, num_requests=39)
    found = saturation(records, steady_state(records, is_closed_loop=False))
    assert found == Saturation(concurrency=None, ttft=None)
    assert not found.is_over


def _trend(values: Floats) -> Trend:
    """Of batches of 1 s."""
    found = trend(np.arange(len(values), dtype=np.float64) + 0.5, values, float(len(values)))
    assert found is not None
    return found


def test_trends_of_lines_and_noise() -> None:
    times = np.arange(20.0)
    noise = np.random.default_rng(0).normal(0, 1, 20)
    line, rising = _trend(5 + 3 * times), _trend(50 + times + noise)
    assert line.slope == pytest.approx(3.0)
    assert line.grows
    assert rising.grows
    assert 1.645 < rising.critical < rising.t < line.t
    assert not _trend(np.full(20, 5.0)).grows
    assert not _trend(90 - times).grows
    assert not _trend(50 + noise).grows
    slight = _trend(100 + 0.1 * times)  # certain, but of no interest
    assert slight.t > slight.critical
    assert not slight.grows
    assert trend(times[:3], times[:3], 3.0) is None


def test_noise_that_lasts_is_no_trend() -> None:
    """Batches of which each keeps 0.7 of the last: without the correction, a fifth of such series grow."""
    random = np.random.default_rng(1)
    num_growing = 0
    for _ in range(400):
        noise = random.normal(0, 10, 40)
        for now in range(1, 40):
            noise[now] += 0.7 * noise[now - 1]
        num_growing += _trend(100 + noise[20:]).grows
    assert num_growing <= 0.15 * 400
