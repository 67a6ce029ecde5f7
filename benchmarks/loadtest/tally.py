"""What one client process has seen so far: live figures, and the records."""

from collections import Counter
from dataclasses import dataclass, field

from benchmarks.loadtest.records import Outcome, RequestRecord


@dataclass(frozen=True)
class Figures:
    """Since the process began; ttfts: since the figures before these."""

    num_sent: int = 0
    num_tokens: int = 0
    num_ended: dict[Outcome, int] = field(default_factory=dict)
    ttfts: tuple[float, ...] = ()


class Tally:
    """Written and read by one event loop."""

    def __init__(self) -> None:
        self.records: list[RequestRecord] = []
        self.num_sent = 0
        self.num_tokens = 0
        self.ttfts: list[float] = []
        self._num_ended: Counter[Outcome] = Counter()

    def end(self, record: RequestRecord) -> None:
        self.records.append(record)
        self._num_ended[record.outcome] += 1

    def figures(self) -> Figures:
        ttfts, self.ttfts = tuple(self.ttfts), []
        return Figures(self.num_sent, self.num_tokens, dict(self._num_ended), ttfts)
