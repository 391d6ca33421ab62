"""Launches runs: those without a row are run, optionally one process per run, and their rows are appended.

Only the calling process writes rows. An interruption loses no finished run, and of a resumable run only what came after
its last checkpoint; the same command continues from there.
"""

import json
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from experiments.harness import progress
from experiments.harness.code import code, code_of
from experiments.harness.code_changes import representatives
from experiments.harness.machine import ROOT, commit, hardware, peak_memory_mb, reset_peak_memory, timer, versions
from experiments.harness.options import Data, Launch, Outcome, fields_of, run_key
from experiments.harness.specs import SpecError
from experiments.harness.store import Checkpoint, Results, ResultsError, Row

LONGEST_WAIT = 3600.0  # seconds; a wait of 25 days or more overflows


class DataMissing(SystemExit):
    """Raised by `sweep` if the data of a run are missing or damaged."""


class Task(NamedTuple):
    """A run: the function to call, and its row without results."""

    run: Callable[..., Outcome]
    config: Any
    row: Row
    path: Path | None
    threads: int


def sweep(
    configs: Iterable[Any],
    run: Callable[..., Outcome],
    results: Results,
    *,
    experiment: str,
    data: Data | Callable[[Any], Data] | None = None,
    jobs: int = 1,
    resumable: bool = False,
    launch: Launch | None = None,
    modules: Callable[[Any], Iterable[str]] = lambda config: (),
) -> list[Row]:
    """Run every configuration without a row, append its row, and return the rows of all, in order.

    Args:
        configs: one frozen dataclass per run, started in this order; duplicates are run once.
        run: `run(config)`, or `run(config, path)` if `resumable`; `path` is for its `Checkpoint` and is removed when
            the row has been written. `run` is responsible for its own seeding.
        results: the file for the rows. Only the calling process writes to it.
        experiment: its name, part of the key.
        data: the data of the runs, or a function of the configuration that returns them; it may raise ValueError for
            options that do not fit the data.
        jobs: number of processes; torch's threads are divided among them.
        resumable: see `run`.
        launch: processes, threads and budget; replaces `jobs`.
        modules: further modules that affect the numbers of a configuration, for the hash of the code.

    Raises:
        DataMissing: if data are missing, before anything runs, or when a run finds it.
        SystemExit: before anything runs, if rows cannot be written; at the end, when all others have finished, if a run
            failed (failures are printed with their configuration when they occur) or the budget was used up.
    """
    from rich.console import Console

    from datasets.root import DataError

    launch = launch or Launch(jobs)
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    threads = launch.threads or max(1, torch.get_num_threads() // launch.jobs)
    tasks: dict[str, Task] = {}
    for config in configs:
        try:
            seen = data(config) if callable(data) else data
        except DataError as error:
            raise DataMissing(f"error: {error}") from None
        except ValueError as error:  # an option that does not fit the data
            raise SystemExit(f"error: {error}") from None
        key = run_key(config, experiment, seen)
        row = {"experiment": experiment, "key": key, "config": fields_of(config), "seed": getattr(config, "seed", None)}
        row |= {"data": seen and seen._asdict(), "commit": commit(), "code": code(run, modules(config))}
        tasks[key] = Task(run, config, row, results.checkpoint(key) if resumable else None, threads)
    keys, failed = list(tasks), 0
    try:
        results.probe()
        done: dict[str, Row] = {}
        stale: dict[str, Row] = {}
        for source, rows in results.sources():
            there = {row["key"]: row for row in rows if complete(row, source) and row["key"] in tasks.keys() - done}
            same = representatives(source.parent)
            if there:
                console.print(f"{experiment}: {len(there)} of {len(keys)} runs are in {source} already")
            for key, row in there.items():
                (done if same(row.get("code")) == same(tasks[key].row["code"]) else stale)[key] = row
        stale = {key: row for key, row in stale.items() if key not in done}
        if stale:
            none = sum("code" not in row for row in stale.values())
            what = [f"{none} of them before rows recorded their code"] if none else []
            what += [f"{len(stale) - none} of them with other code"] if none < len(stale) else []
            again = "running them again" if results.rerun else "--rerun runs them again"
            console.print(f"{experiment}: {' and '.join(what)}; {again}", style="yellow")
        done |= {} if results.rerun else stale
        for key in done:
            del tasks[key]
            results.checkpoint(key).unlink(missing_ok=True)
        for number, row in enumerate(_launched(tasks, launch, console, experiment)):
            if "ends" in row and (row["ends"] != "first" or number == 0):
                raise (DataMissing if row["ends"] == "data" else SystemExit)(f"error: {row['error']}")
            if "error" in row:
                failed += 1
                console.print(f"FAILED {row['config']}\n{row['error']}", style="red", markup=False)
            else:
                results.append(row, replace=results.rerun)
                results.checkpoint(row["key"]).unlink(missing_ok=True)
                del tasks[row["key"]]
        found = {row["key"]: row for row in results.rows()} | done
    except ResultsError as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        kept = f"finished runs are in {results.path}, the same command continues from there"
        print(f"stopped: {kept if results.path.exists() else 'no run had finished'}", file=sys.stderr)
        raise SystemExit(130) from None
    if failed:
        others = f"; the others are in {results.path}" if failed < len(keys) else ""
        raise SystemExit(f"error: {failed} of {len(keys)} runs failed{others}")
    if tasks:
        raise SystemExit(
            f"stopped: {launch.budget:g} minutes are over and {len(tasks)} of {len(keys)} runs of {experiment} have no "
            "row yet; the same command continues from there"
        )
    return [found[key] for key in keys]


def complete(row: Row, path: Path) -> bool:
    """Check a row and return True. Raises: ResultsError if it lacks a field that every row has."""
    missing = [name for name in ("config", "metrics") if not isinstance(row.get(name), dict)]
    if missing:
        raise ResultsError(
            f"{path}: the row with the key {row['key'][:40]!r} has no {' and no '.join(missing)}, so another version "
            "wrote it; delete the line"
        )
    return True


# -- launching -----------------------------------------------------------------------------------------------------


def _launched(tasks: dict[str, Task], launch: Launch, console: Any, experiment: str) -> Iterator[Row]:
    """The rows or errors of all tasks as they finish; fewer if the budget is used up."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    todo = list(tasks.values())
    end = None if launch.budget is None else time.monotonic() + 60 * launch.budget
    with Progress(*columns, console=console, disable=not todo) as bar:
        whole = bar.add_task(experiment, total=len(todo))

        def told(task: Task) -> progress.Sink:
            names = {k: v for k, v in asdict(task.config).items() if k in ("model", "rung", "dataset", "seed")}
            title = " ".join([experiment, *(f"{k} {v}" for k, v in names.items())])
            number = bar.add_task(title, total=1, visible=False)

            def sink(done: float, text: str, epoch: bool) -> None:
                if console.is_terminal:
                    bar.update(number, completed=done, description=f"{title}: {text}", visible=done < 1)
                elif epoch:
                    console.print(f"{title}: {text}", markup=False)

            return sink

        if launch.launcher == "submitit":
            rows = _submitted(todo, launch, end)
        elif launch.jobs > 1 or launch.isolate:
            rows = _in_processes(todo, launch.jobs, end, told)
        else:
            rows = _here(todo, end, told)
        for row in rows:
            bar.advance(whole)
            yield row


def _here(todo: list[Task], end: float | None, told: Callable[[Task], progress.Sink]) -> Iterator[Row]:
    """Run the tasks one after the other in this process; a run that has started is completed."""
    for task in todo:
        if end is not None and time.monotonic() > end:
            return
        progress.begin(told(task))
        try:
            yield _one(*task)
        finally:
            progress.begin()


def _in_processes(
    todo: list[Task], jobs: int, end: float | None, told: Callable[[Task], progress.Sink]
) -> Iterator[Row]:
    """Run each task in a new process, several at a time. Runs still active at the end of the budget are stopped."""
    kind = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context: Any = multiprocessing.get_context(kind)
    if kind == "forkserver" and todo:
        context.set_forkserver_preload(
            ["torch._dynamo", "torch_geometric", "experiments.harness.sweeps", code_of(todo[0].run).__module__]
        )
        _start_server()
    waiting = iter(todo)
    active: dict[Connection, tuple[Any, Task, progress.Sink]] = {}
    try:
        while True:
            while len(active) < jobs and (task := next(waiting, None)) is not None:
                ours, theirs = context.Pipe()
                process = context.Process(target=_child, args=(theirs, *task), daemon=False)
                process.start()
                theirs.close()
                active[ours] = process, task, told(task)
            if not active:
                return
            left = math.inf if end is None else max(0.0, end - time.monotonic())
            ready = wait(list(active), min(left, LONGEST_WAIT))
            if not ready and left <= LONGEST_WAIT:
                return
            for connection in ready:
                assert isinstance(connection, Connection)
                process, task, sink = active[connection]
                try:
                    what, value = connection.recv()
                except (EOFError, ConnectionResetError):
                    process.join()
                    what = "row"
                    why = (
                        f"its process ended with {process.exitcode} (out of memory, or killed?); run again to continue"
                    )
                    value = {"config": repr(task.config), "error": why}
                if what == "progress":
                    sink(*value)
                    continue
                sink(1.0, "done", False)
                del active[connection]
                connection.close()
                process.join()
                yield value
    finally:
        for process, _, _ in active.values():
            process.kill()
            process.join()


def _start_server() -> None:
    """Start the process that forks the others; while it imports modules, it must not print a traceback on Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)


def _child(connection: Connection, *task: Any) -> None:
    """Run a task in its own process, which ends with the sweep."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the sweep decides

    def watch() -> None:
        try:
            connection.recv()
        except (EOFError, OSError):
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    progress.begin(lambda *report: connection.send(("progress", report)))
    connection.send(("row", _one(*task)))
    os._exit(0)  # nothing is left to clean up, and threads of libraries must not keep the process alive


def _submitted(todo: list[Task], launch: Launch, end: float | None) -> Iterator[Row]:
    """Submit the runs as jobs of a cluster."""
    try:
        import submitit
    except ImportError:
        raise SystemExit("error: --launcher submitit needs the package submitit: pip install submitit") from None
    executor = submitit.AutoExecutor(folder=Path("runs") / ".submitit", cluster=os.environ.get("GCONV_CLUSTER"))
    executor.update_parameters(cpus_per_task=todo[0].threads if todo else 1, timeout_min=24 * 60)
    executor.update_parameters(**({"slurm_array_parallelism": launch.jobs} if executor.cluster == "slurm" else {}))
    jobs = dict(zip(executor.map_array(lambda task: _one(*task), todo), todo, strict=True)) if todo else {}
    try:
        while jobs and (end is None or time.monotonic() < end):
            for job in [job for job in jobs if job.done()]:
                task = jobs.pop(job)
                try:
                    yield job.result()
                except Exception as error:
                    yield {"config": repr(task.config), "error": str(error)}
            time.sleep(0.2)
    finally:
        for job in jobs:
            job.cancel()


def _one(run: Callable[..., Outcome], config: Any, row: Row, path: Path | None, threads: int) -> Row:
    """Run a task in this process. Returns: its completed row, or its configuration with the error.

    "ends" marks an error of the options, of the data or of the disk, after which no further run is started; "first" a
    ValueError, after which none is started if it is that of the first run, since the others have the same options. An
    error that the code of the run raises itself is reported by its message, any other with its traceback.
    """
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)
    try:
        reset_peak_memory()
        Checkpoint.begin(row["code"])
        with timer() as clock:
            outcome = run(config) if path is None else run(config, path)
        row = row | {
            "metrics": outcome.metrics,
            "lowering": outcome.lowering,
            "seconds": round(Checkpoint.earlier + clock.seconds, 3),
            "peak_memory_mb": round(peak_memory_mb(), 1),
            "versions": versions(),
            "hardware": hardware(),
            **({"earlier_hardware": list(Checkpoint.elsewhere)} if Checkpoint.elsewhere else {}),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        # Convert to JSON here, where errors can still be reported: a non-finite metric makes the run fail.
        row = json.loads(json.dumps(row, allow_nan=False, default=_plain))
    except (SpecError, ResultsError) as error:  # every further run would fail, too
        return {"config": repr(config), "error": str(error), "ends": "all"}
    except (Exception, SystemExit) as error:
        from datasets.root import DataError

        if isinstance(error, DataError):
            return {"config": repr(config), "error": str(error), "ends": "data"}
        if out_of_memory(error):
            return {"config": repr(config), "error": f"there is not enough memory for this run: {first_line(error)}"}
        if isinstance(error, ValueError) and stated(error):
            return {"config": repr(config), "error": str(error), "ends": "first"}
        if isinstance(error, ArithmeticError) and stated(error):
            return {"config": repr(config), "error": str(error)}
        return {"config": repr(config), "error": traceback.format_exc()}
    return row


def stated(error: BaseException) -> bool:
    """Whether a `raise` statement of this repository raised the error, so that its message is written for the user."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    return Path(where.filename).is_relative_to(ROOT) and (where.line or "").startswith("raise ")


def out_of_memory(error: BaseException) -> bool:
    """Whether memory could not be allocated, by Python, numpy or torch."""
    said = str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and ("not enough memory" in said or "can't allocate memory" in said)
    )


def first_line(error: BaseException) -> str:
    """The first line of a message, without the place in torch's code; or the name of the error."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return line.rpartition("DefaultCPUAllocator: ")[2]


def _plain(value: Any) -> Any:
    """Convert tensors and numpy numbers to lists and numbers. Raises: TypeError for anything else."""
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"a row cannot hold a {type(value).__name__}")
