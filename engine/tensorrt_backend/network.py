"""engine.model.ops.Ops as layers of a TensorRT network: the same definition of a decoder becomes a plan.

Only layers that every supported version has. Strongly typed: a layer's output has the dtype of its inputs,
and what is computed in float32 is cast there and back. Rounding follows torch's CUDA kernels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from engine.tensorrt_backend.library import Library

Tensor = Any
"""The library's ITensor."""


@dataclass(frozen=True, slots=True)
class Stacked:
    """A weight whose blocks of rows are inputs of their own, each bound by its own address."""

    parts: tuple[Tensor, ...]


class NetworkOps:
    """See `engine.model.ops.Ops`. A weight is an input of the network; gate_up may be Stacked.

    marks_addends: keep every product that is added to the residual stream as a tensor of its own (see
    `SegmentForm`); they are then in `addends`. Raises TensorRTError with the library's words.
    """

    def __init__(self, library: Library, network: Any, *, marks_addends: bool = False) -> None:
        self.addends: list[Tensor] = []
        self._marks_addends = marks_addends
        self._library = library
        self._trt = library.module
        self._network = network
        # The library reads constants when it builds, not when they are added: they must live until then.
        self._constants: list[np.ndarray[Any, Any]] = []

    def embedding(self, token_ids: Tensor, table: Tensor) -> Tensor:
        return self._output(self._network.add_gather(table, token_ids, 0), "embedding")

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if x.dtype == self._trt.float32 and not self._library.has_float32_products:
            product = self._exact_product(x, weight)
        else:
            operation = self._trt.MatrixOperation
            layer = self._network.add_matrix_multiply(x, operation.NONE, weight, operation.TRANSPOSE)
            product = self._output(layer, "linear")
        return product if bias is None else self._elementwise("SUM", product, self._row(bias, 2))

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        if self._marks_addends:
            self.addends.append(b)
        return self._elementwise("SUM", a, b)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        width, columns = weight.shape[0], x.shape[-1]
        if columns == width:
            return self._rms_norm(x, weight, eps)
        heads = self._reshape(x, (0, columns // width, width))
        return self._reshape(self._rms_norm(heads, weight, eps), (0, columns))

    def swiglu(self, x: Tensor, gate_up: Tensor | Stacked, bias: Tensor | Stacked | None) -> Tensor:
        if isinstance(gate_up, Stacked):
            biases = bias.parts if isinstance(bias, Stacked) else (None, None)
            gate, up = map(self.linear, (x, x), gate_up.parts, biases)
        else:
            width = gate_up.shape[0] // 2
            gate, up = self.split(self.linear(x, gate_up, bias), (width, width))
        return self._elementwise("PROD", self._silu(gate), up)

    def split(self, x: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
        offsets = [sum(sizes[:i]) for i in range(len(sizes))]
        return tuple(self._columns(x, *block) for block in zip(offsets, sizes, strict=True))

    def concat(self, parts: Sequence[Tensor]) -> Tensor:
        layer = self._network.add_concatenation(list(parts))
        output = self._output(layer, "concat")
        layer.axis = 1
        return output

    def _rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """torch's kernel: all in float32, rounded once, at the end."""
        rank, last = len(x.shape), 1 << (len(x.shape) - 1)
        wide = self._cast(x, torch.float32)
        reduction = self._trt.ReduceOperation.AVG
        square = self._elementwise("PROD", wide, wide)
        mean = self._output(self._network.add_reduce(square, reduction, last, True), "mean")
        mean = self._elementwise("SUM", mean, self._constant(np.full((1,) * rank, eps, np.float32)))
        root = self._output(self._network.add_unary(mean, self._trt.UnaryOperation.SQRT), "root")
        normed = self._elementwise("DIV", wide, root)
        scale = self._cast(self._row(weight, rank), torch.float32)
        return self._cast(self._elementwise("PROD", normed, scale), self._library.torch_dtype(x.dtype))

    def _exact_product(self, x: Tensor, weight: Tensor) -> Tensor:
        """x @ weight.T as one fused kernel of products and sums, without tensor cores: [N, 1, K] * [1, M, K].

        For models in float32, which are small or tests: from 3 times as slow (64 x 1024 x 1024) to 60 times
        (256 x 4096 x 4096).
        """
        rows, columns = weight.shape
        a, b = self._reshape(x, (0, 1, columns)), self._reshape(weight, (1, rows, columns))
        products = self._elementwise("PROD", a, b)
        layer = self._network.add_reduce(products, self._trt.ReduceOperation.SUM, 1 << 2, False)
        return self._output(layer, "linear")

    def _silu(self, x: Tensor) -> Tensor:
        """torch's kernel: in float32, rounded once."""
        wide = self._cast(x, torch.float32)
        layer = self._network.add_activation(wide, self._trt.ActivationType.SIGMOID)
        silu = self._elementwise("PROD", wide, self._output(layer, "sigmoid"))
        return self._cast(silu, self._library.torch_dtype(x.dtype))

    def _columns(self, x: Tensor, start: int, size: int) -> Tensor:
        """x[:, start : start + size]. The number of rows is unknown here, so the shape is computed: a slice
        takes it as a tensor, [N, columns] * [1, 0] + [0, size].
        """
        shape = self._output(self._network.add_shape(x), "shape")
        shape = self._elementwise("PROD", shape, self._constant(np.array([1, 0], np.int64)))
        shape = self._elementwise("SUM", shape, self._constant(np.array([0, size], np.int64)))
        layer = self._network.add_slice(x, (0, start), (1, size), (1, 1))
        self._library.check(layer, "adding a slice")
        layer.set_input(2, shape)
        return self._output(layer, "slice")

    def _row(self, vector: Tensor, rank: int) -> Tensor:
        """[W] -> [1, ..., W], for an elementwise layer does not add dimensions."""
        return self._reshape(vector, (1,) * (rank - 1) + (vector.shape[0],))

    def _reshape(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        """0 keeps a dimension."""
        layer = self._network.add_shuffle(x)
        self._library.check(layer, "adding a reshape")
        layer.reshape_dims = shape
        return self._output(layer, "reshape")

    def _cast(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        wanted = self._library.dtype(dtype)
        return x if x.dtype == wanted else self._output(self._network.add_cast(x, wanted), "cast")

    def _elementwise(self, operation: str, a: Tensor, b: Tensor) -> Tensor:
        kind = getattr(self._trt.ElementWiseOperation, operation)
        return self._output(self._network.add_elementwise(a, b, kind), operation)

    def _constant(self, values: np.ndarray[Any, Any]) -> Tensor:
        self._constants.append(values)
        return self._output(self._network.add_constant(values.shape, self._trt.Weights(values)), "constant")

    def _output(self, layer: Any, what: str) -> Tensor:
        return self._library.check(layer, f"adding {what} to the network").get_output(0)
