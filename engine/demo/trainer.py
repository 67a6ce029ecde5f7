"""The training loop: rows of three lengths a step, AdamW, a cosine schedule over the time given."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from engine.demo.checkpoint import save_weights
from engine.demo.data import Codes, Encoder
from engine.demo.evaluate import held_out_rows, score, split_codes
from engine.demo.feed import Feed
from engine.demo.network import Network, Shape
from engine.demo.tasks import MIXTURES, TASKS

_PROMPT_WEIGHT = 0.1
_FEED_EVERY = 16  # steps: taking new rows waits for the device


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """deadline: when training ends, in seconds by `clock`. batch_tokens: of each row length, in a step.

    pool_tokens: of each row length, kept on the device to draw batches from.
    """

    out: Path
    device: torch.device
    deadline: float
    batch_tokens: int = 2**15
    pool_tokens: int = 2**27
    peak_lr: float = 2e-3
    warmup_steps: int = 500
    weight_decay: float = 0.1
    compile: bool = True
    report_seconds: float = 10.0
    checkpoint_seconds: float = 60.0
    clock: Callable[[], float] = time.monotonic

    def learning_rate(self, step: int, progress: float) -> float:
        """progress: share of the training time that has passed. Ends at a hundredth of the peak."""
        cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        return self.peak_lr * min(1.0, step / self.warmup_steps) * (0.01 + 0.99 * cosine)


class RowPool:
    """The newest rows of one length, on the device; batches are drawn from it at random."""

    def __init__(self, length: int, num_tokens: int, device: torch.device) -> None:
        self._rows = torch.empty(num_tokens // length, length, dtype=torch.int16, device=device)
        self.num_added = 0

    def add(self, rows: Codes) -> None:
        places = (torch.arange(len(rows)) + self.num_added) % len(self._rows)
        self._rows[places.to(self._rows.device)] = torch.from_numpy(rows).to(self._rows.device)
        self.num_added += len(rows)

    def draw(self, num_tokens: int) -> Tensor:
        """int16 codes, [num_tokens // length, length], one row at least."""
        num_rows = max(1, num_tokens // self._rows.shape[1])
        filled = min(self.num_added, len(self._rows))
        return self._rows[torch.randint(filled, (num_rows,), device=self._rows.device)]


def loss_of(network: Network, codes: Tensor) -> Tensor:
    """Mean over documents of the mean cross-entropy of their tokens, the drawn ones counting little.

    By documents, so that a sum of four tokens weighs as much as a list of sixty.
    """
    ids, real, follows = split_codes(codes)
    with torch.autocast(codes.device.type, torch.bfloat16, enabled=codes.device.type == "cuda"):
        logits = network(ids)[:, :-1]  # whole rows: their lengths are round numbers
    losses = functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    weights = torch.where(follows, 1.0, _PROMPT_WEIGHT)[:, 1:] * real[:, 1:]
    return ((losses.view_as(weights) * weights).sum(1) / weights.sum(1).clamp(min=1e-6)).mean()


def make_optimizer(network: Network, options: TrainOptions) -> torch.optim.Optimizer:
    """Only matrices decay."""
    matrices = [p for p in network.parameters() if p.ndim == 2]
    vectors = [p for p in network.parameters() if p.ndim != 2]
    groups = [
        {"params": matrices, "weight_decay": options.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    fused = options.device.type == "cuda"
    return torch.optim.AdamW(groups, lr=options.peak_lr, betas=(0.9, 0.98), fused=fused)


class Trainer:
    """report: takes a line on how training goes."""

    def __init__(
        self, options: TrainOptions, encoder: Encoder, feed: Feed, report: Callable[[str], None]
    ) -> None:
        torch.manual_seed(0)
        self._options, self._feed, self._report = options, feed, report
        self._network = Network(Shape()).to(options.device)
        self._optimizer = make_optimizer(self._network, options)
        self._loss = torch.compile(loss_of, dynamic=False) if options.compile else loss_of
        self._pools = {length: RowPool(length, options.pool_tokens, options.device) for length in MIXTURES}
        self._watched = {
            name: list(held_out_rows(task, encoder, 20 if name == "long_list" else 100, seed=0))
            for name, task in TASKS.items()
        }

    def run(self) -> None:
        """Trains until the deadline, saving as it goes."""
        while not all(pool.num_added for pool in self._pools.values()):
            length, rows = self._feed.wait()
            self._pools[length].add(rows)
        self._report(f"first rows made, {self._step(0.0)}")
        started = reported = saved = self._options.clock()
        step = 0
        while (now := self._options.clock()) < self._options.deadline:
            if step % _FEED_EVERY == 0:
                self._take_new_rows()
            step += 1
            progress = (now - started) / (self._options.deadline - started)
            losses = self._step(self._options.learning_rate(step, progress))
            if now - reported > self._options.report_seconds:
                reported = now
                self._report(f"{progress:4.0%} step {step} ({step / (now - started):.1f}/s) {losses}")
            if now - saved > self._options.checkpoint_seconds:
                saved = now
                save_weights(self._network, self._options.out)
                self._report(self._watch())
        save_weights(self._network, self._options.out)

    def _take_new_rows(self) -> None:
        for length, rows in self._feed.ready(limit=_FEED_EVERY * len(self._pools)):
            self._pools[length].add(rows)

    def _step(self, learning_rate: float) -> "Losses":
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        losses = Losses()
        for length, pool in self._pools.items():
            loss = self._loss(self._network, pool.draw(self._options.batch_tokens))
            torch.autograd.backward(loss / len(self._pools))
            losses[length] = loss.detach()
        torch.nn.utils.clip_grad_norm_(self._network.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return losses

    def _watch(self) -> str:
        """Every task's accuracy on a few held-out texts."""
        scores = {
            name: score(self._network, rows, self._options.device) for name, rows in self._watched.items()
        }
        return "right " + " ".join(f"{name}:{result.accuracy:.0%}" for name, result in scores.items())


class Losses(dict[int, Tensor]):
    """Row length -> loss; reading a loss from the device waits until somebody prints it."""

    def __str__(self) -> str:
        return "loss " + " ".join(f"{length}:{float(loss):.4f}" for length, loss in self.items())
