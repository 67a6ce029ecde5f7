"""From what a client asked for to a request that can run, or an error that names field and limit."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from engine.errors import InvalidArgumentError
from engine.sampling.params import SamplingParams, with_seed
from engine.serving.output_text import OutputText
from engine.serving.request_outputs import RequestOutputs
from engine.serving.types import ModelInfo, OutputOptions
from engine.text.stop_strings import StopAutomaton
from engine.text.tokenizer import Tokenizer
from scheduler.request import Request


@dataclass(frozen=True, slots=True)
class Asked:
    """What a client asked for, as it came. arrival_time: seconds on the engine's clock."""

    request_id: str
    prompt: str | Sequence[int]
    params: SamplingParams
    priority: int
    output: OutputOptions
    arrival_time: float

    @property
    def needs_tokenizer(self) -> bool:
        """Whether preparing takes time: text to ids, or ids to text."""
        return isinstance(self.prompt, str) or (self.output.echo and self.output.text)


class Intake:
    """Tokenizes and validates. Has no state, so any thread may call it."""

    def __init__(self, tokenizer: Tokenizer, model: ModelInfo) -> None:
        self._tokenizer = tokenizer
        self._model = model

    def check(self, asked: Asked) -> None:
        """What can be said before tokenizing, at no cost. Raises InvalidArgumentError."""
        params, model = asked.params, self._model
        if params.num_outputs > model.max_num_seqs:
            limit = f"at most max_num_seqs={model.max_num_seqs}, the sequences that run at once"
            raise InvalidArgumentError("n", params.num_outputs, limit)
        self._check_ids("stop_token_ids", params.stop_token_ids)
        if asked.priority and model.policy == "fcfs":
            raise InvalidArgumentError("priority", asked.priority, "must be 0: this server runs policy fcfs")
        if isinstance(asked.prompt, str) and len(asked.prompt) > model.max_prompt_chars:
            limit = f"at most {model.max_prompt_chars} characters fit {model.max_model_len} tokens"
            raise InvalidArgumentError("prompt", f"{len(asked.prompt)} characters", limit)

    def prepare(self, asked: Asked) -> RequestOutputs:
        """A request that can run. Takes time linear in the prompt. Raises InvalidArgumentError."""
        request = self._request(asked)
        prompt_text = ""
        if asked.output.echo and asked.output.text:
            given = asked.prompt
            prompt_text = given if isinstance(given, str) else self._tokenizer.decode(given)
        return RequestOutputs(request, asked.output, self._texts(asked, request), prompt_text)

    def _request(self, asked: Asked) -> Request:
        prompt_token_ids = self._prompt_token_ids(asked.prompt)
        max_new_tokens = self._max_new_tokens(asked.params, len(prompt_token_ids))
        return Request(
            request_id=asked.request_id,
            prompt_token_ids=prompt_token_ids,
            max_new_tokens=max_new_tokens,
            sampling=replace(with_seed(asked.params), max_new_tokens=max_new_tokens),
            num_outputs=asked.params.num_outputs,
            priority=asked.priority,
            arrival_time=asked.arrival_time,
        )

    def _texts(self, asked: Asked, request: Request) -> list[OutputText | None]:
        params = asked.params
        if not asked.output.text and not params.stop_strings:
            return [None] * params.num_outputs
        stops = StopAutomaton(params.stop_strings) if params.stop_strings else None
        return [
            OutputText(self._tokenizer, request.prompt_token_ids, params, stops)
            for _ in range(params.num_outputs)
        ]

    def _prompt_token_ids(self, prompt: str | Sequence[int]) -> Sequence[int]:
        if isinstance(prompt, str):
            field, token_ids = "prompt", tuple(self._tokenizer.encode(prompt))
        else:
            field, token_ids = "token_ids", tuple(prompt)
        most = self._model.max_model_len - 1
        if not 1 <= len(token_ids) <= most:
            limit = f"must have 1 to {most} tokens: max_model_len={most + 1}, one of them generated"
            raise InvalidArgumentError(field, f"{len(token_ids)} tokens", limit)
        self._check_ids(field, token_ids)
        return token_ids

    def _max_new_tokens(self, params: SamplingParams, num_prompt_tokens: int) -> int:
        room = self._model.max_model_len - num_prompt_tokens
        limit = (
            f"at most {room}: the prompt has {num_prompt_tokens} of max_model_len={room + num_prompt_tokens}"
        )
        for field in ("max_new_tokens", "min_new_tokens"):
            value: int | None = getattr(params, field)
            if value is not None and value > room:
                raise InvalidArgumentError(field, value, limit)
        return params.max_new_tokens or room

    def _check_ids(self, field: str, token_ids: Sequence[int]) -> None:
        for token_id in (min(token_ids), max(token_ids)) if token_ids else ():
            if not 0 <= token_id < self._model.vocab_size:
                limit = f"ids must be in [0, {self._model.vocab_size}), the vocabulary"
                raise InvalidArgumentError(field, token_id, limit)
