"""Sparse products as registered torch operators: today in pure torch, the place where compiled kernels go."""

from gconv.kernels.sparse import CSR, sddmm, segment_max, spmm

__all__ = ["CSR", "backend", "sddmm", "segment_max", "spmm"]


def backend() -> str:
    """Which kernels are active: "torch" (torch's sparse CSR product, the transpose built once).

    >>> backend()
    'torch'
    """
    return "torch"
