"""Memory between the kernels, allocated once."""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from engine.sampling.kernels.tuning import Tuning
from engine.sampling.tables import num_mask_words

_FLOATS_OF_BLOCK = 4  # and `listed`


@dataclass(frozen=True, slots=True)
class Scratch:
    """Of `samples` rows at once. A block: Tuning.block tokens.

    maxima, masses: float32 [samples, blocks], of the logits that are drawn from; raw_maxima, raw_masses: of
    the model's. listed: int32 [samples, blocks]. few_ids, few_keys: int32 [samples, Tuning.few].
    banned: int32 [samples, ceil(vocab_size / 32)], bits of tokens, zeros between steps. processed: float32
    [samples, vocab_size], of rows that change their logits.
    """

    maxima: Tensor
    masses: Tensor
    raw_maxima: Tensor
    raw_masses: Tensor
    listed: Tensor
    few_ids: Tensor
    few_keys: Tensor
    banned: Tensor
    processed: Tensor


def make_scratch(num_samples: int, vocab_size: int, tuning: Tuning, device: torch.device) -> Scratch:
    num_blocks = triton.cdiv(vocab_size, tuning.block)

    def floats(width: int) -> Tensor:
        return torch.empty((num_samples, width), dtype=torch.float32, device=device)

    def integers(width: int) -> Tensor:
        return torch.empty((num_samples, width), dtype=torch.int32, device=device)

    return Scratch(
        maxima=floats(num_blocks),
        masses=floats(num_blocks),
        raw_maxima=floats(num_blocks),
        raw_masses=floats(num_blocks),
        listed=integers(num_blocks),
        few_ids=integers(tuning.few),
        few_keys=integers(tuning.few),
        banned=integers(num_mask_words(vocab_size)).zero_(),
        processed=floats(vocab_size),
    )


def scratch_bytes(num_samples: int, vocab_size: int, tuning: Tuning = Tuning()) -> int:  # noqa: B008
    """What make_scratch allocates."""
    num_blocks: int = triton.cdiv(vocab_size, tuning.block)
    of_blocks = (_FLOATS_OF_BLOCK + 1) * num_blocks
    return 4 * num_samples * (vocab_size + num_mask_words(vocab_size) + of_blocks + 2 * tuning.few)
