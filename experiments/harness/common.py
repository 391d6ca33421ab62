"""What every experiment shares: command line, run key, result rows, resumable sweeps.

An experiment is a frozen dataclass (its configuration and its command line) and a function `run(config) -> Outcome`.
`sweep` runs what is not in the results file yet and appends one JSON line a finished run. A line is written whole,
under a lock and synced, or not at all: a kill at any moment neither loses nor repeats a finished run.
"""

import functools
import hashlib
import itertools
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, make_dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch

from experiments.harness.machine import (
    ROOT,
    commit,
    device,
    hardware,
    peak_memory_mb,
    reset_peak_memory,
    seed_everything,
    timer,
    versions,
)
from experiments.harness.store import Checkpoint, Results, ResultsError, Row

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = [  # the one import of an experiment: `from experiments.harness import common`
    "Checkpoint",
    "Data",
    "Options",
    "Outcome",
    "Results",
    "ResultsError",
    "Row",
    "cli",
    "device",
    "grid",
    "peak_memory_mb",
    "reset_peak_memory",
    "run_key",
    "seed_everything",
    "sweep",
    "timer",
]

RESULTS = ROOT / "experiments" / "results"  # committed; changed with --official alone
RUNS = ROOT / "runs"  # a user's own rows
C = TypeVar("C", bound="DataclassInstance")


class Data(NamedTuple):
    """Which data a run saw: a label fit to print beside the number, and the hash of its content."""

    label: str
    hash: str


class Outcome(NamedTuple):
    """What a run returns: metrics (finite numbers, or lists of them), and the lowerings that the plans chose."""

    metrics: dict[str, Any]
    lowering: Any = None


@dataclass(frozen=True)
class Options:
    """How to run, as opposed to what: none of this enters a row's key."""

    seeds: int = 1
    """Number of seeds, counted from 0."""
    jobs: int = 1
    """Runs at a time; each gets its share of the threads."""
    results: Path | None = None
    """JSONL file to append to (default: runs/NAME.jsonl; runs that are in the committed rows are not run again)."""
    data_root: Path | None = None
    """Folder of the data sets (default: $GCONV_DATA, else the user's cache folder)."""
    official: bool = False
    """Append to the committed rows, experiments/results/NAME.jsonl, and draw the committed figures."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        if self.seeds < 1 or self.jobs < 1:
            raise ValueError("--seeds and --jobs must be at least 1")
        if self.official and self.results is not None:
            raise ValueError("--official names the file of the rows, so it goes without --results")

    def open(self, experiment: str) -> "Results":
        """The results file of this invocation."""
        if self.results is not None:
            return Results(self.results)
        name = f"{experiment}.jsonl"
        return Results(RESULTS / name) if self.official else Results(RUNS / name, known=RESULTS / name)


def cli(
    config: type[C], description: str | None = None, argv: Sequence[str] | None = None, **defaults: Any
) -> tuple[C, Options]:
    """Parse the command line into `(config, options)`.

    The fields of the dataclass `config` are the options, and their docstrings the help.
    `defaults` are this experiment's own defaults of `Options`: `cli(Config, __doc__, seeds=10)`.

    Raises: SystemExit(2), with a message that names the nearest option, for anything it does not know.

    >>> @dataclass(frozen=True)
    ... class Config:
    ...     hidden: int = 16
    >>> cli(Config, argv=["--hidden", "32", "--jobs", "2"], seeds=10)
    (Config(hidden=32), Options(seeds=10, jobs=2, results=None, data_root=None, official=False))
    """
    import tyro

    bare = tyro.conf.OmitArgPrefixes
    fields = [
        ("config", bare[config], field(default_factory=config)),
        ("options", bare[Options], field(default_factory=lambda: Options(**defaults))),
    ]
    command: Any = tyro.cli(make_dataclass("Command", fields), description=description, args=argv)
    return command.config, command.options


def grid(config: C, **axes: Iterable[Any]) -> list[C]:
    """Every combination of `axes` put into `config`, the last axis fastest.

    >>> [tuple(c) for c in (d.__dict__.values() for d in grid(Options(), seeds=[1, 2], jobs=[3]))]
    [(1, 3, None, None, False), (2, 3, None, None, False)]
    """
    return [replace(config, **dict(zip(axes, v, strict=True))) for v in itertools.product(*axes.values())]


def run_key(config: Any, experiment: str, data: Data | None = None) -> str:
    """The 16 hex digits that identify a run: experiment, configuration (seed included) and content of the data.

    Raises: TypeError where the configuration holds what JSON cannot (a Path is an option, not a configuration).

    >>> run_key(Options(seeds=3), "citation") == run_key(Options(3), "citation") != run_key(Options(4), "citation")
    True
    """
    what = {"experiment": experiment, "config": asdict(config), "data": data and data.hash}
    return hashlib.sha256(json.dumps(what, sort_keys=True, allow_nan=False).encode()).hexdigest()[:16]


def sweep(
    configs: Iterable[C],
    run: Callable[..., Outcome],
    results: Results,
    *,
    experiment: str,
    data: Data | Callable[[C], Data] | None = None,
    jobs: int = 1,
    resumable: bool = False,
) -> list[Row]:
    """Run every configuration that has no row yet, append its row, and return the rows of all, in order.

    Args:
        configs: one frozen dataclass a run; repeated ones run once.
        run: `run(config)`, or `run(config, path)` where `resumable`: `path` is for its `Checkpoint`,
            and is removed once the row is on disk. Its global seeding is its own business.
        results: where rows go. Only the calling process writes.
        experiment: name, part of the key.
        data: what the runs see, or a function of the configuration.
        jobs: processes; torch's threads are divided among them.
        resumable: see `run`.

    Raises:
        SystemExit: before anything runs, where rows cannot be written or data are missing; at the end, after all the
            others have finished, where a run failed (each is printed with its configuration as it fails).
    """
    from concurrent.futures.process import BrokenProcessPool

    import joblib
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from datasets.root import DataError

    console = Console(stderr=True)
    threads = max(1, torch.get_num_threads() // jobs)
    tasks: dict[str, tuple[Any, ...]] = {}
    for config in configs:
        try:
            seen = data(config) if callable(data) else data
        except DataError as error:
            raise SystemExit(f"error: {error}") from None
        key = run_key(config, experiment, seen)
        row = {"experiment": experiment, "key": key, "config": asdict(config), "seed": getattr(config, "seed", None)}
        row |= {"data": seen and seen._asdict(), "commit": commit()}
        tasks[key] = (run, config, row, results.checkpoint(key) if resumable else None, threads, os.getpid())
    keys, failed = list(tasks), 0
    try:
        results.probe()
        for source, rows_there in results.sources():
            there = {row["key"] for row in rows_there if complete(row, source)} & tasks.keys()
            for key in there:
                del tasks[key]
                results.checkpoint(key).unlink(missing_ok=True)
            if there:
                done = f"{len(there)} of {len(keys)}"
                console.print(f"{experiment}: {done} runs are in {source} already", highlight=False, soft_wrap=True)
        parallel = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1)
        todo = tasks.values()
        rows = parallel(joblib.delayed(_one)(*t) for t in todo) if jobs > 1 else (_one(*t) for t in todo)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, disable=not tasks) as progress:
            for row in progress.track(rows, total=len(tasks), description=experiment):
                if "error" in row:
                    failed += 1
                    report = f"FAILED {row['config']}\n{row['error']}"
                    console.print(report, style="red", markup=False, highlight=False, soft_wrap=True)
                else:
                    results.append(row)
                    results.checkpoint(row["key"]).unlink(missing_ok=True)
        found = {row["key"]: row for _, rows_there in results.sources() for row in rows_there}
    except ResultsError as error:
        raise SystemExit(f"error: {error}") from error
    except BrokenProcessPool as error:
        raise SystemExit(f"error: a worker was killed (out of memory?); run again to go on. {error}") from error
    except KeyboardInterrupt:
        kept = f"finished runs are in {results.path}, the same command goes on from there"
        print(f"stopped: {kept if results.path.exists() else 'no run had finished'}", file=sys.stderr)
        raise SystemExit(130) from None
    if failed:
        others = f"; the others are in {results.path}" if failed < len(keys) else ""
        raise SystemExit(f"error: {failed} of {len(keys)} runs failed{others}")
    return [found[key] for key in keys]


def complete(row: Row, path: Path) -> bool:
    """True. Raises: ResultsError for a row that lacks what every row of an experiment has."""
    missing = [name for name in ("config", "metrics") if not isinstance(row.get(name), dict)]
    if missing:
        raise ResultsError(
            f"{path}: the row with the key {row['key'][:40]!r} has no {' and no '.join(missing)}, so another version "
            "wrote it; delete the line"
        )
    return True


def _one(run: Callable[..., Outcome], config: Any, row: Row, path: Path | None, threads: int, parent: int) -> Row:
    """One run in this process: its row completed, or its configuration with the error."""
    if os.getpid() != parent:
        _end_with(parent)
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)
    try:
        reset_peak_memory()
        with timer() as clock:
            outcome = run(config) if path is None else run(config, path)
        row = row | {
            "metrics": outcome.metrics,
            "lowering": outcome.lowering,
            "seconds": round(clock.seconds, 3),
            "peak_memory_mb": round(peak_memory_mb(), 1),
            "versions": versions(),
            "hardware": hardware(),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        # As plain JSON here, where it can still be reported: a metric that is not finite is a failed run, not a row.
        row = json.loads(json.dumps(row, allow_nan=False, default=_plain))
    except (Exception, SystemExit):
        return {"config": repr(config), "error": traceback.format_exc()}
    return row


@functools.cache
def _end_with(parent: int) -> None:
    """End this worker when its parent is gone: a killed sweep must not go on computing rows that nobody writes."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _plain(value: Any) -> Any:
    """Tensors and numpy's numbers as lists and numbers. Raises: TypeError for anything else."""
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"a row cannot hold a {type(value).__name__}")
