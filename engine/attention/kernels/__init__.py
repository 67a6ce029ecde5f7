"""Paged attention in Triton, compiled for a GPU or interpreted on a CPU: one layer group's part of a step."""

from engine.attention.kernels.paged import PagedAttention, StepAttention
from engine.attention.kernels.tuning import TILE_TOKENS, Tuning

__all__ = ["TILE_TOKENS", "PagedAttention", "StepAttention", "Tuning"]
