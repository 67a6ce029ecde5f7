"""The vocabulary that architectures are written in. A backend gives the words their meaning.

torch_backend computes them on tensors at once; a TensorRT backend adds layers to a network, where a weight
is an input of the network rather than a constant. So an operation may look at shapes, never at values.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar

TensorT = TypeVar("TensorT")


class Ops(Protocol[TensorT]):
    """Shapes: N tokens, packed. A weight is [N_out, K], the checkpoint's own order."""

    def embedding(self, token_ids: TensorT, table: TensorT) -> TensorT:
        """[N] ids, [vocab, hidden] -> [N, hidden]."""
        ...

    def linear(self, x: TensorT, weight: TensorT, bias: TensorT | None) -> TensorT:
        """[N, K], [N_out, K], [N_out] -> [N, N_out]."""
        ...

    def add(self, a: TensorT, b: TensorT) -> TensorT:
        """Of equal shapes."""
        ...

    def rms_norm(self, x: TensorT, weight: TensorT, eps: float) -> TensorT:
        """Normalize each run of len(weight) columns by its root mean square (arXiv:1910.07467), times weight.

        [N, M * W], [W] -> [N, M * W]: with W columns in all, the usual norm; with a head's, one norm a head.
        """
        ...

    def swiglu(self, x: TensorT, gate_up: TensorT, bias: TensorT | None) -> TensorT:
        """silu(x @ gate.T) * (x @ up.T) (arXiv:2002.05202).

        [N, K], [2 * M, K] (M rows of gate, then M of up), [2 * M] -> [N, M]. One operation, because whether
        one multiplication or two is faster depends on the device and on N.
        """
        ...

    def split(self, x: TensorT, sizes: Sequence[int]) -> Sequence[TensorT]:
        """[N, sum(sizes)] -> one [N, size] for each size."""
        ...

    def concat(self, parts: Sequence[TensorT]) -> TensorT:
        """The inverse of split."""
        ...
