"""What rows of the batch state need beside their packed parameters: lists, histories and sets of tokens.

One tensor of each kind for all rows, on the device, so that a kernel or a graph finds a row's part by its
number.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.sampling.params import MAX_BAD_TOKENS, MAX_BAD_WORDS, MAX_LOGIT_BIASES, SamplingParams
from kvcache.storage import to_device
from scheduler.step import NewRow

PROMPT_SHIFT = 16
"""Of a word of `seen`: the low half counts occurrences in the output, the high half in the prompt."""
MAX_SEEN = 0x7FFF
"""Where counts stop."""

_MAX_BAD_WORDS = 2 * MAX_BAD_WORDS


class RowTables:
    """Of max_num_rows rows; what a row does not ask for is stale.

    seen: int32 [rows, vocab_size], how often each token occurred, see PROMPT_SHIFT. history: int32 [rows,
    max_model_len], the tokens. masks: int32 [rows, ceil(vocab_size / 32)], bit i % 32 of word i // 32 is 1
    where token i may be sampled. seen_bits: likewise, where it has occurred: kept by the kernels, which read
    few counts with it. bias_ids, biases: int32 and float32 [rows, MAX_LOGIT_BIASES]. bad_ids: int32
    [rows, MAX_BAD_TOKENS], bad words one after the other; bad_ends: int32 [rows, 2 * MAX_BAD_WORDS], where
    each ends.
    """

    def __init__(self, max_num_rows: int, vocab_size: int, max_model_len: int, device: torch.device) -> None:
        def integers(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=device)

        self.vocab_size = vocab_size
        self.seen = integers(max_num_rows, vocab_size)
        self.seen_bits = integers(max_num_rows, num_mask_words(vocab_size))
        self.history = integers(max_num_rows, max_model_len)
        self.masks = integers(max_num_rows, num_mask_words(vocab_size))
        self.bias_ids = integers(max_num_rows, MAX_LOGIT_BIASES)
        self.biases = torch.zeros((max_num_rows, MAX_LOGIT_BIASES), device=device)
        self.bad_ids = integers(max_num_rows, MAX_BAD_TOKENS)
        self.bad_ends = integers(max_num_rows, _MAX_BAD_WORDS)

    def write(self, new_row: NewRow, params: SamplingParams) -> None:
        """What the row asks for, enqueued on the current stream. No wait for the device."""
        row = new_row.row
        if params.needs_history:
            fill(self.history[row], new_row.token_ids)
        if params.penalizes:
            self._write_seen(new_row)
        if params.allowed_token_ids or params.grammar is not None:
            self.masks[row].copy_(self._on_device(mask_of(params.allowed_token_ids, self.vocab_size)))
        if params.logit_bias:
            ids, biases = zip(*params.logit_bias, strict=True)
            fill(self.bias_ids[row], ids)
            fill(self.biases[row], biases)
        if params.bad_word_ids:
            fill(self.bad_ids[row], [token_id for word in params.bad_word_ids for token_id in word])
            fill(self.bad_ends[row], np.cumsum([len(word) for word in params.bad_word_ids]).tolist())

    def _write_seen(self, new_row: NewRow) -> None:
        token_ids = np.asarray(new_row.token_ids, dtype=np.int64)
        counts = np.zeros(self.vocab_size, dtype=np.int32)
        for part, shift in (
            (token_ids[: new_row.num_prompt_tokens], PROMPT_SHIFT),
            (token_ids[new_row.num_prompt_tokens :], 0),
        ):
            counted = np.minimum(np.bincount(part, minlength=self.vocab_size), MAX_SEEN)
            counts += (counted << shift).astype(np.int32)
        self.seen[new_row.row].copy_(self._on_device(counts))
        self.seen_bits[new_row.row].copy_(self._on_device(pack_bits(counts != 0)))

    def _on_device(self, words: npt.NDArray[np.int32]) -> Tensor:
        return to_device(torch.from_numpy(words), self.seen.device)


def table_bytes(max_num_rows: int, vocab_size: int, max_model_len: int) -> int:
    """What a RowTables takes."""
    lists = 2 * MAX_LOGIT_BIASES + MAX_BAD_TOKENS + _MAX_BAD_WORDS
    return 4 * max_num_rows * (vocab_size + max_model_len + 2 * num_mask_words(vocab_size) + lists)


def num_mask_words(vocab_size: int) -> int:
    return -(-vocab_size // 32)


def mask_of(token_ids: Sequence[int], vocab_size: int) -> npt.NDArray[np.int32]:
    """int32 [num_mask_words]: these tokens, or all if there are none."""
    allowed = np.zeros(vocab_size, dtype=np.bool_)
    allowed[list(token_ids) if token_ids else slice(vocab_size)] = True
    return pack_bits(allowed)


def pack_bits(flags: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """int32 [num_mask_words], of flags [vocab_size]."""
    padded = np.zeros(num_mask_words(len(flags)) * 32, dtype=np.bool_)
    padded[: len(flags)] = flags
    return np.packbits(padded, bitorder="little").view(np.int32)


def fill(target: Tensor, values: Sequence[float]) -> None:
    """target[:len(values)] = values, without the wait that assigning them makes."""
    source = torch.tensor(values, dtype=target.dtype)
    target[: len(values)].copy_(to_device(source, target.device))
