"""What the planner does not weigh, measured: which matrix product, and in which order the nodes.

Protocol: the alternatives take turns and the least of the rounds counts. `product`: torch.mm, a 1x1 convolution and,
for bfloat16, torch.mm through float32, forward and with both gradients; the ratio is torch.mm's time over the other's.
`order`: a GCN layer on a graph with random node numbers, and on the same one reordered; the ratio is the first one's
time over the second's, and `pays_after` is how many calls make up for finding the order.

    python -m experiments.choices                     both, some minutes
    python -m experiments.choices --only product      or order
"""

import time
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments import common
from experiments.overhead import power_law
from gconv import GConv, Graph
from gconv.domains import grid_graph
from gconv.operators import gcn
from gconv.plan import take_turns

Only = Literal["all", "product", "order"]
SHAPES = ((40_000, 128, 256), (40_000, 256, 40), (19_717, 500, 16), (2_708, 1_433, 16), (20_000, 64, 64))


@dataclass(frozen=True)
class Config:
    """What is measured, and how."""

    only: Only = "all"
    """Which comparisons."""
    rounds: int = 7
    """Turns of each alternative."""
    threads: int = 1
    """Threads; with more than one, wall time is measured."""
    nodes: int = 170_000
    """Nodes of the graphs, about."""
    seed: int = 0


@dataclass(frozen=True)
class Case:
    """One comparison: a product of this shape and type, or an order of this graph at this width."""

    case: str
    kind: str
    what: str
    """Type of the numbers, or the order."""
    shape: tuple[int, ...]
    rounds: int
    threads: int
    seed: int


def cases(config: Config) -> list[Case]:
    """All comparisons."""
    tail = (config.rounds, config.threads, config.seed)
    found = []
    if config.only != "order":
        for dtype in ("float32", "float64", "bfloat16"):
            for shape in SHAPES:
                rows, i, o = shape if dtype != "bfloat16" else (shape[0] // 20, *shape[1:])
                name = f"{rows} x {i} x {o}, {dtype}"
                found.append(Case(name, "product", dtype, (rows, i, o), *tail))
    if config.only != "product":
        for kind in ("power law", "grid"):
            for order in ("rcm", "degree"):
                for width in (16, 64):
                    name = f"{order} on a {kind}, {config.nodes} nodes, width {width}"
                    found.append(Case(name, kind, order, (config.nodes, width), *tail))
    return found


def conv(x: Tensor, W: Tensor) -> Tensor:
    """x W as a 1x1 convolution with channels last."""
    image = x.unsqueeze(0).unsqueeze(2).permute(0, 3, 1, 2)
    return F.conv2d(image, W.t().unsqueeze(-1).unsqueeze(-1)).permute(0, 2, 3, 1).flatten(0, 2)


def product(case: Case) -> dict[str, Any]:
    """Milliseconds of each way, and torch.mm's time over it."""
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
    """Milliseconds of a call, forward and with backward, before and after."""
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


def run(case: Case) -> common.Outcome:
    """Measure one comparison."""
    common.seed_everything(case.seed, deterministic=False)
    before = torch.get_num_threads()
    torch.set_num_threads(case.threads)
    try:
        return common.Outcome(product(case) if case.kind == "product" else order(case))
    finally:
        torch.set_num_threads(before)


def data(case: Case) -> common.Data:
    """What is measured on; the sizes and the seed decide it."""
    return common.Data(f"random numbers, {case.kind}", "generated")


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    config, options = common.cli(Config, __doc__, argv)
    if options.jobs != 1:
        raise SystemExit("error: two timings at a time would disturb each other; leave --jobs at 1")
    todo = [case for s in range(options.seeds) for case in cases(replace(config, seed=config.seed + s))]
    for row in common.sweep(todo, run, options.open("choices"), experiment="choices", data=data):
        numbers = {name: value for name, value in row["metrics"].items() if not name.endswith("_ms")}
        print(f"{row['config']['case']}: " + ", ".join(f"{name} {value:.3g}" for name, value in numbers.items()))


if __name__ == "__main__":
    main()
