"""make_request: flat keywords to the message, sending only what was given."""

from typing import Any

import pytest

from inflight.v1 import GenerateOptions, GenerateRequest, Output, Sampling, Stopping, make_request


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
    fields = {name for group in (Sampling, Stopping, Output) for name in group.DESCRIPTOR.fields_by_name}
    assert set(GenerateOptions.__annotations__) == fields | {"request_id", "n", "priority"}


@pytest.mark.parametrize("option", ["temperature", "top_k", "top_p", "min_p", "seed", "max_new_tokens", "n"])
def test_zero_is_sent(option: str) -> None:
    options: Any = {option: 0}
    request = make_request("a", **options)
    group = request if option == "n" else request.stopping if "tokens" in option else request.sampling
    assert option in [field.name for field, _ in group.ListFields()]


def test_false_text_is_sent() -> None:
    assert make_request("a", text=False).output.HasField("text")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_tokens": 5}, TypeError),
        ({"top_k": -1}, ValueError),
        ({"stop_strings": "abc"}, TypeError),
        ({"stop_token_ids": 5}, TypeError),
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
