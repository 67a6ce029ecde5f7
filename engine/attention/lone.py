"""Attention of packed tokens that each have a context of their own (decode), in two forms.

GatheredTokens copies each context out of the pool and calls scaled_dot_product_attention: any device and
dtype. SampledTokens reads the pool in place, through a sparse matrix whose pattern is the block table:
sampled_addmm computes just the matrix's entries, which are the scores, and embedding_bag sums the values
they weigh. It is for float32 on a CPU, where it takes about half the time at 64 sequences.
"""

import warnings
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Contexts:
    """What n tokens see, padded to S lines of a pool seen as rows of head_dim columns.

    start, end: the packed tokens. lines: int32 [n, heads, S]; padding repeats the token's own line, so that
    what another sequence left in the pool is never read. mask: [n, 1, S], 0 or -inf. num_lines: those of
    the pool.
    """

    start: int
    end: int
    lines: torch.Tensor
    mask: torch.Tensor
    num_lines: int


class Piece(Protocol):
    """Packed tokens [start, end) and how they attend."""

    @property
    def start(self) -> int: ...

    @property
    def end(self) -> int: ...

    def attend(self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """q: [n, num_heads, head_dim]; keys, values: the pool's [num_blocks, num_kv_heads, block_size,
        head_dim]. Returns [n, num_heads, head_dim]."""
        ...


class GatheredTokens:
    """Lines are listed for each key/value head: its query heads attend together, as one longer query."""

    def __init__(self, contexts: Contexts) -> None:
        self.start, self.end = contexts.start, contexts.end
        self._shape = contexts.lines.shape
        self._lines = contexts.lines.view(-1)
        self._mask = contexts.mask[:, None]

    def attend(self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        n, num_kv_heads, width = self._shape
        head_dim = q.shape[-1]
        k = keys.view(-1, head_dim).index_select(0, self._lines).view(n, num_kv_heads, width, head_dim)
        v = values.view(-1, head_dim).index_select(0, self._lines).view(n, num_kv_heads, width, head_dim)
        grouped = q.reshape(n, num_kv_heads, -1, head_dim)
        return functional.scaled_dot_product_attention(grouped, k, v, attn_mask=self._mask).reshape(q.shape)


class SampledTokens:
    """Lines are listed for each query head."""

    def __init__(self, contexts: Contexts) -> None:
        self.start, self.end = contexts.start, contexts.end
        n, num_heads, width = contexts.lines.shape
        self._lines = contexts.lines.view(-1)
        self._mask = contexts.mask
        bounds = torch.arange(n * num_heads + 1, dtype=torch.int32) * width
        self._bags = bounds[:-1]
        # Zeros, because sampled_addmm multiplies what was there by beta = 0, and NaN would survive that.
        scores = torch.zeros(contexts.lines.shape)
        self._scores = torch.sparse_csr_tensor(
            bounds,
            self._lines,
            scores.view(-1),
            size=(n * num_heads, contexts.num_lines),
            check_invariants=False,
        )

    def attend(self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        n, num_heads, head_dim = q.shape
        queries = q.reshape(-1, head_dim)
        torch.sparse.sampled_addmm(
            self._scores,
            queries,
            keys.view(-1, head_dim).t(),
            beta=0.0,
            alpha=head_dim**-0.5,
            out=self._scores,
        )
        scores = self._scores.values().view(n, num_heads, -1) + self._mask
        weights = scores.softmax(-1).view(-1)
        out = functional.embedding_bag(
            self._lines, values.view(-1, head_dim), self._bags, mode="sum", per_sample_weights=weights
        )
        return out.view(q.shape)


def can_sample(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether SampledTokens works here: torch has sampled_addmm on a CPU only where it was built with MKL."""
    if device.type != "cpu" or dtype != torch.float32:
        return False
    lines, one = torch.zeros((1, 1, 1), dtype=torch.int32), torch.ones((1, 1, 1, 1))
    with warnings.catch_warnings():  # torch says once a process that sparse CSR tensors are in beta
        warnings.simplefilter("ignore", UserWarning)
        try:
            contexts = Contexts(0, 1, lines, torch.zeros((1, 1, 1)), num_lines=1)
            SampledTokens(contexts).attend(one.view(1, 1, 1), one, one)
        except RuntimeError:
            return False
    return True
