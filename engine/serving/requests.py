"""Messages of generation.proto to the engine's own types. The engine judges what takes a model to judge."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from engine.errors import InvalidArgumentError
from engine.sampling.params import SamplingParams
from engine.serving.request_params import parse_params
from engine.serving.types import MAX_REQUEST_ID_LENGTH, ModelInfo, OutputOptions
from inflight import v1 as pb

MAX_TOKEN_IDS = 2**20  # to detokenize in one call


@dataclass(frozen=True, slots=True)
class GenerateArguments:
    """A GenerateRequest as `AsyncEngine.generate` takes it."""

    request_id: str
    prompt: str | Sequence[int]
    params: SamplingParams
    priority: int
    output: OutputOptions


def parse_generate(request: pb.GenerateRequest, info: ModelInfo) -> GenerateArguments:
    """Raises InvalidArgumentError."""
    _refuse_unknown_fields("", request)
    return GenerateArguments(
        request_id=parse_request_id(request.request_id) if request.request_id else uuid.uuid4().hex,
        prompt=_parse_input(request),
        params=_parse_params(request, info),
        priority=request.priority,
        output=_parse_output(request.output),
    )


def parse_request_id(request_id: str) -> str:
    """Raises InvalidArgumentError."""
    if not 1 <= len(request_id) <= MAX_REQUEST_ID_LENGTH:
        limit = f"must have 1 to {MAX_REQUEST_ID_LENGTH} characters, this one has {len(request_id)}"
        raise InvalidArgumentError("request_id", request_id, limit)
    if not all("!" <= character <= "~" for character in request_id):
        raise InvalidArgumentError("request_id", request_id, "must be printable ASCII without spaces")
    return request_id


def parse_text(field: str, text: str, info: ModelInfo) -> str:
    """Raises InvalidArgumentError if no tokenizing can make the text fit the model."""
    if len(text) > info.max_prompt_chars:
        limit = f"at most {info.max_prompt_chars} characters fit {info.max_model_len} tokens"
        raise InvalidArgumentError(field, f"{len(text)} characters", limit)
    return text


def parse_token_ids(field: str, token_ids: Sequence[int], info: ModelInfo) -> list[int]:
    """Raises InvalidArgumentError if there are too many, or if one is not in the vocabulary."""
    if len(token_ids) > MAX_TOKEN_IDS:
        raise InvalidArgumentError(field, f"{len(token_ids)} ids", f"at most {MAX_TOKEN_IDS}")
    if token_ids and max(token_ids) >= info.vocab_size:
        limit = f"must be in [0, {info.vocab_size}), the vocabulary"
        raise InvalidArgumentError(field, max(token_ids), limit)
    return list(token_ids)


def _refuse_unknown_fields(path: str, message: Message) -> None:
    """A field that this version does not know asks for something that would be ignored."""
    unknown = UnknownFieldSet(message)
    if len(unknown):
        limit = "this server does not know a field of this number: its API is older than the client's"
        raise InvalidArgumentError(f"{path}#{unknown[0].field_number}", "set", limit)
    for field, value in message.ListFields():
        if isinstance(value, Message):
            _refuse_unknown_fields(f"{path}{field.name}.", value)
        elif field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for index, each in enumerate(value):
                _refuse_unknown_fields(f"{path}{field.name}[{index}].", each)


def _parse_input(request: pb.GenerateRequest) -> str | Sequence[int]:
    kind = request.WhichOneof("input")
    if kind is None:
        raise InvalidArgumentError("input", None, "set prompt or token_ids")
    if not request.prompt and not request.token_ids.ids:
        raise InvalidArgumentError(kind, "", "must not be empty: there is nothing to continue")
    return request.prompt or request.token_ids.ids


def _parse_params(request: pb.GenerateRequest, info: ModelInfo) -> SamplingParams:
    params = parse_params(request)
    stops = params.stop_strings or params.stop_regex or params.stop_token_ids
    can_stop = stops or (info.eos_token_ids and not params.ignore_eos)
    if params.include_stop and not can_stop:
        raise InvalidArgumentError("include_stop", True, "there is no stop that could be included")
    return params


def _parse_output(output: pb.Output) -> OutputOptions:
    text = output.text if output.HasField("text") else True
    if not text and not output.token_ids:
        raise InvalidArgumentError("output.text", False, "at least one of text and token_ids must be true")
    return OutputOptions(text=text, token_ids=output.token_ids, echo=output.echo)
