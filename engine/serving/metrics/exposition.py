"""What Prometheus scrapes. The only file that knows prometheus_client."""

from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from engine.errors import ConfigError
from engine.serving.metrics.specs import Distribution, Family, Kind, Source


class Registry:
    """The metrics of one engine, and of the process that it runs in."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)

    def add(self, source: Source) -> None:
        self.registry.register(_SourceCollector(source))

    def text(self) -> str:
        """What a scrape gets."""
        return generate_latest(self.registry).decode()


class _SourceCollector(Collector):
    def __init__(self, source: Source) -> None:
        self._source = source

    def collect(self) -> Iterator[Metric]:
        yield from map(_metric, self._source())


def _metric(family: Family) -> Metric:
    spec, labels = family.spec, family.spec.label_names
    if spec.kind is Kind.HISTOGRAM:
        histogram = HistogramMetricFamily(spec.name, spec.meaning, labels=labels)
        for values, distribution in family.samples:
            assert isinstance(distribution, Distribution)
            histogram.add_metric(values, _buckets(distribution), distribution.total)
        return histogram
    kind = CounterMetricFamily if spec.kind is Kind.COUNTER else GaugeMetricFamily
    metric = kind(spec.name, spec.meaning, labels=labels)
    for values, value in family.samples:
        assert not isinstance(value, Distribution)
        metric.add_metric(values, value)
    return metric


def _buckets(distribution: Distribution) -> list[tuple[str, int]]:
    bounds = [str(float(bound)) for bound in distribution.bounds[:-1]]
    return list(zip([*bounds, "+Inf"], accumulate(distribution.counts), strict=True))


class MetricsServer:
    """Serves a registry at http://host:port/metrics from threads of its own, until `close`.

    port 0 takes a free one. Raises ConfigError when it cannot listen there.
    """

    def __init__(self, registry: Registry, host: str = "127.0.0.1", port: int = 9090) -> None:
        try:
            self._server, self._thread = start_http_server(port, host, registry.registry)
        except OSError as error:
            raise ConfigError(f"metrics address {host}:{port}: {error.strerror or error}") from error
        self.address = f"{host}:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
