"""What becomes of a finished tile of products: the ends of `engine.skinny.kernels.product`.

A tile holds BLOCK_M outputs (columns of `out`) of BLOCK_N tokens, float32, transposed: [BLOCK_M, BLOCK_N].
RMSNorm is split in two: the kernel that ends the residual stream's row multiplies by the norm's weight and
leaves the sums of squares, one a tile; the next kernel divides its products by the root of their mean.
"""

import triton
import triton.language as tl


@triton.jit
def token_scales(squares, width, eps):
    """Sums of squares of parts of `width` columns [parts, tokens] -> 1 / root mean square, [tokens]."""
    return tl.rsqrt(tl.sum(squares, axis=0) / width + eps)


@triton.jit
def end_row(
    y, residual_out, norm_weight, scaled_out, sums_out, tile, num_tokens, num_outputs,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write a tile of the residual stream, and for the norm after it y * norm_weight and the sums."""
    m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    mask = (m < num_outputs)[:, None] & (n < num_tokens)[None, :]
    offsets = n[None, :] * num_outputs + m[:, None]
    rounded = y.to(scaled_out.dtype.element_ty)
    if residual_out is not None:
        tl.store(residual_out + offsets, rounded, mask=mask)
    y = tl.where(mask, rounded.to(tl.float32), 0.0)
    tl.store(sums_out + tile * BLOCK_N + n, tl.sum(y * y, axis=0))
    weight = tl.load(norm_weight + m, mask=m < num_outputs, other=0.0).to(tl.float32)
    tl.store(scaled_out + offsets, (y * weight[:, None]).to(scaled_out.dtype.element_ty), mask=mask)


@triton.jit
def store_tile(y, out, tile, num_tokens, num_outputs, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    mask = (m < num_outputs)[:, None] & (n < num_tokens)[None, :]
    offsets = n[None, :] * num_outputs + m[:, None]
    tl.store(out + offsets, y.to(out.dtype.element_ty), mask=mask)


@triton.jit
def add_bias(y, bias, tile, num_outputs, BLOCK_M: tl.constexpr):
    m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    return y + tl.load(bias + m, mask=m < num_outputs, other=0.0).to(tl.float32)[:, None]


@triton.jit
def silu(x):
    e = tl.exp(-tl.abs(x))  # of nothing above 0: the interpreter's overflows would be warnings
    return x * tl.where(x >= 0, 1.0, e) / (1.0 + e)
