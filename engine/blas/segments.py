"""The segments of a decoder (engine.model.decoder) by matrix products of torch, cuBLAS on an NVIDIA GPU.

torch alone runs a kernel for each add, norm and product of SwiGLU, and rounds in between. Here one kernel
follows each matrix product, and nothing is allocated.
"""

import torch

from engine.blas.kernels import add_norm, norm, swiglu
from engine.model.config import ModelConfig
from engine.model.weights import LayerWeights, ModelWeights
from engine.skinny.kernels.rows import norm_heads


class BlasScratch:
    """Memory between the kernels of a segment: one for all buckets of a stream, sized for the largest.

    normed, projected, residual: [N, hidden]. gate_up: [N, 2 * intermediate]. activated: [N, intermediate].
    """

    def __init__(
        self, config: ModelConfig, max_num_tokens: int, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        def empty(num_columns: int) -> torch.Tensor:
            return torch.empty((max_num_tokens, num_columns), device=device, dtype=dtype)

        self.normed, self.projected, self.residual = (empty(config.hidden_size) for _ in range(3))
        self.gate_up = empty(2 * config.intermediate_size)
        self.activated = empty(config.intermediate_size)


class BlasSegments:
    """`engine.tensorrt_backend.forms.Segments` for as many tokens as the scratch memory has room for."""

    def __init__(
        self, config: ModelConfig, weights: ModelWeights[torch.Tensor], scratch: BlasScratch
    ) -> None:
        self._config = config
        self._weights = weights
        self._scratch = scratch

    def first(self, token_ids: torch.Tensor, residual_out: torch.Tensor, qkv_out: torch.Tensor) -> None:
        layer, normed = self._weights.layers[0], self._scratch.normed[: len(token_ids)]
        torch.index_select(self._weights.embedding, 0, token_ids, out=residual_out)
        norm(residual_out, layer.input_norm, self._config.rms_norm_eps, normed)
        self._before_attention(layer, normed, qkv_out)

    def middle(
        self,
        layer: int,
        attended: torch.Tensor,
        residual: torch.Tensor,
        residual_out: torch.Tensor,
        qkv_out: torch.Tensor,
    ) -> None:
        layers = self._weights.layers
        next_norm = layers[layer].input_norm
        normed = self._after_attention(layers[layer - 1], attended, residual, next_norm, residual_out)
        self._before_attention(layers[layer], normed, qkv_out)

    def last(self, attended: torch.Tensor, residual: torch.Tensor, logits_out: torch.Tensor) -> None:
        weights = self._weights
        residual_out = self._scratch.residual[: len(attended)]  # which nobody reads
        normed = self._after_attention(
            weights.layers[-1], attended, residual, weights.final_norm, residual_out
        )
        _multiply(normed, weights.head, None, logits_out)

    def _after_attention(
        self,
        layer: LayerWeights[torch.Tensor],
        attended: torch.Tensor,
        residual: torch.Tensor,
        next_norm: torch.Tensor,
        residual_out: torch.Tensor,
    ) -> torch.Tensor:
        """The residual stream after the layer, and its norm, which is returned."""
        scratch, n, eps = self._scratch, len(attended), self._config.rms_norm_eps
        normed, projected, between = scratch.normed[:n], scratch.projected[:n], scratch.residual[:n]
        _multiply(attended, layer.o, layer.o_bias, projected)
        add_norm(projected, residual, layer.post_attention_norm, eps, between, normed)
        _multiply(normed, layer.gate_up, layer.gate_up_bias, scratch.gate_up[:n])
        swiglu(scratch.gate_up[:n], scratch.activated[:n])
        _multiply(scratch.activated[:n], layer.down, layer.down_bias, projected)
        add_norm(projected, between, next_norm, eps, residual_out, normed)
        return normed

    def _before_attention(
        self, layer: LayerWeights[torch.Tensor], normed: torch.Tensor, qkv_out: torch.Tensor
    ) -> None:
        _multiply(normed, layer.qkv, layer.qkv_bias, qkv_out)
        norm_heads(qkv_out, layer, self._config)


def _multiply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor) -> None:
    """[N, K], [N_out, K], [N_out] -> [N, N_out]."""
    if bias is None:
        torch.mm(x, weight.t(), out=out)
    else:
        torch.addmm(bias, x, weight.t(), out=out)
