"""Oversmoothing: the variation of a signal between neighbours, and its decay with depth."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from gconv.analysis.calls import check_model, check_signal, undisturbed, walk
from gconv.analysis.numbers import at_least_single, scaled
from gconv.arguments import checked, kind_of, plural
from gconv.domains import read_graph
from gconv.interop.layers import Chain, Other, identify
from gconv.laplacian import inverse_root_degree


@checked
def dirichlet_energy(
    x: Tensor, graph: Any, normalization: Literal["sym"] | None = None, *, relative: bool = False
) -> Tensor:
    """The Dirichlet energy: the variation of a signal between neighbours.

    Equation: E(x) = 1/2 sum over edges j -> i of w_ij |x_i / sqrt(d_i) - x_j / sqrt(d_j)|^2 with "sym", without the
    square roots for None. On an undirected graph (each edge in both directions) it is trace(x^T L x).

    Meaning: zero if the signal is constant (with "sym": a multiple of sqrt(d)) on each component, large if neighbours
    differ. In a network that oversmooths it decays to zero exponentially with depth.

    Traps: an isolated node contributes 0, although the normalised L has diagonal 1 there (PyG's convention). The
    energies of PyGSP and of Rusch et al. differ by constant factors (1 / n for the latter). Self-loops contribute 0.

    Cost: two rows of x per edge.

    Args:
        x: (*b, n, c).
        graph: any graph.
        normalization: "sym" or None. d are out-degrees without self-loops, as in `laplacian`.
        relative: divide by |x|^2 (the Rayleigh quotient, which is invariant to the scale of x; NaN for x = 0).

    Returns:
        (*b), differentiable in x; summed over channels. Real, and float32 for 16-bit signals.

    Raises:
        TypeError: if x is not a floating point tensor, or the graph is not a graph.
        ValueError: if the normalisation is unknown, sizes differ, or a degree is negative (with "sym").

    >>> from gconv.operators.shapes import ring
    >>> dirichlet_energy(torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]), ring(4))  # four edges, each |2|^2
    tensor(16.)

    Source: Cai and Wang, A Note on Over-Smoothing for Graph Neural Networks, 2020.
    """
    if normalization not in ("sym", None):
        raise ValueError(f"normalization must be 'sym' or None, but it is {normalization!r}.")
    check_signal(x, "dirichlet_energy")
    place = read_graph(graph, x.shape[-2])
    if place.size != x.shape[-2]:
        raise ValueError(
            f"The graph has {plural(place.size, 'node')}, but x of shape {tuple(x.shape)} has {x.shape[-2]}."
        )
    x = x.to(at_least_single(x.dtype))
    real = x.real.dtype
    unit, scale = scaled(x, (-2, -1))  # so that squares neither overflow nor underflow
    weighed = unit if normalization is None else unit * inverse_root_degree(place).to(real).unsqueeze(-1)
    gap = weighed.index_select(-2, place.target) - weighed.index_select(-2, place.source)
    energy = 0.5 * (place.weights(real) * gap.abs().square().sum(-1)).sum(-1)
    scale = scale.flatten(-2).squeeze(-1)
    return energy / unit.abs().square().sum((-2, -1)) if relative else energy * scale * scale


@checked
def mean_average_distance(x: Tensor, graph: Any = None) -> float:
    """MAD: the mean cosine distance between nodes, over neighbours or over all pairs.

    Equation: D_ij = 1 - <x_i, x_j> / (|x_i| |x_j|); the mean over nodes i of the mean over j of the D_ij > 0.

    Meaning: near 0 if the features of all nodes are nearly parallel.

    Traps: as in the source, distances of zero are excluded from the mean; a zero vector has distance 1 to all others.

    Cost: n^2 numbers for all pairs, one number per edge with a graph.

    Args:
        x: (n, c); complex features are treated as twice as many real ones.
        graph: restricts the pairs to edges; default: all pairs.

    Raises:
        TypeError, ValueError: if x is not a signal (n, c), or the graph has another size.

    >>> mean_average_distance(torch.eye(3))
    1.0

    Source: Chen, Lin, Li, Li, Zhou and Sun, Measuring and Relieving the Over-smoothing Problem, AAAI 2020.
    """
    check_signal(x, "mean_average_distance", "(n, c)")
    if x.ndim != 2:
        raise ValueError(f"mean_average_distance takes one signal (n, c), but x has shape {tuple(x.shape)}.")
    x = x.detach()
    x = torch.view_as_real(x).flatten(-2) if x.is_complex() else x
    wide = scaled(x.double(), (-1,))[0]
    size = wide.norm(dim=-1, keepdim=True)
    unit = wide / torch.where(size > 0, size, 1.0)
    if graph is None:
        gap = 1 - unit @ unit.mT
        gap = gap.fill_diagonal_(0.0)
        row = torch.arange(len(x), device=x.device).repeat_interleave(len(x))
        gap = gap.flatten()
    else:
        place = read_graph(graph, len(x))
        if place.size != len(x):
            raise ValueError(
                f"The graph has {plural(place.size, 'node')}, but x of shape {tuple(x.shape)} has {len(x)}."
            )
        row, gap = place.target, 1 - (unit[place.target] * unit[place.source]).sum(-1)
        gap = torch.where(place.target == place.source, 0.0, gap)
    far = gap.abs() > 1e-12
    total = unit.new_zeros(len(x)).index_add(0, row, torch.where(far, gap, 0.0))
    count = unit.new_zeros(len(x)).index_add(0, row, far.double())
    some = count > 0
    return float((total[some] / count[some]).mean()) if bool(some.any()) else 0.0


@checked
def energy_by_depth(
    model: nn.Module | list[nn.Module],
    x: Tensor,
    graph: Any,
    normalization: Literal["sym"] | None = "sym",
    *,
    relative: bool = True,
) -> Tensor:
    """The Dirichlet energy of the input and of the output of each layer.

    Equation: E(x), E(f_1(x)), E(f_2(f_1(x))), ...

    Cost: one forward pass.

    Args:
        model: nn.Sequential, nn.ModuleList or list of layers; graph layers are called with the graph. Buffers, such as
            running statistics, and training modes are restored afterwards.
        x: (n, c).
        graph: any graph.
        normalization, relative: see `dirichlet_energy`.

    Returns:
        (layers + 1,).

    Raises:
        TypeError: if the model is not a sequence of layers, or x is not a signal.

    >>> from gconv import GConv
    >>> from gconv.operators import sgc
    >>> from gconv.operators.shapes import ring
    >>> steps = torch.nn.Sequential(*(GConv(sgc(2, 2, k=4)) for _ in range(4)))
    >>> energy_by_depth(steps, torch.randn(7, 2), ring(7)).shape
    torch.Size([5])
    """
    found = identify(model) if isinstance(model, nn.Module) else None
    if not isinstance(found, Chain) and not isinstance(model, list | tuple):
        why = f" ({found.reason})" if isinstance(found, Other) and isinstance(model, nn.Sequential) else ""
        raise TypeError(
            "energy_by_depth takes layers in a row, an nn.Sequential, an nn.ModuleList or a list, but "
            f"{kind_of(model)} was given{why}."
        )
    layers: Any = found.parts if isinstance(found, Chain) else model
    for layer in layers:
        check_model(layer, "energy_by_depth")
    check_signal(x, "energy_by_depth", "(n, c)")
    place: Any = read_graph(graph, x.shape[-2])
    modules = nn.ModuleList(layer for layer in layers if isinstance(layer, nn.Module))
    with torch.no_grad(), undisturbed(modules):
        energies = [dirichlet_energy(x, place, normalization, relative=relative)]
        for layer in layers:
            x, place = walk(layer, x, place)
            energies.append(dirichlet_energy(x, place, normalization, relative=relative))
    return torch.stack(energies)
