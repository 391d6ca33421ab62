"""Adjacency matrices and Laplacians. All conventions about degrees and self-loops are decided here.

    A[i, j]   sum of the weights of the edges j -> i
    D         diagonal matrix of degrees: "in" sums the weights of incoming edges (rows of A), "out" of outgoing ones
    sym       D^-1/2 A D^-1/2      row  D^-1 A (rows sum to 1)      col  A D^-1 (columns sum to 1)
    both      D_in^-1/2 A D_out^-1/2, for directed graphs
    L         D - A,  I - sym,  I - row,  I - col

On a Bipartite, A is (n_target, n_source), and normalisation uses the degrees of both sets: "row" divides by the
in-degree of the target, "col" by the out-degree of the source, "both" by the square roots of both. "sym" and L require
a square A and raise an error. A self-loop is an edge from source i to target i, where both exist, as in PyG; the tap
through which a target reads its own features is not a self-loop.

Degrees include the edge weights and the self-loops that were added. The inverse of a zero degree is 0, so the row of an
isolated node is empty in A and has diagonal 1 in a normalised L (PyG's convention; scipy and networkx put 0 there).
Everything is computed in float64, cast once, and cached on the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gconv.basis import ByRows, Diagonal, Identity, Pattern, Taps
from gconv.basis.functions import Quadratic, Response, change, eigh, tangent
from gconv.domains import Bipartite, Edges, Graph
from gconv.kernels import is_jit_tracing, readable, row_order, shapes_only, varies, wrapped
from gconv.kernels.transforms import bare, derivatives, outside_transforms, transformed

Loops = Literal["keep", "remove", "fill", "replace", "add", "own"]
Norm = Literal["sym", "row", "col", "both"] | None
Degree = Literal["in", "out"]
SMALL = 1000  # number of nodes up to which the largest eigenvalue is that of the eigenbasis
STEPS = 20_000  # of conjugate gradients at most, enough where the next eigenvalue differs by 1e-6


def pattern(graph: Edges, loops: Loops = "keep", by_rows: bool = False) -> tuple[Pattern, Tensor]:
    """The edges as entries (target, source), and the index of the edge of each entry (-1 for an added loop).

    Args:
        graph: a Graph or a Bipartite.
        loops: "keep": the edges unchanged. "remove": without self-loops. "fill": exactly one loop per node; an existing
            loop keeps its edge index (of several loops, the last). "replace": existing loops are removed and one new
            loop per node is added. "add": one new loop per node in addition to existing ones. "own": one entry per node
            that reads the node's own features; on a Bipartite, those of the target.
        by_rows: whether the entries are sorted by row, which the kernels need; it saves sorting values that change with
            every call.
    """

    def make() -> tuple[Pattern, Tensor]:
        edge, source, target = _listed(graph, loops)
        if by_rows:
            order = row_order(target, source, graph.sites[1])
            edge, source, target = edge[order], source[order], target[order]
        return _single(graph, source, target), edge

    return graph.memo(("pattern", loops, by_rows), make)


def _rows(graph: Edges, loops: Loops) -> ByRows:
    """The same entries sorted by row, without the index of each edge, in less memory (`ByRows`)."""

    if loops == "fill":
        loops = "replace"  # which differs in the edge indices only

    def make() -> ByRows:
        _, source, target = _listed(graph, loops)
        return ByRows.of(_single(graph, source, target))

    return graph.memo(("rows", loops), make)


def _single(graph: Edges, source: Tensor, target: Tensor) -> Pattern:
    return Pattern((1, *graph.sites), _one_tap(target), target, source)


def _listed(graph: Edges, loops: Loops) -> tuple[Tensor, Tensor, Tensor]:
    """The index, source and target of each edge, in the order of the edges; added loops last."""
    source, target = graph.source, graph.target
    edge = torch.arange(graph.num_edges, device=graph.device)
    if isinstance(graph, Bipartite):
        return _listed_between(graph, loops, edge, source, target)
    node = torch.arange(graph.sites[1], device=graph.device)
    if loops in ("add", "own"):
        edge = torch.cat([edge, torch.full_like(node, -1)])
        return edge, torch.cat([source, node]), torch.cat([target, node])
    if loops == "keep":
        return edge, source, target
    plain = source != target
    own = torch.full_like(node, -1)
    if loops == "fill":
        own = own.scatter_reduce(0, source, edge.masked_fill(plain, -1), "amax")
    if not (bool(plain.all()) if readable(plain) else _cannot_select()):
        edge = edge[plain]
        source, target = source[edge], target[edge]
    if loops != "remove":
        edge, source, target = torch.cat([edge, own]), torch.cat([source, node]), torch.cat([target, node])
    return edge, source, target


def _listed_between(
    graph: Bipartite, loops: Loops, edge: Tensor, source: Tensor, target: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`_listed` on a Bipartite, where a loop connects a node that is in both sets with itself."""
    if loops == "keep":
        return edge, source, target
    if loops == "own":
        near, far = _own(graph)
    else:
        near, far = graph.shared()
    new = torch.full_like(near, -1)
    if loops not in ("add", "own"):
        twin = target.new_full((graph.sizes[1],), -1).index_copy(0, far, near)
        plain = twin[target] != source
        if loops == "fill":
            rank = torch.zeros_like(twin).index_copy(0, far, torch.arange(len(far), device=far.device))
            new = new.scatter_reduce(0, rank[target[~plain]], edge[~plain], "amax")
        edge, source, target = edge[plain], source[plain], target[plain]
    if loops != "remove":
        edge, source, target = torch.cat([edge, new]), torch.cat([source, near]), torch.cat([target, far])
    return edge, source, target


def _own(graph: Edges) -> tuple[Tensor, Tensor]:
    """For each target, the row of its own features in the signal, and its index."""
    m, n = graph.sites
    if not graph.square and graph.with_targets is not graph:  # type: ignore[attr-defined]
        raise ValueError(f"Signals on {graph!r} hold the sources only; use graph.with_targets, which has both.")
    node = torch.arange(m, device=graph.device)
    return node + (n - m), node


def itself(graph: Edges, dtype: torch.dtype) -> Identity | Taps:
    """The tap that reads each node's own features: the identity, or on a Bipartite the rows of the targets.

    >>> block = Bipartite(torch.tensor([[0, 2], [0, 1]]), sizes=(3, 2))
    >>> itself(block.with_targets, torch.float32).expand(torch.arange(5.0)[:, None]).flatten()
    tensor([3., 4.])
    """
    if graph.square:
        return Identity(graph.sites[0])

    def make() -> Taps:
        return Taps(diagonal(graph), torch.ones(graph.sites[0], dtype=dtype, device=graph.device))

    return graph.memo(("itself", dtype), make)


def _cannot_select() -> bool:
    """Whether a mask that is not readable cannot select entries (fake tensors, vmap), so that none are dropped.

    Compilers and torch.jit.trace can record a selection of unknown size.
    """
    return not torch.compiler.is_compiling() and not is_jit_tracing()


def _one_tap(row: Tensor) -> Tensor:
    """Tap 0 for every entry, as an expanded tensor that stores a single number."""
    return row.new_zeros(1).expand(row.shape[0])


def _inverse(degree: Tensor) -> Tensor:
    """1 / degree, for either sign; 0 for a zero degree."""
    return degree.sign() / degree.abs().clamp(min=torch.finfo(degree.dtype).tiny)


def _inverse_root(degree: Tensor, what: str) -> Tensor:
    """degree^-1/2; 0 for a zero degree."""
    if readable(degree) and bool((degree < 0).any()):
        node = int((degree < 0).nonzero()[0])
        raise ValueError(
            f"{what} normalisation needs degrees >= 0, but the weights at node {node} sum to {float(degree[node]):g}; "
            "use non-negative edge weights, or no normalisation."
        )
    return torch.where(degree > 0, degree.clamp(min=torch.finfo(degree.dtype).tiny).pow(-0.5), 0.0)


def _normalised(
    entries: Pattern, w: Tensor, norm: Norm, degree: Degree, known: Callable[[Degree], Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """The normalised values, and the degrees. `known` returns the degrees where some edges were not sampled."""

    def summed(end: Degree) -> Tensor:
        if known is not None:
            return known(end)
        at, sites = (entries.row, entries.shape[1]) if end == "in" else (entries.col, entries.shape[2])
        return w.new_zeros(sites).index_add(0, at, w)

    d = summed(degree)
    if norm == "sym":
        root = _inverse_root(d, "Symmetric")
        w = w * root[entries.row]
        w = w * root[entries.col]
    elif norm == "row":
        w = _inverse(d)[entries.row] * w
    elif norm == "col":
        w = _inverse(d)[entries.col] * w
    elif norm == "both":
        arriving, leaving = _inverse_root(summed("in"), "Row"), _inverse_root(summed("out"), "Column")
        w = arriving[entries.row] * w * leaving[entries.col]
    return w, d


def normalised(entries: Pattern, w: Tensor, norm: Norm = "sym", degree: Degree = "in") -> Tensor:
    """The values of a normalised A for weights w (e,) that are not the graph's own, such as learned ones.

    Computed in at least float32, because a sum of many 16-bit numbers stops growing.
    """
    wide = torch.promote_types(w.dtype, torch.float32)
    return _normalised(entries, w.to(wide), norm, degree)[0].to(w.dtype)


def counts(row: Tensor, rows: int) -> Tensor:
    """(rows,) how often each index occurs: torch.bincount with an output size that does not depend on the data."""
    return row.new_zeros(rows).index_add(0, row, torch.ones_like(row))


def _whole_degree(graph: Edges, end: Degree, loops: Loops, fill: float, weighted: bool) -> Tensor:
    """The degrees in the graph that a block was sampled from, followed by those of targets that are columns, too."""
    assert graph.whole is not None
    d = graph.whole.degree(end, loops, fill, weighted)
    return torch.cat([d, d[: graph.sites[1] - len(d)]])


def scaled(graph: Edges, edge: Tensor, w: Tensor) -> Tensor:
    """Values w of entries, scaled so that sums over a sampled block are unbiased estimates of those over the graph.

    Args:
        graph: any domain; nothing is scaled unless it was sampled.
        edge: the index of each entry's edge, -1 for an added loop, which is not scaled.
        w: the values.
    """
    if graph.whole is None or graph.whole.scale is None:
        return w
    scale = graph.whole.scale.to(w.dtype)
    return w * torch.cat([scale, scale.new_ones(1)])[edge]


def mean(entries: Pattern, dtype: torch.dtype, graph: Edges | None = None, loops: Loops = "keep") -> Tensor:
    """(e,) 1 / (number of entries in the same row and tap): values that average over the neighbours.

    In float32 for float16, where 1 / n is rounded coarsely, or to 0, for large n. For a sampled block the entries of
    the whole graph are counted, to go with the scaled values of `adjacency`.
    """
    k, m, _ = entries.shape
    dtype = torch.float32 if dtype == torch.float16 else dtype
    if graph is not None and graph.whole is not None:
        return (1 / _whole_degree(graph, "in", loops, 1.0, False).clamp(min=1))[entries.row].to(dtype)
    row = entries.row * k + entries.tap
    one = torch.ones_like(row, dtype=torch.float64)
    return (1 / one.new_zeros(m * k).index_add(0, row, one).clamp(min=1))[row].to(dtype)


def diagonal(graph: Edges) -> Pattern:
    """One entry per node that reads its own features: on the diagonal, or on a Bipartite in the targets' columns."""

    def make() -> Pattern:
        near, far = _own(graph)
        return Pattern((1, *graph.sites), _one_tap(far), far, near)

    return graph.memo("diagonal", make)


def _cached(
    graph: Edges, key: tuple[object, ...], dtype: torch.dtype, make: Callable[[], tuple[Pattern, Tensor]]
) -> Taps:
    """The Taps that `make` computes, cached on the graph unless its weights require a gradient."""

    def taps() -> Taps:
        entries, wide = make()
        return Taps(entries, wide.to(dtype))

    if varies(graph.edge_weight):
        return taps()
    return graph.memo((*key, dtype), taps)


def adjacency(
    graph: Edges,
    dtype: torch.dtype,
    *,
    loops: Loops = "keep",
    fill: float = 1.0,
    norm: Norm = None,
    degree: Degree = "in",
    weighted: bool = True,
    summed: bool = True,
) -> Taps:
    """The adjacency matrix A, or a normalised A, as one tap.

    For a sampled block it is normalised by the degrees in the whole graph, and scaled where edges were not sampled.

    Args:
        graph: a Graph or a Bipartite.
        dtype: of the values.
        loops: how self-loops are treated, see `pattern`.
        fill: weight of added loops.
        norm: "sym", "row", "col", "both" or None.
        degree: the degree used by "sym", "row" and "col"; "both" uses the in-degree of the target and the out-degree of
            the source.
        weighted: if False, every edge has weight 1.
        summed: if False, values are not scaled for sampling: for a maximum.

    Raises:
        ValueError: if a degree is negative where its square root is needed, or if the norm uses one degree for both
            ends of an edge and the domain is a Bipartite.

    >>> path = Graph(torch.tensor([[0, 1], [1, 0]]))
    >>> adjacency(path, torch.float32, loops="fill", norm="sym").expand(torch.eye(2))[0]
    tensor([[0.5000, 0.5000],
            [0.5000, 0.5000]])
    """
    if not graph.square and graph.whole is None and norm not in (None, "both", "row" if degree == "in" else "col"):
        raise ValueError(
            f"norm={norm!r} with degree={degree!r} takes one degree for both ends of an edge, but here they are "
            "different nodes: use norm='both', 'row' with degree='in', or 'col' with degree='out'."
        )

    def make() -> tuple[Pattern, Tensor]:
        has_weights = weighted and graph.edge_weight is not None
        known = None if graph.whole is None else lambda end: _whole_degree(graph, end, loops, fill, weighted)
        sampled = graph.whole is not None and graph.whole.scale is not None
        if not has_weights and not sampled and (fill == 1 or loops in ("keep", "remove")):
            rows = _rows(graph, loops)
            entries = rows.written()
            return rows, _normalised(entries, torch.ones_like(entries.row, dtype=torch.float64), norm, degree, known)[0]
        entries, edge = pattern(graph, loops)
        if has_weights:
            w = graph.weights(torch.float64)
            w = torch.cat([w, w.new_full((1,), fill)])[edge]  # index -1, an added loop, reads the fill
        else:
            w = torch.ones_like(edge, dtype=torch.float64).masked_fill(edge < 0, fill)
        w = _normalised(entries, w, norm, degree, known)[0]
        return entries, scaled(graph, edge, w) if summed else w

    return _cached(graph, ("adjacency", loops, fill, norm, degree, weighted, summed), dtype, make)


def degrees(graph: Edges, dtype: torch.dtype, *, degree: Degree = "in", weighted: bool = True) -> Taps:
    """D, the diagonal matrix of degrees, as one tap.

    >>> path = Graph(torch.tensor([[0, 1], [1, 2]]))
    >>> degrees(path, torch.float32).expand(torch.ones(3, 1)).flatten()
    tensor([0., 1., 1.])
    """

    if not graph.square and degree == "out":
        raise ValueError("The targets of a Bipartite have no outgoing edges: use degree='in'.")

    def make() -> tuple[Pattern, Tensor]:
        w = graph.weights(torch.float64)
        end = graph.target if degree == "in" else graph.source
        d = w.new_zeros(graph.sites[0]).index_add(0, end, w if weighted else torch.ones_like(w))
        if graph.whole is not None:
            d = _whole_degree(graph, degree, "keep", 1.0, weighted)[: len(d)]
        return diagonal(graph), d

    return _cached(graph, ("degrees", degree, weighted), dtype, make)


def reach(graph: Graph, steps: int, dtype: torch.dtype) -> Tensor:
    """(n,) the number of nodes, itself included, from which a node is reached in at most `steps` steps.

    >>> path = Graph(torch.tensor([[0, 1], [1, 2]]))
    >>> reach(path, 1, torch.float32), reach(path, 2, torch.float32)
    (tensor([1., 2., 2.]), tensor([1., 2., 3.]))
    """

    def make() -> Tensor:
        if shapes_only(graph.edge_index):
            return graph.edge_index.new_empty(graph.size, dtype=dtype)
        n, node = graph.size, torch.arange(graph.size, device=graph.device)
        source, target = torch.cat([graph.source, node]), torch.cat([graph.target, node])
        row, col = node, node  # row is reached from col; sorted by row
        for _ in range(steps):
            count = counts(row, n)
            many = count[source]  # number of pairs that each edge extends
            first = torch.repeat_interleave(count.cumsum(0)[source] - many.cumsum(0), many)
            pair = torch.unique(
                torch.repeat_interleave(target, many) * n
                + col[first + torch.arange(first.shape[0], device=graph.device)]
            )
            row, col = pair // n, pair % n
        return counts(row, n).to(dtype)

    return graph.memo(("reach", steps, dtype), make)


def relations(graph: Edges, dtype: torch.dtype, count: int, *, average: bool, weighted: bool = False) -> Taps:
    """One adjacency matrix for each relation, the label in `edge_type`.

    Args:
        graph: a graph whose edges are labelled.
        dtype: of the values.
        count: the number of relations, labels 0 to count - 1.
        average: whether each row of each matrix is divided by its number of edges.
        weighted: if False, every edge has weight 1.

    Raises:
        ValueError: if the graph has no labels, or a label is not less than count.

    >>> triangle = Graph(torch.tensor([[0, 1, 2], [2, 2, 0]]), edge_type=torch.tensor([0, 0, 1]))
    >>> relations(triangle, torch.float32, 2, average=True).expand(torch.eye(3))[0, 2]
    tensor([0.5000, 0.5000, 0.0000])
    """
    label = graph.edge_type
    if label is None:
        raise ValueError("Relations need a label on every edge: give the graph an edge_type.")

    def labelled() -> Pattern:
        if readable(label) and graph.num_edges and int(label.max()) >= count:
            raise ValueError(
                f"The number of relations is {count}, labels 0 to {count - 1}, but an edge has label "
                f"{int(label.max())}."
            )
        return Pattern((count, *graph.sites), label, graph.target, graph.source)

    def make() -> tuple[Pattern, Tensor]:
        entries = graph.memo(("relations", count), labelled)
        w = graph.weights(torch.float64)
        w = w if weighted else torch.ones_like(w)
        return entries, w * mean(entries, w.dtype) if average else w

    return _cached(graph, ("relations", count, average, weighted), dtype, make)


def incidence(graph: Graph, dtype: torch.dtype, *, weighted: bool) -> tuple[Taps, Taps]:
    """A hypergraph's B^-1 H^T, from nodes to hyperedges, and D^-1 H (or D^-1 H W), from hyperedges to nodes.

    An edge v -> v with label e means that node v is in hyperedge e; its weight is the weight of the hyperedge. B counts
    the nodes of a hyperedge, D sums the weights of a node's hyperedges. In a union of graphs, labels are separate for
    each part. (An edge u -> v with u != v means that u sends to hyperedge e and v receives from it.)

    Args:
        graph: a graph whose edges are labelled.
        dtype: of the values.
        weighted: whether to multiply by the weights, D^-1 H W; D contains them in either case.

    Raises:
        ValueError: if the graph has no labels.
    """
    label = graph.edge_type
    if label is None:
        raise ValueError("A hypergraph needs the index of its hyperedge on every edge: give the graph an edge_type.")
    n, most = graph.size, graph.num_edges  # without data: an upper bound, which does not change the shape of the output
    if not shapes_only(label):
        most = int(label.max()) + 1 if graph.num_edges else 0
    parts = len(graph.ptr) - 1

    def into() -> tuple[Pattern, Tensor]:
        row = label + most * graph.part()[graph.source]
        entries = Pattern((1, parts * most, n), torch.zeros_like(row), row, graph.source)
        return entries, mean(entries, torch.float64)

    def back() -> tuple[Pattern, Tensor]:
        col = label + most * graph.part()[graph.target]
        entries = Pattern((1, n, parts * most), torch.zeros_like(col), graph.target, col)
        w = graph.weights(torch.float64)
        one = _inverse(w.new_zeros(n).index_add(0, graph.target, w))[graph.target]
        return entries, one * w if weighted else one

    return _cached(graph, ("into",), dtype, into), _cached(graph, ("back", weighted), dtype, back)


def laplacian(
    graph: Graph,
    dtype: torch.dtype,
    *,
    norm: Norm = "sym",
    degree: Degree = "out",
    lmax: float | Literal["bound", "exact"] | None = None,
) -> Taps:
    """L, or with lmax the rescaled 2 L / lmax - I, whose spectrum is in [-1, 1]; self-loops are ignored.

    Args:
        graph: any graph.
        dtype: of the values.
        norm: "sym", "row", "col", or None for D - A.
        degree: the degree used; PyG's Laplacian uses "out".
        lmax: None for L itself; a number; "bound" for PyG's 2 max(L_ij) (2 for the normalised ones); "exact" for
            the largest eigenvalue. Both are differentiable in the edge weights.

    Raises:
        ValueError: if a degree is negative where its square root is needed, if lmax is not positive or much smaller
            than the largest entry of L, or if it is "exact" and L is not symmetric.

    >>> path = Graph(torch.tensor([[0, 1], [1, 0]]))
    >>> laplacian(path, torch.float32, norm=None).expand(torch.eye(2))[0]
    tensor([[ 1., -1.],
            [-1.,  1.]])
    """

    def make() -> tuple[Pattern, Tensor]:
        kept: Pattern
        if graph.edge_weight is None:
            kept = _rows(graph, "replace")
            entries = kept.written()
            off = entries.row != entries.col
            w = off.to(torch.float64)
        else:
            kept, edge = pattern(graph, "replace")
            entries, off, w = kept, edge >= 0, graph.weights(torch.float64)
            w = torch.cat([w, w.new_zeros(1)])[edge]
        w, d = _normalised(entries, w, norm, degree)
        values = torch.where(off, -w, d[entries.row] if norm is None else 1.0)
        top = _lmax(graph, values, norm, lmax)
        if top is not None:
            values = values * (2 / top) - torch.where(off, 0.0, 1.0)
        return kept, values

    return _cached(graph, ("laplacian", norm, degree, lmax), dtype, make)


def _lmax(graph: Graph, values: Tensor, norm: Norm, lmax: float | str | None) -> float | Tensor | None:
    if lmax is None:
        return None
    if lmax == "exact":
        learned = varies(graph.edge_weight)
        return _differentiable_lmax(graph, values, norm) if learned else largest_eigenvalue(graph, norm) or 1.0
    if lmax == "bound":
        bound = 2 * torch.cat([values, values.new_zeros(1)]).max()
        return torch.where(bound > 0, bound, 1.0)
    if not isinstance(lmax, (int, float)) or not lmax > 0:
        raise ValueError(f"lambda_max must be a positive number, 'bound', 'exact' or None, but it is {lmax!r}.")
    largest = float(values.detach().max()) if values.numel() and readable(values) else 0.0
    if largest > 1e3 * lmax:  # a symmetric matrix has an eigenvalue as large as its largest diagonal entry
        raise ValueError(
            f"lambda_max is {lmax:g}, but the Laplacian has entries up to {largest:g}: it must be about the largest "
            "eigenvalue, or polynomials of 2 L / lambda_max - I overflow."
        )
    return float(lmax)


def largest_eigenvalue(graph: Graph, norm: Norm = "sym") -> float:
    """The largest eigenvalue of L, from the eigenbasis for up to 1,000 nodes, else by Lanczos (scipy).

    Raises:
        ValueError: if L is not symmetric.
    """

    def compute() -> float:
        _check_symmetric(graph, norm, "The largest eigenvalue of a Laplacian")
        if graph.size <= SMALL:
            return float(eigenbasis(graph, norm)[0][-1].detach()) if graph.size else 0.0
        return _by_lanczos(graph, norm)[1]

    return compute() if wrapped(graph.edge_weight) else graph.memo(("lmax", norm), compute, of_weights=True)


def _by_lanczos(graph: Graph, norm: Norm) -> tuple[Any, float, Any]:
    """A symmetric L in scipy's CSR format, its largest eigenvalue and the eigenvector (n,)."""
    import numpy as np
    import scipy.sparse
    from scipy.sparse.linalg import eigsh

    taps = laplacian(graph, torch.float64, norm=norm)
    with outside_transforms():
        read = [bare(t).detach().cpu().numpy() for t in (taps.values, taps.pattern.row, taps.pattern.col)]
    matrix = scipy.sparse.csr_matrix((read[0], read[1:]), shape=(graph.size,) * 2)
    start = np.random.default_rng(0).standard_normal(graph.size)
    if not matrix.count_nonzero():
        return matrix, 0.0, start
    top, vectors = eigsh(matrix, k=1, which="LA", v0=start)  # by default the start, and the rounding, is random
    return matrix, float(top[0]), vectors[:, 0]


def _differentiable_lmax(graph: Graph, L: Tensor, norm: Norm) -> Tensor:
    """The largest eigenvalue l (1 if it is 0), twice differentiable in the edge weights.

    Up to 1,000 nodes, and under transforms that take two derivatives, see `_largest`. Otherwise, with the eigenvector v
    and E = L - L.detach(), which is zero, l + <v, E v> + <E v, (l - L)^+ E v>. The second derivative is computed by
    conjugate gradients.

    Args:
        graph, norm: of the Laplacian.
        L: its values, in the order of the entries of `laplacian`.
    """
    twice = transformed() and derivatives(L) > 1
    if graph.size <= SMALL or torch.compiler.is_compiling() or twice or not readable(L):
        values, U, _, matrix = _eigenbasis(graph, norm)
        moved = change(matrix)
        one_part = torch.zeros_like(values, dtype=torch.int64)
        return _largest(values, one_part, 1, None if moved is None else U.mT @ moved @ U)[0]
    _check_symmetric(graph, norm, "The largest eigenvalue of a Laplacian")
    matrix, top, vector = _by_lanczos(graph, norm)
    if not top > 1e-12:
        return L.new_ones(())
    v = torch.from_numpy(vector).to(L.device)
    entries, _ = pattern(graph, "replace")
    Ev = torch.zeros_like(v).index_add(0, entries.row, (L - L.detach()) * v[entries.col])
    found = top + v @ Ev
    if transformed():
        return found
    whole: Tensor = found + Quadratic.apply(Ev, (), lambda G, V: 2 * G * _pseudoinverse(matrix, top, vector, V))
    return whole


def _pseudoinverse(matrix: Any, top: float, v: Any, b: Tensor) -> Tensor:
    """(top - L)^+ b for a simple largest eigenvalue with eigenvector v.

    Raises:
        ValueError: if the eigenvalue is repeated, or too close to the next one.
    """
    from scipy.sparse.linalg import LinearOperator, cg

    def apply(x: Any) -> Any:
        y = top * x - matrix @ x
        return y - v * (v @ y) + v * (v @ x)

    right = b.cpu().numpy()
    right = right - v * (v @ right)
    found, failed = cg(LinearOperator(matrix.shape, apply, dtype=right.dtype), right, rtol=1e-12, maxiter=STEPS)
    # Where the eigenvalue is repeated, rounding can end the iteration at a large vector that the operator maps to zero.
    if failed or found @ apply(found) < 1e-10 * top * (found @ found):
        raise ValueError(
            "The second derivative of the largest eigenvalue of the Laplacian in the edge weights was requested, but "
            "the eigenvalue is repeated, or nearly: it has no such derivative. Use lambda_max='bound' or a number."
        )
    return torch.from_numpy(found).to(b.device)


def _check_symmetric(graph: Graph, norm: Norm, what: str) -> None:
    """Raises: ValueError if L is not symmetric."""
    if norm not in ("sym", None) or not graph.is_undirected:
        raise ValueError(
            f"{what} needs a symmetric Laplacian: an undirected graph (each edge with its reverse, of the same weight) "
            f"and norm 'sym' or None; this one is {'un' if graph.is_undirected else ''}directed with norm {norm!r}."
        )


def eigenbasis(graph: Graph, norm: Norm = "sym") -> tuple[Tensor, Tensor]:
    """Eigenvalues (n,) ascending and eigenvectors (n, n) of L, in float64; O(n^3), cached on the graph.

    Neither carries a gradient; use `function_of_laplacian` to differentiate in the edge weights. In a disjoint union
    each eigenvector is zero outside of one part.

    Raises:
        ValueError: if the graph is directed: a Fourier basis needs a symmetric Laplacian ("sym" or None).
    """
    values, vectors, _, _ = _eigenbasis(graph, norm)
    return values, vectors


def _eigenbasis(graph: Graph, norm: Norm) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Eigenvalues and eigenvectors without gradients, the part of the union that each belongs to, and L as a matrix."""
    _check_symmetric(graph, norm, "A graph Fourier basis")

    def compute() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        n = graph.size
        eye = torch.eye(n, dtype=torch.float64, device=graph.device)
        L = laplacian(graph, torch.float64, norm=norm).expand(eye)[0]
        L = (L + L.mT) / 2
        parts = [(a, b) for a, b in pairwise(graph.ptr) if b > a]
        found = [eigh(L.detach()[a:b, a:b]) for a, b in parts]
        if not found:
            return eye.new_zeros(n), eye, graph.part(), L
        values = torch.cat([each for each, _ in found])
        rounding = 8 * n * torch.finfo(torch.float64).eps * values.abs().amax().clamp(max=1e300)
        values = torch.where(values.abs() <= rounding, 0.0, values)
        vectors = torch.cat([F.pad(U, (0, 0, a, n - b)) for (_, U), (a, b) in zip(found, parts, strict=True)], 1)
        order = values.argsort(stable=True)
        return values[order], vectors[:, order], graph.part()[order], L

    if varies(graph.edge_weight):
        return compute()
    return graph.memo(("eigenbasis", norm), compute)


def function_of_laplacian(
    graph: Graph, norm: Norm, response: Response, dtype: torch.dtype, *, by_largest: bool = False
) -> Diagonal:
    """f_k(L) in the eigenbasis of L; its derivative in the edge weights is finite at repeated eigenvalues, too.

    The gradient in the weight of each directed edge is that of f((L + L^T) / 2).

    Args:
        graph: an undirected graph.
        norm: "sym" or None.
        response: f_1, ..., f_k.
        dtype: of the result.
        by_largest: whether to return f_k(L / lmax) instead, with the largest eigenvalue of each part of a union.
    """
    values, U, part, L = _eigenbasis(graph, norm)
    moved = change(L)
    E = None if moved is None else U.mT @ moved @ U
    at = values
    if by_largest:
        top = _largest(values, part, len(graph.ptr) - 1, E)[part]
        at = values / top.detach()
        if E is not None:
            E = (torch.diag_embed(values) + E) / top.unsqueeze(1) - torch.diag_embed(at)
    moved = None if E is None else tangent(E, at, response).to(dtype)
    return Diagonal(U.to(dtype), response.values(at).to(dtype), values.to(dtype), moved)


def _largest(values: Tensor, part: Tensor, parts: int, E: Tensor | None) -> Tensor:
    """(parts,) the largest eigenvalue of each part, 1 where it is 0; with E, differentiable twice.

    A repeated eigenvalue is not differentiable; the derivative of the mean of its copies is used.
    """
    low = values.new_full((parts,), -torch.inf)
    top = low.scatter_reduce(0, part, values, "amax")
    top = torch.where(top > 1e-12, top, 1.0)
    if E is None:
        return top
    equal = values > top[part] * (1 - 1e-10)
    beyond = (top[part].unsqueeze(1) - values).masked_fill(equal.unsqueeze(0), torch.inf)
    apart = part.unsqueeze(1) != part
    moved = E.diagonal() + (E.square() / beyond.masked_fill(apart, torch.inf)).sum(1)
    count = values.new_zeros(parts).index_add(0, part, equal.to(values.dtype)).clamp(min=1)
    return top + values.new_zeros(parts).index_add(0, part, torch.where(equal, moved, 0.0)) / count


def inverse_root_degree(graph: Graph) -> Tensor:
    """(n,) d^-1/2 in float64, d the out-degrees without self-loops; 0 for an isolated node.

    >>> inverse_root_degree(Graph(torch.tensor([[0, 1], [1, 0]]), 3))
    tensor([1., 1., 0.], dtype=torch.float64)
    """
    w = torch.where(graph.source == graph.target, 0.0, graph.weights(torch.float64))
    return _inverse_root(w.new_zeros(graph.size).index_add(0, graph.source, w), "Symmetric")
