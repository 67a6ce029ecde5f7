"""Sums and differences of numbers up to 999, the differences never negative."""

import re
from collections.abc import Iterator
from random import Random

from engine.demo.sequences import any_number
from engine.demo.task import END, PromptError

_PROBLEM = re.compile(r"(What is )?(?P<left>\d+) ?(?P<sign>[-+]) ?(?P<right>\d+)( =|=|\?)")
_FORMS = ("{} {} {} =", "{}{}{}=", "What is {} {} {}?")
_DIGITS = (1, 1, 2, 2, 2, 3, 3)


def _parse(prompt: str) -> tuple[int, str, int]:
    problem = _PROBLEM.fullmatch(prompt)
    if problem is None:
        raise PromptError(f"not a sum or a difference: {prompt!r}")
    return int(problem["left"]), problem["sign"], int(problem["right"])


def solve(prompt: str) -> Iterator[str]:
    left, sign, right = _parse(prompt)
    result = left + right if sign == "+" else left - right
    yield f"{result}" if re.search(r"\d=$", prompt) else f" {result}"
    yield END


def key(prompt: str) -> str:
    """The operands, however the problem is put; of a sum in one order: 7 + 12 must not give away 12 + 7."""
    left, sign, right = _parse(prompt)
    return f"{max(left, right)}{sign}{min(left, right)}"


def sample_sum(rng: Random) -> str:
    return rng.choice(_FORMS).format(any_number(rng, _DIGITS), "+", any_number(rng, _DIGITS))


def sample_difference(rng: Random) -> str:
    right, left = sorted((any_number(rng, _DIGITS), any_number(rng, _DIGITS)))
    return rng.choice(_FORMS).format(left, "-", right)
