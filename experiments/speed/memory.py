"""Peak memory of gconv and of every variant of its peers, compared with the minimum that any implementation needs.

Protocol: the cases of `experiments.speed` that are marked for it, each implementation in a separate process. Measured
is resident memory, from before the layer and its graph are created to the end of the second step, and for a third step
alone. If there is a goal, the median of three processes is used, since the C library reuses memory irregularly. The
data (x, the incoming gradient, edge_index) exist before. x requires a gradient, and a step returns the value and all
gradients.

The goal is a fraction of the memory of the peer: PyG's fastest variant in the row of `experiments.speed` that is not
compiled (the memory of the compiler itself would count), or the one named. PyG's usual variant, edge_index, which
stores a message for each edge, is given as well. The floor (`floor`) is the minimum that any implementation needs, and
shows which goals can be reached.

    python -m experiments.speed.memory                      everything: about 10 minutes on two cores
    python -m experiments.speed.memory --only 'gat layer'   cases whose name matches this regular expression
    python -m experiments.speed.memory --quick              tiny sizes, for testing; rows are written to runs/

Rows remain valid until their file is removed.
"""

import json
import re
import sys
from dataclasses import asdict, replace
from functools import partial
from statistics import median

from experiments.harness import common, measure
from experiments.speed import sides as speed_sides
from experiments.speed.cases import FULL, QUICK, Case, cases
from experiments.speed.layers import Config, compared, data, place
from experiments.speed.summary import OURS, memory_remarks
from gconv.kernels import backend

MIB = 1 << 20
OFTEN = 3  # processes per implementation if there is a goal


def chosen(config: Config) -> list[Case]:
    """The cases selected by the options. Raises: ValueError if there are none."""
    listed = [c for c in cases(QUICK if config.quick else FULL, config.threads, config.seed) if c.memory]
    found = [c for c in listed if re.search(config.only, c.case)]
    if not found:
        raise ValueError(f"no such case has a name with {config.only!r} in it; --only '' is all of them")
    return found


def floor(case: Case) -> dict[str, float]:
    """Minimum MiB at the end of a step: "results" returned to the caller, and "structure" for row-by-row aggregation.

    results     Y (n, o); with a backward pass dX (n, i), and dW for each weight W, which is also stored: float32
    structure   row pointers of S, int32 (n + 1), and column indices, int32 (e,). This suffices because the graphs are
                undirected (S^T has the same arrays), their weights are ones (an entry of S is a product of one float32
                value per node) and self-loops need no entry

    Tensors saved by autograd are not counted, since X and dY are data and everything else can be recomputed; nor are
    intermediate results, which can be computed for a few rows or channels at a time. The results alone are a bound for
    any implementation; one that uses edge_index directly, as PyG's usual variant, needs no structure of its own.
    """
    weights = 0
    if case.kind != "spmm":
        layer = speed_sides.GConv(speed_sides.spec(case.op, case.channels[0], case.channels[-1]))
        weights = sum(p.numel() for p in layer.parameters())
    arriving = case.nodes * case.channels[0] + weights if case.backward else 0
    results = case.nodes * case.channels[-1] + weights + arriving
    structure = (case.nodes + 1) + case.edges + case.nodes
    return {"results": 4 * results / MIB, "structure": 4 * structure / MIB}


def counts(case: Case, names: list[str]) -> str:
    """The relevant peer of `names`: by the row of `experiments.speed`, or timed here if there is none."""
    if case.against:
        return case.against
    for row in common.Results(common.RESULTS / "speed.jsonl").rows():
        if row["key"] == common.run_key(case, "speed", data(case)):
            ms = row["metrics"]["ms"]
            return min((name for name in names if name in ms and name != OURS), key=lambda name: float(ms[name]["ms"]))
    steps = {name: make().step for name, make in speed_sides.sides(case).items()}
    return str(compared(measure.take_turns(steps, measure.LEAST))["peer"])


def run(case: Case) -> common.Outcome:
    """Measure the memory of all implementations, one after another."""
    names = [*speed_sides.sides(case)]
    peer = counts(case, names)
    usual = next(name for name in names if name.startswith("PyG edge_index"))
    given, often = json.dumps(asdict(case)), OFTEN if case.memory_goal else 1
    weigh = partial(measure.peak_of_a_process, "experiments.speed.memory")
    found = {name: [weigh(name, given) for _ in range(often)] for name in names}
    peaks = {name: sorted(one["peak_mb"] for one in each) for name, each in found.items()}
    steps = {name: median(one["step_peak_mb"] for one in each) for name, each in found.items()}
    mb = {name: max(median(each), 0.1) for name, each in peaks.items()}  # the resolution is a page or two
    parts = floor(case)
    least = sum(parts.values())
    share = mb[OURS] / mb[peer]
    return common.Outcome(
        {
            "kernels": backend(),
            "mb": mb,
            "peaks_mb": peaks,
            "step_mb": steps,
            "gconv_mb": mb[OURS],
            "gconv_step_mb": steps[OURS],
            "peer": peer,
            "peer_mb": mb[peer],
            "usual": usual,
            "usual_mb": mb[usual],
            "memory_share": share,
            "usual_share": mb[OURS] / mb[usual],
            "floor": parts,
            "floor_mb": least,
            "floor_share": least / mb[peer],
            "results_share": parts["results"] / mb[peer],
            "memory_goal": f"{case.memory_goal:g}" if case.memory_goal else "-",
            "memory_verdict": measure.verdict(share, case.memory_goal, at_most=True),
        }
    )


def peak(side: str, case: Case) -> dict[str, float]:
    """Peak memory of one implementation in this process."""
    with measure.threads(case.threads):
        speed_sides.sides(replace(case, nodes=50, edges=100))[side]().step()  # imports are not measured
        make = speed_sides.sides(case)[side]  # the data exist, the layer does not
        return measure.peak_of_steps(lambda: make().step, 2)


def report(rows: list[common.Row]) -> None:
    """Print a summary of the rows."""
    for row in rows:
        m = row["metrics"]
        print(row["config"]["case"])
        print("    " + ", ".join(f"{name} {mb:.0f} MiB" for name, mb in m["mb"].items()))
        share = f"{m['memory_share']:.3f} of {m['peer']}; goal {m['memory_goal']}, {m['memory_verdict']}"
        print(f"    {share}; {m['usual_share']:.3f} of {m['usual']}; floor {m['floor_mb']:.0f} MiB")
    print(*memory_remarks(rows), sep="\n")


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["--peak-of"]:  # used when this script starts itself in a new process
        given = json.loads(argv[2])
        print(json.dumps(peak(argv[1], Case(**given | {"channels": tuple(given["channels"])}))))
        return
    config, options = common.cli(Config, __doc__, argv)
    if options.jobs != 1:
        raise SystemExit("error: processes that are weighed run one after another; leave --jobs at 1")
    try:
        todo = chosen(config)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    results = place(config.quick, options, "speed_memory")
    report(common.sweep(todo, run, results, experiment="speed_memory", data=data))


if __name__ == "__main__":
    main()
