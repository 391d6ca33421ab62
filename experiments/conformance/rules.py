"""Conventions as data: a `Rule` states how loops, weights, degrees and directions are treated; `by_rule` evaluates it.

`differences` lists the parts in which two rules differ on a graph, without those that have no effect there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import torch

from gconv import Graph

Matrix = np.ndarray
SAME = 1e-9


def plain() -> Graph:
    """A triangle 0, 1, 2 with a tail 2 - 3 - 4: undirected and unweighted, with different degrees."""
    pairs = torch.tensor([[0, 0, 1, 2, 3], [1, 2, 2, 3, 4]])
    return Graph(torch.cat([pairs, pairs.flip(0)], 1), 5)


def everything() -> Graph:
    """The same triangle: 0 - 1 has weight 2, 1 - 2 is double, 1 has a loop of 0.5, 3 -> 2 is directed, 4 isolated."""
    edges = [(0, 1, 2), (1, 0, 2), (1, 2, 1), (1, 2, 1), (2, 1, 1), (2, 1, 1), (0, 2, 1), (2, 0, 1), (3, 2, 1)]
    source, target, weight = zip(*edges, (1, 1, 0.5), strict=True)
    return Graph(torch.tensor([source, target]), 5, edge_weight=torch.tensor(weight, dtype=torch.float64))


def features() -> dict[str, Graph]:
    """The plain graph with one special case added, for each of them."""
    source, target = plain().edge_index.tolist()
    ones = [1.0] * len(source)

    def more(extra: Sequence[tuple[int, int]] = (), weights: Sequence[float] = ones, size: int = 5) -> Graph:
        index = torch.tensor([source + [j for j, _ in extra], target + [i for _, i in extra]])
        return Graph(index, size, edge_weight=torch.tensor([*weights, *(1.0 for _ in extra)], dtype=torch.float64))

    return {
        "one way": more([(0, 3), (5, 0)], size=6),
        "weight": more(weights=[3.0, *ones[1:5], 3.0, *ones[6:]]),
        "loop": more([(1, 1)]),
        "double edge": more([(0, 1), (1, 0)]),
        "isolated node": more(size=6),
    }


def changed(graph: Graph, edges: Sequence[tuple[int, int, float]]) -> Graph:
    """A graph on the same nodes with these edges (source, target, weight)."""
    index = torch.tensor([edge[:2] for edge in edges], dtype=torch.int64).reshape(-1, 2).t()
    return Graph(index, graph.size, edge_weight=torch.tensor([edge[2] for edge in edges], dtype=torch.float64))


def listed(graph: Graph) -> list[tuple[int, int, float]]:
    """The edges of a graph (source, target, weight)."""
    return list(zip(*graph.edge_index.tolist(), graph.weights(torch.float64).tolist(), strict=True))


def turned(graph: Graph) -> Graph:
    """The graph with every edge reversed."""
    return changed(graph, [(j, i, w) for i, j, w in listed(graph)])


def merged(graph: Graph) -> Graph:
    """The graph with parallel edges merged, their weights summed."""
    total: dict[tuple[int, int], float] = {}
    for i, j, w in listed(graph):
        total[i, j] = total.get((i, j), 0.0) + w
    return changed(graph, [(i, j, w) for (i, j), w in total.items()])


def mutual(graph: Graph) -> Graph:
    """The graph with parallel edges merged, then symmetrised by the larger of the two weights."""
    total = {(i, j): w for i, j, w in listed(merged(graph))}
    both = total | {(j, i): w for (i, j), w in total.items()}
    return changed(graph, [(i, j, max(total.get((i, j), 0.0), total.get((j, i), 0.0))) for i, j in both])


@dataclass(frozen=True)
class Rule:
    """The parts of a convention; `by_rule` computes its matrix.

    A initially has one entry per edge, S[target, source]. D is the diagonal matrix of the degrees, which are sums.
    """

    loops: Literal["kept", "dropped", "filled in", "added", "replaced"] = "kept"
    """Self-loops: kept; removed; added if missing; added to every node; replaced by one per node."""
    weighted: bool = True
    """Whether S contains the edge weights."""
    counted: bool = True
    """Whether degrees are sums of weights rather than numbers of edges."""
    degree: Literal["in", "out", "both"] = "in"
    """The degree used at both ends; "both": the out-degree at the source and the in-degree at the target."""
    norm: Literal["sym", "row", "col"] | None = "sym"
    """D^-1/2 A D^-1/2, D^-1 A, A D^-1, or A."""
    zero: Literal[0, 1] = 0
    """The value used for the inverse of a zero degree."""
    along: bool = True
    """Whether signals propagate along the edges rather than against them."""
    merged: bool = False
    """Whether parallel edges count once."""
    mutual: bool = False
    """Whether A is first symmetrised by the maximum of A and A^T."""
    laplacian: bool = False
    """L = D - A, or I minus the normalised A."""
    isolated: Literal[0, 1] = 1
    """Diagonal of a normalised L for nodes of degree zero."""
    lmax: Literal["2 max L", "2", "computed"] | None = None
    """Whether L is rescaled to 2 L / lmax - I, and by which lmax."""
    power: int = 1
    """The matrix power."""


WORDS: dict[str, dict[Any, str]] = {  # a common prefix of two phrases is printed once
    "loops": {v: f"loops {v}" for v in ("kept", "dropped", "filled in", "added", "replaced")},
    "weighted": {True: "weights used", False: "weights ignored"},
    "counted": {True: "degrees sum weights", False: "degrees count edges"},
    "degree": {"in": "in-degree", "out": "out-degree", "both": "out-degree at the source, in- at the target"},
    "norm": {"sym": "D^-1/2 A D^-1/2", "row": "D^-1 A", "col": "A D^-1 (D^-1 A transposed)", None: "A"},
    "zero": {v: f"inverse of a zero degree {v}" for v in (0, 1)},
    "along": {True: "along the edges", False: "against the edges (transposed)"},
    "merged": {True: "double edges once", False: "double edges twice"},
    "mutual": {True: "made symmetric", False: "directed"},
    "laplacian": {True: "Laplacian", False: "adjacency"},
    "isolated": {v: f"isolated node's diagonal {v}" for v in (0, 1)},
    "lmax": {
        "2 max L": "lambda_max 2 max L",
        "2": "lambda_max 2",
        "computed": "lambda_max computed",
        None: "no lambda_max",
    },
    "power": {v: f"power {v}" for v in range(1, 4)},
}


def contrast(theirs: str, ours: str) -> str:
    """Two phrases, with their common prefix only once.

    >>> contrast("lambda_max computed", "lambda_max 2")
    'lambda_max computed, not 2'
    """
    left, right = theirs.split(), ours.split()
    same = next((k for k, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), len(left) - 1)
    return f"{theirs}, not {' '.join(right[same:])}"


def by_rule(rule: Rule, graph: Graph) -> Matrix:
    """The matrix (n, n) of a rule.

    >>> by_rule(Rule(loops="filled in"), Graph(torch.tensor([[0, 1], [1, 0]])))
    array([[0.5, 0.5],
           [0.5, 0.5]])
    """
    n, edges = graph.size, listed(mutual(graph) if rule.mutual else merged(graph) if rule.merged else graph)
    own = {i for i, j, _ in edges if i == j}
    if rule.loops in ("dropped", "replaced"):
        edges, own = [e for e in edges if e[0] != e[1]], set()
    if rule.loops in ("filled in", "added", "replaced"):
        edges += [(i, i, 1.0) for i in range(n) if rule.loops == "added" or i not in own]
    j, i, w = (np.array(v) for v in zip(*edges, strict=True))
    w = w if rule.weighted else np.ones_like(w)
    counted = w if rule.counted else np.ones_like(w)
    sums = {"in": np.bincount(i, counted, n), "out": np.bincount(j, counted, n)}
    at_target = sums["out" if rule.degree == "out" else "in"]
    at_source = sums["in" if rule.degree == "in" else "out"]
    ends = (i, at_target), (j, at_source)  # the rows and columns of S, unless against the edges
    (row, at_row), (col, at_col) = ends if rule.along else ends[::-1]

    def inverse(d: Matrix, power: float) -> Matrix:
        return np.where(d > 0, np.where(d > 0, d, 1.0) ** -power, float(rule.zero))

    half = 0.5 if rule.norm == "sym" else 1.0
    if rule.norm in ("sym", "row"):
        w = w * inverse(at_row, half)[row]
    if rule.norm in ("sym", "col"):
        w = w * inverse(at_col, half)[col]
    S = np.zeros((n, n))
    np.add.at(S, (row, col), w)
    if rule.laplacian:
        S = np.diag(at_row if rule.norm is None else np.where(at_row > 0, 1.0, float(rule.isolated))) - S
    if rule.lmax is not None:
        top = {"2 max L": 2 * S.max(), "2": 2.0, "computed": top_eigenvalue(S)}[rule.lmax]
        S = 2 / top * S - np.eye(n)
    return np.linalg.matrix_power(S, rule.power)


def top_eigenvalue(L: Matrix) -> float:
    """The real part of the eigenvalue of largest modulus."""
    values = np.linalg.eigvals(L)
    return float(values[abs(values).argmax()].real)


def eigsh_spread(L: Matrix, starts: int = 20) -> tuple[float, float]:
    """The smallest and largest result of scipy's eigsh for the largest eigenvalue of L, over random start vectors.

    eigsh assumes that L is symmetric. If it is not, the result depends on the start vector.
    """
    import scipy.sparse
    from scipy.sparse.linalg import eigsh

    A, n = scipy.sparse.csr_matrix(L), len(L)
    found = [
        float(eigsh(A, 1, which="LM", return_eigenvectors=False, v0=np.random.default_rng(seed).normal(size=n))[0])
        for seed in range(starts)
    ]
    return min(found), max(found)


def differences(rule: Rule, other: Rule, graph: Graph) -> list[str]:
    """The parts in which `other` differs from `rule` and which change one of the two matrices on this graph.

    >>> differences(Rule(loops="filled in"), Rule(loops="added", degree="out"), everything())
    ['loops added, not filled in', 'out-degree, not in-degree']
    """
    if abs(by_rule(rule, graph) - by_rule(other, graph)).max() <= SAME:
        return []
    apart = [f.name for f in fields(Rule) if getattr(rule, f.name) != getattr(other, f.name)]

    def moves(name: str) -> bool:
        ours, theirs = replace(rule, **{name: getattr(other, name)}), replace(other, **{name: getattr(rule, name)})
        pairs = (rule, ours), (other, theirs)
        return any(abs(by_rule(a, graph) - by_rule(b, graph)).max() > SAME for a, b in pairs)

    told = [name for name in apart if moves(name)] or apart
    return [contrast(WORDS[name][getattr(other, name)], WORDS[name][getattr(rule, name)]) for name in told]
