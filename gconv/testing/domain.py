"""What moves with the domain: nodes renamed, grids shifted, unions, batches, and the smallest domains."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from gconv.basis import Shifts
from gconv.domains import Graph, Grid
from gconv.linear import LinearMap
from gconv.spec import Domain
from gconv.testing.case import Case, a_law, a_linear_law, shuffled


@a_law
def law_permutation(case: Case) -> bool:
    """Graphs: renaming the nodes renames the output; the order in which edges are listed does not matter."""
    g = case.domain
    if isinstance(g, Grid) or len(g.ptr) != 2 or case.one_graph:
        return False
    order, y = shuffled(g.size), case(case.x)
    renamed = case(torch.empty_like(case.x).index_copy(-2, order, case.x), domain=g.permute(order))
    back = renamed[..., order, :] if y.shape[-2] == g.size else renamed
    case.close("nodes renamed", back, y)
    edges = shuffled(g.num_edges)
    tensors = {k: v[edges] for k in ("edge_weight", "edge_attr", "edge_type") if (v := getattr(g, k)) is not None}
    listed = replace(g, edge_index=g.edge_index[:, edges], **tensors)
    case.close("edges listed in another order", case(case.x, domain=listed), y)
    return True


@a_linear_law
def law_translation(case: Case, A: LinearMap) -> bool:
    """Circular grids, stride 1: shifting the input shifts the output."""
    if _circular(A) is None:
        return False
    assert isinstance(case.domain, Grid)
    axes, y = tuple(range(-case.domain.ndim, 0)), case(case.x)
    for steps in ((1,) * len(axes), tuple(range(2, 2 + len(axes)))):
        moved = case(case.x.roll(steps, axes))
        case.close(f"translated by {steps}", moved, y.roll(steps, axes))
    return True


def _circular(A: LinearMap) -> Shifts | None:
    """The structure, if it is a circulant: shifts that lead a grid onto itself and wrap around."""
    S = A.S
    circular = isinstance(S, Shifts) and not S.window and set(S.stride) == {1} and S.grids[0] == S.grids[1]
    return S if circular and isinstance(S, Shifts) and (S.mode == "circular" or not S.is_padded) else None


@a_law
def law_union(case: Case) -> bool:
    """A disjoint union of graphs acts as the direct sum: each part as if it were alone."""
    g = case.domain
    if isinstance(g, Grid) or case.one_graph:
        return False
    other = replace(g.permute(shuffled(g.size)), ptr=g.ptr)
    y = case(torch.cat([case.x, 2 * case.x], -2), domain=Graph.union([g, other]))
    alone = torch.cat([case(case.x), case(2 * case.x, domain=other)], -2)
    case.close("on the union against each part alone", y, alone)
    return True


@a_law
def law_edge_cases(case: Case) -> bool:
    """No edges, one node, self-loops, double edges, isolated nodes, empty batches: finite, and as `dense` has it."""
    if case.one_graph:
        return False
    for what, domain in _edge_cases(case.domain).items():
        case = Case.of(case.sample, case.dtype, domain)
        want = case(case.x, "dense")
        if not bool(want.isfinite().all()):
            case.fail(f"{what}: the output is not finite.")
        for name in case.lowerings:
            case.close(f"{what}: {name} against dense", case(case.x, name), want)
            case.close(f"{what}, empty batch: {name}", case(case.x[:0], name), want[:0])
    return True


def _edge_cases(domain: Domain) -> dict[str, Domain]:
    if isinstance(domain, Grid):
        return {"its own grid": domain}
    edges: dict[str, tuple[int, list[tuple[int, int]]]] = {
        "one node": (1, []),
        "one node with a loop": (1, [(0, 0)]),
        "no edges": (3, []),
        "a loop, a double edge, an isolated node": (4, [(0, 1), (1, 0), (0, 1), (1, 0), (1, 1)]),
    }
    if not domain.is_undirected:
        edges["directed path"] = 3, [(0, 1), (1, 2)]
    return {what: _like(domain, n, torch.tensor(pairs).reshape(-1, 2).t()) for what, (n, pairs) in edges.items()}


def _like(g: Graph, n: int, index: Tensor) -> Graph:
    """A graph with these edges that carries what g carries."""
    index, e = index.long(), torch.arange(index.shape[1])
    weight = None if g.edge_weight is None else 0.5 + 0.25 * index.sum(0).double()
    attr = None
    if g.edge_attr is not None:  # within the range of its own
        low, high = g.edge_attr.amin(0), g.edge_attr.amax(0)
        attr = low + (high - low) * (0.5 + 0.5 * torch.sin(1.0 + e[:, None] + torch.arange(len(low))))
    label = None if g.edge_type is None else e % (int(g.edge_type.max()) + 1)
    return Graph(index, n, edge_weight=weight, edge_attr=attr, edge_type=label)


@a_law
def law_batch(case: Case) -> bool:
    """Many signals in one call are what they are one by one; graphs take any batch axes."""
    y = case(case.x)
    case.close("a batch against one by one", y, torch.stack([case(x) for x in case.x]))
    if isinstance(case.domain, Graph):
        deep = torch.stack([case.x, -case.x], 1)
        case.close("two batch axes", case(deep)[:, 0], y)
    return True
