"""All numbers of one engine."""

from collections import Counter
from collections.abc import Callable

from engine.serving.metrics.exposition import Registry
from engine.serving.metrics.guided import GuidedMetrics
from engine.serving.metrics.requests import RequestMetrics
from engine.serving.metrics.scheduling import SchedulerMetrics
from engine.serving.metrics.steps import StepMetrics
from engine.serving.metrics.tokens import TokenMetrics
from scheduler.request import FinishReason
from scheduler.stats import SchedulerStats


class Metrics:
    """Each part is written by one thread: `tokens` by the output thread, `steps` by the engine's and the
    output thread, the others on the event loop. Whoever has got the last of a request finds it counted.
    """

    def __init__(
        self, stats: Callable[[], SchedulerStats], runner: object = None, max_model_len: int = 2**17
    ) -> None:
        """stats: called by the thread that scrapes. runner: the one that runs the steps. max_model_len: of
        the longest sequence, in tokens.
        """
        self.requests = RequestMetrics(max_model_len)
        self.tokens = TokenMetrics()
        self.steps = StepMetrics(runner)
        self.guided = GuidedMetrics()
        self.registry = Registry()
        for part in (SchedulerMetrics(stats), self.tokens, self.requests, self.steps, self.guided):
            self.registry.add(part.families)

    @property
    def num_ended(self) -> Counter[FinishReason]:
        """Accepted requests."""
        return self.requests.num_ended

    @property
    def num_rejected(self) -> Counter[str]:
        return self.requests.num_rejected
