"""What a GenerateRequest asks of sampling, stopping and structure; and where errors say that it is."""

from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import InvalidArgumentError
from engine.sampling.guided.spec import GuidedSpec
from engine.sampling.params import NamedSpec, SamplingParams
from engine.serving.request_params import field_path, parse_params
from engine.serving.status import status_of
from inflight import v1
from scheduler.beams import BeamParams

EVERYTHING: dict[str, Any] = {
    "temperature": 0.7,
    "top_k": 5,
    "top_p": 0.9,
    "min_p": 0.1,
    "seed": 2**64 - 1,
    "typical_p": 0.8,
    "top_p_decay": 0.95,
    "top_p_min": 0.2,
    "top_p_reset_id": 9,
    "repetition_penalty": 1.2,
    "presence_penalty": -0.5,
    "frequency_penalty": 0.25,
    "penalize_prompt": False,
    "no_repeat_ngram_size": 3,
    "bad_words": ("no", "never"),
    "bad_word_ids": ((1, 2), (3,)),
    "allowed_token_ids": (1, 2, 3),
    "stop_regex": ("a+b",),
    "stop_strings": ("x",),
    "stop_token_ids": (4,),
    "include_stop": True,
    "max_new_tokens": 7,
    "best_of": 4,
    "logprobs": 0,
    "prompt_logprobs": 3,
}


def parse(**options: Any) -> SamplingParams:
    return parse_params(v1.make_request("a", **options))


def test_every_field_arrives_under_its_name() -> None:
    biases = {7: -1.5, 3: 2.0}
    params = parse(**EVERYTHING, n=2, logit_bias=biases, max_time_seconds=1.5)
    assert params == SamplingParams(
        **EVERYTHING, num_outputs=2, logit_bias=((3, 2.0), (7, -1.5)), max_seconds=1.5
    )


def test_what_is_not_set_takes_the_defaults_of_the_engine() -> None:
    assert parse() == SamplingParams()


def test_parameters_are_as_in_json_with_whole_numbers_whole() -> None:
    given: dict[str, object] = {"a": 3, "b": 0.5, "c": [1, "x", None, True, {"d": -2.0}], "e": {}, "f": 1e300}
    params = parse(logits_processors=[("one", given), "two"], stopping_criteria=["three"])
    first, second = params.logits_processors
    assert first == NamedSpec("one", given)
    numbers = first.parameters["a"], first.parameters["c"][0], first.parameters["c"][3]  # type: ignore[index]
    assert [type(number) for number in numbers] == [int, int, bool]
    assert second == NamedSpec("two", {})
    assert params.stopping_criteria == (NamedSpec("three", {}),)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=10,
    )
)
def test_any_json_comes_through(value: object) -> None:
    (spec,) = parse(logits_processors=[("x", {"value": value})]).logits_processors
    assert spec.parameters == {"value": value}


@pytest.mark.parametrize(
    ("kind", "text"), [("json_schema", '{"type":"null"}'), ("regex", "a+"), ("grammar", "start: /a/")]
)
def test_guides_by_text(kind: Any, text: str) -> None:
    assert parse(**{kind: text}).guided == GuidedSpec(kind, text)


def test_guided_choice() -> None:
    assert parse(choice=["x", "y"]).guided == GuidedSpec("choice", choices=("x", "y"))


def test_beams_with_their_defaults_and_without() -> None:
    assert parse(beam=v1.Beam(width=4), n=2).beam == BeamParams(4)
    never = v1.EarlyStopping.EARLY_STOPPING_NEVER
    beam = v1.Beam(width=2, length_penalty=0.0, early_stopping=never, diversity_rate=0.5)
    assert parse(beam=beam).beam == BeamParams(2, 0.0, "never", 0.5)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"typical_p": 0.0, "temperature": 1.0}, "sampling.typical_p=0.0"),
    ({"typical_p": 0.5}, "sampling.typical_p=0.5"),
    ({"repetition_penalty": 0.0}, "sampling.repetition_penalty=0.0"),
    ({"presence_penalty": float("nan")}, "sampling.presence_penalty=nan"),
    ({"frequency_penalty": 101.0}, "sampling.frequency_penalty=101.0"),
    ({"no_repeat_ngram_size": 65}, "sampling.no_repeat_ngram_size=65"),
    ({"logit_bias": {5: 1000.0}}, "sampling.logit_bias=1000.0"),
    ({"bad_words": [""]}, "sampling.bad_words=''"),
    ({"bad_word_ids": [[]]}, "sampling.bad_word_ids=()"),
    ({"beam": v1.Beam()}, "sampling.beam.width=0"),
    ({"beam": v1.Beam(width=17)}, "sampling.beam.width=17"),
    ({"beam": v1.Beam(width=2, length_penalty=float("inf"))}, "sampling.beam.length_penalty=inf"),
    ({"beam": v1.Beam(width=2, diversity_rate=-1.0)}, "sampling.beam.diversity_rate=-1.0"),
    ({"beam": v1.Beam(width=2, early_stopping=9)}, "sampling.beam.early_stopping=9"),  # type: ignore[arg-type]
    ({"beam": v1.Beam(width=2), "n": 3}, "n=3"),
    ({"beam": v1.Beam(width=2), "temperature": 1.0}, "sampling.temperature=1.0"),
    ({"beam": v1.Beam(width=2), "top_p": 0.5}, "sampling.top_p=0.5"),
    ({"best_of": 2}, "best_of=2"),
    ({"best_of": 2, "n": 3, "temperature": 1.0}, "best_of=2"),
    ({"logprobs": 21}, "output.logprobs=21"),
    ({"prompt_logprobs": 21}, "output.prompt_logprobs=21"),
    ({"max_time_seconds": 0.0}, "stopping.max_time_seconds=0.0"),
    ({"stop_regex": ["a"] * 17}, "stopping.stop_regex=17"),
    ({"stop_regex": [""]}, "stopping.stop_regex=''"),
    ({"stopping_criteria": ["x"] * 17}, "stopping.stopping_criteria=17"),
    ({"json_schema": ""}, "guided.json_schema=''"),
    ({"choice": []}, "guided.choice=0"),
    ({"regex": "a", "ignore_eos": True}, "stopping.ignore_eos=True"),
]


@pytest.mark.parametrize(("options", "words"), WRONG, ids=[words for _, words in WRONG])
def test_errors_name_the_field_where_it_is(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse(**options)
    code, details = status_of(caught.value)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith(f"{words}: ")


def test_guided_with_nothing_set() -> None:
    request = v1.GenerateRequest(prompt="a", guided=v1.Guided())
    with pytest.raises(InvalidArgumentError, match="guided=None"):
        parse_params(request)


def test_parts_of_fields_are_where_the_fields_are() -> None:
    assert field_path("beam.width") == "sampling.beam.width"
    assert field_path("stopping_criteria[2].parameters.x") == "stopping.stopping_criteria[2].parameters.x"
    assert field_path("max_seconds") == "stopping.max_time_seconds"
    assert field_path("guided.regex") == "guided.regex"
    assert field_path("output.text") == "output.text"
