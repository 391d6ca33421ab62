"""The two products of a fixed form with its taps beside channels, as they lie in memory, where nothing is recorded.

beside(S, x)      (*b, n, c) -> (*b, m, k c)     all S_k x, as `expand`
together(S, z)    (*b, n, k c) -> (*b, m, c)     sum_k S_k z_k, as `contract`
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gconv import kernels
from gconv.basis.base import Basis, Identity
from gconv.basis.polynomial import Polynomial
from gconv.basis.taps import Taps


def _whole(S: Basis) -> bool:
    """Whether it is a recurrence that one operator runs, a tap a term."""
    return isinstance(S, Polynomial) and S.combine is None and bool(S.recurrence.rows)


def beside(S: Basis, x: Tensor) -> Tensor:
    """All S_k x beside each other."""
    if type(S) is Taps:
        csr, values, _ = S.ordered("expand")
        y, k = kernels.unrecorded(csr, values, x), S.shape[0]
        return y if k == 1 else y.view(*x.shape[:-2], -1, k * x.shape[-1])
    if type(S) is Identity:
        return x
    if isinstance(S, Polynomial) and _whole(S):
        csr, values, back = S.L.ordered("expand")
        return kernels.terms(csr, values, x, S.recurrence.rows, back).flatten(-2)
    E = S.expand(x)
    return E.squeeze(-3) if E.shape[-3] == 1 else E.movedim(-3, -2).flatten(-2)


def together(S: Basis, z: Tensor) -> Tensor:
    """sum_k S_k z_k of z_k beside each other."""
    k = S.shape[0]
    if type(S) is Taps:
        csr, values, _ = S.ordered("contract")
        return kernels.unrecorded(csr, values, z if k == 1 else z.reshape(*z.shape[:-2], -1, z.shape[-1] // k))
    if type(S) is Identity:
        return z
    if isinstance(S, Polynomial) and _whole(S):
        csr, values, back = S.L.ordered("expand")
        return kernels.clenshaw(csr, values, z.unflatten(-1, (k, -1)), S.recurrence.rows, back)
    return S.contract(z.unsqueeze(-3) if k == 1 else z.unflatten(-1, (k, -1)).movedim(-2, -3))


def ready(S: Basis, c: int, expand: bool, dtype: torch.dtype) -> Callable[..., Tensor] | None:
    """The product for matrices (n, c), or (n, k c) without gaps, of this type, on the CPU, if there is one.

    It is a function of the matrix, and of what is added to the result.
    """
    if type(S) is Taps and S.values.dtype == dtype:
        csr, values, _ = S.ordered("expand" if expand else "contract")
        k, m, _ = S.shape
        return kernels.ready(csr, values, c, (m, k * c if expand else c), beside=k > 1 and not expand)
    return None
