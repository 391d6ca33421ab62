"""The registry of oracles, and what they share."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import hypothesis
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from gconv import GConv, Graph
from gconv.spec import Sample
from gconv.testing import TOL, assert_close

Oracle = Callable[[GConv, Any, Tensor], Tensor]
ORACLES: dict[str, Oracle] = {}
RANDOM: dict[str, Callable[[Any], Sample]] = {}
WITHOUT: dict[str, str] = {}  # operators that have no oracle, with the reason


def oracle(*names: str) -> Callable[[Oracle], Oracle]:
    def enter(f: Oracle) -> Oracle:
        ORACLES.update(dict.fromkeys(names, f))
        return f

    return enter


def random_case(*names: str) -> Callable[[Callable[[Any, str], Sample]], None]:
    def enter(f: Callable[[Any, str], Sample]) -> None:
        for name in names:
            RANDOM[name] = lambda draw, name=name: without_double_loops(f(draw, name))

    return enter


# where PyG fills loops: of several at a node it keeps the last one's weight, but sends its gradient to all of them
FILLS_LOOPS = {"gcn", "gcn2", "sgc", "appnp", "pdn", "ssg", "mixhop", "gpr", "ppr"}


def without_double_loops(sample: Sample) -> Sample:
    """The sample; hypothesis rejects a graph with double loops if the operator's oracle has another gradient there."""
    if sample.name.partition("(")[0] in FILLS_LOOPS:
        graph = sample.domain()
        loops = graph.source[graph.source == graph.target]
        hypothesis.assume(len(loops) == len(loops.unique()))
    return sample


def given(layer: GConv) -> dict[str, Any]:
    return dict(layer.spec.arguments)


def call(module: nn.Module, weights: dict[str, Tensor | None], *args: Any) -> Tensor:
    """The module with these weights, without dropout; every one of its parameters must be given."""
    module = module.to(args[0].dtype).eval()
    own = {name for name, _ in module.named_parameters()}
    given = {name: w for name, w in weights.items() if w is not None}
    assert own == set(given), f"parameters {own} of {type(module).__name__}, but {set(given)} are given"
    assert all(dict(module.named_parameters())[k].shape == w.shape for k, w in given.items())
    return functional_call(module, given, args)


def call_grid(module: nn.Module, weights: dict[str, Tensor | None], x: Tensor) -> Tensor:
    given = {name: w for name, w in weights.items() if w is not None}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using padding='same' with even kernel lengths")  # torch copies; so be it
        return functional_call(module.to(x.dtype), given, (x,))


def each(module: nn.Module, weights: dict[str, Tensor | None], x: Tensor, *graph: Any) -> Tensor:
    return torch.stack([call(module, weights, one, *graph) for one in x])


def agree(got: Tensor, want: Tensor) -> None:
    """Two oracles of one operator say the same, to the accuracy of the laws."""
    assert_close("two oracles", got.to(want.dtype), want, TOL[want.dtype])


def edge_weights(g: Graph, x: Tensor) -> Tensor | None:
    return None if g.edge_weight is None else g.edge_weight.to(x.dtype)


@st.composite
def graphs(draw: Any, undirected: bool = False, weighted: bool | None = None) -> Graph:
    """Up to 6 nodes and 10 edges: loops, double edges, isolated nodes, no edges, with or without weights."""
    n = draw(st.integers(1, 6))
    pairs = draw(st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=10))
    index = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).t()
    e = len(pairs)
    w = torch.tensor(draw(st.lists(st.integers(1, 8), min_size=e, max_size=e)), dtype=torch.float64) / 4
    if undirected:
        index, w = torch.cat([index, index.flip(0)], 1), torch.cat([w, w])
    e = index.shape[1]
    attr = torch.stack([torch.sin(1.0 + torch.arange(e)), torch.cos(2.0 * torch.arange(e))], 1).double()
    carries = draw(st.booleans()) if weighted is None else weighted
    return Graph(index, n, edge_weight=w if carries else None, edge_attr=attr, edge_type=torch.arange(e) % 3)
