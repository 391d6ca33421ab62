"""Adjacencies and Laplacians: the only place where a degree is inverted, and where each convention is decided.

    A[i, j]   sum of the weights of the edges j -> i
    D         diagonal of degrees: "in" sums the weights that arrive (rows of A), "out" those that leave (columns)
    sym       D^-1/2 A D^-1/2      row  D^-1 A (rows sum to 1)      col  A D^-1 (columns sum to 1)
    both      D_in^-1/2 A D_out^-1/2, for directed graphs
    L         D - A,  I - sym,  I - row,  I - col

Between two sets of nodes (a Bipartite) A is (n_target, n_source), and normalisation reads the degrees of both sets:
row divides by what arrives at a target, col by what leaves a source, both by the roots of the two. sym, which takes
one degree for both ends, and L, which subtracts A from its degrees, are functions of a square A and are refused. A
self-loop leads from source i to target i, where both exist, as in PyG; that a target reads its own features is no loop.

Degrees contain the edge weights, and the loops that were added. The inverse of a zero degree is 0, so the row of an
isolated node is empty in A and has diagonal 1 in a normalised L (PyG's convention; scipy and networkx put 0 there).
Everything is computed in float64, cast once, and kept on the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gconv.basis import ByRows, Diagonal, Identity, Pattern, Taps
from gconv.basis.functions import Response, change, eigh, tangent
from gconv.domains import Bipartite, Edges, Graph
from gconv.kernels import is_jit_tracing, readable, row_order, shapes_only, varies, wrapped

Loops = Literal["keep", "remove", "fill", "replace", "add", "own"]
Norm = Literal["sym", "row", "col", "both"] | None
Degree = Literal["in", "out"]


def pattern(graph: Edges, loops: Loops = "keep", by_rows: bool = False) -> tuple[Pattern, Tensor]:
    """The edges as entries (target, source), and for each entry the number of its edge (-1 for an added loop).

    Args:
        graph: a Graph or a Bipartite.
        loops: "keep" the edges as they are; "remove" self-loops; "fill": one loop a node, existing ones keep their edge
            (of several the last); "replace": existing loops go, one new loop a node comes; "add": one new loop a node
            comes beside those there are; "own": one entry a node through which it reads itself, which between two sets
            of nodes is what a target reads of its own features.
        by_rows: list them row by row, as the kernels want values that change at every call.
    """

    def make() -> tuple[Pattern, Tensor]:
        edge, source, target = _listed(graph, loops)
        if by_rows:
            order = row_order(target, source, graph.sites[1])
            edge, source, target = edge[order], source[order], target[order]
        return _single(graph, source, target), edge

    return graph.memo(("pattern", loops, by_rows), make)


def _rows(graph: Edges, loops: Loops) -> ByRows:
    """The same entries row by row, without their list and the numbers of their edges: for values that need neither."""

    if loops == "fill":
        loops = "replace"  # the same but for the numbers

    def make() -> ByRows:
        _, source, target = _listed(graph, loops)
        return ByRows.of(_single(graph, source, target))

    return graph.memo(("rows", loops), make)


def _single(graph: Edges, source: Tensor, target: Tensor) -> Pattern:
    return Pattern((1, *graph.sites), _one_tap(target), target, source)


def _listed(graph: Edges, loops: Loops) -> tuple[Tensor, Tensor, Tensor]:
    """The number, source and target of each edge, in the order of the edges; loops last."""
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
    if not (bool(plain.all()) if readable(plain) else _has_no_numbers(plain)):
        edge = edge[plain]
        source, target = source[edge], target[edge]
    if loops != "remove":
        edge, source, target = torch.cat([edge, own]), torch.cat([source, node]), torch.cat([target, node])
    return edge, source, target


def _listed_between(
    graph: Bipartite, loops: Loops, edge: Tensor, source: Tensor, target: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`_listed` between two sets of nodes, where a loop joins the nodes that are in both."""
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
    """The place of each target's own features in the signal, and its number."""
    m, n = graph.sites
    if not graph.square and graph.with_targets is not graph:  # type: ignore[attr-defined]
        raise ValueError(f"Signals on {graph!r} hold the sources alone; graph.with_targets holds the targets too.")
    node = torch.arange(m, device=graph.device)
    return node + (n - m), node


def itself(graph: Edges, dtype: torch.dtype) -> Identity | Taps:
    """The tap through which a node reads its own features: the identity; between two sets of nodes, the targets' rows.

    >>> block = Bipartite(torch.tensor([[0, 2], [0, 1]]), sizes=(3, 2))
    >>> itself(block.with_targets, torch.float32).expand(torch.arange(5.0)[:, None]).flatten()
    tensor([3., 4.])
    """
    if graph.square:
        return Identity(graph.sites[0])

    def make() -> Taps:
        return Taps(diagonal(graph), torch.ones(graph.sites[0], dtype=dtype, device=graph.device))

    return graph.memo(("itself", dtype), make)


def _has_no_numbers(plain: Tensor) -> bool:
    """Whether the sizes of what is selected by a mask can't be known, or traced either: then nothing is left out."""
    return not torch.compiler.is_compiling() and not is_jit_tracing()


def _one_tap(row: Tensor) -> Tensor:
    """The tap of entries that are all in the first one; a single number in memory."""
    return row.new_zeros(1).expand(row.shape[0])


def _inverse(degree: Tensor) -> Tensor:
    """One over each degree, of either sign; 0 for 0."""
    return degree.sign() / degree.abs().clamp(min=torch.finfo(degree.dtype).tiny)


def _inverse_root(degree: Tensor, what: str) -> Tensor:
    """One over the root of each degree; 0 for 0."""
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
    """The normalised values, and the degrees; `known` has them where entries are missing."""

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
    """The values of a normalised A whose weights w (e,) are no property of the graph: learned ones, say."""
    return _normalised(entries, w, norm, degree)[0]


def counts(row: Tensor, rows: int) -> Tensor:
    """(rows,) how often each number occurs; as torch.bincount, of a size that does not depend on the numbers."""
    return row.new_zeros(rows).index_add(0, row, torch.ones_like(row))


def _whole_degree(graph: Edges, end: Degree, loops: Loops, fill: float, weighted: bool) -> Tensor:
    """The degrees of the graph that a block was sampled from; of the columns of its targets too."""
    assert graph.whole is not None
    d = graph.whole.degree(end, loops, fill, weighted)
    return torch.cat([d, d[: graph.sites[1] - len(d)]])


def scaled(graph: Edges, edge: Tensor, w: Tensor) -> Tensor:
    """Values w of entries whose edges these are (-1: an added loop), such that sums over a sampled block estimate."""
    if graph.whole is None or graph.whole.scale is None:
        return w
    scale = graph.whole.scale.to(w.dtype)
    return w * torch.cat([scale, scale.new_ones(1)])[edge]


def mean(entries: Pattern, dtype: torch.dtype, graph: Edges | None = None, loops: Loops = "keep") -> Tensor:
    """(e,) one over the number of entries in the row of each entry (of its tap): values that average.

    In float32 for float16, which rounds a share of many entries coarsely, or to 0. With a graph that is a sampled
    block, the entries of the whole graph count: for values of `adjacency`, which are scaled.
    """
    k, m, _ = entries.shape
    dtype = torch.float32 if dtype == torch.float16 else dtype
    if graph is not None and graph.whole is not None:
        return (1 / _whole_degree(graph, "in", loops, 1.0, False).clamp(min=1))[entries.row].to(dtype)
    row = entries.row * k + entries.tap
    one = torch.ones_like(row, dtype=torch.float64)
    return (1 / one.new_zeros(m * k).index_add(0, row, one).clamp(min=1))[row].to(dtype)


def diagonal(graph: Edges) -> Pattern:
    """One entry a node, where it reads itself: on the diagonal, or in a column of the targets' own features."""

    def make() -> Pattern:
        near, far = _own(graph)
        return Pattern((1, *graph.sites), _one_tap(far), far, near)

    return graph.memo("diagonal", make)


def _kept(graph: Edges, key: tuple[object, ...], dtype: torch.dtype, make: object) -> Taps:
    """The Taps that `make` computes; kept on the graph unless its weights are being learned."""
    assert callable(make)

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
    """A, or a normalised A, as one tap.

    Of a sampled block: normalised by the degrees of its whole graph, and scaled where edges were left out.

    Args:
        graph: a Graph or a Bipartite.
        dtype: of the values.
        loops: what happens to self-loops, see `pattern`.
        fill: weight of a loop that is added.
        norm: "sym", "row", "col", "both" or None.
        degree: which degree normalises both ends; "both" takes the in-degree of the target and the out-degree of the
            source.
        weighted: False reads every edge as 1.
        summed: False for a maximum, whose values are not scaled.

    Raises:
        ValueError: if a degree whose root is needed is negative, or a Bipartite is to be normalised by one degree at
            both ends.

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
        weighs = weighted and graph.edge_weight is not None
        known = None if graph.whole is None else lambda end: _whole_degree(graph, end, loops, fill, weighted)
        partly = graph.whole is not None and graph.whole.scale is not None
        if not weighs and not partly and (fill == 1 or loops in ("keep", "remove")):
            rows = _rows(graph, loops)
            entries = rows.written()
            return rows, _normalised(entries, torch.ones_like(entries.row, dtype=torch.float64), norm, degree, known)[0]
        entries, edge = pattern(graph, loops)
        if weighs:
            w = graph.weights(torch.float64)
            w = torch.cat([w, w.new_full((1,), fill)])[edge]  # -1 reads the fill
        else:
            w = torch.ones_like(edge, dtype=torch.float64).masked_fill(edge < 0, fill)
        w = _normalised(entries, w, norm, degree, known)[0]
        return entries, scaled(graph, edge, w) if summed else w

    return _kept(graph, ("adjacency", loops, fill, norm, degree, weighted, summed), dtype, make)


def degrees(graph: Edges, dtype: torch.dtype, *, degree: Degree = "in", weighted: bool = True) -> Taps:
    """D, the diagonal of degrees, as one tap.

    >>> path = Graph(torch.tensor([[0, 1], [1, 2]]))
    >>> degrees(path, torch.float32).expand(torch.ones(3, 1)).flatten()
    tensor([0., 1., 1.])
    """

    if not graph.square and degree == "out":
        raise ValueError("Targets have no edges that leave them: between two sets of nodes D holds in-degrees.")

    def make() -> tuple[Pattern, Tensor]:
        w = graph.weights(torch.float64)
        end = graph.target if degree == "in" else graph.source
        d = w.new_zeros(graph.sites[0]).index_add(0, end, w if weighted else torch.ones_like(w))
        if graph.whole is not None:
            d = _whole_degree(graph, degree, "keep", 1.0, weighted)[: len(d)]
        return diagonal(graph), d

    return _kept(graph, ("degrees", degree, weighted), dtype, make)


def reach(graph: Graph, steps: int, dtype: torch.dtype) -> Tensor:
    """(n,) from how many nodes each node is reached in at most `steps` steps, itself among them.

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
            many = count[source]  # how many pairs an edge carries on
            first = torch.repeat_interleave(count.cumsum(0)[source] - many.cumsum(0), many)
            pair = torch.unique(
                torch.repeat_interleave(target, many) * n
                + col[first + torch.arange(first.shape[0], device=graph.device)]
            )
            row, col = pair // n, pair % n
        return counts(row, n).to(dtype)

    return graph.memo(("reach", steps, dtype), make)


def relations(graph: Edges, dtype: torch.dtype, count: int, *, average: bool, weighted: bool = False) -> Taps:
    """One adjacency for each label of `edge_type`.

    Args:
        graph: a graph whose edges are labelled.
        dtype: of the values.
        count: labels, 0 to count - 1.
        average: divides each row of each adjacency by the number of its edges.
        weighted: False reads every edge as 1.

    Raises:
        ValueError: if the graph has no labels, or one that is too large.

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
                f"There are {count} relations, labels 0 to {count - 1}, but an edge has label {int(label.max())}."
            )
        return Pattern((count, *graph.sites), label, graph.target, graph.source)

    def make() -> tuple[Pattern, Tensor]:
        entries = graph.memo(("relations", count), labelled)
        w = graph.weights(torch.float64)
        w = w if weighted else torch.ones_like(w)
        return entries, w * mean(entries, w.dtype) if average else w

    return _kept(graph, ("relations", count, average, weighted), dtype, make)


def incidence(graph: Graph, dtype: torch.dtype, *, weighted: bool) -> tuple[Taps, Taps]:
    """A hypergraph's B^-1 H^T, nodes to hyperedges, and D^-1 H (or D^-1 H W), hyperedges to nodes.

    An edge v -> v with label e says that v is in hyperedge e, its weight is that of the hyperedge. B counts the nodes
    of a hyperedge, D sums the weights of the hyperedges of a node. Labels count within a part of a union. (An edge
    u -> v with u other than v: u sends into e, v receives from it.)

    Args:
        graph: a graph whose edges are labelled.
        dtype: of the values.
        weighted: whether the weights multiply too, D^-1 H W; D contains them anyway.

    Raises:
        ValueError: if the graph has no labels.
    """
    label = graph.edge_type
    if label is None:
        raise ValueError("A hypergraph needs the number of its hyperedge on every edge: give the graph an edge_type.")
    n, most = graph.size, graph.num_edges  # any number of hyperedges gives the same shapes
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

    return _kept(graph, ("into",), dtype, into), _kept(graph, ("back", weighted), dtype, back)


def laplacian(
    graph: Graph,
    dtype: torch.dtype,
    *,
    norm: Norm = "sym",
    degree: Degree = "out",
    lmax: float | Literal["bound", "exact"] | None = None,
) -> Taps:
    """L, or with lmax the rescaled 2 L / lmax - I, whose spectrum is in [-1, 1]; self-loops do not count.

    Args:
        graph: any graph.
        dtype: of the values.
        norm: "sym", "row", "col", or None for D - A.
        degree: which degree normalises; PyG's Laplacian takes "out".
        lmax: None for L itself; a number; "bound" for PyG's 2 max(L_ij) (2 for the normalised ones); "exact" for
            the largest eigenvalue.

    Raises:
        ValueError: if a degree whose root is needed is negative, or lmax is not positive.

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

    return _kept(graph, ("laplacian", norm, degree, lmax), dtype, make)


def _lmax(graph: Graph, values: Tensor, norm: Norm, lmax: float | str | None) -> float | Tensor | None:
    if lmax is None:
        return None
    if lmax == "exact":
        return largest_eigenvalue(graph, norm) or 1.0
    if lmax == "bound":
        bound = 2 * torch.cat([values, values.new_zeros(1)]).max()
        return torch.where(bound > 0, bound, 1.0)
    if not isinstance(lmax, (int, float)) or not lmax > 0:
        raise ValueError(f"lmax must be a positive number, 'bound', 'exact' or None, but it is {lmax!r}.")
    largest = float(values.detach().max()) if values.numel() and readable(values) else 0.0
    if largest > 1e3 * lmax:  # a symmetric matrix has an eigenvalue as large as its largest diagonal entry
        raise ValueError(
            f"lambda_max is {lmax:g}, but the Laplacian has entries up to {largest:g}: it must be about the largest "
            "eigenvalue, or polynomials of 2 L / lambda_max - I grow beyond all numbers."
        )
    return float(lmax)


def largest_eigenvalue(graph: Graph, norm: Norm = "sym") -> float:
    """The largest eigenvalue of L, from the eigenbasis for up to 1,000 nodes, else by Lanczos (scipy)."""

    def compute() -> float:
        if graph.size <= 1000:
            return float(eigenbasis(graph, norm)[0][-1].detach()) if graph.size else 0.0
        import scipy.sparse
        from scipy.sparse.linalg import eigsh

        taps = laplacian(graph, torch.float64, norm=norm)
        index = (taps.pattern.row.cpu().numpy(), taps.pattern.col.cpu().numpy())
        matrix = scipy.sparse.csr_matrix((taps.values.detach().cpu().numpy(), index), shape=(graph.size,) * 2)
        return float(eigsh(matrix, k=1, which="LA", return_eigenvectors=False)[0])

    return compute() if wrapped(graph.edge_weight) else graph.memo(("lmax", norm), compute)


def eigenbasis(graph: Graph, norm: Norm = "sym") -> tuple[Tensor, Tensor]:
    """Eigenvalues (n,) ascending and eigenvectors (n, n) of L, in float64; O(n^3) once for each graph.

    Both are constants: a gradient in the edge weights goes through `function_of_laplacian`. The eigenvectors of a
    disjoint union are each zero outside of one part.

    Raises:
        ValueError: if the graph is directed: a Fourier basis needs a symmetric Laplacian ("sym" or None).
    """
    values, vectors, _, _ = _eigenbasis(graph, norm)
    return values, vectors


def _eigenbasis(graph: Graph, norm: Norm) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Eigenvalues and eigenvectors as constants, the part of each, and L as a dense matrix."""
    if norm not in ("sym", None) or not graph.is_undirected:
        raise ValueError(
            "A graph Fourier basis needs a symmetric Laplacian: an undirected graph (each edge with its reverse, of "
            f"the same weight) and norm 'sym' or None; this one is "
            f"{'un' if graph.is_undirected else ''}directed with norm {norm!r}."
        )

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
    """f_k(L) in the eigenbasis of L; its derivative in the edge weights is finite at repeated eigenvalues too.

    Of a directed change of the weights, the gradient is that of f((L + L^T) / 2).

    Args:
        graph: an undirected graph.
        norm: "sym" or None.
        response: f_1, ..., f_k.
        dtype: of the result.
        by_largest: takes f_k(L / lmax), with the largest eigenvalue of each part of a union.
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
    """(parts,) the largest eigenvalues, 1 where it is 0; with E also their first and second derivatives.

    A repeated one has none; the derivative of the mean of its copies is taken.
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
    """(n,) d^-1/2 in float64, with d the out-degrees without loops; 0 at an isolated node.

    >>> inverse_root_degree(Graph(torch.tensor([[0, 1], [1, 0]]), 3))
    tensor([1., 1., 0.], dtype=torch.float64)
    """
    w = torch.where(graph.source == graph.target, 0.0, graph.weights(torch.float64))
    return _inverse_root(w.new_zeros(graph.size).index_add(0, graph.source, w), "Symmetric")
