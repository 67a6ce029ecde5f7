"""The knee of sweeps over queues that take 10 requests/s."""

from collections.abc import Sequence

from benchmarks.loadtest.knee import find_knee, why_not
from benchmarks.loadtest.summary import Summary, analyse
from tests.benchmarks.load_report_cases import LIMIT, even_queue, limits, refused, run_info


def _sweep(*rates: float) -> list[Summary]:
    return [analyse(even_queue(rate), run_info(rate), [LIMIT]) for rate in rates]


def test_the_knee_is_the_highest_rate_within_the_limits() -> None:
    summaries = _sweep(12.0, 2.0, 10.0, 16.0, 5.0)
    knee = find_knee(summaries, [LIMIT])
    assert knee.rate == 10.0
    assert [verdict.rate for verdict in knee.rates] == [2.0, 5.0, 10.0, 12.0, 16.0]
    assert knee.text.startswith("Knee (ttft_p99<=500ms): 10 req/s. At 12 req/s: over-saturated; ttft_p99")
    assert [summary.steady.goodput.share for summary in summaries[1:3]] == [1.0, 1.0]
    assert summaries[3].steady.goodput.share == 0.0


def test_a_rate_that_grows_is_no_knee_even_without_limits() -> None:
    assert find_knee(_sweep(9.0, 10.0, 11.0), []).rate == 10.0


def test_each_limit_counts() -> None:
    knee = find_knee(_sweep(9.0, 10.0), limits("ttft_p99<=500ms", "e2e_p50<=900ms"))
    assert knee.rate is None
    assert knee.text == ("No knee (ttft_p99<=500ms and e2e_p50<=900ms): 9 req/s, e2e_p50<=900ms: 1 s.")


def test_the_top_of_a_sweep_and_no_sweep_are_said() -> None:
    assert "may take more" in find_knee(_sweep(5.0), [LIMIT]).text
    assert find_knee([], [LIMIT]).text == "No knee: no rate was measured."
    closed = analyse(even_queue(5.0), run_info(None, concurrency=5))
    assert find_knee([closed], []).rates == ()


def test_refusals_and_lag_disqualify() -> None:
    records = even_queue(5.0)
    half = [refused(r.index, r.sent) if r.index % 2 else r for r in records]
    assert why_not(analyse(half, run_info(5.0)), [LIMIT]) == (
        "49.9 % unanswered",
    )  # 197 of 395 in the window
    assert why_not(analyse(records, run_info(5.0, invalid="late")), [LIMIT]) == ("invalid: late",)
    assert find_knee([analyse(half, run_info(5.0)), *_sweep(5.0)], [LIMIT]).rate is None


def test_a_lower_rate_that_missed_is_mentioned() -> None:
    broken = analyse(even_queue(5.0), run_info(5.0, invalid="late"))
    assert "(Yet at 5 req/s: invalid: late.)" in _text([broken, *_sweep(8.0)])


def _text(summaries: Sequence[Summary]) -> str:
    return find_knee(summaries, [LIMIT]).text
