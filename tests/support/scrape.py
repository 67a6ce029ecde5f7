"""Metrics as a scrape gets them."""

from prometheus_client.parser import text_string_to_metric_families

from engine.serving.metrics import Metrics


def scrape(metrics: Metrics) -> dict[str, float]:
    """Name, with the values of its labels if there are any ("name value value"), to value."""
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(metrics.registry.text())
        for sample in family.samples
    }
