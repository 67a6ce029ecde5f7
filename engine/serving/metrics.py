"""What Prometheus scrapes. The only file that knows prometheus_client.

Nothing here is paid per token. Counters and gauges are the scheduler's own numbers, read when someone
scrapes; latencies go into plain lists, one update for each distinct value of a step (the sequences of a batch
mostly share one). Names and buckets are vLLM's where it has them (`vllm:` becomes `inflight_`), so that
dashboards carry over; counters gain `_total` on the wire. Each engine has a registry of its own.
"""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from engine.errors import ConfigError
from scheduler.request import FinishReason
from scheduler.stats import SchedulerStats

# Seconds. vLLM's first bucket of inter-token latency is 10 ms: too coarse for small models.
TTFT_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560),
)
ITL_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80),
)
LATENCY_BUCKETS = (
    *(0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60),
    *(120, 240, 480, 960, 1920, 7680),
)


class Histogram:
    """As prometheus_client's, but one call observes any number of equal values. One thread writes."""

    def __init__(self, name: str, documentation: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = (*bounds, math.inf)
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += count
        self._sum += value * count

    def collect(self) -> HistogramMetricFamily:
        buckets, total = [], 0
        for bound, count in zip(self._bounds, self._counts, strict=True):
            total += count
            buckets.append((str(float(bound)) if bound < math.inf else "+Inf", total))
        return HistogramMetricFamily(self._name, self._documentation, buckets=buckets, sum_value=self._sum)


class Metrics(Collector):
    """The numbers of one engine.

    stats: called by the thread that scrapes. The output thread observes the latencies of tokens; everything
    about a whole request is counted on the event loop.
    """

    def __init__(self, stats: Callable[[], SchedulerStats]) -> None:
        self._stats = stats
        self.time_to_first_token = Histogram(
            "inflight_time_to_first_token_seconds",
            "From a request's arrival to its first token, queueing and tokenizing included",
            TTFT_BUCKETS,
        )
        self.inter_token_latency = Histogram(
            "inflight_inter_token_latency_seconds",
            "Between a token and the next one of the same output",
            ITL_BUCKETS,
        )
        self.request_latency = Histogram(
            "inflight_e2e_request_latency_seconds",
            "From a request's arrival to the end of its last output",
            LATENCY_BUCKETS,
        )
        self.num_ended: Counter[FinishReason] = Counter(dict.fromkeys(FinishReason, 0))
        self.num_rejected: Counter[str] = Counter(
            {"invalid": 0, "duplicate": 0, "overloaded": 0, "unavailable": 0}
        )
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        yield from _gauges(stats)
        yield from _counters(stats)
        yield _labelled(
            "request_success",
            "Requests that ended, by reason; the gravest one where the outputs of one request differ",
            "finished_reason",
            {reason.value: count for reason, count in self.num_ended.items()},
        )
        yield _labelled("admission_rejections", "Requests not accepted", "reason", self.num_rejected)
        yield self.time_to_first_token.collect()
        yield self.inter_token_latency.collect()
        yield self.request_latency.collect()


class StartMetrics(Collector):
    """What an engine is, and what its start took. seconds: by phase. info: labels and their values.

    num_rejected: plans and kernels that differed from the reference.
    """

    def __init__(self, info: Mapping[str, str], seconds: Mapping[str, float], num_rejected: int) -> None:
        self._info = dict(info)
        self._seconds = dict(seconds)
        self._num_rejected = num_rejected

    def collect(self) -> Iterator[Metric]:
        info = GaugeMetricFamily(
            "inflight_engine_info", "What serves; the value is 1", labels=list(self._info)
        )
        info.add_metric(list(self._info.values()), 1)
        yield info
        documentation = "What each phase of the start took"
        startup = GaugeMetricFamily("inflight_startup_seconds", documentation, labels=["phase"])
        for phase, seconds in self._seconds.items():
            startup.add_metric([phase], seconds)
        yield startup
        documentation = "Plans and kernels not used, as they differed from the reference at the start"
        yield GaugeMetricFamily("inflight_rejected_kernels", documentation, value=self._num_rejected)


def _gauges(stats: SchedulerStats) -> Iterator[Metric]:
    for name, documentation, value in (
        ("num_requests_running", "Sequences in the batch", stats.num_running),
        ("num_requests_waiting", "Sequences waiting for a place in the batch", max(0, stats.num_waiting)),
        ("kv_cache_usage_perc", "KV blocks in use over all KV blocks; 1 is full", stats.kv_usage),
    ):
        yield GaugeMetricFamily(f"inflight_{name}", documentation, value=value)


def _counters(stats: SchedulerStats) -> Iterator[Metric]:
    for name, documentation, value in (
        (
            "prompt_tokens",
            "Prompt tokens of the requests that ran, cached ones included",
            stats.num_prompt_tokens,
        ),
        ("generation_tokens", "Tokens sampled", stats.num_generated_tokens),
        ("num_preemptions", "Times that a sequence lost its blocks to another", stats.num_preemptions),
        ("prefix_cache_queries", "Prompt tokens looked up", stats.num_prefix_queried_tokens),
        ("prefix_cache_hits", "Prompt tokens whose KV blocks were found", stats.num_prefix_hit_tokens),
        ("engine_steps", "Steps launched", stats.num_steps),
    ):
        yield CounterMetricFamily(f"inflight_{name}", documentation, value=value)


def _labelled(name: str, documentation: str, label: str, values: dict[str, int]) -> Metric:
    family = CounterMetricFamily(f"inflight_{name}", documentation, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family


class MetricsServer:
    """Serves a registry at http://host:port/metrics from threads of its own, until `close`.

    port 0 takes a free one. Raises ConfigError when it cannot listen there.
    """

    def __init__(self, registry: CollectorRegistry, host: str = "127.0.0.1", port: int = 9090) -> None:
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise ConfigError(f"metrics address {host}:{port}: {error.strerror or error}") from error
        self.address = f"{host}:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
