"""Attention of chunks over what the pool holds of their rows, the chunk itself included (FlashAttention-2,
arXiv:2307.08691): a program for each tile and PACK query heads of one key/value head.
"""

import triton
import triton.language as tl

from engine.attention.kernels.parts import (
    LEAST,
    fold,
    line_offsets,
    load_blocks,
    load_lines,
    load_rotated,
    normalize,
)


@triton.jit
def _attend_keys(
    q,
    keys,
    values,
    blocks,
    head,
    key,
    end,
    query_position,
    column,
    scale,
    largest,
    total,
    weighted,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
    WINDOW: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Some keys, positions `key`. Not MASKED: all of them are seen by all queries."""
    is_read = key < end
    offsets = (
        line_offsets(blocks, key, head, BLOCK_SIZE, NUM_KV_HEADS, HEAD_DIM, WIDE)[:, None] + column[None, :]
    )
    k = load_lines(keys + offsets, is_read, column, HEAD_DIM, COLUMNS, MASKED)
    v = load_lines(values + offsets, is_read, column, HEAD_DIM, COLUMNS, MASKED)
    products = tl.dot(q, tl.trans(k), input_precision="ieee")
    if MASKED:
        is_seen = key[None, :] <= query_position[:, None]
        if WINDOW > 0:
            is_seen = is_seen & (key[None, :] > query_position[:, None] - WINDOW)
        products = tl.where(is_seen, products, float("-inf"))
    return fold(products, v, scale, largest, total, weighted)


@triton.jit(do_not_specialize=["qkv_stride", "out_stride", "table_stride"])
def attend_tiles(
    qkv,  # [N, (NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM]
    keys,  # [num_blocks, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM], as values
    values,
    out,  # [N, NUM_HEADS * HEAD_DIM]
    rows,
    positions,
    tiles,  # int32 [num_tiles, 2]
    table,  # int32 [rows, blocks]
    cosines,  # float32 [N, HEAD_DIM / 2], as sines
    sines,
    qkv_stride,
    out_stride,
    table_stride,
    scale,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WIDE: tl.constexpr,
    WINDOW: tl.constexpr,  # 0: all
    COLUMNS: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    PACK: tl.constexpr,
    KEYS: tl.constexpr,
):
    # The last tiles of a prompt see the most keys: started first, they do not end last.
    tile = tiles + 2 * (tl.num_programs(1) - 1 - tl.program_id(1))
    first = tl.load(tile)
    num_tokens = tl.load(tile + 1)
    if num_tokens == 0:
        return
    row = tl.load(rows + first)
    position = tl.load(positions + first)
    end = position + num_tokens
    HALF: tl.constexpr = HEAD_DIM // 2
    first_head = tl.program_id(0) * PACK
    head = first_head // (NUM_HEADS // NUM_KV_HEADS)

    line = tl.arange(0, PACK * TILE_TOKENS)
    in_tile = line % TILE_TOKENS
    query_position = position + in_tile
    token = first + in_tile
    column = tl.arange(0, COLUMNS)
    mask = (in_tile < num_tokens)[:, None] & (column < HEAD_DIM)[None, :]
    query_head = (first_head + line // TILE_TOKENS) * HEAD_DIM
    angles = (token * HALF)[:, None]
    q = load_rotated(
        qkv + (token.to(tl.int64) * qkv_stride + query_head)[:, None],
        cosines + angles,
        sines + angles,
        column[None, :],
        mask,
        HEAD_DIM,
    ).to(qkv.dtype.element_ty)

    largest = tl.full([PACK * TILE_TOKENS], LEAST, tl.float32)
    total = tl.zeros([PACK * TILE_TOKENS], tl.float32)
    weighted = tl.zeros([PACK * TILE_TOKENS, COLUMNS], tl.float32)
    table_row = table + row.to(tl.int64) * table_stride
    start = tl.maximum(position - (WINDOW - 1), 0) if WINDOW > 0 else position * 0
    key = start + tl.arange(0, KEYS)
    # Block ids are read some keys ahead: the loads of keys and values need not wait for them.
    blocks = load_blocks(table_row, key, end, BLOCK_SIZE)
    if WINDOW > 0:
        num_at_edge = tl.cdiv(tl.maximum(end - WINDOW - start, 0), KEYS)
        for _ in range(num_at_edge):
            next_blocks = load_blocks(table_row, key + KEYS, end, BLOCK_SIZE)
            largest, total, weighted = _attend_keys(
                q, keys, values, blocks, head, key, end, query_position, column, scale,
                largest, total, weighted, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE, WIDE, COLUMNS, WINDOW, True,
            )  # fmt: skip
            key += KEYS
            blocks = next_blocks
        start += num_at_edge * KEYS
    num_seen_by_all = tl.maximum(position + 1 - start, 0) // KEYS
    for _ in range(num_seen_by_all):
        next_blocks = load_blocks(table_row, key + KEYS, end, BLOCK_SIZE)
        largest, total, weighted = _attend_keys(
            q, keys, values, blocks, head, key, end, query_position, column, scale,
            largest, total, weighted, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE, WIDE, COLUMNS, WINDOW, False,
        )  # fmt: skip
        key += KEYS
        blocks = next_blocks
    start += num_seen_by_all * KEYS
    for _ in range(tl.cdiv(tl.maximum(end - start, 0), KEYS)):
        next_blocks = load_blocks(table_row, key + KEYS, end, BLOCK_SIZE)
        largest, total, weighted = _attend_keys(
            q, keys, values, blocks, head, key, end, query_position, column, scale,
            largest, total, weighted, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE, WIDE, COLUMNS, WINDOW, True,
        )  # fmt: skip
        key += KEYS
        blocks = next_blocks

    lines = (token.to(tl.int64) * out_stride + query_head)[:, None] + column[None, :]
    tl.store(out + lines, normalize(weighted, total).to(out.dtype.element_ty), mask=mask)
