"""METRICS.md, made from the metrics themselves.

python -m engine.serving.metrics.table > engine/serving/METRICS.md
"""

from collections.abc import Iterator

from engine.serving.metrics.catalog import SECTIONS
from engine.serving.metrics.specs import Label, Spec

_HEAD = """# Metrics

Made by `python -m engine.serving.metrics.table > engine/serving/METRICS.md`; a test compares.

`inflight serve` answers at `http://HOST:METRICS_PORT/metrics`. Where vLLM has a metric, this is its name with
`inflight_` for `vllm:`, and its buckets are among ours. A histogram `h` is scraped as `h_bucket`, `h_sum` and
`h_count`. Router and autoscaler (Gateway API inference extension, llm-d) want three gauges:
`inflight_num_requests_waiting`, `inflight_num_requests_running`, `inflight_kv_cache_usage_perc`.

Whoever has got the end of a request finds it counted in all of these, so that a client's own counts and the
server's differ in nothing but what is on its way. A token is counted in `inflight_generation_tokens_total`
when it is sampled; of a request with stop strings, one or two more are sampled than its client gets.

`dashboards/grafana.json` and `dashboards/alerts.yaml` are made of these metrics.
"""


def markdown() -> str:
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    yield _HEAD
    for section in SECTIONS:
        yield f"## {section.title}\n"
        yield "| name | type | labels | unit | meaning | when it is bad |"
        yield "|---|---|---|---|---|---|"
        yield from map(_row, section.specs)
        yield ""


def _row(spec: Spec) -> str:
    labels = "; ".join(map(_label, spec.labels))
    cells = (f"`{spec.name}`", spec.kind.value, labels, spec.unit, f"{spec.meaning}.", spec.when_bad)
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _label(label: Label) -> str:
    values = f": {', '.join(label.values)}" if label.values else ""
    return f"`{label.name}`{values}"


if __name__ == "__main__":
    print(markdown(), end="")
