"""Server and client compared; lag that makes a result invalid; samples of /metrics."""

import pytest
from prometheus_client import CollectorRegistry, Counter, start_http_server

from benchmarks.loadtest.counts import check_counts
from benchmarks.loadtest.errors import TargetError
from benchmarks.loadtest.looplag import thinned
from benchmarks.loadtest.records import Outcome, RequestRecord, RunInfo, Samples
from benchmarks.loadtest.scrape import scrape
from benchmarks.loadtest.validity import why_invalid

BEFORE: Samples = {
    "inflight_prompt_tokens_total": 100.0,
    "inflight_generation_tokens_total": 50.0,
    'inflight_request_success_total{finished_reason="length"}': 5.0,
    'inflight_request_success_total{finished_reason="abort"}': 1.0,
    'inflight_request_success_total{finished_reason="deadline"}': 0.0,
    'inflight_admission_rejections_total{reason="overloaded"}': 2.0,
    "inflight_time_to_first_token_seconds_count": 5.0,
    "inflight_e2e_request_latency_seconds_count": 6.0,
    "inflight_inter_token_latency_seconds_count": 45.0,
}
LENGTH = 'inflight_request_success_total{finished_reason="length"}'
ABORT = 'inflight_request_success_total{finished_reason="abort"}'


def _record(
    index: int = 0, outcome: Outcome = "success", num_tokens: int = 4, **fields: object
) -> RequestRecord:
    values: dict[str, object] = {
        "chunks": tuple((0.1 * count, 1) for count in range(num_tokens)),
        "finish_reason": "length" if outcome == "success" else None,
        "num_prompt_tokens": 10,
        "num_output_tokens": num_tokens,
        "num_wanted_tokens": 4,
        **fields,
    }
    return RequestRecord(index=index, scheduled=0.0, sent=0.0, ended=1.0, outcome=outcome, **values)  # type: ignore[arg-type]


def _after(**growth: float) -> Samples:
    """Two requests of 10 + 4 tokens later; and what else grew, by the end of its name."""
    after = dict(BEFORE)
    for key, value in {
        "inflight_prompt_tokens_total": 20,
        "inflight_generation_tokens_total": 8,
        LENGTH: 2,
        "inflight_time_to_first_token_seconds_count": 2,
        "inflight_e2e_request_latency_seconds_count": 2,
        "inflight_inter_token_latency_seconds_count": 6,
        **growth,
    }.items():
        after[key] += value
    return after


def test_equal_counts_differ_in_nothing() -> None:
    assert check_counts([_record(0), _record(1)], BEFORE, _after()) == []


@pytest.mark.parametrize(
    ("key", "growth", "message"),
    [
        ("inflight_prompt_tokens_total", 19, "prompt tokens: the server counted 19, the client 20"),
        ("inflight_generation_tokens_total", 9, "generated tokens: the server counted 9, the client 8"),
        (LENGTH, 1, "requests that ended with length: the server counted 1, the client 2"),
        (ABORT, 1, "requests aborted: the server counted 1, the client 0"),
        (
            'inflight_request_success_total{finished_reason="deadline"}',
            1,
            "deadlines passed: the server counted 1, the client 0",
        ),
        (
            'inflight_admission_rejections_total{reason="overloaded"}',
            1,
            "requests rejected: the server counted 1, the client 0",
        ),
        (
            "inflight_time_to_first_token_seconds_count",
            3,
            "first tokens timed: the server counted 3, the client 2",
        ),
        ("inflight_inter_token_latency_seconds_count", 5, "gaps timed: the server counted 5, the client 6"),
    ],
)
def test_every_difference_is_told(key: str, growth: int, message: str) -> None:
    differences = check_counts([_record(0), _record(1)], BEFORE, _after(**{key: growth}))
    assert message in differences


def test_a_cancelled_request_may_have_got_further() -> None:
    records = [_record(0), _record(1), _record(2, "cancelled", num_tokens=2)]

    def after(prompt: int, generated: int, timed: int = 3, gaps: int = 7) -> Samples:
        return _after(
            **{
                "inflight_prompt_tokens_total": prompt,
                "inflight_generation_tokens_total": generated,
                ABORT: 1,
                "inflight_time_to_first_token_seconds_count": timed,
                "inflight_e2e_request_latency_seconds_count": timed,
                "inflight_inter_token_latency_seconds_count": gaps,
            }
        )

    assert check_counts(records, BEFORE, after(30, 10)) == []
    assert check_counts(records, BEFORE, after(30, 12, gaps=9)) == []
    assert check_counts(records, BEFORE, after(30, 13, gaps=9)) == [
        "generated tokens: the server counted 13, the client 10 to 12"
    ]
    assert check_counts(records, BEFORE, after(20, 10)) == [
        "prompt tokens: the server counted 20, the client 30"  # the client saw tokens: it ran
    ]


def test_rejections_are_counted() -> None:
    rejected = _record(2, "rejected", num_tokens=0, error="RESOURCE_EXHAUSTED: queue")
    records = [_record(0), _record(1), rejected]
    key = 'inflight_admission_rejections_total{reason="overloaded"}'
    assert check_counts(records, BEFORE, _after(**{key: 1})) == []
    assert check_counts(records, BEFORE, _after()) == [
        "requests rejected: the server counted 0, the client 1"
    ]


def test_a_peers_names_are_known() -> None:
    def renamed(samples: Samples) -> Samples:
        return {key.replace("inflight_", "vllm:"): value for key, value in samples.items()}

    differences = check_counts([_record(0)], renamed(BEFORE), renamed(_after()))
    assert "prompt tokens: the server counted 20, the client 10" in differences


def _lagging(lag: float, ttft: float = 0.01, count: int = 100) -> list[RequestRecord]:
    return [
        RequestRecord(index=index, scheduled=1.0, sent=1.0 + lag, ended=9.0, chunks=((1.0 + lag + ttft, 1),))
        for index in range(count)
    ]


def test_lag_beyond_the_limit_makes_a_result_invalid() -> None:
    assert why_invalid(_lagging(0.049), []) is None
    assert "51.0 ms at sending" in (why_invalid(_lagging(0.051), []) or "")
    assert why_invalid(_lagging(0.051), [], lag_limit=0.06) is None
    assert "60.0 ms of its event loops" in (why_invalid(_lagging(0.0), [0.06] * 10) or "")


def test_lag_is_measured_by_what_it_is_to_the_result() -> None:
    assert why_invalid(_lagging(0.051, ttft=0.52), []) is None
    assert why_invalid(_lagging(0.051, ttft=0.49), []) is not None


def test_one_late_request_in_a_hundred_is_forgiven() -> None:
    assert why_invalid(_lagging(0.0, count=199) + _lagging(1.0, count=1), []) is None


def test_thinned_values_keep_their_quantiles() -> None:
    values = [float(value) for value in range(30_000)]
    kept = thinned(list(reversed(values)))
    assert len(kept) == 1000
    assert (kept[0], kept[-1]) == (0.0, 29_999.0)
    assert kept[500] == pytest.approx(15_000, rel=0.01)


def test_samples_are_read_with_their_labels() -> None:
    registry = CollectorRegistry()
    counter = Counter("inflight_things", "Things.", ["reason", "colour"], registry=registry)
    counter.labels("b", "red").inc(3)
    server, thread = start_http_server(0, "127.0.0.1", registry)
    try:
        samples = scrape(f"http://127.0.0.1:{server.server_port}/metrics")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert samples['inflight_things_total{colour="red",reason="b"}'] == 3.0


def test_metrics_that_are_not_there() -> None:
    with pytest.raises(TargetError, match=r"--metrics http://127\.0\.0\.1:1/metrics"):
        scrape("http://127.0.0.1:1/metrics")


def test_records_and_infos_survive_their_files() -> None:
    record = _record(3, "failed", error="INTERNAL: x", family="1", turn=2, behaviour="slow", process=1)
    assert RequestRecord.from_json(record.to_json()) == record
    info = RunInfo(
        name="a",
        target="grpc://h:1",
        arrival="closed",
        workload="w",
        seed=1,
        started_at="now",
        loop_lag=(0.1, 0.2),
        metrics_before=BEFORE,
        count_differences=("x",),
    )
    assert RunInfo.from_json(info.to_json()) == info


def test_figures_of_a_record() -> None:
    record = _record(chunks=((1.0, 1), (1.5, 2), (1.6, 1)), num_output_tokens=4)
    assert record.ttft == 1.0
    assert record.itls == pytest.approx([0.25, 0.25, 0.1])
    assert record.tpot == 0.0  # ended with its first chunk
    assert _record(chunks=(), num_output_tokens=0).tpot is None
