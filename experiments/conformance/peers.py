"""The conventions of PyG, Kipf's code, DGL, Spektral, networkx and scipy, grouped by family.

`known` states whether a library was run. "Formula of published code" is a rule taken from the code of the repository;
"documented rule" is one stated in its documentation. DGL's GraphConv is used with allow_zero_in_degree=True, since it
otherwise rejects nodes without incoming edges. pygcn symmetrises its adjacency when the data is loaded.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from experiments.conformance.layers import applied
from experiments.conformance.rules import Matrix, Rule, by_rule, listed, merged, mutual, top_eigenvalue, turned
from gconv import GConv, Graph, laplacian
from gconv.lowering import dense
from gconv.operators import graphconv, sgc

Known = Literal["run", "formula of published code", "documented rule"]


def pyg(name: str, *sizes: int, one: str, lmax: bool = False, **options: Any) -> Callable[[Graph], Matrix]:
    """S of a one-channel PyG layer whose parameter `one` is 1 and all others 0. lmax: pass PyG's own lambda_max."""

    def run(graph: Graph) -> Matrix:
        import torch_geometric.nn

        layer = getattr(torch_geometric.nn, name)(*sizes, **options)
        for key, parameter in layer.named_parameters():
            nn.init.constant_(parameter, float(key == one))
        return applied(layer, graph, **({"lambda_max": pyg_lmax(graph, options["normalization"])} if lmax else {}))

    return run


def pyg_lmax(graph: Graph, normalization: str | None) -> float:
    """The value computed by PyG's LaplacianLambdaMax."""
    from torch_geometric.data import Data
    from torch_geometric.transforms import LaplacianLambdaMax

    data = Data(edge_index=graph.edge_index, edge_attr=graph.weights(torch.float64), num_nodes=graph.size)
    return LaplacianLambdaMax(normalization, is_undirected=graph.is_undirected)(data).lambda_max


def pyg_laplacian(normalization: str | None) -> Callable[[Graph], Matrix]:
    """L as ChebConv applies it: with lambda_max = 2 its second term is L - I."""

    def run(graph: Graph) -> Matrix:
        from torch_geometric.nn import ChebConv

        layer = ChebConv(1, 1, K=2, normalization=normalization, bias=False)
        nn.init.zeros_(layer.lins[0].weight)
        nn.init.ones_(layer.lins[1].weight)
        return applied(layer, graph, lambda_max=2.0) + np.eye(graph.size)

    return run


def read_networkx(name: str) -> Callable[[Graph], Matrix]:
    """A matrix of networkx, transposed to act on signals."""

    def run(graph: Graph) -> Matrix:
        import networkx as nx

        peer = nx.MultiDiGraph()
        peer.add_nodes_from(range(graph.size))
        peer.add_weighted_edges_from(listed(graph))
        return getattr(nx, name)(peer).toarray()

    return run


def read_scipy(normed: bool, use_out_degree: bool) -> Callable[[Graph], Matrix]:
    """The matrix of scipy.sparse.csgraph.laplacian, transposed to act on signals."""

    def run(graph: Graph) -> Matrix:
        import scipy.sparse
        from scipy.sparse.csgraph import laplacian

        i, j, w = zip(*listed(graph), strict=True)
        A = scipy.sparse.csr_matrix((w, (i, j)), shape=(graph.size,) * 2)
        return laplacian(A, normed=normed, use_out_degree=use_out_degree).toarray()

    return run


@dataclass(frozen=True)
class Convention:
    """The definition of S in one library."""

    family: str
    name: str
    who: str
    known: Known
    rule: Rule
    run: Callable[[Graph], Matrix] | None = None
    """For installed libraries: graph -> the matrix that the library applies."""
    ours: str = ""
    """The gconv expression that reproduces it, evaluated by `in_gconv`; empty if there is none."""
    k3: tuple[int, str] | None = None
    """The number of matrices in the sum if an argument is 3, and the name of that argument."""

    def matrix(self, graph: Graph) -> Matrix:
        """S (n, n), S[target, source]: computed by the library, or by its rule if it is not installed."""
        return self.run(graph) if self.run else by_rule(self.rule, graph)

    def in_gconv(self, graph: Graph) -> Matrix | None:
        """S as computed by gconv; None if no option reproduces this convention."""
        return eval(self.ours, {"graph": graph, "I": np.eye(graph.size), **OURS}) if self.ours else None


def _ours(make: Callable[..., Any]) -> Callable[..., Matrix]:
    def run(graph: Graph, **options: Any) -> Matrix:
        return dense.stack(make(graph, torch.float64, **options), torch.float64, graph.device)[0].numpy()

    return run


def tap(spec: Any, graph: Graph, k: int = 0) -> Matrix:
    """S_k of an operator of gconv."""
    return dense.stack(GConv(spec, dtype=torch.float64).at(graph).S, torch.float64, graph.device)[k].detach().numpy()


OURS: dict[str, Any] = {
    "adjacency": _ours(laplacian.adjacency),
    "laplacian": _ours(laplacian.laplacian),
    "tap": tap,
    "graphconv": graphconv,
    "sgc": sgc,
    "mutual": mutual,
    "merged": merged,
    "turned": turned,
    "top": top_eigenvalue,
    "power": np.linalg.matrix_power,
}

PYG, PYG_DOCS, NETWORKX, SCIPY = "torch_geometric", "torch_geometric, its documentation", "networkx", "scipy"
KIPF, PYGCN, SPEKTRAL, WU = "tkipf/gcn", "tkipf/pygcn", "danielegrattarola/spektral", "Tiiiger/SGC"
DGL, DGL_DOCS = "dmlc/dgl, its code", "dmlc/dgl, its documentation"
CODE: Known = "formula of published code"
DOCS: Known = "documented rule"

GCN = Rule(loops="filled in")
DGL_GCN = Rule(counted=False, degree="both", zero=1)
MEAN = Rule(weighted=False, norm="row")
SPEKTRAL_MEAN = replace(MEAN, loops="replaced", degree="out", along=False, merged=True)
L = Rule(loops="dropped", degree="out", laplacian=True)
DGL_L = Rule(weighted=False, zero=1, laplacian=True, lmax="2")


def cheb(family: str, norm: Literal["sym", "rw"] | None) -> tuple[Convention, ...]:
    """PyG's two definitions of lambda_max."""
    ours: Literal["sym", "col"] | None = "col" if norm == "rw" else norm
    rule, options = replace(L, norm=ours), dict[str, Any](K=2, normalization=norm, one="lins.1.weight")
    exact = f"laplacian(graph, norm={ours!r}, lmax=top(laplacian(graph, norm={ours!r})))"
    bound, computed = pyg("ChebConv", 1, 1, **options), pyg("ChebConv", 1, 1, lmax=True, **options)
    return (
        Convention(family, "PyG", PYG, "run", replace(rule, lmax="2 max L"), bound,
                   f"laplacian(graph, norm={ours!r}, lmax='bound')", (3, "K")),
        Convention(family, "PyG, LaplacianLambdaMax", PYG, "run", replace(rule, lmax="computed"), computed,
                   exact, (3, "K")),
    )  # fmt: skip


# fmt: off
CONVENTIONS: tuple[Convention, ...] = (
    Convention("gcn", "PyG", PYG, "run", GCN, pyg("GCNConv", 1, 1, one="lin.weight"),
               "adjacency(graph, loops='fill', norm='sym')"),
    Convention("gcn", "Kipf, TensorFlow", KIPF, CODE, Rule(loops="added", degree="out"), None,
               "adjacency(graph, loops='add', norm='sym', degree='out')"),
    Convention("gcn", "Kipf, pygcn", PYGCN, CODE, Rule(loops="added", norm="row", mutual=True), None,
               "adjacency(mutual(graph), loops='add', norm='row')"),
    Convention("gcn", "DGL GraphConv", DGL, CODE, DGL_GCN),
    Convention("gcn", "DGL, add_self_loop first", DGL_DOCS, DOCS, replace(DGL_GCN, loops="added")),
    Convention("gcn", "Spektral gcn_filter", SPEKTRAL, CODE, Rule(loops="added", degree="out", along=False), None,
               "adjacency(turned(graph), loops='add', norm='sym')"),

    Convention("sgc, K = 2", "PyG", PYG, "run", replace(GCN, power=2), pyg("SGConv", 1, 1, K=2, one="lin.weight"),
               "tap(sgc(1, 1, k=2), graph)"),
    Convention("sgc, K = 2", "Wu et al., AugNormAdj", WU, CODE,
               Rule(loops="added", degree="out", along=False, power=2), None,
               "power(adjacency(turned(graph), loops='add', norm='sym'), 2)"),
    Convention("sgc, K = 2", "DGL SGConv", DGL, CODE, Rule(weighted=False, zero=1, power=2)),
    Convention("sgc, K = 2", "DGL, add_self_loop first", DGL_DOCS, DOCS,
               Rule(loops="added", weighted=False, power=2), None,
               "power(adjacency(graph, loops='add', norm='sym', weighted=False), 2)"),

    Convention("tag", "PyG", PYG, "run", Rule(), pyg("TAGConv", 1, 1, K=1, one="lins.1.weight"),
               "adjacency(graph, norm='sym')", (4, "K")),
    Convention("tag", "DGL TAGConv", DGL, CODE, Rule(weighted=False, zero=1), k3=(4, "k")),
    Convention("tag", "DGL TAGConv, edge_weight=", DGL, CODE, Rule(degree="both"), None,
               "adjacency(graph, norm='both')", (4, "k")),

    Convention("sage, mean", "PyG", PYG, "run", MEAN, pyg("SAGEConv", 1, 1, one="lin_l.weight"),
               "adjacency(graph, norm='row', weighted=False)"),
    Convention("sage, mean", "DGL mean, edge_weight=", DGL, CODE, Rule(counted=False, norm="row"), None,
               "tap(graphconv(1, 1, aggr='mean'), graph)"),
    Convention("sage, mean", "DGL gcn", DGL, CODE, replace(MEAN, loops="added"), None,
               "adjacency(graph, loops='add', norm='row', weighted=False)"),
    Convention("sage, mean", "Spektral", SPEKTRAL, CODE, SPEKTRAL_MEAN, None,
               "adjacency(merged(turned(graph)), loops='replace', norm='row', weighted=False)"),

    Convention("graphconv, mean", "PyG", PYG, "run", Rule(counted=False, norm="row"),
               pyg("GraphConv", 1, 1, aggr="mean", one="lin_rel.weight"), "tap(graphconv(1, 1, aggr='mean'), graph)"),
    Convention("graphconv, mean", "DGL right", DGL, CODE, Rule(counted=False, norm="row"), None,
               "tap(graphconv(1, 1, aggr='mean'), graph)"),
    Convention("graphconv, mean", "DGL EdgeWeightNorm right", DGL, CODE, Rule(norm="row"), None,
               "adjacency(graph, norm='row')"),

    Convention("gat, no attention", "PyG GATConv", PYG, "run", replace(MEAN, loops="replaced"),
               pyg("GATConv", 1, 1, one="lin.weight"),
               "adjacency(graph, loops='replace', norm='row', weighted=False)"),
    Convention("gat, no attention", "PyG GATv2Conv", PYG, "run", replace(MEAN, loops="replaced"),
               pyg("GATv2Conv", 1, 1, one="lin_l.weight"),
               "adjacency(graph, loops='replace', norm='row', weighted=False)"),
    Convention("gat, no attention", "DGL GATConv", DGL, CODE, MEAN, None,
               "adjacency(graph, norm='row', weighted=False)"),
    Convention("gat, no attention", "Spektral", SPEKTRAL, CODE, SPEKTRAL_MEAN, None,
               "adjacency(merged(turned(graph)), loops='replace', norm='row', weighted=False)"),

    Convention("laplacian, sym", "PyG", PYG, "run", L, pyg_laplacian("sym"), "laplacian(graph)"),
    Convention("laplacian, sym", "Kipf, TensorFlow", KIPF, CODE, Rule(degree="out", laplacian=True), None,
               "I - adjacency(graph, norm='sym', degree='out')"),
    Convention("laplacian, sym", "Spektral", SPEKTRAL, CODE, Rule(degree="out", along=False, laplacian=True), None,
               "I - adjacency(turned(graph), norm='sym')"),
    Convention("laplacian, sym", "networkx", NETWORKX, "run",
               Rule(degree="out", along=False, laplacian=True, isolated=0),
               read_networkx("normalized_laplacian_matrix")),
    Convention("laplacian, sym", "scipy", SCIPY, "run",
               Rule(loops="dropped", along=False, zero=1, laplacian=True, isolated=0), read_scipy(True, False)),
    Convention("laplacian, sym", "scipy, use_out_degree", SCIPY, "run",
               Rule(loops="dropped", degree="out", along=False, zero=1, laplacian=True, isolated=0),
               read_scipy(True, True)),

    Convention("laplacian, rw", "PyG", PYG, "run", replace(L, norm="col"), pyg_laplacian("rw"),
               "laplacian(graph, norm='col')"),
    Convention("laplacian, rw", "PyG's docstring, I - D^-1 A", PYG_DOCS, DOCS,
               replace(L, degree="in", norm="row"), None, "laplacian(graph, norm='row', degree='in')"),
    Convention("laplacian, rw", "Spektral", SPEKTRAL, CODE,
               Rule(degree="out", norm="row", along=False, laplacian=True), None,
               "I - adjacency(turned(graph), norm='row')"),

    Convention("laplacian, none", "PyG", PYG, "run", replace(L, norm=None), pyg_laplacian(None),
               "laplacian(graph, norm=None)"),
    Convention("laplacian, none", "networkx", NETWORKX, "run", replace(L, loops="kept", along=False, norm=None),
               read_networkx("laplacian_matrix"), "laplacian(graph, norm=None).T"),
    Convention("laplacian, none", "scipy", SCIPY, "run", replace(L, degree="in", along=False, norm=None),
               read_scipy(False, False), "laplacian(turned(graph), norm=None)"),
    Convention("laplacian, none", "scipy, use_out_degree", SCIPY, "run", replace(L, along=False, norm=None),
               read_scipy(False, True), "laplacian(graph, norm=None).T"),

    *cheb("cheb, sym", "sym"),
    Convention("cheb, sym", "Kipf, TensorFlow", KIPF, CODE, Rule(degree="out", laplacian=True, lmax="computed"), None,
               "2 / top(I - adjacency(graph, norm='sym', degree='out'))"
               " * (I - adjacency(graph, norm='sym', degree='out')) - I", (4, "max_degree")),
    Convention("cheb, sym", "DGL ChebConv", DGL, CODE, DGL_L, k3=(3, "k")),
    Convention("cheb, sym", "DGL's docstring, A + I", DGL_DOCS, DOCS, replace(DGL_L, loops="added"), None,
               "-adjacency(graph, loops='add', norm='sym', weighted=False)", (3, "k")),
    Convention("cheb, sym", "Spektral", SPEKTRAL, CODE,
               Rule(degree="out", along=False, laplacian=True, lmax="computed"), None,
               "2 / top(I - adjacency(turned(graph), norm='sym')) * (I - adjacency(turned(graph), norm='sym')) - I",
               (3, "K")),
    *cheb("cheb, rw", "rw"),
    *cheb("cheb, none", None),
)
# fmt: on


def families() -> dict[str, list[Convention]]:
    """The conventions by family, PyG's first: the others are compared with it."""
    found: dict[str, list[Convention]] = {}
    for convention in CONVENTIONS:
        found.setdefault(convention.family, []).append(convention)
    return found
