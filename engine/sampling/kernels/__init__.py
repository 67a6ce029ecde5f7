"""Sampling and stopping in Triton (compiled for a GPU, or interpreted on a CPU)."""

from engine.sampling.kernels.device_sampler import DeviceSampler
from engine.sampling.kernels.tuning import Tuning

__all__ = ["DeviceSampler", "Tuning"]
