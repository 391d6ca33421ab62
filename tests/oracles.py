"""An independent oracle for every operator: torch.nn, PyG, or a formula, with the layer's own weights carried over.

An oracle takes a layer, its domain and x in the layer's layout, and computes what the layer should, differentiably in
x, in the layer's parameters and in the graph's edge weights. `RANDOM` draws specs and domains for each of them.

Where the libraries' conventions differ from ours, or surprise, it is written beside the oracle:
  torch     ConvTranspose knows zero padding alone; its other modes are here the
            vector-Jacobian products of F.pad and the convolution.
  PyG       GMMConv(root_weight=False) fails for want of an attribute; the oracle sets it.
            `improved=True` on an unweighted graph that has self-loops already: they keep weight 1, as here.
            ChebConv(normalization=None) on a graph without edges: 0 / 0 = NaN; here lmax falls back to 1.
            GMMConv documents a factor 1 / K that its code does not apply; the code is the oracle.
            TAGConv, ChebConv and SAGEConv add no self-loops; ChebConv drops those there are.
  networkx  a self-loop of an undirected graph counts twice in its degree; here once. No oracle rests on it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import hypothesis
import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch_geometric import nn as pyg

from gconv import GConv, Graph, Grid, operators
from gconv.spec import Sample

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
            RANDOM[name] = lambda draw, name=name: f(draw, name)

    return enter


def _given(layer: GConv) -> dict[str, Any]:
    return dict(layer.spec.arguments)


def _call(module: nn.Module, weights: dict[str, Tensor | None], *args: Any) -> Tensor:
    """The module with these weights; every one of its parameters must be given."""
    module = module.to(args[0].dtype)
    own = {name for name, _ in module.named_parameters()}
    given = {name: w for name, w in weights.items() if w is not None}
    assert own == set(given), f"parameters {own} of {type(module).__name__}, but {set(given)} are given"
    assert all(dict(module.named_parameters())[k].shape == w.shape for k, w in given.items())
    return functional_call(module, given, args)


# -- grids: torch --------------------------------------------------------------------------------------------------

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
CONV_T = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
FUNCTION = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def _tuple(value: Any, d: int) -> tuple[int, ...]:
    return (value,) * d if isinstance(value, int) else tuple(value)


def _kernel(W: Tensor, kernel: tuple[int, ...], transposed: bool = False) -> Tensor:
    """(k, i, o) or (k, g, i/g, o/g) -> torch's (o, i/g, *kernel), transposed (i, o/g, *kernel)."""
    blocks = W.unsqueeze(1) if W.ndim == 3 else W
    a, b = (2, 3) if transposed else (3, 2)
    return torch.stack([tap.permute(0, a - 1, b - 1).flatten(0, 1) for tap in blocks], -1).unflatten(-1, kernel)


@oracle("conv1d", "conv2d", "conv3d")
def conv(layer: GConv, domain: Grid, x: Tensor) -> Tensor:
    a, d = _given(layer), domain.ndim
    kernel = _tuple(a["kernel_size"], d)
    i, o, padding = a.pop("in_channels"), a.pop("out_channels"), a["padding"]
    if isinstance(padding, tuple) and isinstance(padding[0], tuple):  # pairs: beyond torch's layers
        flat = [p for pair in reversed(padding) for p in pair]
        mode = {"zeros": "constant"}.get(a["padding_mode"], a["padding_mode"])
        x, a["padding"], a["padding_mode"] = F.pad(x, flat, mode), 0, "zeros"
    weights = {"weight": _kernel(layer.weight, kernel), "bias": layer.bias}
    return _call_grid(CONV[d](i, o, **a), weights, x)


def _call_grid(module: nn.Module, weights: dict[str, Tensor | None], x: Tensor) -> Tensor:
    given = {name: w for name, w in weights.items() if w is not None}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using padding='same' with even kernel lengths")  # torch copies; so be it
        return functional_call(module.to(x.dtype), given, (x,))


@oracle("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def conv_transpose(layer: GConv, domain: Grid, x: Tensor) -> Tensor:
    a, d = _given(layer), domain.ndim
    W, mode = _kernel(layer.weight, _tuple(a["kernel_size"], d), True), a.pop("padding_mode")
    if mode == "zeros":
        return _call_grid(
            CONV_T[d](a.pop("in_channels"), a.pop("out_channels"), **a), {"weight": W, "bias": layer.bias}, x
        )
    k, s, p, dl, e = (_tuple(a[n], d) for n in ("kernel_size", "stride", "padding", "dilation", "output_padding"))
    size = [(n - 1) * s[t] - 2 * p[t] + dl[t] * (k[t] - 1) + e[t] + 1 for t, n in enumerate(domain.shape)]
    u = torch.zeros(len(x), a["out_channels"], *size, dtype=x.dtype, requires_grad=True)
    forth = FUNCTION[d](F.pad(u, [q for n in reversed(p) for q in (n, n)], mode), W, None, s, 0, dl, a["groups"])
    forth = forth[(..., *(slice(n) for n in domain.shape))]  # output_padding beyond a stride: sites that no tap reaches
    (y,) = torch.autograd.grad(forth, u, x, create_graph=True)
    return y if layer.bias is None else y + layer.bias.reshape(-1, *[1] * d)


@oracle("depthwise")
def depthwise(layer: GConv, domain: Grid, x: Tensor) -> Tensor:
    a = _given(layer)
    c, q, d = a.pop("channels"), a.pop("multiplier"), a.pop("ndim")
    weights = {"weight": _kernel(layer.weight, _tuple(a["kernel_size"], d)), "bias": layer.bias}
    return _call_grid(CONV[d](c, c * q, groups=c, **a), weights, x)


@oracle("pointwise")
def pointwise(layer: GConv, domain: Grid, x: Tensor) -> Tensor:
    a = _given(layer)
    d = a["ndim"]
    weights = {"weight": _kernel(layer.weight, (1,) * d), "bias": layer.bias}
    return _call_grid(CONV[d](a["in_channels"], a["out_channels"], 1, bias=a["bias"]), weights, x)


@oracle("separable")
def separable(layer: GConv, domain: Grid, x: Tensor) -> Tensor:
    a = _given(layer)
    i, o, d, bias = a.pop("in_channels"), a.pop("out_channels"), a.pop("ndim"), a.pop("bias")
    kernel = _tuple(a["kernel_size"], d)
    taps = int(np.prod(kernel))
    depth, point = layer.weight[:taps].t().reshape(i, 1, *kernel), layer.weight[taps:].reshape(o, i, *[1] * d)
    middle = _call_grid(CONV[d](i, i, groups=i, bias=False, **a), {"weight": depth}, x)
    return _call_grid(CONV[d](i, o, 1, bias=bias), {"weight": point, "bias": layer.bias}, middle)


@oracle("avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool1d", "max_pool2d", "max_pool3d")
def pool(layer: GConv, domain: Grid, x: Tensor) -> Tensor:
    return getattr(F, layer.spec.name)(x, **_given(layer))


@oracle("global_pool")
def global_pool(layer: GConv, domain: Any, x: Tensor) -> Tensor:
    reduce = _given(layer)["reduce"]
    if isinstance(domain, Grid):
        axes = tuple(range(-domain.ndim, 0))
        return {"mean": torch.mean, "sum": torch.sum, "max": torch.amax}[reduce](x, axes, keepdim=True)
    part = torch.tensor(
        [g for g, (a, b) in enumerate(zip(domain.ptr, domain.ptr[1:], strict=False)) for _ in range(a, b)]
    )
    run = {"mean": pyg.global_mean_pool, "sum": pyg.global_add_pool, "max": pyg.global_max_pool}[reduce]
    return torch.stack([run(one, part, len(domain.ptr) - 1) for one in x])


# -- graphs: PyG ---------------------------------------------------------------------------------------------------


def _each(module: nn.Module, weights: dict[str, Tensor | None], x: Tensor, *graph: Any) -> Tensor:
    return torch.stack([_call(module, weights, one, *graph) for one in x])


@oracle("gcn")
def gcn(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    a = _given(layer)
    a["add_self_loops"] = a["add_self_loops"] and a["normalize"]  # PyG refuses loops without normalisation
    weights = {"lin.weight": layer.weight[0].t(), "bias": layer.bias}
    return _each(pyg.GCNConv(**a), weights, x, g.edge_index, _weight(g, x))


def _weight(g: Graph, x: Tensor) -> Tensor | None:
    return None if g.edge_weight is None else g.edge_weight.to(x.dtype)


@oracle("graphconv")
def graphconv(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    a, W = _given(layer), layer.weight
    a["aggr"] = {"sum": "add"}.get(a["aggr"], a["aggr"])
    weights = {"lin_rel.weight": W[0].t(), "lin_rel.bias": layer.bias, "lin_root.weight": W[1].t()}
    return _each(pyg.GraphConv(**a), weights, x, g.edge_index, _weight(g, x))


@oracle("sage")
def sage(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    a, W = _given(layer), layer.weight
    a["aggr"] = {"sum": "add"}.get(a["aggr"], a["aggr"])
    weights = {
        "lin_l.weight": W[0].t(),
        "lin_l.bias": layer.bias,
        "lin_r.weight": W[1].t() if a["root_weight"] else None,
    }
    return _each(pyg.SAGEConv(**a), weights, x, g.edge_index)


@oracle("cheb")
def cheb(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    a = _given(layer)
    top = a["lambda_max"]
    top = None if top == "bound" else torch.tensor(top, dtype=x.dtype)
    module = pyg.ChebConv(a["in_channels"], a["out_channels"], a["k"], a["normalization"], a["bias"])
    weights = {f"lins.{t}.weight": W.t() for t, W in enumerate(layer.weight)} | {"bias": layer.bias}
    return _each(module, weights, x, g.edge_index, _weight(g, x), None, top)


@oracle("sgc")
def sgc(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    a = _given(layer)
    module = pyg.SGConv(a["in_channels"], a["out_channels"], a["k"], bias=a["bias"])
    return _each(module, {"lin.weight": layer.weight[0].t(), "lin.bias": layer.bias}, x, g.edge_index, _weight(g, x))


@oracle("tag")
def tag(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    a = _given(layer)
    module = pyg.TAGConv(a["in_channels"], a["out_channels"], a["k"], a["bias"])
    weights = {f"lins.{t}.weight": W.t() for t, W in enumerate(layer.weight)} | {"bias": layer.bias}
    return _each(module, weights, x, g.edge_index, _weight(g, x))


@oracle("appnp")
def appnp(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    a = _given(layer)
    return _each(pyg.APPNP(a["k"], a["alpha"]), {}, x, g.edge_index, _weight(g, x))


@oracle("monet")
def monet(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    a, W, K = _given(layer), layer.weight, _given(layer)["kernel_size"]
    module = pyg.GMMConv(a["in_channels"], a["out_channels"], a["dim"], K, root_weight=a["root_weight"], bias=a["bias"])
    weights = {"g": W[:K].permute(1, 0, 2).flatten(1), "mu": layer.mu, "sigma": layer.sigma, "bias": layer.bias}
    if a["root_weight"]:
        weights["root.weight"] = W[K].t()
    else:
        module.root = None  # PyG 2.8.1 reads it, and forgets to set it
    return _each(module, weights, x, g.edge_index, g.edge_attr.to(x.dtype))


@oracle("gat")
def gat(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    weights = {
        "lin.weight": layer.weight.transpose(1, 2).flatten(0, 1),
        "att_src": layer.att_src.unsqueeze(0),
        "att_dst": layer.att_dst.unsqueeze(0),
        "bias": layer.bias,
    }
    return _each(pyg.GATConv(**_given(layer)), weights, x, g.edge_index)


# -- graphs: formulas ----------------------------------------------------------------------------------------------


@oracle("spectral")
def spectral(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    """With hat functions of the matrix L, by numpy's eigendecomposition. Not differentiable in the edge weights."""
    a, n = _given(layer), g.size
    A, w = np.zeros((n, n)), g.weights(torch.float64).detach().numpy()
    for (j, i), weight in zip(g.edge_index.t().tolist(), w, strict=True):
        A[i, j] += weight if i != j else 0.0
    degree = A.sum(1)
    L = np.diag(degree) - A
    if a["normalization"] == "sym":
        root = np.array([d**-0.5 if d > 0 else 0.0 for d in degree])
        L = np.eye(n) - root[:, None] * A * root
    values, U = np.linalg.eigh(L)
    top = 2.0 if a["normalization"] == "sym" else max(values[-1], 1e-12)
    y = 0 if layer.bias is None else layer.bias
    for k, W in enumerate(layer.weight):
        knots = np.linspace(0, top, a["k"])
        bump = np.interp(np.clip(values, 0, top), knots, np.eye(a["k"])[k]) if a["k"] > 1 else np.ones(n)
        y = y + torch.from_numpy(U * bump @ U.T).to(x.dtype) @ x @ W
    return y


@oracle("selection")
def selection(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    """Edge by edge."""
    rows = list(x.new_zeros(g.size, len(x), layer.weight.shape[-1]))
    for e, (j, i) in enumerate(g.edge_index.t().tolist()):
        rows[i] = rows[i] + g.weights(x.dtype)[e] * x[:, j] @ layer.weight[int(g.edge_type[e])]
    y = torch.stack(rows, 1)
    return y if layer.bias is None else y + layer.bias


# -- random specs and domains --------------------------------------------------------------------------------------


def _axes(draw: Any, d: int, low: int, high: int) -> tuple[int, ...]:
    return tuple(draw(st.integers(low, high)) for _ in range(d))


MODES = st.sampled_from(["zeros", "circular", "reflect", "replicate"])


def _grid(
    draw: Any, kernel: tuple[int, ...], dilation: tuple[int, ...], padding: tuple[int, ...], more: int = 3
) -> Grid:
    least = (max(p + 1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True))
    return Grid(tuple(n + draw(st.integers(0, more)) for n in least))


@random_case("conv1d", "conv2d", "conv3d")
def _(draw: Any, name: str) -> Sample:
    d, groups = int(name[-2]), draw(st.integers(1, 2))
    kernel, stride, padding, dilation = (
        _axes(draw, d, 1, 3),
        _axes(draw, d, 1, 3),
        _axes(draw, d, 0, 2),
        _axes(draw, d, 1, 2),
    )
    i, o = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    spec = getattr(operators, name)(i, o, kernel, stride, padding, dilation, groups, draw(st.booleans()), draw(MODES))
    grid = _grid(draw, kernel, dilation, padding)
    return Sample(spec, lambda: grid, i)


@random_case("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _(draw: Any, name: str) -> Sample:
    d, groups = int(name[-2]), draw(st.integers(1, 2))
    kernel, stride, dilation = _axes(draw, d, 1, 3), _axes(draw, d, 1, 3), _axes(draw, d, 1, 2)
    i, o = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    extra = tuple(draw(st.integers(0, max(s, dl) - 1)) for s, dl in zip(stride, dilation, strict=True))
    mode = draw(MODES)
    # a border that is folded back must lie beside the grid it came from: with a kernel of one there may be no room
    padding = _axes(draw, d, 0, 1) if mode == "zeros" else (min(draw(st.integers(0, 1)), min(kernel) - 1),) * d
    grid = Grid(_axes(draw, d, 3, 4))
    spec = getattr(operators, name)(i, o, kernel, stride, padding, extra, groups, draw(st.booleans()), dilation, mode)
    return Sample(spec, lambda: grid, i)


@random_case("depthwise", "separable")
def _(draw: Any, name: str) -> Sample:
    d, i, o = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    kernel, padding, dilation = _axes(draw, d, 1, 3), _axes(draw, d, 0, 2), _axes(draw, d, 1, 2)
    rest = {"stride": _axes(draw, d, 1, 3), "padding": padding, "dilation": dilation, "bias": draw(st.booleans())}
    rest |= {"padding_mode": draw(MODES), "ndim": d}
    spec = (
        operators.depthwise(i, kernel, multiplier=o, **rest)
        if name == "depthwise"
        else operators.separable(i, o, kernel, **rest)
    )
    grid = _grid(draw, kernel, dilation, padding)
    return Sample(spec, lambda: grid, i)


@random_case("pointwise")
def _(draw: Any, name: str) -> Sample:
    d, i, o = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    grid = Grid(_axes(draw, d, 1, 4))
    return Sample(operators.pointwise(i, o, draw(st.booleans()), d), lambda: grid, i)


@random_case("avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool1d", "max_pool2d", "max_pool3d")
def _(draw: Any, name: str) -> Sample:
    d, mean = int(name[-2]), name.startswith("avg")
    kernel, stride = _axes(draw, d, 1, 3), draw(st.none() | st.tuples(*[st.integers(1, 3)] * d))
    padding, dilation = tuple(draw(st.integers(0, k // 2)) for k in kernel), (1,) * d if mean else _axes(draw, d, 1, 2)
    rest: dict[str, Any] = {"stride": stride, "padding": padding, "ceil_mode": draw(st.booleans())}
    if mean:
        rest["count_include_pad"] = draw(st.booleans())
        rest |= {"divisor_override": draw(st.none() | st.integers(1, 5))} if d > 1 else {}
    else:
        rest["dilation"] = dilation
    grid = _grid(draw, kernel, dilation, padding)
    if name == "avg_pool3d":  # where torch, the oracle, wants the grid as large as the kernel, padding aside
        grid = Grid(tuple(max(n, k) for n, k in zip(grid.shape, kernel, strict=True)))
    return Sample(getattr(operators, name)(kernel, **rest), lambda: grid, draw(st.integers(1, 2)))


@random_case("global_pool")
def _(draw: Any, name: str) -> Sample:
    spec = operators.global_pool(draw(st.sampled_from(["mean", "sum", "max"])))
    graph, grid = Graph.union([draw(graphs(weighted=False)) for _ in range(2)]), Grid(_axes(draw, 2, 1, 4))
    domain = draw(st.sampled_from([graph, grid]))
    return Sample(spec, lambda: domain, 2)


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


SPECS: dict[str, Callable[[Any, int, int], Any]] = {
    "gcn": lambda draw, i, o: operators.gcn(i, o, draw(st.booleans()), draw(st.booleans()), draw(st.booleans())),
    "graphconv": lambda draw, i, o: operators.graphconv(i, o, draw(AGGR), draw(st.booleans())),
    "sage": lambda draw, i, o: operators.sage(i, o, draw(AGGR), draw(st.booleans())),
    "cheb": lambda draw, i, o: operators.cheb(
        i, o, draw(st.integers(1, 4)), draw(st.sampled_from(["sym", "rw", None]))
    ),
    "sgc": lambda draw, i, o: operators.sgc(i, o, draw(st.integers(1, 3))),
    "tag": lambda draw, i, o: operators.tag(i, o, draw(st.integers(0, 3))),
    "appnp": lambda draw, i, o: operators.appnp(draw(st.integers(1, 4)), draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))),
    "spectral": lambda draw, i, o: operators.spectral(
        i, o, draw(st.integers(1, 5)), draw(st.sampled_from(["sym", None]))
    ),
    "monet": lambda draw, i, o: operators.monet(i, o, 2, draw(st.integers(1, 3)), draw(st.booleans())),
    "selection": lambda draw, i, o: operators.selection(i, o, draw(st.integers(3, 5))),
    "gat": lambda draw, i, o: operators.gat(
        i, o, draw(st.integers(1, 3)), draw(st.booleans()), add_self_loops=draw(st.booleans())
    ),
}
AGGR = st.sampled_from(["mean", "sum", "max"])


@random_case(*SPECS)
def _(draw: Any, name: str) -> Sample:
    i, o = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    graph, spec = draw(graphs(undirected=name == "spectral")), SPECS[name](draw, i, o)
    if dict(spec.arguments).get("normalization", "") is None and name == "cheb":
        hypothesis.assume(bool((graph.source != graph.target).any()))  # where PyG divides 0 by 0
    return Sample(spec, lambda: graph, i)
