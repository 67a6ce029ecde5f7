"""make_request: flat keywords to the message, sending only what was given."""

from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from inflight.v1 import (
    Beam,
    GenerateOptions,
    GenerateRequest,
    Guided,
    Output,
    Sampling,
    Stopping,
    make_request,
)


def test_only_the_prompt_is_sent_when_nothing_else_is_given() -> None:
    assert make_request("7 8 9") == GenerateRequest(prompt="7 8 9")
    assert [field.name for field, _ in make_request("7 8 9").ListFields()] == ["prompt"]


def test_token_ids_are_the_other_input() -> None:
    assert list(make_request([1, 2, 3]).token_ids.ids) == [1, 2, 3]


def test_no_token_ids_are_still_an_input() -> None:
    assert make_request([]).WhichOneof("input") == "token_ids"


def test_options_go_to_their_groups() -> None:
    request = make_request(
        "a",
        request_id="r",
        n=2,
        priority=-3,
        temperature=0.7,
        top_k=5,
        top_p=0.9,
        min_p=0.1,
        seed=2**64 - 1,
        max_new_tokens=7,
        min_new_tokens=1,
        stop_strings=["x", "y"],
        stop_token_ids=(4, 5),
        ignore_eos=True,
        include_stop=True,
        text=False,
        token_ids=True,
        echo=True,
    )
    assert request == GenerateRequest(
        request_id="r",
        prompt="a",
        n=2,
        sampling=Sampling(temperature=0.7, top_k=5, top_p=0.9, min_p=0.1, seed=2**64 - 1),
        stopping=Stopping(
            max_new_tokens=7,
            min_new_tokens=1,
            stop_strings=["x", "y"],
            stop_token_ids=[4, 5],
            ignore_eos=True,
            include_stop=True,
        ),
        output=Output(text=False, token_ids=True, echo=True),
        priority=-3,
    )


def test_every_field_of_the_groups_is_an_option() -> None:
    groups = (Guided, Sampling, Stopping, Output)
    fields = {name for group in groups for name in group.DESCRIPTOR.fields_by_name}
    assert set(GenerateOptions.__annotations__) == fields | {"request_id", "n", "best_of", "priority"}


def test_lists_maps_and_messages_take_plain_python() -> None:
    request = make_request(
        "a",
        logit_bias={7: -1.5, 8: 2},
        bad_words=["x"],
        bad_word_ids=[[1, 2], (3,)],
        allowed_token_ids=range(3),
        beam=Beam(width=4),
        stop_regex=["[0-9]+"],
        stopping_criteria=["twice", ("budget", {"tokens": 5, "of": [1, "x", None, True]})],
    )
    assert dict(request.sampling.logit_bias) == {7: -1.5, 8: 2.0}
    assert list(request.sampling.bad_words) == ["x"]
    assert [list(word.ids) for word in request.sampling.bad_word_ids] == [[1, 2], [3]]
    assert list(request.sampling.allowed_token_ids) == [0, 1, 2]
    assert request.sampling.beam.width == 4
    assert list(request.stopping.stop_regex) == ["[0-9]+"]
    twice, budget = request.stopping.stopping_criteria
    assert (twice.name, dict(twice.parameters)) == ("twice", {})
    assert budget.name == "budget"
    assert MessageToDict(budget.parameters) == {"tokens": 5, "of": [1, "x", None, True]}


def test_one_guide_is_sent() -> None:
    assert make_request("a", regex="a+").guided == Guided(regex="a+")
    assert make_request("a", json_schema={"type": "null"}).guided.json_schema == '{"type": "null"}'
    assert make_request("a", json_schema='{"type":"null"}').guided.json_schema == '{"type":"null"}'
    assert list(make_request("a", choice=["x", "y"]).guided.choice.texts) == ["x", "y"]
    assert make_request("a", choice=[]).guided.WhichOneof("kind") == "choice"
    with pytest.raises(TypeError, match="only one of grammar, regex"):
        make_request("a", regex="a", grammar="start: /a/")


@pytest.mark.parametrize(
    ("option", "group"),
    [
        *((name, "sampling") for name in ("temperature", "top_k", "top_p", "min_p", "seed", "typical_p")),
        *((name, "sampling") for name in ("repetition_penalty", "penalize_prompt", "top_p_reset_id")),
        *((name, "stopping") for name in ("max_new_tokens", "max_time_seconds")),
        *((name, "output") for name in ("logprobs", "prompt_logprobs")),
        *((name, "") for name in ("n", "best_of")),
    ],
)
def test_zero_is_sent(option: str, group: str) -> None:
    options: Any = {option: 0}
    request = make_request("a", **options)
    message = getattr(request, group) if group else request
    assert option in [field.name for field, _ in message.ListFields()]


def test_false_text_is_sent() -> None:
    assert make_request("a", text=False).output.HasField("text")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_tokens": 5}, TypeError),
        ({"top_k": -1}, ValueError),
        ({"stop_strings": "abc"}, TypeError),
        ({"stop_token_ids": 5}, TypeError),
        ({"stop_regex": "a+"}, TypeError),
        ({"bad_word_ids": [5]}, TypeError),
        ({"logit_bias": [5]}, TypeError),
        ({"logit_bias": {-1: 5.0}}, ValueError),
        ({"beam": 4}, TypeError),
        ({"choice": "abc"}, TypeError),
        ({"logits_processors": [5]}, TypeError),
        ({"logits_processors": [("name", {"x": object()})]}, (TypeError, ValueError)),
        ({"temperature": "hot"}, TypeError),
        ({"request_id": 7}, TypeError),
    ],
)
def test_what_the_message_cannot_hold_is_refused(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        make_request("a", **options)


def test_an_unknown_option_is_named_with_those_that_exist() -> None:
    options: Any = {"max_tokens": 5}
    with pytest.raises(TypeError, match=r"max_tokens.*max_new_tokens"):
        make_request("a", **options)
