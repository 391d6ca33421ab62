"""Spectral modification of layers: clipping of singular values, normalisation of the operator norm."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gconv.analysis.fourier import Frames, table, wraps
from gconv.analysis.norms import adjoint, norm
from gconv.analysis.numbers import at_least_single, check_finite, is_count, is_positive, power_of_two, scaled, wider
from gconv.analysis.response import frequency_response
from gconv.arguments import checked, kind_of, shown
from gconv.basis import Shifts
from gconv.binding import bind
from gconv.call import Call
from gconv.domains import Grid, read_graph
from gconv.interop.layers import Layer, Other, fill, identify
from gconv.interop.peer import LeftAlone
from gconv.linear import LinearMap
from gconv.mixing import Dense, Grouped, Parametrised, Separable, plain
from gconv.module import GConv

SITES = 6000


AnyLayer = TypeVar("AnyLayer", bound=nn.Module)


@checked
def clip_singular_values(layer: AnyLayer, domain: Any, top: float, *, iterations: int = 1) -> AnyLayer:
    """A copy of a layer whose singular values are clipped at `top`, as far as its weights can represent that.

    Equation: H(f) = sum_k g_k(f) W_k at every frequency f; the singular values are clipped, H' = U min(Sigma, top) V^T;
    and W' = argmin of sum_f |sum_k g_k(f) W'_k - H'(f)|^2, the least-squares fit by the taps.

    Meaning: clipping is exact; the fit projects onto kernels of the layer's size. It is exact if the taps can represent
    every response: a kernel as large as the grid, with circular padding; on a graph, as many independent taps as there
    are distinct eigenvalues. Otherwise the result may exceed `top`; further iterations of clipping and projection
    reduce the excess. Other padding is treated as circular padding on the padded grid, whose norm is an upper bound.

    Cost: a decomposition of (i, o) per frequency and iteration.

    Args:
        layer: a GConv or a layer of torch.nn or PyG, converted or not, with dense or grouped mixing and stride 1; on
            graphs with taps that share an eigenbasis.
        domain: its Grid or graph.
        top: the largest singular value allowed.
        iterations: number of alternating projections.

    Returns:
        a new layer of the same class with the same bias.

    Raises:
        TypeError: if it is not a layer.
        ValueError: if the layer has no frequency response, has another mixing, its weight is computed by a
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
            "clip_singular_values needs a layer that mixes channels densely or in groups, not as "
            f"{type(mixing).__name__}."
        )
    check_finite(A, "clip_singular_values")
    g = _responses(A)
    factor = mixing.scale if isinstance(mixing, Dense) else 1.0
    W = weight.detach()
    W = W.to(wider(W.dtype)) * factor
    scale = power_of_two(W)  # so that squares in the decomposition stay in range
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
    """The layer, if its weight can be set.

    Raises:
        TypeError: if it is not a layer.
        ValueError: if its weight is computed by a parametrization or a hook.
    """
    found = identify(layer) if isinstance(layer, nn.Module) else None
    if not isinstance(found, Layer):
        why = f" ({found.reason})" if isinstance(found, Other) else ""
        raise TypeError(
            f"{asking} takes a layer, a GConv or one of torch.nn or PyG, but {kind_of(layer)} was given{why}."
        )
    if parametrize.is_parametrized(layer) or layer._forward_pre_hooks:
        raise ValueError(
            f"The weight of this {found.name} is computed by a parametrization or a hook, which would overwrite the "
            f"result of {asking}: remove it first, with "
            "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') for a parametrization."
        )
    return found


def _with_weight(found: Layer, W: Tensor) -> Any:
    """A copy of a layer with another weight, given in the layout of GConv."""
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
    """(k, f) the frequency response of each tap."""
    if not isinstance(A.S, Shifts):
        found = table(A.S, Frames(SITES))
        if found is None:
            raise ValueError(
                "clip_singular_values on a graph needs taps that share the eigenbasis of one symmetric matrix: an "
                "undirected graph and symmetric normalisation."
            )
        return found.g
    if wraps(A.S):
        return frequency_response(A).taps
    S = A.S
    axes = [torch.fft.fftfreq(n, dtype=torch.float64) for n in S.padded]
    at = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)
    return frequency_response(A, frequencies=at).taps


@checked
def spectral_normalise(layer: AnyLayer, domain: Any, value: float = 1.0) -> AnyLayer:
    """A copy of a layer whose operator norm on this domain is `value`.

    Equation: W' = W value / ||A||, with ||A|| the norm of the operator itself.

    Meaning: torch's `spectral_norm` divides by the norm of the kernel reshaped to a matrix, which for a convolution
    differs by up to sqrt(kernel height x width) in either direction (at stride 1, ||R|| <= ||A|| <= sqrt(kh kw) ||R||
    on a circular grid at least as large as the kernel). This function divides by the operator norm on the given grid or
    graph. On another domain the norm is different.

    Cost: see `norm`.

    Args:
        layer: a GConv or a layer of torch.nn or PyG, converted or not, whose map is linear in its weight and whose
            structure is not adaptive.
        domain: its Grid or graph.
        value: the target norm.

    Returns:
        a new layer of the same class with the same bias.

    Raises:
        TypeError: if it is not a layer.
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
        raise ValueError(f"value, the target norm, must be a positive number, but it is {shown(value)}.")
    found = _changeable(layer, "spectral_normalise")
    size = norm(found.at(domain))
    gconv = found.settle(domain)[0]
    if gconv.weight is None or size == 0:
        raise ValueError(f"{found.name} has no weight or is zero on this domain: there is nothing to normalise.")
    mixing = gconv.spec.mixing
    first = mixing.taps if isinstance(mixing, Separable) else 0  # diag(d_k) P: only P is scaled
    W = gconv.weight.detach().clone()
    W[first:] = (W[first:].to(wider(W.dtype)) / size * value).to(W.dtype)
    made: AnyLayer = _with_weight(found, W)
    if isinstance(mixing, Parametrised) and abs(norm(_changeable(made, "norm").at(domain)) - value) > 1e-4 * value:
        raise ValueError(f"The map of {found.name} is not linear in its weight, so scaling cannot set its norm.")
    return made


class SpectralNorm(nn.Module):
    """A parametrization of a layer's weight that keeps its operator norm on a domain at `value`.

    Equation: W = V value / ||A(V)||. The leading singular vectors u and v are updated by power iteration, starting from
    the previous step, and sigma = <u, A(V) v> is differentiated with u and v constant.

    Traps: power iteration underestimates sigma, so the norm is `value` or slightly more.

    Cost: in training two products per step of power iteration and one for sigma; in evaluation u and v are not updated.

    Args:
        layer: a GConv whose structure depends on the domain only.
        domain: its Grid or graph.
        value: the target norm.
        steps: number of power iterations per training pass.

    Raises:
        TypeError: if it is not a GConv.
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
                f"SpectralNorm cannot be used with {layer.spec.name}: it needs a weight, and a structure that depends "
                "on the domain alone."
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
        wide = scaled(wide, tuple(range(-wide.ndim, 0)))[0]  # the derivative contains the square of the norm
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
    """x / |x|, or 0 for x = 0, without overflow or underflow."""
    if not x.numel():
        return x
    tiny = torch.finfo(x.dtype).tiny
    x = x / x.abs().amax().clamp(min=tiny)
    return x / x.norm().clamp(min=tiny)
