"""What is driven: the same requests over gRPC or over HTTP."""

import re
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, Self

from benchmarks.loadtest.errors import OptionError
from benchmarks.loadtest.schedule import Prompt
from benchmarks.loadtest.workload import SamplingOptions

_URL = re.compile(r"(grpc|openai\+http)://([^/:]+|\[[^]]+\]):(\d+)/?")


@dataclass(frozen=True, slots=True)
class WireRequest:
    """deadline: seconds that the server has; None: as long as it takes. wants_answer: the next turn
    needs it."""

    prompt: Prompt
    num_output_tokens: int
    sampling: SamplingOptions = ()
    ignore_eos: bool = False
    deadline: float | None = None
    wants_answer: bool = False


class End(NamedTuple):
    """As the server tells. None: it does not."""

    finish_reason: str
    num_prompt_tokens: int | None = None
    num_cached_tokens: int | None = None
    num_output_tokens: int | None = None


class Delta(NamedTuple):
    """One message of a stream. answer: what it adds to the conversation, of the prompt's kind."""

    num_tokens: int
    answer: Prompt = ()
    end: End | None = None


class RequestFailedError(Exception):
    """kind: the server is too busy, the deadline passed, or it failed otherwise."""

    def __init__(self, kind: Literal["busy", "deadline", "failed"], message: str) -> None:
        self.kind = kind
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What requests must keep to. 0: the server does not tell."""

    name: str
    vocab_size: int
    max_model_len: int
    server_version: str = ""


class Target(Protocol):
    """A connection of one client process. sends_deadlines: else the client keeps them itself."""

    sends_deadlines: bool

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *error: object) -> None: ...

    def stream(self, request: WireRequest) -> AsyncGenerator[Delta, None]:
        """Messages as they come; closing or cancelling it ends the request. Raises RequestFailedError."""


@dataclass(frozen=True)
class TargetSpec:
    """Where the server is, and how it is asked: what goes to the client processes.

    text: the server makes text too (it always does over HTTP). model, body: of an OpenAI server: its name for
    the model, and more fields of every request.
    """

    kind: Literal["grpc", "openai"]
    host: str
    port: int
    text: bool = True
    model: str = ""
    body: Mapping[str, Any] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"{'grpc' if self.kind == 'grpc' else 'openai+http'}://{self.host}:{self.port}"


def parse_target(url: str) -> TargetSpec:
    """Raises OptionError."""
    match = _URL.fullmatch(url)
    if match is None:
        raise OptionError("--target", url, "grpc://HOST:PORT or openai+http://HOST:PORT")
    scheme, host, port = match.groups()
    return TargetSpec("grpc" if scheme == "grpc" else "openai", host, int(port))


def open_target(spec: TargetSpec) -> Target:
    """To be entered inside a running event loop."""
    if spec.kind == "grpc":
        from benchmarks.loadtest.target_grpc import GrpcTarget

        return GrpcTarget(spec)
    from benchmarks.loadtest.target_openai import OpenAiTarget

    return OpenAiTarget(spec)


def ask_model(spec: TargetSpec, timeout: float) -> ServedModel:
    """What is served. Blocks. timeout: seconds. Raises TargetError."""
    if spec.kind == "grpc":
        from benchmarks.loadtest.target_grpc import ask_grpc

        return ask_grpc(spec, timeout)
    from benchmarks.loadtest.target_openai import ask_openai

    return ask_openai(spec, timeout)
