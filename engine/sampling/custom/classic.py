"""Processors and criteria of the classic kind: one object an output, called for it alone."""

import torch
from torch import Tensor

from engine.sampling.custom.context import RowTokens


class ClassicCall:
    """A callable of one output, called once for each token sampled: so the host can count by itself, and
    need not wait for the device.
    """

    def __init__(self, callee: object, row: int, tokens: RowTokens) -> None:
        if not callable(callee):
            raise TypeError(f"the factory must make something callable, not {_type(callee)}")
        self._callee = callee
        self._row = row
        self._num_prompt_tokens = tokens.num_prompt_tokens
        self._step = len(tokens.generated)

    def process(self, scores: Tensor, history: Tensor) -> None:
        """scores: float32 [1, vocab_size], changed in place. history: int32 [rows, max_model_len].

        Raises what the callable raises, TypeError and ValueError for what it returns instead of scores.
        """
        result = self._call(self._step, scores, history)
        if not isinstance(result, Tensor):
            raise TypeError(f"must return the scores, not {_type(result)}")
        if (result.shape, result.dtype, result.device) != (scores.shape, scores.dtype, scores.device):
            raise ValueError(f"must return scores like those it got, {_shown(scores)}; not {_shown(result)}")
        if not scores.is_cuda and not result.max().isfinite():  # on CUDA the sampler's verdict says it
            raise ValueError("returned NaN or +inf, or nothing above -inf")
        if result is not scores:
            scores.copy_(result)

    def check(self, scores: Tensor, history: Tensor) -> bool | Tensor:
        """history: with the newest token. A bool, or a bool tensor without dimensions. Raises likewise."""
        verdict = self._call(self._step + 1, scores, history)
        if isinstance(verdict, Tensor) and verdict.dtype == torch.bool and verdict.numel() == 1:
            return verdict.reshape(())
        if isinstance(verdict, bool):
            return verdict
        raise TypeError(f"must return a bool, or a bool tensor of one element, not {_type(verdict)}")

    def _call(self, num_generated: int, scores: Tensor, history: Tensor) -> object:
        input_ids = history[self._row, : self._num_prompt_tokens + num_generated].long().unsqueeze(0)
        result: object = self._callee(self._step, input_ids, scores)
        self._step += 1
        return result


def _type(value: object) -> str:
    return type(value).__name__


def _shown(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
