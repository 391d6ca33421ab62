"""The implementations in each comparison of `experiments.speed`: gconv and its peers, with the same data and weights.

PyG layers are created from gconv layers by `gconv.export`; gradients are compared in PyG's shapes, by exporting a layer
whose weights are the gradients.
"""

import copy
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.harness import measure
from experiments.speed.cases import COMPILED, FORMS, SPARSE_FEATURES, Case
from gconv import GConv, Graph, OperatorSpec, constant, export
from gconv.operators import appnp, cheb, gat, gcn, heat, sage, tag, transformer

Numbers = dict[str, Tensor]


class Side(NamedTuple):
    """The timed step, and its results, under names common to all implementations of a case."""

    step: measure.Step
    numbers: Callable[[], Numbers]


Sides = dict[str, Callable[[], Side]]  # created on demand: a process that measures memory creates only one


def sides(case: Case, modes: Sequence[str] = ()) -> Sides:
    """All implementations of a case, gconv first; for layers and training steps also PyG compiled in these modes."""
    makers: Mapping[str, Callable[[Case, Sequence[str]], Sides]] = {
        "spmm": products,
        "layer": layers,
        "edges": layers,
        "call": layers,
        "training": trainings,
        "filter": filters,
        "signals": batches,
    }
    return makers[case.kind](case, modes)


@lru_cache(maxsize=2)
def edge_index(nodes: int, edges: int, seed: int) -> Tensor:
    """The graph of a case."""
    return measure.power_law(nodes, edges, seed)


def signal(case: Case) -> tuple[Tensor, Tensor]:
    """A signal, and an incoming gradient."""
    generator = torch.Generator().manual_seed(case.seed)
    x = torch.randn(case.nodes, case.channels[0], generator=generator)
    return x.requires_grad_(case.backward), torch.randn(case.nodes, case.channels[-1], generator=generator)


def compiled(op: str, modes: Sequence[str], theirs: Callable[[str, str], Side]) -> Sides:
    """PyG's variants of a layer, compiled by torch.compile."""
    return {f"{form}{COMPILED}{mode}": partial(theirs, form, mode) for form in FORMS[op] for mode in modes}


def under(mode: str, module: nn.Module) -> nn.Module:
    """The module, compiled if a mode is given. The cache of torch.compile is enlarged for all variants of a case."""
    if not mode:
        return module
    torch._dynamo.config.recompile_limit = 64
    made: nn.Module = torch.compile(module, mode=mode)  # type: ignore[assignment]
    return made


def call(run: Callable[[], Tensor], leaves: list[Tensor], dy: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The value and the gradients; only the value if there is no dy."""
    if dy is None:
        with torch.no_grad():
            return run(), ()
    y = run()
    return y, torch.autograd.grad(y, leaves, dy)


# -- one sparse product --------------------------------------------------------------------------------------------


def products(case: Case, _: Sequence[str] = ()) -> Sides:
    """The product of GCN's matrix and a signal, and its backward pass."""
    index = edge_index(case.nodes, case.edges, case.seed)
    x, dy = signal(case)

    def side(run: Callable[[Tensor], Tensor]) -> Side:
        step = partial(call, lambda: run(x), [x], dy if case.backward else None)
        return Side(step, lambda: named(step(), ["x"]))

    def ours() -> Side:
        S = GConv(gcn(1, 1, bias=False)).at(Graph(index, case.nodes)).S
        return side(lambda x: S.expand(x).view(case.nodes, -1))

    def entries() -> tuple[Tensor, Tensor]:
        from torch_geometric.nn.conv.gcn_conv import gcn_norm

        return gcn_norm(index, None, case.nodes)

    def pyg() -> Side:
        from torch_geometric.nn import SimpleConv

        (where, weight), layer = entries(), SimpleConv("sum")
        return side(lambda x: layer(x, where, weight))

    def csr() -> Side:
        where, weight = entries()
        S = measure.adjacency(where, case.nodes, weight)
        return side(lambda x: S @ x)

    def coo() -> Side:
        where, weight = entries()
        S = torch.sparse_coo_tensor(where.flip(0), weight, (case.nodes, case.nodes)).coalesce()
        return side(lambda x: S @ x)

    def scipy() -> Side:
        import scipy.sparse

        where, weight = entries()
        S = scipy.sparse.coo_array((weight.numpy(), where.flip(0).numpy()), (case.nodes, case.nodes)).tocsr()
        T, values, back = S.T.tocsr(), x.detach().numpy(), dy.numpy()
        step = (lambda: (S @ values, (T @ back,))) if case.backward else (lambda: (S @ values, ()))
        return Side(step, lambda: named(_tensors(step()), ["x"]))

    return {"gconv": ours, "PyG edge_index": pyg, "torch CSR": csr, "torch COO": coo, "scipy": scipy}


def _tensors(found: tuple[np.ndarray, tuple[np.ndarray, ...]]) -> tuple[Tensor, tuple[Tensor, ...]]:
    return torch.from_numpy(found[0]), tuple(map(torch.from_numpy, found[1]))


def named(found: tuple[Tensor, tuple[Tensor, ...]], leaves: list[str]) -> Numbers:
    """The value, and the gradients by the names of their leaves."""
    y, grads = found
    return {"value": y} | {f"gradient in {leaf}": g for leaf, g in zip(leaves, grads, strict=False)}


# -- layers --------------------------------------------------------------------------------------------------------


def spec(op: str, i: int, o: int) -> OperatorSpec:
    """An operator of the table, from i to o channels."""
    made: dict[str, Callable[[], Any]] = {
        "gcn": lambda: gcn(i, o),
        "cheb": lambda: cheb(i, o, k=3),
        "sage": lambda: sage(i, o),
        "gat": lambda: gat(i, o // 8, heads=8),
        "tag": lambda: tag(i, o, k=3),
        "appnp": lambda: appnp(10, 0.1),
        "linear": lambda: cheb(i, o, k=1),
    }
    return made[op]()


def is_linear(layer: GConv) -> bool:
    """Whether the operator is a filter with one term, that is, only a matrix."""
    return layer.spec.name == "cheb" and dict(layer.spec.arguments)["k"] == 1


def peer(layer: GConv) -> nn.Module:
    """PyG's layer with gconv's weights; torch's linear layer if the operator is only a matrix."""
    if not is_linear(layer):
        return export(layer, "pyg")
    assert layer.weight is not None and layer.bias is not None
    made = nn.Linear(*layer.weight.shape[1:])
    with torch.no_grad():
        made.weight.copy_(layer.weight[0].T)
        made.bias.copy_(layer.bias)
    return made


def in_peers_shapes(layer: GConv, numbers: dict[str, Tensor]) -> Numbers:
    """Values of each gconv parameter, in the shapes and under the names of the peer."""
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        for name, p in twin.named_parameters():
            p.copy_(numbers[name])
    return {name: p.detach() for name, p in peer(twin).named_parameters()}


def graph_for(form: str, op: str, layer: nn.Module, index: Tensor, nodes: int) -> Tensor:
    """The graph in one of PyG's formats, with the layer configured for it."""
    if "cached" in form and hasattr(layer, "cached"):
        layer.cached = True  # type: ignore[assignment]
    if "normalised" not in form:
        return measure.adjacency(index, nodes) if "CSR" in form else index
    from torch_geometric.nn.conv.gcn_conv import gcn_norm

    layer.normalize = False  # type: ignore[assignment]
    where, weight = gcn_norm(index, None, nodes, add_self_loops=op != "tag")
    return measure.adjacency(where, nodes, weight)


def layers(case: Case, modes: Sequence[str] = ()) -> Sides:
    """A layer, forward or forward and backward; x requires a gradient, as inside a network."""
    index = edge_index(case.nodes, case.edges, case.seed)
    x, dy = signal(case)
    back = dy if case.backward else None

    def layer() -> GConv:
        torch.manual_seed(case.seed)
        return GConv(spec(case.op, case.channels[0], case.channels[-1]))

    def ours(graph: Any) -> Side:
        made = layer()
        names, leaves = [*dict(made.named_parameters())], [*made.parameters(), x]
        step = partial(call, lambda: made(x, graph), leaves, back)

        def numbers() -> Numbers:
            y, grads = step()
            if not grads:
                return {"value": y}
            own = in_peers_shapes(made, dict(zip(names, grads, strict=False)))
            return {"value": y, "gradient in x": grads[-1]} | {f"gradient in {k}": v for k, v in own.items()}

        return Side(step, numbers)

    def theirs(form: str, mode: str = "") -> Side:
        made = peer(layer())
        graph = graph_for(form, case.op, made, index, case.nodes)
        names, leaves = [*dict(made.named_parameters())], [*made.parameters(), x]
        run = under(mode, made)
        step = partial(call, lambda: run(x, graph), leaves, back)
        return Side(step, lambda: named(step(), [*names, "x"]))

    found: Sides = {"gconv": lambda: ours(Graph(index, case.nodes))}
    if case.kind == "call":
        found["gconv on edge_index"] = lambda: ours(index)
    forms = [f for f in FORMS[case.op] if case.kind != "edges" or "cached" in f]
    return found | {form: partial(theirs, form) for form in forms} | compiled(case.op, modes, theirs)


def batches(case: Case, _: Sequence[str] = ()) -> Sides:
    """Attention on a batch of signals on one graph, forward and backward. PyG processes one signal at a time, or one
    large graph with a copy for each signal, created beforehand.
    """
    many, i, o = case.channels
    index = edge_index(case.nodes, case.edges, case.seed)
    generator = torch.Generator().manual_seed(case.seed)
    x = torch.randn(many, case.nodes, i, generator=generator).requires_grad_()
    dy = torch.randn(many, case.nodes, o, generator=generator)

    def layer() -> GConv:
        torch.manual_seed(case.seed)
        return GConv((gat if case.op == "gat" else transformer)(i, o // 8, heads=8))

    def side(run: Callable[[], Tensor]) -> Side:
        step = partial(call, run, [x], dy)
        return Side(step, lambda: named(step(), ["x"]))

    def ours() -> Side:
        made, graph = layer(), Graph(index, case.nodes)
        return side(lambda: made(x, graph))

    def in_turn() -> Side:
        made = peer(layer())
        return side(lambda: torch.stack([made(signal, index) for signal in x]))

    def copies() -> Side:
        made, shifts = peer(layer()), torch.arange(many) * case.nodes
        union = (index[:, None] + shifts[:, None]).flatten(1)
        return side(lambda: made(x.flatten(0, 1), union).view(dy.shape))

    return {"gconv": ours, "PyG, one signal at a time": in_turn, "PyG, one large graph": copies}


# -- training steps ------------------------------------------------------------------------------------------------


class Network(nn.Module):
    """Two layers with a ReLU between them; for appnp, propagation follows two linear layers, as in its paper."""

    def __init__(self, parts: list[nn.Module]):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor, graph: Any, activation: Callable[[Tensor], Tensor] = F.relu) -> Tensor:
        for number, part in enumerate(self.parts):
            x = part(x) if isinstance(part, nn.Linear) else part(x, graph)
            x = activation(x) if number == 0 else x
        return x


def parts(case: Case) -> list[GConv]:
    """The layers of a training step in gconv."""
    i, h, o = case.channels
    if case.op == "appnp":
        return [GConv(spec("linear", i, h)), GConv(spec("linear", h, o)), GConv(spec("appnp", o, o))]
    last = gat(h, o, heads=1) if case.op == "gat" else spec(case.op, h, o)
    return [GConv(spec(case.op, i, h)), GConv(last)]


def features(case: Case) -> Tensor:
    """Bags of words: a few ones per row, divided by their number."""
    generator = torch.Generator().manual_seed(case.seed)
    x = (torch.rand(case.nodes, case.channels[0], generator=generator) < case.density).float()
    return x / x.sum(1, keepdim=True).clamp(min=1)


def trainings(case: Case, modes: Sequence[str] = ()) -> Sides:
    """Forward pass, mean cross-entropy of all nodes, backward pass to the weights; without an optimiser.

    Preparations that a user can make once before training are made for both: PyG's caches and sparse features, and
    `gconv.constant`.
    """
    index = edge_index(case.nodes, case.edges, case.seed)
    x, label = features(case), torch.randint(case.channels[-1], (case.nodes,))

    def networks() -> list[GConv]:
        torch.manual_seed(case.seed)
        return parts(case)

    def side(network: Network, x: Tensor, graphs: Any, ours: bool, mode: str = "") -> Side:
        leaves, run = dict(network.named_parameters()), under(mode, network)

        def step(activation: Callable[[Tensor], Tensor] = F.relu) -> Tensor:
            for p in leaves.values():
                p.grad = None
            loss = F.cross_entropy(run(x, graphs, activation), label)
            loss.backward()
            return loss.detach()

        def numbers() -> Numbers:  # gradients with tanh, since rounding switches some ReLUs
            found = {"loss": step(), "loss with tanh": step(torch.tanh)}
            for number, part in enumerate(network.parts):
                grads = {name: p.grad for name, p in part.named_parameters() if p.grad is not None}
                own = in_peers_shapes(part, grads) if ours and grads else grads  # type: ignore[arg-type]
                found |= {f"gradient in {name} of layer {number + 1}": g for name, g in own.items()}
            return found

        return Side(step, numbers)

    def theirs(form: str, mode: str = "", x: Tensor = x) -> Side:
        made = [peer(part) for part in networks()]
        graph = index
        for part in made:
            graph = index if isinstance(part, nn.Linear) else graph_for(form, case.op, part, index, case.nodes)
        return side(Network(made), x, graph, ours=False, mode=mode)

    def ours(x: Tensor) -> Side:
        return side(Network([*networks()]), x, Graph(index, case.nodes), ours=True)

    found: Sides = {"gconv": lambda: ours(constant(x)), "gconv, features not declared constant": lambda: ours(x)}
    for form in FORMS[case.op]:
        found[form] = partial(theirs, form)
        if case.op in SPARSE_FEATURES:
            found[f"{form}, sparse features"] = lambda form=form: theirs(form, x=_csr(x))  # type: ignore[misc]
    return found | compiled(case.op, modes, theirs)


def _csr(x: Tensor) -> Tensor:
    measure.adjacency(torch.zeros(2, 0, dtype=torch.int64), 1)  # disables torch's warnings about CSR tensors
    return x.to_sparse_csr()


# -- filters -------------------------------------------------------------------------------------------------------

ORDER, TIME = 30, 5.0


def _heat(z: Any) -> Any:
    """exp(-t lambda) at lambda = 1 + z."""
    return np.exp(-TIME * (z + 1))


def filters(case: Case, _: Sequence[str] = ()) -> Sides:
    """exp(-5 L), L the normalised Laplacian, by a Chebyshev polynomial of order 30; a column for each signal."""
    met, index = edge_index(case.nodes, case.edges, case.seed).unique(return_inverse=True)
    nodes, (many,) = len(met), case.channels  # without isolated nodes, for which conventions differ
    x = torch.randn(nodes, many, dtype=torch.float64, generator=torch.Generator().manual_seed(case.seed))

    def ours() -> Side:
        layer, graph = GConv(heat(TIME, k=ORDER)), Graph(index, nodes)
        step = partial(call, lambda: layer(x, graph), [], None)
        return Side(step, lambda: {"value": step()[0]})

    def adjacency() -> Any:
        import scipy.sparse

        return scipy.sparse.csr_matrix((np.ones(index.shape[1]), index.numpy()), (nodes, nodes))

    def pygsp() -> Side:
        import pygsp

        graph = pygsp.graphs.Graph(adjacency(), lap_type="normalized")
        graph._lmax, graph._lmax_method = 2.0, "bounds"  # the same interval for all implementations
        filters, values = pygsp.filters.Heat(graph, 2 * TIME), x.numpy()  # PyGSP divides its scale by the interval
        step = partial(filters.filter, values, method="chebyshev", order=ORDER)
        return Side(step, lambda: {"value": torch.from_numpy(step())})

    def scipy() -> Side:
        A = adjacency()
        import scipy.sparse as sparse

        scale = sparse.diags(A.sum(1).A1 ** -0.5)
        L, values = (-scale @ A @ scale).tocsr(), x.numpy()  # L - I
        weights = np.polynomial.chebyshev.chebinterpolate(_heat, ORDER)

        def step() -> np.ndarray:
            last, now = values, L @ values
            y = weights[0] * last + weights[1] * now
            for w in weights[2:]:
                last, now = now, 2 * (L @ now) - last
                y += w * now
            return y

        return Side(step, lambda: {"value": torch.from_numpy(step())})

    found: Sides = {"gconv": ours, "scipy by hand": scipy}
    return found | ({"PyGSP": pygsp} if importlib.util.find_spec("pygsp") else {})


# -- what the machine can do ---------------------------------------------------------------------------------------


def limits(megabytes: int, size: int) -> dict[str, tuple[measure.Step, float]]:
    """Steps limited by the machine, with their bytes read and written and floating point operations."""
    source, target = torch.ones(megabytes << 18), torch.empty(megabytes << 18)
    a, b, out = torch.randn(size, size), torch.randn(size, size), torch.empty(size, size)
    return {
        "copy": (lambda: target.copy_(source), 8.0 * target.numel()),
        "mm": (lambda: torch.mm(a, b, out=out), 2.0 * size**3),
    }


def work(case: Case) -> dict[str, float]:
    """Floating point operations of a forward pass, and the bytes that it must read or write, counted once each."""
    item, n = 4.0, case.nodes
    nnz = case.edges + n
    structure = 8.0 * nnz + 4.0 * n
    if case.kind == "spmm":
        width = case.channels[0]
        return {"flops": 2.0 * nnz * width, "bytes": structure + item * 2 * n * width}
    layer = GConv(spec(case.op, case.channels[0], case.channels[-1]))
    plan = layer.plan(signal(case)[0].detach(), Graph(edge_index(case.nodes, case.edges, case.seed), n))
    cost = next(c.cost for c in plan.candidates if c.name == plan.chosen.name)
    assert cost is not None
    weights = sum(p.numel() for p in layer.parameters())
    return {"flops": cost.flops, "bytes": structure + item * (n * (case.channels[0] + case.channels[-1]) + weights)}


def forward(case: Case) -> Case:
    """The same without its backward pass."""
    return replace(case, backward=False)
