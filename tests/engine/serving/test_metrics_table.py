"""The words about metrics: every metric that is served has them, and every query finds its metric."""

import json
import re
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

import engine.serving
from engine.config import EngineOptions
from engine.demo import MODEL_DIR
from engine.serving.build import build_engine
from engine.serving.commands import serve_options
from engine.serving.metrics.catalog import all_specs
from engine.serving.metrics.specs import Kind, Spec
from engine.serving.metrics.table import markdown
from tests.support import promql
from tests.support.promql import QueryError, check

FOLDER = Path(engine.serving.__path__[0])
SPECS = {spec.name: spec for spec in all_specs()}


def queries_of_panels(dashboard: dict[str, Any]) -> Iterator[str]:
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]


DASHBOARD = json.loads((FOLDER / "dashboards" / "grafana.json").read_text())
RULES = [
    rule
    for group in yaml.safe_load((FOLDER / "dashboards" / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]
QUERIES = [*queries_of_panels(DASHBOARD), *(rule["expr"] for rule in RULES)]


def test_the_table_is_made_from_the_code() -> None:
    made_by = "python -m engine.serving.metrics.table > engine/serving/METRICS.md"
    assert (FOLDER / "METRICS.md").read_text() == markdown(), made_by


def test_names_are_used_once_and_words_are_there() -> None:
    assert len(SPECS) == len(all_specs())
    for spec in all_specs():
        assert spec.name.startswith(("inflight_", "process_"))
        assert all((spec.unit, spec.meaning, spec.when_bad)), spec.name
        if spec.kind is Kind.COUNTER:
            assert spec.name.endswith("_total")


def test_advice_names_options_that_exist() -> None:
    parser = ArgumentParser()
    serve_options.add_arguments(parser)
    known = {option for action in parser._actions for option in action.option_strings}
    for spec in all_specs():
        assert set(re.findall(r"--[a-z-]+", f"{spec.meaning} {spec.when_bad}")) <= known, spec.name


def test_advice_names_metrics_that_exist() -> None:
    known = {name.removeprefix("inflight_").removesuffix("_total") for name in SPECS}
    known |= {label.name for spec in all_specs() for label in spec.labels}
    known |= {value for spec in all_specs() for label in spec.labels for value in label.values}
    known |= {"max_num_seqs", "max_new_tokens"}
    for spec in all_specs():
        words = re.findall(r"\b[a-z0-9]+(?:_[a-z0-9]+)+\b", f"{spec.meaning} {spec.when_bad}")
        assert set(words) <= known, spec.name


@pytest.fixture(scope="module")
def families() -> dict[str, Metric]:
    """By name, as scraped from an engine that has been built for good."""
    built = build_engine(EngineOptions(MODEL_DIR, device="cpu", dtype="float32", max_num_seqs=4))
    text = built.engine.metrics.registry.text()
    return {
        family.name + ("_total" if family.type == "counter" else ""): family
        for family in text_string_to_metric_families(text)
    }


def test_what_is_served_is_what_is_described(families: dict[str, Metric]) -> None:
    assert families.keys() == SPECS.keys()
    for name, family in families.items():
        spec = SPECS[name]
        assert family.type == spec.kind.value
        if not name.startswith("process_"):
            assert family.documentation == spec.meaning
        for sample in family.samples:
            check_labels(spec, {key: value for key, value in sample.labels.items() if key != "le"})


def check_labels(spec: Spec, found: dict[str, str]) -> None:
    assert found.keys() == set(spec.label_names), spec.name
    for label in spec.labels:
        assert not label.values or found[label.name] in label.values, spec.name


def test_facts_of_the_engine_are_told(families: dict[str, Metric]) -> None:
    (cache,) = families["inflight_cache_config_info"].samples
    (serves,) = families["inflight_engine_info"].samples
    assert serves.labels["model_name"] == "demo"
    assert (serves.labels["max_num_seqs"], serves.labels["backend"]) == ("4", "torch")
    assert cache.labels["block_size"] == "16"
    num_tokens = int(cache.labels["num_gpu_blocks"]) * 16
    assert int(cache.labels["num_tokens"]) == num_tokens
    memory = {sample.labels["use"]: sample.value for sample in families["inflight_memory_bytes"].samples}
    assert {"weights", "activations", "sampling", "kv_cache", "unused"} <= memory.keys()
    assert memory["kv_cache"] % num_tokens == 0


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_finds_its_metrics(query: str) -> None:
    check(query, SPECS)


def test_every_metric_is_on_the_dashboard() -> None:
    """Of a histogram at least one part."""
    queries = map(promql.read, queries_of_panels(DASHBOARD))
    shown = {selector.name for query in queries for selector in query.selectors}
    shown |= {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    unseen = {"process_virtual_memory_bytes", "process_start_time_seconds"}
    assert SPECS.keys() - shown == unseen


def test_alerts_have_names_words_and_limits() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(set(names)) == len(names)
    for rule in RULES:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"]
        assert re.search(r" (==|>) [\d.]+( |$)", rule["expr"]), rule["alert"]


@pytest.mark.parametrize(
    ("query", "wrong"),
    [
        ("inflight_no_such_thing", "no metric is called inflight_no_such_thing"),
        ("rate(inflight_engine_steps[5m])", "no metric is called inflight_engine_steps"),
        ("inflight_time_to_first_token_seconds", "no metric is called"),
        ("rate(inflight_kv_cache_usage_perc_sum[5m])", "no metric is called"),
        ("inflight_memory_bytes{kind='gpu'}", "what is"),
        ('inflight_memory_bytes{kind="gpu"}', "has no label kind"),
        ('rate(inflight_admission_rejections_total{reason="full"}[1m])', "is never full"),
        ('rate(inflight_admission_rejections_total{reason=~"invalid|full"}[1m])', "is never invalid|full"),
        ("sum by (reason) (rate(inflight_slow_readers_total[1m]))", "label reason"),
        ("sum by (le) (rate(inflight_e2e_request_latency_seconds_sum[1m]))", "label le"),
        ("sum(inflight_slow_readers_total)", "is a counter"),
        ("rate(inflight_num_requests_running[5m])", "is a gauge"),
        ("sum(inflight_num_requests_running", "is missing"),
        ("inflight_num_requests_running)", "closes nothing"),
        ('inflight_memory_bytes{use="a" job="b"}', "no matcher"),
        ("1 + 1", "names no metric"),
    ],
)
def test_a_wrong_query_is_noticed(query: str, wrong: str) -> None:
    with pytest.raises(QueryError, match=re.escape(wrong)):
        check(query, SPECS)


def test_a_right_query_is_read() -> None:
    query = promql.read('sum by (le) (rate(a_b{c="d", e!~"$f"}[5m])) / on (g) group_left (h) i and j > 0.5')
    first, second, third = query.selectors
    assert (first.name, first.function, first.has_range) == ("a_b", "rate", True)
    assert [(m.label, m.operator, m.value) for m in first.matchers] == [("c", "=", "d"), ("e", "!~", "$f")]
    assert (second.name, third.name, third.has_range) == ("i", "j", False)
    assert query.lists == {"le", "g", "h"}
