"""The stack S = (S_0, ..., S_{k-1}) of structure matrices, in several forms.

    Shifts         a kernel's shifts on a grid, never materialised
    Taps           labelled sparse entries; Windows: those of adaptive pooling on a grid
    SharedTaps     several taps with a common sparsity pattern
    AttentionTaps  additive attention, whose values are computed only where needed
    DotTaps        dot-product attention, likewise, where its kernel is fused
    Polynomial     p_k(L) of a sparse matrix, by a three-term recurrence
    Diagonal       U diag(g_k) U^T with an orthogonal basis U
    Axes           a Kronecker product: one small matrix along each axis of a grid
    Stack          the taps of several forms, concatenated
    Product        a product of two forms
    Identity       S_0 = I

Every form has `shape` (k, m, n), `expand`, `contract`, `T`, `nnz` and `signature`:

    expand(x)    (*b, n, c) -> (*b, k, m, c)     all S_k x
    contract(z)  (*b, k, n, c) -> (*b, m, c)     sum_k S_k z_k

`expand` of S and `contract` of S.T are adjoint to each other, so the backward pass of one is the other.
"""

from gconv.basis.attention import Attended, AttentionTaps, DotTaps, attended
from gconv.basis.axes import Axes
from gconv.basis.base import Basis
from gconv.basis.diagonal import Diagonal
from gconv.basis.entries import entries, single
from gconv.basis.forms import Identity, Product, Stack, each
from gconv.basis.polynomial import Polynomial, Recurrence
from gconv.basis.rows import ByRows
from gconv.basis.shared import SharedTaps
from gconv.basis.shifts import Shifts
from gconv.basis.taps import Dots, Pattern, Taps, Windows
from gconv.kernels import lasting, widened

__all__ = [
    "Attended",
    "AttentionTaps",
    "Axes",
    "Basis",
    "ByRows",
    "Diagonal",
    "DotTaps",
    "Dots",
    "Identity",
    "Pattern",
    "Polynomial",
    "Product",
    "Recurrence",
    "SharedTaps",
    "Shifts",
    "Stack",
    "Taps",
    "Windows",
    "attended",
    "each",
    "entries",
    "lasting",
    "single",
    "widened",
]
