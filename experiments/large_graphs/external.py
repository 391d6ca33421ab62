"""S^3 X of a graph of 100 M edges on disk, within 6 GB of resident memory: peak memory and time per edge.

Protocol: a random directed power-law graph (both ends of an edge drawn as in a Chung-Lu graph of degree exponent 3,
without repeated edges) is written as 32-bit pairs, and standard normal features as .npy. `python -m gconv propagate`
builds the graph and computes S X, S^2 X and S^3 X (with gcn's S) in a separate process. Its peak memory is that
reported by the system at its end, including the imports of Python and torch. Then random rows are compared with sums
over their neighbours in float64. Page caches are warm as far as the system keeps them. `load` is the number of runnable
processes of the machine, including this one; if it exceeds the number of processors, wall times are not meaningful, and
processor times are upper bounds, since caches are shared.

    python -m experiments.large_graphs.external             minutes, 6 GB of disk space for temporary files
    python -m experiments.large_graphs.external --smoke     a small graph, seconds
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.harness import common
from experiments.harness.experiment import Experiment, Place
from experiments.harness.machine import ROOT
from experiments.harness.render import Table, plain, several

CHUNK = 10_000_000  # number of edges drawn at once


@dataclass(frozen=True)
class Config:
    """Options."""

    nodes: int = 10_000_000
    """Number of nodes."""
    edges: int = 100_000_000
    """Number of edges before repeated ones are removed."""
    channels: int = 16
    """Number of channels."""
    k: int = 3
    """Number of powers."""
    memory_gb: float = 6.0
    """Memory limit in GB."""
    checked: int = 1000
    """Number of rows that are verified."""
    seed: int = 0
    """Random seed."""

    def __post_init__(self) -> None:
        """Check the options."""
        for name in ("nodes", "edges", "channels", "k", "checked"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.memory_gb > 0:
            raise ValueError(f"memory_gb must be positive, not {self.memory_gb}")


def expand(config: Config, seeds: int) -> list[Config]:
    """One configuration per run."""
    return [replace(config, seed=config.seed + s) for s in range(seeds)]


def drawn(config: Config) -> Iterator[np.ndarray]:
    """Chunks (e, 2) of int32 pairs.

    A rank r is drawn with probability proportional to r^(-1/2), by inversion; node indices are ranks times a constant.
    """
    generator = np.random.default_rng(config.seed)
    for start in range(0, config.edges, CHUNK):
        rank = generator.random((min(CHUNK, config.edges - start), 2))
        ends = np.minimum((rank * rank * config.nodes).astype(np.int64), config.nodes - 1)
        yield (ends * 7_368_787 % config.nodes).astype("<i4")  # a prime, so that indices are distinct


def write_inputs(config: Config, folder: Path) -> None:
    """Write edges.i32 and x.npy."""
    with open(folder / "edges.i32", "wb") as file:
        for pairs in drawn(config):
            pairs.tofile(file)
    x = np.lib.format.open_memmap(folder / "x.npy", "w+", np.dtype("f4"), (config.nodes, config.channels))
    generator = np.random.default_rng(config.seed + 1)
    for first in range(0, config.nodes, 1 << 20):
        x[first : first + (1 << 20)] = generator.standard_normal(x[first : first + (1 << 20)].shape, np.float32)
    x.flush()


def measured(command: list[str]) -> tuple[str, dict[str, float]]:
    """Run a command. Returns: its output, wall time, processor time and peak memory, as reported by the system."""
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    out = process.stdout.read()
    process.stdout.close()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}; its message is above")
    return out, {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10),
    }


def error(config: Config, folder: Path) -> float:
    """The largest difference of some rows of each power from directly computed sums, relative to the largest value."""
    crow, col = (np.load(folder / "run" / "graph" / f"{name}.npy", mmap_mode="r") for name in ("crow", "col"))
    rows = np.random.default_rng(2).integers(0, config.nodes, config.checked)
    z, worst = np.load(folder / "x.npy", mmap_mode="r"), 0.0
    for power in range(1, config.k + 1):
        y = np.load(folder / "run" / f"power-{power}.npy", mmap_mode="r")
        found, want = y[rows], np.empty((len(rows), config.channels))
        for place, i in enumerate(rows):
            near = np.append(col[crow[i] : crow[i + 1]], i)
            root = (crow[near + 1] - crow[near] + 1.0) ** -0.5
            want[place] = (z[near] * root[:, None]).sum(0) * root[-1]
        worst, z = max(worst, float(np.abs(found - want).max() / np.abs(want).max())), y
    return worst


def run(config: Config, place: Place) -> common.Outcome:
    """Run one graph and one product."""
    with tempfile.TemporaryDirectory(prefix="gconv-external-") as name:
        folder = Path(name)
        write_inputs(config, folder)
        size, memory = str(config.nodes), f"{int(config.memory_gb * 1e9)}"
        command = [sys.executable, "-m", "gconv", "propagate", f"{name}/edges.i32", f"{name}/x.npy", "--nodes", size]
        command += ["--duplicates", "drop", "--memory", memory, "--out", f"{name}/run"]
        before = os.getloadavg()[0]
        _, built = measured([*command, "--k", "1", "--keep", "last"])  # with one product
        for file in ("power-1.npy", "propagate.json"):
            (folder / "run" / file).unlink()
        command[4] = f"{name}/run/graph"
        _, found = measured([*command, "--k", str(config.k)])
        load = max(before, os.getloadavg()[0])
        entries = int(np.load(folder / "run" / "graph" / "col.npy", mmap_mode="r").shape[0])
        worst = error(config, folder)
    passes = config.k * entries
    metrics: dict[str, Any] = {
        "entries": entries,
        "peak_gb": max(built["peak_mb"], found["peak_mb"]) * 2**20 / 1e9,
        "build_cpu_seconds": built["cpu_seconds"] - found["cpu_seconds"] / config.k,
        "build_seconds": built["seconds"] - found["seconds"] / config.k,
        "cpu_seconds": found["cpu_seconds"],
        "seconds": found["seconds"],
        "cpu_ns_an_edge": found["cpu_seconds"] / passes * 1e9,
        "ns_an_edge": found["seconds"] / passes * 1e9,
        "load": load,
        "error": worst,
    }
    if metrics["peak_gb"] > config.memory_gb:
        raise RuntimeError(f"the peak was {metrics['peak_gb']:.2f} GB, but {config.memory_gb} GB were given")
    return common.Outcome(metrics)


def seen(config: Config, root: Path | None) -> common.Data:
    """The data of a run."""
    return common.Data("random power-law graph", "generated")


def report(rows: list[common.Row]) -> None:
    """Print one line per run."""
    for row in rows:
        m = row["metrics"]
        print(
            f"{m['entries']:,} edges: peak {m['peak_gb']:.2f} GB, {m['cpu_ns_an_edge']:.1f} ns of processor and "
            f"{m['ns_an_edge']:.1f} ns of wall an edge and power, load {m['load']:.1f}, error {m['error']:.1e}"
        )


def extrapolated(rows: Sequence[common.Row]) -> list[str]:
    """Extrapolation to papers100M: 1,615,685,872 edges in both directions, its 128 channels as 8 slabs of 16."""
    rows = [row for row in rows if row["config"]["edges"] >= 10**8 and row["config"]["channels"] == 16]
    if not rows:
        return []
    each = statistics.fmean(row["metrics"]["cpu_ns_an_edge"] for row in rows)
    hours = each * 1e-9 * 2 * 1_615_685_872 * 3 * 8 / 3600
    return [
        f"An extrapolation, not a measurement: S^3 X of ogbn-papers100M made undirected, 3.2 billion edges, 128 "
        f"channels as 8 slabs of 16 (7.1 GB each), would take {hours:.0f} hours of processor at {each:.0f} ns an edge, "
        "more where its larger slabs miss the caches more often."
    ]


EXPERIMENT = Experiment(
    name="external",
    about=__doc__ or "",
    config=Config,
    expand=expand,
    run=run,
    data=seen,
    smoke={"nodes": 2000, "edges": 20_000, "channels": 3, "checked": 50, "memory_gb": 2.0},
    report=report,
    measured=("peak_gb", "build_cpu_seconds", "build_seconds", "cpu_seconds", "seconds", "cpu_ns_an_edge",
              "ns_an_edge", "load"),
)  # fmt: skip


TABLE = Table(
    name="external",
    experiment="external",
    label="config.edges",
    cells=lambda row: (
        several(
            **{
                "peak, GB": "metrics.peak_gb",
                "build, s of processor": "metrics.build_cpu_seconds",
                "build, s": "metrics.build_seconds",
                "S^3 X, s of processor": "metrics.cpu_seconds",
                "S^3 X, s": "metrics.seconds",
                "ns of processor an edge and power": "metrics.cpu_ns_an_edge",
                "load": "metrics.load",
            }
        )(row)
        | {"error, in 1e-6": 1e6 * row["metrics"]["error"]}  # type: ignore[operator]
    ),
    format=plain,
    caption=(
        "S X, S^2 X and S^3 X of a random power-law graph of 10 M nodes on disk, 16 float32 channels, with "
        "`--memory 6GB`. The peak is the resident memory of the whole process as the system counted it; seconds "
        "contain the start of Python. `load` is the number of runnable processes of the machine."
    ),
    command="python -m experiments.sweep external",
    remarks=extrapolated,
)

main = EXPERIMENT.main


if __name__ == "__main__":
    main()
