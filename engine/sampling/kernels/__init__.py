"""Sampling and stopping in Triton (compiled for a GPU, or interpreted on a CPU)."""

from engine.sampling.kernels.device_sampler import Custom, DeviceSampler
from engine.sampling.kernels.scratch import scratch_bytes
from engine.sampling.kernels.tuning import Tuning

__all__ = ["Custom", "DeviceSampler", "Tuning", "scratch_bytes"]
