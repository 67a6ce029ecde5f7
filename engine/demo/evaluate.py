"""How much of the held-out texts a model gets right, from one forward pass a text.

A greedy continuation is right exactly if, with the right text before it, each of its tokens is the argmax.
So no token has to be generated to count the right ones. benchmarks/demo_accuracy.py generates all the same.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from engine.demo.data import PAD, Codes, Encoder
from engine.demo.task import Task
from engine.demo.tokenizer import MAX_LENGTH

Forward = Callable[[Tensor], Tensor]
"""[batch, length] token ids -> [batch, length, vocabulary] logits."""

_MAX_ANSWER = 64


@dataclass(frozen=True, slots=True)
class Score:
    """num_right of num_total continuations; margins: top logit minus the second, at each token of them."""

    num_right: int
    num_total: int
    margins: Tensor

    @property
    def accuracy(self) -> float:
        return self.num_right / self.num_total

    def margin(self, quantile: float) -> float:
        return float(torch.quantile(self.margins, quantile))


def split_codes(codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids (PAD as 0), whether each is a token at all, whether it follows from those before it."""
    codes = codes.long()
    real, follows = codes != PAD, (codes >= 0) & (codes != PAD)
    return torch.where(follows, codes, -1 - codes) * real, real, follows


def held_out_rows(task: Task, encoder: Encoder, count: int, seed: int) -> Iterator[Codes]:
    """`count` rows: a grown held-out prompt and up to 64 tokens of what follows."""
    rng = Random(f"{seed}/{task.name}")
    for _ in range(count):
        prompt = task.draw_prompt(rng, encoder.count)
        yield encoder.row(prompt, task.solve(prompt), MAX_LENGTH, _MAX_ANSWER)


def load_forward(folder: Path, device: torch.device, dtype: torch.dtype) -> Forward:
    """The model in `folder` as `transformers` computes it."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=dtype)
    torch.nn.Module.to(model, device)

    def forward(token_ids: Tensor) -> Tensor:
        logits: Tensor = model(input_ids=token_ids, use_cache=False).logits
        return logits

    return forward


@torch.inference_mode()
def score(forward: Forward, rows: list[Codes], device: torch.device, batch: int = 50) -> Score:
    right, margins = 0, []
    for start in range(0, len(rows), batch):
        codes = np.stack(rows[start : start + batch])
        longest = int((codes != PAD).sum(axis=1).max())
        ids, _, follows = split_codes(torch.from_numpy(codes[:, :longest]).to(device))
        top = forward(ids[:, :-1]).float().topk(2)
        wrong = follows[:, 1:] & (top.indices[..., 0] != ids[:, 1:])
        right += int((~wrong.any(dim=1)).sum())
        margins.append((top.values[..., 0] - top.values[..., 1])[follows[:, 1:]].cpu())
    return Score(right, len(rows), torch.cat(margins))
