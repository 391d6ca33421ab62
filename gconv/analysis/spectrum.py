"""The singular values of a map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gconv.analysis.calls import map_of
from gconv.analysis.explicit import matrix
from gconv.analysis.fourier import Frames, fourier_blocks, wide_weight
from gconv.analysis.numbers import check_finite, is_count, power_of_two, singular, widen
from gconv.arguments import checked, kind_of
from gconv.basis import entries
from gconv.linear import LinearMap, Map
from gconv.mixing import Fixed

SMALL = 2000  # largest min(rows, columns) of an explicit decomposition
SITES = 6000  # largest number of nodes for which eigenvalues are computed


@checked
def singular_values(
    A: Map | nn.Module,
    k: int | None = None,
    *,
    eigenvalues: Tensor | None = None,
    domain: Any = None,
    x: Tensor | None = None,
) -> Tensor:
    """The singular values of A, descending.

    Equation: sigma(A) = union over f of sigma(H(f)), with H(f) the matrix of channels at frequency f: on a grid with
    circular padding, H(f) = sum_k exp(2 pi i <f, q_k>) W_k^T; on a graph, for taps that are polynomials of one
    symmetric matrix, H(lambda) = sum_k p_k(lambda) W_k^T at each eigenvalue.

    Meaning: the gains of the map along orthogonal directions. Maps that are block diagonal in a Fourier basis, sums and
    products of such maps included, have exact values without forming the matrix.

    Cost, in the order of the methods tried:
        circular grids, any stride           an FFT and one decomposition of (o, s^d i) per frequency
        graphs, symmetric S, multipliers     O(n^3) for the eigenvalues unless given, then one (o, i) each
        one tap, or the same W for all taps  sigma(S) times sigma(W): O(n^3), not O(n^3 i^3)
        small maps                           the explicit matrix
        all others, with k                   Lanczos (scipy) for the k largest; two products per step

    Args:
        A: any map, or a layer.
        k: only the k largest.
        eigenvalues: (n,) of the symmetric matrix in S (for `cheb` the rescaled Laplacian), if known.
        domain, x: for a layer, its Grid or graph, and the signal at which adaptive structure is frozen.

    Returns:
        (min(shape),) or (k,), in double precision.

    Raises:
        TypeError: if the domain of a layer is missing.
        ValueError: if the map is too large for the exact methods and k is None (or all of them), k is out of range, or
            the map contains NaN or infinity.

    >>> from gconv import GConv, Grid
    >>> from gconv.operators import conv2d
    >>> A = GConv(conv2d(3, 8, 3, padding=1, padding_mode="circular")).at(Grid((32, 32)))
    >>> singular_values(A).shape  # no matrix of 8192 x 3072
    torch.Size([3072])

    Source: Sedghi, Gupta and Long, The Singular Values of Convolutional Layers, ICLR 2019, for grids.
    """
    A = map_of(A, "singular_values", domain, x)
    count = min(A.shape)
    if k is not None and (not is_count(k) or k > count):
        raise ValueError(f"This map has {count} singular values, but k is {k!r}.")
    if eigenvalues is not None and not isinstance(eigenvalues, Tensor):
        raise TypeError(f"eigenvalues must be a tensor with one number per site, but {kind_of(eigenvalues)} was given.")
    check_finite(A, "singular_values")
    values = _exact(A, eigenvalues)
    if values is None and count <= SMALL:
        values = singular(matrix(widen(A)))
    if values is None:
        if k is None or k == count:
            raise ValueError(
                f"All {count} singular values of this map need its matrix, {A.shape[0]} x {A.shape[1]}; "
                "ask for the k largest, singular_values(A, k=10)."
            )
        return _lanczos(widen(A), k)
    values = torch.nn.functional.pad(values.sort(descending=True).values, (0, max(0, count - len(values))))
    return values[: count if k is None else k]


def _exact(A: Map, eigenvalues: Tensor | None) -> Tensor | None:
    blocks = fourier_blocks(A, Frames(SITES, eigenvalues))
    if blocks is not None:
        values = singular(blocks.values)
        return values.flatten() if blocks.into is not None else values.flatten().repeat(A.sites[0])
    return _kronecker(A) if isinstance(A, LinearMap) and max(A.sites) <= SITES else None


def _kronecker(A: LinearMap) -> Tensor | None:
    """For A = S (x) W^T, the products of the singular values of S and W; None for other maps."""
    if A.S.shape[0] != 1 and not isinstance(A.mixing, Fixed):
        return None
    W = wide_weight(A)
    if min(W.shape[1:]) == 1 and min(A.shape) <= SMALL:
        return None  # the explicit matrix is as cheap
    S = entries(A.S, A.dtype, A.device)
    total = torch.zeros(S.shape[1:], dtype=W.dtype, device=A.device)
    total = total.index_put((S.pattern.row, S.pattern.col), S.values.detach().to(W.dtype), accumulate=True)
    return torch.outer(singular(total), singular(W[0])).flatten()


def _lanczos(A: Map, k: int) -> Tensor:
    import numpy as np
    from scipy.sparse.linalg import LinearOperator, svds

    def forth(B: Map, v: Any) -> Any:
        x = torch.as_tensor(np.asarray(v).ravel(), device=A.device).to(A.dtype).view(B.sites[1], B.i)
        with torch.no_grad():
            return (B @ x).flatten().cpu().numpy()

    def back(v: Any) -> Any:  # the adjoint; for real maps the transpose
        return forth(A.T, np.conj(v)).conj()

    kind = np.complex128 if A.dtype.is_complex else np.float64
    start = np.random.default_rng(0).standard_normal(min(A.shape))
    probe = np.random.default_rng(0).standard_normal(A.shape[1])
    scale = power_of_two(torch.as_tensor(forth(A, probe)))  # scipy works with A^T A
    operator = LinearOperator(
        A.shape, matvec=lambda v: forth(A, v) / scale, rmatvec=lambda v: back(v) / scale, dtype=kind
    )
    values = svds(operator, k=k, v0=start, return_singular_vectors=False)
    return torch.as_tensor(np.sort(values)[::-1].copy(), dtype=torch.float64) * scale
