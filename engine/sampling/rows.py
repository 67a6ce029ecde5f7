"""The sampling state of every row: one packed tensor on the device, and hints about it on the host."""

from collections.abc import Sequence
from enum import IntEnum, IntFlag

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.sampling.params import MAX_STOP_TOKEN_IDS, SamplingParams
from engine.sampling.report import MAX_CANDIDATES
from engine.sampling.tables import RowTables
from kvcache.storage import to_device
from scheduler.step import NewRow

_MASK = 0xFFFFFFFF
_NO_TOKEN = -1
_SMALLEST_TEMPERATURE = float(np.finfo(np.float32).tiny)

# What the host remembers of a row, so as to choose a step's work without asking the device.
HINTS = np.dtype(
    [
        ("random", np.bool_),  # draws a random number; the others take the largest logit
        ("truncates", np.bool_),  # by top_k or top_p, now or later
        ("top_k", np.int32),  # 0 keeps all tokens
        ("min_p", np.bool_),  # min_p is above 0
        ("typical", np.bool_),  # typical_p is below 1
        ("decays", np.bool_),  # top_p changes from token to token
        ("bans", np.bool_),  # stop ids are banned at first
        ("changes", np.bool_),  # its logits are processed before anything else
        ("flags", np.int32),  # of Flag
        ("ngram_size", np.int32),  # 0: off
        ("num_biases", np.int32),
        ("num_bad_words", np.int32),
        ("longest_bad_word", np.int32),  # tokens
        ("num_reported", np.int32),  # tokens whose log-probabilities it reports; -1: none, not its own either
        ("num_scored", np.int32),  # the same, for each token of its prompt
        ("full", np.bool_),  # needs more than sampling from the logits as they are
    ]
)
Hints = npt.NDArray[np.void]


class Column(IntEnum):
    """Columns of the packed state, 32 bits each: integers, or the bits of a float32 where marked (f)."""

    ROW = 0
    FLAGS = 1  # of Flag
    TEMPERATURE = 2  # (f)
    TOP_K = 3  # 0: all; 1: greedy, at whatever temperature
    TOP_P = 4  # (f) the next token's
    TOP_P_FIRST = 5  # (f) the first token's
    TOP_P_DECAY = 6  # (f)
    TOP_P_MIN = 7  # (f)
    TOP_P_RESET_ID = 8  # -1: none
    MIN_P = 9  # (f)
    TYPICAL_P = 10  # (f)
    REPETITION = 11  # (f) and the two below: penalties
    PRESENCE = 12  # (f)
    FREQUENCY = 13  # (f)
    NGRAM_SIZE = 14  # 0: off
    NUM_BIASES = 15
    NUM_BAD_WORDS = 16
    NUM_REPORTED = 17  # as in HINTS
    SEED_LOW = 18
    SEED_HIGH = 19
    OUTPUT_INDEX = 20
    NUM_PROMPT = 21
    NUM_GENERATED = 22
    MAX_NEW_TOKENS = 23
    MIN_NEW_TOKENS = 24
    NUM_STOP_IDS = 25
    STOP_IDS = 26  # and all columns after it: padded with the first of them, or -1 everywhere


class Flag(IntFlag):
    """What a row asks for, in Column.FLAGS."""

    CHANGES = 1  # logits are processed: any of those below but COUNTS and KEEPS, or a custom processor
    PENALIZES = 2
    REPEATS_PROMPT = 4  # repetition_penalty counts the prompt
    ADDS_PROMPT = 8  # presence_penalty and frequency_penalty do
    MASKS = 16  # tables.masks
    BEAM = 32  # log-softmax comes first, and NUM_REPORTED tokens of the largest processed logits are reported
    COUNTS = 64  # tables.seen counts what the row samples
    KEEPS = 128  # tables.history keeps it


class RowBatch:
    """The state of n rows, in the order of a step. Columns are tensors [n]."""

    def __init__(self, packed: Tensor) -> None:
        self._packed = packed

    def select(self, index: Tensor | None) -> "RowBatch":
        return RowBatch(select(self._packed, index))

    def integers(self, column: Column) -> Tensor:
        """int32."""
        return self._packed[:, column]

    def floats(self, column: Column) -> Tensor:
        """float32."""
        return self._packed[:, column].view(torch.float32)

    def words(self, column: Column) -> Tensor:
        """Unsigned 32-bit words, held in int64."""
        return self._packed[:, column].long() & _MASK

    @property
    def stop_ids(self) -> Tensor:
        """int32 [n, the most stop ids that a row can have]."""
        return self._packed[:, Column.STOP_IDS :]


class RowState:
    """Parameters and counters of `max_num_rows` rows, each kept until another sequence takes the row."""

    def __init__(
        self,
        max_num_rows: int,
        vocab_size: int,
        max_model_len: int,
        eos_token_ids: tuple[int, ...],
        device: torch.device,
    ) -> None:
        self._eos_token_ids = eos_token_ids
        self._width = Column.STOP_IDS + len(eos_token_ids) + MAX_STOP_TOKEN_IDS
        self._packed = torch.zeros(max_num_rows, self._width, dtype=torch.int32, device=device)
        self._hints = np.zeros(max_num_rows, dtype=HINTS)
        self.tables = RowTables(max_num_rows, vocab_size, max_model_len, device)

    @property
    def packed(self) -> Tensor:
        """int32 [max_num_rows, columns], on the device: always the same memory."""
        return self._packed

    def write(self, new_rows: Sequence[NewRow]) -> None:
        """Replace rows, with one copy to the device and one more for each list that a row brings."""
        packed = np.full((len(new_rows), self._width), _NO_TOKEN, dtype=np.int32)
        for words, new_row in zip(packed, new_rows, strict=True):
            params = new_row.sampling
            assert isinstance(params, SamplingParams)
            self._write_row(words, new_row, params)
            self.tables.write(new_row, params)
        source = to_device(torch.from_numpy(packed), self._packed.device)
        self._packed.index_copy_(0, source[:, Column.ROW].long(), source)

    def gather(self, rows: Tensor) -> RowBatch:
        """rows: int64 [n]."""
        return RowBatch(self._packed.index_select(0, rows))

    def hints(self, host_rows: Sequence[int]) -> Hints:
        return self._hints[np.asarray(host_rows, dtype=np.intp)]

    def count_token(self, rows: Tensor) -> None:
        """Each of `rows` (int64 [n], all different) has generated one more token."""
        ones = torch.ones_like(rows, dtype=torch.int32)
        self._packed[:, Column.NUM_GENERATED].index_add_(0, rows, ones)

    def _write_row(self, words: npt.NDArray[np.int32], new_row: NewRow, params: SamplingParams) -> None:
        stop_ids = params.stop_token_ids + (() if params.ignore_eos else self._eos_token_ids)
        num_reported = _num_reported(params)
        words[Column.ROW] = new_row.row
        words[Column.FLAGS] = _flags(params)
        words[Column.NGRAM_SIZE] = params.no_repeat_ngram_size
        words[Column.NUM_BIASES] = len(params.logit_bias)
        words[Column.NUM_BAD_WORDS] = len(params.bad_word_ids)
        words[Column.NUM_REPORTED] = num_reported
        words[Column.OUTPUT_INDEX] = new_row.output_index
        words[Column.NUM_PROMPT] = new_row.num_prompt_tokens
        words[Column.NUM_GENERATED] = new_row.num_generated_tokens
        words[Column.MAX_NEW_TOKENS] = new_row.max_new_tokens
        words[Column.MIN_NEW_TOKENS] = params.min_new_tokens
        words[Column.NUM_STOP_IDS] = len(stop_ids)
        if stop_ids:
            words[Column.STOP_IDS :] = stop_ids[0]
            words[Column.STOP_IDS : Column.STOP_IDS + len(stop_ids)] = stop_ids
        _write_distribution(words, params, new_row)
        self._hints[new_row.row] = (
            params.is_random,
            params.top_k > 0 or params.top_p < 1 or params.top_p_decay < 1,
            params.top_k,
            params.min_p > 0,
            params.typical_p < 1,
            params.top_p_decay < 1,
            bool(stop_ids) and params.min_new_tokens > new_row.num_generated_tokens,
            params.changes_logits,
            _flags(params),
            params.no_repeat_ngram_size,
            len(params.logit_bias),
            len(params.bad_word_ids),
            max(map(len, params.bad_word_ids), default=0),
            num_reported,
            -1 if params.prompt_logprobs is None else params.prompt_logprobs,
            params.changes_logits or params.needs_history or num_reported >= 0,
        )


def select(tensor: Tensor, index: Tensor | None) -> Tensor:
    """tensor[index] along the first dimension; without an index, the tensor itself."""
    return tensor if index is None else tensor.index_select(0, index)


def to_index(mask: npt.NDArray[np.bool_], device: torch.device) -> Tensor | None:
    """Where the mask is true, int64 on the device; None when it is everywhere."""
    return None if mask.all() else to_device(torch.from_numpy(np.flatnonzero(mask)), device)


def _num_reported(params: SamplingParams) -> int:
    if params.beam is not None:
        return min(params.beam.num_candidates, MAX_CANDIDATES)
    if params.logprobs is not None:
        return params.logprobs
    return 0 if params.best_of is not None and params.best_of > params.num_outputs else -1


def _flags(params: SamplingParams) -> Flag:
    prompt = params.penalize_prompt
    asked = {
        Flag.CHANGES: params.changes_logits,
        Flag.PENALIZES: params.penalizes,
        Flag.REPEATS_PROMPT: prompt is None or prompt,
        Flag.ADDS_PROMPT: bool(prompt),
        Flag.MASKS: bool(params.allowed_token_ids) or params.grammar is not None,
        Flag.BEAM: params.beam is not None,
        # A row of a beam search does not know which token is chosen for it: it is written anew each time.
        Flag.COUNTS: params.penalizes and params.beam is None,
        Flag.KEEPS: params.needs_history and params.beam is None,
    }
    return Flag(sum(flag for flag, is_set in asked.items() if is_set))


def _write_distribution(words: npt.NDArray[np.int32], params: SamplingParams, new_row: NewRow) -> None:
    assert params.seed is not None or not params.is_random, "a random request needs a seed (see with_seed)"
    seed = params.seed or 0
    words.view(np.uint32)[[Column.SEED_LOW, Column.SEED_HIGH]] = seed & _MASK, seed >> 32
    words[Column.TOP_K] = params.top_k if params.is_random else 1
    words[Column.TOP_P_RESET_ID] = _NO_TOKEN if params.top_p_reset_id is None else params.top_p_reset_id
    floats = words.view(np.float32)
    # Where float32 would round a temperature to zero, its smallest normal number is as good as greedy.
    floats[Column.TEMPERATURE] = max(params.temperature, _SMALLEST_TEMPERATURE)
    floats[Column.TOP_P_FIRST] = params.top_p
    floats[Column.TOP_P_DECAY] = params.top_p_decay
    floats[Column.TOP_P_MIN] = params.top_p_min
    floats[Column.TOP_P] = _decayed_top_p(params, new_row)
    floats[Column.MIN_P] = params.min_p
    floats[Column.TYPICAL_P] = params.typical_p
    floats[Column.REPETITION] = params.repetition_penalty
    floats[Column.PRESENCE] = params.presence_penalty
    floats[Column.FREQUENCY] = params.frequency_penalty


def _decayed_top_p(params: SamplingParams, new_row: NewRow) -> np.float32:
    """After the tokens that have been generated before a preemption: step by step, to round as the device
    does.
    """
    first, decay, least = (np.float32(p) for p in (params.top_p, params.top_p_decay, params.top_p_min))
    top_p = first
    if params.top_p_decay < 1:
        for token_id in new_row.token_ids[new_row.num_prompt_tokens :]:
            top_p = first if token_id == params.top_p_reset_id else max(top_p * decay, min(least, first))
    return top_p
