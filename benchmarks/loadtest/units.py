"""Units of limits and of what is shown."""

TIMES = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}  # -> seconds
SHARES = {"%": 0.01}
REQUEST_RATES = {"req/s": 1.0}
TOKEN_RATES = {"tokens/s": 1.0}
NOTHING = "-"


def show_time(seconds: float | None) -> str:
    """Three significant digits: 850 µs, 12.3 ms, 4.56 s."""
    if seconds is None:
        return NOTHING
    size = abs(seconds)
    if size < 0.9995e-3:
        return f"{_three(seconds * 1e6)} µs" if seconds else "0 ms"
    return f"{_three(seconds * 1e3)} ms" if size < 0.9995 else f"{_three(seconds)} s"


def show_rate(value: float | None) -> str:
    """A rate or a count: 1,234 or 12.3 or 0.123."""
    return NOTHING if value is None else _three(value)


def show_share(value: float | None) -> str:
    """0..1 -> 97.5 %, rounded down where it would read 100 %, as a few are missing."""
    if value is None:
        return NOTHING
    return f"{min(value * 100, 99.9) if value < 1 else 100:.3g} %"


def _three(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:.3g}"
