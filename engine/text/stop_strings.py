"""Stop strings in text that arrives in pieces, by Aho and Corasick, "Efficient string matching" (1975)."""

import re
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple


class StopAutomaton:
    """The trie of some stop strings, with failure links. It never changes: outputs of one request share it.

    State 0 is the root; a state stands for the longest suffix of the text that some stop string begins with.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._children: list[dict[str, int]] = [{}]
        self._failures = [0]
        self.depths = [0]  # characters of the suffix that a state stands for
        self.matches: list[str | None] = [None]  # the longest stop string that ends here
        for stop in stops:
            self._insert(stop)
        self._link()
        firsts = "".join(map(re.escape, self._children[0]))
        self.first_characters = re.compile(f"[{firsts}]" if firsts else "(?!)")

    def step(self, state: int, character: str) -> int:
        while state and character not in self._children[state]:
            state = self._failures[state]
        return self._children[state].get(character, 0)

    def _insert(self, stop: str) -> None:
        state = 0
        for character in stop:
            child = self._children[state].setdefault(character, len(self._children))
            if child == len(self._children):
                self._children.append({})
                self._failures.append(0)
                self.depths.append(self.depths[state] + 1)
                self.matches.append(None)
            state = child
        self.matches[state] = stop

    def _link(self) -> None:
        queue = deque(self._children[0].values())
        while queue:
            state = queue.popleft()
            for character, child in self._children[state].items():
                self._failures[child] = self.step(self._failures[state], character)
                self.matches[child] = self.matches[child] or self.matches[self._failures[child]]
                queue.append(child)


class Fed(NamedTuple):
    """emit: text now known to be output. matched: the stop string, or expression, that ended here."""

    emit: str
    matched: str | None


class StopStringMatcher:
    """Cuts a text where it first contains a stop string.

    The match is the one that ends first, however the text is cut into pieces; of several that end together,
    the longest. The output ends before it, or after it with include_stop. Without include_stop, what may be
    the beginning of a stop string is held back until it is known not to be one. Linear in the text.
    """

    def __init__(self, stops: Sequence[str] | StopAutomaton, include_stop: bool = False) -> None:
        self._automaton = stops if isinstance(stops, StopAutomaton) else StopAutomaton(stops)
        self._include_stop = include_stop
        self._state = 0
        self._held = ""
        self._num_fed = 0
        self._end: int | None = None

    @property
    def end(self) -> int | None:
        """Characters fed up to the end of the match; None before one."""
        return self._end

    def feed(self, text: str) -> Fed:
        """The next piece. After a match all text is dropped."""
        if self._end is not None:
            return Fed("", None)
        stop, end = self._search(text)
        if stop is not None:
            self._end = self._num_fed + end
            return Fed(self._cut(text[:end], stop), stop)
        self._num_fed += len(text)
        return Fed(self._hold(text), None)

    def flush(self) -> str:
        """The text is over: what was held back is output after all."""
        held, self._held = self._held, ""
        return held

    def _search(self, text: str) -> tuple[str | None, int]:
        """The first match in `text` and where it ends."""
        automaton, state, position = self._automaton, self._state, 0
        while position < len(text):
            if not state:
                first = automaton.first_characters.search(text, position)
                if first is None:
                    break
                position = first.start()
            state = automaton.step(state, text[position])
            position += 1
            if stop := automaton.matches[state]:
                return stop, position
        self._state = state
        return None, position

    def _cut(self, text: str, stop: str) -> str:
        if self._include_stop:
            return text
        held, self._held = self._held, ""
        return (held + text)[: -len(stop)]

    def _hold(self, text: str) -> str:
        if self._include_stop:
            return text
        text = self._held + text
        split = len(text) - self._automaton.depths[self._state]
        self._held = text[split:]
        return text[:split]
