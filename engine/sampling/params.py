"""What one request asks of sampling and stopping, validated on construction."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from engine.errors import InvalidArgumentError
from engine.sampling.checks import check_count, check_integer, check_range, check_texts, check_token_ids
from engine.sampling.guided.spec import GuidedSpec
from engine.sampling.report import MAX_CANDIDATES
from scheduler.beams import BeamParams

MAX_OUTPUTS = 128
MAX_STOP_STRINGS = 16
MAX_STOP_STRING_LENGTH = 256  # characters
MAX_STOP_TOKEN_IDS = 64
MAX_TEMPERATURE = 100.0
MAX_PENALTY = 100.0
MAX_NGRAM_SIZE = 64
MAX_LOGIT_BIASES = 1024
MAX_LOGIT_BIAS = 100.0
MAX_BAD_WORDS = 128
MAX_BAD_TOKENS = 1024  # of all bad words together
MAX_LOGPROBS = 20
MAX_BEAM_WIDTH = 16
MAX_NAMED = 16  # processors, and as many criteria
_OFF = "; it restricts sampling, so temperature must be above 0 (unset means 0, greedy)"


@dataclass(frozen=True, slots=True)
class NamedSpec:
    """A processor or criterion that the server knows by this name, and its parameters, as in JSON."""

    name: str
    parameters: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling and stopping of one request. The default is greedy.

    Logits change in the order of transformers: logit_bias, repetition_penalty (and with it presence_penalty
    and frequency_penalty), no_repeat_ngram_size, bad words, min_new_tokens, allowed_token_ids, the grammar,
    logits_processors in their order, temperature, top_k, top_p, min_p, typical_p.

    temperature: 0 is greedy (argmax); up to MAX_TEMPERATURE.
    top_k: 0 keeps all tokens. top_p: in (0, 1], 1 keeps all. min_p: in [0, 1], 0 keeps all; a token survives
    when its probability is at least min_p times the largest one. typical_p: in (0, 1], 1 keeps all: the
    smallest set of tokens with this mass whose log-probabilities are nearest to minus the entropy of what is
    left (Meister et al., arXiv:2202.00666). Tokens that tie with the last survivor survive too.
    top_p_decay: top_p is multiplied by it after each token, down to top_p_min, and returns to its first value
    after top_p_reset_id (Lee et al., arXiv:2206.04624, as in TensorRT-LLM).

    repetition_penalty: above 0; logits of seen tokens are divided by it if positive, else multiplied (Keskar
    et al., arXiv:1909.05858). presence_penalty, frequency_penalty: subtracted once, and once for each time.
    penalize_prompt: whether tokens of the prompt count as seen; None: for repetition_penalty alone.
    no_repeat_ngram_size: no n-gram of prompt and output occurs twice; 0 is off.
    logit_bias: (token id, what is added to its logit), ids all different.
    bad_words: texts not to be generated, as the tokenizer writes them alone and after a space; bad_word_ids:
    the same as token ids. allowed_token_ids: nothing else is sampled; empty allows all.

    seed: unsigned 64 bits; output i of a request draws from the stream (seed, i). None: a random seed, which
    `with_seed` fills in.
    best_of: so many outputs are generated; the num_outputs of highest cumulative log-probability come back.
    logprobs: of each token and of so many most likely ones, from the model's own distribution; None: none at
    all. prompt_logprobs: the same of the prompt's tokens but the first.
    guided: what the output's text must match. grammar: what that was compiled to (guided.grammar.Grammar).
    beam: search instead of sampling; num_outputs of its hypotheses come back.

    max_new_tokens: None means as many as the model's maximum length and the pool leave room for.
    min_new_tokens: end-of-sequence and stop token ids cannot be sampled, and stop strings are not looked for,
    before that many. max_seconds: since the request's arrival.
    stop_strings end the output where its text first contains one, stop_regex where an expression matches;
    include_stop keeps what matched, or the stop token.
    ignore_eos: the model's own end-of-sequence ids do not stop; stop_token_ids still do.

    Raises InvalidArgumentError naming the field, the value and the limit.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    top_p_decay: float = 1.0
    top_p_min: float = 0.0
    top_p_reset_id: int | None = None
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalize_prompt: bool | None = None
    no_repeat_ngram_size: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()
    bad_words: tuple[str, ...] = ()
    bad_word_ids: tuple[tuple[int, ...], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    seed: int | None = None
    num_outputs: int = 1
    best_of: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    guided: GuidedSpec | None = None
    grammar: object | None = None
    beam: BeamParams | None = None
    logits_processors: tuple[NamedSpec, ...] = ()
    stopping_criteria: tuple[NamedSpec, ...] = ()
    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    max_seconds: float | None = None
    stop_strings: tuple[str, ...] = ()
    stop_regex: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    include_stop: bool = False

    def __post_init__(self) -> None:
        self._check_distribution()
        self._check_logits()
        self._check_outputs()
        self._check_combinations()
        self._check_stops()

    @property
    def num_sequences(self) -> int:
        """Rows that the request takes: its beams, or the outputs that are generated."""
        return self.beam.width if self.beam is not None else self.best_of or self.num_outputs

    @property
    def is_random(self) -> bool:
        """Whether tokens are drawn; the others are those of the largest logit."""
        return self.temperature > 0 and self.top_k != 1 and self.beam is None

    @property
    def penalizes(self) -> bool:
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)

    @property
    def needs_history(self) -> bool:
        """Whether its tokens have to be at hand on the device."""
        multiple = any(len(word) > 1 for word in self.bad_word_ids)
        named = bool(self.logits_processors or self.stopping_criteria)
        return self.no_repeat_ngram_size > 0 or multiple or named

    @property
    def changes_logits(self) -> bool:
        """Whether logits are to be processed before anything is drawn from them."""
        restricts = bool(self.logit_bias or self.bad_word_ids or self.allowed_token_ids)
        guides = self.guided is not None or self.grammar is not None
        return (
            self.penalizes
            or restricts
            or guides
            or self.no_repeat_ngram_size > 0
            or bool(self.logits_processors)
            or self.beam is not None
        )

    def _check_distribution(self) -> None:
        check_range("temperature", self.temperature, 0.0, MAX_TEMPERATURE)
        check_integer("top_k", self.top_k, 0, 2**31 - 1)
        check_range("top_p", self.top_p, 0.0, 1.0, open_low=True)
        check_range("top_p_decay", self.top_p_decay, 0.0, 1.0, open_low=True)
        check_range("top_p_min", self.top_p_min, 0.0, 1.0)
        if self.top_p_reset_id is not None:
            check_integer("top_p_reset_id", self.top_p_reset_id, 0, 2**31 - 1)
        check_range("min_p", self.min_p, 0.0, 1.0)
        check_range("typical_p", self.typical_p, 0.0, 1.0, open_low=True)
        if self.seed is not None:
            check_integer("seed", self.seed, 0, 2**64 - 1)

    def _check_logits(self) -> None:
        check_range("repetition_penalty", self.repetition_penalty, 0.0, MAX_PENALTY, open_low=True)
        check_range("presence_penalty", self.presence_penalty, -MAX_PENALTY, MAX_PENALTY)
        check_range("frequency_penalty", self.frequency_penalty, -MAX_PENALTY, MAX_PENALTY)
        check_integer("no_repeat_ngram_size", self.no_repeat_ngram_size, 0, MAX_NGRAM_SIZE)
        check_count("logit_bias", self.logit_bias, MAX_LOGIT_BIASES, "ids")
        check_token_ids("logit_bias", (token_id for token_id, _ in self.logit_bias))
        if len({token_id for token_id, _ in self.logit_bias}) < len(self.logit_bias):
            raise InvalidArgumentError("logit_bias", len(self.logit_bias), "ids must all be different")
        for _, bias in self.logit_bias:
            check_range("logit_bias", bias, -MAX_LOGIT_BIAS, MAX_LOGIT_BIAS)
        check_count("bad_words", self.bad_words, MAX_BAD_WORDS, "words")
        check_texts("bad_words", self.bad_words, MAX_STOP_STRING_LENGTH)
        check_count("bad_word_ids", self.bad_word_ids, 2 * MAX_BAD_WORDS, "words")
        for word in self.bad_word_ids:
            check_token_ids("bad_word_ids", word)
            if not word:
                raise InvalidArgumentError("bad_word_ids", word, "each has at least one token")
        num_tokens = sum(map(len, self.bad_word_ids))
        if num_tokens > MAX_BAD_TOKENS:
            raise InvalidArgumentError("bad_word_ids", num_tokens, f"at most {MAX_BAD_TOKENS} tokens in all")
        check_token_ids("allowed_token_ids", self.allowed_token_ids)

    def _check_outputs(self) -> None:
        check_integer("n", self.num_outputs, 1, MAX_OUTPUTS)
        if self.best_of is not None:
            check_integer("best_of", self.best_of, self.num_outputs, MAX_OUTPUTS)
        for name, number in (("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)):
            if number is not None:
                check_integer(name, number, 0, MAX_LOGPROBS)
        check_count("logits_processors", self.logits_processors, MAX_NAMED, "processors")
        check_count("stopping_criteria", self.stopping_criteria, MAX_NAMED, "criteria")

    def _check_combinations(self) -> None:
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            limit = f"at most max_new_tokens={self.max_new_tokens}"
            raise InvalidArgumentError("min_new_tokens", self.min_new_tokens, limit)
        if self.beam is not None:
            self._check_beam(self.beam)
        if self.temperature == 0:
            self._check_greedy()
        if self.guided is not None and self.ignore_eos:
            raise InvalidArgumentError("ignore_eos", True, "guided output ends with an end-of-sequence token")
        if self.guided is not None and self.min_new_tokens > 0:
            limit = "must be 0 with guided output: it ends when the text is complete"
            raise InvalidArgumentError("min_new_tokens", self.min_new_tokens, limit)

    def _check_greedy(self) -> None:
        off: dict[str, tuple[float, float]] = {
            "top_p": (self.top_p, 1),
            "min_p": (self.min_p, 0),
            "typical_p": (self.typical_p, 1),
            "top_p_decay": (self.top_p_decay, 1),
        }
        if self.top_k > 1:
            raise InvalidArgumentError("top_k", self.top_k, f"must be 0 or 1 here{_OFF}")
        for name, (value, neutral) in off.items():
            if value != neutral:
                raise InvalidArgumentError(name, value, f"must be {neutral} here{_OFF}")
        for name, number in (("n", self.num_outputs), ("best_of", self.best_of or 1)):
            if number > 1 and self.beam is None:
                limit = "must be 1 when temperature is 0 (unset means 0, greedy): all outputs would be equal"
                raise InvalidArgumentError(name, number, limit)

    def _check_beam(self, beam: BeamParams) -> None:
        check_integer("beam.width", beam.width, 2, MAX_BEAM_WIDTH)
        check_range("beam.length_penalty", beam.length_penalty, -MAX_PENALTY, MAX_PENALTY)
        check_range("beam.diversity_rate", beam.diversity_rate, 0.0, MAX_PENALTY)
        if beam.early_stopping not in ("true", "false", "never"):
            limit = "must be true, false or never"
            raise InvalidArgumentError("beam.early_stopping", beam.early_stopping, limit)
        if self.num_outputs > beam.width:
            raise InvalidArgumentError("n", self.num_outputs, f"at most beam.width={beam.width}")
        if beam.num_candidates > MAX_CANDIDATES:
            limit = f"with {len(beam.stop_token_ids)} stop ids at most {MAX_CANDIDATES} together"
            raise InvalidArgumentError("beam.width", beam.width, limit)
        self._refuse_with_beam()

    def _refuse_with_beam(self) -> None:
        """What has no meaning, or none yet, in a beam search."""
        asked: dict[str, object] = {
            "temperature": self.temperature,
            "best_of": self.best_of,
            "guided": self.guided,
            "stop_strings": self.stop_strings,
            "stop_regex": self.stop_regex,
            "logprobs": None if self.logprobs is None else (self.logprobs,),
            "stopping_criteria": self.stopping_criteria,
            "logits_processors": self.logits_processors,
        }
        for name, value in asked.items():
            if value:
                raise InvalidArgumentError(name, value, "must not be set with a beam search")

    def _check_stops(self) -> None:
        if self.max_new_tokens is not None:
            check_integer("max_new_tokens", self.max_new_tokens, 1, 2**31 - 1)
        check_integer("min_new_tokens", self.min_new_tokens, 0, 2**31 - 1)
        if self.max_seconds is not None:
            check_range("max_seconds", self.max_seconds, 0.0, 1e9, open_low=True)
        check_count("stop_strings", self.stop_strings, MAX_STOP_STRINGS, "strings")
        check_texts("stop_strings", self.stop_strings, MAX_STOP_STRING_LENGTH)
        check_count("stop_regex", self.stop_regex, MAX_STOP_STRINGS, "expressions")
        check_texts("stop_regex", self.stop_regex, MAX_STOP_STRING_LENGTH)
        check_count("stop_token_ids", self.stop_token_ids, MAX_STOP_TOKEN_IDS, "ids")
        check_token_ids("stop_token_ids", self.stop_token_ids)


def with_seed(params: SamplingParams) -> SamplingParams:
    """The same parameters with a seed: a random one where the request named none."""
    return params if params.seed is not None else replace(params, seed=secrets.randbits(64))
