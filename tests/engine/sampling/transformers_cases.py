"""What transformers makes of the logits of one row, with its own processors in its own order."""

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from engine.sampling.params import SamplingParams

EOS = 2


def processors(params: SamplingParams, num_prompt: int, vocab_size: int) -> Iterator[LogitsProcessor]:
    """Those that come before the temperature."""
    if params.logit_bias:
        yield SequenceBiasLogitsProcessor([[[token_id], float(bias)] for token_id, bias in params.logit_bias])
    if params.repetition_penalty != 1:
        ignored = num_prompt if params.penalize_prompt is False else None
        yield RepetitionPenaltyLogitsProcessor(params.repetition_penalty, ignored)
    if params.no_repeat_ngram_size:
        yield NoRepeatNGramLogitsProcessor(params.no_repeat_ngram_size)
    if params.bad_word_ids:
        yield NoBadWordsLogitsProcessor([list(word) for word in params.bad_word_ids])
    if params.min_new_tokens:
        stop_ids = [*params.stop_token_ids, EOS]
        yield MinNewTokensLengthLogitsProcessor(num_prompt, params.min_new_tokens, stop_ids)
    if params.allowed_token_ids:
        # Not PrefixConstrainedLogitsProcessor, which allows its tokens again where all of them are banned.
        yield SuppressTokensLogitsProcessor(sorted(set(range(vocab_size)) - set(params.allowed_token_ids)))


def warpers(params: SamplingParams, top_p: float | None = None) -> Iterator[LogitsProcessor]:
    """Temperature and what comes after it. top_p: instead of that of params."""
    top_p = params.top_p if top_p is None else top_p
    yield TemperatureLogitsWarper(params.temperature)
    if params.top_k:
        yield TopKLogitsWarper(params.top_k)
    if top_p < 1:
        yield TopPLogitsWarper(top_p)
    if params.min_p:
        yield MinPLogitsWarper(params.min_p)
    if params.typical_p < 1:
        yield TypicalLogitsWarper(params.typical_p)


def run(chain: Iterator[LogitsProcessor], token_ids: list[int], logits: Tensor) -> Tensor:
    """logits: [vocab_size]."""
    scores, input_ids = logits.unsqueeze(0), torch.LongTensor([token_ids])
    for processor in chain:
        scores = processor(input_ids, scores)
    return scores.squeeze(0)


def distribution(
    params: SamplingParams, token_ids: list[int], num_prompt: int, logits: Tensor
) -> Tensor | None:
    """Scores after all of them, [vocab_size]; None where everything is banned."""
    scores = run(processors(params, num_prompt, len(logits)), token_ids, logits)
    return None if scores.isneginf().all() else run(warpers(params), token_ids, scores)


def assert_same_distribution(ours: Tensor, scores: Tensor | None) -> None:
    """ours: probabilities. scores: see `distribution`."""
    if scores is None:
        assert ours.isnan().all()
        return
    assert torch.equal(ours > 0, scores > -torch.inf)
    torch.testing.assert_close(ours, scores.double().softmax(-1), rtol=2e-5, atol=1e-9)
