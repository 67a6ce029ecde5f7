"""The phases of a start: what each is called, how far it is, how long it took."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from engine.loading import PhaseProgress


class Phases:
    """Times phases, in order, and passes on their progress."""

    def __init__(self, progress: PhaseProgress | None) -> None:
        self._progress = progress
        self._seconds: dict[str, float] = {}
        self._current = ""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._current, started = name, time.perf_counter()
        self.report(0, 0)
        try:
            yield
        finally:
            self._seconds[name] = time.perf_counter() - started

    def report(self, done: int, total: int) -> None:
        """How far the current phase is."""
        if self._progress is not None:
            self._progress(self._current, done, total)

    @property
    def seconds(self) -> tuple[tuple[str, float], ...]:
        return tuple(self._seconds.items())
