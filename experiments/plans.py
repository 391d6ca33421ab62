"""How often the planner's choice is within 10 % of the best candidate, over a grid of shapes.

Protocol: for every case the plan is made from form and sizes, with the rates that are stored for this machine
(`python -m gconv.calibrate`, else the built-in ones). Then every admitted candidate that is not predicted to take far
longer takes its turn, the forward pass alone where the case is for inference, else forward and backward; a short call
is repeated until it lasts, and the least of the rounds counts. A row is a case: what was chosen, what was best, and the
time of the choice over the best one's. The last row counts them.

    python -m experiments.plans                      all cases, some minutes
    python -m experiments.plans --only graphs        graphs, or grids
    python -m experiments.plans --rounds 3           quicker, and less certain
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from experiments import common
from experiments.overhead import power_law
from gconv import GConv, Graph
from gconv.domains import grid_graph
from gconv.rates import rates
from gconv.spec import OperatorSpec

Only = Literal["all", "graphs", "grids"]
CLOSE = 1.1
MODE = ("inference", "training")


@dataclass(frozen=True)
class Config:
    """Which cases, and how often each candidate has its turn."""

    only: Only = "all"
    """Which cases."""
    rounds: int = 9
    """Turns of each candidate."""
    threads: int = 1
    """Threads; with more than one, wall time is measured."""
    seed: int = 0


@dataclass(frozen=True)
class Case:
    """One operator on one domain."""

    case: str
    group: str
    spec: str
    shape: tuple[int, ...]
    """Of x."""
    domain: str
    """"grid", "power law" or "lattice"."""
    degree: int
    training: bool
    dx: bool
    rounds: int
    threads: int
    seed: int


def _graphs() -> Iterator[tuple[str, tuple[int, ...], str, int]]:
    """Operators, shapes of x, kinds of graph and mean degrees."""
    for nodes, degree in ((30, 4), (300, 8), (3000, 8), (20000, 14)):
        for i, o in ((4, 32), (32, 32), (256, 16)):
            yield f"gcn({i}, {o})", (nodes, i), "power law", degree
            yield f"cheb({i}, {o}, k=3)", (nodes, i), "power law", degree
        yield "sage(32, 64)", (nodes, 32), "power law", degree
        yield "tag(64, 16, k=4)", (nodes, 64), "power law", degree
        yield "gat(32, 8, heads=4)", (nodes, 32), "power law", degree
    for n in (40, 400):
        yield "spectral(16, 16, k=4)", (n, 16), "power law", 6
    for batch, side in ((1, 8), (16, 16), (8, 32)):
        yield "cheb(16, 32, k=3)", (batch, side * side, 16), "lattice", 4
        yield "gcn(64, 16)", (batch, side * side, 64), "lattice", 4


def _grids() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Operators and shapes of x."""
    for i, o, side, batch in ((3, 16, 32, 4), (16, 16, 16, 8), (64, 64, 8, 8), (64, 64, 16, 4), (4, 4, 4, 64)):
        for k in (1, 3, 5):
            if k <= side:
                yield f"conv2d({i}, {o}, {k}, padding={k // 2})", (batch, i, side, side)
    for k in (3, 7, 15, 31):
        yield f"depthwise(16, {k}, padding={k // 2})", (2, 16, 32, 32)
    yield "depthwise(32, 7, padding=3)", (4, 32, 16, 16)
    yield "conv2d(8, 8, 9, padding=4)", (4, 8, 24, 24)
    yield "conv2d(4, 8, 3, stride=2)", (4, 4, 33, 33)
    yield "conv1d(16, 16, 9, padding=4)", (8, 16, 256)
    yield "conv1d(4, 4, 65, padding=32)", (8, 4, 512)
    yield "conv_transpose2d(16, 8, 4, stride=2, padding=1)", (4, 16, 12, 12)
    yield "avg_pool2d(2)", (8, 16, 32, 32)
    yield "max_pool2d(2)", (8, 16, 32, 32)


def cases(config: Config) -> list[Case]:
    """The grid of shapes."""
    found = []
    tail = (config.rounds, config.threads, config.seed)
    if config.only != "grids":
        for spec, shape, domain, degree in _graphs():
            for training, dx in ((False, False), (True, shape[-1] != 256)):
                found.append(
                    Case(
                        _name(spec, shape, domain, training),
                        f"graphs, {MODE[training]}",
                        spec,
                        shape,
                        domain,
                        degree,
                        training,
                        dx,
                        *tail,
                    )
                )
    if config.only != "graphs":
        for spec, shape in _grids():
            for training in (False, True):
                dx = training and shape[1] > 3
                found.append(
                    Case(
                        _name(spec, shape, "grid", training),
                        f"grids, {MODE[training]}",
                        spec,
                        shape,
                        "grid",
                        0,
                        training,
                        dx,
                        *tail,
                    )
                )
    return found


def _name(spec: str, shape: tuple[int, ...], domain: str, training: bool) -> str:
    return f"{spec} on {'x'.join(map(str, shape))}, {domain}, {MODE[training]}"


def graph(case: Case) -> Graph:
    """The graph of a case."""
    nodes = case.shape[-2]
    if case.domain == "lattice":
        side = round(nodes**0.5)
        return grid_graph((side, side))
    return Graph(power_law(nodes, nodes * case.degree // 2, case.seed), nodes)


def run(case: Case) -> common.Outcome:
    """Measure every candidate of a case."""
    common.seed_everything(case.seed, deterministic=False)
    before = torch.get_num_threads()
    torch.set_num_threads(case.threads)
    try:
        layer = GConv(OperatorSpec.parse(case.spec))
        x = torch.randn(case.shape).requires_grad_(case.training and case.dx)
        place = None if case.domain == "grid" else graph(case)
        with torch.set_grad_enabled(case.training):
            made = layer.plan(x, place, measure=case.rounds)
    finally:
        torch.set_num_threads(before)
    took = {c.name: c.measured[-1] for c in made.candidates if c.measured}
    chosen, best = made.chosen.name, min(took, key=lambda name: took[name])
    metrics: dict[str, Any] = {"ratio": took[chosen] / took[best], "best": best, "chosen": chosen}
    metrics["ms"] = {name: seconds * 1e3 for name, seconds in took.items()}
    metrics["predicted_ms"] = {c.name: c.seconds * 1e3 for c in made.candidates if c.name in took}
    metrics["close"] = float(metrics["ratio"] <= CLOSE)
    metrics["rates"] = "built in" if rates().source == "defaults" else "calibrated"
    return common.Outcome(metrics, chosen)


def data(case: Case) -> common.Data:
    """What is measured on; the sizes and the seed decide it."""
    return common.Data(f"random signals on a {case.domain}", "generated")


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    config, options = common.cli(Config, __doc__, argv)
    if options.jobs != 1:
        raise SystemExit("error: two timings at a time would disturb each other; leave --jobs at 1")
    todo = [case for s in range(options.seeds) for case in cases(replace(config, seed=config.seed + s))]
    show(common.sweep(todo, run, options.open("plans"), experiment="plans", data=data))


def show(rows: list[common.Row]) -> None:
    """Print how often the choice was close, and the worst misses."""
    misses = sorted((row for row in rows if not row["metrics"]["close"]), key=lambda row: -row["metrics"]["ratio"])
    print(f"within {CLOSE - 1:.0%} of the best: {len(rows) - len(misses)} of {len(rows)} cases")
    for row in misses:
        m = row["metrics"]
        print(f"  {row['config']['case']}: {m['chosen']} took {m['ratio']:.2f} times {m['best']}")
        for name, ms in sorted(m["ms"].items(), key=lambda pair: pair[1]):
            print(f"      {name:22s} {ms:9.3f} ms, predicted {m['predicted_ms'][name]:9.3f}")


if __name__ == "__main__":
    main()
