"""Which metrics and labels a PromQL query names, and whether that is right: enough of the language for it.

Not a parser: a misplaced operator goes unseen. Brackets have to match.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from engine.serving.metrics.specs import Kind, Spec

_TOKEN = re.compile(
    r"""(?P<space>\s+) | (?P<string>"(?:[^"\\]|\\.)*") | (?P<range>\[[^\]]*\])
    | (?P<variable>\$\w+) | (?P<number>\d[\w.]*) | (?P<name>[a-zA-Z_:][\w:]*)
    | (?P<operator>=~|!~|!=|==|<=|>=|[-+*/%^<>=(){},@])""",
    re.VERBOSE,
)
_WORDS = {"bool", "and", "or", "unless", "offset"}
_LISTS = {"by", "without", "on", "ignoring", "group_left", "group_right"}  # followed by labels in parentheses
_GROWTH = {"rate", "irate", "increase"}
_TARGET = frozenset({"job", "instance"})  # what Prometheus adds
_PAIRS = {"(": ")", "{": "}"}


class QueryError(ValueError):
    """What is wrong with a query."""


class Token(NamedTuple):
    kind: str
    text: str


@dataclass(frozen=True)
class Matcher:
    """label, operator and value within {}."""

    label: str
    operator: str
    value: str


@dataclass(frozen=True)
class Selector:
    """A metric as a query names it. function: that is called with it alone, or "". has_range: whether [5m] or
    the like follows.
    """

    name: str
    matchers: tuple[Matcher, ...]
    function: str
    has_range: bool

    @property
    def is_growth(self) -> bool:
        return self.has_range and self.function in _GROWTH


@dataclass(frozen=True)
class Query:
    """lists: labels in by(), on() and so on."""

    selectors: tuple[Selector, ...]
    lists: frozenset[str]


def tokens(query: str) -> Iterator[Token]:
    position = 0
    while position < len(query):
        match = _TOKEN.match(query, position)
        if match is None:
            raise QueryError(f"{query!r}: what is {query[position:][:10]!r}?")
        position = match.end()
        if match.lastgroup != "space":
            yield Token(str(match.lastgroup), match.group())


def read(query: str) -> Query:
    """Raises QueryError."""
    found = [*tokens(query), Token("end", "")]
    _check_pairs(query, found)
    selectors: list[Selector] = []
    lists: set[str] = set()
    at = 0
    while found[at].kind != "end":
        token, following = found[at], found[at + 1]
        at += 1
        if token.kind != "name" or token.text in _WORDS:
            continue
        if token.text in _LISTS:
            at, labels = _read_list(found, at)
            lists.update(labels)
        elif following.text != "(" and following.text not in _LISTS:  # else a function or an aggregation
            function = found[at - 3].text if at > 2 and found[at - 2].text == "(" else ""
            at, matchers = _read_matchers(query, found, at)
            selectors.append(Selector(token.text, matchers, function, found[at].kind == "range"))
    if not selectors:
        raise QueryError(f"{query!r}: names no metric")
    return Query(tuple(selectors), frozenset(lists))


def _check_pairs(query: str, found: list[Token]) -> None:
    opened: list[str] = []
    for token in found:
        if token.text in _PAIRS and token.kind == "operator":
            opened.append(_PAIRS[token.text])
        elif token.text in _PAIRS.values() and (not opened or opened.pop() != token.text):
            raise QueryError(f"{query!r}: {token.text!r} closes nothing")
    if opened:
        raise QueryError(f"{query!r}: {opened[-1]!r} is missing")


def _read_list(found: list[Token], at: int) -> tuple[int, list[str]]:
    """at: behind the word. A list may be left out after group_left."""
    if found[at].text != "(":
        return at, []
    end = next(i for i in range(at, len(found)) if found[i].text == ")")
    return end + 1, [token.text for token in found[at:end] if token.kind == "name"]


def _read_matchers(query: str, found: list[Token], at: int) -> tuple[int, tuple[Matcher, ...]]:
    """at: behind the name of a metric."""
    if found[at].text != "{":
        return at, ()
    end = next(i for i in range(at, len(found)) if found[i].text == "}")
    matchers = []
    for start in range(at + 1, end, 4):
        label, operator, value, comma = found[start : start + 4]
        is_whole = (label.kind, operator.kind, value.kind) == ("name", "operator", "string")
        if not is_whole or comma.text not in ",}":
            raise QueryError(f"{query!r}: no matcher: {label.text}{operator.text}{value.text}")
        matchers.append(Matcher(label.text, operator.text, value.text[1:-1]))
    return end + 1, tuple(matchers)


def check(query: str, specs: Mapping[str, Spec]) -> Query:
    """specs: by name. Raises QueryError for a metric, a label, or a value of one, that there is not, and for
    a counter that is not asked for its growth, or a gauge that is.
    """
    parsed = read(query)
    labels = set(_TARGET)
    for selector in parsed.selectors:
        spec = _spec(query, selector, specs)
        own = {label.name: label.values for label in spec.labels} | dict.fromkeys(_TARGET, ())
        if selector.name.endswith("_bucket"):
            own["le"] = ()
        labels |= own.keys()
        for matcher in selector.matchers:
            _check_matcher(query, selector, matcher, own)
        if selector.is_growth != (spec.kind is not Kind.GAUGE):
            raise QueryError(f"{query!r}: {selector.name} is a {spec.kind.value}")
    if unknown := parsed.lists - labels:
        raise QueryError(f"{query!r}: no metric in it has the label {', '.join(sorted(unknown))}")
    return parsed


def _spec(query: str, selector: Selector, specs: Mapping[str, Spec]) -> Spec:
    name, _, suffix = selector.name.rpartition("_")
    spec = specs.get(selector.name)
    if spec is None and suffix in ("bucket", "sum", "count"):
        histogram = specs.get(name)
        if histogram is not None and histogram.kind is Kind.HISTOGRAM:
            return histogram
    if spec is None or spec.kind is Kind.HISTOGRAM:
        raise QueryError(f"{query!r}: no metric is called {selector.name}")
    return spec


def _check_matcher(
    query: str, selector: Selector, matcher: Matcher, own: Mapping[str, tuple[str, ...]]
) -> None:
    if matcher.label not in own:
        raise QueryError(f"{query!r}: {selector.name} has no label {matcher.label}")
    values = own[matcher.label]
    wanted = matcher.value.split("|") if "~" in matcher.operator else [matcher.value]
    if values and "$" not in matcher.value and not set(wanted) <= set(values):
        raise QueryError(f"{query!r}: {matcher.label} of {selector.name} is never {matcher.value}")
