"""Gaussian kernels on the pseudo-coordinates of the edges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from gconv.basis import Basis, SharedTaps, Stack
from gconv.call import Call
from gconv.domains import Edges
from gconv.laplacian import counts, itself, pattern
from gconv.mixing import Dense
from gconv.operators.shapes import Channels, messy, weighted, widest
from gconv.spec import GraphStructure, Parameter, Parts, Sample, Theta, register


@dataclass(frozen=True)
class Gaussians(GraphStructure):
    """One tap per Gaussian of `edge_attr`, averaged over the incoming edges; with `root` the node itself, too."""

    kernels: int
    dim: int
    root: bool

    kind = "learned"

    @property
    def reads(self) -> Literal["source", "both"]:
        return "both" if self.root else "source"

    @property
    def taps(self) -> int:
        return self.kernels + self.root

    def parameters(self) -> dict[str, Parameter]:
        spread = (6 / (self.kernels + self.dim)) ** 0.5
        shape = (self.kernels, self.dim)
        return {"mu": Parameter(shape, "uniform", spread), "sigma": Parameter(shape, "uniform", spread)}

    def basis(self, domain: Edges, theta: Theta, call: Call) -> Basis:
        if domain.edge_attr is None or domain.edge_attr.shape[1] != self.dim:
            have = "none" if domain.edge_attr is None else f"{domain.edge_attr.shape[1]}"
            raise ValueError(
                f"monet needs pseudo-coordinates: edge_attr with {self.dim} numbers an edge; the graph has {have}."
            )
        one, _ = pattern(domain)
        kind = torch.promote_types(call.x.dtype, torch.float32)  # 1 / sigma^4, in the gradient, overflows float16
        u, mu, sigma = (v.to(kind) for v in (domain.edge_attr, theta["mu"], theta["sigma"]))
        distance = (u - mu.unsqueeze(1)).square() / (1e-15 + sigma.square().unsqueeze(1))
        share = counts(one.row, domain.sites[0]).clamp(min=1).double().reciprocal()
        values = torch.exp(-0.5 * distance.sum(-1)) * share[one.row].to(kind)
        S = SharedTaps(one, values.t().to(call.x.dtype))
        return Stack((S, itself(domain, call.x.dtype))) if self.root else S


@register(
    samples=lambda monet: [
        Sample(monet(3, 2, dim=2, kernel_size=3), weighted, 3),
        Sample(monet(2, 3, dim=2, kernel_size=2, root_weight=False, bias=False), messy, 2),
    ],
    citation="Monti et al., Geometric Deep Learning on Graphs and Manifolds Using Mixture Model CNNs, CVPR 2017",
    init="glorot",
)
def monet(
    in_channels: Channels, out_channels: int, dim: int, kernel_size: int, root_weight: bool = True, bias: bool = True
) -> Parts:
    """MoNet: edges are weighted by learned Gaussians of their pseudo-coordinates, with one matrix per Gaussian.

    Equation: y_i = sum_k W_k^T (1 / |N(i)|) sum over edges j -> i of g_k(u_ij) x_j + W_K^T x_i + b,
    g_k(u) = exp(-1/2 sum_d (u_d - mu_k,d)^2 / sigma_k,d^2).

    Meaning: a soft, learned version of the offset labels of a grid convolution.

    In the family: K + 1 taps, learned sparse structure and the identity; W dense.

    Traps: as in the code of PyG's GMMConv: the mean over edges, without the factor 1 / K of its docstring. Edge weights
    are ignored; u is `edge_attr`.

    Args: PyG's GMMConv's. dim: number of pseudo-coordinates per edge; kernel_size: K, the number of Gaussians.

    Shapes: x (*b, n, i) -> (*b, n, o), edge_attr (e, dim); mu, sigma (K, dim).
    Between two sets of nodes: `layer((x_source, x_target), bipartite)`; in_channels may be a pair (i_source, i_target).

    Raises:
        ValueError: if dim or kernel_size is not positive, or the graph has no edge_attr or one of another width.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(monet(3, 2, dim=2, kernel_size=4))(torch.zeros(8, 3), weighted()).shape
    torch.Size([8, 2])
    """
    if min(dim, kernel_size) < 1:
        raise ValueError(
            f"monet needs at least one coordinate and one Gaussian, not dim={dim}, kernel_size={kernel_size}."
        )
    return (
        Gaussians(kernel_size, dim, root_weight),
        Dense(kernel_size + root_weight, widest(in_channels), out_channels),
        bias,
    )
