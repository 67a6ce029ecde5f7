"""Random JSON schemas, and a validator of what they use."""

import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from random import Random
from typing import Any

Schema = dict[str, Any]

_NAMES = ["id", "name", "a b", 'quo"te', "naïve", "x", "items", "价格", "", "very_long_property_name"]
_PATTERNS = ["^[a-z]{2,5}$", "^\\d{3}-\\d{4}$", "^(red|green|blue)+$", "^[A-Z][0-9]*$"]
_VALUES: list[Any] = ["yes", 'a "b"', "é\n", 0, -17, 3.5, True, False, None, [1, "two"], {"k": []}]


def random_schema(rng: Random) -> Schema:
    """One with a definition that refers to itself, which it may or may not use."""
    node = {
        "type": "object",
        "properties": {"value": {"type": "integer"}, "next": {"anyOf": [{"type": "null"}, _NODE]}},
        "required": ["value", "next"],
        "additionalProperties": False,
    }
    root = rng.choice((_object, _object, _array, _schema))
    return root(rng, 3) | {"$defs": {"node": node}}


_NODE: Schema = {"$ref": "#/$defs/node"}


def _schema(rng: Random, depth: int) -> Schema:
    nested = (_object, _array, _any_of, lambda rng, depth: dict(_NODE))
    flat = (_string, _integer, _number, _enum, _constant, _pattern, _simple)
    kinds: tuple[Callable[[Random, int], Schema], ...] = nested * 2 + flat if depth else flat
    return rng.choice(kinds)(rng, depth - 1)


def _object(rng: Random, depth: int) -> Schema:
    names = rng.sample(_NAMES, rng.randrange(5))
    return {
        "type": "object",
        "properties": {name: _schema(rng, depth) for name in names},
        "required": [name for name in names if rng.random() < 0.5],
        "additionalProperties": False,
    }


def _array(rng: Random, depth: int) -> Schema:
    low = rng.randrange(3)
    return {
        "type": "array",
        "items": _schema(rng, depth),
        "minItems": low,
        "maxItems": low + rng.randrange(3),
    }


def _any_of(rng: Random, depth: int) -> Schema:
    return {"anyOf": [_schema(rng, depth) for _ in range(rng.randint(1, 3))]}


def _string(rng: Random, depth: int) -> Schema:
    low = rng.randrange(4)
    return {"type": "string", "minLength": low, "maxLength": low + rng.randrange(20)}


def _integer(rng: Random, depth: int) -> Schema:
    low = rng.randint(-1000, 1000)
    return {"type": "integer", "minimum": low, "maximum": low + rng.randrange(2000)}


def _number(rng: Random, depth: int) -> Schema:
    low = rng.randint(-400, 400) / 4  # a Decimal can be compared with it
    return {"type": "number", "minimum": low, "exclusiveMaximum": low + rng.choice([1.25, 2, 250.25])}


def _enum(rng: Random, depth: int) -> Schema:
    return {"enum": rng.sample(_VALUES, rng.randint(1, 4))}


def _constant(rng: Random, depth: int) -> Schema:
    return {"const": rng.choice(_VALUES)}


def _pattern(rng: Random, depth: int) -> Schema:
    return {"type": "string", "pattern": rng.choice(_PATTERNS)}


def _simple(rng: Random, depth: int) -> Schema:
    return {"type": rng.choice(["boolean", "null", ["string", "null"]])}


def is_valid(value: Any, schema: Schema, definitions: Mapping[str, Schema]) -> bool:
    """Of the keywords that are used above. value: with Decimals, as floats would round to a bound."""
    if "$ref" in schema:
        return is_valid(value, definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema and not any(is_valid(value, part, definitions) for part in schema["anyOf"]):
        return False
    if "enum" in schema and not any(_equal(value, item) for item in schema["enum"]):
        return False
    if "const" in schema and not _equal(value, schema["const"]):
        return False
    types = schema.get("type", [])
    if types and not any(_has_type(value, name) for name in ([types] if isinstance(types, str) else types)):
        return False
    if isinstance(value, str):
        return _string_fits(value, schema)
    if isinstance(value, (int, Decimal)):
        return bool(
            schema.get("minimum", value) <= value <= schema.get("maximum", value)
            and value < schema.get("exclusiveMaximum", value + 1)
        )
    if isinstance(value, list) and "items" in schema:
        fits = schema["minItems"] <= len(value) <= schema["maxItems"]
        return fits and all(is_valid(item, schema["items"], definitions) for item in value)
    if isinstance(value, dict) and "properties" in schema:
        fits = set(schema["required"]) <= set(value) <= set(schema["properties"])
        return fits and all(
            is_valid(item, schema["properties"][name], definitions) for name, item in value.items()
        )
    return True


def _string_fits(value: str, schema: Schema) -> bool:
    fits = schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value))
    return fits and ("pattern" not in schema or re.search(schema["pattern"], value) is not None)


def _has_type(value: object, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    types: dict[str, tuple[type, ...]] = {
        "string": (str,),
        "integer": (int,),
        "number": (int, Decimal),
        "array": (list,),
        "object": (dict,),
        "null": (type(None),),
    }
    return isinstance(value, types.get(name, ()))


def _equal(left: object, right: object) -> bool:
    return isinstance(left, bool) == isinstance(right, bool) and left == right
