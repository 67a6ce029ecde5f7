"""Parameters: what JSON becomes, what is refused, and the schema that says so."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest

from engine.errors import ConfigError, InvalidArgumentError
from engine.sampling.custom import Limits, NoParameters, TokenId
from engine.sampling.custom.parameters import check_declaration, parameters_schema, parse_parameters

FIELD = "logits_processors[2].parameters"


@dataclass(frozen=True)
class Everything:
    count: Annotated[int, Limits(minimum=1, maximum=9, description="how many")]
    weight: Annotated[float, Limits(minimum=-1)] = 0.5
    name: Annotated[str, Limits(min_length=1, max_length=3)] = "a"
    mode: Literal["soft", "hard", 3] = "soft"
    is_on: bool = True
    ids: Annotated[tuple[TokenId, ...], Limits(max_length=2)] = ()
    pairs: tuple[Annotated[tuple[float, ...], Limits(min_length=2, max_length=2)], ...] = ()
    limit: Annotated[int, Limits(minimum=0)] | None = None
    made: tuple[str, ...] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        if self.count == 7:
            raise ValueError("count must not be 7")
        if self.count == 8:
            raise InvalidArgumentError("count", 8, "must not be 8")


def test_all_types() -> None:
    values = {
        "count": 3.0,  # as numbers of a protobuf Struct come
        "weight": 2,
        "name": "abc",
        "mode": "hard",
        "is_on": False,
        "ids": [1, 2.0],
        "pairs": [[1, 2.5]],
        "limit": 4,
        "made": ["x"],
    }
    parsed = parse_parameters(Everything, FIELD, values, vocab_size=3)
    assert parsed == Everything(3, 2.0, "abc", "hard", False, (1, 2), ((1.0, 2.5),), 4, ("x",))
    assert isinstance(parsed.count, int)
    assert isinstance(parsed.weight, float)
    assert parse_parameters(Everything, FIELD, {"count": 1, "limit": None}) == Everything(1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, ".count=None: must be given"),
        ({"count": 1, "cuont": 2}, ".cuont=2: unknown; there is count, weight"),
        ({"count": 0}, ".count=0: must be at least 1"),
        ({"count": 10}, ".count=10: must be at most 9"),
        ({"count": 1.5}, ".count=1.5: must be an integer"),
        ({"count": True}, ".count=True: must be an integer"),
        ({"count": "1"}, ".count='1': must be an integer"),
        ({"count": float("nan")}, ".count=nan: must be an integer"),
        ({"count": 1e300}, ".count=1e+300: must be an integer"),
        ({"count": 1, "weight": float("inf")}, ".weight=inf: must be a finite number"),
        ({"count": 1, "weight": -2}, ".weight=-2: must be at least -1"),
        ({"count": 1, "name": ""}, ".name='': must have at least 1 characters"),
        ({"count": 1, "name": "abcd"}, ".name='abcd': must have at most 3 characters"),
        ({"count": 1, "name": 5}, ".name=5: must be a string"),
        ({"count": 1, "mode": "medium"}, ".mode='medium': must be one of soft, hard, 3"),
        ({"count": 1, "is_on": 1}, ".is_on=1: must be true or false"),
        ({"count": 1, "ids": "12"}, ".ids='12': must be a list"),
        ({"count": 1, "ids": [1, 2, 3]}, ".ids=[1, 2, 3]: must have at most 2 items"),
        ({"count": 1, "ids": [1, -1]}, ".ids[1]=-1: must be at least 0"),
        ({"count": 1, "ids": [50]}, ".ids[0]=50: must be in [0, 50), the vocabulary"),
        ({"count": 1, "pairs": [[1, 2], [3]]}, ".pairs[1]=[3]: must have at least 2 items"),
        ({"count": 1, "limit": -1}, ".limit=-1: must be at least 0"),
        ({"count": 7}, "={'count': 7}: count must not be 7"),
        ({"count": 8}, ".count=8: must not be 8"),
    ],
)
def test_what_is_refused(values: Mapping[str, object], message: str) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        parse_parameters(Everything, FIELD, values, vocab_size=50)
    assert str(raised.value).startswith(f"{FIELD}{message}")


def test_none_are_to_be_given() -> None:
    assert parse_parameters(NoParameters, FIELD, {}) == NoParameters()
    with pytest.raises(InvalidArgumentError, match="unknown; there are no parameters"):
        parse_parameters(NoParameters, FIELD, {"a": 1})


def test_the_schema() -> None:
    assert parameters_schema(Everything) == {
        "type": "object",
        "additionalProperties": False,
        "required": ["count"],
        "properties": {
            "count": {"type": "integer", "minimum": 1, "maximum": 9, "description": "how many"},
            "weight": {"type": "number", "minimum": -1, "default": 0.5},
            "name": {"type": "string", "minLength": 1, "maxLength": 3, "default": "a"},
            "mode": {"enum": ["soft", "hard", 3], "default": "soft"},
            "is_on": {"type": "boolean", "default": True},
            "ids": {
                "type": "array",
                "items": {"type": "integer", "minimum": 0, "format": "token-id"},
                "maxItems": 2,
                "default": (),
            },
            "pairs": {
                "type": "array",
                "items": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2},
                "default": (),
            },
            "limit": {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}], "default": None},
            "made": {"type": "array", "items": {"type": "string"}},
        },
    }


@dataclass
class Thawed:
    count: int = 0


@dataclass(frozen=True)
class Opaque:
    things: dict[str, int]


@pytest.mark.parametrize("declared", [Thawed, Opaque, int])
def test_declarations_that_cannot_be(declared: type) -> None:
    with pytest.raises(ConfigError):
        check_declaration(declared)
