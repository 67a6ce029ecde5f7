"""The segments of a decoder (engine.model.decoder) for few tokens, in own kernels."""

import torch

from engine.model.config import ModelConfig
from engine.model.weights import LayerWeights, ModelWeights
from engine.skinny.kernels.rows import embed, norm_heads
from engine.skinny.product import Norm, Product
from engine.skinny.scratch import SkinnyScratch, product_shapes
from engine.skinny.tiling import ProductShape, token_block


class SkinnySegments:
    """`engine.tensorrt_backend.forms.Segments` for num_tokens tokens, 1 to MAX_NUM_TOKENS.

    A middle segment is four kernels (five with query and key norms), each of which ends with what the next
    one needs. The first call of each kernel compiles it; calls enqueue on torch's current stream only.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: ModelWeights[torch.Tensor],
        num_tokens: int,
        scratch: SkinnyScratch,
    ) -> None:
        self._config = config
        self._weights = weights
        self._num_tokens = num_tokens
        self._block_n = token_block(num_tokens)
        self._scratch = scratch
        self._pdl = scratch.limits.has_pdl
        o, gate_up, down, qkv, head = product_shapes(config)
        self._o = self._product(o, num_sums=1)
        self._gate_up = self._product(gate_up, num_sums=self._o.num_tiles)
        self._down = self._product(down, num_sums=1)
        self._qkv = self._product(qkv, num_sums=self._down.num_tiles)
        self._head = self._product(head, num_sums=self._down.num_tiles)

    def first(self, token_ids: torch.Tensor, residual_out: torch.Tensor, qkv_out: torch.Tensor) -> None:
        config, scratch, layer = self._config, self._scratch, self._weights.layers[0]
        assert token_ids.shape[0] == self._num_tokens
        embed[(self._down.num_tiles,)](
            token_ids,
            self._weights.embedding,
            layer.input_norm,
            residual_out,
            scratch.scaled,
            scratch.sums,
            self._num_tokens,
            config.hidden_size,
            BLOCK_M=self._down.block_m,
            BLOCK_N=self._block_n,
            PDL=self._pdl,
            launch_pdl=self._pdl,
        )
        self._before_attention(layer, qkv_out)

    def middle(
        self,
        layer: int,
        attended: torch.Tensor,
        residual: torch.Tensor,
        residual_out: torch.Tensor,
        qkv_out: torch.Tensor,
    ) -> None:
        layers = self._weights.layers
        next_norm = Norm(layers[layer].input_norm, residual_out)
        self._after_attention(layers[layer - 1], attended, residual, next_norm)
        self._before_attention(layers[layer], qkv_out)

    def last(self, attended: torch.Tensor, residual: torch.Tensor, logits_out: torch.Tensor) -> None:
        weights = self._weights
        final_norm = Norm(weights.final_norm, residual_out=None)
        self._after_attention(weights.layers[-1], attended, residual, final_norm)
        self._head.scaled(self._scaled(), weights.head, None, logits_out)

    def _product(self, shape: ProductShape, *, num_sums: int) -> Product:
        return Product(
            shape,
            self._scratch.tiling(shape, self._block_n),
            self._block_n,
            self._scratch,
            num_sums=num_sums,
            eps=self._config.rms_norm_eps,
            pdl=self._pdl,
        )

    def _scaled(self) -> torch.Tensor:
        return self._scratch.scaled[: self._num_tokens]

    def _after_attention(
        self,
        layer: LayerWeights[torch.Tensor],
        attended: torch.Tensor,
        residual: torch.Tensor,
        next_norm: Norm,
    ) -> None:
        assert attended.shape[0] == self._num_tokens
        scratch = self._scratch
        activated = scratch.activated[: self._num_tokens]
        self._o.residual(
            attended, layer.o, layer.o_bias, residual, Norm(layer.post_attention_norm, scratch.residual)
        )
        self._gate_up.scaled(self._scaled(), layer.gate_up, layer.gate_up_bias, activated)
        self._down.residual(activated, layer.down, layer.down_bias, scratch.residual, next_norm)

    def _before_attention(self, layer: LayerWeights[torch.Tensor], qkv_out: torch.Tensor) -> None:
        self._qkv.scaled(self._scaled(), layer.qkv, layer.qkv_bias, qkv_out)
        norm_heads(qkv_out, layer, self._config, pdl=self._pdl)
