"""Laws of the domain: permuted nodes, translated grids, unions, batches, and edge cases."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gconv.basis import Shifts
from gconv.domains import Bipartite, Edges, Graph, Grid
from gconv.linear import LinearMap
from gconv.spec import Domain
from gconv.testing.case import Case, a_law, a_linear_law, renamed, shuffled, union


@a_law
def law_permutation(case: Case) -> bool:
    """Graphs: permuting the nodes permutes the output, and the order of the edges does not matter."""
    g = case.domain
    if isinstance(g, Grid) or len(g.ptr) != 2 or case.one_graph:
        return False
    (other, x, order), y = renamed(g, case.x), case(case.x)
    moved = case(x, domain=other)
    case.close("nodes renamed", moved[..., order, :] if y.shape[-2] == len(order) else moved, y)
    edges = shuffled(g.num_edges)
    tensors = {k: v[edges] for k in ("edge_weight", "edge_attr", "edge_type") if (v := getattr(g, k)) is not None}
    listed = replace(g, edge_index=g.edge_index[:, edges], **tensors)
    case.close("edges listed in another order", case(case.x, domain=listed), y)
    return True


@a_linear_law
def law_translation(case: Case, A: LinearMap) -> bool:
    """Circular grids, stride 1: translating the input translates the output."""
    if _circular(A) is None:
        return False
    assert isinstance(case.domain, Grid)
    axes, y = tuple(range(-case.domain.ndim, 0)), case(case.x)
    for steps in ((1,) * len(axes), tuple(range(2, 2 + len(axes)))):
        moved = case(case.x.roll(steps, axes))
        case.close(f"translated by {steps}", moved, y.roll(steps, axes))
    return True


def _circular(A: LinearMap) -> Shifts | None:
    """The structure if it is circulant: shifts from a grid to itself with circular padding, or without padding."""
    S = A.S
    circular = isinstance(S, Shifts) and not S.window and set(S.stride) == {1} and S.grids[0] == S.grids[1]
    return S if circular and isinstance(S, Shifts) and (S.mode == "circular" or not S.is_padded) else None


@a_law
def law_union(case: Case) -> bool:
    """On a disjoint union of graphs the output is that on each part separately."""
    g = case.domain
    if isinstance(g, Grid) or case.one_graph:
        return False
    other = renamed(g, case.x, ptr=True)[0]
    y = case(joined(g, case.x, 2 * case.x), domain=union([g, other]))
    alone = torch.cat([case(case.x), case(2 * case.x, domain=other)], -2)
    case.close("on the union against each part alone", y, alone)
    return True


def joined(domain: Graph | Bipartite, x: Tensor, y: Tensor) -> Tensor:
    """Two signals as one on the union of a domain with itself; on a Bipartite all sources come before the targets."""
    if isinstance(domain, Graph) or x.shape[-2] == domain.sizes[0]:
        return torch.cat([x, y], -2)
    sources, targets = zip(domain.split(x), domain.split(y), strict=True)
    return torch.cat([*sources, *targets], -2)


@a_law
def law_edge_cases(case: Case) -> bool:
    """No edges, one node, self-loops, double edges, isolated nodes, empty batches: finite and equal to `dense`."""
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
    if isinstance(domain, Bipartite):
        return {
            what: _like(domain, sizes, torch.tensor(pairs).reshape(-1, 2).t())
            for what, (sizes, pairs) in RECTANGLES.items()
        }
    edges: dict[str, tuple[int, list[tuple[int, int]]]] = {
        "one node": (1, []),
        "one node with a loop": (1, [(0, 0)]),
        "no edges": (3, []),
        "a loop, a double edge, an isolated node": (4, [(0, 1), (1, 0), (0, 1), (1, 0), (1, 1)]),
    }
    if not domain.is_undirected:
        edges["directed path"] = 3, [(0, 1), (1, 2)]
    return {what: _like(domain, n, torch.tensor(pairs).reshape(-1, 2).t()) for what, (n, pairs) in edges.items()}


RECTANGLES: dict[str, tuple[tuple[int, int], list[tuple[int, int]]]] = {
    "one source, one target": ((1, 1), []),
    "no sources": ((0, 3), []),
    "no targets": ((3, 0), []),
    "no nodes": ((0, 0), []),
    "no edges": ((2, 3), []),
    "more sources than targets, a double edge": ((4, 2), [(0, 0), (3, 1), (3, 1), (2, 0)]),
    "more targets than sources, one without edges": ((2, 4), [(0, 0), (1, 1), (0, 3), (1, 3)]),
}


def _like(g: Graph | Bipartite, n: Any, index: Tensor) -> Graph | Bipartite:
    """A domain with n nodes, or n = (sources, targets), and these edges, with edge data of the same kinds as g."""
    index, e = index.long(), torch.arange(index.shape[1])
    weight = None if g.edge_weight is None else 0.5 + 0.25 * index.sum(0).double()
    attr = None
    if g.edge_attr is not None:  # within the range of g's
        low, high = g.edge_attr.amin(0), g.edge_attr.amax(0)
        attr = low + (high - low) * (0.5 + 0.5 * torch.sin(1.0 + e[:, None] + torch.arange(len(low))))
    label = None if g.edge_type is None else e % (int(g.edge_type.max()) + 1)
    return type(g)(index, n, edge_weight=weight, edge_attr=attr, edge_type=label)


@a_law
def law_batch(case: Case) -> bool:
    """A batch gives the same outputs as its signals one by one; on graphs there may be several batch axes."""
    y = case(case.x)
    case.close("a batch against one by one", y, torch.stack([case(x) for x in case.x]))
    if isinstance(case.domain, Edges):
        deep = torch.stack([case.x, -case.x], 1)
        case.close("two batch axes", case(deep)[:, 0], y)
    return True
