"""A random case as plain data, which prints as one line and is made again from it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from hypothesis import strategies as st
from torch import Tensor

from gconv import GConv, Graph, Grid, OperatorSpec, list_operators
from gconv.spec import operator

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LEAVES = 300  # of a hub, which a running sum in bfloat16 cannot count
SIZES = {"normal": 1.0, "tiny": 1e-6, "zeros": 0.0}
LARGE = {"float64": 1e3, "float32": 1e3, "bfloat16": 1e3, "float16": 8.0}  # squares fit the dtype, with room to spare
HUGE = {"float64": 1e60, "float32": 1e8, "bfloat16": 1e8, "float16": 64.0}
LAYOUTS = ("contiguous", "channels_last", "transposed", "strided", "expanded")
INTEGERS = ("k", "heads", "hidden", "layer", "degree", "multiplier", "num_layers", "num_stacks", "num_heads", "scales")


@dataclass(frozen=True)
class FuzzCase:
    """One case: a spec, a domain, how the signal looks and which gradients are asked for.

    Args:
        spec: the operator and its arguments.
        grid: the shape of a grid, or None on graphs.
        graph: size, edges and what they carry, or None on grids.
        dtype, values, layout, batch: of the signal.
        seed: of all random numbers.
        channels: of the signal, where the weight does not say.
        needs: which of x, the parameters and the edge weights require a gradient.
    """

    spec: dict[str, Any]
    grid: tuple[int, ...] | None
    graph: dict[str, Any] | None
    dtype: str
    values: str
    layout: str
    batch: tuple[int, ...]
    seed: int
    needs: tuple[bool, bool, bool] = (True, True, True)
    channels: int = 2

    def __str__(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def parse(cls, line: str) -> FuzzCase:
        """The case of a printed line."""
        data = json.loads(line)
        return cls(
            **{key: _tuples(value) if key in ("grid", "batch", "needs") else value for key, value in data.items()}
        )

    def domain(self) -> Grid | Graph:
        if self.grid is not None:
            return Grid(self.grid)
        g = self.graph
        assert g is not None
        index = torch.tensor(g["edges"], dtype=torch.int64).reshape(-1, 2).t()
        size = g["size"] + g.get("leaves", 0)
        leaves = torch.arange(g["size"], size)
        index = torch.cat([index, torch.stack([leaves, 0 * leaves]), torch.stack([0 * leaves, leaves])], 1)
        made = torch.Generator().manual_seed(self.seed)
        weight = attr = None
        if g["weight"] is not None:
            scale = {"zero": 0.0, "huge": HUGE["float32"] ** 0.5}.get(g["weight"], 1.0)
            weight = scale * (0.1 + torch.rand(index.shape[1], generator=made, dtype=torch.float64))
            if g["weight"] == "negative":
                weight = -weight
            if g["weight"] == "some zero":
                weight = weight * (torch.rand(index.shape[1], generator=made) > 0.4)
        if g["attr"]:
            low, high = g["range"]
            attr = low + (high - low) * torch.rand(index.shape[1], g["attr"], generator=made, dtype=torch.float64)
        label = torch.randint(g["types"], (index.shape[1],), generator=made) if g["types"] else None
        kind = DTYPES[self.dtype]
        if weight is not None and not g["directed"]:  # both directions of an edge weigh the same
            low, high = index.min(0).values, index.max(0).values
            key = torch.unique(low * (size + 1) + high, return_inverse=True)[1]
            weight = weight[torch.zeros_like(key).scatter_(0, key, torch.arange(len(key)))[key]]
        return Graph(
            index,
            size,
            edge_weight=None if weight is None else weight.to(kind),
            edge_attr=None if attr is None else attr.to(kind),
            edge_type=label,
        )

    def layer(self) -> GConv:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            layer = GConv(OperatorSpec.from_dict(self.spec), dtype=DTYPES[self.dtype]).eval()
            if layer.bias is not None:
                torch.nn.init.uniform_(layer.bias, -1, 1)
        for p in layer.parameters():
            p.requires_grad_(self.needs[1])
        return layer

    def signal(self, channels: int) -> Tensor:
        """x in the layer's layout, of the memory layout that the case names."""
        if self.grid is not None:
            shape = (*self.batch[:1], channels, *self.grid)
        else:
            assert self.graph is not None
            shape = (*self.batch, self.graph["size"] + self.graph.get("leaves", 0), channels)
        made = torch.Generator().manual_seed(self.seed + 1)
        scale = {**SIZES, "large": LARGE[self.dtype], "huge": HUGE[self.dtype]}[self.values]
        x = (scale * torch.randn(shape, generator=made, dtype=torch.float64)).to(DTYPES[self.dtype])
        return laid_out(x, self.layout)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same numbers (for "expanded": the first sample's, repeated) in another memory layout."""
    if layout == "channels_last" and x.ndim in (4, 5):
        return x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)
    if layout == "transposed":
        return x.mT.contiguous().mT
    if layout == "strided":
        wide = x.new_zeros(*x.shape[:-1], 2 * x.shape[-1] + 1)
        view = wide[..., 1::2][..., : x.shape[-1]]
        return view.copy_(x)
    if layout == "expanded" and x.ndim > 2 and len(x):
        return x[:1].expand_as(x)
    return x


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def _choices(name: str) -> dict[str, set[Any]]:
    """For each argument of an operator the values worth trying: its samples', its literals', and small numbers."""
    entry = operator(name)
    pool: dict[str, set[Any]] = {}
    hints = get_type_hints(getattr(entry.factory, "__wrapped__", entry.factory))
    for sample in entry.samples():
        for key, value in sample.spec.arguments:
            pool.setdefault(key, set()).add(value)
    for key, values in pool.items():
        values |= _literals(hints.get(key))
        kinds = {type(v) for v in values}
        if bool in kinds:
            values |= {True, False}
        elif key in INTEGERS or key.endswith("channels"):
            values |= {1, 2, 3, 4, 5}
        elif key in ("kernel_size", "stride", "dilation", "padding") and int in kinds:
            values |= {0, 1, 2, 3} if key == "padding" else {1, 2, 3, 4}
        elif float in kinds:
            values |= {0.0, 0.5, 1.0}
    return pool


def _literals(hint: Any) -> set[Any]:
    if get_origin(hint) is Literal:
        return set(get_args(hint))
    return set().union(*map(_literals, get_args(hint))) if get_origin(hint) is not tuple and get_args(hint) else set()


NAMES = list_operators()
POOLS = {name: {key: sorted(values, key=repr) for key, values in _choices(name).items()} for name in NAMES}


@st.composite
def graphs(draw: st.DrawFn, like: Graph, nodes: int | None, hubs: bool) -> dict[str, Any]:
    """A graph that carries what another one carries: no edges, loners, loops, double edges, directed or not.

    With `hubs`, some have a hub.
    """
    size = nodes or draw(st.sampled_from((1, 2, 3, 4, 5, 7, 12, 33)))
    directed = draw(st.booleans()) if not like.is_undirected else False
    ends = st.integers(0, size - 1)
    edges = draw(st.lists(st.tuples(ends, ends), max_size=draw(st.sampled_from((0, 3, 12, 60)))))
    if not directed:
        edges = edges + [(b, a) for a, b in edges if a != b]
    weights = (None, "positive", "positive", "some zero", "zero", "negative", "huge")
    attr = like.edge_attr
    return {
        "size": size,
        "leaves": draw(st.sampled_from((*7 * (0,), LEAVES))) if hubs and nodes is None else 0,
        "edges": edges,
        "directed": directed,
        "weight": draw(st.sampled_from(weights)) if attr is None and like.edge_type is None else None,
        "attr": 0 if attr is None else attr.reshape(attr.shape[0], -1).shape[1],
        "range": (0.0, 1.0) if attr is None or not attr.numel() else (float(attr.min()), float(attr.max())),
        "types": 0 if like.edge_type is None else int(like.edge_type.max()) + 1,
    }


@st.composite
def cases(draw: st.DrawFn) -> FuzzCase:
    """A case near one of an operator's samples: some arguments changed, another domain, another signal."""
    name = draw(st.sampled_from(NAMES))
    sample = draw(st.sampled_from(operator(name).samples()))
    arguments = dict(sample.spec.arguments)
    for key in draw(st.lists(st.sampled_from(sorted(arguments)), max_size=4, unique=True)) if arguments else ():
        arguments[key] = draw(st.sampled_from(POOLS[name][key]))
    like = sample.domain()
    kind = draw(st.sampled_from(("float32", "float32", "float64", "bfloat16", "float16")))
    grid = graph = None
    if isinstance(like, Grid):
        sides = st.sampled_from((1, 2, 3, 4, 5, 6, 7, 8, 11, 16) if like.ndim < 3 else (1, 2, 3, 4, 5))
        grid = tuple(draw(sides) for _ in like.shape)
    else:
        graph = draw(graphs(like, sample.spec.structure.nodes, kind.endswith("16")))
    return FuzzCase(
        {"operator": name, **{key: _lists(value) for key, value in arguments.items()}},
        grid,
        graph,
        kind,
        draw(st.sampled_from(("normal", "normal", "normal", "tiny", "large", "zeros", "huge"))),
        draw(st.sampled_from(LAYOUTS)),
        draw(st.sampled_from(((), (0,), (1,), (2,), (3,), (2, 3)) if grid is None else ((), (0,), (1,), (2,), (5,)))),
        draw(st.integers(0, 9999)),
        draw(st.tuples(st.booleans(), st.booleans(), st.booleans())),
        sample.channels,
    )


def _lists(value: Any) -> Any:
    return [_lists(v) for v in value] if isinstance(value, tuple) else value
