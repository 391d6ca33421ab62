"""Every convention about degrees and loops, against the libraries where they agree and by number where they do not."""

import networkx as nx
import numpy as np
import pytest
import scipy.sparse.csgraph
import torch
from hypothesis import given, settings
from oracles import graphs
from torch_geometric.utils import add_remaining_self_loops, get_laplacian, to_dense_adj

from gconv import Bipartite, Graph
from gconv.laplacian import (
    adjacency,
    degrees,
    eigenbasis,
    laplacian,
    largest_eigenvalue,
    normalised,
    pattern,
    relations,
)
from gconv.operators.shapes import messy, ring, weighted

DOUBLE = torch.float64


def dense(taps):
    return taps.expand(torch.eye(taps.shape[2], dtype=DOUBLE))[0]


def pyg_dense(index, weight, n):
    """PyG's matrices hold (source, target); ours (target, source)."""
    return to_dense_adj(index, edge_attr=weight, max_num_nodes=n)[0].t()


def connected():
    """Undirected, weighted, no isolated node, no loop: where all libraries agree."""
    keep = torch.tensor([0, 1, 2, 3, 4])
    index = torch.stack([torch.zeros_like(keep), keep + 1])
    return Graph(torch.cat([index, index.flip(0)], 1), 6, edge_weight=(keep + 1.0).double().repeat(2))


@settings(max_examples=20, derandomize=True, deadline=None, database=None)
@given(graph=graphs())
def test_laplacian_is_pygs_on_any_graph(graph):
    for norm, name in (("sym", "sym"), ("col", "rw"), (None, None)):
        index, values = get_laplacian(graph.edge_index, graph.weights(DOUBLE), name, num_nodes=graph.size)
        want = pyg_dense(index, values, graph.size)
        np.testing.assert_allclose(
            dense(laplacian(graph, DOUBLE, norm=norm)), want, atol=1e-14, err_msg=f"{norm} on {graph}"
        )


@pytest.mark.parametrize("norm", ["sym", None])
def test_scipy_and_networkx_agree_where_no_node_is_isolated(norm):
    graph = connected()
    A = dense(adjacency(graph, DOUBLE)).numpy()
    ours = dense(laplacian(graph, DOUBLE, norm=norm)).numpy()
    np.testing.assert_allclose(ours, scipy.sparse.csgraph.laplacian(A, normed=norm == "sym"), atol=1e-14)
    g = nx.from_numpy_array(A)
    theirs = nx.normalized_laplacian_matrix(g) if norm == "sym" else nx.laplacian_matrix(g)
    np.testing.assert_allclose(ours, theirs.toarray(), atol=1e-14)


def test_isolated_nodes_have_diagonal_one_here_and_in_pyg_and_zero_in_scipy_and_networkx():
    graph = weighted()  # node 7 is isolated
    A = dense(adjacency(graph, DOUBLE)).numpy()
    ours = dense(laplacian(graph, DOUBLE))
    assert ours[7, 7] == 1
    assert pyg_dense(*get_laplacian(graph.edge_index, graph.edge_weight, "sym", num_nodes=8), 8)[7, 7] == 1
    assert scipy.sparse.csgraph.laplacian(A, normed=True)[7, 7] == 0
    assert nx.normalized_laplacian_matrix(nx.from_numpy_array(A)).toarray()[7, 7] == 0
    assert dense(laplacian(graph, DOUBLE, norm=None))[7, 7] == 0


def test_self_loops_do_not_count_in_the_laplacian():
    """PyG drops them too; networkx keeps them in A and in the degree."""
    index = torch.tensor([[0, 1, 1], [1, 0, 1]])
    ours = dense(laplacian(Graph(index), DOUBLE, norm=None))
    assert torch.equal(ours, torch.tensor([[1.0, -1], [-1, 1]], dtype=DOUBLE))
    theirs = nx.laplacian_matrix(nx.Graph([(0, 1), (1, 1)])).toarray()
    assert theirs.tolist() == [[1, -1], [-1, 1]] or theirs.tolist() == [[1, -1], [-1, 2]]


@pytest.mark.parametrize("degree", ["in", "out"])
@pytest.mark.parametrize("norm", ["sym", "row", "col", None])
def test_laplacians_of_a_directed_graph_from_either_degree(degree, norm):
    graph = messy()
    A = dense(adjacency(graph, DOUBLE))
    A = A - torch.diag(A.diagonal())
    d, other = A.sum(1), A.sum(0)
    assert not torch.equal(d, other)  # the control: the degrees differ
    d = d if degree == "in" else other
    root, inverse = (torch.where(d > 0, d**p, 0.0) for p in (-0.5, -1.0))
    scaled = {"sym": root[:, None] * A * root, "row": inverse[:, None] * A, "col": A * inverse, None: A}[norm]
    want = (torch.diag(d) if norm is None else torch.eye(len(d), dtype=DOUBLE)) - scaled
    torch.testing.assert_close(dense(laplacian(graph, DOUBLE, norm=norm, degree=degree)), want)


def test_an_adjacency_without_weights_is_that_of_a_graph_without_weights():
    graph = messy()
    plain = Graph(graph.edge_index, graph.size)
    for norm in ("row", None):
        got = dense(adjacency(graph, DOUBLE, norm=norm, weighted=False))
        torch.testing.assert_close(got, dense(adjacency(plain, DOUBLE, norm=norm)))
        assert not torch.allclose(got, dense(adjacency(graph, DOUBLE, norm=norm)))


@pytest.mark.parametrize("degree", ["in", "out"])
def test_values_of_ones_own_are_normalised_by_either_degree(degree):
    entries, _ = pattern(messy(), "keep")
    w = torch.linspace(1, 2, len(entries.row), dtype=DOUBLE)
    end = entries.row if degree == "in" else entries.col
    d = torch.stack([w[end == node].sum() for node in range(messy().size)])
    want = w / (d[entries.row] * d[entries.col]).sqrt()
    there = want.isfinite()  # elsewhere one of the degrees is 0
    got = normalised(entries, w, "sym", degree)
    torch.testing.assert_close(got[there], want[there])
    assert (got[~there] == 0).all() and there.any()


@pytest.mark.parametrize("weighted_edges", [True, False])
@pytest.mark.parametrize("degree", ["in", "out"])
def test_degrees_sum_weights_or_count_edges(degree, weighted_edges):
    graph = messy()
    want = torch.zeros(graph.size, dtype=DOUBLE)
    weights = graph.weights(DOUBLE).tolist()
    for source, target, w in zip(*graph.edge_index.tolist(), weights, strict=True):
        want[target if degree == "in" else source] += w if weighted_edges else 1
    assert min(weights) != max(weights)  # the control: sums of weights differ from counts
    torch.testing.assert_close(dense(degrees(graph, DOUBLE, degree=degree, weighted=weighted_edges)), torch.diag(want))


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("weighted_edges", [True, False])
def test_relations_are_one_adjacency_for_each_label(weighted_edges, average):
    plain = messy()
    label = torch.arange(plain.num_edges) % 3
    graph = Graph(plain.edge_index, plain.size, edge_weight=plain.edge_weight, edge_type=label)
    got = relations(graph, DOUBLE, 3, average=average, weighted=weighted_edges).expand(torch.eye(graph.size).double())
    for number in range(3):
        index = graph.edge_index[:, label == number]
        part = Graph(index, graph.size, edge_weight=graph.weights(DOUBLE)[label == number] if weighted_edges else None)
        want = dense(adjacency(part, DOUBLE))
        if average:
            want = want / torch.bincount(index[1], minlength=graph.size).clamp(min=1)[:, None]
        torch.testing.assert_close(got[number], want)


@pytest.mark.parametrize(("norm", "axis"), [("row", 1), ("col", 0)])
def test_row_and_column_sums_are_one_or_zero(norm, axis):
    degree = "in" if norm == "row" else "out"
    sums = dense(adjacency(messy(), DOUBLE, norm=norm, degree=degree)).sum(axis)
    assert all(s == pytest.approx(1) or s == 0 for s in sums.tolist()) and (sums == 0).any()


@pytest.mark.parametrize("fill", [1.0, 2.0])
def test_filled_loops_are_pygs_remaining_loops(fill):
    """An existing loop keeps its weight; of several the last; the others get `fill`."""
    index = torch.tensor([[0, 1, 1, 2, 1], [1, 1, 0, 2, 1]])
    w = torch.tensor([1.0, 5.0, 1.0, 7.0, 3.0], dtype=DOUBLE)
    ours = dense(adjacency(Graph(index, 4, edge_weight=w), DOUBLE, loops="fill", fill=fill))
    theirs = pyg_dense(*add_remaining_self_loops(index, w, fill, 4), 4)
    np.testing.assert_array_equal(ours, theirs)
    assert ours.diagonal().tolist() == [fill, 3, 7, fill]


def test_loop_policies():
    graph = Graph(torch.tensor([[0, 1, 1], [1, 1, 0]]), 3)
    diagonal = lambda loops: dense(adjacency(graph, DOUBLE, loops=loops)).diagonal().tolist()  # noqa: E731
    assert diagonal("keep") == [0, 1, 0] and diagonal("remove") == [0, 0, 0]
    assert diagonal("fill") == [1, 1, 1] and diagonal("replace") == [1, 1, 1]


def test_directed_graphs_normalise_by_the_in_degree_at_both_ends():
    """PyG's gcn_norm; DGL takes the out-degree at the source, Kipf's code row sums of A[source, target]."""
    graph = Graph(torch.tensor([[0, 0, 1], [1, 2, 2]]), 3)
    S = dense(adjacency(graph, DOUBLE, loops="fill", norm="sym"))
    assert S[2, 0] == pytest.approx(1 / (3 * 1) ** 0.5) and S[1, 0] == pytest.approx(1 / (2 * 1) ** 0.5)


def test_rescaled_spectrum_lies_in_minus_one_to_one():
    for graph in (ring(), weighted(), connected()):
        for norm in ("sym", None):
            exact = torch.linalg.eigvalsh(dense(laplacian(graph, DOUBLE, norm=norm, lmax="exact")))
            assert exact.min() == pytest.approx(-1) and exact.max() == pytest.approx(1)
            bound = torch.linalg.eigvalsh(dense(laplacian(graph, DOUBLE, norm=norm, lmax="bound")))
            assert bound.min() == pytest.approx(-1) and bound.max() <= 1 + 1e-12


def test_lmax_of_a_graph_without_edges():
    empty = Graph(torch.empty(2, 0, dtype=torch.int64), 3)
    for norm in ("sym", None):
        for lmax in ("bound", "exact"):
            assert dense(laplacian(empty, DOUBLE, norm=norm, lmax=lmax)).isfinite().all()


def test_largest_eigenvalue_by_lanczos_is_the_eigenbasis_one():
    """More than 1,000 nodes: scipy's Lanczos. D - A of a star of n nodes has n."""
    n = 1200
    i = torch.arange(1, n)
    graph = Graph(torch.stack([torch.cat([i, 0 * i]), torch.cat([0 * i, i])]), n)
    assert largest_eigenvalue(graph, None) == pytest.approx(n, rel=1e-8)


def test_eigenbasis_diagonalises():
    values, U = eigenbasis(weighted())
    L = dense(laplacian(weighted(), DOUBLE))
    assert torch.allclose(U @ torch.diag(values) @ U.t(), L, atol=1e-12)
    assert torch.allclose(U.t() @ U, torch.eye(8, dtype=DOUBLE), atol=1e-12) and values[0] >= 0


def test_derived_once_for_a_graph():
    graph = weighted()
    assert adjacency(graph, DOUBLE, norm="sym") is adjacency(graph, DOUBLE, norm="sym")
    assert eigenbasis(graph)[1] is eigenbasis(graph)[1]
    assert adjacency(graph, DOUBLE, norm="sym") is not adjacency(graph, torch.float32, norm="sym")


@pytest.mark.parametrize("norm", ["sym", "both"])
def test_negative_degrees_have_no_root(norm):
    graph = Graph(torch.tensor([[0, 1], [1, 0]]), edge_weight=torch.tensor([-1.0, 1.0]))
    with pytest.raises(ValueError, match="needs degrees >= 0, but the weights at node"):
        adjacency(graph, DOUBLE, norm=norm)
    assert dense(adjacency(graph, DOUBLE))[1, 0] == -1


@pytest.mark.parametrize(("norm", "axis"), [("row", 1), ("col", 0)])
def test_negative_degrees_divide(norm, axis):
    """Rows (columns) sum to 1 whatever their sign; those that cancel are empty. The gradient is the quotient's."""
    edges = torch.tensor([[0, 1, 1, 2, 0, 2, 3], [1, 0, 2, 1, 3, 0, 2]])
    w = torch.tensor([-1.0, 3.0, -0.25, 0.5, 2.0, -3.0, 0.25], dtype=DOUBLE)
    end = "in" if norm == "row" else "out"

    def matrix(w):
        return dense(adjacency(Graph(edges, 4, w), DOUBLE, norm=norm, degree=end))

    degree = torch.zeros(4, dtype=DOUBLE).index_add(0, edges[axis], w)
    assert (degree < 0).any()
    torch.testing.assert_close(matrix(w).sum(axis), (degree != 0).to(DOUBLE))
    assert torch.autograd.gradcheck(matrix, (w + 0.1).requires_grad_())  # where none cancels


@pytest.mark.parametrize("n", [10, 1100])  # by the eigenbasis, and by Lanczos
@pytest.mark.parametrize("norm", ["sym", "row"])
def test_the_largest_eigenvalue_needs_a_symmetric_laplacian(n, norm):
    node = torch.arange(n)
    index = torch.stack([node, (node + 1) % n])
    graph = Graph(index if norm == "sym" else torch.cat([index, index.flip(0)], 1), n)
    with pytest.raises(ValueError, match="largest eigenvalue of a Laplacian needs a symmetric Laplacian"):
        largest_eigenvalue(graph, norm)
    with pytest.raises(ValueError, match="needs a symmetric Laplacian"):
        laplacian(graph, DOUBLE, norm=norm, lmax="exact")


SMALL_GRAPH = torch.tensor([[0, 1, 1, 2, 2, 3, 3, 4, 0, 2], [1, 0, 2, 1, 3, 2, 4, 3, 2, 0]])


@pytest.mark.parametrize("norm", ["sym", None])
@pytest.mark.parametrize("lmax", ["exact", "bound"])
@pytest.mark.parametrize("lanczos", [False, True])
def test_the_rescaled_laplacian_is_differentiable_in_the_edge_weights(norm, lmax, lanczos, monkeypatch):
    monkeypatch.setattr("gconv.laplacian.SMALL", 0 if lanczos else 1000)

    def run(w):
        return dense(laplacian(Graph(SMALL_GRAPH, 5, w.repeat_interleave(2)), DOUBLE, norm=norm, lmax=lmax))

    w = torch.linspace(0.5, 1.5, 5, dtype=DOUBLE).requires_grad_()
    assert torch.autograd.gradcheck(run, (w,))
    assert torch.autograd.gradgradcheck(run, (w,))
    by_autograd = torch.autograd.functional.jacobian(run, w.detach())
    torch.testing.assert_close(torch.func.jacfwd(run)(w.detach()), by_autograd)
    torch.testing.assert_close(torch.func.jacrev(run)(w.detach()), by_autograd)

    def scalar(w):
        return run(w).sin().sum()

    by_autograd = torch.autograd.functional.hessian(scalar, w.detach())
    torch.testing.assert_close(torch.func.hessian(scalar)(w.detach()), by_autograd)
    torch.testing.assert_close(torch.func.jacrev(torch.func.grad(scalar))(w.detach()), by_autograd)
    constant = dense(laplacian(Graph(SMALL_GRAPH, 5, w.detach().repeat_interleave(2)), DOUBLE, norm=norm, lmax=lmax))
    torch.testing.assert_close(run(w), constant)


def test_control_a_constant_largest_eigenvalue_has_a_wrong_derivative(monkeypatch):
    monkeypatch.setattr("gconv.laplacian._differentiable_lmax", lambda graph, L, norm: largest_eigenvalue(graph, norm))
    w = torch.linspace(0.5, 1.5, 5, dtype=DOUBLE).requires_grad_()
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(
            lambda w: dense(laplacian(Graph(SMALL_GRAPH, 5, w.repeat_interleave(2)), DOUBLE, norm=None, lmax="exact")),
            (w,),
        )


def test_eigenvalues_may_be_close_together(monkeypatch):
    """On a path the largest eigenvalue is simple, but close to the next one. The control allows too few steps."""
    n = 600
    index = torch.stack([torch.arange(n - 1), torch.arange(1, n)])
    second = []
    for small in (n, 0):
        monkeypatch.setattr("gconv.laplacian.SMALL", small)
        w = (1 + torch.arange(1, n, dtype=DOUBLE).sin() / 2).requires_grad_()
        graph = Graph(torch.cat([index, index.flip(0)], 1), n, torch.cat([w, w]))
        values = laplacian(graph, DOUBLE, norm="sym", lmax="exact").values
        (g,) = torch.autograd.grad(values.square().sum(), w, create_graph=True)
        second += torch.autograd.grad(g.square().sum(), w, retain_graph=True)
    torch.testing.assert_close(second[1], second[0], rtol=1e-6, atol=1e-6 * float(second[0].abs().max()))
    monkeypatch.setattr("gconv.laplacian.STEPS", 100)
    with pytest.raises(ValueError, match="repeated, or nearly"):
        torch.autograd.grad(g.square().sum(), w)


@pytest.mark.parametrize("n", [3, 6, 10, 17])
def test_a_repeated_largest_eigenvalue_has_no_second_derivative(n, monkeypatch):
    monkeypatch.setattr("gconv.laplacian.SMALL", 0)
    index = torch.combinations(torch.arange(n), 2).T
    w = torch.ones(n * (n - 1), dtype=DOUBLE).requires_grad_()
    values = laplacian(Graph(torch.cat([index, index.flip(0)], 1), n, w), DOUBLE, norm="sym", lmax="exact").values
    (g,) = torch.autograd.grad(values.square().sum(), w, create_graph=True)
    with pytest.raises(ValueError, match="repeated"):
        g[0].backward()


def test_the_largest_eigenvalue_is_the_same_in_every_process_and_of_graphs_without_edges(monkeypatch):
    monkeypatch.setattr("gconv.laplacian.SMALL", 0)
    index = torch.randint(0, 300, (2, 900), generator=torch.Generator().manual_seed(1))
    graphs = (Graph(torch.cat([index, index.flip(0)], 1), 300) for _ in range(5))
    assert len({largest_eigenvalue(graph, "sym") for graph in graphs}) == 1
    isolated = Graph(torch.zeros(2, 0, dtype=torch.int64), 5)
    assert (largest_eigenvalue(isolated, "sym"), largest_eigenvalue(isolated, None)) == (1, 0), "L is I and 0"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_degrees_of_a_hub_in_16_bits(dtype):
    """A sum of many 16-bit numbers stops growing, at 256 ones in bfloat16 and 2048 in float16."""
    n = 3001
    leaf = torch.arange(1, n)
    star = Graph(torch.stack([torch.cat([leaf, 0 * leaf]), torch.cat([0 * leaf, leaf])]), n)
    entries, _ = pattern(star)
    ones = torch.ones(2 * n - 2, dtype=dtype)
    assert ones.new_zeros(n).index_add(0, star.target, ones)[0] < 2500  # the control: such a sum
    for norm in ("sym", "row", "col", "both"):
        found, want = (normalised(entries, w, norm) for w in (ones, ones.double()))
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), want, rtol=0.01, atol=0)
    two = Bipartite(torch.stack([leaf - 1, 0 * leaf]), (n - 1, 1))
    for found in (
        star.in_degree(dtype)[0],
        star.out_degree(dtype)[0],
        two.in_degree(dtype)[0],
        two.T.out_degree(dtype)[0],
    ):
        assert found.dtype == dtype and float(found) == pytest.approx(n - 1, rel=0.01)
