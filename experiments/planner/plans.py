"""How often the planner's choice is within 10 % of the best candidate, over many operators and shapes.

Protocol: for each case the plan is made from form and sizes, with the rates stored for this machine (`python -m gconv
calibrate`, else the built-in ones). Then every admitted candidate that is not predicted to take much longer is timed,
in alternation: the forward pass for inference, else forward and backward. Short calls are repeated, and the minimum
over rounds is used. If the choice took over 10 % longer than another candidate, these candidates are timed again with
five times as many rounds, and the second measurement decides; the row keeps the first one as `first_ms`. Nothing else
is measured twice. A row contains the chosen candidate, the best one, and the ratio of their times.

    python -m experiments.planner.plans                      all cases, some minutes
    python -m experiments.planner.plans --only graphs        graphs, or grids
    python -m experiments.planner.plans --rounds 3           faster, but less reliable
    python -m experiments.planner.plans --replay             evaluate current choices by the times in existing rows

A choice depends only on form, sizes and rates, so `--replay` evaluates a change of the cost model with earlier times.
The rows then contain the new choices, and the commit that made them as `chosen_by`.
"""

import re
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from experiments.harness import common, measure
from experiments.harness.machine import commit
from experiments.harness.measure import power_law
from experiments.planner.cases import Shape, drawn, graphs, grids
from gconv import GConv, Graph, Grid
from gconv.call import Call
from gconv.domains import grid_graph
from gconv.lowering import LOWERINGS
from gconv.plan import step_of, take_turns
from gconv.rates import rates
from gconv.spec import OperatorSpec

Only = Literal["all", "graphs", "grids"]
CLOSE = 1.1
AGAIN = 5  # factor for the number of rounds of the second measurement
MODE = ("inference", "training")


@dataclass(frozen=True)
class Config:
    """Options."""

    only: Only = "all"
    """Cases to run."""
    held_out: int = 75
    """Number of held-out graphs, and of held-out grids."""
    draw: int = 1129
    """Seed of the held-out cases."""
    rounds: int = 9
    """Number of rounds for candidates that may be the best."""
    replay: bool = False
    """Measure nothing: update the choices in existing rows, using their times."""
    name: str = "plans"
    """Name of the file of rows, for the rows of a further processor."""
    seed: int = 0
    """Random seed."""


@dataclass(frozen=True)
class Case:
    """A case of an operator on a domain."""

    case: str
    group: str
    shape: Shape
    training: bool
    rounds: int
    seed: int


def cases(config: Config) -> list[Case]:
    """The list with which the cost model was developed, for inference and training, and the held-out cases."""
    found = []
    tail = (config.rounds, config.seed)
    for kind, listed in (("graphs", graphs()), ("grids", grids())):
        if config.only in ("all", kind):
            for one in listed:
                found += [_case(one, kind, training, tail) for training in (False, True)]
            for k, one in enumerate(drawn(config.held_out, config.draw, kind == "grids")):
                found.append(_case(one, f"held-out {kind}", k % 2 == 1, tail))
    return found


def _case(one: Shape, group: str, training: bool, tail: tuple[int, int]) -> Case:
    return Case(f"{one.name}, {MODE[training]}", f"{group}, {MODE[training]}", one, training, *tail)


def graph(one: Shape, seed: int) -> Graph:
    """The graph of a case."""
    nodes = one.shape[-2]
    if one.domain == "lattice":
        side = round(nodes**0.5)
        return grid_graph((side, side))
    edges = power_law(nodes, nodes * one.degree // 2, seed)
    if one.domain != "labelled":
        return Graph(edges, nodes)
    labels = int(re.findall(r"\d+", one.spec)[-1])
    kind = torch.arange(edges.shape[1]) % labels
    return Graph(edges, nodes, edge_type=kind, edge_attr=torch.rand(edges.shape[1], 2))


def setting(case: Case) -> tuple[GConv, torch.Tensor, Graph | None]:
    """Create the layer, its signal and its graph."""
    one, dtype = case.shape, getattr(torch, case.shape.dtype)
    layer = GConv(OperatorSpec.parse(one.spec), dtype=dtype)
    x = torch.randn(one.shape, dtype=dtype).requires_grad_(case.training and one.dx)
    return layer, x, None if one.domain == "grid" else graph(one, case.seed)


def run(case: Case) -> common.Outcome:
    """Measure every candidate of a case."""
    common.seed_everything(case.seed, deterministic=False)
    torch.zeros(31 << 18)  # 31 MiB, freed at once: from then on the allocator keeps freed memory
    with measure.threads(case.shape.threads):
        layer, x, place = setting(case)
        with torch.set_grad_enabled(case.training):
            made = layer.plan(x, place, measure=case.rounds)
            took = {c.name: c.measured[-1] for c in made.candidates if c.measured}
            chosen = made.chosen.name
            first = {name: took[name] for name in took if CLOSE * took[name] < took[chosen]}
            if first:
                first[chosen] = took[chosen]
                took |= again(layer, x, place, list(first), AGAIN * case.rounds)
    best = min(took, key=lambda name: took[name])
    metrics: dict[str, Any] = {"ratio": took[chosen] / took[best], "best": best, "chosen": chosen}
    metrics["first_ms"] = {name: seconds * 1e3 for name, seconds in first.items()}
    metrics["ms"] = {name: seconds * 1e3 for name, seconds in took.items()}
    metrics["predicted_ms"] = {c.name: c.seconds * 1e3 for c in made.candidates if c.name in took}
    metrics["close"] = float(metrics["ratio"] <= CLOSE)
    metrics["rates"] = source()
    return common.Outcome(metrics, chosen)


def source() -> str:
    """Where the rates in use come from."""
    return "built in" if rates().source == "defaults" else "calibrated"


def replayed(row: common.Row) -> common.Row:
    """A row with the current choice. Raises: ValueError if the row has no time for it."""
    config, m = row["config"], row["metrics"]
    shape = Shape(**config["shape"] | {"shape": tuple(config["shape"]["shape"])})
    case = Case(**config | {"shape": shape})
    with measure.threads(shape.threads), torch.set_grad_enabled(case.training):
        made = setting(case)
        plan = made[0].plan(*made[1:])
    chosen = plan.chosen.name
    if chosen not in m["ms"]:
        raise ValueError(f"{case.case}: plans choose {chosen} today, which was not measured; run the case anew")
    ratio = m["ms"][chosen] / min(m["ms"].values())
    predicted = {c.name: c.seconds * 1e3 for c in plan.candidates if c.name in m["ms"]}
    found = {"chosen": chosen, "ratio": ratio, "close": float(ratio <= CLOSE), "predicted_ms": predicted}
    found["rates"] = source()
    return row | {"metrics": m | found | {"chosen_by": commit()}, "lowering": chosen}


def again(layer: GConv, x: torch.Tensor, place: Graph | None, names: list[str], rounds: int) -> dict[str, float]:
    """Seconds of these candidates only, measured as by `GConv.plan`, over more rounds."""
    signal, domain = layer._enter(x, place)
    call = layer._call(signal)
    S = layer._basis(domain, call)
    axes = domain.ndim if isinstance(domain, Grid) else 0
    given = (x if axes else signal).detach().requires_grad_(x.requires_grad)
    W = None if call.W is None else call.W.detach().requires_grad_(call.W.requires_grad)
    back = torch.is_grad_enabled() and (x.requires_grad or W is not None or bool(S.learned))
    options = [option for option in LOWERINGS if option.name in names]
    return take_turns({o.name: step_of(o, S, Call(given, call.mixing, W), back, axes) for o in options}, rounds)


def data(case: Case) -> common.Data:
    """The data of a case, determined by the sizes and the seed."""
    return common.Data(f"random signals on a {case.shape.domain}", "generated")


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    config, options = common.cli(Config, __doc__, argv)
    if options.jobs != 1:
        raise SystemExit("error: two timings at a time would disturb each other; leave --jobs at 1")
    results = options.open(config.name) if config.replay else measure.timings(options, config.name)
    if config.replay:
        rows = [replayed(row) for row in results.rows()]
        for row in rows:
            results.append(row, replace=True)
        return show(rows)
    todo = [case for s in range(options.seeds) for case in cases(replace(config, seed=config.seed + s))]
    show(common.sweep(todo, run, results, experiment=config.name, data=data))


def show(rows: list[common.Row]) -> None:
    """Print how often the choice was close to the best, and the worst misses."""
    misses = sorted((row for row in rows if not row["metrics"]["close"]), key=lambda row: -row["metrics"]["ratio"])
    print(f"within {CLOSE - 1:.0%} of the best: {len(rows) - len(misses)} of {len(rows)} cases")
    for row in misses:
        m = row["metrics"]
        print(f"  {row['config']['case']}: {m['chosen']} took {m['ratio']:.2f} times {m['best']}")
        for name, ms in sorted(m["ms"].items(), key=lambda pair: pair[1]):
            print(f"      {name:22s} {ms:9.3f} ms, predicted {m['predicted_ms'][name]:9.3f}")


if __name__ == "__main__":
    main()
