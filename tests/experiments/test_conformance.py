"""Where libraries disagree: each known disagreement by running, where the library is installed."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import nn

from experiments import tables
from experiments.conformance import libraries as conformance
from experiments.conformance import peers as conformance_peers
from experiments.conformance.libraries import applied, differ, everything, plain
from experiments.conformance.peers import CONVENTIONS, families, pyg_lmax
from experiments.conformance.rules import (
    SAME,
    WORDS,
    Rule,
    by_rule,
    changed,
    contrast,
    differences,
    eigsh_spread,
    features,
    listed,
    merged,
    mutual,
    top_eigenvalue,
    turned,
)
from experiments.harness.machine import ROOT
from experiments.harness.render import load, render
from gconv import GConv, Graph, NotLinear
from gconv.operators import cheb, gcn, graphconv, sage, tag

nx = pytest.importorskip("networkx")
scipy_laplacian = pytest.importorskip("scipy.sparse.csgraph").laplacian
pyg = pytest.importorskip("torch_geometric.nn")


def of(family, name):
    return next(c for c in CONVENTIONS if (c.family, c.name) == (family, name))


def gap(a, b):
    return abs(np.asarray(a) - np.asarray(b)).max()


def set_to(value, *layers):
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.constant_(parameter, value)
    return layers


def dense(graph):
    """A[source, target], double edges summed."""
    A = np.zeros((graph.size, graph.size))
    for j, i, w in listed(graph):
        A[j, i] += w
    return A


def term(layer, graph, k, **call):
    """Chebyshev term k of a PyG ChebConv."""
    for number, lin in enumerate(layer.lins):
        nn.init.constant_(lin.weight, float(number == k))
    return applied(layer, graph, **call)


# -- every entry -------------------------------------------------------------------------------------------------------


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "graph", [everything(), plain(), *features().values()], ids=["everything", "plain", *features()]
)
@pytest.mark.parametrize("entry", [c for c in CONVENTIONS if c.run], ids=lambda c: f"{c.family}: {c.name}")
def test_what_a_library_applies_is_what_its_rule_says(entry, graph):
    assert gap(entry.matrix(graph), by_rule(entry.rule, graph)) < SAME


@pytest.mark.sampled(3)
@pytest.mark.parametrize("entry", [c for c in CONVENTIONS if c.ours], ids=lambda c: f"{c.family}: {c.name}")
def test_gconv_with_the_options_named_is_equal(entry):
    for graph in (everything(), plain(), *features().values()):
        assert gap(entry.in_gconv(graph), entry.matrix(graph)) < SAME


def test_entries_say_how_they_are_known_and_only_what_is_installed_is_run():
    for entry in CONVENTIONS:
        assert (entry.known == "run") == (entry.run is not None), entry
        assert entry.run is None or entry.who in ("torch_geometric", "networkx", "scipy")
    assert len({(c.family, c.name) for c in CONVENTIONS}) == len(CONVENTIONS)
    assert all(members[0].name.startswith("PyG") for members in families().values())


def test_the_graph_has_everything_and_the_plain_one_nothing():
    graph, edges = everything(), listed(everything())
    A = dense(graph)
    assert graph.size == plain().size == 5 and not graph.is_undirected and plain().is_undirected
    assert len({w for *_, w in edges}) > 1 and A.diagonal().any() and len({e[:2] for e in edges}) < len(edges)
    assert (A.sum(0) + A.sum(1) == 0).sum() == 1 and ((A.sum(0) == 0) & (A.sum(1) > 0)).any()
    B = dense(plain())
    assert set(np.unique(B)) == {0, 1} and not B.diagonal().any() and (B == B.T).all()


def test_each_feature_alone_is_what_its_name_says():
    for name, graph in features().items():
        A, e = dense(graph), listed(graph)
        found = {"one way": (A != A.T).any(), "weight": any(w != 1 for *_, w in e), "loop": A.diagonal().any(),
                 "double edge": len({x[:2] for x in e}) < len(e),
                 "isolated node": ((A.sum(0) + A.sum(1)) == 0).any()}  # fmt: skip
        assert [n for n, yes in found.items() if yes] == [name]


# -- what is known (the numbers are those of the list of disagreements) ------------------------------------------------


def test_1_on_a_directed_graph_pyg_normalises_by_in_degrees_kipf_by_out_degrees():
    graph = features()["one way"]
    A = dense(graph) + np.eye(graph.size)
    root_in, root_out = A.sum(0) ** -0.5, A.sum(1) ** -0.5
    (layer,) = set_to(1.0, pyg.GCNConv(1, 1, bias=False))
    assert gap(applied(layer, graph), root_in[:, None] * A.T * root_in) < SAME
    assert gap(of("gcn", "Kipf, TensorFlow").matrix(graph), root_out[:, None] * A.T * root_out) < SAME
    assert gap(of("gcn", "DGL, add_self_loop first").matrix(graph), root_in[:, None] * A.T * root_out) < SAME
    names = ("PyG", "Kipf, TensorFlow", "DGL, add_self_loop first")
    matrices = [of("gcn", name).matrix(graph) for name in names]
    assert all(gap(matrices[a], matrices[b]) > 0.01 for a, b in ((0, 1), (0, 2), (1, 2)))
    on_plain = [of("gcn", name).matrix(plain()) for name in names]
    assert all(gap(on_plain[0], S) < SAME for S in on_plain)


def test_2_pyg_counts_weights_in_the_degree():
    graph = features()["weight"]
    (layer,) = set_to(1.0, pyg.GCNConv(1, 1, bias=False))
    S, counted = applied(layer, graph), of("gcn", "DGL, add_self_loop first").matrix(graph)
    A = dense(graph) + np.eye(5)
    assert gap(S, A * np.outer(A.sum(0), A.sum(0)) ** -0.5) < SAME
    assert gap(counted, A * np.outer((A > 0).sum(0), (A > 0).sum(0)) ** -0.5) < SAME
    assert gap(S, counted) > 0.1


def test_3_pyg_keeps_a_loop_kipf_adds_one_more():
    graph = everything()  # node 1 has a loop of 0.5
    (layer,) = set_to(1.0, pyg.GCNConv(1, 1, bias=False))
    A = dense(graph)
    into, out = A.sum(0), A.sum(1)
    assert np.isclose(applied(layer, graph)[1, 1], 0.5 / into[1])
    assert np.isclose(of("gcn", "Kipf, TensorFlow").matrix(graph)[1, 1], 1.5 / (out[1] + 1))
    assert of("gcn", "DGL GraphConv").matrix(graph)[4, 4] == 0 != of("gcn", "PyG").matrix(graph)[4, 4]


def test_4_pyg_drops_loops_from_the_laplacian_kipf_and_networkx_keep_them():
    graph, without = features()["loop"], plain()
    chebs = [term(pyg.ChebConv(1, 1, K=2, bias=False), g, 1) for g in (graph, without)]
    assert gap(*chebs) == 0
    kipf = [of("laplacian, sym", "Kipf, TensorFlow").matrix(g) for g in (graph, without)]
    networkx = [of("laplacian, sym", "networkx").matrix(g) for g in (graph, without)]
    assert gap(*kipf) > 0.1 and gap(*networkx) > 0.1
    assert gap(kipf[0], networkx[0]) < SAME  # as run


def test_5_lambda_max_is_a_bound_in_pyg_and_computed_by_kipf():
    graph = plain()
    for norm, bound in (("sym", 2.0), ("rw", 2.0), (None, 2 * dense(graph).sum(1).max())):
        layer = pyg.ChebConv(1, 1, K=2, normalization=norm, bias=False)
        left, bounded = term(layer, graph, 1), term(layer, graph, 1, lambda_max=bound)
        assert gap(left, bounded) < SAME
        computed = pyg_lmax(graph, norm)
        assert computed < bound - 0.1 and gap(left, term(layer, graph, 1, lambda_max=computed)) > 0.05
    kipf = of("cheb, sym", "Kipf, TensorFlow").matrix(graph)
    assert np.isclose(np.linalg.eigvalsh(kipf)[-1], 1)
    assert gap(kipf, term(pyg.ChebConv(1, 1, K=2, bias=False), graph, 1, lambda_max=pyg_lmax(graph, "sym"))) < SAME


def test_6_pygs_rw_operator_is_the_transpose_of_the_documented_one():
    A = dense(plain())
    documented = np.eye(5) - A / A.sum(1)[:, None]
    layer = pyg.ChebConv(1, 1, K=2, normalization="rw", bias=False)
    L = term(layer, plain(), 1, lambda_max=2.0) + np.eye(5)
    assert gap(L, documented.T) < SAME and gap(L, documented) > 0.1
    assert gap(documented.sum(1), 0) < SAME < gap(L.sum(1), 0)  # constants are not in the kernel of what PyG applies


def test_7_k_3_is_three_terms_in_pyg_and_gconv_four_with_kipf():
    assert len(pyg.ChebConv(1, 1, K=3).lins) == 3 and GConv(cheb(1, 1, k=3)).weight.shape[0] == 3
    assert len(pyg.TAGConv(1, 1, K=3).lins) == 4 and GConv(tag(1, 1, k=3)).weight.shape[0] == 4
    tail = Graph(torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]]))
    layers = set_to(1.0, pyg.ChebConv(1, 1, K=3, bias=False), pyg.TAGConv(1, 1, K=3, bias=False))
    assert [applied(layer, tail)[0, 3] != 0 for layer in layers] == [False, True]
    assert of("cheb, sym", "Kipf, TensorFlow").k3 == (4, "max_degree") and of("cheb, sym", "PyG").k3 == (3, "K")


def test_an_isolated_node_has_diagonal_1_in_pyg_and_0_in_networkx_and_scipy():
    graph = features()["isolated node"]
    A = dense(graph)
    assert nx.normalized_laplacian_matrix(nx.from_numpy_array(A)).toarray()[5, 5] == 0
    assert scipy_laplacian(A, normed=True)[5, 5] == 0
    assert of("laplacian, sym", "PyG").matrix(graph)[5, 5] == 1


def test_eigsh_of_a_directed_laplacian_depends_on_its_start():
    L = of("laplacian, sym", "Kipf, TensorFlow").matrix
    low, high = eigsh_spread(L(everything()))
    assert high - low > 0.05
    low, high = eigsh_spread(L(plain()))
    assert high - low < 1e-6 and np.isclose(low, top_eigenvalue(L(plain())))


# -- rules and words ---------------------------------------------------------------------------------------------------


def test_every_part_of_a_rule_moves_a_matrix_and_has_words():
    """Negative control of `differences`: each part, changed alone, is named alone."""
    base = {"isolated": Rule(laplacian=True), "lmax": Rule(laplacian=True), "along": Rule(degree="out")}
    base |= {"merged": Rule(counted=False)}
    other = {"loops": "added", "degree": "out", "norm": "row", "isolated": 0, "zero": 1, "lmax": "2", "power": 2}
    graph = everything()
    for f in fields(Rule):
        rule = base.get(f.name, Rule())
        value = other.get(f.name, not getattr(rule, f.name))
        changed_rule = replace(rule, **{f.name: value})
        said = differences(rule, changed_rule, graph)
        assert said == [contrast(WORDS[f.name][value], WORDS[f.name][getattr(rule, f.name)])], f.name
    assert differences(Rule(), Rule(degree="out"), plain()) == []


def test_words_in_common_are_said_once():
    assert contrast("loops added", "loops kept") == "loops added, not kept"
    assert contrast("lambda_max 2", "lambda_max 2 max L") == "lambda_max 2, not 2 max L"
    assert contrast("out-degree", "in-degree") == "out-degree, not in-degree"


def test_graphs_made_from_others():
    graph = changed(plain(), [(0, 1, 1.0), (0, 1, 2.0), (1, 0, 1.0), (2, 2, 1.0)])
    assert listed(merged(graph)) == [(0, 1, 3.0), (1, 0, 1.0), (2, 2, 1.0)]
    assert sorted(listed(mutual(graph))) == [(0, 1, 3.0), (1, 0, 3.0), (2, 2, 1.0)]
    assert sorted(listed(turned(graph))) == [(0, 1, 1.0), (1, 0, 1.0), (1, 0, 2.0), (2, 2, 1.0)]


# -- differ ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", [
    (lambda: pyg.GCNConv(3, 2), lambda: GConv(gcn(3, 2))),
    (lambda: pyg.GraphConv(3, 2, aggr="mean"), lambda: GConv(graphconv(3, 2, aggr="mean"))),
    (lambda: pyg.SAGEConv(3, 2), lambda: GConv(sage(3, 2))),
    (lambda: pyg.ChebConv(3, 2, K=3, normalization="rw"), lambda: GConv(cheb(3, 2, k=3, normalization="rw"))),
    (lambda: pyg.TAGConv(3, 2, K=2), lambda: GConv(tag(3, 2, k=2))),
], ids=["gcn", "graphconv", "sage", "cheb", "tag"])  # fmt: skip
def test_layers_of_one_convention_do_not_differ(pair):
    a, b = set_to(0.5, *(make() for make in pair))
    found = differ(a, b, everything())
    assert found.entries == () and found.largest < 1e-12 and str(found) == "no entry differs"


def test_layers_that_differ_say_where():
    a, b = set_to(1.0, GConv(gcn(2, 3)), GConv(gcn(2, 3, add_self_loops=False)))
    found = differ(a, b, Graph(torch.tensor([[0], [1]]), 3))
    at = {(e.target, e.source) for e in found.entries}
    assert at == {(0, 0), (1, 1), (2, 2), (1, 0)} and found.largest == 1
    assert {(e.out_channel, e.in_channel) for e in found.entries} == {(o, i) for o in range(3) for i in range(2)}
    gaps = [abs(e.a - e.b) for e in found.entries]
    assert gaps == sorted(gaps, reverse=True) and "channel 1 -> 2" in str(found)


def test_layers_without_a_matrix_and_of_other_shapes_are_refused():
    (layer,) = set_to(1.0, pyg.SAGEConv(1, 1, aggr="max"))
    with pytest.raises(NotLinear, match="SAGEConv is not linear"):
        applied(layer, plain())
    with pytest.raises(ValueError, match="differ in shape"):
        differ(GConv(gcn(1, 1)), GConv(gcn(1, 2)), plain())
    nan = differ(lambda g: np.full((5, 5), np.nan), lambda g: np.zeros((5, 5)), plain())
    assert len(nan.entries) == 25


def test_running_a_layer_leaves_it_as_it_was():
    layer = pyg.GCNConv(2, 2)
    applied(layer, plain())
    assert layer.training and layer.lin.weight.dtype == torch.float32


# -- rows, table, figure -----------------------------------------------------------------------------------------------


def test_a_run_prints_draws_and_keeps_rows_that_make_a_table(tmp_path, capsys):
    conformance.main(["--only", "sage", "--results", str(tmp_path / "conformance.jsonl")])
    out = capsys.readouterr().out
    assert "== sage, mean ==" in out and "loops added, not kept" in out and "drew" not in out
    rows = load(tmp_path, "conformance")
    assert len(rows) == len(families()["sage, mean"])
    table = next(t for t in tables.TABLES if t.name == "conformance")
    lines = render(table, rows).splitlines()
    assert any(x.startswith("| sage, mean: DGL gcn") and "loops added, not kept" in x for x in lines)
    from experiments.conformance.picture import draw

    assert draw(rows, tmp_path / "figures").stat().st_size > 1000
    with pytest.raises(SystemExit, match="no family has 'sgae' in its name"):
        conformance.main(["--only", "sgae", "--results", str(tmp_path / "conformance.jsonl")])


def test_a_wrong_claim_is_an_error(tmp_path, monkeypatch):
    """Negative control: a rule and an expression of gconv that are not the library's."""
    first, *others = CONVENTIONS
    broken = (replace(first, rule=Rule(loops="added"), ours="adjacency(graph, norm='row')"), *others)
    for module in (conformance, conformance_peers):
        monkeypatch.setattr(module, "CONVENTIONS", broken)
    with pytest.raises(SystemExit, match=r"gcn: PyG: gap to rule \S+\n.*PyG: gap to gconv"):
        conformance.main(["--only", "gcn", "--results", str(tmp_path / "rows.jsonl")])


def test_rows_of_another_state_are_replaced(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    for state in ("before", "now"):
        monkeypatch.setattr(conformance, "state", lambda state=state: conformance.common.Data("graphs", state))
        conformance.main(["--only", "tag", "--results", str(path)])
    assert {json.loads(line)["data"]["hash"] for line in path.read_text().splitlines()} == {"now"}


def test_committed_rows_are_what_is_computed_here():
    rows = {(r["config"]["family"], r["config"]["peer"]): r for r in load(ROOT / "experiments/results", "conformance")}
    assert set(rows) == {(c.family, c.name) for c in CONVENTIONS}
    for entry in CONVENTIONS:
        m = rows[entry.family, entry.name]["metrics"]
        assert gap(m["matrix_everything"], entry.matrix(everything())) < SAME
        assert gap(m["matrix_plain"], entry.matrix(plain())) < SAME
        assert m["in_gconv"] == (entry.ours or "no option") and m["known"] == entry.known
