"""Counting, days, months and alphabets: lists whose next term follows from the two before it.

Lists that rise, and days and months, go on for ever; those that fall end at the last number that is not
negative, alphabets end with the alphabet, and "Count from 7 to 20:" ends where it says.
"""

import re
from collections.abc import Iterator
from itertools import count, takewhile
from random import Random

from engine.demo.task import END, PromptError
from engine.demo.words import DAYS, LETTERS, MONTHS

SEPARATORS = (" ", " ", " ", ", ", ", ", ",", "\n")
STEPS = (2, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10, 10, 11, 12, 20, 25, 50, 100)

_ORDER = re.compile(
    r"Count( up|(?P<down> down))?( by (?P<step>\d+))?"
    r" from (?P<start>\d+)( to (?P<stop>\d+))?:(?P<said>( \d+)*)"
)

Track = tuple[tuple[str, ...], bool]
"""Terms in their order, and whether the first follows the last."""


def _styles(words: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    lower, upper = (tuple(map(str.lower, words)), tuple(map(str.upper, words)))
    return words, lower, upper, tuple(word[:3] for word in words)


DAY_TRACKS: tuple[Track, ...] = tuple((words, True) for words in _styles(DAYS))
MONTH_TRACKS: tuple[Track, ...] = tuple((words, True) for words in _styles(MONTHS))
LETTER_TRACKS: tuple[Track, ...] = ((LETTERS, False), (tuple(map(str.upper, LETTERS)), False))


def _neighbours() -> dict[tuple[str, str], tuple[Track, int, int]]:
    """(term, the next one) -> (their track, place of the second, +1 or -1)."""
    found = {}
    for track in DAY_TRACKS + MONTH_TRACKS + LETTER_TRACKS:
        terms, wraps = track
        for i in range(0 if wraps else 1, len(terms)):
            found[terms[i - 1], terms[i]] = (track, i, 1)
            found[terms[i], terms[i - 1]] = (track, (i - 1) % len(terms), -1)
    return found


_NEIGHBOURS = _neighbours()


def solve(prompt: str) -> Iterator[str]:
    """The pieces that follow a list (`Task.solve`), each with the separator before it."""
    if order := _ORDER.fullmatch(prompt):
        return _follow_order(order)
    separator = next((s for s in ("\n", ", ", ",") if s in prompt), " ")
    terms = prompt.split(separator)
    if len(terms) < 2:
        raise PromptError(f"not a list of two terms or more: {prompt!r}")
    if all(term.isdecimal() for term in terms):
        numbers = _numbers(int(terms[-1]), int(terms[-1]) - int(terms[-2]))
        return _pieces(separator, map(str, numbers))
    if (terms[-2], terms[-1]) not in _NEIGHBOURS:
        raise PromptError(f"nothing is known to follow {terms[-2]!r} and {terms[-1]!r}")
    return _pieces(separator, _words(*_NEIGHBOURS[terms[-2], terms[-1]]))


def _follow_order(order: re.Match[str]) -> Iterator[str]:
    start, stop = int(order["start"]), int(order["stop"]) if order["stop"] else None
    falling = bool(order["down"]) or (stop is not None and stop < start)
    step = int(order["step"] or 1) * (-1 if falling else 1)
    last = int(order["said"].split()[-1]) if order["said"] else start - step
    return _pieces(" ", map(str, _numbers(last, step, stop)))


def _numbers(last: int, step: int, stop: int | None = None) -> Iterator[int]:
    """What follows `last`, up to `stop` where there is one, and never below 0."""
    if step == 0:
        raise PromptError(f"the numbers stand still at {last}")
    numbers = count(last + step, step)
    if step < 0:
        return takewhile(lambda n: n >= (stop or 0), numbers)
    return numbers if stop is None else takewhile(lambda n: n <= stop, numbers)


def _words(track: Track, place: int, direction: int) -> Iterator[str]:
    terms, wraps = track
    while True:
        place += direction
        if wraps:
            place %= len(terms)
        elif not 0 <= place < len(terms):
            return
        yield terms[place]


def _pieces(separator: str, terms: Iterator[str]) -> Iterator[str]:
    for term in terms:
        yield separator + term
    yield END


def any_number(rng: Random, digits: tuple[int, ...] = (1, 2, 2, 3, 3, 4)) -> int:
    """A number whose count of digits is drawn first, so that small ones are not rare."""
    width = rng.choice(digits)
    return rng.randrange(10 ** (width - 1) if width > 1 else 0, 10**width)


def _joined(rng: Random, *numbers: int) -> str:
    return rng.choice(SEPARATORS).join(map(str, numbers))


def sample_count_up(rng: Random) -> str:
    start = any_number(rng)
    return f"Count up from {start}:" if rng.random() < 0.3 else _joined(rng, start, start + 1)


def sample_count_down(rng: Random) -> str:
    start = any_number(rng, (1, 2, 2, 3, 3, 4)) + 2
    return f"Count down from {start}:" if rng.random() < 0.3 else _joined(rng, start, start - 1)


def sample_count_range(rng: Random) -> str:
    start = any_number(rng, (1, 2, 2, 3))
    stop = rng.choice((start + rng.randint(2, 16), max(start - rng.randint(2, 16), 0)))
    return sample_count_range(rng) if start == stop else f"Count from {start} to {stop}:"


def sample_count_by(rng: Random) -> str:
    start, step = any_number(rng, (1, 2, 2, 3)), rng.choice(STEPS)
    falls = rng.random() < 0.4
    if falls:
        start += 3 * step
    if rng.random() < 0.3:
        return f"Count {'down ' if falls else ''}by {step} from {start}:"
    return _joined(rng, *(start + i * (-step if falls else step) for i in range(3)))


def sample_days(rng: Random) -> str:
    return _two_terms(rng, DAY_TRACKS)


def sample_months(rng: Random) -> str:
    return _two_terms(rng, MONTH_TRACKS)


def sample_alphabet(rng: Random) -> str:
    return _two_terms(rng, LETTER_TRACKS)


def _two_terms(rng: Random, tracks: tuple[Track, ...]) -> str:
    """Two neighbours and a third to come, forwards or backwards."""
    terms, wraps = rng.choice(tracks)
    terms = terms if rng.random() < 0.6 else terms[::-1]
    place = rng.randrange(len(terms) if wraps else len(terms) - 2)
    return rng.choice(SEPARATORS).join((terms[place], terms[(place + 1) % len(terms)]))
