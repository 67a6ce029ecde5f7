"""Attention of a chunk: consecutive tokens of one sequence, over its paged prefix and themselves."""

from dataclasses import dataclass

import torch
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class ChunkTokens:
    """Packed tokens [start, end), T of them, over S = last - first of the gathered tokens.

    blocks: int64 [num_kv_heads * b], indices into the pool seen as [num_blocks * num_kv_heads, ...]: the b
    blocks of the first head, then those of the next. first, last: what of these b blocks is seen. mask: [T,
    S], 0 or -inf; None where causality is all of it (then T = S).
    """

    start: int
    end: int
    blocks: torch.Tensor
    first: int
    last: int
    mask: torch.Tensor | None

    def attend(self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """See `lone.Piece`."""
        num_tokens, num_heads, head_dim = q.shape
        num_kv_heads = keys.shape[1]
        num_queries = num_heads // num_kv_heads
        out = functional.scaled_dot_product_attention(
            q.view(num_tokens, num_kv_heads, num_queries, head_dim).permute(1, 2, 0, 3),
            self._gather(keys, num_queries),
            self._gather(values, num_queries),
            attn_mask=self.mask,
            is_causal=self.mask is None,
        )  # [num_kv_heads, num_queries, T, head_dim]: key/value heads take the place of the batch
        return out.permute(2, 0, 1, 3).reshape(q.shape)

    def _gather(self, pool: torch.Tensor, num_queries: int) -> torch.Tensor:
        """[num_kv_heads, num_queries (the same memory), S, head_dim]."""
        num_blocks, num_kv_heads, _, head_dim = pool.shape
        gathered = pool.view(num_blocks * num_kv_heads, -1).index_select(0, self.blocks)
        seen = gathered.view(num_kv_heads, 1, -1, head_dim)[:, :, self.first : self.last]
        return seen.expand(-1, num_queries, -1, -1)
