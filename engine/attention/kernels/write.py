"""Keys and values of a step's chunks into the pool, keys rotated on the way."""

import triton
import triton.language as tl

from engine.attention.kernels.parts import line_offsets, load_rotated


@triton.jit(do_not_specialize=["first_token", "qkv_stride", "out_stride", "table_stride"])
def write(
    qkv,  # [N, (NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM]
    keys,  # [num_blocks, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM], as values
    values,
    out,  # [N, NUM_HEADS * HEAD_DIM]
    rows,
    positions,
    table,  # int32 [rows, blocks]
    cosines,  # float32 [N, HEAD_DIM / 2], as sines
    sines,
    first_token,
    qkv_stride,
    out_stride,
    table_stride,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WIDE: tl.constexpr,
    HEADS: tl.constexpr,  # powers of two: kv heads,
    COLUMNS: tl.constexpr,  # columns of a head,
    WIDTH: tl.constexpr,  # and columns of out, padded
):
    """A program for each packed token from first_token on. Padding gets zeros in out, and nothing else."""
    token = first_token + tl.program_id(0)
    row = tl.load(rows + token)
    position = tl.load(positions + token)
    if row < 0:
        width = tl.arange(0, WIDTH)
        zeros = tl.zeros([WIDTH], out.dtype.element_ty)
        tl.store(out + token.to(tl.int64) * out_stride + width, zeros, mask=width < NUM_HEADS * HEAD_DIM)
        return
    HALF: tl.constexpr = HEAD_DIM // 2
    block = tl.load(table + row.to(tl.int64) * table_stride + position // BLOCK_SIZE)
    head = tl.arange(0, HEADS)
    column = tl.arange(0, COLUMNS)[None, :]
    mask = (head < NUM_KV_HEADS)[:, None] & (column < HEAD_DIM)
    k_new = qkv + token.to(tl.int64) * qkv_stride + (NUM_HEADS + head)[:, None] * HEAD_DIM
    k = load_rotated(k_new, cosines + token * HALF, sines + token * HALF, column, mask, HEAD_DIM)
    v = tl.load(k_new + NUM_KV_HEADS * HEAD_DIM + column, mask=mask, other=0.0)
    lines = line_offsets(block, position, head, BLOCK_SIZE, NUM_KV_HEADS, HEAD_DIM, WIDE)[:, None] + column
    tl.store(keys + lines, k.to(keys.dtype.element_ty), mask=mask)
    tl.store(values + lines, v, mask=mask)
