"""Row by row: the residual add and the norm after it, and SwiGLU of a product that has both halves."""

import torch
import triton
import triton.language as tl

_SWIGLU_BLOCK = 1024  # columns of a program


@triton.jit
def _norm_row(y, norm_weight, out, row, i, is_column, width, eps):
    y = y * tl.rsqrt(tl.sum(y * y, axis=0) / width + eps)
    y *= tl.load(norm_weight + i, mask=is_column, other=0.0).to(tl.float32)
    tl.store(out + row * width + i, y.to(out.dtype.element_ty), mask=is_column)


@triton.jit
def _norm(x, norm_weight, out, width, eps, BLOCK: tl.constexpr):
    row, i = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    y = tl.load(x + row * width + i, mask=i < width, other=0.0).to(tl.float32)
    _norm_row(y, norm_weight, out, row, i, i < width, width, eps)


@triton.jit
def _add_norm(x, residual, norm_weight, residual_out, out, width, eps, BLOCK: tl.constexpr):
    row, i = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    at, is_column = row * width + i, i < width
    y = tl.load(x + at, mask=is_column, other=0.0).to(tl.float32)
    y += tl.load(residual + at, mask=is_column, other=0.0).to(tl.float32)
    # The stream is what it is after rounding, for the norm too.
    y = y.to(residual_out.dtype.element_ty)
    tl.store(residual_out + at, y, mask=is_column)
    _norm_row(y.to(tl.float32), norm_weight, out, row, i, is_column, width, eps)


@triton.jit
def _swiglu(gate_up, out, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    at = gate_up + row * 2 * width + i
    gate = tl.load(at, mask=i < width, other=0.0).to(tl.float32)
    up = tl.load(at + width, mask=i < width, other=0.0).to(tl.float32)
    y = gate / (1 + tl.exp(-gate)) * up
    tl.store(out + row * width + i, y.to(out.dtype.element_ty), mask=i < width)


def norm(x: torch.Tensor, norm_weight: torch.Tensor, eps: float, out: torch.Tensor) -> None:
    """RMSNorm of the rows of x [n, width], in float32 whatever the dtype."""
    num_rows, width = x.shape
    _norm[(num_rows,)](x, norm_weight, out, width, eps, BLOCK=triton.next_power_of_2(width))


def add_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    norm_weight: torch.Tensor,
    eps: float,
    residual_out: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """residual_out = x + residual, out = its RMSNorm: all [n, width]. residual_out may be residual itself."""
    num_rows, width = x.shape
    block = triton.next_power_of_2(width)
    _add_norm[(num_rows,)](x, residual, norm_weight, residual_out, out, width, eps, BLOCK=block)


def swiglu(gate_up: torch.Tensor, out: torch.Tensor) -> None:
    """silu(gate) * up: [n, 2 * width], gate first -> [n, width]."""
    num_rows, width = out.shape
    grid = (num_rows, triton.cdiv(width, _SWIGLU_BLOCK))
    _swiglu[grid](gate_up, out, width, BLOCK=_SWIGLU_BLOCK)
