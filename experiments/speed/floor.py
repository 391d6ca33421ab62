"""A lower bound for the time of a layer: only the matrix and sparse products that every implementation needs.

Forward and backward pass of K terms from i to o channels need the matrix products X [W_1 .. W_K], dY [W_1 .. W_K]^T
and X^T [dY_1 .. dY_K], each as one product, and sparse products of the smaller width. Here they write to preallocated
buffers; nothing is normalised, added, saved or allocated, and there is no overhead of autograd.
"""

from typing import NamedTuple

import torch

from experiments.harness import measure
from experiments.speed.cases import Case
from experiments.speed.sides import edge_index
from gconv.kernels import CSR, sddmm, spmm_rows, xt_y


class Products(NamedTuple):
    """The products of a forward and backward pass of a layer."""

    terms: int
    """Number of weights W_k; 0 if channels are not mixed."""
    sparse: int
    """Number of products with S or its transpose, at the width of the output."""
    sampled: int = 0
    """Number of products sampled at the entries of S, for the gradient of learned entries."""


PRODUCTS = {
    "gcn": Products(1, 2),
    "cheb": Products(3, 4),
    "sage": Products(2, 2),
    "gat": Products(1, 2, sampled=1),
    "tag": Products(4, 6),
    "appnp": Products(0, 20),
}


def floor(case: Case) -> measure.Step:
    """A step that computes only the products of a case."""
    need, (n, i, o) = PRODUCTS[case.op], (case.nodes, case.channels[0], case.channels[-1])
    wide = need.terms * o
    x, dy, W, all_dy = torch.randn(n, i), torch.randn(n, o), torch.randn(i, wide), torch.randn(n, wide)
    y, all_y, dx, dW = torch.empty(n, o), torch.empty(n, wide), torch.empty(n, i), torch.empty(i, wide)
    index = edge_index(n, case.edges, case.seed)
    loops = torch.arange(n)
    csr = CSR.build(torch.cat([index[1], loops]), torch.cat([index[0], loops]), n, n)
    values = torch.rand(len(csr.col))

    def step() -> None:
        if wide:
            torch.mm(x, W, out=all_y)
            torch.mm(all_dy, W.mT, out=dx)
            xt_y(x, all_dy, out=dW)
        for _ in range(need.sparse):
            spmm_rows(csr, values, dy, out=y)
        for _ in range(need.sampled):
            sddmm(csr, dy, y)

    return step
