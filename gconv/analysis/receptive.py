"""Receptive fields: structural and effective."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import index
from typing import Any

import torch
from torch import Tensor, nn

from gconv.analysis.calls import Model, call, check_model, input_like, map_of, undisturbed
from gconv.analysis.numbers import at_least_single, is_count, widen, wider
from gconv.arguments import checked, kind_of
from gconv.basis import Basis, Diagonal, Polynomial, Product, Stack
from gconv.basis.entries import entries
from gconv.errors import first_line
from gconv.linear import Block, Composed, LinearMap, Map, Scaled, Sum


@checked
def receptive_field(A: Map | nn.Module, *, domain: Any = None, x: Tensor | None = None) -> Tensor:
    """(m, n) whether output site m reads input site n through any tap.

    Meaning: for a single layer this depends on the structure only, not on the weights of the mixing; for sums and
    products it is the support of the matrix. Entries may be arbitrarily small; an entry counts as zero only if its
    terms cancel, as in T_2(L) = 2 L^2 - 1 or A - A.

    Traps: for multipliers in an eigenbasis, entries at the level of rounding errors relative to the largest entry count
    as zero.

    Cost: the explicit structure (or matrix).

    Args:
        A: any map, or a layer.
        domain, x: for a layer, its Grid or graph, and the signal at which adaptive structure is frozen.

    Raises:
        TypeError: if the domain of a layer is missing.

    >>> from gconv import GConv, Grid
    >>> from gconv.operators import conv1d
    >>> receptive_field(GConv(conv1d(1, 1, 2)).at(Grid((3,)))).int()
    tensor([[1, 1, 0],
            [0, 1, 1]], dtype=torch.int32)
    """
    A = map_of(A, "receptive_field", domain, x)
    with torch.no_grad():
        eps = 100 * torch.finfo(at_least_single(A.dtype)).eps
        A = widen(A)
        if isinstance(A, LinearMap):
            return _structure(A.S, A, eps).support(eps).any(0)
        return _whole(A, eps).support(eps).any(3).any(1)


@dataclass(frozen=True, eq=False)
class _Support:
    """Matrices that also record, for each entry, whether it has terms and the sum of their absolute values.

    Args:
        reads: whether an entry has a term.
        value: the entry.
        size: the sum of the absolute values of its terms.
    """

    reads: Tensor
    value: Tensor
    size: Tensor

    def support(self, eps: float) -> Tensor:
        """Which entries have terms that do not cancel."""
        cancels = (self.value.abs() <= eps * self.size) & (self.size > 0) & self.size.isfinite()
        return self.reads & ~cancels

    def __add__(self, other: _Support) -> _Support:
        return _Support(self.reads | other.reads, self.value + other.value, self.size + other.size)

    def times(self, c: complex | Tensor) -> _Support:
        """c A; the structure of A is kept even if c = 0."""
        return _Support(self.reads, c * self.value, torch.as_tensor(c).abs() * self.size)

    def einsum(self, how: str, other: _Support) -> _Support:
        """A contraction of two operands, applied to all three fields."""
        reads = torch.einsum(how, self.reads.double(), other.reads.double()) > 0
        return _Support(reads, torch.einsum(how, self.value, other.value), torch.einsum(how, self.size, other.size))

    def map(self, f: Any) -> _Support:
        return _Support(f(self.reads), f(self.value), f(self.size))


def _join(parts: list[_Support], dim: int) -> _Support:
    return _Support(*(torch.cat([getattr(p, name) for p in parts], dim) for name in ("reads", "value", "size")))


def _structure(S: Basis, A: LinearMap, eps: float) -> _Support:
    """The structure matrices (k, m, n)."""
    if isinstance(S, Stack):
        return _join([_structure(part, A, eps) for part in S.parts], 0)
    if isinstance(S, Product):
        whole = _structure(S.left, A, eps).einsum("kmp,lpn->klmn", _structure(S.right, A, eps))
        return whole.map(lambda t: t.flatten(0, 1))
    if isinstance(S, Polynomial):
        return _polynomial(S, A, eps)
    if isinstance(S, Diagonal):
        value = S.expand(torch.eye(S.shape[2], dtype=A.dtype, device=A.device))
        size = value.abs().amax() if value.numel() else value.abs().sum()
        return _Support(torch.ones_like(value, dtype=torch.bool), value, size.expand_as(value))
    taps = entries(S, A.dtype, A.device)
    at = (taps.pattern.tap, taps.pattern.row, taps.pattern.col)
    values = taps.values.detach().to(A.dtype)
    value = values.new_zeros(taps.shape).index_put(at, values, accumulate=True)
    size = values.abs().new_zeros(taps.shape).index_put(at, values.abs(), accumulate=True)
    return _Support(size > 0, value, size)


def _polynomial(S: Polynomial, A: LinearMap, eps: float) -> _Support:
    L = _structure(S.L, A, eps)
    eye = torch.eye(S.shape[2], dtype=A.dtype, device=A.device).unsqueeze(0)
    terms = [_Support(eye != 0, eye, eye.abs())]
    for k, (alpha, beta, gamma) in enumerate(S.recurrence.rows):
        step = L.einsum("kmp,kpn->kmn", terms[k]).times(alpha)
        step = step + terms[k].times(beta) if beta else step
        terms.append(step + terms[k - 1].times(-gamma) if k and gamma else step)
    if S.combine is None:
        return _join(terms, 0)
    rows = torch.as_tensor(S.combine, dtype=A.dtype, device=A.device).detach()
    if isinstance(S.combine, Tensor):  # computed from parameters: coefficients that cancel leave rounding errors
        rows = torch.where(rows.abs() > eps * rows.abs().amax(1, keepdim=True), rows, 0.0)
    none = _Support(eye > 1, 0 * eye, 0 * eye)
    used = [[t.times(c) for t, c in zip(terms, row, strict=True) if c != 0] for row in rows]
    return _join([reduce(_Support.__add__, parts, none) for parts in used], 0)


def _whole(A: Map, eps: float) -> _Support:
    """The matrix, (m, o, n, i)."""
    if isinstance(A, Scaled):
        return _whole(A.A, eps).times(A.c.detach() if isinstance(A.c, Tensor) else A.c)
    if isinstance(A, Sum):
        return reduce(_Support.__add__, [_whole(B, eps) for B in A.terms])
    if isinstance(A, Composed):
        return reduce(lambda P, Q: P.einsum("mopc,pcni->moni", Q), [_whole(B, eps) for B in A.factors])
    if isinstance(A, Block):
        out, into = (1, 3) if A.axis == "channels" else (0, 2)
        return _join(
            [_join([_block(A, r, c, eps) for c in range(len(A.rows[0]))], into) for r in range(len(A.rows))], out
        )
    A = A.collapse()
    W = A.weight().detach()
    return _structure(A.S, A, eps).einsum("kmn,kio->moni", _Support(W != 0, W, W.abs()))


def _block(A: Block, r: int, c: int, eps: float) -> _Support:
    """One block of a block map; zeros for None."""
    B = A.rows[r][c]
    if B is not None:
        return _whole(B, eps)
    out = next(B for B in A.rows[r] if B is not None)
    into = next(row[c] for row in A.rows if row[c] is not None)
    assert into is not None
    zero = torch.zeros(out.sites[0], out.o, into.sites[1], into.i, dtype=A.dtype, device=A.device)
    return _Support(zero != 0, zero, zero.abs())


@checked
def effective_receptive_field(
    model: Model, x: Any, site: Any = None, domain: Any = None, *, draws: int = 20, seed: int = 0
) -> Tensor:
    """The sensitivity of an output site to each input site, averaged over random inputs.

    Equation: E_j = mean over inputs and channels i of |d (sum_o y_site,o) / d x_j,i|.

    Meaning: the receptive field contains all inputs that can influence an output; this measures how much they do. In
    deep networks it approaches a Gaussian much narrower than the receptive field, which grows linearly with depth. For
    a single linear layer its support is `receptive_field`.

    Traps: weights of opposite sign cancel in the sum over output channels, as in the source.

    Cost: `draws` forward and backward passes; one for a Map, since it is linear.

    Args:
        model: a layer, nn.Sequential of layers, any callable, or a Map. In training mode, running statistics are
            restored afterwards.
        x: an input without its batch axis, (c, *grid) or (n, c), of which only shape, dtype and device are used; or
            its shape.
        site: the output site: an index on graphs, a tuple on grids; default: the middle.
        domain: the graph, for layers on graphs.
        draws: the number of standard normal inputs.
        seed: of the inputs.

    Returns:
        (*grid) or (n,), not normalised.

    Raises:
        TypeError: if the model or x is of another type, or x is complex and the model not a linear map.
        ValueError: if the output has no such site, or the model does not accept the input.

    >>> from gconv import GConv
    >>> from gconv.operators import conv2d
    >>> net = torch.nn.Sequential(*(GConv(conv2d(1, 1, 3, padding=1)) for _ in range(3)))
    >>> int((effective_receptive_field(net, (1, 15, 15)) > 0).sum())  # three layers see 7 x 7
    49

    Source: Luo, Li, Urtasun and Zemel, Understanding the Effective Receptive Field in Deep Convolutional Neural
    Networks, NeurIPS 2016.
    """
    check_model(model, "effective_receptive_field")
    if not is_count(draws):
        raise ValueError(f"draws must be a positive integer, but it is {draws!r}.")
    like = input_like(x, "effective_receptive_field", model)
    if isinstance(model, Map):
        model = widen(model)
        like, draws = like.to(model.device, model.dtype), 1
    check_differentiable(model, like, "effective_receptive_field")
    generator = torch.Generator().manual_seed(seed)
    graph = domain is not None or isinstance(model, Map)
    shape = like.shape[:-1] if graph else like.shape[1:]
    total = torch.zeros(shape, dtype=torch.float64, device=like.device)
    for _ in range(draws):
        with torch.inference_mode(False):
            draw = torch.randn(like.shape, generator=generator, dtype=wider(like.dtype)).to(like.device, like.dtype)
            draw.requires_grad_()
        with torch.inference_mode(False), torch.enable_grad(), undisturbed(model):
            y = _run(model, draw if graph else draw.unsqueeze(0), domain)
            y = y.mT if graph else y.squeeze(0)  # (o, *sites)
            at = _site(site, tuple(y.shape[1:]))
            seen = y.flatten(1)[:, at].sum()
            (gradient,) = torch.autograd.grad(seen, draw, torch.ones_like(seen), materialize_grads=True)
        total += gradient.abs().double().mean(-1 if graph else 0)
    return (total / draws).to(at_least_single(like.real.dtype))


def _run(model: Model, x: Tensor, domain: Any) -> Tensor:
    """The output of a model, which must have site axes. Raises: ValueError."""
    try:
        y = call(model, x, domain)
    except RuntimeError as error:
        raise ValueError(
            f"effective_receptive_field takes an input without its batch axis; with that axis added, the model fails "
            f"on shape {tuple(x.shape)}: {first_line(error)}."
        ) from error
    if y.ndim < 3 - (domain is not None or isinstance(model, Map)):
        raise ValueError(
            f"effective_receptive_field needs an output with sites, but the model returns {tuple(y.shape)}; give the "
            "part of the network before its global pooling."
        )
    return y


def check_differentiable(model: Model, x: Tensor, asking: str) -> None:
    """Check that a model can be differentiated at inputs of this dtype.

    Raises:
        TypeError: if x is not floating point, or complex and the model not a linear map.
    """
    if x.dtype.is_complex and not isinstance(model, Map):
        raise TypeError(
            f"{asking} takes derivatives, which a model of complex numbers need not have; use a linear map, "
            "layer.at(domain)."
        )
    if not (x.dtype.is_floating_point or x.dtype.is_complex):
        raise TypeError(f"{asking} takes derivatives in x, but the dtype of x is {x.dtype}.")


def _site(site: Any, shape: tuple[int, ...]) -> int:
    """The number of a site, row-major."""
    try:
        at = (
            tuple(n // 2 for n in shape)
            if site is None
            else tuple(map(index, site if isinstance(site, tuple) else (site,)))
        )
    except TypeError:
        raise TypeError(
            f"site must be an integer on a graph and a tuple of integers on a grid, but {kind_of(site)} was given."
        ) from None
    if len(at) != len(shape) or any(not 0 <= p < n for p, n in zip(at, shape, strict=True)):
        raise ValueError(f"The output has sites of shape {shape}, but the requested site is {site}.")
    number = 0
    for p, n in zip(at, shape, strict=True):
        number = number * n + p
    return number
