"""Sampling, stopping and structure of a GenerateRequest to SamplingParams."""

from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.struct_pb2 import ListValue, Struct, Value

from engine.errors import InvalidArgumentError
from engine.sampling.guided.spec import GuidedSpec
from engine.sampling.params import NamedSpec, SamplingParams
from inflight import v1 as pb
from scheduler.beams import BeamParams, EarlyStopping

_LOGPROBS = ("logprobs", "prompt_logprobs")
_PATHS = (
    {name: f"sampling.{name}" for name in pb.Sampling.DESCRIPTOR.fields_by_name}
    | {name: f"stopping.{name}" for name in pb.Stopping.DESCRIPTOR.fields_by_name}
    | {name: f"output.{name}" for name in _LOGPROBS}
    | {"max_seconds": "stopping.max_time_seconds"}
)
_EARLY_STOPPING: dict[int, EarlyStopping] = {
    pb.EarlyStopping.EARLY_STOPPING_UNSPECIFIED: "false",
    pb.EarlyStopping.EARLY_STOPPING_FALSE: "false",
    pb.EarlyStopping.EARLY_STOPPING_TRUE: "true",
    pb.EarlyStopping.EARLY_STOPPING_NEVER: "never",
}


def field_path(field: str) -> str:
    """Where a field of SamplingParams, or a part of one, is in a GenerateRequest. Others stay as they are."""
    length = next((at for at, character in enumerate(field) if character in ".["), len(field))
    name, part = field[:length], field[length:]
    return _PATHS.get(name, name) + part


def parse_params(request: pb.GenerateRequest) -> SamplingParams:
    """Raises InvalidArgumentError, with the names of SamplingParams: `field_path` tells where they are."""
    given: dict[str, Any] = {}
    for group in (request.sampling, request.stopping):
        for field, value in group.ListFields():
            convert = _CONVERSIONS.get(field.name)
            given[field.name] = value if convert is None else convert(value)
    if "max_time_seconds" in given:
        given["max_seconds"] = given.pop("max_time_seconds")
    given |= {field.name: value for field, value in request.output.ListFields() if field.name in _LOGPROBS}
    if request.HasField("best_of"):
        given["best_of"] = request.best_of
    if request.HasField("n"):
        given["num_outputs"] = request.n
    if request.HasField("guided"):
        given["guided"] = _guided(request.guided)
    return SamplingParams(**given)


def _guided(guided: pb.Guided) -> GuidedSpec:
    kind = guided.WhichOneof("kind")
    if kind is None:
        raise InvalidArgumentError("guided", None, "set json_schema, regex, grammar or choice")
    if kind == "choice":
        return GuidedSpec(kind, choices=tuple(guided.choice.texts))
    return GuidedSpec(kind, getattr(guided, kind))


def _beam(beam: pb.Beam) -> BeamParams:
    if beam.early_stopping not in _EARLY_STOPPING:
        limit = "must be a value of the enum EarlyStopping"
        raise InvalidArgumentError("beam.early_stopping", beam.early_stopping, limit)
    return BeamParams(
        width=beam.width,
        length_penalty=beam.length_penalty if beam.HasField("length_penalty") else 1.0,
        early_stopping=_EARLY_STOPPING[beam.early_stopping],
        diversity_rate=beam.diversity_rate,
    )


def _named(specs: Sequence[pb.LogitsProcessorSpec | pb.StoppingCriteriaSpec]) -> tuple[NamedSpec, ...]:
    return tuple(NamedSpec(spec.name, _struct(spec.parameters)) for spec in specs)


def _struct(struct: Struct) -> dict[str, object]:
    return {name: _json(value) for name, value in struct.fields.items()}


def _json(value: Value) -> object:
    """As json.loads would have it, but that 1.0 is 1: a Struct has only one kind of numbers."""
    kind = value.WhichOneof("kind")
    if kind == "number_value":
        number = value.number_value
        return int(number) if number.is_integer() else number
    if kind == "struct_value":
        return _struct(value.struct_value)
    if kind == "list_value":
        return _list(value.list_value)
    return None if kind in (None, "null_value") else getattr(value, kind)


def _list(values: ListValue) -> list[object]:
    return [_json(value) for value in values.values]


_CONVERSIONS: dict[str, Callable[[Any], object]] = {
    "logit_bias": lambda biases: tuple(sorted(biases.items())),
    "bad_words": tuple,
    "bad_word_ids": lambda words: tuple(tuple(word.ids) for word in words),
    "allowed_token_ids": tuple,
    "logits_processors": _named,
    "beam": _beam,
    "stop_strings": tuple,
    "stop_regex": tuple,
    "stop_token_ids": tuple,
    "stopping_criteria": _named,
}
