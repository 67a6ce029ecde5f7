"""Conditions on a run or on a request: `ttft_p99<=500ms`, `goodput<95%`, `failed>0`.

METRIC[_STATISTIC] OPERATOR NUMBER [UNIT], with the operators < <= > >=. Latencies (ttft, ttft_scheduled, itl,
tpot, e2e) take mean, p50, p90, p95, p99 (where none is named) or max, and s, ms or us. offered, achieved and
goodput are in req/s; goodput, and the outcomes of requests (success, rejected, deadline, cancelled, failed,
incomplete), also in %; outcomes without a unit are counts. output_throughput, total_throughput and
user_throughput are in tokens/s.
"""

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.loadtest.distribution import STATISTICS
from benchmarks.loadtest.errors import OptionError
from benchmarks.loadtest.records import OUTCOMES
from benchmarks.loadtest.units import REQUEST_RATES, SHARES, TIMES, TOKEN_RATES

LATENCIES = ("ttft", "ttft_scheduled", "itl", "tpot", "e2e")
THROUGHPUTS = ("output_throughput", "total_throughput", "user_throughput")
# metric -> unit -> factor to what is measured (s, tokens/s, req/s, share or count)
UNITS: dict[str, dict[str, float]] = {
    **dict.fromkeys(LATENCIES, TIMES),
    **dict.fromkeys(THROUGHPUTS, TOKEN_RATES),
    **dict.fromkeys(("offered", "achieved"), REQUEST_RATES),
    "goodput": REQUEST_RATES | SHARES,
    **dict.fromkeys(OUTCOMES, {"": 1.0} | SHARES),
}
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_FORM = re.compile(
    r"\s*([a-z0-9_]+?)(?:_(mean|p\d+|max))?\s*(<=|>=|<|>)\s*([0-9.]+(?:e[+-]?\d+)?)\s*(\S*)\s*"
)


@dataclass(frozen=True)
class Condition:
    """text: as it was written. statistic: of latencies, else "". value: in s, tokens/s, req/s, a share (0..1)
    or a count. unit: as it was written."""

    text: str
    metric: str
    statistic: str
    operator: str
    value: float
    unit: str

    def holds(self, value: float) -> bool:
        return _COMPARE[self.operator](value, self.value)


def parse_condition(text: str, option: str = "--fail-if") -> Condition:
    """Raises OptionError."""
    match = _FORM.fullmatch(text)
    if match is None:
        raise OptionError(option, repr(text), "must read METRIC[_STATISTIC] < <= > or >= NUMBER and a unit")
    metric, statistic, compare, number, unit = match.groups(default="")
    if metric not in UNITS:
        raise OptionError(option, repr(text), f"{metric} is not one of {', '.join(UNITS)}")
    if statistic and (metric not in LATENCIES or statistic not in STATISTICS):
        known = ", ".join(STATISTICS) if metric in LATENCIES else "none"
        raise OptionError(option, repr(text), f"{statistic} is not a statistic of {metric} ({known})")
    if unit not in UNITS[metric]:
        known = ", ".join(UNITS[metric]).removeprefix(", ")
        raise OptionError(option, repr(text), f"the unit of {metric} must be one of: {known}")
    if metric in LATENCIES:
        statistic = statistic or "p99"
    value = _number(number, text, option) * UNITS[metric][unit]
    return Condition(text.strip(), metric, statistic, compare, value, unit)


def parse_limit(text: str, option: str = "--limit") -> Condition:
    """A condition that good service meets. Raises OptionError, also for a latency's lower bound."""
    limit = parse_condition(text, option)
    if limit.metric in LATENCIES and limit.operator.startswith(">"):
        raise OptionError(option, repr(text), "a limit says what is required: a latency needs < or <=")
    return limit


def _number(number: str, text: str, option: str) -> float:
    try:
        return float(number)
    except ValueError:
        raise OptionError(option, repr(text), f"{number} is not a number") from None
