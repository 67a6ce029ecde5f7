"""The processors and criteria that every server has."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ExponentialDecayLengthPenalty, SuppressTokensAtBeginLogitsProcessor

from engine.sampling.params import SamplingParams
from scheduler.step import Finish
from tests.engine.sampling.custom.support import VOCAB, Batch, random_logits, spec

TOKENS = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=8, unique=True)
PROMPT = (5, 6, 7)


def forced(tokens: list[int]) -> torch.Tensor:
    """Logits of one step for each token, which it chooses."""
    logits = torch.zeros(len(tokens), 1, VOCAB)
    logits[torch.arange(len(tokens)), 0, tokens] = 1
    return logits


def stop_after(criterion: object, tokens: list[int], prompt: tuple[int, ...] = PROMPT) -> int | None:
    """The number of generated tokens after which it holds."""
    batch = Batch(max_len=600)
    batch.enter(2, SamplingParams(stopping_criteria=(criterion,)), prompt)  # type: ignore[arg-type]
    for count, logits in enumerate(forced(tokens), start=1):
        if batch.step([2], logits).finishes[0] == Finish.CRITERION:
            return count
    return None


@given(token_ids=TOKENS, count=st.integers(0, 4), num_tokens=st.integers(1, 5), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_suppress_until(token_ids: list[int], count: int, num_tokens: int, seed: int) -> None:
    batch = Batch()
    processor = spec("suppress_until", token_ids=token_ids, num_tokens=num_tokens)
    batch.enter(0, SamplingParams(logits_processors=(processor,)), PROMPT, generated=(1,) * count)
    batch.enter(1, SamplingParams(), PROMPT)
    logits = random_logits(2, seed)
    changed, _ = batch.process([0, 1], logits)
    assert changed[0].isneginf().nonzero().flatten().tolist() == (sorted(token_ids) * (count < num_tokens))
    reference = SuppressTokensAtBeginLogitsProcessor(token_ids, len(PROMPT))
    if num_tokens == 1:
        ids = torch.ones(1, len(PROMPT) + count, dtype=torch.int64)
        assert torch.equal(changed[:1], reference(ids, logits[:1]))
    assert torch.equal(changed[1], logits[1])


@given(
    token_ids=TOKENS,
    count=st.integers(0, 30),
    start=st.integers(0, 10),
    factor=st.floats(1.0, 2.0),
    seed=st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_end_bias_is_the_penalty_of_transformers(
    token_ids: list[int], count: int, start: int, factor: float, seed: int
) -> None:
    batch = Batch()
    processor = spec("end_bias", token_ids=token_ids, start=start, factor=factor)
    batch.enter(0, SamplingParams(logits_processors=(processor,)), PROMPT, generated=(1,) * count)
    logits = random_logits(1, seed)
    changed, _ = batch.process([0], logits)
    reference = ExponentialDecayLengthPenalty((start, factor), token_ids, len(PROMPT))
    expected = reference(torch.ones(1, len(PROMPT) + count, dtype=torch.int64), logits)
    torch.testing.assert_close(changed, expected)


def test_end_bias_stays_finite_and_keeps_bans() -> None:
    batch = Batch(max_len=10_000)
    processor = spec("end_bias", token_ids=[3, 4, 5], start=0, factor=2)
    batch.enter(0, SamplingParams(logits_processors=(processor,)), PROMPT, generated=(1,) * 5000)
    logits = random_logits(1, 0)
    logits[0, 3], logits[0, 4] = -torch.inf, 0
    changed, errors = batch.process([0], logits)
    assert errors == {}
    assert changed[0, 3].isneginf()
    assert changed[0, 4] == 0
    assert 1e29 < changed[0, 5] < torch.inf


@given(
    head=st.lists(st.integers(0, 3), max_size=6),
    pattern=st.lists(st.integers(0, 3), min_size=1, max_size=5),
    repeats=st.integers(1, 5),
    least=st.integers(1, 3),
    most=st.integers(3, 6),
    wanted=st.integers(2, 5),
)
@settings(max_examples=60, deadline=None)
def test_repetition(
    head: list[int], pattern: list[int], repeats: int, least: int, most: int, wanted: int
) -> None:
    tokens = head + pattern * repeats
    criterion = spec("repetition", min_size=least, max_size=most, num_repeats=wanted)

    def repeats_itself(end: int) -> bool:
        return any(
            end >= size * wanted and tokens[end - size * wanted : end] == tokens[end - size : end] * wanted
            for size in range(least, most + 1)
        )

    expected = next((end for end in range(1, len(tokens) + 1) if repeats_itself(end)), None)
    assert stop_after(criterion, tokens, prompt=tuple(pattern) * 2) == expected


def test_the_longest_repetition() -> None:
    pattern = [index % VOCAB for index in range(32)]
    criterion = spec("repetition", num_repeats=8)
    assert stop_after(criterion, pattern * 9) == 32 * 8


@given(
    tokens=st.lists(st.integers(0, 2), min_size=1, max_size=12),
    sequences=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=16),
)
@settings(max_examples=60, deadline=None)
def test_token_sequences(tokens: list[int], sequences: list[list[int]]) -> None:
    prompt = [1, 2]
    ends = (
        count
        for count in range(1, len(tokens) + 1)
        if any((prompt + tokens[:count])[-len(each) :] == each for each in sequences)
    )
    criterion = spec("token_sequences", sequences=sequences)
    assert stop_after(criterion, tokens, tuple(prompt)) == next(ends, None)


@pytest.mark.parametrize(
    "criterion", [spec("repetition", num_repeats=2), spec("token_sequences", sequences=[[1]])]
)
def test_a_row_that_is_taken_over_is_free(criterion: object) -> None:
    batch = Batch()
    batch.enter(0, SamplingParams(stopping_criteria=(criterion,)))  # type: ignore[arg-type]
    batch.enter(0, SamplingParams())
    finishes = [int(batch.step([0], logits).finishes) for logits in forced([1, 1, 1])]
    captured = torch.zeros(1, dtype=torch.int32)
    batch.custom.check_captured(torch.tensor([1]), captured, torch.tensor([0]))
    assert [*finishes, int(captured)] == [Finish.NONE] * 4
