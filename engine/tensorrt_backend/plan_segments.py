"""The Segments protocol (forms.py) by plans: every call binds addresses and enqueues one context."""

from collections.abc import Sequence

import torch

from engine.model.weights import ModelWeights
from engine.tensorrt_backend.contexts import Binding, SegmentContext
from engine.tensorrt_backend.segments import bind_weights


class PlanSegments:
    """See `engine.tensorrt_backend.forms.Segments`.

    Contexts of N tokens (last: of n rows) of any form, with their memory set. middle: None for a model of
    one layer. last: None for a bucket that never samples in all of its rows. scratch: a tensor of at least
    [N, hidden] for each of the marked outputs (`SegmentSpec.scratch`), shared by all segments; none are
    needed where no form is marked.
    """

    def __init__(
        self,
        weights: ModelWeights[torch.Tensor],
        first: SegmentContext,
        middle: SegmentContext | None,
        last: SegmentContext | None,
        scratch: Sequence[torch.Tensor] = (),
    ) -> None:
        self._first, self._middle, self._last = first, middle, last
        self._kept: list[torch.Tensor] = list(scratch)  # an address keeps nothing alive
        num_layers = len(weights.layers)
        self._first_bindings = self._bind(first, weights, 0, scratch)
        self._last_bindings: tuple[Binding, ...] = ()
        if last is not None:
            self._last_bindings = self._bind(last, weights, num_layers, scratch)
        self._middle_bindings: list[tuple[Binding, ...]] = [()]  # the first layer has none
        if middle is not None:
            self._middle_bindings += [self._bind(middle, weights, i, scratch) for i in range(1, num_layers)]

    def first(self, token_ids: torch.Tensor, residual_out: torch.Tensor, qkv_out: torch.Tensor) -> None:
        bindings = (
            ("token_ids", token_ids.data_ptr()),
            ("residual_out", residual_out.data_ptr()),
            ("qkv_out", qkv_out.data_ptr()),
        )
        self._first.enqueue(self._first_bindings + bindings, _stream())

    def middle(
        self,
        layer: int,
        attended: torch.Tensor,
        residual: torch.Tensor,
        residual_out: torch.Tensor,
        qkv_out: torch.Tensor,
    ) -> None:
        assert self._middle is not None, "a model of one layer has no middle segment"
        bindings = (
            ("attended", attended.data_ptr()),
            ("residual", residual.data_ptr()),
            ("residual_out", residual_out.data_ptr()),
            ("qkv_out", qkv_out.data_ptr()),
        )
        self._middle.enqueue(self._middle_bindings[layer] + bindings, _stream())

    def last(self, attended: torch.Tensor, residual: torch.Tensor, logits_out: torch.Tensor) -> None:
        assert self._last is not None, "this bucket has no last segment"
        bindings = (
            ("attended", attended.data_ptr()),
            ("residual", residual.data_ptr()),
            ("logits", logits_out.data_ptr()),
        )
        self._last.enqueue(self._last_bindings + bindings, _stream())

    def _bind(
        self,
        context: SegmentContext,
        weights: ModelWeights[torch.Tensor],
        layer: int,
        scratch: Sequence[torch.Tensor],
    ) -> tuple[Binding, ...]:
        """The addresses that a call does not choose."""
        tensors = bind_weights(context.segment, weights, layer)
        self._kept += [tensor for _, tensor in tensors]
        names = [output.name for output in context.segment.scratch]
        unread = zip(names, scratch[: len(names)], strict=True)
        return tuple((name, tensor.data_ptr()) for name, tensor in (*tensors, *unread))


def _stream() -> int:
    return int(torch.cuda.current_stream().cuda_stream)
