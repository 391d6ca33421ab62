"""Patterns that keep their rows alone: the entries in another order, everything else as with a list of them."""

import pytest
import torch

from gconv import GConv, Graph
from gconv.basis import ByRows, Pattern, Taps
from gconv.laplacian import adjacency, laplacian
from gconv.operators import cheb, gcn, sage, simple, wl_continuous
from gconv.testing import assert_close

INDEX = torch.tensor([[4, 0, 0, 1, 2, 2, 3, 4, 4], [3, 1, 1, 2, 2, 0, 4, 0, 3]])  # double edges, a loop, a node alone
GRAPH, ONES = Graph(INDEX, 6), Graph(INDEX, 6, edge_weight=torch.ones(9))


def listed():
    tap = torch.zeros(9, dtype=torch.int64)
    return Pattern((1, 6, 6), tap, INDEX[1], INDEX[0])


@pytest.mark.usefixtures("anywhere")
def test_the_same_entries_in_order():
    rows, plain = ByRows.of(listed()), listed()
    csr = plain.csr("expand")
    values = torch.arange(9.0)
    S, T = Taps(plain, values), Taps(rows, csr.ordered(values))
    assert len(rows) == 9 and rows.shape == plain.shape and len(rows.tap) == 9
    assert torch.equal(rows.row, plain.row[csr.perm.long()]) and torch.equal(rows.col, plain.col[csr.perm.long()])
    x = torch.eye(6)
    assert torch.equal(T.expand(x), S.expand(x)) and torch.equal(T.T.expand(x), S.T.expand(x))
    turned = Taps(rows.T, T.values)  # whose entries keep their order
    assert torch.equal(rows.T.row, rows.col) and torch.equal(rows.T.col, rows.row)
    assert torch.equal(turned.expand(x), S.T.expand(x)) and torch.equal(turned.T.expand(x), S.expand(x))
    assert torch.equal(rows.T.T.row, rows.row)


def test_no_list_is_written_for_products():
    for spec in (gcn(3, 4), sage(3, 4), cheb(3, 4, k=3)):
        graph, layer = Graph(INDEX, 6), GConv(spec)
        x = torch.randn(6, 3, requires_grad=True)
        for lowering in ("recurrence" if spec.name == "cheb" else "sparse",):
            layer(x, graph, lowering=lowering).sum().backward()
        kept = [made for made in graph._memo.values() if isinstance(made, ByRows)]
        assert kept and not any({"row", "col"} & set(vars(made)) for made in kept)


@pytest.mark.parametrize("loops", ["keep", "remove", "fill", "replace", "add"])
@pytest.mark.parametrize("norm", [None, "sym", "row", "col", "both"])
def test_adjacencies_are_those_of_a_graph_with_ones_for_weights(loops, norm):
    for fill in (1.0, 2.0):
        one, other = (adjacency(g, torch.float64, loops=loops, fill=fill, norm=norm) for g in (GRAPH, ONES))
        assert torch.equal(one.expand(torch.eye(6).double()), other.expand(torch.eye(6).double()))
    assert isinstance(adjacency(GRAPH, torch.float64, loops=loops, norm=norm).pattern, ByRows)
    assert not isinstance(other.pattern, ByRows)


@pytest.mark.parametrize("norm", [None, "sym", "row"])
@pytest.mark.parametrize("lmax", [None, 2.0, "bound"])
def test_laplacians_are_those_of_a_graph_with_ones_for_weights(norm, lmax):
    one, other = (laplacian(g, torch.float64, norm=norm, lmax=lmax) for g in (GRAPH, ONES))
    assert torch.equal(one.expand(torch.eye(6).double()), other.expand(torch.eye(6).double()))


@pytest.mark.parametrize(
    "spec", [sage(3, 2), sage(3, 2, aggr="max"), simple("mean"), simple("max"), wl_continuous()], ids=str
)
def test_what_combines_values_of_entries_combines_those_of_one_entry(spec):
    layer = GConv(spec, dtype=torch.float64)
    x = torch.randn(6, 3, dtype=torch.float64)
    assert_close("ones for weights", layer(x, GRAPH), layer(x, ONES), 1e-14)
