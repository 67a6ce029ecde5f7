"""What the kernels read of a row: its packed state (rows.Column), its logits, and its random number.

A row's logits are a tuple: those of the model, at the row's first; `processed` likewise, or None in a launch
whose rows have none; and whether the row is to be read from there.

A token's *key* is the bits of how far its logit, over the temperature, lies below the largest: a float32 that
is never negative, whose bits as an integer are in the same order. So key 0 is the most likely token, equal
keys are ties, and a search over integers ends at an exact threshold.
"""

import triton
import triton.language as tl

from engine.sampling.philox import Purpose
from engine.sampling.rows import Column, Flag

FLAGS = tl.constexpr(int(Column.FLAGS))
TEMPERATURE = tl.constexpr(int(Column.TEMPERATURE))
TOP_K = tl.constexpr(int(Column.TOP_K))
TOP_P = tl.constexpr(int(Column.TOP_P))
MIN_P = tl.constexpr(int(Column.MIN_P))
TYPICAL_P = tl.constexpr(int(Column.TYPICAL_P))
NUM_PROMPT = tl.constexpr(int(Column.NUM_PROMPT))
NUM_REPORTED = tl.constexpr(int(Column.NUM_REPORTED))
NUM_GENERATED = tl.constexpr(int(Column.NUM_GENERATED))
MAX_NEW_TOKENS = tl.constexpr(int(Column.MAX_NEW_TOKENS))
STOP_IDS = tl.constexpr(int(Column.STOP_IDS))
CHANGES = tl.constexpr(int(Flag.CHANGES))
BEAM = tl.constexpr(int(Flag.BEAM))
_SEED_LOW = tl.constexpr(int(Column.SEED_LOW))
_SEED_HIGH = tl.constexpr(int(Column.SEED_HIGH))
_OUTPUT_INDEX = tl.constexpr(int(Column.OUTPUT_INDEX))
_MIN_NEW_TOKENS = tl.constexpr(int(Column.MIN_NEW_TOKENS))
_NUM_STOP_IDS = tl.constexpr(int(Column.NUM_STOP_IDS))
_TOKEN = tl.constexpr(int(Purpose.TOKEN))

IMPOSSIBLE = tl.constexpr(0x7F800000)  # the key of a logit of -inf
HIGHEST = tl.constexpr(0x7F7FFFFF)  # of one that is finite


@triton.jit
def load_float(state, COLUMN: tl.constexpr):
    return tl.load(state + COLUMN).to(tl.float32, bitcast=True)


@triton.jit
def is_random(state):
    """Whether the row draws at random; the others take the largest logit."""
    return tl.load(state + TOP_K) != 1


@triton.jit
def count_banned(state):
    """How many stop ids are banned because the row has not generated min_new_tokens yet."""
    too_early = tl.load(state + NUM_GENERATED) < tl.load(state + _MIN_NEW_TOKENS)
    return tl.where(too_early, tl.load(state + _NUM_STOP_IDS), 0)


@triton.jit
def load_unbanned(row_logits, token_ids, is_read):
    """float32: -inf where not read; NaN as +inf, which the largest logit then shows.

    Of the model's logits and the processed ones just one is read.
    """
    logits, processed, is_processed = row_logits
    if processed is None:
        values = tl.load(logits + token_ids, mask=is_read, other=float("-inf")).to(tl.float32)
    else:
        is_given = is_read & (is_processed == 0)
        given = tl.load(logits + token_ids, mask=is_given, other=float("-inf")).to(tl.float32)
        is_made = is_read & (is_processed != 0)
        made = tl.load(processed + token_ids, mask=is_made, other=float("-inf"))
        values = tl.where(is_processed != 0, made, given)
    return tl.where(values == values, values, float("inf"))


@triton.jit
def load_logits(row_logits, token_ids, is_read, state, num_banned):
    """As load_unbanned, but -inf where banned, NaN or not.

    num_banned: of `count_banned`; rows that ban nothing pay nothing for it.
    """
    values = load_unbanned(row_logits, token_ids, is_read)
    index = 0
    while index < num_banned:  # not range(): Triton's interpreter cannot count to what was loaded
        values = tl.where(token_ids == tl.load(state + STOP_IDS + index), float("-inf"), values)
        index += 1
    return values


@triton.jit
def to_keys(values, largest, temperature):
    """int32. Divides exactly as the torch sampler does, so that the same logits tie."""
    return tl.abs(tl.div_rn(values - largest, temperature)).to(tl.int32, bitcast=True)


@triton.jit
def weigh(keys):
    """Unnormalised probabilities, float32: 1 for key 0, 0 for IMPOSSIBLE."""
    return tl.exp(-keys.to(tl.float32, bitcast=True))


@triton.jit
def draw_uniform(state):
    """float64 in [0, 1): philox.uniform of the row's seed, output index and number of generated tokens."""
    low = tl.load(state + _SEED_LOW).to(tl.uint32, bitcast=True).to(tl.uint64)
    high = tl.load(state + _SEED_HIGH).to(tl.uint32, bitcast=True).to(tl.uint64)
    position = tl.load(state + NUM_GENERATED)
    output_index = tl.load(state + _OUTPUT_INDEX)
    zero = position * 0
    first, second, _, _ = tl.philox((high << 32) | low, position, zero + _TOKEN, output_index, zero)
    return ((first.to(tl.int64) << 21) | (second >> 11).to(tl.int64)).to(tl.float64) * 1.1102230246251565e-16
