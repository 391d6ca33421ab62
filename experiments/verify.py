"""Repeat committed runs and compare: equal numbers on the same kind of processor, otherwise within a tolerance.

    python -m experiments.verify --rows 3 --seed 0               three rows, from different tables if possible
    python -m experiments.verify --rows 9 --seed 1 --budget 60   skip rows that took longer than the remaining time
    python -m experiments.verify --table ladder                  rows of one table
    python -m experiments.verify --table ladder --rows 5 --accept   the code changed, its numbers should not have

Random rows of the tables of `experiments.sweep` are repeated, each in a separate process with the number of threads of
the row. Times and rates are not compared. Exit status 1 if a number differs.

With --accept, only rows recorded with other code are repeated. If all are exactly the same, the change of code is noted
in the file code_changes.jsonl next to the rows, and rows recorded with that code count as those of the present code.
Rows of different models are repeated in turn; give at least as many rows as the change may affect models. Rows of
another processor show equality within a tolerance only: run some with the earlier code first, in a folder of their own
(--results), repeat these there, and append that folder's code_changes.jsonl to the committed one.

Numbers must be equal if the processor's family and vector instructions, the number of threads and torch's version are
those of the row. Rows that do not contain the family and the instructions, and rows of runs that were resumed with
another processor or number of threads (`earlier_hardware`), are compared within the tolerance.
"""

import json
import math
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from experiments.harness.code import code
from experiments.harness.code_changes import accept, representatives
from experiments.harness.experiment import Experiment, call
from experiments.harness.machine import device
from experiments.harness.options import RESULTS, Launch, check, command_name
from experiments.harness.store import Results, ResultsError, Row
from experiments.harness.sweeps import DataMissing, sweep
from experiments.sweep import TABLES, experiment
from gconv.arguments import plural

PICTURE = math.inf  # pictures and samples follow from the other metrics
SCORES = tuple(f"{part}{name}" for part in ("", "val_") for name in ("ap50", "ap"))
# Tolerances of metrics for which the experiment has none. They are here because the modules of the experiments are part
# of the code hash of rows.
FURTHER: Mapping[str, Mapping[str, float]] = {
    "text": {"epoch": 200, "epochs_run": 200},
    "translation": {"test_bleu_lower": 1.0, "val_bleu_lower": 1.0, "epoch": 20, "test_samples": PICTURE},
    "bert": {"epoch": 40, "epochs_run": 40},
    "membrane": {"step": 1000, "threshold": 0.3, "picture": PICTURE, "transfer_gap": 1e-12}
    | {f"best_possible_{name}": 0.02 for name in ("mean_iou", "pixel_error", "rand_error", "variation")},
    "cells": {"best_possible_mean_iou": 0.02, "pictures": PICTURE},
    "detection": {"train_loss": 0.3, "boxes": PICTURE, "photos": PICTURE, "twin_gap": 1e-12}
    | {name: 0.03 for name in SCORES}
    | {f"{name}_{cell}": 0.05 for name in SCORES for cell in ("RBC", "WBC", "Platelets")},
    "int8": {f"{name}_{cell}": 0.05 for name in SCORES for cell in ("RBC", "WBC", "Platelets")},
    "interpretability": {name: 0.1 for name in ("saliency", "integrated", "cam", "exact", "centre", "noise")}
    | {"passed": PICTURE, "filters": PICTURE, "maps": PICTURE},
    "dvae": {"error_of_mean": 0.002, "engine_gap": 1e-12, "picture": PICTURE},
    "external": {"error": 1e-6},
    "superpixels": {"nodes": 1.0},
}


@dataclass(frozen=True)
class Config:
    """Rows to repeat."""

    rows: int = 3
    """Number of rows to repeat."""
    seed: int = 0
    """Seed of the random choice of rows."""
    budget: float | None = None
    """Time limit in minutes."""
    table: str = ""
    """Choose only rows of this table."""
    accept: bool = False
    """Repeat only rows recorded with other code; if all are exactly the same, count the others as current."""
    results: Path = RESULTS
    """Folder with the rows."""
    data_root: Path | None = None
    """Folder of the data sets (default: $GCONV_DATA, else the user's cache folder)."""
    device: str = "auto"
    """Device."""

    def __post_init__(self) -> None:
        """Check the options."""
        if self.rows < 1 or (self.budget is not None and not self.budget > 0):
            raise ValueError("--rows must be at least 1, and --budget positive")


def draw(rows: Mapping[str, Sequence[Row]], seed: int) -> list[tuple[str, Row]]:
    """All rows with their tables, in a random order that alternates between the tables, and between their models.

    >>> [table for table, _ in draw({"a": [{"key": 1}, {"key": 2}], "b": [{"key": 3}]}, 0)][2:]
    ['a']
    """
    dice = random.Random(seed)
    piles = {table: _by_turns(dice.sample(list(found), len(found))) for table, found in sorted(rows.items())}
    tables = dice.sample(sorted(piles), len(piles))
    longest = max(map(len, piles.values()), default=0)
    return [(table, piles[table][turn]) for turn in range(longest) for table in tables if turn < len(piles[table])]


def _by_turns(rows: Sequence[Row]) -> list[Row]:
    turns: Counter[str] = Counter()
    placed = []
    for row in rows:
        config = row.get("config", {})
        model = str(config.get("rung") or config.get("model"))
        placed.append((turns[model], row))
        turns[model] += 1
    return [row for _, row in sorted(placed, key=lambda pair: pair[0])]


def exact(old: Row, new: Row) -> bool:
    """Whether the numbers of a row and its repetition must be equal."""
    was, now = old["hardware"], new["hardware"]
    known = all(was.get(k) is not None for k in ("family", "instructions")) and not old.get("earlier_hardware")
    alike = known and all(was.get(k) == now.get(k) for k in ("cpu", "family", "instructions", "threads", "gpu"))
    return alike and old["versions"].get("torch") == new["versions"].get("torch")


def differences(old: Row, new: Row, found: Experiment) -> list[str]:
    """Descriptions of the differences between a row and its repetition."""
    tolerance = {**FURTHER.get(found.name, {}), **found.tolerance}
    wrong, equal = [], exact(old, new)
    for name in sorted(old["metrics"].keys() | new["metrics"].keys()):
        before, after = old["metrics"].get(name), new["metrics"].get(name)
        if name in found.measured or before == after:
            continue
        within = tolerance.get(name)
        if equal or within is None or not _close(before, after, within):
            wrong.append(
                f"{name}: {before} in the row, {after} now" + ("" if equal or within is None else f" (+- {within:g})")
            )
    return wrong


def _close(a: Any, b: Any, within: float) -> bool:
    if within == PICTURE:
        return type(a) is type(b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_close(a[name], b[name], within) for name in a)
    if isinstance(a, list) and isinstance(b, list):  # runs that stop early may stop at another epoch
        return bool(a) == bool(b) and all(_close(x, y, within) for x, y in zip(a, b, strict=False))
    numbers = isinstance(a, int | float) and isinstance(b, int | float)
    return numbers and abs(a - b) <= within


def _problem(row: Row) -> str:
    """What a row lacks to be repeated, or nothing."""
    kinds = {"config": dict, "metrics": dict, "hardware": dict, "versions": dict, "seconds": int | float}
    wrong = [name for name, kind in kinds.items() if not isinstance(row.get(name), kind)]
    if not wrong and not isinstance(row["hardware"].get("threads"), int):
        wrong = ["number of threads"]
    return f"the row with the key {row['key'][:40]!r} has no {' and no '.join(wrong)}" if wrong else ""


def again(found: Experiment, row: Row, config: Config) -> Row:
    """Repeat the run of a row. Returns: its new row. Raises: SystemExit, ValueError."""
    one = found.read(row)
    with tempfile.TemporaryDirectory() as folder:
        rows = sweep(
            [one],
            partial(call, found.run, config.data_root, config.device),
            Results(Path(folder) / "rows.jsonl"),
            experiment=found.name,
            data=lambda c: found.data(c, config.data_root),
            resumable=True,
            launch=Launch(threads=row["hardware"]["threads"], isolate=True),
            modules=found.modules,
        )
    return rows[0]


def _of_other_code(rows: Sequence[Row], found: Experiment, folder: Path) -> list[Row]:
    """The rows recorded with code that is not known to give the numbers of the present one."""
    same = representatives(folder)
    return [r for r in rows if same(r.get("code")) != same(code(found.run, found.modules(found.read(r))))]


def _accept(folder: Path, experiment: str, pairs: Sequence[tuple[Row, Row]]) -> None:
    """Note that other code gave the same numbers. Raises: SystemExit if they need not have been equal."""
    if not all(exact(*pair) and pair[0].get("code") for pair in pairs):
        raise SystemExit(
            f"error: {experiment}: rows of another kind of processor, or without their code, are the same within a "
            "tolerance only, which does not show that the code gives the same numbers; nothing was accepted"
        )
    changes: dict[str, list[str]] = {}
    for old, new in pairs:
        changes.setdefault(json.dumps([old["code"], new["code"]]), []).append(old["key"])
    for change, keys in changes.items():
        before, after = json.loads(change)
        accept(folder, experiment, before, after, keys)
        print(f"{experiment}: {len(keys)} rows of other code repeated; all rows of that code count as current")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line. Raises: SystemExit if a number differs."""
    import tyro

    config = tyro.cli(Config, prog=command_name(), description=__doc__, args=argv)
    if not config.results.is_dir():
        raise SystemExit(f"error: --results {config.results} must be a folder with rows, and it is none")
    try:
        check(config, 1)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    try:
        device(config.device)
    except ValueError as error:
        raise SystemExit(f"error: --device: {error}") from None
    experiments = {table: experiment(table) for table in ([config.table] if config.table else TABLES)}
    try:
        rows = {table: Results(config.results / f"{e.name}.jsonl").rows() for table, e in experiments.items()}
    except ResultsError as error:
        raise SystemExit(f"error: {error}") from None
    rows = {
        table: [r for r in there if r.get("experiment") == experiments[table].name] for table, there in rows.items()
    }
    for table, there in rows.items():
        for problem in filter(None, map(_problem, there)):
            path = config.results / f"{experiments[table].name}.jsonl"
            raise SystemExit(f"error: {path}: {problem}; mend or delete the line")
    if config.accept:
        try:
            rows = {table: _of_other_code(there, experiments[table], config.results) for table, there in rows.items()}
        except (ResultsError, ValueError) as error:
            raise SystemExit(f"error: {error}") from None
        if not any(rows.values()):
            raise SystemExit("error: --accept: every row was recorded with the present code, or with one that agrees")
    end = None if config.budget is None else time.monotonic() + 60 * config.budget
    done = failed = 0
    repeated: dict[str, list[tuple[Row, Row]]] = {}
    for table, row in draw({table: there for table, there in rows.items() if there}, config.seed):
        if done == config.rows:
            break
        title = f"{table} {row['key']} (seed {row.get('seed')}, {row['seconds']:.0f} s when recorded)"
        if end is not None and time.monotonic() + row["seconds"] > end:
            print(f"{title}: passed over, more than what is left of the budget")
            continue
        try:
            new = again(experiments[table], row, config)
            wrong = differences(row, new, experiments[table])
        except DataMissing as error:
            print(f"{title}: passed over, {str(error).splitlines()[0].removeprefix('error: ')}")
            continue
        except (ValueError, SystemExit) as error:
            new, wrong = row, [str(error)]
        if row.get("data") != new.get("data"):
            wrong.append(f"the data differ: {row['data']} in the row, {new['data']} now")
        if row.get("code") != new.get("code"):
            title += ", recorded with other code" if row.get("code") else ", recorded before rows knew their code"
        done, failed = done + 1, failed + bool(wrong)
        repeated.setdefault(table, []).append((row, new))
        print(f"{title}: {'; '.join(wrong) or 'the same'}", flush=True)
    if not done:
        where = f"{config.results} has none of {config.table or 'any table'}"
        reason = "none takes less than --budget; give more minutes" if any(rows.values()) else where
        raise SystemExit(f"error: no row was run again: {reason}")
    if failed:
        raise SystemExit(f"error: {failed} of {done} rows differ")
    if config.accept:
        for table, pairs in repeated.items():
            _accept(config.results, experiments[table].name, pairs)
    print(f"{plural(done, 'row')}, all the same", file=sys.stderr)


if __name__ == "__main__":
    main()
