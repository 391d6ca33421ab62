"""The explicit matrix of a map: dense, or sparse directly from the taps."""

from __future__ import annotations

from functools import reduce
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from gconv.analysis.calls import map_of
from gconv.analysis.numbers import at_least_single
from gconv.arguments import checked
from gconv.basis.entries import entries, pairs
from gconv.errors import first_line, ran_out_of_memory
from gconv.linear import Composed, LinearMap, Map, Scaled, Sum
from gconv.lowering import dense


@overload
def matrix(
    A: Map | nn.Module,
    layout: Literal["dense", "torch_sparse"] = "dense",
    *,
    domain: Any = None,
    x: Tensor | None = None,
) -> Tensor: ...


@overload
def matrix(A: Map | nn.Module, layout: Literal["sparse"], *, domain: Any = None, x: Tensor | None = None) -> Any: ...


@checked
def matrix(A: Map | nn.Module, layout: str = "dense", *, domain: Any = None, x: Tensor | None = None) -> Any:
    """The matrix of A, (m o, n i), in site-major order: channels vary fastest.

    Equation: M = sum_k S_k (x) W_k^T.

    Meaning: M @ x.flatten() is (A @ x).flatten(). Sparse layouts are built from the entries of the taps without a dense
    intermediate array, unless S itself is dense (a Fourier basis).

    Cost: dense, m o n i numbers; sparse, one number for each pair of an entry of S_k and an entry of W_k.

    Traps: sparse matrices have an entry wherever the structure has one, even if its weight is zero; structural zeros of
    a grouped mixing have no entries.

    Args:
        A: any map, or a layer.
        layout: "dense" for a tensor, differentiable in W and S; "sparse" for a `scipy.sparse.csr_array`;
            "torch_sparse" for a coalesced torch COO tensor with differentiable values. scipy does not support 16-bit
            floats, which are converted to float32.
        domain, x: for a layer, its Grid or graph, and the signal at which adaptive structure is frozen.

    Raises:
        TypeError: if the domain of a layer is missing.
        ValueError: if the layout is unknown.

    >>> from gconv import GConv, Grid
    >>> from gconv.operators import avg_pool1d
    >>> A = GConv(avg_pool1d(2)).at(Grid((4,)))
    >>> matrix(A)
    tensor([[0.5000, 0.5000, 0.0000, 0.0000],
            [0.0000, 0.0000, 0.5000, 0.5000]])
    >>> matrix(A, "sparse").nnz
    4
    """
    A = map_of(A, "matrix", domain, x)
    if layout == "dense":
        try:
            return _dense(A)
        except RuntimeError as error:
            if not ran_out_of_memory(error):
                raise
            m, n = A.shape
            raise type(error)(
                f"There is no memory for a dense matrix of {m} x {n} numbers; layout='sparse' stores only the entries "
                f"that are not zero. {first_line(error)}."
            ) from error
    if layout == "torch_sparse":
        return _coo(A).coalesce().to(A.dtype)
    if layout != "sparse":
        raise ValueError(f"layout must be 'dense', 'sparse' or 'torch_sparse', not {layout!r}.")
    import scipy.sparse

    with torch.no_grad():
        row, col, values = _coordinates(A) if isinstance(A, LinearMap) else _parts(_coo(A))
        row, col, values = row.int().cpu(), col.int().cpu(), values.to(at_least_single(values.dtype)).cpu()
    # scipy chooses 64-bit indices itself for shapes of 2^31 and more
    return scipy.sparse.coo_array((values.numpy(), (row.numpy(), col.numpy())), shape=A.shape).tocsr()


def _dense(A: Map) -> Tensor:
    if isinstance(A, LinearMap):
        return dense.matrix(A.S, A.mixing, A.W, A.i, A.dtype, A.device)
    few = A.shape[0] < A.shape[1]  # fewer rows than columns: the transpose needs fewer products
    B = A.T if few else A
    columns = torch.eye(B.shape[1], dtype=A.dtype, device=A.device).unflatten(-1, (B.sites[1], B.i))
    M = (B @ columns).flatten(1)
    return M if few else M.mT


def _parts(M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    M = M.coalesce()
    row, col = M.indices()
    return row, col, M.values()


def _coo(A: Map) -> Tensor:
    """A as a torch COO tensor; 16-bit floats, which torch's sparse sums and products do not support, as float32."""
    if isinstance(A, Sum):
        return reduce(torch.add, [_coo(B) for B in A.terms])
    if isinstance(A, Scaled):
        M = _coo(A.A).coalesce()
        return torch.sparse_coo_tensor(M.indices(), A.c * M.values(), A.shape, check_invariants=False)
    if isinstance(A, Composed):
        return reduce(torch.sparse.mm, [_coo(B) for B in A.factors])
    row, col, values = _coordinates(A.collapse())
    values = values.to(at_least_single(values.dtype))
    return torch.sparse_coo_tensor(torch.stack([row, col]), values, A.shape, check_invariants=False)


def _coordinates(A: LinearMap) -> tuple[Tensor, Tensor, Tensor]:
    """Row, column and value of the product of every entry of S_k with every structural entry of W_k."""
    S = entries(A.S, A.dtype, A.device)
    W = A.weight()
    like = None if A.W is None else torch.ones_like(A.W)
    has = A.mixing.dense(like, A.i).to(A.device) != 0  # the structural nonzeros of the mixing
    tap, into, out = has.nonzero(as_tuple=True)
    counts = has.flatten(1).sum(1)
    e, place = pairs(counts[S.pattern.tap], (counts.cumsum(0) - counts)[S.pattern.tap])
    values = S.values.to(A.dtype)[e] * W[tap, into, out][place]
    return S.pattern.row[e] * A.o + out[place], S.pattern.col[e] * A.i + into[place], values
