"""Matches end where Python's `re` first finds one in a prefix, however the text is cut."""

import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import InvalidArgumentError
from engine.text.regex_nfa import MAX_STATES
from engine.text.stop_regex import MAX_HELD, StopRegexes, StopRegexMatcher


def cut(
    patterns: Sequence[str], pieces: Sequence[str], *, include_stop: bool = False, strings: Sequence[str] = ()
) -> tuple[str, str | None]:
    """What is output of the pieces, and what matched."""
    matcher = StopRegexMatcher(StopRegexes(patterns, strings), include_stop)
    text, matched = "", None
    for piece in pieces:
        fed = matcher.feed(piece)
        text, matched = text + fed.emit, matched or fed.matched
    return text + matcher.flush(), matched


def expected(pattern: str, text: str) -> tuple[int, int] | None:
    """Begin and end of the longest of the matches that end first, found by trying all there are."""
    compiled = re.compile(pattern)
    for end in range(1, len(text) + 1):
        for begin in range(end):
            if compiled.fullmatch(text[:end], begin):
                return begin, end
    return None


LETTERS = "aAb\n 1é"
ATOMS = (
    *("a", "b", "A", ".", r"\d", r"\s", r"\w", r"\W", "[ab]", "[^a]", "[^\\d\\n]", "[a-b1]", "é", "\\n"),
    *("^a", "(?i:a)", "(?i:[^a])", "(?s:.)", "(?a:\\w)", "(?m:^b)", "\\A1"),
)


def _combine(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    repeats = st.sampled_from(["*", "+", "?", "*?", "+?", "??", "{2}", "{1,3}", "{0,2}?", "{2,}"])
    return st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"(?:{pair[0]}|{pair[1]})"),
        st.tuples(inner, repeats).map(lambda pair: f"({pair[0]}){pair[1]}"),
    )


PATTERNS = st.recursive(st.sampled_from(ATOMS), _combine, max_leaves=6)


@given(
    pattern=PATTERNS, pieces=st.lists(st.text(LETTERS, max_size=4), max_size=5), include_stop=st.booleans()
)
def test_the_match_that_ends_first_as_python_finds_it(
    pattern: str, pieces: list[str], include_stop: bool
) -> None:
    if re.fullmatch(pattern, ""):
        with pytest.raises(InvalidArgumentError, match="empty"):
            StopRegexes([pattern])
        return
    text = "".join(pieces)
    found = expected(pattern, text)
    output, matched = cut([pattern], pieces, include_stop=include_stop)
    if found is None:
        assert (output, matched) == (text, None)
    else:
        assert (output, matched) == (text[: found[include_stop]], pattern)


@given(text=st.text("ab1", max_size=12))
def test_nothing_of_a_match_gets_out_and_all_else_at_once(text: str) -> None:
    """Held back is the longest end of the text that some match begins with, and no more."""
    matcher, shown = StopRegexMatcher(StopRegexes(["ab+1"])), ""
    for position, character in enumerate(text, 1):
        fed = matcher.feed(character)
        shown += fed.emit
        if fed.matched:
            break
        begun = re.search("(ab*)?$", text[:position])
        assert begun is not None
        assert shown == text[: begun.start()]


def test_of_matches_that_end_together_the_longest_counts_and_strings_come_first() -> None:
    assert cut(["b[0-9]", "ab[0-9]"], ["xab1"]) == ("x", "ab[0-9]")
    assert cut(["a."], ["xab"], strings=["ab"]) == ("x", "ab")
    assert cut(["a."], ["xab"], strings=["xab"]) == ("", "xab")
    for text, stop, is_regex in (("abc", "a.", True), ("zzc", "zz", False)):
        matcher = StopRegexMatcher(StopRegexes(["a."], ["zz"]))
        assert matcher.feed(text).matched == stop
        assert matcher.is_regex is is_regex


def test_after_a_match_all_text_is_dropped() -> None:
    assert cut(["b"], ["ab", "cb", "d"]) == ("a", "b")


def test_text_that_is_not_searched_is_no_beginning() -> None:
    for skipped, searched, is_match in (
        ("x", "a", False),
        ("", "a", True),
        ("x\n", "a", False),
    ):
        matcher = StopRegexMatcher(StopRegexes(["^a"]))
        matcher.skip(skipped)
        assert (matcher.feed(searched).matched is not None) is is_match
    matcher = StopRegexMatcher(StopRegexes(["(?m)^a"]))
    matcher.skip("x\n")
    assert matcher.feed("a").matched == "(?m)^a"


def test_no_more_than_so_much_is_held_back() -> None:
    matcher = StopRegexMatcher(StopRegexes(["(?s)<.*>"]))
    shown = matcher.feed("ab<" + "c" * (MAX_HELD + 10)).emit
    assert shown == "ab<" + "c" * 10
    fed = matcher.feed("c>d")
    assert (fed.matched, fed.emit) == ("(?s)<.*>", ""), "found all the same"


@pytest.mark.parametrize(
    "pattern",
    ["(a", "a**", "[z-a]", "a$", r"\ba", "(?=a)b", "(?<!a)b", r"(a)\1", "a++", "(?>a)b", r"a\Z", "(?q)"],
)
def test_what_cannot_be_searched_for_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidArgumentError, match="stop_regex") as caught:
        StopRegexes(["fine", pattern])
    assert caught.value.value == pattern


@pytest.mark.parametrize(
    "pattern",
    [
        "a{2000}",
        "((((a{99}){99}){99}){99}){99}",
        "(?:a{0,99}){0,99}b",
        "(?:(?:){0,4000000000}){4000000000}a",
        "(?:^){4000000}a",
        "(" * 120 + "a" + "){9}" * 120,
    ],
)
def test_what_is_too_large_is_refused_at_once(pattern: str) -> None:
    with pytest.raises(InvalidArgumentError, match=str(MAX_STATES)):
        StopRegexes([pattern])


@pytest.mark.parametrize(
    "pattern", ["(a*)*b", "(a|a)*b", "(a|aa)+b", "(?:a{1,15}){1,15}b", "(.*)(.*)(.*)b", "(a|b)c(d|a.{99})*b"]
)
def test_a_pattern_that_backtracks_for_ever_elsewhere_ends_here(pattern: str) -> None:
    """And a longer text of the same kind takes no new steps of the automaton."""
    regexes = StopRegexes([pattern])
    num_steps = []
    for num_characters in (500, 1000):
        matcher = StopRegexMatcher(regexes)
        assert matcher.feed("a" * num_characters + "c").matched is None
        num_steps.append(len(regexes._steps))
    assert num_steps[1] == num_steps[0]


def test_a_long_text_does_not_fill_the_memory() -> None:
    regexes = StopRegexes(["(a|b)[ab]{100}c"])
    matcher = StopRegexMatcher(regexes)
    number = 1
    for _ in range(3000):
        number = number * 1103515245 + 12345 & 0x7FFFFFFF
        matcher.feed("ab"[number >> 16 & 1])
    assert sum(len(step.state) for step in regexes._steps.values()) < 200_000
