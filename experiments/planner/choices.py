"""Measurements of matrix products, node orders and row orders.

Protocol: alternatives are timed in alternation, and the minimum over rounds is used. `product`: torch.mm, a 1x1
convolution and, for bfloat16, torch.mm in float32, forward and with both gradients; the ratio is the time of torch.mm
divided by that of the alternative. `order`: a GCN layer on a graph with random node order, and on the same graph
reordered; the ratio is the first time divided by the second, and `pays_after` is the number of calls after which
reordering pays off. `schedule`: a product S x, and a training step of a GCN layer, on graphs with random node order, in
the original row order and in the order that gconv chooses automatically (`gconv.kernels.order`) after many calls;
the results must be bitwise equal.

    python -m experiments.planner.choices                     everything, some minutes
    python -m experiments.planner.choices --only product      or order, or schedule
"""

import time
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial import cKDTree
from torch import Tensor

from experiments.harness import common, measure
from experiments.harness.measure import power_law
from gconv import GConv, Graph
from gconv.basis import Taps
from gconv.domains import grid_graph
from gconv.kernels import order as node_order
from gconv.operators import gcn
from gconv.plan import take_turns

Only = Literal["all", "product", "order", "schedule"]
OFTEN = 60  # number of calls after which gconv has decided on the row order
SHAPES = ((40_000, 128, 256), (40_000, 256, 40), (19_717, 500, 16), (2_708, 1_433, 16), (20_000, 64, 64))


@dataclass(frozen=True)
class Config:
    """Options."""

    only: Only = "all"
    """Comparisons to run."""
    rounds: int = 7
    """Number of rounds."""
    threads: int = 1
    """Number of threads; with more than one, wall time is measured."""
    nodes: int = 170_000
    """Approximate number of nodes of the graphs."""
    seed: int = 0
    """Random seed."""


@dataclass(frozen=True)
class Case:
    """A comparison: a product of given shape and dtype, or an order of a given graph and width."""

    case: str
    kind: str
    what: str
    """Dtype, or order."""
    shape: tuple[int, ...]
    rounds: int
    threads: int
    seed: int


def cases(config: Config) -> list[Case]:
    """All comparisons."""
    tail = (config.rounds, config.threads, config.seed)
    found = []
    if config.only in ("all", "product"):
        for dtype in ("float32", "float64", "bfloat16"):
            for shape in SHAPES:
                rows, i, o = shape if dtype != "bfloat16" else (shape[0] // 20, *shape[1:])
                name = f"{rows} x {i} x {o}, {dtype}"
                found.append(Case(name, "product", dtype, (rows, i, o), *tail))
    if config.only in ("all", "order"):
        for kind in ("power law", "grid"):
            for order in ("rcm", "degree"):
                for width in (16, 64):
                    name = f"{order} on a {kind}, {config.nodes} nodes, width {width}"
                    found.append(Case(name, kind, order, (config.nodes, width), *tail))
    if config.only in ("all", "schedule"):
        for kind in ("nearest neighbours", "communities", "power law"):
            for what in ("product", "step"):
                for width in (64, 256):
                    name = f"{what} on {kind}, {config.nodes} nodes, width {width}"
                    found.append(Case(name, kind, f"schedule of a {what}", (config.nodes, width), *tail))
    return found


def conv(x: Tensor, W: Tensor) -> Tensor:
    """x W as a 1x1 convolution in channels-last format."""
    image = x.unsqueeze(0).unsqueeze(2).permute(0, 3, 1, 2)
    return F.conv2d(image, W.t().unsqueeze(-1).unsqueeze(-1)).permute(0, 2, 3, 1).flatten(0, 2)


def product(case: Case) -> dict[str, Any]:
    """Milliseconds of each alternative, and the time of torch.mm divided by it."""
    rows, i, o = case.shape
    dtype = getattr(torch, case.what)
    x, W = torch.randn(rows, i).to(dtype).requires_grad_(), torch.randn(i, o).to(dtype).requires_grad_()
    dy = torch.randn(rows, o).to(dtype)
    ways = {"mm": torch.mm, "conv": conv}
    if dtype == torch.bfloat16:
        ways["widened"] = lambda x, W: (x.float() @ W.float()).bfloat16()

    def step(way: Any, back: bool) -> Any:
        def both() -> object:
            with torch.set_grad_enabled(back):
                y = way(x, W)
                return torch.autograd.grad(y, (x, W), dy) if back else y

        return both

    steps = {(name, back): step(way, back) for name, way in ways.items() for back in (False, True)}
    took = take_turns(steps, case.rounds)
    metrics: dict[str, Any] = {}
    for (name, back), seconds in took.items():
        suffix = "_training" if back else ""
        metrics[f"{name}{suffix}_ms"] = seconds * 1e3
        metrics[f"{name}{suffix}_ratio"] = took["mm", back] / seconds
    return metrics


def order(case: Case) -> dict[str, Any]:
    """Milliseconds of a call, forward and with backward pass, before and after reordering."""
    nodes, width = case.shape
    if case.kind == "grid":
        side = round(nodes**0.5)
        natural = grid_graph((side, side), 4)
        graph = Graph(torch.randperm(natural.size)[natural.edge_index], natural.size)
    else:
        graph = Graph(power_law(nodes, 14 * nodes // 2 * 2, case.seed), nodes)
    start = time.perf_counter()
    other, _ = graph.reordered(case.what)  # type: ignore[arg-type]
    seconds = time.perf_counter() - start
    layer = GConv(gcn(width, width))
    leaves = [p for p in layer.parameters() if p.ndim > 1]
    x = torch.randn(graph.size, width, requires_grad=True)
    dy = torch.randn(graph.size, width)

    def step(place: Graph) -> Any:
        return lambda: torch.autograd.grad(layer(x, place), [x, *leaves], dy)

    took = take_turns({"before": step(graph), "after": step(other)}, case.rounds)
    gain = took["before"] - took["after"]
    metrics = {f"{name}_ms": value * 1e3 for name, value in took.items()} | {"order_ms": seconds * 1e3}
    metrics["ratio"] = took["before"] / took["after"]
    metrics["pays_after"] = seconds / gain if gain > 0 else -1.0
    return metrics


def renamed(kind: str, nodes: int, seed: int) -> Graph:
    """A graph with random node order: 8 nearest neighbours in space, communities of 340 nodes, or a power law."""
    rng = np.random.default_rng(seed)
    if kind == "nearest neighbours":
        place = rng.random((nodes, 3))
        _, near = cKDTree(place).query(place, min(9, nodes))
        pairs = np.stack([np.repeat(np.arange(nodes), near.shape[1] - 1), near[:, 1:].ravel()])
    elif kind == "communities":  # a tenth of the edges leave their community
        size, source = min(340, nodes), rng.integers(0, nodes, 7 * nodes)
        inside = (source // size * size + rng.integers(0, size, 7 * nodes)) % nodes
        pairs = np.stack([source, np.where(rng.random(7 * nodes) < 0.9, inside, rng.integers(0, nodes, 7 * nodes))])
    else:
        pairs = power_law(nodes, 14 * nodes // 2 * 2, seed).numpy()
    pairs = rng.permutation(nodes)[pairs]
    pairs = np.unique(np.concatenate([pairs, pairs[::-1]], 1), axis=1)
    return Graph(torch.from_numpy(pairs[:, pairs[0] != pairs[1]]), nodes)


def schedule(case: Case) -> dict[str, Any]:
    """Milliseconds in the original row order and in the order chosen after many calls, and the cost of reordering."""
    nodes, width = case.shape
    graph, layer = renamed(case.kind, nodes, case.seed), GConv(gcn(width, width))
    S = layer.at(graph).S
    x = torch.randn(nodes, width, requires_grad=True)
    dy = torch.randn(nodes, width)
    leaves = [x, *layer.parameters()]

    def product() -> list[Tensor]:
        with torch.no_grad():
            return [S.expand(x)]

    def training() -> list[Tensor]:
        y = layer(x, graph)
        return [y, *torch.autograd.grad(y, leaves, dy)]

    once = product if case.what.endswith("product") else training

    def as_they_come() -> list[Tensor]:
        with node_order.automatic(False):
            return once()

    want = as_they_come()
    for _ in range(OFTEN):
        got = once()
    if not all(map(torch.equal, got, want)):
        raise ValueError(f"{case.case}: the order of the rows has changed a result, so no clock starts")
    found = take_turns({"before": as_they_come, "after": once}, case.rounds)
    assert isinstance(S, Taps)
    csr, _, _ = S.ordered("expand")
    crow, col = csr.crow.numpy(), csr.col.numpy()
    start = time.perf_counter()
    node_order.scheduled(crow, col, node_order.reverse_cuthill_mckee(crow, col, nodes))
    seconds = time.perf_counter() - start
    metrics: dict[str, Any] = {f"{name}_ms": value * 1e3 for name, value in found.items()}
    state = node_order.known(csr.col)
    metrics |= {
        "order_ms": seconds * 1e3,
        "ratio": found["before"] / found["after"],
        "rows": str(state),
        "schedule": True,
    }
    return metrics


def run(case: Case) -> common.Outcome:
    """Measure one comparison."""
    common.seed_everything(case.seed, deterministic=False)
    before = torch.get_num_threads()
    torch.set_num_threads(case.threads)
    try:
        measured = product if case.kind == "product" else schedule if case.what.startswith("schedule") else order
        return common.Outcome(measured(case))
    finally:
        torch.set_num_threads(before)


def data(case: Case) -> common.Data:
    """The data of a comparison, determined by the sizes and the seed."""
    return common.Data(f"random numbers, {case.kind}", "generated")


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    config, options = common.cli(Config, __doc__, argv)
    if options.jobs != 1:
        raise SystemExit("error: two timings at a time would disturb each other; leave --jobs at 1")
    todo = [case for s in range(options.seeds) for case in cases(replace(config, seed=config.seed + s))]
    for row in common.sweep(todo, run, measure.timings(options, "choices"), experiment="choices", data=data):
        numbers = {k: v for k, v in row["metrics"].items() if not k.endswith("_ms") and not isinstance(v, str)}
        print(f"{row['config']['case']}: " + ", ".join(f"{name} {value:.3g}" for name, value in numbers.items()))


if __name__ == "__main__":
    main()
