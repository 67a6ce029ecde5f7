"""Attention of tokens that each have a context of their own (decode): split K/V, one launch a layer.

The query heads of a key/value head attend together, as the rows of one small matrix product. A token's own
key and value, and those of lone tokens of its row before it, are taken from qkv, so that no launch has to
write them first; the program of a token's last piece writes its own.
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
from engine.attention.kernels.split import (
    END_KEY,
    FIRST_KEY,
    FIRST_SLOT,
    NUM_PIECES,
    NUM_WORDS,
    POSITION,
    ROW,
    SLOT,
    TOKEN,
)


@triton.jit
def _add_new(q, k, v, scale, largest, total, weighted):
    """One key and value [COLUMNS] more, of a token of this step."""
    scores = tl.sum(q.to(tl.float32) * k.to(tl.float32)[None, :], 1) * scale
    new_largest = tl.maximum(largest, scores)
    shrink = tl.exp2(largest - new_largest)
    weight = tl.exp2(scores - new_largest)
    weighted = weighted * shrink[:, None] + weight[:, None] * v.to(tl.float32)[None, :]
    return new_largest, total * shrink + weight, weighted


@triton.jit
def _merge(
    sums, softmaxes, first, num_pieces, stride, query, column,
    HEAD_DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """The pieces of one token and head in order, whoever wrote them when: so results are reproducible.

    first: index of the first query of the first piece; stride: queries between two pieces.
    """
    largest = tl.full([ROWS], LEAST, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    weighted = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, num_pieces, AT_ONCE):
        piece = start + tl.arange(0, AT_ONCE)
        is_piece = piece < num_pieces
        line = first + (piece * stride)[:, None] + query[None, :]
        # From the L2: other multiprocessors wrote them.
        piece_largest = tl.load(
            softmaxes + line * 2, mask=is_piece[:, None], other=LEAST, cache_modifier=".cg"
        )
        piece_total = tl.load(
            softmaxes + line * 2 + 1, mask=is_piece[:, None], other=0.0, cache_modifier=".cg"
        )
        piece_sum = tl.load(
            sums + line[:, :, None] * HEAD_DIM + column[None, None, :],
            mask=is_piece[:, None, None] & (column < HEAD_DIM)[None, None, :],
            other=0.0,
            cache_modifier=".cg",
        )
        new_largest = tl.maximum(largest, tl.max(piece_largest, 0))
        shrink = tl.exp2(largest - new_largest)
        piece_shrink = tl.exp2(piece_largest - new_largest[None, :])
        total = total * shrink + tl.sum(piece_total * piece_shrink, 0)
        weighted = weighted * shrink[:, None] + tl.sum(piece_sum * piece_shrink[:, :, None], 0)
        largest = new_largest
    return total, weighted


@triton.jit(do_not_specialize=["qkv_stride", "out_stride", "table_stride"])
def attend_lone(
    qkv,  # [N, (NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM]
    keys,  # [num_blocks, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM], as values
    values,
    out,  # [N, NUM_HEADS * HEAD_DIM]
    table,  # int32 [rows, blocks]
    cosines,  # float32 [N, HEAD_DIM / 2], as sines
    sines,
    previous,  # int32 [num_lone]
    pieces,  # int32 [programs, NUM_WORDS]
    sums,  # float32 [slots, NUM_KV_HEADS, ROWS, HEAD_DIM]
    softmaxes,  # float32 [slots, NUM_KV_HEADS, ROWS, (largest, total)]
    arrivals,  # int32 [tokens, NUM_KV_HEADS], zeros before and after
    qkv_stride,
    out_stride,
    table_stride,
    scale,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,  # query heads of a kv head, padded to a power of two
    QUERIES: tl.constexpr,  # and to what a matrix product takes
    COLUMNS: tl.constexpr,
    TILE: tl.constexpr,
    AT_ONCE: tl.constexpr,  # pieces merged at once
):
    """A program for each (kv head, piece); those without a piece leave at once."""
    head = tl.program_id(0)
    words = pieces + tl.program_id(1) * NUM_WORDS
    token = tl.load(words + TOKEN)
    if token < 0:
        return
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    HALF: tl.constexpr = HEAD_DIM // 2
    row = tl.load(words + ROW)
    begin = tl.load(words + FIRST_KEY)
    end = tl.load(words + END_KEY)
    position = tl.load(words + POSITION)
    count = tl.load(words + NUM_PIECES)
    slot = tl.load(words + SLOT)
    first_slot = tl.load(words + FIRST_SLOT)

    key = tl.arange(0, TILE)
    table_row = table + row.to(tl.int64) * table_stride
    # Block ids are read a tile ahead: the loads of a tile's keys and values need not wait for them.
    blocks = load_blocks(table_row, begin + key, end, BLOCK_SIZE)
    is_ours = (slot - first_slot == count - 1) & (row >= 0)
    block = tl.load(table_row + position // BLOCK_SIZE, mask=is_ours, other=0)

    query = tl.arange(0, QUERIES)
    column = tl.arange(0, COLUMNS)
    is_column = column < HEAD_DIM
    mask = (query < GROUP)[:, None] & is_column[None, :]
    own = qkv + token.to(tl.int64) * qkv_stride
    first_head = own + (head * GROUP + query)[:, None] * HEAD_DIM
    cosine, sine = cosines + token * HALF, sines + token * HALF
    q = load_rotated(first_head, cosine, sine, column[None, :], mask, HEAD_DIM).to(qkv.dtype.element_ty)
    k_offset = (NUM_HEADS + head) * HEAD_DIM
    v_offset = k_offset + NUM_KV_HEADS * HEAD_DIM
    k_own = load_rotated(own + k_offset, cosine, sine, column, is_column & is_ours, HEAD_DIM).to(q.dtype)
    v_own = tl.load(own + v_offset + column, mask=is_column & is_ours, other=0.0)

    largest = tl.full([QUERIES], LEAST, tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    weighted = tl.zeros([QUERIES, COLUMNS], tl.float32)
    for start in range(begin, end, TILE):
        next_blocks = load_blocks(table_row, start + TILE + key, end, BLOCK_SIZE)
        key_position = start + key
        is_seen = key_position < end
        lines = line_offsets(blocks, key_position, head, BLOCK_SIZE, NUM_KV_HEADS, HEAD_DIM, WIDE)
        offsets = lines[:, None] + column[None, :]
        k = load_lines(keys + offsets, is_seen, column, HEAD_DIM, COLUMNS, True)
        v = load_lines(values + offsets, is_seen, column, HEAD_DIM, COLUMNS, True)
        products = tl.dot(q, tl.trans(k), input_precision="ieee")
        products = tl.where(is_seen[None, :], products, float("-inf"))
        largest, total, weighted = fold(products, v, scale, largest, total, weighted)
        blocks = next_blocks

    if is_ours:
        line = line_offsets(block, position, head, BLOCK_SIZE, NUM_KV_HEADS, HEAD_DIM, WIDE) + column
        tl.store(keys + line, k_own, mask=is_column)
        tl.store(values + line, v_own, mask=is_column)
        largest, total, weighted = _add_new(q, k_own, v_own, scale, largest, total, weighted)
        other = token
        for _ in range(end, position):
            other = tl.load(previous + other)
            theirs = qkv + other.to(tl.int64) * qkv_stride
            cosine, sine = cosines + other * HALF, sines + other * HALF
            k = load_rotated(theirs + k_offset, cosine, sine, column, is_column, HEAD_DIM).to(q.dtype)
            v = tl.load(theirs + v_offset + column, mask=is_column, other=0.0)
            largest, total, weighted = _add_new(q, k, v, scale, largest, total, weighted)

    first_out = out + token.to(tl.int64) * out_stride + head * GROUP * HEAD_DIM
    if count == 1:
        result = normalize(weighted, total).to(out.dtype.element_ty)
        tl.store(first_out + query[:, None] * HEAD_DIM + column[None, :], result, mask=mask)
    else:
        stride: tl.constexpr = NUM_KV_HEADS * ROWS
        line = slot * stride + head * ROWS + query
        is_row = query < ROWS
        stored = is_row[:, None] & is_column[None, :]
        tl.store(sums + line[:, None] * HEAD_DIM + column[None, :], weighted, mask=stored)
        tl.store(softmaxes + line * 2, largest, mask=is_row)
        tl.store(softmaxes + line * 2 + 1, total, mask=is_row)
        tl.debug_barrier()  # all threads have stored when one says so
        arrival = arrivals + token * NUM_KV_HEADS + head
        if tl.atomic_add(arrival, 1, sem="acq_rel") == count - 1:
            tl.store(arrival, 0)
            first = first_slot * stride + head * ROWS
            merged = tl.arange(0, ROWS)
            all_total, all_weighted = _merge(
                sums, softmaxes, first, count, stride, merged, column, HEAD_DIM, ROWS, COLUMNS, AT_ONCE
            )
            merged_result = normalize(all_weighted, all_total).to(out.dtype.element_ty)
            is_out = (merged < GROUP)[:, None] & is_column[None, :]
            tl.store(first_out + merged[:, None] * HEAD_DIM + column[None, :], merged_result, mask=is_out)
