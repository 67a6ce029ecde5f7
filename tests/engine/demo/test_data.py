from random import Random

import numpy as np
import pytest

from engine.demo.data import PAD, Encoder, training_rows
from engine.demo.feed import Feed
from engine.demo.task import END
from engine.demo.tasks import MIXTURES
from engine.demo.tokenizer import BEGIN_ID, END_ID, build_tokenizer


def test_a_row_tells_what_was_drawn_from_what_follows(encoder: Encoder) -> None:
    row = encoder.row("2 + 3 =", [" 5", END], 16).tolist()
    prompt, answer = encoder.encode("2 + 3 ="), encoder.encode(" 5")
    drawn = [-1 - token for token in (BEGIN_ID, *prompt)]
    assert row == [*drawn, *answer, END_ID] + [PAD] * (16 - len(drawn) - len(answer) - 1)


def test_a_row_is_cut_at_its_length(encoder: Encoder) -> None:
    whole = encoder.row("7 8", [" 9", " 10", " 11"], 12)
    assert encoder.row("7 8", [" 9", " 10", " 11"], 5).tolist() == whole[:5].tolist()
    assert encoder.row("7 8 9 10", [], 4).tolist() == encoder.row("7 8 9 10", [], 12)[:4].tolist()


def test_an_answer_is_cut_at_its_limit(encoder: Encoder) -> None:
    row = encoder.row("7 8", [" 9", " 10", " 11"], 32, max_answer=3)
    assert ((row >= 0) & (row != PAD)).sum() == 3


@pytest.mark.parametrize("length", MIXTURES)
def test_training_rows_are_the_same_for_the_same_seed(encoder: Encoder, length: int) -> None:
    first, same, other = (training_rows(encoder, Random(seed), length, 6) for seed in (1, 1, 2))
    assert first.shape == (6, length)
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


def test_long_rows_are_filled(encoder: Encoder) -> None:
    rows = training_rows(encoder, Random(0), 2048, 40)
    assert (rows[:, -1] != PAD).mean() > 0.7


def test_workers_make_rows_of_every_length() -> None:
    with Feed(build_tokenizer(), num_workers=1, seed=0) as feed:
        shards = [feed.wait() for _ in MIXTURES]
    assert [length for length, _ in shards] == list(MIXTURES)
    assert all(rows.shape[1] == length for length, rows in shards)
