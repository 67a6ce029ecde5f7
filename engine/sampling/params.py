"""What one request asks of sampling and stopping, validated on construction."""

import math
import secrets
from dataclasses import dataclass, replace

from engine.errors import InvalidArgumentError

MAX_OUTPUTS = 128
MAX_STOP_STRINGS = 16
MAX_STOP_STRING_LENGTH = 256  # characters
MAX_STOP_TOKEN_IDS = 64
MAX_TEMPERATURE = 100.0
_OFF = "; it restricts sampling, so temperature must be above 0 (unset means 0, greedy)"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling and stopping of one request. The default is greedy.

    temperature: 0 is greedy (argmax); up to MAX_TEMPERATURE.
    top_k: 0 keeps all tokens. top_p: in (0, 1], 1 keeps all. min_p: in [0, 1], 0 keeps all; a token survives
    when its probability is at least min_p times the largest one. They apply in this order, after the
    temperature; tokens as likely as the last survivor survive too.
    seed: unsigned 64 bits; output i of a request draws from the stream (seed, i). None: a random seed, which
    `with_seed` fills in.
    max_new_tokens: None means as many as the model's maximum length and the pool leave room for.
    min_new_tokens: end-of-sequence and stop token ids cannot be sampled, and stop strings are not looked for,
    before that many.
    stop_strings end the output where its text first contains one; include_stop keeps the string or token.
    ignore_eos: the model's own end-of-sequence ids do not stop; stop_token_ids still do.

    Raises InvalidArgumentError naming the field, the value and the limit.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    num_outputs: int = 1
    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    stop_strings: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    include_stop: bool = False

    def __post_init__(self) -> None:
        _check_range("temperature", self.temperature, 0.0, MAX_TEMPERATURE)
        _check_integer("top_k", self.top_k, 0, 2**31 - 1)
        _check_range("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _check_range("min_p", self.min_p, 0.0, 1.0)
        _check_integer("n", self.num_outputs, 1, MAX_OUTPUTS)
        if self.seed is not None:
            _check_integer("seed", self.seed, 0, 2**64 - 1)
        if self.max_new_tokens is not None:
            _check_integer("max_new_tokens", self.max_new_tokens, 1, 2**31 - 1)
        _check_integer("min_new_tokens", self.min_new_tokens, 0, 2**31 - 1)
        self._check_combinations()
        self._check_stops()

    def _check_combinations(self) -> None:
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            limit = f"at most max_new_tokens={self.max_new_tokens}"
            raise InvalidArgumentError("min_new_tokens", self.min_new_tokens, limit)
        if self.temperature > 0:
            return
        if self.top_k > 1:
            raise InvalidArgumentError("top_k", self.top_k, f"must be 0 or 1 here{_OFF}")
        if self.top_p < 1:
            raise InvalidArgumentError("top_p", self.top_p, f"must be 1 here{_OFF}")
        if self.min_p > 0:
            raise InvalidArgumentError("min_p", self.min_p, f"must be 0 here{_OFF}")
        if self.num_outputs > 1:
            limit = "must be 1 when temperature is 0 (unset means 0, greedy): all outputs would be equal"
            raise InvalidArgumentError("n", self.num_outputs, limit)

    def _check_stops(self) -> None:
        if len(self.stop_strings) > MAX_STOP_STRINGS:
            limit = f"at most {MAX_STOP_STRINGS} strings"
            raise InvalidArgumentError("stop_strings", len(self.stop_strings), limit)
        for stop in self.stop_strings:
            if not 1 <= len(stop) <= MAX_STOP_STRING_LENGTH:
                limit = f"each has 1 to {MAX_STOP_STRING_LENGTH} characters, this one has {len(stop)}"
                raise InvalidArgumentError("stop_strings", stop, limit)
        if len(self.stop_token_ids) > MAX_STOP_TOKEN_IDS:
            limit = f"at most {MAX_STOP_TOKEN_IDS} ids"
            raise InvalidArgumentError("stop_token_ids", len(self.stop_token_ids), limit)
        for token_id in self.stop_token_ids:
            _check_integer("stop_token_ids", token_id, 0, 2**31 - 1)


def with_seed(params: SamplingParams) -> SamplingParams:
    """The same parameters with a seed: a random one where the request named none."""
    return params if params.seed is not None else replace(params, seed=secrets.randbits(64))


def _check_range(field: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    if not math.isfinite(value) or value > high or value < low or (open_low and value == low):
        raise InvalidArgumentError(field, value, f"must be in {'(' if open_low else '['}{low:g}, {high:g}]")


def _check_integer(field: str, value: int, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidArgumentError(field, value, f"must be an integer in [{low}, {high}]")
