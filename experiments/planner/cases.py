"""The cases of `experiments.planner.plans`: a list with which the cost model was developed, and random held-out cases.

The rates were not fitted to held-out cases, which are determined by a seed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from gconv import GConv
from gconv.spec import OperatorSpec

LARGEST = 2e8  # maximum flops of a pass; larger cases are drawn again
CHANNELS = (1, 2, 3, 6, 8, 12, 16, 24, 32, 48, 64, 96)
WIDTHS = (1, 4, 7, 12, 16, 24, 40, 64, 100, 128)


@dataclass(frozen=True)
class Shape:
    """An operator and its input.

    Args:
        spec: the operator, as text.
        shape: of x.
        domain: "grid", or a graph: "power law", "lattice", or "labelled" with edge types and pseudo-coordinates.
        degree: mean degree of a graph.
        dx: whether training needs the gradient with respect to x.
        dtype, threads: dtype of x, and number of threads.
    """

    spec: str
    shape: tuple[int, ...]
    domain: str
    degree: int = 0
    dx: bool = True
    dtype: str = "float32"
    threads: int = 1

    @property
    def name(self) -> str:
        """All fields, for a row."""
        rest = [f"degree {self.degree}"] * (self.degree > 0) + [self.dtype] * (self.dtype != "float32")
        rest += [f"{self.threads} threads"] * (self.threads > 1) + ["no gradient in x"] * (not self.dx)
        return ", ".join([f"{self.spec} on {'x'.join(map(str, self.shape))}", self.domain, *rest])


def graphs() -> Iterator[Shape]:
    """Operators on graphs of several sizes and degrees."""
    for nodes, degree in ((30, 4), (300, 8), (3000, 8), (20000, 14)):
        for i, o in ((4, 32), (32, 32), (256, 16)):
            yield Shape(f"gcn({i}, {o})", (nodes, i), "power law", degree, i != 256)
            yield Shape(f"cheb({i}, {o}, k=3)", (nodes, i), "power law", degree, i != 256)
        yield Shape("sage(32, 64)", (nodes, 32), "power law", degree)
        yield Shape("tag(64, 16, k=4)", (nodes, 64), "power law", degree)
        yield Shape("gat(32, 8, heads=4)", (nodes, 32), "power law", degree)
    for n in (40, 400):
        yield Shape("spectral(16, 16, k=4)", (n, 16), "power law", 6)
    for batch, side in ((1, 8), (16, 16), (8, 32)):
        yield Shape("cheb(16, 32, k=3)", (batch, side * side, 16), "lattice", 4)
        yield Shape("gcn(64, 16)", (batch, side * side, 64), "lattice", 4)


def grids() -> Iterator[Shape]:
    """Operators on images and sequences."""
    for i, o, side, batch in ((3, 16, 32, 4), (16, 16, 16, 8), (64, 64, 8, 8), (64, 64, 16, 4), (4, 4, 4, 64)):
        for k in (1, 3, 5):
            if k <= side:
                yield Shape(f"conv2d({i}, {o}, {k}, padding={k // 2})", (batch, i, side, side), "grid", 0, i > 3)
    for k in (3, 7, 15, 31):
        yield Shape(f"depthwise(16, {k}, padding={k // 2})", (2, 16, 32, 32), "grid")
    yield Shape("depthwise(32, 7, padding=3)", (4, 32, 16, 16), "grid")
    yield Shape("conv2d(8, 8, 9, padding=4)", (4, 8, 24, 24), "grid")
    yield Shape("conv2d(4, 8, 3, stride=2)", (4, 4, 33, 33), "grid")
    yield Shape("conv1d(16, 16, 9, padding=4)", (8, 16, 256), "grid")
    yield Shape("conv1d(4, 4, 65, padding=32)", (8, 4, 512), "grid")
    yield Shape("conv_transpose2d(16, 8, 4, stride=2, padding=1)", (4, 16, 12, 12), "grid")
    yield Shape("avg_pool2d(2)", (8, 16, 32, 32), "grid")
    yield Shape("max_pool2d(2)", (8, 16, 32, 32), "grid")


# -- drawn at random -----------------------------------------------------------------------------------------------


def drawn(count: int, seed: int, on_grids: bool) -> list[Shape]:
    """A number of distinct random cases, each small enough to be measured quickly."""
    rng, found = random.Random(f"{seed} {on_grids}"), dict[str, Shape]()
    while len(found) < count:
        one = _grid(rng) if on_grids else _graph(rng)
        if _fits(one):
            found[one.name] = one
    return list(found.values())


def _common(rng: random.Random) -> tuple[bool, str, int]:
    """dx, dtype, threads."""
    return rng.random() < 0.8, rng.choices(("float32", "float64"), (85, 15))[0], rng.choices((1, 2), (85, 15))[0]


def _fits(one: Shape) -> bool:
    """Whether the kernel fits into the grid, and a pass does not take too long."""
    if one.domain != "grid":
        return math.prod(one.shape) <= 1 << 20
    try:
        cost = GConv(OperatorSpec.parse(one.spec)).plan(torch.zeros(one.shape)).candidates
    except ValueError:
        return False
    return min(c.cost.flops for c in cost if c.cost) <= LARGEST


def _arguments(**given: object) -> str:
    default = {"stride": 1, "dilation": 1, "padding": 0, "groups": 1}
    return "".join(f", {name}={value}" for name, value in given.items() if default.get(name) != value)


def _convolution(rng: random.Random, d: int) -> tuple[str, int]:
    i, o = rng.choice(CHANNELS), rng.choice(CHANNELS)
    k = rng.choice({1: (1, 3, 5, 9, 17, 33, 64), 2: (1, 2, 3, 3, 4, 5, 7, 11), 3: (1, 2, 3, 3)}[d])
    if d == 3:
        i, o = min(i, 16), min(o, 16)
    groups = rng.choice([g for g in (2, 3, 4, 8) if i % g == o % g == 0] or [1]) if rng.random() < 0.2 else 1
    stride, dilation = rng.choices((1, 2, 3), (75, 20, 5))[0], rng.choices((1, 2), (85, 15))[0]
    padding = rng.choice((0, k // 2 * dilation))
    rest = _arguments(stride=stride, padding=padding, dilation=dilation, groups=groups)
    return f"conv{d}d({i}, {o}, {k}{rest})", i


def _adjoint(rng: random.Random, d: int) -> tuple[str, int]:
    i, o, k = rng.choice(CHANNELS), rng.choice(CHANNELS), rng.choice((2, 3, 4, 5))
    return f"conv_transpose{d}d({i}, {o}, {k}{_arguments(stride=rng.choice((1, 2, 2, 3)), padding=k // 3)})", i


def _depthwise(rng: random.Random, d: int) -> tuple[str, int]:
    c, k = rng.choice(CHANNELS[2:]), rng.choice((3, 5, 9, 15, 21, 31))
    return f"depthwise({c}, {k}{_arguments(padding=k // 2, stride=rng.choice((1, 1, 1, 2)))}, ndim={d})", c


def _separable(rng: random.Random, d: int) -> tuple[str, int]:
    i, k = rng.choice(CHANNELS), rng.choice((3, 5, 7))
    return f"separable({i}, {rng.choice(CHANNELS)}, {k}, padding={k // 2}, ndim={d})", i


def _pooling(rng: random.Random, d: int) -> tuple[str, int]:
    k = rng.choice((2, 3, 5))
    return f"{rng.choice(('avg', 'max'))}_pool{d}d({k}{rng.choice(('', ', stride=1', ', stride=2'))})", rng.choice(
        CHANNELS
    )


def _grid(rng: random.Random) -> Shape:
    kinds: list[Callable[[random.Random, int], tuple[str, int]]]
    kinds = [_convolution, _adjoint, _depthwise, _separable, _pooling]
    kind, d = rng.choices(kinds, (55, 12, 12, 6, 15))[0], rng.choices((1, 2, 3), (25, 60, 15))[0]
    spec, channels = kind(rng, min(d, 2) if kind in (_adjoint, _depthwise, _separable) else d)
    d = d if kind in (_convolution, _pooling) else min(d, 2)
    sides = {1: (16, 1024), 2: (4, 48), 3: (4, 14)}[d]
    side = round(math.exp(rng.uniform(*map(math.log, sides))))
    return Shape(spec, (rng.choice((1, 2, 4, 8, 16, 32)), channels, *[side] * d), "grid", 0, *_common(rng))


GRAPH_SPECS = (
    "gcn({i}, {o})",
    "cheb({i}, {o}, k={k})",
    "tag({i}, {o}, k={k})",
    "sgc({i}, {o}, k=2)",
    "sage({i}, {o})",
    "sage({i}, {o}, aggr='max')",
    "graphconv({i}, {o})",
    "cluster_gcn({i}, {o})",
    "arma({i}, {o})",
    "appnp(k={k})",
    "gin()",
    "bernstein(k={k})",
    "agnn()",
    "gat({i}, {o}, heads={h})",
    "gatv2({i}, {o}, heads={h})",
    "transformer({i}, {o}, heads={h})",
    "monet({i}, {o}, dim=2, kernel_size={k})",
    "relational({i}, {o}, num_relations={k})",
    "selection({i}, {o}, {k})",
)
BATCHED = 13  # the first of them have batches of signals


def _graph(rng: random.Random) -> Shape:
    which = rng.randrange(len(GRAPH_SPECS))
    i, o = rng.choice(WIDTHS), rng.choice(WIDTHS)
    spec = GRAPH_SPECS[which].format(i=i, o=o, k=rng.choice((2, 3, 5)), h=rng.choice((1, 2, 4)))
    nodes = round(math.exp(rng.uniform(math.log(20), math.log(12000))))
    labelled = spec.startswith(("monet", "relational", "selection"))
    batch = (rng.choice((2, 8, 32)),) if which < BATCHED and rng.random() < 0.3 else ()
    domain = "labelled" if labelled else rng.choices(("power law", "lattice"), (75, 25))[0]
    if domain == "lattice":
        nodes = round(nodes**0.5) ** 2
    degree = 4 if domain == "lattice" else min(rng.choice((3, 6, 12, 24)), nodes // 3)
    return Shape(spec, (*batch, nodes, i), domain, degree, *_common(rng))
