"""What a request may ask for at all."""

import subprocess
import sys

import pytest

from engine.errors import InvalidArgumentError
from engine.sampling.guided.spec import MAX_CHOICES, MAX_GRAMMAR_CHARS, GuidedSpec


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("xml", "<a/>"), "guided"),
        (("regex", ""), "guided.regex"),
        (("regex", "a", ("b",)), "guided.regex"),
        (("json_schema", " " * 10_000_000), "guided.json_schema"),
        (("grammar", "x" * (MAX_GRAMMAR_CHARS + 1)), "guided.grammar"),
        (("grammar", 'start: "\ud800"'), "guided.grammar"),
        (("choice",), "guided.choice"),
        (("choice", "text", ("a",)), "guided.choice"),
        (("choice", "", ("a", "")), "guided.choice"),
        (("choice", "", ("a",) * (MAX_CHOICES + 1)), "guided.choice"),
        (("choice", "", ("a" * 1000,) * 1100), "guided.choice"),
    ],
)
def test_wrong_ones_name_their_field(arguments: tuple[object, ...], field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        GuidedSpec(*arguments)  # type: ignore[arg-type]
    assert caught.value.field == field
    assert len(str(caught.value)) < 400


def test_the_limits_themselves_are_allowed() -> None:
    GuidedSpec("regex", "a" * MAX_GRAMMAR_CHARS)
    GuidedSpec("choice", choices=("a",) * MAX_CHOICES)


def test_parameters_do_not_pull_in_the_library() -> None:
    code = "import sys, engine.sampling.guided.spec; print({'torch', 'llguidance'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
