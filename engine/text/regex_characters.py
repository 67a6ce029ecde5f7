"""What one character of a regular expression accepts, as CPython's parser describes it."""

import re
from collections.abc import Callable, Iterable
from re import _constants as sre  # type: ignore[attr-defined]
from typing import Any

CharacterTest = Callable[[str], bool]

_CATEGORIES: dict[Any, tuple[CharacterTest, bool]] = {
    sre.CATEGORY_DIGIT: (str.isdecimal, True),
    sre.CATEGORY_NOT_DIGIT: (str.isdecimal, False),
    sre.CATEGORY_SPACE: (str.isspace, True),
    sre.CATEGORY_NOT_SPACE: (str.isspace, False),
    sre.CATEGORY_WORD: (lambda character: character.isalnum() or character == "_", True),
    sre.CATEGORY_NOT_WORD: (lambda character: character.isalnum() or character == "_", False),
}


def character_test(operation: Any, argument: Any, flags: int) -> CharacterTest:
    """operation: LITERAL, NOT_LITERAL, ANY or IN, with its argument."""
    if operation is sre.ANY:
        return (lambda character: True) if flags & re.DOTALL else (lambda character: character != "\n")
    if operation is not sre.IN:
        negated, items = operation is sre.NOT_LITERAL, [(sre.LITERAL, argument)]
    else:
        negated = argument[0][0] is sre.NEGATE
        items = argument[negated:]
    tests = [_item_test(*item, flags) for item in items]
    if flags & re.IGNORECASE:
        return lambda character: (
            any(test(each) for each in _cases(character) for test in tests) is not negated
        )
    return lambda character: any(test(character) for test in tests) is not negated


def _item_test(kind: Any, argument: Any, flags: int) -> CharacterTest:
    if kind is sre.LITERAL:
        return chr(argument).__eq__
    if kind is sre.RANGE:
        first, last = map(chr, argument)
        return lambda character: first <= character <= last
    assert kind is sre.CATEGORY, kind
    test, wanted = _CATEGORIES[argument]
    if flags & re.ASCII:
        return lambda character: (character.isascii() and test(character)) is wanted
    return lambda character: test(character) is wanted


def _cases(character: str) -> Iterable[str]:
    return {each for each in (character, character.lower(), character.upper()) if len(each) == 1}
