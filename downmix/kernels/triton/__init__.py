"""Kernels for CUDA, in Triton: a file an operator, imported at the first call that needs it."""
