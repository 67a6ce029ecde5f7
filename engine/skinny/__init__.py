"""Segments of a decoder for small batches: matrix products that run at the speed of reading the weights."""
