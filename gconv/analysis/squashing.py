"""Over-squashing: the influence between nodes, by Jacobians and by effective resistance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gconv.analysis.calls import Model, call, check_model, check_signal, undisturbed
from gconv.analysis.numbers import at_least_single, widen
from gconv.analysis.receptive import check_differentiable
from gconv.arguments import checked, kind_of, plural
from gconv.domains import Graph, read_graph
from gconv.linear import Map


@checked
def total_influence(model: Model, x: Tensor | None = None, graph: Any = None, targets: Any = None) -> Tensor:
    """The influence of each node's input on each node's output.

    Equation: I[i, j] = sum over channels of |d y_i,o / d x_j,c|, at x.

    Meaning: the absolute Jacobian, summed over the channels of each pair of nodes. If it decays quickly with the
    distance between i and j, the network cannot use distant information (over-squashing). For a linear map it consists
    of sums of |matrix entries| and does not depend on x.

    Cost: one backward pass per output number (of the targets).

    Args:
        model: a layer, nn.Sequential of layers, any callable, or a Map.
        x: (n, c) where to differentiate; not needed for a Map.
        graph: the graph, for layers on graphs.
        targets: indices of output nodes; default: all.

    Returns:
        (targets, n), float32 for 16-bit models.

    Raises:
        TypeError, ValueError: if the model, x or the targets are of another type or out of range, x is missing, or x
            is complex and the model not a linear map.

    >>> from gconv import GConv
    >>> from gconv.operators import gcn
    >>> from gconv.operators.shapes import ring
    >>> layer = GConv(gcn(2, 2))
    >>> (total_influence(layer, torch.randn(7, 2), ring(7))[0] > 0).nonzero().flatten()  # itself and its neighbours
    tensor([0, 1, 6])

    Source: Topping, Di Giovanni, Chamberlain, Dong and Bronstein, Understanding Over-Squashing and Bottlenecks on
    Graphs via Curvature, ICLR 2022.
    """
    check_model(model, "total_influence")
    if x is None:
        if not isinstance(model, Map):
            raise ValueError("The influence between nodes depends on the signal: give the x at which to differentiate.")
        x = torch.zeros(model.sites[1], model.i, dtype=model.dtype, device=model.device)
    check_signal(x, "total_influence", "(n, c)")
    if x.ndim != 2:
        raise ValueError(f"total_influence takes one signal x of shape (n, c), but its shape is {tuple(x.shape)}.")
    check_differentiable(model, x, "total_influence")
    result = at_least_single(x.real.dtype)
    if isinstance(model, Map):
        model = widen(model)
        x = x.to(model.dtype)
    x = x.detach().requires_grad_()
    with torch.enable_grad(), undisturbed(model):
        y = call(model, x, graph)
        rows = range(y.shape[-2]) if targets is None else _targets(targets, y.shape[-2])
        out = torch.zeros(len(rows), x.shape[-2], dtype=torch.float64, device=x.device)
        for at, i in enumerate(rows):
            for o in range(y.shape[-1]):
                number = y[..., i, o].sum()
                ones = torch.ones_like(number)
                (gradient,) = torch.autograd.grad(number, x, ones, retain_graph=True, materialize_grads=True)
                out[at] += gradient.detach().abs().double().sum(-1)
    return out.to(result)


def _targets(targets: Any, nodes: int) -> list[int]:
    try:
        numbers = torch.as_tensor(targets).reshape(-1)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"targets must be indices of output nodes, but {kind_of(targets)} was given.") from None
    if numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool:
        raise TypeError(f"targets must be indices of output nodes, but their dtype is {numbers.dtype}.")
    found: list[int] = numbers.tolist()
    if any(not 0 <= at < nodes for at in found):
        raise ValueError(f"The output has {plural(nodes, 'node')}, numbered from 0, but the targets are {found}.")
    return found


@checked
def effective_resistance(graph: Any, pairs: Tensor | None = None) -> Tensor:
    """The effective resistance between pairs of nodes, with the graph as a network of resistors.

    Equation: R_uv = (e_u - e_v)^T L^+ (e_u - e_v), L = D - A, where an edge of weight w is a resistor of 1 / w.

    Meaning: small if many short paths lead from u to v; the commute time of a random walk is R_uv sum(d). Large
    resistances indicate bottlenecks, where over-squashing occurs.

    Traps: networkx treats weights as resistances unless `invert_weight=False`. Self-loops have no effect; the weights
    of double edges add up. The resistance between different components is infinite.

    Cost: O(n^3) for each component of n nodes, by subtraction-free elimination (Grassmann, Taksar and Heyman), which is
    accurate even if the weights of a graph differ by many orders of magnitude.

    Args:
        graph: an undirected graph: each edge with its reverse of the same weight, not negative.
        pairs: (2, p) nodes; default: the edges.

    Returns:
        (p,) or (e,), in double precision.

    Raises:
        TypeError, ValueError: if the graph is directed, a weight is negative, or a pair contains an invalid node.

    >>> from gconv.operators.shapes import ring
    >>> effective_resistance(ring(4), torch.tensor([[0, 0], [1, 2]]))  # 1 and 3 in parallel; 2 and 2 in parallel
    tensor([0.7500, 1.0000], dtype=torch.float64)

    Source: Klein and Randic, Resistance Distance, 1993; for graph networks Black, Wan, Nayyeri and Wang, Understanding
    Oversquashing in GNNs through the Lens of Effective Resistance, ICML 2023.
    """
    place = read_graph(graph, -1)
    if not place.is_undirected or bool((place.weights(torch.float64) < 0).any()):
        raise ValueError(
            "effective_resistance needs an undirected graph (each edge with its reverse, of the same weight) with "
            "non-negative weights."
        )
    ends = place.edge_index if pairs is None else _pairs(pairs, place)
    part = place.memo("components", lambda: _components(place), of_weights=True)
    factors = place.memo("resistance factors", lambda: _factors(place, part), of_weights=True)
    u, v = ends
    resistance = torch.where(part[u] == part[v], 0.0, torch.full_like(u, torch.inf, dtype=torch.float64))
    for nodes, Y in factors:  # R_uv = |y_u - y_v|^2
        inside = (part[u] == part[nodes[0]]) & (part[v] == part[nodes[0]])
        at = torch.empty_like(part)
        at[nodes] = torch.arange(len(nodes), device=nodes.device)
        chosen = inside.nonzero()[:, 0]
        for some in chosen.split(max(1, CHUNK_NUMBERS // len(nodes))):
            resistance[some] = (Y[at[u[some]]] - Y[at[v[some]]]).square().sum(-1)
    return resistance


CHUNK_NUMBERS = 1 << 22
PANEL_NODES = 64


def _pairs(pairs: Any, graph: Graph) -> Tensor:
    try:
        ends = torch.as_tensor(pairs, device=graph.device)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"pairs must be a (2, p) tensor of nodes, but {kind_of(pairs)} was given.") from None
    if ends.ndim != 2 or len(ends) != 2:
        raise ValueError(f"pairs must be a (2, p) tensor of nodes, but its shape is {tuple(ends.shape)}.")
    if ends.is_floating_point() or ends.is_complex() or ends.dtype == torch.bool:
        raise TypeError(f"pairs must be a (2, p) tensor of nodes, but its dtype is {ends.dtype}.")
    if ends.numel() and not 0 <= int(ends.min()) <= int(ends.max()) < graph.size:
        raise ValueError(f"pairs must contain nodes from 0 to {graph.size - 1}, but it contains others.")
    return ends.long()


def _factors(graph: Graph, part: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For each component of more than one node: its nodes, and Y with R_uv = |y_u - y_v|^2."""
    weight = graph.weights(torch.float64).detach()
    kept = (graph.source != graph.target) & (weight > 0)
    source, target, weight = graph.source[kept], graph.target[kept], weight[kept]
    found = []
    at = torch.empty_like(part)
    for label in torch.unique(part[source]):
        nodes = (part == label).nonzero()[:, 0]
        at[nodes] = torch.arange(len(nodes), device=nodes.device)
        edge = part[source] == label
        W = weight.new_zeros(len(nodes), len(nodes))
        W = W.index_put((at[target[edge]], at[source[edge]]), weight[edge], accumulate=True)
        found.append((nodes, _embedded(W)))
    return found


def _embedded(W: Tensor) -> Tensor:
    """Y (n, n - 1) with |y_u - y_v|^2 the resistances of a connected network of conductances W (n, n).

    The Laplacian, grounded at the last node, is C D C^T with C unit lower triangular; Y = (D^(-1/2) C^(-1))^T. Nodes
    are eliminated in turn: w_ij += w_ik w_kj / d_k with d_k = sum_j w_kj over the remaining nodes. Only positive
    numbers are added, so every result has a small relative error for any range of weights.
    """
    n = len(W)
    W, d = W.clone(), W.new_empty(n - 1)
    C = torch.eye(n - 1, dtype=W.dtype, device=W.device)
    for start in range(0, n - 1, PANEL_NODES):
        stop = min(start + PANEL_NODES, n - 1)
        for k in range(start, stop):  # update the rows of this panel; the rows below follow in one product
            d[k] = W[k, k + 1 :].sum()
            ratio = W[k, k + 1 :] / d[k]
            C[k + 1 :, k] = -ratio[:-1]
            W[k + 1 : stop, k + 1 :] += torch.outer(ratio[: stop - k - 1], W[k, k + 1 :])
        panel = W[start:stop, stop:]
        W[stop:, stop:] += (panel / d[start:stop, None]).mT @ panel
    eye = torch.eye(n - 1, dtype=W.dtype, device=W.device)
    inverse = torch.linalg.solve_triangular(C, eye, upper=False, unitriangular=True)
    Y = (inverse / d.sqrt().unsqueeze(-1)).mT
    return torch.cat([Y, Y.new_zeros(1, n - 1)])


def _components(graph: Graph) -> Tensor:
    """(n,) the smallest node in the component of each node."""
    label = torch.arange(graph.size, device=graph.device)
    joined = graph.weights(torch.float64) > 0
    u, v = graph.edge_index[:, joined]
    while True:
        lower = label.scatter_reduce(0, v, label[u], "amin")
        lower = lower[lower]  # pointer jumping
        if torch.equal(lower, label):
            return label
        label = lower
