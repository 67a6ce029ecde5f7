"""How far a start is: bars on a terminal, else a log line for each phase."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from engine.memory import format_bytes

if TYPE_CHECKING:
    from rich.console import Console

    from engine.loading import PhaseProgress

logger = logging.getLogger("inflight")


@contextmanager
def start_progress(console: "Console") -> Iterator["PhaseProgress"]:
    """Takes the reports of a start. console: of stderr."""
    if console.is_terminal:
        with _bars(console) as report:
            yield report
    else:
        log = PhaseLog()
        yield log.report
        log.end()


class PhaseLog:
    """One line for each phase, once it is over, which is when the next one begins. clock: seconds."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._phase = self._amount = ""
        self._started = 0.0

    def report(self, phase: str, done: int, total: int) -> None:
        if phase != self._phase:
            self.end()
            self._phase, self._started = phase, self._clock()
        self._amount = _amount(phase, done, total)

    def end(self) -> None:
        if self._phase:
            seconds = self._clock() - self._started
            logger.info("%s: %s in %.1f s", self._phase, self._amount or "done", seconds)


@contextmanager
def _bars(console: "Console") -> Iterator["PhaseProgress"]:
    """A bar for each phase, with its amounts and its seconds."""
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
    from rich.text import Text

    class Seconds(ProgressColumn):
        """Go on until the next phase, for some take their time after the last of what they count."""

        def render(self, task: Task) -> Text:
            return Text(f"{task.elapsed or 0:.1f} s", justify="right")

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[amount]}"), Seconds())
    with Progress(*columns, console=console, transient=True) as bars, _logging_to(sys.stderr):
        tasks: dict[str, TaskID] = {}

        def report(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                for task in tasks.values():
                    bars.stop_task(task)
                tasks[phase] = bars.add_task(phase, total=None, amount="")
            bars.update(tasks[phase], completed=done, total=total or None, amount=_amount(phase, done, total))

        yield report


def _amount(phase: str, done: int, total: int) -> str:
    """Empty as long as nobody knows how much there is."""
    if not total:
        return ""
    if phase != "weights":
        return f"{done} of {total}"
    return format_bytes(total) if done == total else f"{format_bytes(done)} of {format_bytes(total)}"


@contextmanager
def _logging_to(stream: TextIO) -> Iterator[None]:
    """Log lines pass above the bars, whose console has put itself in the place of stderr."""
    handlers = [
        handler
        for handler in logging.getLogger().handlers
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler)
    ]
    before = [handler.setStream(stream) for handler in handlers]
    try:
        yield
    finally:
        for handler, old in zip(handlers, before, strict=True):
            if old is not None:
                handler.setStream(old)
