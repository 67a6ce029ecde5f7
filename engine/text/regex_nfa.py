"""Regular expressions to automata, as in Thompson, "Regular Expression Search Algorithm" (1968).

CPython's own parser reads the notation, so that it is Python's to the letter.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

from engine.errors import InvalidArgumentError
from engine.text.regex_characters import CharacterTest, character_test

MAX_STATES = 512  # of all expressions of a request together: what bounds the time that a character takes

_REFUSED = "look-around, word boundaries, $, back-references, possessive and atomic groups are not supported"


@dataclass(slots=True)
class Nfa:
    """State i takes a character that tests[i] accepts, to branches[i][0].

    Where tests[i] is None it stands for all of branches[i] at once; if it is in line_starts, only at the
    beginning of the text, or, where that says True, of a line. accepts: final states, and of which pattern.
    """

    tests: list[CharacterTest | None] = field(default_factory=list)
    branches: list[list[int]] = field(default_factory=list)
    line_starts: dict[int, bool] = field(default_factory=dict)
    accepts: dict[int, int] = field(default_factory=dict)

    def add(self, branches: Iterable[int] = (), test: CharacterTest | None = None) -> int:
        self.tests.append(test)
        self.branches.append(list(branches))
        return len(self.tests) - 1


def compile_patterns(texts: Sequence[str], patterns: Sequence[str]) -> tuple[Nfa, int]:
    """The automaton of texts and, numbered after them, of regular expressions; and where it begins.

    Raises InvalidArgumentError, field `stop_regex`.
    """
    nfa, entries = Nfa(), []
    for index, text in enumerate(texts):
        state = nfa.add()
        nfa.accepts[state] = index
        for character in reversed(text):
            state = nfa.add([state], character.__eq__)
        entries.append(state)
    most = len(nfa.tests) + MAX_STATES
    for index, pattern in enumerate(patterns, len(texts)):
        state = nfa.add()
        nfa.accepts[state] = index
        entries.append(_Builder(nfa, pattern, most).build(state))
    return nfa, nfa.add(entries)


class _Builder:
    """Adds one pattern to an automaton, from its end to its beginning. most: states that may be in it."""

    def __init__(self, nfa: Nfa, pattern: str, most: int) -> None:
        self._nfa = nfa
        self._pattern = pattern
        self._most = most

    def build(self, end: int) -> int:
        """The state in which the pattern begins."""
        try:
            parsed = parser.parse(self._pattern)
            return self._sequence(parsed, end, parsed.state.flags)
        except (re.error, OverflowError, RecursionError) as error:
            raise self._refusal(f"is no regular expression: {error}") from None

    def _sequence(self, items: Iterable[tuple[Any, Any]], end: int, flags: int) -> int:
        for operation, argument in reversed(list(items)):
            end = self._item(operation, argument, end, flags)
        return end

    def _item(self, operation: Any, argument: Any, end: int, flags: int) -> int:
        if operation in (sre.LITERAL, sre.NOT_LITERAL, sre.ANY, sre.IN):
            return self._add([end], character_test(operation, argument, flags))
        if operation is sre.SUBPATTERN:
            _, added, removed, items = argument
            return self._sequence(items, end, (flags | added) & ~removed)
        if operation is sre.BRANCH:
            return self._add([self._sequence(items, end, flags) for items in argument[1]])
        if operation in (sre.MAX_REPEAT, sre.MIN_REPEAT):  # which differ in what follows the end of a match
            least, most, items = argument
            return self._repeat(items, (least, most), end, flags)
        if operation is sre.AT and argument in (sre.AT_BEGINNING, sre.AT_BEGINNING_STRING):
            state = self._add([end])
            self._nfa.line_starts[state] = argument is sre.AT_BEGINNING and bool(flags & re.MULTILINE)
            return state
        raise self._refusal(_REFUSED)

    def _repeat(self, items: Any, counts: tuple[int, Any], end: int, flags: int) -> int:
        state, (least, most) = end, counts
        if most is sre.MAXREPEAT:
            state = self._add([end])
            self._nfa.branches[state].append(self._sequence(items, state, flags))
        else:
            for _ in range(most - least):
                state = self._add([end, self._sequence(items, state, flags)])
        for _ in range(least):
            once_more = self._sequence(items, state, flags)
            if once_more == state:  # nothing, however often
                break
            state = once_more
        return state

    def _add(self, branches: Iterable[int], test: CharacterTest | None = None) -> int:
        if len(self._nfa.tests) >= self._most:
            raise self._refusal(f"all together have at most {MAX_STATES} states, repeats written out")
        return self._nfa.add(branches, test)

    def _refusal(self, limit: str) -> InvalidArgumentError:
        return InvalidArgumentError("stop_regex", self._pattern, limit)
