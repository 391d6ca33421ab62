"""The matrix that a layer actually applies, and the entries in which two layers differ."""

import copy
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from experiments.conformance.rules import Matrix
from gconv import GConv, Graph, NotLinear


class Entry(NamedTuple):
    """An entry in which two matrices differ: the weight of site `source` is a in one and b in the other."""

    target: int
    source: int
    out_channel: int
    in_channel: int
    a: float
    b: float


class Difference(NamedTuple):
    """The entries in which two matrices differ, the largest difference first, and how large it is."""

    entries: tuple[Entry, ...]
    largest: float

    def __str__(self) -> str:
        if not self.entries:
            return "no entry differs"
        channels = any(e.out_channel or e.in_channel for e in self.entries)
        lines = []
        for e in self.entries:
            which = f", channel {e.in_channel} -> {e.out_channel}" if channels else ""
            lines.append(f"node {e.source} -> {e.target}{which}: {e.a:.3f} and {e.b:.3f}")
        return "\n".join(lines)


def applied(layer: nn.Module, graph: Graph, **call: Any) -> Matrix:
    """The matrix (n o, n i) that a layer applies on a graph, found by running it on identity features.

    Equation: column (j, c) is layer(e_jc) - layer(0), sites outermost. The bias is left out, dropout is off.

    Meaning: what the code computes, regardless of its documentation. A GConv is called with the graph, a PyG layer with
    `edge_index`, and with `edge_weight` if its forward method accepts it.

    Args:
        layer: a GConv, or a PyG layer with `in_channels`.
        graph: any graph.
        call: further arguments of the call, for example PyG's `lambda_max=`.

    Raises:
        NotLinear: if the layer is not linear in its features (up to a constant), so that it has no matrix.

    >>> from experiments.conformance.libraries import plain
    >>> from gconv.operators import gcn
    >>> applied(GConv(gcn(3, 2)), plain()).shape
    (10, 15)
    """
    layer = copy.deepcopy(layer).double().eval()
    channels: int = layer.spec.mixing.i if isinstance(layer, GConv) else layer.in_channels  # type: ignore
    arguments: tuple[Any, ...] = (graph,)
    if not isinstance(layer, GConv):
        arguments = (graph.edge_index,)
        if graph.edge_weight is not None and "edge_weight" in inspect.signature(layer.forward).parameters:
            call = {"edge_weight": graph.edge_weight.double(), **call}

    def run(x: torch.Tensor) -> torch.Tensor:
        return layer(x, *arguments, **call)

    with torch.no_grad():
        start = run(torch.zeros(graph.size, channels, dtype=torch.float64))
        columns = [
            run(e.reshape(graph.size, channels)) - start for e in torch.eye(graph.size * channels, dtype=torch.float64)
        ]
        M = torch.stack([c.flatten() for c in columns], 1)
        x = torch.linspace(-1, 2, graph.size * channels, dtype=torch.float64).cos()
        if not torch.allclose(M @ x, (run(x.reshape(graph.size, channels)) - start).flatten(), atol=1e-8):
            raise NotLinear(f"{type(layer).__name__} is not linear in its features, so no matrix says what it applies.")
    return M.numpy()


Applies = nn.Module | Callable[[Graph], Matrix]


def differ(layer_a: Applies, layer_b: Applies, graph: Graph, tol: float = 1e-6) -> Difference:
    """The entries in which the matrices of two layers differ on a graph.

    Meaning: if two layers with the same weights differ, they follow different conventions, and the entries show where:
    at self-loops, at one end of a directed edge, at an isolated node.

    Traps: the matrices include the weights, so both layers must have the same weights for a meaningful comparison.

    Args:
        layer_a, layer_b: layers (GConv, PyG), run on identity features by `applied`; or functions graph -> matrix
            (n o, n i), both with the same channels.
        graph: any graph.
        tol: entries with a difference of at most this count as equal.

    Raises:
        ValueError: if the matrices have different shapes.
        NotLinear: if a layer has no matrix.

    >>> from torch_geometric.nn import GCNConv
    >>> from experiments.conformance.libraries import everything
    >>> from gconv.operators import gcn
    >>> theirs, ours, plainer = GCNConv(1, 1), GConv(gcn(1, 1)), GConv(gcn(1, 1, add_self_loops=False))
    >>> for weight in (theirs.lin.weight, ours.weight, plainer.weight):
    ...     _ = torch.nn.init.ones_(weight)
    >>> print(differ(theirs, ours, everything()))
    no entry differs
    >>> print(differ(ours, plainer, Graph(torch.tensor([[0, 1], [1, 0]]), 3)))
    node 2 -> 2: 1.000 and 0.000
    node 0 -> 0: 0.500 and 0.000
    node 1 -> 0: 0.500 and 1.000
    node 0 -> 1: 0.500 and 1.000
    node 1 -> 1: 0.500 and 0.000
    """
    a, b = (_matrix(layer, graph) for layer in (layer_a, layer_b))
    if a.shape != b.shape:
        raise ValueError(f"Two maps that differ in shape cannot be compared by entries: {a.shape} and {b.shape}.")
    gap, n = abs(a - b), graph.size
    o, i = a.shape[0] // n, a.shape[1] // n
    rows, cols = np.nonzero(~(gap <= tol))
    entries = [
        Entry(int(r // o), int(c // i), int(r % o), int(c % i), float(a[r, c]), float(b[r, c]))
        for r, c in sorted(zip(rows, cols, strict=True), key=lambda at: -gap[at].round(12))
    ]
    return Difference(tuple(entries), float(gap.max(initial=0.0)))


def _matrix(layer: Applies, graph: Graph) -> Matrix:
    return applied(layer, graph) if isinstance(layer, nn.Module) else layer(graph)
