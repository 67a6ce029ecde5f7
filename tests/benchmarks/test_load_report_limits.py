"""Limits and conditions: what is read, what is refused, what holds."""

import pytest

from benchmarks.loadtest.errors import OptionError
from benchmarks.loadtest.limits import parse_condition, parse_limit
from benchmarks.loadtest.summary import analyse
from benchmarks.loadtest.units import show_rate, show_share, show_time
from benchmarks.loadtest.verdict import failures, unmet, value_of
from tests.benchmarks.load_report_cases import refused, request, run_info


@pytest.mark.parametrize(
    ("text", "metric", "statistic", "operator", "value"),
    [
        ("ttft_p99>500ms", "ttft", "p99", ">", 0.5),
        (" itl_p50 <= 50 ms ", "itl", "p50", "<=", 0.05),
        ("e2e_max<2.5s", "e2e", "max", "<", 2.5),
        ("tpot_mean>=800us", "tpot", "mean", ">=", 0.0008),
        ("ttft_scheduled_p90<1s", "ttft_scheduled", "p90", "<", 1.0),
        ("ttft<1s", "ttft", "p99", "<", 1.0),
        ("goodput<95%", "goodput", "", "<", 0.95),
        ("goodput<9.5req/s", "goodput", "", "<", 9.5),
        ("output_throughput<1e3tokens/s", "output_throughput", "", "<", 1000.0),
        ("failed>0", "failed", "", ">", 0.0),
        ("rejected>1%", "rejected", "", ">", 0.01),
    ],
)
def test_conditions_are_read(text: str, metric: str, statistic: str, operator: str, value: float) -> None:
    condition = parse_condition(text)
    assert (condition.metric, condition.statistic, condition.operator) == (metric, statistic, operator)
    assert condition.value == pytest.approx(value)
    assert condition.text == text.strip()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must read"),
        ("ttft_p99=500ms", "must read"),
        ("ttft_p99>", "must read"),
        ("ttft_p99>1.2.3ms", "is not a number"),
        ("speed>5", "speed is not one of ttft"),
        ("ttft_p42>5ms", "p42 is not a statistic of ttft"),
        ("goodput_p99>5%", "p99 is not a statistic of goodput"),
        ("ttft_p99>500", "unit of ttft must be one of: s, ms"),
        ("ttft_p99>5tokens/s", "unit of ttft"),
        ("failed>5ms", "unit of failed must be one of: %"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message) as caught:
        parse_condition(text)
    assert str(caught.value).startswith(f"--fail-if {text!r}")


def test_a_limit_bounds_latencies_from_above() -> None:
    assert parse_limit("output_throughput>=5tokens/s").operator == ">="
    with pytest.raises(OptionError, match=r"--limit 'ttft>1s': .* needs < or <="):
        parse_limit("ttft>1s")


def test_conditions_are_held_against_the_run() -> None:
    records = [request(index, index * 1.0, 0.25, [0.05, 0.05]) for index in range(9)] + [refused(9, 9.5)]
    summary = analyse(records, run_info(1.0), [parse_limit("ttft<=100ms")])
    said = failures(summary, [parse_condition(text) for text in ("ttft_p99>200ms", "ttft_p99>300ms")])
    assert said == ("ttft_p99>200ms: 250 ms",)
    assert failures(summary, [parse_condition("rejected>0")]) == ("rejected>0: 1",)
    assert failures(summary, [parse_condition("rejected>5%")]) == ("rejected>5%: 10 %",)
    assert unmet(summary, [parse_limit("goodput>=50%")]) == ("goodput>=50%: 0 %",)
    assert unmet(summary, [parse_limit("itl_p99<=50.1ms"), parse_limit("ttft_p99<=251ms")]) == ()
    assert value_of(parse_condition("user_throughput>1tokens/s"), summary) == pytest.approx(20.0)
    assert value_of(parse_condition("achieved<1req/s"), summary) == summary.steady.achieved


def test_what_was_not_measured_neither_passes_nor_meets() -> None:
    summary = analyse([refused(0, 0.0)], run_info(1.0))
    assert failures(summary, [parse_condition("ttft_p99>500ms")]) == ("ttft_p99>500ms: not measured",)
    assert unmet(summary, [parse_limit("ttft_p99<=500ms")]) == ("ttft_p99<=500ms: not measured",)


def test_values_are_shown_with_three_digits_and_a_unit() -> None:
    times = [show_time(seconds) for seconds in (None, 0.0, 0.00085, 0.0123, 0.99949, 0.9996, 12.34, 1234.5)]
    assert times == ["-", "0 ms", "850 µs", "12.3 ms", "999 ms", "1 s", "12.3 s", "1,234 s"]
    assert [show_rate(rate) for rate in (None, 0.1234, 99.94, 8746.2)] == ["-", "0.123", "99.9", "8,746"]
    assert [show_share(share) for share in (None, 1.0, 0.99999, 0.5, 0.0)] == [
        "-",
        "100 %",
        "99.9 %",
        "50 %",
        "0 %",
    ]
