"""Over-squashing: how much nodes can still tell each other, by Jacobians and by effective resistance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gconv.analysis.calls import Model, call
from gconv.domains import Graph, read_graph
from gconv.laplacian import laplacian
from gconv.linear import Map


def total_influence(model: Model, x: Tensor | None = None, graph: Any = None, targets: Any = None) -> Tensor:
    """How much each node's output depends on each node's input.

    Equation: I[i, j] = sum over channels of |d y_i,o / d x_j,c|, at x.

    Meaning: the entries of the Jacobian, by nodes. Where it fades with the distance between i and j, the network
    cannot use what is far away (over-squashing). Of a linear map it is the sums of |matrix| and does not depend on x.

    Cost: one backward pass for each output number; with `targets`, for those of the targets.

    Args:
        model: a layer, nn.Sequential of layers, any callable, or a Map.
        x: (n, c) where to differentiate; not needed for a Map.
        graph: the graph, for layers on graphs.
        targets: numbers of the output nodes; default all.

    Returns:
        (targets, n).

    >>> from gconv import GConv
    >>> from gconv.operators import gcn
    >>> from gconv.operators.shapes import ring
    >>> layer = GConv(gcn(2, 2))
    >>> (total_influence(layer, torch.randn(7, 2), ring(7))[0] > 0).nonzero().flatten()  # itself and its neighbours
    tensor([0, 1, 6])

    Source: Topping, Di Giovanni, Chamberlain, Dong and Bronstein, Understanding Over-Squashing and Bottlenecks on
    Graphs via Curvature, ICLR 2022.
    """
    if x is None:
        if not isinstance(model, Map):
            raise ValueError("The influence between nodes depends on the signal: give the x to differentiate at.")
        x = torch.zeros(model.sites[1], model.i, dtype=model.dtype, device=model.device)
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        y = call(model, x, graph)
    rows = range(y.shape[-2]) if targets is None else torch.as_tensor(targets).reshape(-1).tolist()
    out = x.new_zeros(len(rows), x.shape[-2])
    for at, i in enumerate(rows):
        for o in range(y.shape[-1]):
            (gradient,) = torch.autograd.grad(y[..., i, o].sum(), x, retain_graph=True, materialize_grads=True)
            out[at] += gradient.abs().sum(-1)
    return out


def effective_resistance(graph: Any, pairs: Tensor | None = None) -> Tensor:
    """The resistance between two nodes of the graph as a network of resistors.

    Equation: R_uv = (e_u - e_v)^T L^+ (e_u - e_v), L = D - A, an edge of weight w a resistor of 1 / w.

    Meaning: small where many short ways lead from u to v; the commute time of a random walk is R_uv sum(d). Large
    resistances mark the bottlenecks where messages are squashed.

    Traps: networkx calls weights resistances unless told `invert_weight=False`. Loops do nothing; double edges add up.
    Infinite between components.

    Cost: one pseudo-inverse, O(n^3).

    Args:
        graph: an undirected graph: each edge with its reverse, of the same weight, not negative.
        pairs: (2, p) nodes; default the edges.

    Returns:
        (p,) or (e,), in double precision.

    Raises:
        ValueError: if the graph is directed or a weight negative.

    >>> from gconv.operators.shapes import ring
    >>> effective_resistance(ring(4), torch.tensor([[0, 0], [1, 2]]))  # 1 beside 3, 2 beside 2
    tensor([0.7500, 1.0000], dtype=torch.float64)

    Source: Klein and Randic, Resistance Distance, 1993; for graph networks Black, Wan, Nayyeri and Wang, Understanding
    Oversquashing in GNNs through the Lens of Effective Resistance, ICML 2023.
    """
    place = read_graph(graph, -1)
    if not place.is_undirected or bool((place.weights(torch.float64) < 0).any()):
        raise ValueError(
            "Resistances are defined on undirected graphs (each edge with its reverse, of the same weight) whose "
            "weights are not negative; this graph is not one."
        )
    ends = place.edge_index if pairs is None else torch.as_tensor(pairs, device=place.device)
    if ends.ndim != 2 or len(ends) != 2:
        raise ValueError(f"Pairs are a (2, p) tensor of nodes, but the shape given is {tuple(ends.shape)}.")
    inverse = place.memo("laplacian pseudo-inverse", lambda: _pseudo_inverse(place))
    u, v = ends
    part = place.memo("components", lambda: _components(place))
    resistance = (inverse[u, u] + inverse[v, v] - inverse[u, v] - inverse[v, u]).clamp(min=0)
    return torch.where(part[u] == part[v], resistance, torch.inf)


def _pseudo_inverse(graph: Graph) -> Tensor:
    L = laplacian(graph, torch.float64, norm=None)
    dense = L.expand(torch.eye(graph.size, dtype=torch.float64, device=graph.device))[0].detach()
    return torch.linalg.pinv((dense + dense.mT) / 2, hermitian=True)


def _components(graph: Graph) -> Tensor:
    """(n,) the smallest node of each node's component."""
    label = torch.arange(graph.size, device=graph.device)
    joined = graph.weights(torch.float64) > 0
    u, v = graph.edge_index[:, joined]
    while True:
        lower = label.scatter_reduce(0, v, label[u], "amin")
        lower = lower[lower]  # follow the label of the label, which halves the way
        if torch.equal(lower, label):
            return label
        label = lower
