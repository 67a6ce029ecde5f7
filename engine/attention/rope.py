"""Rotary position embedding (arXiv:2104.09864), computed in float32 whatever the model's dtype.

The first half of a head's columns is paired with the second half, the layout of transformers' Llama.
"""

import math
from typing import NamedTuple

import torch

from engine.model.config import LinearScaling, Llama3Scaling, RopeConfig


class Rotation(NamedTuple):
    """cos and sin of N positions, float32 [N, 1, head_dim]; the first half of sin is negated."""

    cos: torch.Tensor
    sin: torch.Tensor


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> torch.Tensor:
    """Radians a position for each pair of columns, float32 [head_dim / 2], with the model's scaling
    applied.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    frequencies = 1.0 / rope.theta**exponents
    match rope.scaling:
        case None:
            return frequencies
        case LinearScaling(factor):
            return frequencies / factor
        case Llama3Scaling() as scaling:
            return _scale_llama3(frequencies, scaling)


def _scale_llama3(frequencies: torch.Tensor, scaling: Llama3Scaling) -> torch.Tensor:
    """Stretch wavelengths above original / low_freq_factor, keep those below original / high_freq_factor."""
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = kept.clamp(0.0, 1.0)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies


def rotation(positions: torch.Tensor, frequencies: torch.Tensor) -> Rotation:
    """[N] positions, [head_dim / 2] frequencies; once a step, for all layers."""
    angles = positions.float()[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    return Rotation(torch.cat((cos, cos), -1)[:, None], torch.cat((-sin, sin), -1)[:, None])


def rotate(x: torch.Tensor, by: Rotation) -> torch.Tensor:
    """[N, heads, head_dim] -> the same, rotated, in x's dtype."""
    swapped = x.roll(x.shape[-1] // 2, -1)
    return torch.addcmul(x * by.cos, swapped, by.sin).to(x.dtype)
