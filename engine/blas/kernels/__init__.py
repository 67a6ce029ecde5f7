"""What lies between the matrix products of a segment, one pass over memory each."""

from engine.blas.kernels.rows import add_norm, norm, swiglu

__all__ = ["add_norm", "norm", "swiglu"]
