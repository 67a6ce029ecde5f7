"""Attention of tokens that each have a context of their own (decode): split K/V, one launch a layer.

The query heads of a key/value head attend together, as the rows of one small matrix product. A token's own
key and value, and those of lone tokens of its row before it, are taken from qkv, so that no launch has to
write them first; the program of a token's last piece writes its own.
"""

import triton
import triton.language as tl

from engine.attention.kernels.parts import LEAST, fold, line_offsets, load_lines, load_rotated, normalize
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
def _attend_tile(
    q,
    keys,
    values,
    blocks,
    head,
    key,
    end,
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
    MASKED: tl.constexpr,
):
    """One tile of the context, positions `key` [TILE]. MASKED: only those before `end` are seen."""
    is_seen = key < end
    offsets = (
        line_offsets(blocks, key, head, BLOCK_SIZE, NUM_KV_HEADS, HEAD_DIM, WIDE)[:, None] + column[None, :]
    )
    k = load_lines(keys + offsets, is_seen, column, HEAD_DIM, COLUMNS, MASKED)
    v = load_lines(values + offsets, is_seen, column, HEAD_DIM, COLUMNS, MASKED)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    if MASKED:
        scores = tl.where(is_seen[None, :], scores, float("-inf"))
    return fold(scores, v, largest, total, weighted)


@triton.jit
def _new_line(q, k_new, v_new, cosines, sines, column, is_seen, scale, HEAD_DIM: tl.constexpr):
    """k and v of a token of this step [COLUMNS], from qkv, and the scores [queries]."""
    mask = (column < HEAD_DIM) & is_seen
    k = load_rotated(k_new, cosines, sines, column, mask, HEAD_DIM).to(q.dtype)
    v = tl.load(v_new + column, mask=mask, other=0.0)
    scores = tl.sum(q.to(tl.float32) * k.to(tl.float32)[None, :], 1) * scale
    return k, v, scores


@triton.jit
def _merge(sums, softmaxes, first, num_pieces, stride, query, column, mask, HEAD_DIM: tl.constexpr):
    """The pieces of one token and head in order, whoever wrote them when: so results are reproducible.

    first: index of the first query of the first piece; stride: queries between two pieces.
    """
    largest = tl.full(query.shape, LEAST, tl.float32)
    total = tl.zeros(query.shape, tl.float32)
    weighted = tl.zeros(mask.shape, tl.float32)
    for piece in tl.range(0, num_pieces, loop_unroll_factor=4):
        line = first + piece * stride + query
        # From the L2: other multiprocessors wrote them.
        piece_largest = tl.load(softmaxes + line * 2, cache_modifier=".cg")
        piece_total = tl.load(softmaxes + line * 2 + 1, cache_modifier=".cg")
        piece_sum = tl.load(
            sums + line[:, None] * HEAD_DIM + column[None, :], mask=mask, other=0.0, cache_modifier=".cg"
        )
        new_largest = tl.maximum(largest, piece_largest)
        shrink = tl.exp2(largest - new_largest)
        piece_shrink = tl.exp2(piece_largest - new_largest)
        total = total * shrink + piece_total * piece_shrink
        weighted = weighted * shrink[:, None] + piece_sum * piece_shrink[:, None]
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
    num_pieces,  # int32 [1]
    sums,  # float32 [slots, NUM_KV_HEADS, QUERIES, HEAD_DIM]
    softmaxes,  # float32 [slots, NUM_KV_HEADS, QUERIES, (largest, total)]
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
    QUERIES: tl.constexpr,  # query heads of a kv head, padded
    COLUMNS: tl.constexpr,
    TILE: tl.constexpr,
):
    """A program for each (kv head, piece); those past num_pieces leave at once."""
    head = tl.program_id(0)
    index = tl.program_id(1)
    if index >= tl.load(num_pieces):
        return
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    HALF: tl.constexpr = HEAD_DIM // 2
    words = pieces + index * NUM_WORDS
    token = tl.load(words + TOKEN)
    row = tl.load(words + ROW)
    begin = tl.load(words + FIRST_KEY)
    end = tl.load(words + END_KEY)
    position = tl.load(words + POSITION)
    count = tl.load(words + NUM_PIECES)
    slot = tl.load(words + SLOT)
    first_slot = tl.load(words + FIRST_SLOT)
    is_last = slot - first_slot == count - 1

    query = tl.arange(0, QUERIES)
    column = tl.arange(0, COLUMNS)
    mask = (query < GROUP)[:, None] & (column < HEAD_DIM)[None, :]
    own = qkv + token.to(tl.int64) * qkv_stride
    first_head = own + (head * GROUP + query)[:, None] * HEAD_DIM
    cosine, sine = cosines + token * HALF, sines + token * HALF
    q = load_rotated(first_head, cosine, sine, column[None, :], mask, HEAD_DIM).to(qkv.dtype.element_ty)

    k_offset = (NUM_HEADS + head) * HEAD_DIM
    v_offset = k_offset + NUM_KV_HEADS * HEAD_DIM
    is_ours = is_last & (row >= 0)
    k, v, scores = _new_line(
        q, own + k_offset, own + v_offset, cosine, sine, column, is_ours, scale, HEAD_DIM
    )
    largest = tl.where(is_ours, scores, LEAST)
    total = tl.zeros([QUERIES], tl.float32) + tl.where(is_ours, 1.0, 0.0)
    weighted = tl.zeros([QUERIES, COLUMNS], tl.float32) + v.to(tl.float32)[None, :]

    table_row = table + row.to(tl.int64) * table_stride
    if is_ours:
        block = tl.load(table_row + position // BLOCK_SIZE)
        line = line_offsets(block, position, head, BLOCK_SIZE, NUM_KV_HEADS, HEAD_DIM, WIDE) + column
        tl.store(keys + line, k, mask=column < HEAD_DIM)
        tl.store(values + line, v, mask=column < HEAD_DIM)
        other = token
        for _ in range(end, position):
            other = tl.load(previous + other)
            theirs = qkv + other.to(tl.int64) * qkv_stride
            k, v, scores = _new_line(
                q, theirs + k_offset, theirs + v_offset, cosines + other * HALF, sines + other * HALF,
                column, True, scale, HEAD_DIM,
            )  # fmt: skip
            new_largest = tl.maximum(largest, scores)
            shrink = tl.exp2(largest - new_largest)
            weight = tl.exp2(scores - new_largest)
            total = total * shrink + weight
            weighted = weighted * shrink[:, None] + weight[:, None] * v.to(tl.float32)[None, :]
            largest = new_largest

    key = tl.arange(0, TILE)
    # Block ids are read a tile ahead: the loads of a tile's keys and values need not wait for them.
    blocks = tl.load(table_row + (begin + key) // BLOCK_SIZE, mask=begin + key < end, other=0)
    for _ in range(tl.maximum(end - begin, 0) // TILE):
        ahead = begin + TILE + key
        next_blocks = tl.load(table_row + ahead // BLOCK_SIZE, mask=ahead < end, other=0)
        largest, total, weighted = _attend_tile(
            q, keys, values, blocks, head, begin + key, end, column, scale,
            largest, total, weighted, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE, WIDE, COLUMNS, False,
        )  # fmt: skip
        begin += TILE
        blocks = next_blocks
    if begin < end:
        largest, total, weighted = _attend_tile(
            q, keys, values, blocks, head, begin + key, end, column, scale,
            largest, total, weighted, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE, WIDE, COLUMNS, True,
        )  # fmt: skip

    is_done = count == 1
    if not is_done:
        stride: tl.constexpr = NUM_KV_HEADS * QUERIES
        line = slot * stride + head * QUERIES + query
        tl.store(sums + line[:, None] * HEAD_DIM + column[None, :], weighted, mask=mask)
        tl.store(softmaxes + line * 2, largest)
        tl.store(softmaxes + line * 2 + 1, total)
        tl.debug_barrier()  # all threads have stored when one says so
        arrival = arrivals + token * NUM_KV_HEADS + head
        is_done = tl.atomic_add(arrival, 1, sem="acq_rel") == count - 1
        if is_done:
            tl.store(arrival, 0)
            first = first_slot * stride + head * QUERIES
            total, weighted = _merge(sums, softmaxes, first, count, stride, query, column, mask, HEAD_DIM)
    if is_done:
        first_out = out + token.to(tl.int64) * out_stride + (head * GROUP + query)[:, None] * HEAD_DIM
        tl.store(first_out + column[None, :], normalize(weighted, total).to(out.dtype.element_ty), mask=mask)
