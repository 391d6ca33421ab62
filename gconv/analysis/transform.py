"""Layers changed through their spectrum: singular values clipped, operator norms set."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from gconv.analysis.fourier import Frames, table, wraps
from gconv.analysis.norms import adjoint, norm
from gconv.analysis.response import frequency_response
from gconv.basis import Shifts
from gconv.domains import Grid, read_graph
from gconv.linear import LinearMap
from gconv.mixing import Dense, Grouped, Parametrised, Separable, plain
from gconv.module import GConv, bind

SITES = 6000


def clip_singular_values(layer: GConv, domain: Any, top: float, *, iterations: int = 1) -> GConv:
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
        layer: mixing densely or in groups, stride 1; on graphs with taps that share an eigenbasis.
        domain: its Grid or graph.
        top: the largest singular value wanted.
        iterations: alternating projections.

    Returns:
        a new layer; the bias is the same.

    Raises:
        ValueError: if the layer has no frequencies, its mixing is another one, or top is not positive.

    >>> from gconv.analysis import norm
    >>> from gconv.operators import conv2d
    >>> layer = GConv(conv2d(2, 2, 4, padding="same", padding_mode="circular"))  # as large as the grid
    >>> round(norm(clip_singular_values(layer, Grid((4, 4)), 0.5).at(Grid((4, 4)))), 5)
    0.5

    Source: Sedghi, Gupta and Long, The Singular Values of Convolutional Layers, ICLR 2019.
    """
    if not top > 0 or iterations < 1:
        raise ValueError(f"top must be positive and iterations at least 1, but they are {top} and {iterations}.")
    A, mixing = layer.at(domain), layer.spec.mixing
    if not isinstance(mixing, Dense | Grouped):
        raise ValueError(
            f"Singular values are clipped where channels mix densely or in groups, not as {type(mixing).__name__}."
        )
    assert layer.weight is not None
    g = _responses(A)
    factor = mixing.scale if isinstance(mixing, Dense) else 1.0
    W = layer.weight.detach().double() * factor
    W = W.unsqueeze(1) if W.ndim == 3 else W  # (k, g, i, o)
    back = torch.linalg.pinv(g.mT)  # (k, f)
    for _ in range(iterations):
        H = torch.einsum("kf,kgio->fgio", g, W.to(g.dtype))
        U, sigma, Vh = torch.linalg.svd(H, full_matrices=False)
        cut = (U * sigma.clamp(max=top).unsqueeze(-2).to(U.dtype)) @ Vh
        fitted = torch.einsum("kf,fgio->kgio", back, cut)
        W = fitted.real if fitted.is_complex() else fitted
    made = copy.deepcopy(layer)
    assert made.weight is not None
    made.weight.data = made.weight.data.clone().copy_(W.reshape(layer.weight.shape) / factor)
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


def spectral_normalise(layer: GConv, domain: Any, value: float = 1.0) -> GConv:
    """A copy of a layer whose operator norm on this domain is `value`.

    Equation: W' = W value / ||A||, with ||A|| the norm of the operator itself.

    Meaning: torch's `spectral_norm` divides by the norm of the kernel reshaped to a matrix, which for a convolution is
    off by up to sqrt(kernel height x width) either way (at stride 1: ||R|| <= ||A|| <= sqrt(kh kw) ||R|| on a grid that
    wraps around and is as large as the kernel). This one divides by what the layer does on this grid or graph. On
    another domain the norm is another one.

    Cost: see `norm`.

    Args:
        layer: any with a weight that its map is linear in, its structure not adaptive.
        domain: its Grid or graph.
        value: the norm wanted.

    Returns:
        a new layer; the bias is the same.

    Raises:
        ValueError: if the layer has no weight, or its map is zero or not linear in the weight.

    >>> from gconv.operators import cheb
    >>> from gconv.operators.shapes import ring
    >>> layer = spectral_normalise(GConv(cheb(2, 3, k=3)), ring())
    >>> round(norm(layer.at(ring())), 5)
    1.0

    Source: Miyato, Kataoka, Koyama and Yoshida, Spectral Normalization for Generative Adversarial Networks, ICLR 2018;
    with the norm of the operator Farnia, Zhang and Tse, Generalizable Adversarial Training via Spectral Normalization,
    ICLR 2019.
    """
    size = norm(layer.at(domain))
    if layer.weight is None or size == 0:
        raise ValueError(f"{layer.spec.name} has no weight, or is zero on this domain: there is nothing to normalise.")
    made = copy.deepcopy(layer)
    assert made.weight is not None
    mixing = layer.spec.mixing
    first = mixing.taps if isinstance(mixing, Separable) else 0  # diag(d_k) P: only P is scaled
    with torch.no_grad():
        made.weight[first:] *= value / size
    if isinstance(mixing, Parametrised) and abs(norm(made.at(domain)) - value) > 1e-4 * value:
        raise ValueError(f"The map of {layer.spec.name} is not linear in its weight, so no factor sets its norm.")
    return made


class SpectralNorm(nn.Module):
    """A parametrization of a layer's weight that keeps its operator norm on a domain at `value`.

    Equation: W = V value / ||A(V)||, with the leading singular vectors found by power iteration, carried on from step
    to step, and sigma = <u, A(V) v> differentiated with u and v held.

    Traps: power iteration approaches sigma from below, so the norm is `value` or a little more.

    Cost: in training two products a forward pass and one more for sigma; evaluation leaves u and v as they are.

    Args:
        layer: whose structure depends on the domain alone.
        domain: its Grid or graph.
        value: the norm wanted.
        steps: of power iteration in each training pass.

    Raises:
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
        if layer.spec.structure.kind != "fixed" or layer.weight is None:
            raise ValueError(
                f"{layer.spec.name} cannot be kept at a norm while it trains: that takes a weight, and a structure "
                "that depends on the domain alone."
            )
        self.spec, self.value, self.steps = layer.spec, value, steps
        self.place = domain if isinstance(domain, Grid) else read_graph(domain, -1)
        A = layer.at(self.place)
        generator = torch.Generator().manual_seed(0)
        v = torch.randn(A.sites[1], A.i, generator=generator, dtype=torch.float64).to(A.device, A.dtype)
        self.register_buffer("v", v / v.norm())
        with torch.no_grad():
            self._iterate(A, 200)

    def _iterate(self, A: LinearMap, steps: int) -> None:
        v = self.v
        for _ in range(steps):
            w = adjoint(A, A @ v)
            v = w / w.norm().clamp(min=torch.finfo(w.dtype).tiny)
        self.v = v

    def forward(self, weight: Tensor) -> Tensor:
        S = bind(self.spec.structure, self.place, {}, self.v)
        mixing, W = plain(self.spec.mixing, weight)
        A = LinearMap(S, mixing, W, self.v.shape[-1], weight.dtype, weight.device)
        if self.training:
            with torch.no_grad():
                self._iterate(A, self.steps)
        with torch.no_grad():
            u = A @ self.v
            u = u / u.norm().clamp(min=torch.finfo(u.dtype).tiny)
        return weight * (self.value / (u.conj() * (A @ self.v)).sum().real)
