"""What Prometheus gets to see, and the words for it: METRICS.md is made from them.

Nothing here is paid per token but its own time. Counters and gauges are the scheduler's numbers, read when
someone scrapes; what a step or a request took goes into plain lists, one update for each distinct value.
Names and buckets are vLLM's where it has them (`vllm:` becomes `inflight_`), so that dashboards carry over.
Each engine has a registry of its own.
"""

from engine.serving.metrics.engine import Metrics
from engine.serving.metrics.exposition import MetricsServer, Registry
from engine.serving.metrics.guided import Compilation
from engine.serving.metrics.request_specs import Interruption
from engine.serving.metrics.start import StartMetrics

__all__ = ["Compilation", "Interruption", "Metrics", "MetricsServer", "Registry", "StartMetrics"]
