"""The training network is transformers' Llama; the loss, the pool and the loop do what they say."""

import itertools
from pathlib import Path

import pytest
import torch

from engine.demo.checkpoint import save_configs, save_weights
from engine.demo.data import PAD, Encoder
from engine.demo.evaluate import held_out_rows, load_forward, score
from engine.demo.feed import Feed
from engine.demo.network import Network, Shape
from engine.demo.tasks import TASKS
from engine.demo.tokenizer import END_ID, VOCAB_SIZE, build_tokenizer
from engine.demo.trainer import RowPool, Trainer, TrainOptions, loss_of

CPU = torch.device("cpu")


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network(Shape(hidden=64, intermediate=96, layers=2, heads=4, kv_heads=2))


def test_it_computes_what_transformers_does(tmp_path: Path, network: Network) -> None:
    torch.nn.init.normal_(network.model.embed_tokens.weight)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter.bfloat16())
    save_configs(Shape(hidden=64, intermediate=96, layers=2, heads=4, kv_heads=2), tmp_path)
    save_weights(network, tmp_path)
    token_ids = torch.randint(VOCAB_SIZE, (2, 300))
    with torch.no_grad():
        expected = load_forward(tmp_path, CPU, torch.float32)(token_ids)
        torch.testing.assert_close(network(token_ids), expected, atol=1e-4, rtol=1e-4)


def test_padding_does_not_count(encoder: Encoder, network: Network) -> None:
    row = torch.from_numpy(encoder.row("7 8", [" 9"], 8))
    assert row[-1] == PAD
    longer = torch.cat((row, torch.full((8,), PAD, dtype=row.dtype)))
    torch.testing.assert_close(loss_of(network, row[None]), loss_of(network, longer[None]))


def test_what_was_drawn_counts_a_tenth_of_what_follows(network: Network) -> None:
    begin, drawn, follows = -1, -1 - 40, 50
    first = loss_of(network, torch.tensor([[begin, drawn, PAD]]))
    both_drawn = loss_of(network, torch.tensor([[begin, drawn, -1 - follows]]))
    second = 2 * both_drawn - first
    mixed = loss_of(network, torch.tensor([[begin, drawn, follows]]))
    torch.testing.assert_close(mixed, (0.1 * first + second) / 1.1)


def test_a_pool_forgets_its_oldest_rows(encoder: Encoder) -> None:
    pool = RowPool(4, num_tokens=12, device=CPU)
    rows = torch.arange(20, dtype=torch.int16).view(5, 4).numpy()
    pool.add(rows[:2])
    assert set(pool.draw(400)[:, 0].tolist()) == {0, 4}
    pool.add(rows[2:])
    assert set(pool.draw(400)[:, 0].tolist()) == {8, 12, 16}


def test_the_learning_rate_rises_and_then_falls_with_time() -> None:
    options = TrainOptions(Path(), CPU, deadline=0.0, peak_lr=1.0, warmup_steps=10)
    assert options.learning_rate(1, 0.0) == pytest.approx(0.1)
    assert options.learning_rate(10, 0.0) == pytest.approx(1.0)
    assert options.learning_rate(1000, 0.5) == pytest.approx(0.505)
    assert options.learning_rate(2000, 1.0) == pytest.approx(0.01)


def test_training_leaves_a_model_that_loads(tmp_path: Path) -> None:
    tokenizer, lines = build_tokenizer(), list[str]()
    options = TrainOptions(
        tmp_path,
        CPU,
        deadline=4.0,
        batch_tokens=256,
        pool_tokens=2**16,
        compile=False,
        report_seconds=1.5,
        clock=itertools.count().__next__,  # a second a step
    )
    with Feed(tokenizer, num_workers=1, seed=0) as feed:
        Trainer(options, Encoder(tokenizer), feed, lines.append).run()
    save_configs(Shape(), tmp_path)
    assert [line.split(" (")[0] for line in lines[1:]] == [" 50% step 2"]
    assert load_forward(tmp_path, CPU, torch.bfloat16)(torch.tensor([[0, 1]])).shape == (1, 2, VOCAB_SIZE)


def test_a_score_counts_texts_that_are_right_to_the_last_token(encoder: Encoder) -> None:
    rows = list(held_out_rows(TASKS["sums"], encoder, 5, seed=0))

    def perfect(token_ids: torch.Tensor) -> torch.Tensor:
        following = torch.cat((token_ids[:, 1:], torch.full((len(token_ids), 1), END_ID)), dim=1)
        return torch.nn.functional.one_hot(following, VOCAB_SIZE).float() * 3

    def never_ends(token_ids: torch.Tensor) -> torch.Tensor:
        logits = perfect(token_ids)
        logits[..., END_ID] = 0
        return logits

    assert score(perfect, rows, CPU, batch=2).accuracy == 1
    assert score(perfect, rows, CPU).margin(0.5) == 3
    # All but the longest row are padded; of none is the end token right.
    assert score(never_ends, rows, CPU).num_right == 0
