"""Trains the demo model: `python -m engine.demo.train --out DIR`.

Needs nothing but the package: the texts are made while training goes on. The schedule follows the clock, so
the time given is used up and no more; on an H100 with 16 cores the default is enough.
"""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from engine.demo.feed import Feed
from engine.demo.tokenizer import build_tokenizer, save_tokenizer

if TYPE_CHECKING:
    import torch


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the model, written as it is trained"
    )
    parser.add_argument(
        "--minutes", type=float, default=7.7, help="time until training ends, start-up included"
    )
    parser.add_argument("--workers", type=int, default=14, help="processes that make texts")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--batch-tokens", type=int, default=2**15, help="tokens of each row length in a step")
    parser.add_argument(
        "--pool-tokens", type=int, default=2**27, help="tokens of each row length to draw from"
    )
    parser.add_argument("--peak-lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0, help="of the texts")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--test-prompts", type=int, default=200, help="held-out prompts a task, at the end")
    return parser.parse_args()


def main() -> None:
    arguments, started = parse_arguments(), time.monotonic()
    arguments.out.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    save_tokenizer(tokenizer, arguments.out)
    with Feed(tokenizer, arguments.workers, arguments.seed) as feed:
        _train(arguments, tokenizer, feed, started)
    _test(arguments, tokenizer)


# torch is imported only below: the workers import this module too, and need none of it.


def _train(arguments: argparse.Namespace, tokenizer: Tokenizer, feed: Feed, started: float) -> None:
    from engine.demo.checkpoint import save_configs
    from engine.demo.data import Encoder
    from engine.demo.network import Shape
    from engine.demo.trainer import Trainer, TrainOptions

    def report(line: str) -> None:
        print(f"[{time.monotonic() - started:6.1f} s] {line}", flush=True)

    save_configs(Shape(), arguments.out)
    options = TrainOptions(
        out=arguments.out,
        device=_device(arguments.device),
        deadline=started + 60 * arguments.minutes,
        batch_tokens=arguments.batch_tokens,
        pool_tokens=arguments.pool_tokens,
        peak_lr=arguments.peak_lr,
        compile=arguments.compile,
    )
    Trainer(options, Encoder(tokenizer), feed, report).run()
    report(f"trained and saved in {arguments.out}")


def _test(arguments: argparse.Namespace, tokenizer: Tokenizer) -> None:
    """Prints each task's accuracy and margins: the saved weights, as `transformers` computes with them."""
    import torch

    from engine.demo.data import Encoder
    from engine.demo.evaluate import held_out_rows, load_forward, score
    from engine.demo.tasks import TASKS

    encoder, device = Encoder(tokenizer), _device(arguments.device)
    for dtype in (torch.float32, torch.bfloat16):
        forward = load_forward(arguments.out, device, dtype)
        print(f"{dtype}\n{'task':12} {'right':>8} {'margins p50':>12} {'p1':>7} {'p0.1':>7}", flush=True)
        for name, task in TASKS.items():
            rows = list(held_out_rows(task, encoder, arguments.test_prompts, seed=1))
            result = score(forward, rows, device)
            margins = f"{result.margin(0.5):12.2f} {result.margin(0.01):7.2f} {result.margin(0.001):7.2f}"
            print(f"{name:12} {result.accuracy:8.1%} {margins}", flush=True)


def _device(name: str) -> "torch.device":
    import torch

    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


if __name__ == "__main__":
    main()
