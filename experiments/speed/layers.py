"""Speed of layers, training steps and single products compared with PyG, torch.sparse, scipy and PyGSP, with goals.

Protocol: the cases are listed in `experiments.speed.cases`. All implementations of a case run in the same process, on
the same data and with the same weights; values and gradients must agree before they are timed. They are timed in
alternation, one measurement per round, in alternating order. A ratio is the median over rounds of the peer's time
divided by gconv's, with quartiles; the peer is the fastest one (by its median), or the one named by the case. PyG is
measured in every variant that the layer supports: edge_index, with caching if available, torch's CSR adjacency, and in
training steps sparse features if supported; for layers, training steps and single calls also each variant compiled by
torch.compile, in the default mode and in max-autotune-no-cudagraphs. Variants that torch.compile cannot compile are
listed in the row. Layers are also compared with the time of the matrix and sparse products alone, in preallocated
buffers (`experiments.speed.floor`). `experiments.speed.memory` measures peak memory for the same cases.

Large cases use all threads and wall time, single calls one thread and processor time. Training steps have no optimiser,
which would cost the same for both. Data: random graphs with power-law degrees, random bags of words.

    python -m experiments.speed                        everything; a large part of the time is spent in torch.compile
    python -m experiments.speed --only 'gat layer'     cases whose name matches this regular expression
    python -m experiments.speed --quick                tiny sizes, for testing; rows are written to runs/

Rows remain valid until their file is removed: timings are not repeated when code changes. Official rows are not
recorded while other processes use the machine.
"""

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.harness import common, measure
from experiments.harness.machine import ROOT
from experiments.speed import sides as speed_sides
from experiments.speed.cases import COMPILED, FULL, MODES, QUICK, Case, cases
from experiments.speed.floor import floor
from experiments.speed.sides import Side
from experiments.speed.summary import OURS, remarks
from gconv.kernels import backend

FLOOR = "floor"
# layers: gradients that are sums over millions of float32 numbers; many signals: some of millions of attention scores
# are within rounding of LeakyReLU's kink, where the two sides take different slopes
TOL = {"filter": 1e-10, "layer": 1e-3, "signals": 1e-3}


@dataclass(frozen=True)
class Config:
    """Options."""

    only: str = ""
    """Run only cases whose name matches this regular expression."""
    quick: bool = False
    """Run tiny sizes with three rounds, for testing."""
    threads: int = 0
    """Number of threads of the large cases; 0 for all."""
    seed: int = 0
    """Random seed."""

    def __post_init__(self) -> None:
        """Check the options."""
        if self.threads < 0:
            raise ValueError(f"threads must not be negative, not {self.threads}")
        try:
            re.compile(self.only)
        except re.error as error:
            raise ValueError(f"only must be a regular expression, and {self.only!r} is not: {error}") from None


def chosen(config: Config) -> list[Case]:
    """The cases selected by the options. Raises: ValueError if there are none."""
    sizes = QUICK if config.quick else FULL
    found = [c for c in cases(sizes, config.threads, config.seed) if re.search(config.only, c.case)]
    if not found:
        raise ValueError(f"no case's name contains {config.only!r}; --only '' is all of them")
    return found


# -- one case ------------------------------------------------------------------------------------------------------


def ready(case: Case) -> tuple[dict[str, Side], dict[str, str]]:
    """The implementations of a case, compiled if necessary, and the errors of torch.compile for those that failed."""
    made, refused = {}, {}
    for name, make in speed_sides.sides(case, MODES).items():
        side = make()
        if COMPILED in name:
            try:
                side.step()
            except Exception as error:  # torch.compile does not document the class of its errors
                refused[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
                continue
        made[name] = side
    return made, refused


def control(case: Case, made: dict[str, Side]) -> float:
    """The largest relative difference of any implementation from gconv. Raises: ValueError if it exceeds rounding."""
    ours, worst = made[OURS].numbers(), 0.0
    for name, side in made.items():
        if name == OURS:
            continue
        theirs = side.numbers()
        if theirs.keys() != ours.keys():
            raise ValueError(f"{case.case}: {name} has {sorted(theirs)}, and gconv {sorted(ours)}")
        for what, want in theirs.items():
            found = measure.gap(f"{case.case}, {name}", what, ours[what], want, TOL.get(case.kind, 1e-4))
            worst = max(worst, found)
    return worst


def compared(times: dict[str, np.ndarray], against: str = "") -> dict[str, Any]:
    """Medians and quartiles of all implementations, the relevant peer, and how many times faster than each gconv is.

    >>> times = {"gconv": np.array([1.0, 1.0]), "slow": np.array([9.0, 9.0]), "fast": np.array([2.0, 2.0])}
    >>> found = compared(times)
    >>> found["peer"], found["faster"], found["faster_than"]["slow"]["faster"]
    ('fast', 2.0, 9.0)
    """
    ours = times[OURS]
    peers = {name: found for name, found in times.items() if not name.startswith(OURS) and name != FLOOR}

    def fastest(names: Iterable[str]) -> str:
        return min(names, key=lambda name: float(np.median(peers[name])))

    peer = against or fastest(peers)
    found: dict[str, Any] = {}
    if FLOOR in times:
        found |= measure.quartiles("over_floor", ours / times[FLOOR])
        found["times_the_floor"] = f"{found['over_floor']:.3f}"
    if names := [name for name in peers if COMPILED in name]:
        best = fastest(names)
        found |= {"compiled": best, "faster_than_compiled": float(np.median(peers[best] / ours))}
        found["than_compiled"] = f"{found['faster_than_compiled']:.3f}"
    return found | {
        "ms": {name: measure.quartiles("ms", found * 1e3) for name, found in times.items()},
        "faster_than": {name: measure.quartiles("faster", found / ours) for name, found in times.items()},
        "gconv_ms": float(np.median(ours)) * 1e3,
        "peer": peer,
        "peer_ms": float(np.median(peers[peer])) * 1e3,
        "rounds": len(ours),
        **measure.quartiles("faster", peers[peer] / ours),
    }


def run(case: Case) -> common.Outcome:
    """Check the results, then measure time."""
    common.seed_everything(case.seed, deterministic=False)
    clock = time.process_time if case.threads == 1 else time.perf_counter
    with measure.threads(case.threads):
        metrics: dict[str, Any] = {"threads": torch.get_num_threads(), "kernels": backend()}
        if case.kind == "limits":
            return common.Outcome(metrics | reached(case))
        made, metrics["refused"] = ready(case)
        metrics["gap"] = control(case, made)
        steps = {name: side.step for name, side in made.items()}
        if case.kind == "layer":
            steps[FLOOR] = floor(case)
        metrics |= compared(measure.take_turns(steps, case.rounds, clock, case.budget), case.against)
        if case.kind in ("spmm", "layer"):
            metrics |= speed_sides.work(case)
        if case.kind == "layer":
            alone = speed_sides.sides(speed_sides.forward(case))[OURS]().step
            times = measure.take_turns({OURS: alone}, case.rounds, clock, case.budget / 5)[OURS]
            metrics["gconv_forward_ms"] = float(np.median(times)) * 1e3
    metrics["goal"], metrics["verdict"] = _goal(case.goal), measure.verdict(metrics["faster"], case.goal)
    return common.Outcome(metrics)


def _goal(times: float) -> str:
    return f"{times:g}" if times else "-"


def reached(case: Case) -> dict[str, float]:
    """The measured limits of the machine: GB/s of a copy, GFLOP/s of a matrix product."""
    size = 2048 if case.budget >= 10 else 128
    steps = speed_sides.limits(size // 8, size)
    times = measure.take_turns({name: step for name, (step, _) in steps.items()}, case.rounds, budget=case.budget)
    best = {name: steps[name][1] / float(np.median(times[name])) / 1e9 for name in steps}
    return {"copy_gb_s": best["copy"], "mm_gflop_s": best["mm"]}


# -- the sweep -------------------------------------------------------------------------------------------------------


def report(rows: list[common.Row]) -> None:
    """Print a summary of the rows."""
    for row in rows:
        m = row["metrics"]
        print(row["config"]["case"])
        if "copy_gb_s" in m:
            print(f"    copy {m['copy_gb_s']:.1f} GB/s, matrix product {m['mm_gflop_s']:.1f} GFLOP/s")
            continue
        spread = f"{m['faster']:.2f} [{m['faster_low']:.2f}, {m['faster_high']:.2f}] times faster than {m['peer']}"
        print(f"    {m['gconv_ms']:.3f} ms against {m['peer_ms']:.3f}: {spread}; goal {m['goal']}, {m['verdict']}")
        if "over_floor" in m:
            print(f"    {m['over_floor']:.2f} times the bare products")
        others = {name: found["faster"] for name, found in m["faster_than"].items() if name not in (OURS, m["peer"])}
        if others:
            print("    " + ", ".join(f"{found:.2f} than {name}" for name, found in others.items()))
    print(*remarks(rows), sep="\n")


def announced(case_run: Callable[[Case], common.Outcome], todo: list[Case]) -> Callable[[Case], common.Outcome]:
    """`run` with messages about the current case and an estimate of the time for it and the later cases of `todo`."""
    from rich.console import Console

    console, started, spent = Console(stderr=True), time.perf_counter(), [0.0]

    def call(case: Case) -> common.Outcome:
        rate = (time.perf_counter() - started) / spent[0] if spent[0] > 10 else 2.0
        rest = rate * sum(later.budget for later in todo[todo.index(case) :])
        console.print(f"{case.case}: about {rest / 60:.0f} minutes left", highlight=False, soft_wrap=True)
        spent[0] += case.budget
        return case_run(case)

    return call


def data(case: Case) -> common.Data:
    """The data of a case, determined by the sizes and the seed."""
    return common.Data("random power-law graphs and bags of words", "generated")


def place(quick: bool, options: common.Options, name: str = "speed") -> common.Results:
    """The file for rows; rows of tiny sizes are never written to the experiment's own file."""
    toy = Path(ROOT / "runs" / f"{name}_quick.jsonl")
    return common.Results(toy) if quick and options.results is None else measure.timings(options, name)


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    config, options = common.cli(Config, __doc__, argv)
    if options.jobs != 1:
        raise SystemExit("error: two timings at a time would disturb each other; leave --jobs at 1")
    try:
        todo = chosen(config)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    results = place(config.quick, options)
    report(common.sweep(todo, announced(run, todo), results, experiment="speed", data=data))
