"""Parameters of processors and criteria: a frozen dataclass to Python, a JSON schema to clients.

A field is a bool, int, float, str, a Literal, a tuple[T, ...] of those or of tuples, or such a type | None.
Annotated with Limits it says what it takes.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from engine.errors import ConfigError, InvalidArgumentError

_LARGEST_EXACT = 2**53  # JSON's numbers may be doubles


@dataclass(frozen=True, slots=True)
class Limits:
    """What a value must keep to; None and False: anything goes.

    minimum, maximum: of a number, both included. min_length, max_length: characters of a string, items of a
    tuple. is_token_id: below the model's vocabulary size too. description: for people.
    """

    minimum: float | None = None
    maximum: float | None = None
    min_length: int | None = None
    max_length: int | None = None
    is_token_id: bool = False
    description: str = ""


TokenId = Annotated[int, Limits(minimum=0, is_token_id=True)]
"""An id of the model's vocabulary: what is outside is refused before it reaches the device."""


@dataclass(frozen=True, slots=True)
class NoParameters:
    """Of what takes none."""


def check_declaration(parameters: type) -> None:
    """Raises ConfigError, if it is no frozen dataclass of fields that JSON can carry."""
    if not dataclasses.is_dataclass(parameters) or not parameters.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise ConfigError(f"parameters {parameters!r}: must be a frozen dataclass")
    parameters_schema(parameters)


def parameters_schema(parameters: type) -> dict[str, object]:
    """The JSON schema (draft 2020-12) of a frozen dataclass. Raises ConfigError for types it cannot have."""
    properties, required = {}, []
    hints = get_type_hints(parameters, include_extras=True)
    for item in dataclasses.fields(parameters):
        properties[item.name] = _schema(hints[item.name], f"{parameters.__name__}.{item.name}")
        if _is_required(item):
            required.append(item.name)
        elif item.default is not dataclasses.MISSING:
            properties[item.name]["default"] = item.default
    schema: dict[str, object] = {"type": "object", "properties": properties, "additionalProperties": False}
    return schema | ({"required": required} if required else {})


def parse_parameters(
    parameters: type, field: str, values: Mapping[str, object], vocab_size: int | None = None
) -> Any:
    """An instance of the dataclass. field: what messages call `values`, such as "logits_processors[0]
    .parameters".

    Raises InvalidArgumentError naming the field, the value and the limit; also for a ValueError of the
    dataclass itself.
    """
    if not isinstance(values, Mapping):
        raise InvalidArgumentError(field, values, "must be an object")
    items = {item.name: item for item in dataclasses.fields(parameters)}
    for name, value in values.items():
        if name not in items:
            limit = f"unknown; there is {', '.join(items)}" if items else "unknown; there are no parameters"
            raise InvalidArgumentError(f"{field}.{name}", value, limit)
    for name, item in items.items():
        if _is_required(item) and name not in values:
            raise InvalidArgumentError(f"{field}.{name}", None, "must be given")
    hints = get_type_hints(parameters, include_extras=True)
    parsed = {
        name: _parse(hints[name], f"{field}.{name}", value, vocab_size) for name, value in values.items()
    }
    try:
        return parameters(**parsed)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{field}.{error.field}", error.value, error.limit) from error
    except ValueError as error:
        raise InvalidArgumentError(field, dict(values), str(error)) from error


def _is_required(item: "dataclasses.Field[Any]") -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING


def _split(annotation: Any) -> tuple[Any, Limits]:
    """The type, and its limits."""
    if get_origin(annotation) is not Annotated:
        return annotation, Limits()
    base, *notes = get_args(annotation)
    return base, next((note for note in notes if isinstance(note, Limits)), Limits())


def _option(base: Any) -> Any | None:
    """T, of T | None; None, if it is something else."""
    arguments = get_args(base) if get_origin(base) in (Union, UnionType) else ()
    options = [argument for argument in arguments if argument is not NoneType]
    return options[0] if len(options) == 1 and len(arguments) == 2 else None


def _item(base: Any) -> Any | None:
    """T, of tuple[T, ...]; None, if it is something else."""
    arguments = get_args(base)
    is_tuple = get_origin(base) is tuple and len(arguments) == 2 and arguments[1] is ...
    return arguments[0] if is_tuple else None


def _schema(annotation: Any, where: str) -> dict[str, object]:
    base, limits = _split(annotation)
    described: dict[str, object] = {"description": limits.description} if limits.description else {}
    if (option := _option(base)) is not None:
        return described | {"anyOf": [_schema(option, where), {"type": "null"}]}
    if get_origin(base) is Literal:
        return described | {"enum": list(get_args(base))}
    if (item := _item(base)) is not None:
        lengths = {"minItems": limits.min_length, "maxItems": limits.max_length}
        return described | {"type": "array", "items": _schema(item, where)} | _given(lengths)
    if base in (int, float):
        name = "integer" if base is int else "number"
        bounds = {"minimum": limits.minimum, "maximum": limits.maximum}
        bounds["format"] = "token-id" if limits.is_token_id else None  # type: ignore[assignment]
        return described | {"type": name} | _given(bounds)
    if base is str:
        lengths = {"minLength": limits.min_length, "maxLength": limits.max_length}
        return described | {"type": "string"} | _given(lengths)
    if base is bool:
        return described | {"type": "boolean"}
    raise ConfigError(f"{where}: a parameter cannot be of type {base!r}")


def _given(values: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in values.items() if value is not None}


def _parse(annotation: Any, field: str, value: object, vocab_size: int | None) -> object:
    base, limits = _split(annotation)
    if (option := _option(base)) is not None:
        return None if value is None else _parse(option, field, value, vocab_size)
    if get_origin(base) is Literal:
        if not any(type(value) is type(choice) and value == choice for choice in get_args(base)):
            choices = ", ".join(map(str, get_args(base)))
            raise InvalidArgumentError(field, value, f"must be one of {choices}")
        return value
    if (item := _item(base)) is not None:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise InvalidArgumentError(field, value, "must be a list")
        _check_length(field, value, limits, "items")
        return tuple(_parse(item, f"{field}[{i}]", part, vocab_size) for i, part in enumerate(value))
    return _SCALARS[base](field, value, limits, vocab_size)


def _parse_integer(field: str, value: object, limits: Limits, vocab_size: int | None) -> int:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not abs(value) <= _LARGEST_EXACT or value != int(value):  # type: ignore[arg-type, call-overload]
        raise InvalidArgumentError(field, value, "must be an integer")
    number = int(value)  # type: ignore[call-overload]
    _check_bounds(field, number, limits)
    if limits.is_token_id and vocab_size is not None and number >= vocab_size:
        raise InvalidArgumentError(field, number, f"must be in [0, {vocab_size}), the vocabulary")
    return number  # type: ignore[no-any-return]


def _parse_number(field: str, value: object, limits: Limits, _: int | None) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise InvalidArgumentError(field, value, "must be a finite number")
    _check_bounds(field, value, limits)
    return float(value)


def _parse_text(field: str, value: object, limits: Limits, _: int | None) -> str:
    if not isinstance(value, str):
        raise InvalidArgumentError(field, value, "must be a string")
    _check_length(field, value, limits, "characters")
    return value


def _parse_bool(field: str, value: object, _: Limits, __: int | None) -> bool:
    if not isinstance(value, bool):
        raise InvalidArgumentError(field, value, "must be true or false")
    return value


_SCALARS: Mapping[type, Callable[[str, object, Limits, int | None], object]] = {
    int: _parse_integer,
    float: _parse_number,
    str: _parse_text,
    bool: _parse_bool,
}


def _check_bounds(field: str, value: float, limits: Limits) -> None:
    if limits.minimum is not None and value < limits.minimum:
        raise InvalidArgumentError(field, value, f"must be at least {limits.minimum:g}")
    if limits.maximum is not None and value > limits.maximum:
        raise InvalidArgumentError(field, value, f"must be at most {limits.maximum:g}")


def _check_length(field: str, value: Sequence[object], limits: Limits, what: str) -> None:
    if limits.min_length is not None and len(value) < limits.min_length:
        raise InvalidArgumentError(field, value, f"must have at least {limits.min_length} {what}")
    if limits.max_length is not None and len(value) > limits.max_length:
        raise InvalidArgumentError(field, value, f"must have at most {limits.max_length} {what}")
