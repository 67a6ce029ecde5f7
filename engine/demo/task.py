"""What a text task is: it draws prompts, knows the one right continuation of each, and so checks any text.

Training and measuring never share a prompt. Every document is a *stem* (the shortest prompt that decides
the rest, "7 8") and what follows from it (" 9", " 10", …). One stem in eight, chosen by a hash of the
task's `key` for it, is held out: no training document begins with one, and accuracy is measured on nothing
else. The longer prompts of the measurement ("7 8 9 10") grow from held-out stems.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from random import Random

END = "<|end|>"
"""The piece that ends a continuation: the model's end-of-text token."""

_HELD_OUT_ONE_IN = 8


class PromptError(ValueError):
    """A prompt that is none of the task's."""


@dataclass(frozen=True, slots=True)
class Task:
    """One kind of text.

    sample: draws a stem. solve: the pieces that rightly follow a prompt (a stem, grown by any number of its
    pieces), the last one `END` unless they go on for ever; PromptError for any other prompt. Pieces are cut
    where the tokenizer cuts too, so that they can be encoded one by one. key: equal for stems that must be
    held out together. prompt_tokens: bounds of the length to which measured prompts are grown.
    """

    name: str
    sample: Callable[[Random], str]
    solve: Callable[[str], Iterator[str]]
    key: Callable[[str], str] = str
    prompt_tokens: tuple[int, int] = (0, 96)

    def is_held_out(self, stem: str) -> bool:
        digest = blake2b(self.key(stem).encode(), digest_size=8).digest()
        return int.from_bytes(digest) % _HELD_OUT_ONE_IN == 0

    def draw(self, rng: Random, *, held_out: bool) -> str:
        """A stem of the half asked for."""
        while self.is_held_out(stem := self.sample(rng)) != held_out:
            pass
        return stem

    def draw_prompt(self, rng: Random, count_tokens: Callable[[str], int]) -> str:
        """A held-out stem, grown to a random length within `prompt_tokens`, with something left to say."""
        prompt = self.draw(rng, held_out=True)
        target = rng.randint(*self.prompt_tokens)
        num_tokens = count_tokens(prompt)
        for piece, following in pairwise(self.solve(prompt)):
            num_tokens += count_tokens(piece)
            if num_tokens > target or following == END:
                break
            prompt += piece
        return prompt

    def check(self, prompt: str, continuation: str, *, finished: bool) -> bool:
        """Whether `continuation` is right. finished: the model ended it, not a limit on its length."""
        right, ended = "", False
        for piece in self.solve(prompt):
            ended = piece == END
            if ended or len(right) > len(continuation):
                break
            right += piece
        if finished:
            return ended and continuation == right
        return continuation != "" and right.startswith(continuation)
