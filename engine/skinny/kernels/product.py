"""x W^T for few tokens, at the speed at which W can be read.

Each program multiplies BLOCK_M rows of W with all tokens, over a part of the columns (split-K). W is the wide
operand: its tile has the 64 rows that Hopper's matrix unit (wgmma) takes at least, and the tokens, few, are
the narrow one. Partial sums meet in the program that arrives last at its tile, which adds them in a fixed
order: the result never depends on who that is.

With PDL (programmatic dependent launch) a kernel is brought to the multiprocessors while the one in front is
ending, and waits there. Letting it start any earlier, or fetch weights into the L2 meanwhile, costs more
than it brings: its programs then share multiprocessors unevenly.
"""

import triton
import triton.language as tl

from engine.skinny.kernels.finish import add_bias, end_row, silu, store_tile, token_scales


@triton.jit
def weight_rows(tile, num_outputs, PAIRED: tl.constexpr, BLOCK_M: tl.constexpr):
    """The rows of W of a tile. PAIRED: the first half from gate, the others the same rows of up."""
    i = tl.arange(0, BLOCK_M)
    if PAIRED:
        HALF: tl.constexpr = BLOCK_M // 2
        row = tl.minimum(tile * HALF + i % HALF, num_outputs - 1)
        return row + (i // HALF) * num_outputs
    return tl.minimum(tile * BLOCK_M + i, num_outputs - 1)


@triton.jit
def multiply(
    x, weight, rows, num_tokens, num_columns, start,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
    NUM_STEPS: tl.constexpr, NUM_STAGES: tl.constexpr,
):  # fmt: skip
    """[BLOCK_M, BLOCK_N] of W x^T over NUM_STEPS * BLOCK_K columns; 0 for tokens beyond the last."""
    k = start + tl.arange(0, BLOCK_K)
    n = tl.arange(0, BLOCK_N)
    w_at = weight + rows[:, None].to(tl.int64) * num_columns + k[None, :]
    x_at = x + n[None, :] * num_columns + k[:, None]
    is_token = (n < num_tokens)[None, :]
    y = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for _ in tl.range(0, NUM_STEPS, num_stages=NUM_STAGES):
        if EVEN_K:
            w = tl.load(w_at)
            xt = tl.load(x_at, mask=is_token, other=0.0)
        else:
            w = tl.load(w_at, mask=k[None, :] < num_columns, other=0.0)
            xt = tl.load(x_at, mask=is_token & (k[:, None] < num_columns), other=0.0)
            k += BLOCK_K
        y = tl.dot(w, xt, y, input_precision="ieee")
        w_at += BLOCK_K
        x_at += BLOCK_K
    return y


@triton.jit
def finish(
    y, squares, bias, out, residual_out, norm_weight, sums_out, tile, num_tokens, num_outputs, num_columns,
    eps, KIND: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Of skinny_product, from a whole tile of products (and the residual stream) on."""
    if KIND == "residual":
        if bias is not None:
            y = add_bias(y, bias, tile, num_outputs, BLOCK_M)
        end_row(y, residual_out, norm_weight, out, sums_out, tile, num_tokens, num_outputs, BLOCK_M, BLOCK_N)
    else:
        y *= token_scales(squares, num_columns, eps)[None, :]
        if KIND == "swiglu":
            HALF: tl.constexpr = BLOCK_M // 2
            gate, up = tl.split(tl.permute(tl.reshape(y, (2, HALF, BLOCK_N)), (1, 2, 0)))
            if bias is not None:
                gate = add_bias(gate, bias, tile, num_outputs, HALF)
                up = add_bias(up, bias + num_outputs, tile, num_outputs, HALF)
            store_tile(silu(gate) * up, out, tile, num_tokens, num_outputs, HALF, BLOCK_N)
        else:
            if bias is not None:
                y = add_bias(y, bias, tile, num_outputs, BLOCK_M)
            store_tile(y, out, tile, num_tokens, num_outputs, BLOCK_M, BLOCK_N)


@triton.jit(do_not_specialize=["num_tokens", "num_sums"])
def skinny_product(
    x, weight, bias, out, num_tokens, num_outputs, num_columns, eps,
    sums, num_sums, residual, residual_out, norm_weight, sums_out, partials, arrivals,
    KIND: tl.constexpr, NUM_SPLITS: tl.constexpr, NUM_STEPS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_SUMS: tl.constexpr,
    EVEN_K: tl.constexpr, NUM_STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid: (tiles, NUM_SPLITS). KIND, with y = x W^T + bias, W [num_outputs, num_columns]:

    residual: residual_out = residual + y; out = residual_out * norm_weight; sums_out: see finish.py.
    scaled: out = y, with x divided by the root mean square that `sums` give.
    swiglu: the same with W [2 * num_outputs, num_columns], the rows of gate, then those of up:
        out = silu(gate) * up.

    x [num_tokens, num_columns]; out and the residuals [num_tokens, num_outputs]. partials: float32
    [tiles, NUM_SPLITS, BLOCK_M, BLOCK_N]. arrivals: int32 [tiles], 0 before and after.
    """
    tile = tl.program_id(0)
    split = tl.program_id(1)
    if PDL:
        tl.extra.cuda.gdc_wait()
    n = tl.arange(0, BLOCK_N)
    squares = None
    if KIND != "residual":  # read now, to arrive while W is read
        of_tile = tl.arange(0, BLOCK_SUMS)[:, None]
        squares = tl.load(sums + of_tile * BLOCK_N + n[None, :], mask=of_tile < num_sums, other=0.0)
    rows = weight_rows(tile, num_outputs, KIND == "swiglu", BLOCK_M)
    y = multiply(
        x, weight, rows, num_tokens, num_columns, split * NUM_STEPS * BLOCK_K,
        BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K, NUM_STEPS, NUM_STAGES,
    )  # fmt: skip
    m = tl.arange(0, BLOCK_M)
    is_last = True
    if NUM_SPLITS > 1:
        tile_partials = partials + tile * NUM_SPLITS * BLOCK_M * BLOCK_N + m[:, None] * BLOCK_N + n[None, :]
        tl.store(tile_partials + split * BLOCK_M * BLOCK_N, y)
        tl.debug_barrier()  # all threads have stored before one of them counts the program as arrived
        is_last = tl.atomic_add(arrivals + tile, 1, sem="acq_rel", scope="gpu") == NUM_SPLITS - 1
    if is_last:
        if NUM_SPLITS > 1:
            tl.store(arrivals + tile, 0)
            y = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        if KIND == "residual":
            offsets = n[None, :] * num_outputs + tile * BLOCK_M + m[:, None]
            mask = (tile * BLOCK_M + m < num_outputs)[:, None] & (n < num_tokens)[None, :]
            y += tl.load(residual + offsets, mask=mask, other=0.0).to(tl.float32)
        if NUM_SPLITS > 1:
            for i in tl.static_range(NUM_SPLITS):
                y += tl.load(tile_partials + i * BLOCK_M * BLOCK_N, cache_modifier=".cg")
        finish(
            y, squares, bias, out, residual_out, norm_weight, sums_out, tile, num_tokens, num_outputs,
            num_columns, eps, KIND, BLOCK_M, BLOCK_N,
        )  # fmt: skip
