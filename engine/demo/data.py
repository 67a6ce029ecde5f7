"""Documents as rows of token ids: one a row, from position 0, as the model meets a prompt when it serves."""

from collections.abc import Iterable
from functools import lru_cache
from random import Random

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from engine.demo.task import END
from engine.demo.tasks import MIXTURES, TASKS
from engine.demo.tokenizer import BEGIN_ID, END_ID

Codes = npt.NDArray[np.int16]
"""Token id t where it follows from the tokens before it, -1 - t where it was drawn; `PAD` past the end."""

PAD = 2**15 - 1


class Encoder:
    """Texts to token ids, without the special tokens, remembering the pieces that recur."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.encode = lru_cache(maxsize=2**17)(self._encode)

    def _encode(self, text: str) -> tuple[int, ...]:
        return (END_ID,) if text == END else tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def count(self, text: str) -> int:
        return len(self.encode(text))

    def row(self, prompt: str, pieces: Iterable[str], length: int, max_answer: int | None = None) -> Codes:
        """The document of a prompt and what follows it, cut or padded to `length` tokens.

        max_answer: how many tokens are taken from the pieces at most.
        """
        codes = [-1 - token for token in (BEGIN_ID, *self._encode(prompt))]
        limit = length if max_answer is None else min(length, len(codes) + max_answer)
        for piece in pieces:
            if len(codes) >= limit:
                break
            codes += self.encode(piece)
        row = np.full(length, PAD, np.int16)
        row[: len(codes[:limit])] = codes[:limit]
        return row


def training_rows(encoder: Encoder, rng: Random, length: int, num_rows: int) -> Codes:
    """[num_rows, length] documents of the mixture for that length, none of them from a held-out stem."""
    weights = MIXTURES[length]
    names = rng.choices(list(weights), weights=list(weights.values()), k=num_rows)
    stems = [(TASKS[name], TASKS[name].draw(rng, held_out=False)) for name in names]
    return np.stack([encoder.row(stem, task.solve(stem), length) for task, stem in stems])
