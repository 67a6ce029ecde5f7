"""What a start shows of itself while it goes on."""

import io
import logging
import sys

import pytest
from rich.console import Console

from engine.serving.commands.progress import PhaseLog, start_progress


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "inflight"]


def test_a_line_for_each_phase_when_the_next_one_begins(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "inflight")
    times = iter([10.0, 12.5, 12.5, 13.25])
    log = PhaseLog(clock=lambda: next(times))
    log.report("weights", 0, 0)
    for done in (1 << 30, 3 << 30):
        log.report("weights", done, 3 << 30)
    assert messages(caplog) == []
    log.report("plans", 0, 0)
    log.report("plans", 5, 5)
    assert messages(caplog) == ["weights: 3 GiB in 2.5 s"]
    log.end()
    assert messages(caplog)[1:] == ["plans: 5 of 5 in 0.8 s"]


def test_phases_that_count_nothing_are_told_as_well(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "inflight")
    with start_progress(Console(file=io.StringIO())) as report:
        report("kernels", 0, 0)
    assert messages(caplog) == ["kernels: done in 0.0 s"]


def test_a_start_that_fails_does_not_say_that_a_phase_is_done(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "inflight")

    def fail() -> None:
        with start_progress(Console(file=io.StringIO())) as report:
            report("weights", 1, 2)
            raise MemoryError

    with pytest.raises(MemoryError):
        fail()
    assert messages(caplog) == []


def test_bars_on_a_terminal_with_log_lines_above(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, height=20, _environ={})
    handler = logging.StreamHandler(io.StringIO())
    logging.getLogger().addHandler(handler)
    before = handler.stream
    try:
        with start_progress(console) as report:
            report("weights", 1 << 20, 4 << 20)
            report("kernels", 0, 0)
            report("kernels", 3, 8)
            logging.getLogger("inflight").warning("not used: apart")
            assert handler.stream is sys.stderr
    finally:
        logging.getLogger().removeHandler(handler)
    assert handler.stream is before
    shown = screen.getvalue()
    for part in ("weights", "1 MiB of 4 MiB", "kernels", "3 of 8", "not used: apart"):
        assert part in shown
