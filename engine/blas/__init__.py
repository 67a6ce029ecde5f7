"""Segments of a decoder for large batches: cuBLAS, and own kernels for what lies between."""
