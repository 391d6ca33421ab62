"""A fixed S with a dense W as one step of autograd.

    mixed      Y = sum_k S_k X W_k + b         dX = sum_k S_k^T dY W_k^T,    dW_k = (S_k X)^T dY,    db = sum dY
    moments    M_k = (S_k X)^T Z               dX = sum_k S_k^T Z dM_k^T,    dZ = sum_k S_k X dM_k

Each is the derivative of the other, to any order. Their numbers come from two passes over S:

    gather     the rows of all S_k X, times a matrix, or transposed times Z: at the width of X
    scatter    X times a matrix, then sum_k S_k Z_k: at the width of the result

The forward pass takes either. The backward pass takes the narrower one, dW_k = (S_k X)^T dY = X^T (S_k^T dY), or the
S_k X that the forward pass has kept. Large signals run some rows, and many signals some signals at a time, so that
intermediates stay in the processor's cache and are not saved. Under transforms, plain operators run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from gconv.basis import Basis
from gconv.call import Call
from gconv.kernels import Constant, empty, matmul, mm_padded, owned, transformed, xt_y
from gconv.kernels.gemm import MIN_NUMBERS
from gconv.kernels.narrow import LANES
from gconv.kernels.transforms import PLAIN

CHUNK_BYTES = 1 << 21  # of all S_k x that are made at a time
MIN_BYTES_ROWS = 1 << 24  # of all S_k x of one signal, from which on some rows are made at a time
MIN_CHUNKS = 4  # of many signals, from which on some signals go at a time
Chunks = Literal["all", "rows", "signals"]
Plan = tuple[Basis, bool, Chunks, Constant | None]  # S, whether it gathers, chunks, the sparse form of a constant X


def chunks(size: int, b: int) -> Chunks:
    """How much of b signals goes at a time, where all S_k x of a signal take so many bytes."""
    if b == 1:
        return "rows" if size > MIN_BYTES_ROWS else "all"
    return "signals" if b * size > MIN_CHUNKS * CHUNK_BYTES else "all"


def applies(S: Basis, call: Call) -> bool:
    """Whether S is fixed, and the call a plain eager one of plain tensors on the CPU, of one type, without autocast."""
    x, W = call.x, call.W
    if call.kind != "eager" or type(x) not in PLAIN or type(W) not in PLAIN or x.dtype != W.dtype:  # type: ignore[union-attr]
        return False
    if not (x.is_cpu and x.is_floating_point() and x.layout is torch.strided and x.numel()):
        return False
    return S.fixed and not torch.is_autocast_enabled("cpu")


def mixed(S: Basis, x: Tensor, W: Tensor, bias: Tensor | None, gathers: bool, constant: Constant | None) -> Tensor:
    """sum_k S_k X W_k + b, x (*b, n, i), W (k, i, o) -> (*b, m, o): S first, where it gathers, or W first."""
    if x.ndim > 2:
        k, m, n = S.shape
        signals = x.flatten(0, -3) if x.ndim > 3 else x
        size = x.shape[-1] * x.itemsize * k
        how = chunks(size * (n if len(signals) == 1 else max(m, n)), len(signals))
        some = signals.squeeze(0) if how == "rows" else signals
        y = _recorded(some, W, bias, (S, gathers, how, None))
        return y if x.ndim == y.ndim == 3 else y.view(*x.shape[:-2], m, -1)
    return _recorded(x, W, bias, (S, gathers, chunks(x.nbytes * len(W), 1), constant))


def _recorded(x: Tensor, W: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
    needed = x.requires_grad or W.requires_grad or (bias is not None and bias.requires_grad)
    if needed and torch.is_grad_enabled():
        y: Tensor = Mixed.apply(x, W, bias, plan)
        return y
    return _mix(x, W, bias, plan)


def _transposed(plan: Plan) -> Plan:
    return plan[0].T, not plan[1], plan[2], None


class Mixed(torch.autograd.Function):
    """`mixed`, and its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
        ctx.plan = plan
        to_x, to_w = ctx.needs_input_grad[:2]
        kept: list[Tensor] | None = [] if to_w and plan[1] and plan[2] == "all" else None
        y = _mix(x, W, bias, plan, kept)
        ctx.save_for_backward(x if to_w else None, W if to_x else None, *(kept or ()))
        return owned(y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, W, *kept = ctx.saved_tensors
        plan: Plan = ctx.plan
        db = None
        if ctx.needs_input_grad[2]:
            db = dy.sum(0) if dy.ndim == 2 else dy.sum(tuple(range(dy.ndim - 1)))
        if transformed():
            dx = None if W is None else _composed(plan[0].T, dy, W.mT)
            return dx, None if x is None else _moments(plan[0], x, dy), db, None
        if torch.is_grad_enabled():
            dx = None if W is None else Mixed.apply(dy, W.mT, None, _transposed(plan))
            return dx, None if x is None else Moments.apply(x, dy, plan), db, None
        dx, dw = gradients(x, W, dy, plan, kept)
        return dx, dw, db, None


class Moments(torch.autograd.Function):
    """The gradient in W, and its gradients."""

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
    """sum_k S_k X W_k by operators that any transform knows."""
    return S.contract(torch.einsum("...ni,kio->...kno", x, W))


def _moments(S: Basis, x: Tensor, z: Tensor) -> Tensor:
    return torch.einsum("...kmi,...mo->kio", S.expand(x), z)


# -- the two passes, x (n, i) or (b, n, i) -----------------------------------------------------------------------------


def _mix(x: Tensor, W: Tensor, bias: Tensor | None, plan: Plan, kept: list[Tensor] | None = None) -> Tensor:
    S, gathers, how, constant = plan
    if not gathers:
        return scatter(S, x, W, bias, how, constant)
    if how == "all":
        y = None
        for leaf, own in zip(S.leaves, _pieces(S, W), strict=True):
            E = leaf.expand_flat(x)
            E, matrix = (E if E.ndim == 2 else E.flatten(0, -2)), (own if own.ndim == 2 else own.flatten(0, 1))
            if x.dtype == torch.bfloat16:
                y = _times(E, matrix, bias, None) if y is None else y.add_(matmul(E, matrix))
            elif y is not None:
                y.addmm_(E, matrix)
            else:
                y = torch.mm(E, matrix) if bias is None else torch.addmm(bias, E, matrix)
            if kept is not None:
                kept.append(E)
        assert y is not None
        return y if x.ndim == 2 else y.view(len(x), -1, W.shape[2])
    y = empty(x, (*x.shape[:-2], S.shape[1], W.shape[2]))
    gather(S, x, how, W, bias, y)
    return y


def gradients(
    x: Tensor | None, W: Tensor | None, dy: Tensor, plan: Plan, kept: Sequence[Tensor]
) -> tuple[Tensor | None, Tensor | None]:
    """dX where W is given, and dW where x is; `kept`: all S_k X that the forward pass has made."""
    S, gathers, how, constant = plan
    some = x if W is None else W.mT
    if some is None:
        return None, None
    (k, _, n), i, o = S.shape, some.shape[-1], dy.shape[-1]
    dw = None if x is None else dy.new_empty(k, i, o)
    if kept or (gathers and i < o and constant is None):  # after scatter, S^T dY shares the forward pass's layout
        if x is not None and dw is not None:
            dy = dy if dy.stride(-1) == 1 else dy.contiguous()
            if kept:
                Y = _matrix(dy)
                for out, E in zip(_pieces(S, dw), kept, strict=True):
                    if out.ndim == 2:
                        xt_y(E, Y, out)
                    else:
                        _put(out, xt_y(E, Y), False)
            else:
                gather(S, x, how, Z=dy, dw=dw)
        return None if W is None else scatter(S.T, dy, W.mT, None, how, None), dw
    if how == "all":
        return _gradients_at_once(x, W, dy, S.T, dw, constant)
    dx = None if W is None else empty(dy, (*dy.shape[:-2], n, i))
    gather(S.T, dy, how, None if W is None else W.mT, None, dx, x, dw, constant, True)
    return dx, dw


def _gradients_at_once(
    x: Tensor | None, W: Tensor | None, dy: Tensor, T: Basis, dw: Tensor | None, constant: Constant | None
) -> tuple[Tensor | None, Tensor | None]:
    """dX and dW from all S_k^T dY, T = S^T."""
    dx: Tensor | None = None
    dy = dy if dy.stride(-1) == 1 else dy.contiguous()
    some = W if dw is None else dw
    assert some is not None
    X = None if x is None else x if x.ndim == 2 else x.flatten(0, -2)
    outs = _pieces(T, some)
    for leaf, own, out in zip(T.leaves, outs if W is None else _pieces(T, W), outs, strict=True):
        back = leaf.expand_flat(dy)
        back = back if back.ndim == 2 else back.flatten(0, -2)
        if X is not None and constant is None and out.ndim == 2:
            xt_y(X, back, out)
        elif X is not None:
            _put(out, xt_y(X, back) if constant is None else constant.xt_y(back), True)
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
    """Writes sum_k S_k X W_k + b into y, and (S_k X)^T Z into dw, or if turned their transposes Z^T (S_k X).

    Args:
        constant: the sparse form of Z.
    """
    matrices = None if W is None else [_tall(own) for own in _pieces(S, W)]
    outs = None if dw is None else _pieces(S, dw)
    sums: list[Tensor] = []
    for piece, made in _made(S, x, how):
        if y is not None and matrices is not None:
            out = y[piece].view(-1, y.shape[-1])
            for number, (E, matrix) in enumerate(zip(made, matrices, strict=True)):
                _times(E, matrix, bias, out) if number == 0 else _add(out, E, matrix)
        if Z is None or outs is None:
            continue
        some = _matrix(Z[piece])
        if how == "all":
            for E, place in zip(made, outs, strict=True):
                _put(place, _xt_y(some, E, constant) if turned else xt_y(E, some), turned)
            continue
        wide = torch.float32 if some.itemsize == 2 else some.dtype
        pairs = [(some, E) if turned else (E, some) for E in made]
        if not sums:
            sums = [X.new_zeros(X.shape[1], Y.shape[1], dtype=wide) for X, Y in pairs]
        for total, (X, Y) in zip(sums, pairs, strict=True):
            total.addmm_(X.mT.to(wide), Y.to(wide))
    for place, total in zip(outs or (), sums, strict=False):
        _put(place, total, turned)


def _made(S: Basis, x: Tensor, how: Chunks) -> Iterator[tuple[Any, list[Tensor]]]:
    """All S_k x as matrices (rows, k c), one for each leaf of S: of some rows or signals at a time, and which."""
    (k, m, n), c = S.shape, x.shape[-1]
    if how == "all":
        yield slice(None), [_matrix(leaf.expand_flat(x)) for leaf in S.leaves]
    elif how == "signals":
        step = max(LANES if c == 1 else 1, CHUNK_BYTES // max(1, x.itemsize * c * k * max(m, n)))
        for start in range(0, len(x), step):
            some = x[start : start + step]
            yield slice(start, start + step), [_matrix(leaf.expand_flat(some)) for leaf in S.leaves]
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
    """sum_k S_k X W_k + b, W first. Args: constant: the sparse form of X."""
    if how == "signals":
        (k, m, n), o = S.shape, W.shape[2]
        whole = empty(x, (len(x), m, o))
        step = max(LANES if o == 1 else 1, CHUNK_BYTES // max(1, x.itemsize * o * k * max(m, n)))
        for start in range(0, len(x), step):
            whole[start : start + step] = scatter(S, x[start : start + step], W, bias, "all")
        return whole
    X, row = (x if x.ndim == 2 else x.flatten(0, -2)), bias
    y: Tensor | None = None
    leaves, pieces = S.leaves, _pieces(S, W)
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


def _pieces(S: Basis, W: Tensor) -> Sequence[Tensor]:
    """The weight (k, i, o) of each leaf of S; (i, o) of leaves that are all single taps."""
    counts = S.taps_of_leaves
    if len(counts) == len(W):
        return W.unbind()
    return (W,) if len(counts) == 1 else W.split(counts)


def _tall(W: Tensor) -> Tensor:
    """(k, i, o) -> (k i, o)."""
    return W if W.ndim == 2 else W.flatten(0, 1)


def _matrix(x: Tensor) -> Tensor:
    """Signals (b, sites, c) as a matrix, all sites of all signals below each other."""
    return x if x.ndim == 2 else x.flatten(0, -2)


def _times(X: Tensor, W: Tensor, bias: Tensor | None, out: Tensor | None) -> Tensor:
    """X W + b, in `out` where there is one."""
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


def _put(out: Tensor, made: Tensor, turned: bool) -> None:
    """A gradient (k i, o), or if turned (i, k o), into (k, i, o) or (i, o)."""
    if out.ndim == 2:
        out.copy_(made)
        return
    k, i, o = out.shape
    out.copy_(made.view(i, k, o).movedim(1, 0) if turned else made.view(k, i, o))
