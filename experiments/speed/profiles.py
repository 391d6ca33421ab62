"""Profiles of cases of `experiments.speed`, for gconv and its fastest peer.

Protocol: with one thread and after a warm-up, steps run under Python's profiler for a few seconds. Times are those
spent in a function itself; compiled kernels are attributed to the function that calls them, and C++ code of autograd to
`run_backward`. The profiler slows down Python code, so shares of Python functions in small steps are upper bounds.

    python -m experiments.speed.profiles                     the cases that miss their goal in experiments.speed
    python -m experiments.speed.profiles --only 'gat layer'  cases whose name matches this regular expression
    python -m experiments.speed.profiles --quick             tiny sizes; rows are written to runs/
"""

import cProfile
import pstats
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from experiments.harness import common, measure
from experiments.harness.machine import ROOT
from experiments.speed import sides as speed_sides
from experiments.speed.cases import FULL, QUICK, Case, cases
from experiments.speed.layers import OURS, compared, data, place

PIECES = 6
LASTS = 2.0  # seconds


@dataclass(frozen=True)
class Config:
    """Options."""

    only: str = ""
    """Regular expression for the names of cases; if empty, the cases that miss their goal."""
    quick: bool = False
    """Run tiny sizes, for testing."""
    seed: int = 0
    """Random seed."""


@dataclass(frozen=True)
class Profiled:
    """One case, in gconv or in the fastest peer."""

    case: str
    ours: bool
    of: Case


def missed() -> set[str]:
    """The names of the cases that miss their goal in time."""
    rows = common.Results(Path(ROOT / "experiments" / "results" / "speed.jsonl")).rows()
    return {row["config"]["case"] for row in rows if row["metrics"].get("verdict") == "missed"}


def chosen(config: Config) -> list[Profiled]:
    """The steps to be profiled."""
    listed = [case for case in cases(QUICK if config.quick else FULL, 1, config.seed) if case.compared]
    names = {case.case for case in listed if re.search(config.only, case.case)} if config.only else missed()
    sides = ((True, "gconv"), (False, "fastest peer"))
    return [Profiled(f"{c.case}: {name}", ours, c) for c in listed if c.case in names for ours, name in sides]


def label(function: tuple[str, int, str]) -> str:
    """A short name for a function in the profiler's output.

    >>> label(("~", 0, "<built-in method torch.mm>")), label(("/x/gconv/kernels/native.py", 3, "spmm"))
    ('torch.mm', 'native.spmm')
    >>> label(("~", 0, "<method 'run_backward' of 'torch._C._EngineBase' objects>"))
    'run_backward'
    """
    file, _, name = function
    if file != "~":
        return f"{Path(file).stem}.{name}"
    quoted = re.search(r"'(\w+)'", name)
    return quoted[1] if quoted else name.strip("<>{}").split()[-1].removeprefix("torch._C._nn.")


def pieces(step: Callable[[], object], lasts: float) -> tuple[dict[str, float], int]:
    """Seconds by function over all steps, and the number of steps."""
    profile, steps, end = cProfile.Profile(), 0, time.perf_counter() + lasts
    while steps < 3 or time.perf_counter() < end:
        profile.runcall(step)
        steps += 1
    found: dict[str, float] = {}
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    for function, (_, _, own, _, _) in stats.items():
        found[label(function)] = found.get(label(function), 0.0) + own
    return found, steps


def run(profiled: Profiled) -> common.Outcome:
    """Warm up and profile one implementation."""
    case = replace(profiled.of, threads=1)
    common.seed_everything(case.seed, deterministic=False)
    with measure.threads(1):
        made = {name: make() for name, make in speed_sides.sides(case).items()}
        steps = {name: side.step for name, side in made.items()}
        times = measure.take_turns(steps, 5, time.process_time, case.budget / 4)
        name = OURS if profiled.ours else compared(times, case.against)["peer"]
        found, count = pieces(steps[name], LASTS * case.budget / 8)
    whole = sum(found.values())
    most = sorted(found, key=lambda piece: -found[piece])[:PIECES]
    shares = {piece: found[piece] / whole for piece in most}
    said = ", ".join(f"{piece} {share:.0%}" for piece, share in shares.items())
    ms = measure.quartiles("ms", times[name] * 1e3)
    return common.Outcome(ms | {"side": name, "steps": count, "shares": shares, "most": said})


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    config, options = common.cli(Config, __doc__, argv)
    try:
        todo = chosen(config)
    except re.error as error:
        raise SystemExit(f"error: --only {config.only!r} is not a regular expression: {error}") from None
    if not todo:
        raise SystemExit("error: no case has that name, or none misses its goal; --only 'layer' profiles all layers")
    results = place(config.quick, options, "profiles")
    for row in common.sweep(todo, run, results, experiment="profiles", data=lambda one: data(one.of)):
        m = row["metrics"]
        print(f"{row['config']['case']} ({m['side']}), {m['ms']:.3f} ms: {m['most']}")


if __name__ == "__main__":
    main()
