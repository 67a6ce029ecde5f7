"""Outputs of random tokens, of those that a guide allows."""

from random import Random

import numpy as np

from engine.sampling.guided.grammar import Guide
from engine.text.tokenizer import Tokenizer

# Past the cap these come first, as far as they are allowed: they end what has begun.
_CLOSING = ('"', "}", "]", "n", ",", ":", "0", "1", " ")
_HARD_CAP = 3000


def allowed_ids(guide: Guide, num_words: int) -> list[int]:
    mask = np.zeros(num_words, np.int32)
    guide.fill(mask)
    return bits(mask)


def bits(mask: np.ndarray[tuple[int, ...], np.dtype[np.int32]]) -> list[int]:
    """Indices of the ones."""
    return [int(i) for i in np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))]


class Walker:
    """Ends most outputs soon, and all of them a while after `cap` tokens."""

    def __init__(self, tokenizer: Tokenizer, num_words: int, eos_token_id: int, cap: int = 60) -> None:
        self._num_words, self._eos_token_id, self._cap = num_words, eos_token_id, cap
        self._closing = [tokenizer.encode(text, add_special_tokens=False)[0] for text in _CLOSING]

    def walk(self, guide: Guide, rng: Random) -> list[int]:
        """Ids, without that of the end."""
        token_ids: list[int] = []
        while True:
            assert len(token_ids) < _HARD_CAP
            token_id = self._choose(allowed_ids(guide, self._num_words), len(token_ids), rng)
            guide.advance([token_id])
            if token_id == self._eos_token_id:
                assert guide.is_finished
                return token_ids
            token_ids.append(token_id)

    def _choose(self, allowed: list[int], length: int, rng: Random) -> int:
        assert allowed
        if self._eos_token_id in allowed and (length >= self._cap or rng.random() < 0.3):
            return self._eos_token_id
        if length >= self._cap:
            # Not always: after a backslash the quote that ends a string does not.
            closing = [token_id for token_id in self._closing if token_id in allowed]
            if closing and rng.random() < 0.9:
                return closing[0]
        return rng.choice(allowed)
