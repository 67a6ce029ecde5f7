"""/metrics of a server: its samples, and when they have settled."""

import time
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.loadtest.errors import TargetError
from benchmarks.loadtest.records import Samples

SECONDS_TO_SETTLE = 5.0
INTERVAL = 0.2
_RESTLESS = ("process_", "python_")


def scrape(url: str, timeout: float = 5.0) -> Samples:
    """Blocks. Raises TargetError."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            text = answer.read().decode()
        families = list(text_string_to_metric_families(text))
    except (OSError, ValueError) as error:
        raise TargetError(f"--metrics {url}: {error}") from error
    return {_key(sample.name, sample.labels): sample.value for each in families for sample in each.samples}


def scrape_settled(url: str) -> Samples:
    """Once two in a row agree, as a server notices a moment later that a client has gone. Raises
    TargetError."""
    samples = scrape(url)
    give_up = time.monotonic() + SECONDS_TO_SETTLE
    while time.monotonic() < give_up:
        time.sleep(INTERVAL)
        before, samples = samples, scrape(url)
        if _counters(before) == _counters(samples):
            break
    return samples


def _counters(samples: Samples) -> Samples:
    return {
        key: value
        for key, value in samples.items()
        if not key.startswith(_RESTLESS) and key.partition("{")[0].endswith(("_total", "_count"))
    }


def _key(name: str, labels: dict[str, str]) -> str:
    if not labels:
        return name
    return name + "{" + ",".join(f'{label}="{value}"' for label, value in sorted(labels.items())) + "}"
