"""The processors and criteria that requests can name."""

import inspect
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from engine.errors import ConfigError, InvalidArgumentError
from engine.sampling.custom.interfaces import (
    BatchedLogitsProcessor,
    BatchedStoppingCriteria,
    LogitsProcessor,
    StoppingCriteria,
)
from engine.sampling.custom.parameters import (
    NoParameters,
    check_declaration,
    parameters_schema,
    parse_parameters,
)
from engine.sampling.params import NamedSpec, SamplingParams

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Kind(Enum):
    """The value is the field of SamplingParams."""

    PROCESSOR = "logits_processors"
    CRITERION = "stopping_criteria"

    @property
    def title(self) -> str:
        return "logits processor" if self is Kind.PROCESSOR else "stopping criterion"


@dataclass(frozen=True, slots=True)
class Description:
    """What clients are told. text: for people. schema: of the parameters, a JSON schema as text."""

    name: str
    text: str
    schema: str


@dataclass(frozen=True, slots=True)
class Entry:
    """make: from parameters to an object of one output; or, if is_batched, a class that takes nothing."""

    kind: Kind
    name: str
    make: Callable[..., Any]
    parameters: type
    is_batched: bool

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"{self.kind.title} {self.name!r}"

    @property
    def source(self) -> str:
        """Where it was written."""
        name = getattr(self.make, "__qualname__", repr(self.make))
        return f"{getattr(self.make, '__module__', '?')}.{name}"

    def describe(self) -> Description:
        text = vars(self.make).get("__doc__") if isinstance(self.make, type) else self.make.__doc__
        schema = json.dumps(parameters_schema(self.parameters))
        return Description(self.name, inspect.cleandoc(text or ""), schema)


class Registry:
    """Names, each of one processor or criterion. Filled when the server starts, and not changed later."""

    def __init__(self) -> None:
        self._entries: dict[Kind, dict[str, Entry]] = {kind: {} for kind in Kind}

    def add_logits_processor(
        self,
        name: str,
        maker: Callable[..., LogitsProcessor] | type[BatchedLogitsProcessor[Any]],
        parameters: type | None = None,
    ) -> None:
        """maker: a subclass of LogitsProcessor or BatchedLogitsProcessor, or a function from parameters to a
        callable such as LogitsProcessor describes. parameters: its dataclass, by default maker.parameters.

        Raises ConfigError: the name is taken, or no name; parameters that JSON cannot carry.
        """
        self._add(Kind.PROCESSOR, name, maker, parameters)

    def add_stopping_criterion(
        self,
        name: str,
        maker: Callable[..., StoppingCriteria] | type[BatchedStoppingCriteria[Any]],
        parameters: type | None = None,
    ) -> None:
        """As add_logits_processor."""
        self._add(Kind.CRITERION, name, maker, parameters)

    def entries(self, kind: Kind) -> Sequence[Entry]:
        """In the order of their names: the order in which a CUDA graph applies processors."""
        return sorted(self._entries[kind].values(), key=lambda entry: entry.name)

    def find(self, kind: Kind, name: str) -> Entry | None:
        return self._entries[kind].get(name)

    def describe(self, kind: Kind) -> tuple[Description, ...]:
        return tuple(entry.describe() for entry in self.entries(kind))

    def check(self, params: SamplingParams, vocab_size: int) -> None:
        """Raises InvalidArgumentError naming what a request asks for that is not there, or not so."""
        self.validate(Kind.PROCESSOR, params.logits_processors, vocab_size)
        self.validate(Kind.CRITERION, params.stopping_criteria, vocab_size)

    def validate(self, kind: Kind, specs: Sequence[NamedSpec], vocab_size: int) -> None:
        """See check()."""
        seen: set[str] = set()
        for index, spec in enumerate(specs):
            entry, _ = self.resolve(kind, index, spec, vocab_size)
            if entry.is_batched and spec.name in seen:
                limit = "is named twice, and it keeps one state for each output"
                raise InvalidArgumentError(f"{kind.value}[{index}].name", spec.name, limit)
            seen.add(spec.name)

    def resolve(self, kind: Kind, index: int, spec: NamedSpec, vocab_size: int) -> tuple[Entry, Any]:
        """The entry, and the parameters as an instance of its dataclass. index: of the spec in the request.

        Raises InvalidArgumentError.
        """
        entry = self.find(kind, spec.name)
        if entry is None:
            names = ", ".join(each.name for each in self.entries(kind))
            limit = f"no {kind.title} of this name; there is {names or 'none'}"
            raise InvalidArgumentError(f"{kind.value}[{index}].name", spec.name, limit)
        field = f"{kind.value}[{index}].parameters"
        return entry, parse_parameters(entry.parameters, field, spec.parameters, vocab_size)

    def _add(self, kind: Kind, name: str, maker: Callable[..., Any], parameters: type | None) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            limit = "must be 1 to 64 letters, digits, '_', '.' or '-'"
            raise ConfigError(f"{kind.title} {name!r}: {limit}")
        if not callable(maker):
            raise ConfigError(f"{kind.title} {name!r}: {maker!r} is no class and no function")
        chosen: type = getattr(maker, "parameters", NoParameters) if parameters is None else parameters
        entry = Entry(kind, name, maker, chosen, _is_batched(kind, name, maker))
        if (other := self._entries[kind].get(name)) is not None:
            raise ConfigError(f"{kind.title} {name!r} is there twice: {other.source} and {entry.source}")
        try:
            check_declaration(chosen)
        except ConfigError as error:
            raise ConfigError(f"{kind.title} {name!r}: {error}") from error
        self._entries[kind][name] = entry


def _is_batched(kind: Kind, name: str, maker: object) -> bool:
    """Raises ConfigError for a class of the other kind."""
    processors, criteria = (
        (LogitsProcessor, BatchedLogitsProcessor),
        (StoppingCriteria, BatchedStoppingCriteria),
    )
    ours, others = (processors, criteria) if kind is Kind.PROCESSOR else (criteria, processors)
    if not isinstance(maker, type):
        return False
    if issubclass(maker, others):
        raise ConfigError(f"{maker.__qualname__} is no {kind.title}, but is to be one: {name!r}")
    return issubclass(maker, ours[1])
