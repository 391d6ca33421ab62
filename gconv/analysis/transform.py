"""Layers changed through their spectrum: singular values clipped, operator norms set."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gconv.analysis.calls import kind_of
from gconv.analysis.fourier import Frames, table, wraps
from gconv.analysis.norms import adjoint, norm
from gconv.analysis.numbers import at_least_single, check_finite, is_count, is_positive, power_of_two, scaled, wider
from gconv.analysis.response import frequency_response
from gconv.arguments import checked, shown
from gconv.basis import Shifts
from gconv.call import Call
from gconv.domains import Grid, read_graph
from gconv.interop.layers import Layer, Other, fill, identify
from gconv.interop.peer import LeftAlone
from gconv.linear import LinearMap
from gconv.mixing import Dense, Grouped, Parametrised, Separable, plain
from gconv.module import GConv, bind

SITES = 6000


AnyLayer = TypeVar("AnyLayer", bound=nn.Module)


@checked
def clip_singular_values(layer: AnyLayer, domain: Any, top: float, *, iterations: int = 1) -> AnyLayer:
    """A copy of a layer whose singular values are at most `top`, as nearly as its weights can express it.

    Equation: H(f) = sum_k g_k(f) W_k at every frequency f; its singular values are cut, H' = U min(Sigma, top) V^T;
    and W' = argmin of sum_f |sum_k g_k(f) W'_k - H'(f)|^2, the nearest the taps can do.

    Meaning: cutting is exact, going back is a projection onto the layer's own kernel. It is exact where the taps
    can express any response: a kernel as large as a grid that wraps around; on a graph, as many (independent) taps
    as different eigenvalues. Elsewhere the result may exceed `top`; each iteration cuts and projects again and comes
    nearer. Grids that do not wrap around are handled on the padded grid with wrapping borders, whose norm is never
    the smaller one.

    Cost: a decomposition of (i, o) for each frequency and iteration.

    Args:
        layer: a GConv or a layer of torch.nn or PyG, converted or not, that mixes densely or in groups, with stride 1;
            on graphs with taps that share an eigenbasis.
        domain: its Grid or graph.
        top: the largest singular value wanted.
        iterations: alternating projections.

    Returns:
        a new layer of the same class; the bias is the same.

    Raises:
        TypeError: if it is no layer.
        ValueError: if the layer has no frequencies, its mixing is another one, its weight is computed by a
            parametrization or a hook, or top is not positive.

    >>> from gconv.analysis import norm
    >>> from gconv.operators import conv2d
    >>> layer = GConv(conv2d(2, 2, 4, padding="same", padding_mode="circular"))  # as large as the grid
    >>> round(norm(clip_singular_values(layer, Grid((4, 4)), 0.5).at(Grid((4, 4)))), 5)
    0.5

    Source: Sedghi, Gupta and Long, The Singular Values of Convolutional Layers, ICLR 2019.
    """
    if not is_positive(top) or not is_count(iterations):
        raise ValueError(
            f"top must be positive and iterations at least 1, but they are {shown(top)} and {shown(iterations)}."
        )
    found = _changeable(layer, "clip_singular_values")
    A = found.at(domain)
    gconv = found.settle(domain)[0]
    mixing, weight = gconv.spec.mixing, gconv.weight
    if not isinstance(mixing, Dense | Grouped) or weight is None:
        raise ValueError(
            f"Singular values are clipped where channels mix densely or in groups, not as {type(mixing).__name__}."
        )
    check_finite(A, "clip_singular_values")
    g = _responses(A)
    factor = mixing.scale if isinstance(mixing, Dense) else 1.0
    W = weight.detach()
    W = W.to(wider(W.dtype)) * factor
    scale = power_of_two(W)  # a decomposition squares
    W = W / scale
    W = W.unsqueeze(1) if W.ndim == 3 else W  # (k, g, i, o)
    wide = torch.promote_types(g.dtype, W.dtype)
    g = g.to(wide)
    back = torch.linalg.pinv(g.mT)  # (k, f)
    for _ in range(iterations):
        H = torch.einsum("kf,kgio->fgio", g, W.to(wide))
        U, sigma, Vh = torch.linalg.svd(H, full_matrices=False)
        cut = (U * sigma.clamp(max=top / scale).unsqueeze(-2).to(U.dtype)) @ Vh
        fitted = torch.einsum("kf,fgio->kgio", back, cut)
        W = fitted.real if fitted.is_complex() and not weight.is_complex() else fitted
    made: AnyLayer = _with_weight(found, W.reshape(weight.shape) / factor * scale)
    return made


def _changeable(layer: Any, asking: str) -> Layer:
    """A layer whose weight can be set.

    Raises:
        TypeError: if it is no layer.
        ValueError: if something computes its weight.
    """
    found = identify(layer) if isinstance(layer, nn.Module) else None
    if not isinstance(found, Layer):
        why = f" ({found.reason})" if isinstance(found, Other) else ""
        raise TypeError(
            f"{asking} takes a layer, a GConv or one of torch.nn or PyG, but {kind_of(layer)} was given{why}."
        )
    if parametrize.is_parametrized(layer) or layer._forward_pre_hooks:
        raise ValueError(
            f"The weight of this {found.name} is computed by a parametrization or a hook, which would undo what "
            f"{asking} sets: remove it first, torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')."
        )
    return found


def _with_weight(found: Layer, W: Tensor) -> Any:
    """A copy of a layer with another weight, given in GConv's layout."""
    made = copy.deepcopy(found.module)
    if found.peer is None:
        assert isinstance(made, GConv) and made.weight is not None
        made.weight.data = made.weight.data.clone().copy_(W)
        return made
    learns = [p.requires_grad for p in made.parameters()]
    made.requires_grad_()
    wanted = {key: w.detach().clone() for key, w in found.peer.weights(made).items() if w is not None}
    try:
        fill(made, found.peer, wanted | {"weight": W.to(wanted["weight"].dtype)})
    except LeftAlone as reason:
        raise ValueError(f"The weight of this {found.name} cannot be set: {reason}.") from None
    for p, wants in zip(made.parameters(), learns, strict=True):
        p.requires_grad_(wants)
    return made


def _responses(A: LinearMap) -> Tensor:
    """(k, f) what each tap does at each frequency."""
    if not isinstance(A.S, Shifts):
        found = table(A.S, Frames(SITES))
        if found is None:
            raise ValueError(
                "Clipping on a graph needs taps that share the eigenbasis of one symmetric matrix: an undirected graph "
                "and symmetric normalisation."
            )
        return found.g
    if wraps(A.S) or not A.S.is_padded:
        return frequency_response(A).taps
    S = A.S
    axes = [torch.fft.fftfreq(n, dtype=torch.float64) for n in S.padded]
    at = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)
    return frequency_response(A, frequencies=at).taps


@checked
def spectral_normalise(layer: AnyLayer, domain: Any, value: float = 1.0) -> AnyLayer:
    """A copy of a layer whose operator norm on this domain is `value`.

    Equation: W' = W value / ||A||, with ||A|| the norm of the operator itself.

    Meaning: torch's `spectral_norm` divides by the norm of the kernel reshaped to a matrix, which for a convolution is
    off by up to sqrt(kernel height x width) either way (at stride 1: ||R|| <= ||A|| <= sqrt(kh kw) ||R|| on a grid that
    wraps around and is as large as the kernel). This one divides by what the layer does on this grid or graph. On
    another domain the norm is another one.

    Cost: see `norm`.

    Args:
        layer: a GConv or a layer of torch.nn or PyG, converted or not, with a weight that its map is linear in; its
            structure not adaptive.
        domain: its Grid or graph.
        value: the norm wanted.

    Returns:
        a new layer of the same class; the bias is the same.

    Raises:
        TypeError: if it is no layer.
        ValueError: if the layer has no weight, its map is zero or not linear in the weight, or its weight is computed
            by a parametrization or a hook.

    >>> from gconv.operators import cheb
    >>> from gconv.operators.shapes import ring
    >>> layer = spectral_normalise(GConv(cheb(2, 3, k=3)), ring())
    >>> round(norm(layer.at(ring())), 5)
    1.0

    Source: Miyato, Kataoka, Koyama and Yoshida, Spectral Normalization for Generative Adversarial Networks, ICLR 2018;
    with the norm of the operator Farnia, Zhang and Tse, Generalizable Adversarial Training via Spectral Normalization,
    ICLR 2019.
    """
    if not is_positive(value):
        raise ValueError(f"value, the norm wanted, must be a positive number, but it is {shown(value)}.")
    found = _changeable(layer, "spectral_normalise")
    size = norm(found.at(domain))
    gconv = found.settle(domain)[0]
    if gconv.weight is None or size == 0:
        raise ValueError(f"{found.name} has no weight, or is zero on this domain: there is nothing to normalise.")
    mixing = gconv.spec.mixing
    first = mixing.taps if isinstance(mixing, Separable) else 0  # diag(d_k) P: only P is scaled
    W = gconv.weight.detach().clone()
    W[first:] = (W[first:].to(wider(W.dtype)) / size * value).to(W.dtype)
    made: AnyLayer = _with_weight(found, W)
    if isinstance(mixing, Parametrised) and abs(norm(_changeable(made, "norm").at(domain)) - value) > 1e-4 * value:
        raise ValueError(f"The map of {found.name} is not linear in its weight, so no factor sets its norm.")
    return made


class SpectralNorm(nn.Module):
    """A parametrization of a layer's weight that keeps its operator norm on a domain at `value`.

    Equation: W = V value / ||A(V)||, with the leading singular vectors found by power iteration, carried on from step
    to step, and sigma = <u, A(V) v> differentiated with u and v held.

    Traps: power iteration approaches sigma from below, so the norm is `value` or a little more.

    Cost: in training two products a forward pass and one more for sigma; evaluation leaves u and v as they are.

    Args:
        layer: a GConv whose structure depends on the domain alone.
        domain: its Grid or graph.
        value: the norm wanted.
        steps: of power iteration in each training pass.

    Raises:
        TypeError: if it is no GConv.
        ValueError: if the structure is learned or adaptive, or there is no weight.

    >>> import torch.nn.utils.parametrize as parametrize
    >>> from gconv.operators import conv2d
    >>> layer = GConv(conv2d(2, 3, 3, padding=1))
    >>> _ = parametrize.register_parametrization(layer, "weight", SpectralNorm(layer, Grid((8, 8))))
    >>> abs(norm(layer.at(Grid((8, 8)))) - 1) < 0.01
    True
    """

    v: Tensor

    def __init__(self, layer: GConv, domain: Any, value: float = 1.0, steps: int = 1) -> None:
        super().__init__()
        found = identify(layer) if isinstance(layer, nn.Module) else None
        if not isinstance(found, Layer) or found.peer is not None:
            raise TypeError(
                f"SpectralNorm is for the weight of a GConv, but {kind_of(layer)} was given; torch's layers have "
                "torch.nn.utils.parametrizations.spectral_norm, and spectral_normalise sets their norm once."
            )
        if not is_positive(value) or not is_count(steps):
            raise ValueError(
                f"value must be positive and steps at least 1, but they are {shown(value)} and {shown(steps)}."
            )
        if layer.spec.structure.kind != "fixed" or layer.weight is None:
            raise ValueError(
                f"{layer.spec.name} cannot be kept at a norm while it trains: that takes a weight, and a structure "
                "that depends on the domain alone."
            )
        self.spec, self.value, self.steps = layer.spec, value, steps
        self.place = domain if isinstance(domain, Grid) else read_graph(domain, -1)
        A = layer.at(self.place)
        generator = torch.Generator().manual_seed(0)
        v = torch.randn(A.sites[1], A.i, generator=generator, dtype=torch.float64)
        self.register_buffer("v", _unit(v).to(A.device, at_least_single(A.dtype)))
        with torch.no_grad():
            self._iterate(self._map(layer.weight.to(self.v.dtype)), 200)

    def _map(self, weight: Tensor) -> LinearMap:
        """The layer's map with this weight."""
        v = self.v.to(weight.dtype)
        mixing, W = plain(self.spec.mixing, weight)
        return LinearMap(bind(self.spec.structure, self.place, {}, Call(v)), mixing, W, v.shape[-1], v.dtype, v.device)

    def _iterate(self, A: LinearMap, steps: int) -> None:
        v = self.v.to(A.dtype)
        for _ in range(steps):
            v = _unit(adjoint(A, _unit(A @ v)))
        self.v = v.to(self.v.dtype)

    def forward(self, weight: Tensor) -> Tensor:
        wide = weight.to(at_least_single(weight.dtype))
        wide = scaled(wide, tuple(range(-wide.ndim, 0)))[0]  # the derivative divides by the norm's square
        A = self._map(wide)
        with torch.no_grad():
            if self.training:
                self._iterate(A, self.steps)
            v = self.v.to(A.dtype)
            u = _unit(A @ v)
        norm = (u.conj() * (A @ v)).sum().real
        factor = self.value / torch.where(norm == 0, torch.ones_like(norm), norm)
        return (wide * factor).to(weight.dtype)


def _unit(x: Tensor) -> Tensor:
    """x / |x|, or 0; no square leaves the range of the dtype."""
    if not x.numel():
        return x
    tiny = torch.finfo(x.dtype).tiny
    x = x / x.abs().amax().clamp(min=tiny)
    return x / x.norm().clamp(min=tiny)
