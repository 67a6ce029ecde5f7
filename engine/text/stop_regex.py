"""Regular expressions that end a text that arrives in pieces. Linear in the text, whatever they are."""

from collections.abc import Sequence
from typing import NamedTuple

from engine.errors import InvalidArgumentError
from engine.text.regex_nfa import compile_patterns
from engine.text.stop_strings import Fed

MAX_HELD = 1024  # characters
_MAX_CACHED = 100_000  # numbers in the cached steps of an automaton


class _Step(NamedTuple):
    """What a character makes of a state.

    sources: for each of the new threads, the index of the old one that it goes on with, or -1 where it begins
    after the character. match: of which stop, and with which old thread.
    """

    state: tuple[int, ...]
    sources: tuple[int, ...]
    match: tuple[int, int] | None


class StopRegexes:
    """Stop strings and regular expressions as one automaton, which outputs of one request share.

    A state is a tuple of threads: the states of the NFA that it is in, those first that are in a longer text.
    Its steps are made when they are needed, and kept as long as they are few. One thread at a time.
    """

    def __init__(self, patterns: Sequence[str], strings: Sequence[str] = ()) -> None:
        """Raises InvalidArgumentError, field `stop_regex`: wrong, unsupported, too large, may be empty."""
        self.stops = [*strings, *patterns]
        self.num_strings = len(strings)
        self._nfa, self._entry = compile_patterns(strings, patterns)
        self._steps: dict[tuple[tuple[int, ...], str], _Step] = {}
        self._num_cached = 0
        empty = next(
            (state for state in self._closure(self._entry, True, True) if state in self._nfa.accepts), None
        )
        if empty is not None:
            limit = "must not match the empty text: the output would end before its beginning"
            raise InvalidArgumentError("stop_regex", self.stops[self._nfa.accepts[empty]], limit)

    def start(self, after: str = "") -> tuple[int, ...]:
        """The state at the beginning of the text, or after a character of it."""
        return tuple(self._closure(self._entry, not after, after in ("", "\n")))

    def step(self, state: tuple[int, ...], character: str) -> _Step:
        key = (state, character)
        step = self._steps.get(key)
        if step is None:
            step = self._make(state, character)
            if self._num_cached > _MAX_CACHED:
                self._steps.clear()
                self._num_cached = 0
            self._steps[key] = step
            self._num_cached += 16 + 2 * len(step.state)
        return step

    def _make(self, state: tuple[int, ...], character: str) -> _Step:
        nfa, sources = self._nfa, dict[int, int]()
        starts_line = character == "\n"
        for source, thread in enumerate(state):
            test = nfa.tests[thread]
            if test is not None and test(character):
                for reached in self._closure(nfa.branches[thread][0], False, starts_line):
                    if reached in nfa.accepts:
                        return _Step((), (), (nfa.accepts[reached], source))
                    sources.setdefault(reached, source)
        for reached in self._closure(self._entry, False, starts_line):
            sources.setdefault(reached, -1)
        return _Step(tuple(sources), tuple(sources.values()), None)

    def _closure(self, state: int, starts_text: bool, starts_line: bool) -> list[int]:
        """The states that take a character or accept, reached without one."""
        nfa, reached, seen, waiting = self._nfa, [], {state}, [state]
        while waiting:
            state = waiting.pop()
            if nfa.tests[state] is not None or state in nfa.accepts:
                reached.append(state)
            elif (
                nfa.line_starts.get(state) is None or starts_text or (nfa.line_starts[state] and starts_line)
            ):
                new = [branch for branch in nfa.branches[state] if branch not in seen]
                seen.update(new)
                waiting.extend(reversed(new))
        return reached


class StopRegexMatcher:
    """Cuts a text where a match first ends, however the text is cut into pieces: the longest that ends there.

    The output ends before it, or after it with include_stop. Without include_stop, what may be the beginning
    of a match is held back, but no more than the last MAX_HELD characters: of a longer match, what comes
    before them is output.

    is_regex: whether what has matched is an expression.
    """

    def __init__(self, regexes: StopRegexes, include_stop: bool = False) -> None:
        self._regexes = regexes
        self._include_stop = include_stop
        self._state: tuple[int, ...] = regexes.start()
        self._starts = [0] * len(self._state)  # of each thread, in characters fed, ascending
        self._num_fed = 0
        self._held = ""
        self._has_matched = False
        self.is_regex = False

    def skip(self, text: str) -> None:
        """The text begins with this, which is output and not searched."""
        if text:
            self._state = self._regexes.start(after=text[-1])
            self._num_fed += len(text)
            self._starts = [self._num_fed] * len(self._state)

    def feed(self, text: str) -> Fed:
        """The next piece. After a match all text is dropped."""
        if self._has_matched:
            return Fed("", None)
        for position, character in enumerate(text, 1):
            step = self._regexes.step(self._state, character)
            if step.match is not None:
                self._has_matched = True
                index, source = step.match
                emit = self._cut(text[:position], self._num_fed + position - self._starts[source])
                self.is_regex = index >= self._regexes.num_strings
                return Fed(emit, self._regexes.stops[index])
            starts, begin = self._starts, self._num_fed + position
            self._starts = [begin if source < 0 else starts[source] for source in step.sources]
            self._state = step.state
        self._num_fed += len(text)
        return Fed(self._hold(text), None)

    def flush(self) -> str:
        """The text is over: what was held back is output after all."""
        held, self._held = self._held, ""
        return held

    def _cut(self, text: str, num_matched: int) -> str:
        if self._include_stop:
            return text
        text, self._held = self._held + text, ""
        return text[: max(0, len(text) - num_matched)]

    def _hold(self, text: str) -> str:
        if self._include_stop:
            return text
        text = self._held + text
        num_held = min(MAX_HELD, self._num_fed - (self._starts or [self._num_fed])[0])
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]
