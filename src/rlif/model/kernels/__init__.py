"""Kernels for what is not a matmul: C on a CPU, Triton on a GPU."""
