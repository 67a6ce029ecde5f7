"""Penalties, bans and masks: what transformers has nothing for, and rows that share a batch."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.sampling.params import MAX_BAD_TOKENS, MAX_LOGIT_BIASES, SamplingParams
from engine.sampling.sampler import Sampler
from engine.sampling.tables import MAX_SEEN, PROMPT_SHIFT, mask_of
from scheduler.beams import BeamParams
from scheduler.step import Finish, NewRow

CPU = torch.device("cpu")
EOS = 2
VOCAB_SIZE = 77
MAX_MODEL_LEN = 48
PROMPT = (5, 6, 7, 5, 6, 9, 5)

WISHES = [
    SamplingParams(),
    SamplingParams(temperature=1.0, seed=1),
    SamplingParams(temperature=1.0, seed=2, repetition_penalty=1.4, presence_penalty=0.3),
    SamplingParams(repetition_penalty=0.7, penalize_prompt=False),
    SamplingParams(temperature=0.9, seed=3, frequency_penalty=0.6, penalize_prompt=True, top_p=0.9),
    SamplingParams(temperature=1.3, seed=4, no_repeat_ngram_size=2, logit_bias=((5, 4.0), (70, -1.5))),
    SamplingParams(no_repeat_ngram_size=3, presence_penalty=-0.5, frequency_penalty=0.25),
    SamplingParams(temperature=1.1, seed=5, bad_word_ids=((6,), (5, 8), (9, 5, 7)), typical_p=0.6),
    SamplingParams(temperature=1.5, seed=6, allowed_token_ids=(2, 5, 6, 7, 8, 31, 32, 76), min_new_tokens=6),
    SamplingParams(temperature=2.0, seed=7, top_p=0.99, top_p_decay=0.6, top_p_min=0.3, top_p_reset_id=5),
    SamplingParams(temperature=1.0, seed=8, top_p_decay=0.5, repetition_penalty=1.2, bad_word_ids=((5, 6),)),
    SamplingParams(logprobs=5, stop_token_ids=(8,), min_new_tokens=9, logit_bias=((8, 2.0),)),
]


def new_row(
    row: int, params: SamplingParams, output: tuple[int, ...] = (), prompt: tuple[int, ...] = PROMPT
) -> NewRow:
    return NewRow(row, len(prompt), len(output), 0, (), 1000, params, 0, (*prompt, *output))


def make_sampler(*new_rows: NewRow, num_rows: int = 16, max_model_len: int = MAX_MODEL_LEN) -> Sampler:
    sampler = Sampler(num_rows, VOCAB_SIZE, max_model_len, (EOS,), CPU)
    sampler.set_rows(new_rows)
    return sampler


def logits_of(wish: int, position: int) -> Tensor:
    """Favours few tokens, so that n-grams and words recur."""
    generator = torch.Generator().manual_seed(100 * wish + position)
    logits = torch.randn(VOCAB_SIZE, generator=generator)
    logits[5:10] += 3
    return logits


def processed(params: SamplingParams, output: tuple[int, ...], logits: Tensor) -> Tensor:
    """[vocab_size]: what a step makes of logits [vocab_size]."""
    changed = logits.clone().unsqueeze(0)
    make_sampler(new_row(3, params, output)).sample(changed, torch.tensor([3]), [3])
    return changed.squeeze(0)


def run(sampler: Sampler, row: int, wish: int, positions: range) -> list[int]:
    """One row by itself, on the logits of one of WISHES."""
    return [
        int(sampler.sample(logits_of(wish, position).unsqueeze(0), torch.tensor([row]), [row]).token_ids)
        for position in positions
    ]


@pytest.fixture(scope="module")
def together() -> list[list[int]]:
    """20 tokens of each of WISHES, in one batch."""
    sampler = make_sampler(*[new_row(row, params) for row, params in enumerate(WISHES)])
    rows = torch.arange(len(WISHES))
    steps = []
    for position in range(20):
        logits = torch.stack([logits_of(wish, position) for wish in range(len(WISHES))])
        sampled = sampler.sample(logits, rows, range(len(WISHES)))
        assert Finish.ERROR not in sampled.finishes
        steps.append(sampled.token_ids.tolist())
    return [list(row) for row in zip(*steps, strict=True)]


@pytest.mark.parametrize("wish", range(len(WISHES)))
def test_a_row_is_the_same_alone_and_on_another_row(wish: int, together: list[list[int]]) -> None:
    sampler = make_sampler(*[new_row(15, params) for params in WISHES], new_row(15, WISHES[wish]))
    assert run(sampler, 15, wish, range(20)) == together[wish]


@pytest.mark.parametrize("wish", range(len(WISHES)))
@pytest.mark.parametrize("num_generated", [1, 7])
def test_a_row_resumes_after_preemption(wish: int, num_generated: int, together: list[list[int]]) -> None:
    sampler = make_sampler(new_row(3, WISHES[wish]))
    first = run(sampler, 3, wish, range(num_generated))
    sampler.set_rows([new_row(3, WISHES[4]), new_row(0, WISHES[wish], tuple(first))])
    assert first + run(sampler, 0, wish, range(num_generated, 20)) == together[wish]


def test_each_wish_matters(together: list[list[int]]) -> None:
    """The tests around this one would not notice a wish that is ignored everywhere."""
    for wish, params in enumerate(WISHES[2:], 2):
        plain = SamplingParams(temperature=params.temperature, seed=params.seed, logprobs=params.logprobs)
        assert run(make_sampler(new_row(0, plain)), 0, wish, range(20)) != together[wish]


@pytest.mark.parametrize("penalize_prompt", [None, True, False])
def test_penalties_count_what_they_are_told_to(penalize_prompt: bool | None) -> None:
    output = (9, 9, 9, 11, 12, 12)
    logits = logits_of(0, 0)
    params = SamplingParams(
        repetition_penalty=1.7,
        presence_penalty=0.31,
        frequency_penalty=0.13,
        penalize_prompt=penalize_prompt,
        logit_bias=((9, -4.0), (11, 0.7)),
    )
    repeats = set(output) | (set(PROMPT) if penalize_prompt is not False else set())
    counts = Counter((*output, *PROMPT) if penalize_prompt else output)
    one = np.float32
    expected = logits.numpy().copy()
    for token_id, bias in params.logit_bias:
        expected[token_id] += one(bias)
    for token_id in repeats:
        value = expected[token_id]
        expected[token_id] = value / one(1.7) if value > 0 else value * one(1.7)
    for token_id, count in counts.items():
        expected[token_id] = (expected[token_id] - one(0.31)) - one(0.13) * one(count)
    assert torch.equal(processed(params, output, logits), torch.from_numpy(expected))


def test_counts_stop_before_they_spill_into_the_prompt_s() -> None:
    params = SamplingParams(frequency_penalty=0.01, logit_bias=((40, 100.0),))
    sampler = make_sampler(new_row(0, params, prompt=(40, 41)))
    sampler.tables.seen[0, 40] += MAX_SEEN - 1
    for _ in range(3):
        sampler.sample(
            torch.zeros(1, VOCAB_SIZE).index_fill_(1, torch.tensor(40), 1e9), torch.tensor([0]), [0]
        )
    assert sampler.tables.seen[0, 40] == (1 << PROMPT_SHIFT) + MAX_SEEN


def test_a_row_inherits_nothing_from_the_last_one_even_beside_longer_ones() -> None:
    long = SamplingParams(
        logit_bias=tuple((token_id, 9.0) for token_id in range(70)),
        bad_word_ids=tuple((token_id,) for token_id in range(30, 70)),
        allowed_token_ids=tuple(range(76)),
        no_repeat_ngram_size=1,
        repetition_penalty=2.0,
    )
    short = SamplingParams(
        logit_bias=((3, 1.0),), bad_word_ids=((4,), (5,)), frequency_penalty=0.5, no_repeat_ngram_size=1
    )
    logits = logits_of(0, 0)
    batch = logits.repeat(3, 1)
    text = tuple(range(10, 30))
    sampler = make_sampler(*[new_row(row, long, prompt=text) for row in range(3)])
    sampler.set_rows([new_row(0, short, prompt=(8,)), new_row(1, SamplingParams())])
    sampler.sample(batch, torch.arange(3), range(3))
    expected = logits.clone()
    expected[3] += 1
    expected[[4, 5, 8]] = -torch.inf
    assert torch.equal(batch[:2], torch.stack([expected, logits]))
    assert batch[2].isneginf().nonzero().flatten().tolist() == [*range(10, 70), 76]


def test_as_many_biases_and_bad_tokens_as_there_may_be() -> None:
    biases = tuple((token_id, token_id / 11) for token_id in range(MAX_LOGIT_BIASES))
    words = tuple((5,) * 4 + (token_id,) * 4 for token_id in range(MAX_BAD_TOKENS // 8))
    params = SamplingParams(logit_bias=biases, bad_word_ids=words)
    sampler = Sampler(1, 2000, 64, (EOS,), CPU)
    sampler.set_rows([new_row(0, params, prompt=(5, 5, 5, 5, 100, 100, 100))])
    logits = torch.zeros(1, 2000)
    sampler.sample(logits, torch.tensor([0]), [0])
    expected = torch.zeros(2000)
    for token_id, bias in biases:
        expected[token_id] = bias
    expected[100] = -torch.inf
    assert torch.equal(logits[0], expected)


def test_a_word_longer_than_the_text_is_not_banned() -> None:
    params = SamplingParams(bad_word_ids=((5, 5, 5, 5, 8), (9, 5, 7)))
    banned = processed(params, (), torch.zeros(VOCAB_SIZE)).isneginf().nonzero().flatten()
    assert banned.tolist() == [7]
    short = make_sampler(new_row(0, params, prompt=(5,)))
    logits = torch.zeros(1, VOCAB_SIZE)
    short.sample(logits, torch.tensor([0]), [0])
    assert not logits.isneginf().any()


def test_the_history_ends_with_the_model_s_length() -> None:
    params = SamplingParams(no_repeat_ngram_size=1)
    rows = [new_row(row, params) for row in range(2)]
    sampler = make_sampler(*rows, num_rows=2, max_model_len=len(PROMPT) + 2)
    history = sampler.tables.history
    history[1] = 3
    logits = torch.arange(float(VOCAB_SIZE)).unsqueeze(0)
    for _ in range(3):
        sampler.sample(logits.clone(), torch.tensor([0]), [0])
    assert history.tolist() == [[*PROMPT, 76, 75], [3] * (len(PROMPT) + 2)]


def test_a_mask_is_read_at_each_step() -> None:
    """As a grammar's is written."""
    params = SamplingParams(grammar=object())
    sampler = make_sampler(new_row(6, params), new_row(2, SamplingParams()))
    logits = torch.arange(float(VOCAB_SIZE)).repeat(2, 1)
    rows = torch.tensor([2, 6])
    for token_id in (76, 32, 31, 0):
        sampler.tables.masks[6] = torch.from_numpy(mask_of((token_id,), VOCAB_SIZE))
        assert sampler.sample(logits.clone(), rows, [2, 6]).token_ids.tolist() == [76, token_id]


def test_rows_whose_tokens_are_all_banned_end_alone() -> None:
    params = SamplingParams(allowed_token_ids=(5, 6), bad_word_ids=((5,), (6,)))
    rows = [new_row(0, WISHES[2]), new_row(1, params), new_row(2, replace(params, temperature=1.0, seed=1))]
    logits = torch.stack([logits_of(2, 0)] * 3)
    sampled = make_sampler(*rows).sample(logits, torch.arange(3), range(3))
    alone = make_sampler(rows[0]).sample(logits_of(2, 0).unsqueeze(0), torch.tensor([0]), [0])
    assert sampled.finishes.tolist() == [Finish.NONE, Finish.ERROR, Finish.ERROR]
    assert sampled.token_ids[0] == alone.token_ids[0]
    assert ((sampled.token_ids >= 0) & (sampled.token_ids < VOCAB_SIZE)).all()


def test_rows_that_change_nothing_keep_their_logits() -> None:
    sampler = make_sampler(new_row(0, WISHES[0]), new_row(1, WISHES[2]), new_row(2, WISHES[1]))
    logits = torch.stack([logits_of(row, 0) for row in range(3)])
    changed = logits.clone()
    sampler.sample(changed, torch.arange(3), range(3))
    assert [bool(torch.equal(*pair)) for pair in zip(logits, changed, strict=True)] == [True, False, True]


def test_beam_rows_process_log_probabilities_and_do_not_advance() -> None:
    beam = BeamParams(3, stop_token_ids=(EOS,))
    params = SamplingParams(beam=beam, repetition_penalty=1.3, no_repeat_ngram_size=2, logit_bias=((3, 0.5),))
    sampler = make_sampler(new_row(0, params, (5, 8)))
    seen, history = sampler.tables.seen.clone(), sampler.tables.history.clone()
    logits = logits_of(0, 0)
    logits[EOS] = 40.0
    batch = logits.clone().unsqueeze(0)
    sampled = sampler.sample(batch, torch.tensor([0]), [0])
    plain = replace(params, beam=None)
    assert torch.equal(batch[0], processed(plain, (5, 8), logits.log_softmax(-1)))
    assert sampled.token_ids.tolist() == [EOS]  # which would end any other row
    assert sampled.finishes.tolist() == [Finish.NONE]
    assert torch.equal(sampler.tables.seen, seen)
    assert torch.equal(sampler.tables.history, history)
    broken = sampler.sample(torch.full((1, VOCAB_SIZE), torch.nan), torch.tensor([0]), [0])
    assert broken.finishes.tolist() == [Finish.ERROR]


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_steps_on_a_gpu_never_wait_and_draw_what_the_cpu_draws(together: list[list[int]]) -> None:
    device = torch.device("cuda")
    sampler = Sampler(16, VOCAB_SIZE, MAX_MODEL_LEN, (EOS,), device)
    sampler.set_rows([new_row(row, params) for row, params in enumerate(WISHES)])
    rows = torch.arange(len(WISHES), device=device)
    for position in range(20):
        logits = torch.stack([logits_of(wish, position) for wish in range(len(WISHES))]).to(device)
        torch.cuda.set_sync_debug_mode("error")
        try:
            sampled = sampler.sample(logits, rows, range(len(WISHES)))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert sampled.token_ids.tolist() == [tokens[position] for tokens in together]
