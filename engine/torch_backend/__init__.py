"""The vocabulary of architectures on torch tensors: the default on a CPU, the reference on any device."""
