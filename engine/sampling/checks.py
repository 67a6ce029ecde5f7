"""Checks of single values of a request. All raise InvalidArgumentError naming the field, the value, the
limit.
"""

import math
from collections.abc import Collection, Iterable

from engine.errors import InvalidArgumentError


def check_range(field: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    if not math.isfinite(value) or value > high or value < low or (open_low and value == low):
        raise InvalidArgumentError(field, value, f"must be in {'(' if open_low else '['}{low:g}, {high:g}]")


def check_integer(field: str, value: int, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidArgumentError(field, value, f"must be an integer in [{low}, {high}]")


def check_count(field: str, values: Collection[object], most: int, what: str) -> None:
    if len(values) > most:
        raise InvalidArgumentError(field, len(values), f"at most {most} {what}")


def check_token_ids(field: str, token_ids: Iterable[int]) -> None:
    for token_id in token_ids:
        check_integer(field, token_id, 0, 2**31 - 1)


def check_texts(field: str, texts: Iterable[str], most_characters: int) -> None:
    for text in texts:
        if not 1 <= len(text) <= most_characters:
            limit = f"each has 1 to {most_characters} characters, this one has {len(text)}"
            raise InvalidArgumentError(field, text, limit)
