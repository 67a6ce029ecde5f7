"""The steady state of runs whose concurrency is known at each moment."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.loadtest.concurrency import count, in_flight
from benchmarks.loadtest.measures import measure
from benchmarks.loadtest.timeline import timeline
from benchmarks.loadtest.window import Window, steady_state, whole_run
from tests.benchmarks.load_report_cases import lasting, refused


def test_means_and_quantiles_are_weighted_by_time() -> None:
    steps = count([(0.0, 10.0), (2.0, 4.0), (3.0, 4.0), (5.0, 5.0)])
    assert steps.means(np.array([0.0, 2.0, 4.0, 10.0, 20.0])) == pytest.approx([1.0, 2.5, 1.0, 0.0])
    assert steps.quantile(0.5, 0.0, 10.0) == 1
    assert steps.quantile(0.85, 0.0, 10.0) == 2
    assert steps.quantile(0.95, 0.0, 10.0) == 3
    assert steps.quantile(0.5, 3.0, 4.0) == 3
    assert steps.quantile(0.5, 11.0, 12.0) == 0


def test_a_closed_loop_counts_while_all_its_slots_are_taken() -> None:
    """Slot i starts at i; each then sends the next 10 ms after the end of the last, until 40 s."""
    lives = [(start + turn * 2.0, start + turn * 2.0 + 1.99) for start in range(4) for turn in range(20)]
    window = steady_state(lasting(lives), is_closed_loop=True)
    assert window.start == pytest.approx(3.0)
    assert window.end == pytest.approx(39.99)


def test_one_at_a_time_is_a_plateau_in_spite_of_the_gaps() -> None:
    window = steady_state(lasting([(float(i), i + 0.9) for i in range(10)]), is_closed_loop=True)
    assert (window.start, window.end) == pytest.approx((0.0, 9.9))


def test_a_long_dip_ends_a_plateau() -> None:
    lives = [(i + 0.0, i + 0.9) for i in range(10)] + [(15.0 + i, 15.9 + i) for i in range(20)]
    window = steady_state(lasting(lives), is_closed_loop=True)
    assert (window.start, window.end) == pytest.approx((15.0, 34.9))


def test_an_open_loop_drops_ramp_up_and_drain() -> None:
    """One a second, each of 5 s: the fifth makes the five that stay; the last arrives at 99."""
    window = steady_state(lasting([(float(i), i + 5.0) for i in range(100)]), is_closed_loop=False)
    assert (window.start, window.end) == (4.0, 99.0)


def test_an_open_loop_drops_a_long_quiet_tail() -> None:
    lives = [(i / 10, i / 10 + 1.0) for i in range(100)] + [(12.0 + 2 * i, 13.0 + 2 * i) for i in range(3)]
    window = steady_state(lasting(lives), is_closed_loop=False)
    assert window.end == pytest.approx(10.0, abs=1.0)


def test_an_open_loop_keeps_a_lull_before_its_end() -> None:
    """10 in flight, from 9 s on 6: not a tail."""
    lives = [(i / 10, i / 10 + 1.0) for i in range(90)] + [(9 + i / 6, 10 + i / 6) for i in range(6)]
    assert steady_state(lasting(lives), is_closed_loop=False).end == pytest.approx(9 + 5 / 6)


def test_a_burst_was_offered_wholly_however_late_it_was_sent() -> None:
    lives = [replace(life, scheduled=0.0) for life in lasting([(0.01, float(i + 1)) for i in range(10)])]
    assert measure(lives, steady_state(lives, is_closed_loop=False), []).offered == pytest.approx(1.0)


def test_idle_servers_and_bursts_count_wholly() -> None:
    idle = steady_state(lasting([(float(i), i + 0.1) for i in range(10)]), is_closed_loop=False)
    assert (idle.start, idle.end) == (0.0, 9.0)
    burst = steady_state(lasting([(i / 10, float(i + 1)) for i in range(10)]), is_closed_loop=False)
    assert burst.start == 0.0
    assert burst.holds(10.0)  # the last event is inside
    assert "burst" in burst.method


@pytest.mark.parametrize("is_closed_loop", [True, False])
def test_nothing_and_only_instant_refusals_have_a_window(is_closed_loop: bool) -> None:
    assert steady_state([], is_closed_loop=is_closed_loop).seconds == 0
    refusals = [refused(index, index / 10) for index in range(10)]
    window = steady_state(refusals, is_closed_loop=is_closed_loop)
    assert (window.start, window.end) == pytest.approx((0.0, 0.9))


def test_only_what_happened_inside_counts() -> None:
    """One a second of 10 tokens, 0.1 s apart, during 20 s; the window is the second ten."""
    lives = lasting([(float(i), i + 1.0) for i in range(20)])
    whole, second = (measure(lives, window, []) for window in (whole_run(lives), _window(10.0, 20.0)))
    assert second.ttft is not None
    assert second.ttft.num == 10
    assert second.counts["success"] == 10
    assert second.offered == second.goodput.rate == 1.0
    assert second.achieved == 1.0  # those that ended at 10, ..., 19
    assert second.output_throughput == 2.0  # at .1 and at the full second
    assert whole.output_throughput == pytest.approx(2.0)
    assert second.total_throughput == pytest.approx(12.0)
    assert second.concurrency == pytest.approx(1.0)


def test_a_request_counts_by_its_sending_and_its_tokens_by_their_arrival() -> None:
    lives = lasting([(0.0, 10.0), (1.0, 11.0)])  # first tokens at 1 and 2
    measures = measure(lives, _window(0.5, 1.5), [])
    assert measures.ttft is not None
    assert measures.ttft.num == 1  # that of the second, whose first token came after the window
    assert measures.output_throughput == 1.0  # that of the first
    assert measures.itl is None


def test_the_timeline_tells_running_from_waiting() -> None:
    line = timeline(lasting([(0.0, 10.0)] * 4))
    assert line.waiting[0] == line.running[-1] == 4
    assert line.running[0] == line.waiting[-1] == 0
    assert sum(line.running) == pytest.approx(9 * sum(line.waiting), rel=0.01)
    assert in_flight([]).means(np.array([0.0, 1.0])) == [0.0]


def _window(start: float, end: float) -> Window:
    return Window(start=start, end=end, method="given")
