"""What a GPU benchmark prints: sections that may fail one by one, aligned tables, aims met and missed."""

import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_NUM_FRAMES = 6  # of a traceback, the innermost


@dataclass(frozen=True, slots=True)
class Aim:
    """at_most: whether the limit is an upper one."""

    name: str
    measured: float
    limit: float
    unit: str
    at_most: bool = True

    @property
    def is_met(self) -> bool:
        return self.measured <= self.limit if self.at_most else self.measured >= self.limit

    def cells(self) -> tuple[str, ...]:
        sign = "<=" if self.at_most else ">="
        limit, measured = (f"{_amount(value)} {self.unit}" for value in (self.limit, self.measured))
        return (self.name, f"{sign} {limit}", measured, "met" if self.is_met else "MISSED")


class Report:
    """Prints at once, also to a file if there is one. max_seconds: no section begins after that."""

    def __init__(self, path: Path | None, max_seconds: float) -> None:
        self._file = None if path is None else path.open("w", encoding="utf-8")
        self._started = time.perf_counter()
        self._max_seconds = max_seconds
        self.aims: list[Aim] = []
        self.failed: list[str] = []

    @property
    def is_late(self) -> bool:
        return self._elapsed > self._max_seconds

    def line(self, text: str = "") -> None:
        print(text, flush=True)
        if self._file is not None:
            print(text, file=self._file, flush=True)

    def table(self, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """The first column is aligned to the left, the others to the right."""
        lines = [header, *rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
        for first, *others in lines:
            cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
            self.line("  ".join((first.ljust(widths[0]), *cells)))

    def section(self, name: str, work: Callable[[], object]) -> None:
        """Run it. One that raises is counted in `failed` and does not keep the next from running."""
        if self.is_late:
            self.line(f"\n== {name}: skipped after {self._elapsed:.0f} s")
            self.failed.append(name)
            return
        started = self._elapsed
        self.line(f"\n== {name}")
        self.attempt(name, work)
        self.line(f"-- {name}: {self._elapsed - started:.1f} s, {self._elapsed:.1f} s since the start")

    def attempt(self, name: str, work: Callable[[], T]) -> T | None:
        """One case of a section: its result. None: it raised, which is printed and counted in `failed`."""
        try:
            return work()
        except Exception:
            self.line(f"{name}: {traceback.format_exc(limit=-_NUM_FRAMES)}")
            self.failed.append(name)
            return None

    def summary(self) -> bool:
        """Whether everything ran and every aim is met."""
        self.line("\n== aims")
        self.table(("", "aim", "measured", ""), (aim.cells() for aim in self.aims))
        if self.failed:
            self.line(f"not finished: {', '.join(self.failed)}")
        return not self.failed and all(aim.is_met for aim in self.aims)

    @property
    def _elapsed(self) -> float:
        return time.perf_counter() - self._started


def _amount(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
