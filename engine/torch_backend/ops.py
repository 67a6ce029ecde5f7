"""engine.model.ops.Ops on torch tensors."""

from collections.abc import Sequence

import torch
from torch.nn import functional


class TorchOps:
    """See `engine.model.ops.Ops`. Norms are computed in float32, whatever the dtype."""

    def embedding(self, token_ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        return functional.embedding(token_ids, table)

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return functional.linear(x, weight, bias)

    def add(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a + b

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        width = weight.shape[0]
        runs = x if x.shape[-1] == width else x.view(x.shape[0], -1, width)
        if x.is_cuda or x.dtype != torch.float32:
            return functional.rms_norm(runs, (width,), weight, eps).view(x.shape)
        # torch has no kernel for it on a CPU: its own composition of others takes half as long again.
        mean_square = runs.square().mean(-1, keepdim=True)
        return (runs * mean_square.add_(eps).rsqrt_()).mul_(weight).view(x.shape)

    def swiglu(self, x: torch.Tensor, gate_up: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if x.is_cuda:
            gate, up = functional.linear(x, gate_up, bias).chunk(2, dim=-1)
        else:  # contiguous halves are faster to go on with
            biases = (None, None) if bias is None else bias.chunk(2)
            gate, up = map(functional.linear, (x, x), gate_up.chunk(2), biases)
        return functional.silu(gate, inplace=True).mul_(up)

    def split(self, x: torch.Tensor, sizes: Sequence[int]) -> tuple[torch.Tensor, ...]:
        return torch.split_with_sizes(x, list(sizes), dim=-1)

    def concat(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat(list(parts), dim=-1)
