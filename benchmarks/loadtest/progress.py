"""Live figures of a run: a bar on a terminal, nothing elsewhere."""

import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.loadtest.records import OUTCOMES, Outcome
from benchmarks.loadtest.tally import Figures

RATE_SECONDS = 3.0  # tokens/s is of the last so many
NUM_TTFTS = 200  # and TTFT of the last so many requests


class Live:
    """What all processes have told."""

    def __init__(self) -> None:
        self._figures: dict[int, Figures] = {}
        self._ttfts: deque[float] = deque(maxlen=NUM_TTFTS)
        self._tokens: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])

    def take(self, process: int, figures: Figures) -> None:
        self._figures[process] = figures
        self._ttfts.extend(figures.ttfts)
        now = time.monotonic()
        self._tokens.append((now, sum(each.num_tokens for each in self._figures.values())))
        while len(self._tokens) > 2 and self._tokens[0][0] < now - RATE_SECONDS:
            self._tokens.popleft()

    @property
    def num_ended(self) -> Counter[Outcome]:
        return sum((Counter(each.num_ended) for each in self._figures.values()), Counter[Outcome]())

    @property
    def num_sent(self) -> int:
        return sum(each.num_sent for each in self._figures.values())

    def line(self) -> str:
        ended = self.num_ended
        (then, few), (now, many) = self._tokens[0], self._tokens[-1]
        rate = (many - few) / (now - then) if now > then else 0.0
        ttft = f"{median(self._ttfts) * 1e3:.0f} ms" if self._ttfts else "-"
        outcomes = "".join(f", {ended[outcome]} {outcome}" for outcome in OUTCOMES[1:] if ended[outcome])
        running = self.num_sent - ended.total()
        return f"{self.num_sent} sent, {running} running{outcomes}; {rate:,.0f} tokens/s, TTFT p50 {ttft}"


@contextmanager
def show_progress(name: str, num_requests: int, console: Console | None = None) -> Iterator[Live]:
    """A bar while the block runs, its figures as they are taken. console: stderr's."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[line]}"),
    )
    console = console or Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bars:
        task = bars.add_task(name, total=num_requests, line="")

        class _Shown(Live):
            def take(self, process: int, figures: Figures) -> None:
                super().take(process, figures)
                bars.update(task, completed=self.num_ended.total(), line=self.line())

        yield _Shown()
