"""The decoder as TensorRT plans: networks, plans and their cache, buckets, CUDA graphs, the runner."""
