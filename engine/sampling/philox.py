"""Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC'11).

It is counter-based, without a state to carry: the same key and counter give the same numbers on any row, in
any batch, on any device, and after a preemption.
"""

from enum import IntEnum

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_NUM_ROUNDS = 10


class Purpose(IntEnum):
    """What a number is for: a word of the counter, so that numbers of different purposes are independent."""

    TOKEN = 0


class Philox:
    """The generator on one device, which holds its constants."""

    def __init__(self, device: torch.device) -> None:
        self._multipliers = torch.tensor(_MULTIPLIERS, device=device).unsqueeze(1)
        rounds = torch.arange(_NUM_ROUNDS, device=device).view(-1, 1, 1)
        self._key_steps = rounds * torch.tensor(_WEYL, device=device).unsqueeze(1)  # [rounds, 2, 1]

    def __call__(self, counter: Tensor, key: Tensor) -> Tensor:
        """Four words for each of n counters. counter: [4, n], key: [2, n]; returns [4, n].

        All are int64 in [0, 2**32). A product wraps modulo 2**64 and the shift is arithmetic, which leaves
        garbage above its high word for the mask to clear; odd words keep theirs until they meet that mask.
        """
        evens, odds = counter[0::2], counter[1::2]
        for round_key in key + self._key_steps:
            product = evens * self._multipliers
            evens = (product >> 32).flip(0)
            evens.bitwise_xor_(odds).bitwise_xor_(round_key).bitwise_and_(_MASK)
            odds = product.flip(0)
        return torch.stack((evens, odds & _MASK), dim=1).flatten(0, 1)


def uniform(words: Tensor) -> Tensor:
    """Multiples of 2**-53 in [0, 1), from the first two of four words. words: [4, n]; returns [n] float64."""
    return ((words[0] << 21) | (words[1] >> 11)).double() * 2.0**-53
