"""Once a step: the angles of its tokens, and the split of the lone tokens' contexts into pieces.

Contexts differ in length and grids must not depend on it: the contexts are cut into pieces of one size, the
smallest with which the pieces of any batch fit the grid, and a list of pieces on the device says what each
program does (split K/V as in Flash-Decoding, https://pytorch.org/blog/flash-decoding/).
"""

import triton
import triton.language as tl

# The words of a piece, int32.
TOKEN = tl.constexpr(0)
ROW = tl.constexpr(1)
FIRST_KEY = tl.constexpr(2)
END_KEY = tl.constexpr(3)
POSITION = tl.constexpr(4)
NUM_PIECES = tl.constexpr(5)
SLOT = tl.constexpr(6)
FIRST_SLOT = tl.constexpr(7)
NUM_WORDS = tl.constexpr(8)


@triton.jit
def _first_key(position, WINDOW: tl.constexpr):
    """The first position that a query sees. WINDOW 0: all."""
    return position * 0 if WINDOW == 0 else tl.maximum(position - (WINDOW - 1), 0)


@triton.jit(do_not_specialize=["num_lone"])
def split(
    rows,
    positions,
    frequencies,
    cosines,
    sines,
    pieces,
    previous,
    num_lone,
    WINDOW: tl.constexpr,
    HALF: tl.constexpr,  # pairs of columns
    PAIRS: tl.constexpr,  # the power of two at or above it
    LONE: tl.constexpr,  # a power of two, at least num_lone
    MOST: tl.constexpr,  # pieces, besides one a token
    ENOUGH: tl.constexpr,  # pieces to keep the device busy
    LEAST_TILES: tl.constexpr,  # of a piece, where there are enough
    SLOTS: tl.constexpr,  # a power of two, at least MOST
    PIECES: tl.constexpr,  # a power of two, at least MOST + num_lone
    TILE: tl.constexpr,  # keys
):
    """A program for each token of the step.

    Writes its cos and sin; of a lone token also its pieces, and into `previous` the packed token of the same
    row before it, -1 if there is none in this step. The pool holds what came before the row's first lone
    token when the layers start; the rest of what a lone token sees is found through `previous`.
    """
    token = tl.program_id(0)
    row = tl.load(rows + token)
    position = tl.load(positions + token)

    pair = tl.arange(0, PAIRS)
    angle = position.to(tl.float32) * tl.load(frequencies + pair, mask=pair < HALF, other=0.0)
    tl.store(cosines + token * HALF + pair, tl.cos(angle), mask=pair < HALF)
    tl.store(sines + token * HALF + pair, tl.sin(angle), mask=pair < HALF)

    if token < num_lone:
        other = tl.arange(0, LONE)
        is_lone = other < num_lone
        other_row = tl.load(rows + other, mask=is_lone, other=-1)
        other_position = tl.load(positions + other, mask=is_lone, other=-1)
        is_ours = (other_row == row) & (row >= 0)
        is_previous = is_ours & (other_position == position - 1)
        tl.store(previous + token, tl.sum(tl.where(is_previous, other + 1, 0), 0) - 1)

        # From positions alone: an upper bound, where others of the row are lone in this step too.
        num_tiles = tl.cdiv(tl.maximum(other_position, 0) - _first_key(other_position, WINDOW), TILE)
        all_tiles = tl.sum(num_tiles, 0)
        piece_tiles = tl.maximum(tl.cdiv(all_tiles, MOST), LEAST_TILES)
        piece_tiles = tl.minimum(piece_tiles, tl.maximum(tl.cdiv(all_tiles, ENOUGH), 1))
        counts = tl.where(is_lone, tl.maximum(tl.cdiv(num_tiles, piece_tiles), 1), 0)
        is_split = counts > 1
        count = tl.sum(tl.where(other == token, counts, 0), 0)
        first_piece = tl.sum(tl.where(other < token, counts, 0), 0)
        first_slot = tl.sum(tl.where((other < token) & is_split, counts, 0), 0)
        if token == num_lone - 1:
            idle = first_piece + count + tl.arange(0, PIECES)
            tl.store(pieces + idle * NUM_WORDS + TOKEN, idle * 0 - 1, mask=idle < num_lone + MOST)

        first_key = _first_key(position, WINDOW)
        first_new = tl.min(tl.where(is_ours, other_position, position), 0)
        end_key = tl.maximum(tl.maximum(first_new, first_key), 0)
        piece = tl.arange(0, SLOTS)
        is_piece = piece < count
        begin = first_key + piece * piece_tiles * TILE
        end = tl.minimum(begin + piece_tiles * TILE, end_key)
        words = pieces + (first_piece + piece) * NUM_WORDS
        zero = piece * 0
        tl.store(words + TOKEN, zero + token, mask=is_piece)
        tl.store(words + ROW, zero + row, mask=is_piece)
        tl.store(words + FIRST_KEY, begin, mask=is_piece)
        tl.store(words + END_KEY, tl.where(piece == count - 1, end_key, end), mask=is_piece)
        tl.store(words + POSITION, zero + position, mask=is_piece)
        tl.store(words + NUM_PIECES, zero + count, mask=is_piece)
        tl.store(words + SLOT, first_slot + piece, mask=is_piece)
        tl.store(words + FIRST_SLOT, zero + first_slot, mask=is_piece)
