"""A fixed S with a dense W as a single autograd function.

    mixed      Y = sum_k S_k X W_k + b         dX = sum_k S_k^T dY W_k^T,    dW_k = (S_k X)^T dY,    db = sum dY
    moments    M_k = (S_k X)^T Z               dX = sum_k S_k^T Z dM_k^T,    dZ = sum_k S_k X dM_k

Each is the derivative of the other, so derivatives of any order are available. Both are computed in one of two ways:

    gather     all S_k X first, then a product with a matrix, or (S_k X)^T Z: the product with S has the channels of X
    scatter    a product of X with a matrix, then sum_k S_k Z_k: the product with S has the channels of the result

The planner chooses one for the forward pass. The backward pass uses the one with fewer channels, because
dW_k = (S_k X)^T dY = X^T (S_k^T dY), unless S_k X was saved in the forward pass. Large signals are processed in chunks
of rows, and many signals in chunks of signals: intermediates stay in cache and are not saved for backward. Under
torch.func transforms plain operators are used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from gconv.basis import Basis
from gconv.call import Call
from gconv.errors import Differentiable
from gconv.kernels import Constant, empty, matmul, mm_padded, no_subclass, owned, transformed, xt_y
from gconv.kernels.gemm import MIN_NUMBERS
from gconv.kernels.narrow import LANES
from gconv.kernels.transforms import PLAIN
from gconv.lowering.base import Run

CHUNK_BYTES = 1 << 21  # size of S_k x, over all k, in one chunk
MIN_BYTES_ROWS = 1 << 24  # size of S_k x, over all k, of a single signal above which it is processed in chunks of rows
MIN_CHUNKS = 4  # number of chunks above which many signals are processed in chunks of signals
Chunks = Literal["all", "rows", "signals"]
Plan = tuple[Basis, bool, Chunks, Constant | None]  # S, whether to gather, chunks, the sparse form of a constant X


def chunks(size: int, b: int) -> Chunks:
    """How b signals are divided into chunks, if S_k x of one signal takes `size` bytes over all k."""
    if b == 1:
        return "rows" if size > MIN_BYTES_ROWS else "all"
    return "signals" if b * size > MIN_CHUNKS * CHUNK_BYTES else "all"


def applies(S: Basis, call: Call) -> bool:
    """Whether S is fixed and the call is plain eager: plain CPU tensors of one dtype, without autocast."""
    x, W = call.x, call.W
    if call.kind != "eager" or W is None or not no_subclass(x, W) or x.dtype != W.dtype:
        return False
    if not (x.is_cpu and x.is_floating_point() and x.layout is torch.strided and x.numel()):
        return False
    return S.fixed and not torch.is_autocast_enabled("cpu")


def mixed(S: Basis, x: Tensor, W: Tensor, bias: Tensor | None, gathers: bool, constant: Constant | None) -> Tensor:
    """sum_k S_k X W_k + b, x (*b, n, i), W (k, i, o) -> (*b, m, o): S first if `gathers`, else W first."""
    if x.ndim > 2:
        k, m, n = S.shape
        signals = x.flatten(0, -3) if x.ndim > 3 else x
        size = x.shape[-1] * x.itemsize * k
        how = chunks(size * (n if len(signals) == 1 else max(m, n)), len(signals))
        signals = signals.squeeze(0) if how == "rows" else signals
        y = _apply(signals, W, bias, (S, gathers, how, None))
        return y if x.ndim == y.ndim == 3 else y.view(*x.shape[:-2], m, W.shape[2])
    how = chunks(x.nbytes * len(W), 1) if constant is None else "all"  # nothing as wide as a sparse X is made
    return _apply(x, W, bias, (S, gathers, how, constant))


def prepared(S: Basis, call: Call, gathers: bool, otherwise: Run) -> Run | None:
    """`mixed` for later calls with a signal of the shape, dtype and layout of this one; None if it has a batch.

    It checks only what may have changed since: with autocast, or a weight of another type, `otherwise` is called.
    """
    if call.x.ndim != 2 or not applies(S, call):
        return None
    plan: Plan = (S, gathers, chunks(call.x.nbytes * S.shape[0], 1), None)

    def run(_: Any, call: Call) -> Tensor:
        x, W, bias, constant = call.x, call.W, call.bias, call.constant
        if type(W) not in PLAIN or torch.is_autocast_enabled("cpu"):
            return otherwise(S, call)
        assert W is not None
        used = plan if constant is None or constant.sparse is None else (S, gathers, "all", constant)
        if torch.is_grad_enabled() and (
            x.requires_grad or W.requires_grad or (bias is not None and bias.requires_grad)
        ):
            y: Tensor = Mixed.apply(x, W, bias, used)
            return y
        return _mix(x, W, bias, used)

    return run


def _apply(x: Tensor, W: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
    needed = x.requires_grad or W.requires_grad or (bias is not None and bias.requires_grad)
    if needed and torch.is_grad_enabled():
        y: Tensor = Mixed.apply(x, W, bias, plan)
        return y
    return _mix(x, W, bias, plan)


def _transposed(plan: Plan) -> Plan:
    return plan[0].T, not plan[1], plan[2], None


def by_columns(W: Tensor) -> bool:
    """Whether the matrices of W (k, i, o) are stored by columns, as those of converted layers: so is their gradient."""
    return W.stride(-2) == 1 and W.stride(-1) != 1


class Mixed(Differentiable):
    """`mixed`, and its gradients."""

    what = "sum_k S_k X W_k"

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
        ctx.plan, ctx.by_columns = plan, by_columns(W)
        to_x, to_w = ctx.needs_input_grad[:2]
        expanded: list[Tensor] | None = [] if to_w and plan[1] and plan[2] == "all" else None
        y = _mix(x, W, bias, plan, expanded)
        ctx.save_for_backward(x if to_w else None, W if to_x else None, *(expanded or ()))
        return owned(y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, W, *expanded = ctx.saved_tensors
        plan: Plan = ctx.plan
        db = None
        if ctx.needs_input_grad[2]:
            db = dy.sum(0) if dy.ndim == 2 else dy.sum(tuple(range(dy.ndim - 1)))
        if transformed():
            dx = None if W is None else _composed(plan[0].T, dy, W.mT)
            dw = None if x is None else _moments(plan[0], x, dy)
        elif torch.is_grad_enabled():
            dx = None if W is None else Mixed.apply(dy, W.mT, None, _transposed(plan))
            dw = None if x is None else Moments.apply(x, dy, plan)
        else:
            dx, dw = gradients(x, W, dy, plan, expanded)
        return dx, dw.mT.contiguous().mT if ctx.by_columns and dw is not None else dw, db, None


class Moments(Differentiable):
    """The gradient in W of `mixed`, and its gradients."""

    what = "(S_k X)^T Z"

    @staticmethod
    def forward(ctx: Any, x: Tensor, z: Tensor, plan: Plan) -> Tensor:
        ctx.plan = plan
        ctx.save_for_backward(x, z)
        found = gradients(x, None, z, plan, ())[1]
        assert found is not None
        return found

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, z = ctx.saved_tensors
        to_x, to_z = ctx.needs_input_grad[:2]
        plan: Plan = ctx.plan
        if transformed():
            return _composed(plan[0].T, z, g.mT) if to_x else None, _composed(plan[0], x, g) if to_z else None, None
        dx = Mixed.apply(z, g.mT, None, _transposed(plan)) if to_x else None
        return dx, Mixed.apply(x, g, None, plan) if to_z else None, None


def _composed(S: Basis, x: Tensor, W: Tensor) -> Tensor:
    """sum_k S_k X W_k by torch operators, which torch.func can transform."""
    return S.contract(torch.einsum("...ni,kio->...kno", x, W))


def _moments(S: Basis, x: Tensor, z: Tensor) -> Tensor:
    return torch.einsum("...kmi,...mo->kio", S.expand(x), z)


# -- without autograd, x (n, i) or (b, n, i) ---------------------------------------------------------------------------


def _mix(x: Tensor, W: Tensor, bias: Tensor | None, plan: Plan, expanded: list[Tensor] | None = None) -> Tensor:
    """Y; all S_k X are appended to `expanded` if it is given."""
    S, gathers, how, constant = plan
    if not gathers:
        return scatter(S, x, W, bias, how, constant)
    if how == "all":
        y = None
        for leaf, own in zip(S.leaves, _split_by_leaf(S, W), strict=True):
            E = leaf.expand_flat(x)
            E, matrix = (E if E.ndim == 2 else E.flatten(0, -2)), (own if own.ndim == 2 else own.flatten(0, 1))
            if x.dtype == torch.bfloat16:
                y = _times(E, matrix, bias, None) if y is None else y.add_(matmul(E, matrix))
            elif y is not None:
                y.addmm_(E, matrix)
            else:
                y = torch.mm(E, matrix) if bias is None else torch.addmm(bias, E, matrix)
            if expanded is not None:
                expanded.append(E)
        assert y is not None
        return y if x.ndim == 2 else y.view(len(x), -1, W.shape[2])
    y = empty(x, (*x.shape[:-2], S.shape[1], W.shape[2]))
    gather(S, x, how, W, bias, y)
    return y


def gradients(
    x: Tensor | None, W: Tensor | None, dy: Tensor, plan: Plan, expanded: Sequence[Tensor]
) -> tuple[Tensor | None, Tensor | None]:
    """dX if W is given, and dW if x is given. `expanded`: all S_k X, if the forward pass saved them."""
    S, gathers, how, constant = plan
    if W is not None:
        i = W.shape[1]
    elif x is not None:
        i = x.shape[-1]
    else:
        return None, None
    (k, _, n), o = S.shape, dy.shape[-1]
    aggregated = expanded or (gathers and i < o and constant is None)
    if k == 1 and how == "all" and not aggregated and dy.dtype != torch.bfloat16:
        return _gradients_of_one(x, W, dy, S.T, constant)
    dw = None if x is None else dy.new_empty(k, i, o)
    if aggregated:  # after scatter, S^T dY uses the forward pass's CSR
        if x is not None and dw is not None:
            dy = dy if dy.stride(-1) == 1 else dy.contiguous()
            if expanded:
                Y = _matrix(dy)
                for out, E in zip(_split_by_leaf(S, dw), expanded, strict=True):
                    if out.ndim == 2:
                        xt_y(E, Y, out)
                    else:
                        _write_gradient(out, xt_y(E, Y), False)
            else:
                gather(S, x, how, Z=dy, dw=dw)
        return None if W is None else scatter(S.T, dy, W.mT, None, how, None), dw
    if how == "all":
        return _gradients_at_once(x, W, dy, S.T, dw, constant)
    dx = None if W is None else empty(dy, (*dy.shape[:-2], n, i))
    gather(S.T, dy, how, None if W is None else W.mT, None, dx, x, dw, constant, True)
    return dx, dw


def _gradients_of_one(
    x: Tensor | None, W: Tensor | None, dy: Tensor, T: Basis, constant: Constant | None
) -> tuple[Tensor | None, Tensor | None]:
    """`_gradients_at_once` for a single tap, with less overhead."""
    dw: Tensor | None = None
    back = _matrix(T.leaves[0].expand_flat(dy if dy.stride(-1) == 1 else dy.contiguous()))
    if x is not None:
        dw = (xt_y(_matrix(x), back) if constant is None else constant.xt_y(back)).contiguous().unsqueeze(0)
    if W is None:
        return None, dw
    dx = torch.mm(back, W.squeeze(0).mT)
    return dx if dy.ndim == 2 else dx.view(*dy.shape[:-2], -1, dx.shape[1]), dw


def _gradients_at_once(
    x: Tensor | None, W: Tensor | None, dy: Tensor, T: Basis, dw: Tensor | None, constant: Constant | None
) -> tuple[Tensor | None, Tensor | None]:
    """dX and dW from all S_k^T dY, T = S^T."""
    dx: Tensor | None = None
    dy = dy if dy.stride(-1) == 1 else dy.contiguous()
    like = W if dw is None else dw
    assert like is not None
    X = None if x is None else x if x.ndim == 2 else x.flatten(0, -2)
    outs = _split_by_leaf(T, like)
    for leaf, own, out in zip(T.leaves, outs if W is None else _split_by_leaf(T, W), outs, strict=True):
        back = leaf.expand_flat(dy)
        back = back if back.ndim == 2 else back.flatten(0, -2)
        if X is not None and constant is None and out.ndim == 2:
            xt_y(X, back, out)
        elif X is not None:
            _write_gradient(out, xt_y(X, back) if constant is None else constant.xt_y(back), True)
        if W is None:
            continue
        matrix = own.mT if own.ndim == 2 else own.mT.flatten(0, 1)
        if back.dtype == torch.bfloat16:
            more = matmul(back, matrix)
            dx = more if dx is None else dx.add_(more)
        else:
            dx = torch.mm(back, matrix) if dx is None else dx.addmm_(back, matrix)
    return dx if dx is None or dy.ndim == 2 else dx.view(*dy.shape[:-2], -1, dx.shape[1]), dw


def gather(
    S: Basis,
    x: Tensor,
    how: Chunks,
    W: Tensor | None = None,
    bias: Tensor | None = None,
    y: Tensor | None = None,
    Z: Tensor | None = None,
    dw: Tensor | None = None,
    constant: Constant | None = None,
    turned: bool = False,
) -> None:
    """Writes sum_k S_k X W_k + b to y, and (S_k X)^T Z to dw, or with `turned` the transposes Z^T (S_k X).

    Args:
        S, x: as in `mixed`.
        how: the chunks.
        W, bias, y: all or none of y and W are given.
        Z, dw: both or none are given.
        constant: the sparse form of Z.
        turned: whether dw gets the transposes.
    """
    matrices = None if W is None else [_tall(own) for own in _split_by_leaf(S, W)]
    outs = None if dw is None else _split_by_leaf(S, dw)
    sums: list[Tensor] = []
    for piece, expanded in _expanded_chunks(S, x, how):
        if y is not None and matrices is not None:
            out = y[piece].view(-1, y.shape[-1])
            for number, (E, matrix) in enumerate(zip(expanded, matrices, strict=True)):
                _times(E, matrix, bias, out) if number == 0 else _add(out, E, matrix)
        if Z is None or outs is None:
            continue
        chunk = _matrix(Z[piece])
        if how == "all":
            for E, place in zip(expanded, outs, strict=True):
                _write_gradient(place, _xt_y(chunk, E, constant) if turned else xt_y(E, chunk), turned)
            continue
        wide = torch.float32 if chunk.itemsize == 2 else chunk.dtype
        pairs = [(chunk, E) if turned else (E, chunk) for E in expanded]
        if not sums:
            sums = [X.new_zeros(X.shape[1], Y.shape[1], dtype=wide) for X, Y in pairs]
        for total, (X, Y) in zip(sums, pairs, strict=True):
            total.addmm_(X.mT.to(wide), Y.to(wide))
    if dw is not None and how != "all" and not sums:  # S has no rows
        dw.zero_()
    for place, total in zip(outs or (), sums, strict=False):
        _write_gradient(place, total, turned)


def _expanded_chunks(S: Basis, x: Tensor, how: Chunks) -> Iterator[tuple[Any, list[Tensor]]]:
    """For each chunk of rows or signals its index, and all S_k x as matrices (rows, k c), one for each leaf of S."""
    (k, m, n), c = S.shape, x.shape[-1]
    if how == "all":
        yield slice(None), [_matrix(leaf.expand_flat(x)) for leaf in S.leaves]
    elif how == "signals":
        step = max(LANES if c == 1 else 1, CHUNK_BYTES // max(1, x.itemsize * c * k * max(m, n)))
        for start in range(0, len(x), step):
            chunk = x[start : start + step]
            yield slice(start, start + step), [_matrix(leaf.expand_flat(chunk)) for leaf in S.leaves]
    else:
        x = x if x.stride(-1) == 1 else x.contiguous()
        step = max(1, CHUNK_BYTES // max(1, k * c * x.itemsize))
        rows = [(leaf.rows(x), x.new_empty(min(m, step), leaf.shape[0] * c)) for leaf in S.leaves]
        for start in range(0, m, step):
            piece = slice(start, min(m, start + step))
            yield piece, [run(piece, place[: piece.stop - start]) for run, place in rows]


def scatter(
    S: Basis, x: Tensor, W: Tensor, bias: Tensor | None, how: Chunks, constant: Constant | None = None
) -> Tensor:
    """sum_k S_k X W_k + b, W first; `constant` is the sparse form of X."""
    if how == "signals":
        (k, m, n), o = S.shape, W.shape[2]
        whole = empty(x, (len(x), m, o))
        step = max(LANES if o == 1 else 1, CHUNK_BYTES // max(1, x.itemsize * o * k * max(m, n)))
        for start in range(0, len(x), step):
            whole[start : start + step] = scatter(S, x[start : start + step], W, bias, "all")
        return whole
    X, row = (x if x.ndim == 2 else x.flatten(0, -2)), bias
    y: Tensor | None = None
    leaves, pieces = S.leaves, _split_by_leaf(S, W)
    for number in S.identities_first:
        leaf, matrix = leaves[number], pieces[number]
        matrix = matrix if matrix.ndim == 2 else matrix.movedim(0, 1).flatten(1)
        if constant is not None:
            z = constant.times(matrix)
        elif how == "rows":
            z = _times(X, matrix, None, empty(X, (len(X), matrix.shape[1])))
        elif x.ndim == 2 and X.numel() >= MIN_NUMBERS and leaf.gaps:
            z = mm_padded(X, matrix)
        else:
            z = torch.mm(X, matrix) if X.dtype != torch.bfloat16 else matmul(X, matrix)
        y = leaf.contract_flat(z if x.ndim == 2 else z.view(len(x), -1, z.shape[1]), y, row)
        row = None
    assert y is not None
    return y


# -- matrices ----------------------------------------------------------------------------------------------------------


def _split_by_leaf(S: Basis, W: Tensor) -> Sequence[Tensor]:
    """The weight (k, i, o) of each leaf of S; (i, o) if all leaves are single taps."""
    counts = S.taps_of_leaves
    if len(counts) == len(W):
        return W.unbind()
    return (W,) if len(counts) == 1 else W.split(counts)


def _tall(W: Tensor) -> Tensor:
    """(k, i, o) -> (k i, o)."""
    return W if W.ndim == 2 else W.flatten(0, 1)


def _matrix(x: Tensor) -> Tensor:
    """Signals (b, sites, c) as a matrix (b sites, c)."""
    return x if x.ndim == 2 else x.flatten(0, -2)


def _times(X: Tensor, W: Tensor, bias: Tensor | None, out: Tensor | None) -> Tensor:
    """X W + b, written to `out` if it is given."""
    if X.dtype == torch.bfloat16:
        y = matmul(X, W)
        y = y if bias is None else y.add_(bias)
        return y if out is None else out.copy_(y)
    return torch.mm(X, W, out=out) if bias is None else torch.addmm(bias, X, W, out=out)


def _add(y: Tensor, X: Tensor, W: Tensor) -> None:
    """Adds X W to y."""
    if X.dtype == torch.bfloat16:
        y.add_(matmul(X, W))
    else:
        y.addmm_(X, W)


def _xt_y(X: Tensor, Y: Tensor, constant: Constant | None) -> Tensor:
    return xt_y(X, Y) if constant is None else constant.xt_y(Y)


def _write_gradient(out: Tensor, gradient: Tensor, turned: bool) -> None:
    """Copy a gradient (k i, o), or with `turned` (i, k o), to `out` (k, i, o) or (i, o)."""
    if out.ndim == 2:
        out.copy_(gradient)
        return
    k, i, o = out.shape
    out.copy_(gradient.view(i, k, o).movedim(1, 0) if turned else gradient.view(k, i, o))
