"""Triton kernels of the small-batch form."""
