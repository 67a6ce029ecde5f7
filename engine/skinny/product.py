"""One matrix product of a segment, ready to be launched."""

from dataclasses import dataclass

import torch

from engine.skinny.kernels.product import skinny_product
from engine.skinny.scratch import SkinnyScratch
from engine.skinny.tiling import ProductShape, Tiling


@dataclass(frozen=True, slots=True)
class Norm:
    """The RMSNorm that ends a row of the residual stream. weight: [hidden].
    residual_out: [N, hidden], or None if nobody reads it."""

    weight: torch.Tensor
    residual_out: torch.Tensor | None


class Product:
    """x W^T and what follows it, for N tokens. block_n: N rounded up (tiling.token_block).

    num_sums: parts that the sums of squares of a row come in, from the kernel before a scaled or swiglu
    product. eps: of its norm.
    """

    def __init__(
        self,
        shape: ProductShape,
        tiling: Tiling,
        block_n: int,
        scratch: SkinnyScratch,
        *,
        num_sums: int,
        eps: float,
        pdl: bool,
    ) -> None:
        self._shape = shape
        self._tiling = tiling
        self._block_n = block_n
        self._scratch = scratch
        self._num_sums = num_sums
        self._eps = eps
        self._pdl = pdl
        steps = -(-shape.num_columns // tiling.block_k)
        self._num_steps = -(-steps // tiling.num_splits)
        self._num_splits = -(-steps // self._num_steps)

    @property
    def num_tiles(self) -> int:
        return self._shape.num_tiles(self._tiling.block_m)

    @property
    def block_m(self) -> int:
        return self._tiling.block_m

    def scaled(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor
    ) -> None:
        """[N, num_columns] -> out [N, num_outputs]; kinds scaled and swiglu."""
        self._launch(x, weight, bias, out, None, None)

    def residual(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        residual: torch.Tensor,
        norm: Norm,
    ) -> None:
        """[N, num_columns], added to residual [N, num_outputs]; leaves the scratch's `scaled` and `sums`."""
        self._launch(x, weight, bias, self._scratch.scaled, residual, norm)

    def _launch(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        out: torch.Tensor,
        residual: torch.Tensor | None,
        norm: Norm | None,
    ) -> None:
        shape, tiling, scratch = self._shape, self._tiling, self._scratch
        skinny_product[(self.num_tiles, self._num_splits)](
            x,
            weight,
            bias,
            out,
            x.shape[0],
            shape.num_outputs,
            shape.num_columns,
            self._eps,
            scratch.sums,
            self._num_sums,
            residual,
            None if norm is None else norm.residual_out,
            None if norm is None else norm.weight,
            scratch.sums,
            scratch.partials,
            scratch.arrivals,
            KIND=shape.kind,
            NUM_SPLITS=self._num_splits,
            NUM_STEPS=self._num_steps,
            BLOCK_M=tiling.block_m,
            BLOCK_N=self._block_n,
            BLOCK_K=tiling.block_k,
            BLOCK_SUMS=1 << (self._num_sums - 1).bit_length(),
            EVEN_K=shape.num_columns == self._num_splits * self._num_steps * tiling.block_k,
            NUM_STAGES=tiling.num_stages,
            PDL=self._pdl,
            num_warps=4,
            launch_pdl=self._pdl,
        )
