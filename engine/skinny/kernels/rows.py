"""What the small-batch form computes beside matrix products."""

import torch
import triton
import triton.language as tl

from engine.model.config import ModelConfig
from engine.model.weights import LayerWeights
from engine.skinny.kernels.finish import end_row


@triton.jit(do_not_specialize=["num_tokens"])
def embed(
    token_ids, table, norm_weight, residual_out, scaled_out, sums_out, num_tokens, width,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid: (tiles of BLOCK_M columns,). The rows of the table [vocab, width] of num_tokens ids, as a
    residual stream that ends there (finish.end_row)."""
    tile = tl.program_id(0)
    if PDL:
        tl.extra.cuda.gdc_wait()
    n = tl.arange(0, BLOCK_N)
    m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    ids = tl.load(token_ids + n, mask=n < num_tokens, other=0)
    y = tl.load(table + ids[None, :].to(tl.int64) * width + m[:, None], mask=(m < width)[:, None], other=0.0)
    y = y.to(tl.float32)
    end_row(y, residual_out, norm_weight, scaled_out, sums_out, tile, num_tokens, width, BLOCK_M, BLOCK_N)


@triton.jit
def _norm_heads(
    qkv, q_norm, k_norm, num_heads, num_columns, eps,
    HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid: (tokens, query and key heads). RMSNorm of each head of qkv [tokens, num_columns], in place."""
    head = tl.program_id(1)
    i = tl.arange(0, BLOCK)
    norm = q_norm
    if head >= num_heads:
        norm = k_norm
    weight = tl.load(norm + i, mask=i < HEAD_DIM, other=0.0)
    if PDL:
        tl.extra.cuda.gdc_wait()
    at = qkv + tl.program_id(0) * num_columns + head * HEAD_DIM + i
    x = tl.load(at, mask=i < HEAD_DIM, other=0.0).to(tl.float32)
    x *= tl.rsqrt(tl.sum(x * x, axis=0) / HEAD_DIM + eps)
    tl.store(at, (x * weight.to(tl.float32)).to(qkv.dtype.element_ty), mask=i < HEAD_DIM)


def norm_heads(
    qkv: torch.Tensor, layer: LayerWeights[torch.Tensor], config: ModelConfig, *, pdl: bool = False
) -> None:
    """Norms of query and key heads of qkv [N, qkv_size], in place, where the model has them.

    pdl: the kernel may start before the one in front of it has ended (and waits for it).
    """
    if layer.q_norm is None or layer.k_norm is None:
        return
    _norm_heads[(len(qkv), config.num_heads + config.num_kv_heads)](
        qkv,
        layer.q_norm,
        layer.k_norm,
        config.num_heads,
        config.qkv_size,
        config.rms_norm_eps,
        HEAD_DIM=config.head_dim,
        BLOCK=triton.next_power_of_2(config.head_dim),
        PDL=pdl,
        num_warps=1,
        launch_pdl=pdl,
    )
