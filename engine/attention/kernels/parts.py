"""What the kernels share: rotated heads, lines of the pool, and the online softmax.

Columns of a head are padded to a power of two, COLUMNS; what lies past HEAD_DIM is never read. Scores are in
base 2: their scale has log2(e) in it.
"""

import triton
import triton.language as tl

# The running maximum's start: finite, so that a difference of two of them is 0 and not NaN.
LEAST = tl.constexpr(-1.0e30)


@triton.jit
def load_rotated(head, cosines, sines, column, mask, HEAD_DIM: tl.constexpr):
    """Heads of q or k after RoPE, float32. head, cosines, sines: pointers to the first column of each head
    and to the first angle of its token; with mask, they broadcast against column."""
    HALF: tl.constexpr = HEAD_DIM // 2
    is_first = column < HALF
    pair = tl.where(is_first, column, column - HALF)
    partner = tl.where(is_first, column + HALF, column - HALF)
    x = tl.load(head + column, mask=mask, other=0.0).to(tl.float32)
    y = tl.load(head + partner, mask=mask, other=0.0).to(tl.float32)
    cos = tl.load(cosines + pair, mask=mask, other=0.0)
    sin = tl.load(sines + pair, mask=mask, other=0.0)
    return x * cos + tl.where(is_first, -y, y) * sin


@triton.jit
def line_offsets(
    blocks,
    position,
    head,
    BLOCK_SIZE: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Where the lines of positions begin in a pool [num_blocks, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM].
    blocks: ids, of the positions' shape. WIDE: the pool has more elements than 32 bits count, and addresses
    take twice the registers."""
    if WIDE:
        blocks = blocks.to(tl.int64)
    return (blocks * (NUM_KV_HEADS * BLOCK_SIZE) + (head * BLOCK_SIZE + position % BLOCK_SIZE)) * HEAD_DIM


@triton.jit
def load_blocks(table_row, position, end, BLOCK_SIZE: tl.constexpr):
    """The ids of the blocks of positions. At and after end, where the table may hold anything: 0."""
    return tl.load(table_row + position // BLOCK_SIZE, mask=position < end, other=0)


@triton.jit
def load_lines(
    pointers, is_read, column, HEAD_DIM: tl.constexpr, COLUMNS: tl.constexpr, MASKED: tl.constexpr
):
    """[keys, COLUMNS], zeros where not read. is_read: [keys], looked at only if MASKED."""
    if MASKED:
        lines = tl.load(pointers, mask=is_read[:, None] & (column < HEAD_DIM)[None, :], other=0.0)
    elif HEAD_DIM != COLUMNS:
        lines = tl.load(pointers, mask=(column < HEAD_DIM)[None, :], other=0.0)
    else:
        lines = tl.load(pointers)
    return lines


@triton.jit
def fold(products, v, scale, largest, total, weighted):
    """One more tile of keys into the softmax (arXiv:1805.02867): the largest score so far, the sum of the
    weights, and the weighted sum of the values. products: scores before their scale."""
    new_largest = tl.maximum(largest, tl.max(products, 1) * scale)
    shrink = tl.exp2(largest - new_largest)
    weights = tl.exp2(products * scale - new_largest[:, None])
    total = total * shrink + tl.sum(weights, 1)
    weighted = tl.dot(weights.to(v.dtype), v, weighted * shrink[:, None], input_precision="ieee")
    return new_largest, total, weighted


@triton.jit
def normalize(weighted, total):
    """Zeros where nothing was seen."""
    return weighted / tl.where(total == 0.0, 1.0, total)[:, None]
