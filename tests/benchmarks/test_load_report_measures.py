"""Latencies, goodput and outcomes of records whose figures are known."""

from dataclasses import replace

import pytest

from benchmarks.loadtest.distribution import describe
from benchmarks.loadtest.goodput import goodput, meets
from benchmarks.loadtest.measures import measure
from benchmarks.loadtest.summary import analyse
from benchmarks.loadtest.window import whole_run
from tests.benchmarks.load_report_cases import LIMIT, limits, refused, request, run_info


def test_percentiles_are_exact() -> None:
    records = [request(index, 0.0, index / 100) for index in range(101)]
    ttft = measure(records[::-1], whole_run(records), []).ttft
    assert ttft is not None
    assert ttft.num == 101
    found = (ttft.mean, ttft.p50, ttft.p90, ttft.p95, ttft.p99, ttft.max)
    assert found == pytest.approx((0.5, 0.5, 0.9, 0.95, 0.99, 1.0))
    assert describe([]) is None


def test_a_chunk_of_several_tokens_counts_as_so_many_gaps() -> None:
    record = request(0, 1.0, 0.5, num_output_tokens=5, ended=2.0, scheduled=0.9)
    record = replace(record, chunks=((1.5, 1), (1.8, 3), (2.0, 1)))
    measures = measure([record], whole_run([record]), [])
    assert measures.itl is not None
    assert measures.itl.num == 4
    assert measures.itl.mean == pytest.approx(0.125)
    assert measures.itl.p50 == pytest.approx(0.1)
    assert measures.itl.max == pytest.approx(0.2)
    assert measures.user_throughput == pytest.approx(8.0)
    assert measures.tpot is not None
    assert measures.tpot.mean == pytest.approx(0.125)
    assert measures.e2e is not None
    assert measures.e2e.max == pytest.approx(1.0)
    assert measures.ttft_scheduled is not None
    assert measures.ttft_scheduled.mean == pytest.approx(0.6)


def test_who_reads_slowly_or_leaves_does_not_spoil_latencies() -> None:
    slow = request(1, 0.0, 9.0, [9.0], behaviour="slow")
    left = request(2, 0.0, 0.3, [0.1], outcome="cancelled", behaviour="cancel")
    records = [request(0, 0.0, 0.1, [0.1]), slow, left]
    measures = measure(records, whole_run(records), [LIMIT])
    assert measures.ttft is not None
    assert (measures.ttft.num, measures.ttft.max) == pytest.approx((2, 0.3))
    assert measures.itl is not None
    assert (measures.itl.num, measures.itl.max) == pytest.approx((2, 0.1))
    assert measures.e2e is not None
    assert measures.e2e.num == 1
    assert measures.goodput.num_judged == measures.goodput.num_good == 1
    assert measures.counts["cancelled"] == 1


def test_goodput_counts_failures_against() -> None:
    good = [request(index, index * 1.0, 0.4) for index in range(5)]
    late = [request(5, 5.0, 0.6)]
    lost = [
        refused(6, 6.0),
        refused(7, 7.0, "failed"),
        refused(8, 8.0, "deadline"),
        refused(9, 9.0, "incomplete", 1),
    ]
    records = good + late + lost
    found = goodput(records, whole_run(records), [LIMIT])
    assert (found.num_judged, found.num_answered, found.num_good) == (10, 6, 5)
    assert found.share == 0.5
    assert found.rate == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("limit", "is_met"),
    [
        ("ttft<=100ms", True),
        ("ttft<100ms", False),
        ("ttft_mean<1ms", True),  # about runs
        ("ttft_scheduled<=200ms", False),
        ("itl_max<=200ms", False),
        ("itl_p90<=300ms", True),
        ("tpot<=200ms", True),
        ("tpot<=199ms", False),
        ("e2e<=501ms", True),
        ("e2e<=499ms", False),
        ("output_throughput>=1e9tokens/s", True),
    ],
)
def test_a_request_meets_limits_by_its_own_values(limit: str, is_met: bool) -> None:
    record = request(0, 0.0, 0.1, [0.1, 0.3], scheduled=-0.125)
    record = replace(record, chunks=((0.1, 1), (0.2, 1), (0.5, 1)), ended=0.5)
    assert meets(record, limits(limit)) is is_met


def test_what_happened_is_said() -> None:
    records = [request(index, index * 0.5, 0.1) for index in range(10)]
    records += [refused(index, index * 0.5) for index in range(10, 13)]
    summary = analyse(records, run_info(2.0, num_planned=20), [LIMIT])
    assert summary.whole.counts == {
        "success": 10, "rejected": 3, "deadline": 0, "cancelled": 0, "failed": 0, "incomplete": 0
    }  # fmt: skip
    assert summary.errors == (("RESOURCE_EXHAUSTED: full", 3),)
    assert "7 of 20 planned requests were never sent" in summary.notes
    assert any("too few" in note for note in summary.notes)
    assert summary.lag is not None
    assert summary.lag.max == 0
    assert summary.verdict == "valid"
    assert analyse(records, run_info(invalid="late")).verdict == "invalid: late"
