import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.text.stop_strings import StopAutomaton, StopStringMatcher

STOPS = st.lists(st.text("ab", min_size=1, max_size=5), max_size=4)
PIECES = st.lists(st.text("ab", max_size=4), max_size=12)


def naive_match(text: str, stops: list[str]) -> tuple[int, str] | None:
    """Where the first match ends, and which it is."""
    for end in range(len(text) + 1):
        ending_here = [stop for stop in stops if text[:end].endswith(stop)]
        if ending_here:
            return end, max(ending_here, key=len)
    return None


def naive_held(text: str, stops: list[str]) -> int:
    """Characters at the end of `text` that some stop string begins with."""
    return max(n for n in range(len(text) + 1) if n == 0 or any(s.startswith(text[-n:]) for s in stops))


def run(pieces: list[str], stops: list[str], include_stop: bool) -> tuple[str, str | None, int | None]:
    matcher = StopStringMatcher(stops, include_stop)
    output, matched = "", None
    for piece in pieces:
        fed = matcher.feed(piece)
        output += fed.emit
        matched = matched or fed.matched
    return output + matcher.flush(), matched, matcher.end


@given(PIECES, STOPS, st.booleans())
@example(["aaa", "b"], ["aab"], False)
@example(["ab", "ab", "c"], ["ababc", "bab"], False)
@example(["abb"], ["b", "abb", "bb"], False)
def test_equals_the_naive_search(pieces: list[str], stops: list[str], include_stop: bool) -> None:
    text = "".join(pieces)
    match = naive_match(text, stops)
    if match is None:
        expected: tuple[str, str | None, int | None] = (text, None, None)
    else:
        end, stop = match
        expected = (text[:end] if include_stop else text[: end - len(stop)], stop, end)
    assert run(pieces, stops, include_stop) == expected


@given(PIECES, STOPS)
def test_holds_back_exactly_what_may_become_a_stop_string(pieces: list[str], stops: list[str]) -> None:
    matcher = StopStringMatcher(stops)
    text = output = ""
    for piece in pieces:
        text += piece
        fed = matcher.feed(piece)
        output += fed.emit
        if fed.matched:
            break
        assert output == text[: len(text) - naive_held(text, stops)]


@given(PIECES, STOPS)
def test_include_stop_holds_nothing_back(pieces: list[str], stops: list[str]) -> None:
    matcher = StopStringMatcher(stops, include_stop=True)
    for piece in pieces:
        fed = matcher.feed(piece)
        if fed.matched:
            assert matcher.flush() == ""
            break
        assert fed.emit == piece


def test_the_match_belongs_to_the_piece_it_ends_in_and_later_text_is_dropped() -> None:
    matcher = StopStringMatcher(["\n\nUser:"])
    assert [matcher.feed(piece) for piece in ["Hi\n", "\nUs", "er: more", "and more"]] == [
        ("Hi", None),
        ("", None),
        ("", "\n\nUser:"),
        ("", None),
    ]
    assert matcher.end == len("Hi\n\nUser:")
    assert matcher.flush() == ""


def test_a_stop_string_that_only_seemed_to_begin_is_output() -> None:
    matcher = StopStringMatcher(["<end>"])
    assert matcher.feed("a <en") == ("a ", None)
    assert matcher.feed("ds> b") == ("<ends> b", None)


def test_characters_special_in_regular_expressions_and_beyond_the_basic_plane() -> None:
    for stop in ["]", "^", "\\d", "[a-z]", "😀😀", "é"]:
        assert StopStringMatcher([stop]).feed(f"x0a{stop}y") == ("x0a", stop)


def test_one_automaton_serves_several_matchers() -> None:
    automaton = StopAutomaton(["ab"])
    first, second = StopStringMatcher(automaton), StopStringMatcher(automaton)
    assert first.feed("a") == ("", None)
    assert second.feed("b") == ("b", None)
    assert first.feed("b") == ("", "ab")


@pytest.mark.parametrize("stop", ["a" * 256 + "b", "ab" * 128])
def test_steps_are_linear_in_the_text(stop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    automaton = StopAutomaton([stop])
    lookups = 0

    class Counting(dict[str, int]):
        def __contains__(self, key: object) -> bool:
            nonlocal lookups
            lookups += 1
            return super().__contains__(key)

    monkeypatch.setattr(automaton, "_children", [Counting(child) for child in automaton._children])
    matcher = StopStringMatcher(automaton)
    text = (stop[:-1] + "c") * 20
    assert "".join(matcher.feed(character).emit for character in text) == text
    assert lookups <= 2 * len(text)
