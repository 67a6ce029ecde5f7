"""Triton kernels that keep the rows of the batch up to date between steps."""

from engine.tensorrt_backend.kernels.state import FROM_STATE, scatter_words, take_tokens

__all__ = ["FROM_STATE", "scatter_words", "take_tokens"]
