"""From what a client asked for to a request that can run, or an error that names field and limit."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from engine.errors import InvalidArgumentError
from engine.sampling.custom.registry import Registry
from engine.sampling.params import SamplingParams, with_seed
from engine.serving.bad_words import spell_bad_words
from engine.serving.output_text import OutputText, compile_stops
from engine.serving.request_outputs import RequestOutputs
from engine.serving.scoring import TokenScorer
from engine.serving.types import MAX_PROMPT_LOGPROBS, ModelInfo, OutputOptions
from engine.text.tokenizer import Tokenizer
from scheduler.request import Request


@dataclass(frozen=True, slots=True)
class Asked:
    """What a client asked for, as it came.

    arrival_time: seconds on the engine's clock. trace_headers: W3C trace context, for whoever wants it.
    """

    request_id: str
    prompt: str | Sequence[int]
    params: SamplingParams
    priority: int
    output: OutputOptions
    arrival_time: float
    trace_headers: Callable[[], Mapping[str, str]] = dict

    @property
    def needs_tokenizer(self) -> bool:
        """Whether preparing takes time: text to ids, ids to text, expressions to automata."""
        is_text = isinstance(self.prompt, str) or (self.output.echo and self.output.text)
        return is_text or bool(self.params.bad_words or self.params.stop_regex)

    def num_prompt_logprobs(self, num_prompt_tokens: int) -> int:
        """What has to be kept until it is read."""
        number = self.params.prompt_logprobs
        return 0 if number is None else num_prompt_tokens * (1 + number)


class Intake:
    """Tokenizes and validates. Has no state, so any thread may call it."""

    def __init__(self, tokenizer: Tokenizer, model: ModelInfo, registry: Registry | None = None) -> None:
        """registry: the processors and criteria that there are; None: none at all."""
        self._tokenizer = tokenizer
        self._model = model
        self._registry = registry or Registry()

    def check(self, asked: Asked) -> None:
        """What can be said before tokenizing, at no cost. Raises InvalidArgumentError."""
        params, model = asked.params, self._model
        if params.num_sequences > model.max_num_seqs:
            field = "n" if params.best_of is None else "best_of"
            limit = f"at most max_num_seqs={model.max_num_seqs}, the sequences that run at once"
            raise InvalidArgumentError(
                field if params.beam is None else "beam.width", params.num_sequences, limit
            )
        self._check_params_ids(params)
        self._registry.check(params, model.vocab_size)
        if params.guided is not None and not model.eos_token_ids:
            limit = "not with this model: it has no end-of-sequence token, with which guided output ends"
            raise InvalidArgumentError("guided", params.guided.kind, limit)
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
        texts, scorer = self._texts(asked, request), TokenScorer(self._tokenizer, asked.output.text)
        return RequestOutputs(request, asked.params, asked.output, texts, scorer, prompt_text)

    def _request(self, asked: Asked) -> Request:
        prompt_token_ids = self._prompt_token_ids(asked.prompt)
        self._check_prompt_logprobs(asked, len(prompt_token_ids))
        max_new_tokens = self._max_new_tokens(asked.params, len(prompt_token_ids))
        params = self._resolve(replace(with_seed(asked.params), max_new_tokens=max_new_tokens))
        return Request(
            request_id=asked.request_id,
            prompt_token_ids=prompt_token_ids,
            max_new_tokens=max_new_tokens,
            sampling=params,
            num_outputs=params.num_outputs if params.beam is not None else params.num_sequences,
            priority=asked.priority,
            arrival_time=asked.arrival_time,
            max_seconds=params.max_seconds,
            scores_prompt=params.prompt_logprobs is not None,
            beam=params.beam,
        )

    def _resolve(self, params: SamplingParams) -> SamplingParams:
        """With what the device needs beyond what was asked for."""
        if params.bad_words:
            spelled = spell_bad_words(params.bad_words, self._tokenizer)
            every = tuple(dict.fromkeys((*params.bad_word_ids, *spelled)))
            params = replace(params, bad_word_ids=every)
        if params.best_of is not None and params.logprobs is None:
            params = replace(params, logprobs=0)  # what the best are the best by
        if params.beam is not None:
            eos_ids = () if params.ignore_eos else self._model.eos_token_ids
            stops = tuple(dict.fromkeys((*eos_ids, *params.stop_token_ids)))
            params = replace(params, beam=replace(params.beam, stop_token_ids=stops))
        return params

    def _texts(self, asked: Asked, request: Request) -> list[OutputText | None]:
        params = asked.params
        stops = compile_stops(params)
        if not asked.output.text and stops is None:
            return [None] * request.num_outputs
        return [
            OutputText(self._tokenizer, request.prompt_token_ids, params, stops)
            for _ in range(request.num_outputs)
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

    def _check_prompt_logprobs(self, asked: Asked, num_prompt_tokens: int) -> None:
        if asked.num_prompt_logprobs(num_prompt_tokens) > MAX_PROMPT_LOGPROBS:
            most = MAX_PROMPT_LOGPROBS // num_prompt_tokens - 1
            limit = f"with {num_prompt_tokens} prompt tokens " + (f"at most {most}" if most >= 0 else "none")
            raise InvalidArgumentError("prompt_logprobs", asked.params.prompt_logprobs, limit)

    def _check_params_ids(self, params: SamplingParams) -> None:
        for field, token_ids in (
            ("stop_token_ids", params.stop_token_ids),
            ("logit_bias", [token_id for token_id, _ in params.logit_bias]),
            ("bad_word_ids", [token_id for word in params.bad_word_ids for token_id in word]),
            ("allowed_token_ids", params.allowed_token_ids),
            ("top_p_reset_id", () if params.top_p_reset_id is None else (params.top_p_reset_id,)),
        ):
            self._check_ids(field, token_ids)

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
