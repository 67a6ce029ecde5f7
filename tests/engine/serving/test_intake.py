"""What a request becomes before the engine gets it, and what is refused."""

from dataclasses import replace
from typing import Any

import pytest

from engine.demo import MODEL_DIR
from engine.errors import InvalidArgumentError, OverloadedError
from engine.sampling.custom.plugins import build_registry
from engine.sampling.guided.spec import GuidedSpec
from engine.sampling.params import NamedSpec, SamplingParams
from engine.serving.bad_words import spell_bad_words
from engine.serving.intake import Asked, Intake
from engine.serving.metrics import Metrics
from engine.serving.streams import Streams
from engine.serving.types import (
    MAX_PROMPT_LOGPROBS,
    MAX_PROMPT_LOGPROBS_TOGETHER,
    ModelInfo,
    OutputOptions,
)
from engine.text.tokenizer import Tokenizer
from scheduler.beams import BeamParams
from scheduler.request import Request
from tests.support.fake_engine import fake_engine
from tests.support.fake_model import EOS, VOCAB_SIZE, byte_tokenizer


def asked(prompt: str | list[int] = "a", request_id: str = "id", **params: Any) -> Asked:
    return Asked(request_id, prompt, SamplingParams(**params), 0, OutputOptions(), 5.0)


def intake(**info: Any) -> Intake:
    return Intake(byte_tokenizer(), model_info(**info), build_registry())


def model_info(**info: Any) -> ModelInfo:
    return replace(fake_engine().engine.model_info, **info)


def request_of(**params: Any) -> Request:
    return intake().prepare(asked(**params)).request


def sampling_of(**params: Any) -> SamplingParams:
    params_of_request = request_of(**params).sampling
    assert isinstance(params_of_request, SamplingParams)
    return params_of_request


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"stop_token_ids": (VOCAB_SIZE,)}, "stop_token_ids"),
        ({"logit_bias": ((3, 1.0), (VOCAB_SIZE, 1.0))}, "logit_bias"),
        ({"bad_word_ids": ((1,), (2, VOCAB_SIZE))}, "bad_word_ids"),
        ({"allowed_token_ids": (1, VOCAB_SIZE)}, "allowed_token_ids"),
        ({"top_p_reset_id": VOCAB_SIZE, "temperature": 1.0}, "top_p_reset_id"),
    ],
)
def test_ids_are_those_of_the_vocabulary(params: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^{field}={VOCAB_SIZE}: ids must be in"):
        intake().check(asked(**params))


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"num_outputs": 9, "temperature": 1.0}, "n=9"),
        ({"best_of": 9, "temperature": 1.0}, "best_of=9"),
        ({"beam": BeamParams(9)}, "beam.width=9"),
    ],
)
def test_all_sequences_of_a_request_have_to_run_at_once(params: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^{words}: at most max_num_seqs=8"):
        intake().check(asked(**params))


@pytest.mark.parametrize(
    ("params", "words"),
    [
        (
            {"logits_processors": (NamedSpec("nope"),)},
            r"logits_processors\[0\].name='nope'.* there is .*end_bias",
        ),
        ({"stopping_criteria": (NamedSpec("nope"),)}, r"stopping_criteria\[0\].name='nope'.*repetition"),
        ({"stopping_criteria": (NamedSpec("repetition", {"x": 1}),)}, r"stopping_criteria\[0\].parameters"),
    ],
)
def test_named_processors_and_criteria_are_checked(params: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        intake().check(asked(**params))


def test_guided_output_needs_an_end() -> None:
    guided = GuidedSpec("regex", "a")
    intake().check(asked(guided=guided))
    with pytest.raises(InvalidArgumentError, match=r"guided='regex'.*end-of-sequence"):
        intake(eos_token_ids=()).check(asked(guided=guided))


def test_an_expression_that_is_none() -> None:
    with pytest.raises(InvalidArgumentError, match=r"^stop_regex='\(a'"):
        intake().prepare(asked(stop_regex=("(a",)))


def test_what_the_scheduler_has_to_know() -> None:
    request = request_of(max_seconds=1.5, prompt_logprobs=2, temperature=1.0, num_outputs=2)
    assert (request.max_seconds, request.scores_prompt, request.num_outputs) == (1.5, True, 2)
    plain = request_of()
    assert (plain.max_seconds, plain.scores_prompt, plain.beam) == (None, False, None)


def test_best_of_generates_more_and_needs_their_log_probabilities() -> None:
    params: dict[str, Any] = {"temperature": 1.0, "num_outputs": 2, "best_of": 4}
    assert request_of(**params).num_outputs == 4
    assert sampling_of(**params).logprobs == 0
    assert sampling_of(**params, logprobs=3).logprobs == 3
    assert sampling_of(temperature=1.0).logprobs is None


@pytest.mark.parametrize(
    ("params", "stops"),
    [
        ({}, (EOS,)),
        ({"stop_token_ids": (5, EOS, 5)}, (EOS, 5)),
        ({"ignore_eos": True, "stop_token_ids": (5,)}, (5,)),
    ],
)
def test_a_beam_search_knows_what_ends_a_hypothesis(params: dict[str, Any], stops: tuple[int, ...]) -> None:
    request = request_of(beam=BeamParams(3, 0.5, "never"), num_outputs=2, **params)
    assert request.beam == BeamParams(3, 0.5, "never", stop_token_ids=stops)
    assert (request.num_outputs, request.num_sequences) == (2, 3)
    assert sampling_of(beam=BeamParams(3), **params).beam == BeamParams(3, stop_token_ids=stops)


def test_bad_words_are_spelled_alone_and_after_a_space() -> None:
    tokenizer = Tokenizer.from_directory(MODEL_DIR)
    alone, spaced = (tuple(tokenizer.encode(text, False)) for text in ("The", " The"))
    assert alone != spaced
    assert spell_bad_words(["The", "The"], tokenizer) == (alone, spaced)
    (number,) = spell_bad_words(["12"], tokenizer)  # whose tokens are the same after a space
    assert tokenizer.decode(number) == "12"


def test_bad_words_join_the_bad_ids() -> None:
    params = sampling_of(bad_words=("no",), bad_word_ids=((1, 2), (110, 111)))
    assert params.bad_word_ids == ((1, 2), (110, 111))
    assert sampling_of(bad_words=("no", "so")).bad_word_ids == ((110, 111), (115, 111))


def test_a_request_may_hold_so_many_log_probabilities_of_its_prompt() -> None:
    num_tokens = MAX_PROMPT_LOGPROBS // 4
    long = intake(max_model_len=MAX_PROMPT_LOGPROBS * 2)
    assert long.prepare(asked([5] * num_tokens, prompt_logprobs=3)).request.scores_prompt
    with pytest.raises(
        InvalidArgumentError, match=f"prompt_logprobs=4: with {num_tokens} prompt .* at most 3"
    ):
        long.prepare(asked([5] * num_tokens, prompt_logprobs=4))
    with pytest.raises(InvalidArgumentError, match="none"):
        long.prepare(asked([5] * (MAX_PROMPT_LOGPROBS + 1), prompt_logprobs=0))


async def test_all_requests_together_may_hold_so_many_and_give_them_back() -> None:
    streams = Streams(100, Metrics(fake_engine().scheduler.stats))
    most = MAX_PROMPT_LOGPROBS_TOGETHER // MAX_PROMPT_LOGPROBS
    admitted = [streams.admit(asked(request_id=str(i), prompt_logprobs=0)) for i in range(most + 1)]
    for stream in admitted[:most]:
        streams.charge(stream, MAX_PROMPT_LOGPROBS)
    streams.charge(streams.admit(asked(request_id="plain")), MAX_PROMPT_LOGPROBS)
    with pytest.raises(OverloadedError, match="log-probabilities"):
        streams.charge(admitted[-1], 1)
    streams.refuse(admitted[0], OverloadedError(""))
    streams.charge(admitted[-1], MAX_PROMPT_LOGPROBS)
