"""How many tokens: fixed, or drawn from a distribution."""

import math
import random
from dataclasses import dataclass
from typing import Literal

from benchmarks.loadtest.errors import OptionError

FORMS = "N, uniform:LOW:HIGH or lognormal:MEDIAN:SIGMA[:LOW:HIGH]"


@dataclass(frozen=True)
class Lengths:
    """Numbers of tokens in [low, high]. median and sigma: of the logarithm's normal distribution."""

    kind: Literal["fixed", "uniform", "lognormal"]
    low: int
    high: int
    median: float = 0.0
    sigma: float = 0.0

    def draw(self, rng: random.Random) -> int:
        if self.kind == "lognormal":
            length = round(self.median * math.exp(rng.gauss(0.0, self.sigma)))
            return min(self.high, max(self.low, length))
        return rng.randint(self.low, self.high)

    def __str__(self) -> str:
        if self.kind == "fixed":
            return str(self.low)
        middle = f":{self.median:g}:{self.sigma:g}" if self.kind == "lognormal" else ""
        return f"{self.kind}{middle}:{self.low}:{self.high}"


def parse_lengths(option: str, text: str) -> Lengths:
    """One of FORMS. A lognormal's default bounds are 1 and 16 times its median. Raises OptionError."""
    kind, *parts = text.split(":")
    try:
        lengths = _parse(kind, [float(part) for part in parts])
    except ValueError as error:
        raise OptionError(option, text, f"expected {FORMS}") from error
    if not 1 <= lengths.low <= lengths.high:
        raise OptionError(option, text, "tokens are at least 1, and LOW is at most HIGH")
    return lengths


def _parse(kind: str, numbers: list[float]) -> Lengths:
    if kind == "uniform":
        low, high = map(int, numbers)
        return Lengths("uniform", low, high)
    if kind == "lognormal":
        median, sigma, *bounds = numbers
        if not (median >= 1 and sigma >= 0):
            raise ValueError(kind)
        low, high = map(int, bounds or (1, 16 * median))
        return Lengths("lognormal", low, high, median, sigma)
    if numbers:
        raise ValueError(kind)
    return Lengths("fixed", int(kind), int(kind))
