"""Measure this machine once, so that plans price work as it does here.

    python -m gconv.calibrate           measure for the number of threads in use (a minute or so), store, print
    python -m gconv.calibrate --show    print what plans use now

Every rate is the best of some rounds, so that what else the machine does matters little; with one thread they are
measured in processor time. The file keeps the numbers of other thread counts (OMP_NUM_THREADS=1 python -m ... for one
thread). Running layers take it up when they are made anew: a process reads it once.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from gconv.calibrate.calls import overheads as calls
from gconv.calibrate.convolutions import apart, conv, onednn, single
from gconv.calibrate.sections import Steps, gather, gemm, rest, stream
from gconv.calibrate.simplify import simplified
from gconv.plan import take_turns
from gconv.rates import FORMAT, TABLES, TYPES, Curve, Rates, parse, path, rates, read_bounded, words

ROUNDS, LASTS = 5, 3e-3


def measure(say: Callable[[float, str], None] = lambda share, text: None) -> Rates:
    """The rates of this machine, for the number of threads in use.

    Everything has its turn in each of the rounds, so that what else the machine does for a while matters little.

    Args:
        say: is told which share is done, and what comes next.
    """
    curves: dict[str, Curve] = {}
    torch.zeros(31 << 18)  # 31 MiB, given back at once: from then on the allocator keeps what it has, as it soon does
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    sections: dict[str, Generator[Steps, dict[str, float], Any]] = {}
    sections |= {f"products in {kind}": gemm(kind) for kind in TYPES}
    sections |= {"convolutions": conv(), "channels by themselves": single()}
    sections |= {f"sparse products, {place} tables": gather(place) for place in TABLES}
    sections |= {"oneDNN": onednn(), "groups": apart(), "streams": stream(), "the rest": rest(), "calls": calls(curves)}
    steps = {name: next(section) for name, section in sections.items()}
    took: dict[str, dict[str, float]] = {name: {} for name in sections}
    for turn in range(ROUNDS):
        for k, name in enumerate(sections):
            say((turn + k / len(sections)) / ROUNDS, name)
            with torch.no_grad():
                now = take_turns(steps[name], 1, LASTS)
            took[name] = {step: min(seconds, took[name].get(step, seconds)) for step, seconds in now.items()}
    say(1.0, "done")
    torch.random.set_rng_state(state)
    overheads: dict[str, float] = {}
    for name, section in sections.items():
        try:
            section.send(took[name])
        except StopIteration as done:
            (overheads if name == "calls" else curves).update(done.value)
    return simplified(Rates(curves, overheads, "measured now"))


def store(found: Rates) -> Path:
    """Put rates into the calibration's file, beside those of other numbers of threads. Returns its path.

    The file is replaced whole. Calibrations that are stored at the same time wait for each other, so none is lost.

    Raises:
        OSError: if the file cannot be written, or there is no place for it.
    """
    where = path()
    if where is None:
        raise FileNotFoundError(errno.ENOENT, "there is no home folder")
    curves = {kind: [[float(f"{number:.4g}") for number in point] for point in c] for kind, c in found.curves.items()}
    overheads = {name: float(f"{seconds:.4g}") for name, seconds in found.overheads.items()}
    where.parent.mkdir(parents=True, exist_ok=True)
    with _locked(where.with_name(f"{where.name}.lock")):
        threads = _stored(where)
        threads[str(torch.get_num_threads())] = {"curves": curves, "overheads": overheads}
        handle, trial = tempfile.mkstemp(prefix=f"{where.name}.", suffix=".tmp", dir=where.parent)
        try:
            with open(handle, "w", encoding="utf-8") as file:
                file.write(text(threads))
                file.flush()
                os.fsync(file.fileno())
            os.replace(trial, where)
        except BaseException:
            Path(trial).unlink(missing_ok=True)
            raise
    return where


def text(threads: Mapping[str, Any]) -> str:
    """A calibration's file, a curve or an overhead a line."""
    parts = []
    for key, numbers in threads.items():
        named = [
            f'"{part}": {{\n' + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in numbers[part].items()) + "}"
            for part in ("curves", "overheads")
        ]
        parts.append(f"{json.dumps(key)}: {{" + ",\n".join(named) + "}")
    return f'{{"format": {FORMAT}, "threads": {{\n' + ",\n".join(parts) + "}}\n"


def _stored(where: Path) -> dict[str, Any]:
    """What the file holds for each number of threads; a damaged entry, or a damaged file, is dropped."""
    kept: dict[str, Any] = {}
    try:
        entries = json.loads(read_bounded(where))["threads"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return kept
    for key, numbers in entries:
        try:
            parse({"format": FORMAT, "threads": {key: numbers}}, str(where))
        except (ValueError, RecursionError):
            continue
        kept[key] = numbers
    return kept


@contextmanager
def _locked(where: Path) -> Iterator[None]:
    """Hold a lock file. Where the system has no such locks, nothing is held."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with open(where, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
        yield


def table(found: Rates) -> str:
    """The rates as text."""
    lines = [f"rates from {found.source}, {torch.get_num_threads()} threads; a second, by size"]
    for kind, curve in found.curves.items():
        lines.append(f"  {kind:22s}" + "".join(f"  {size:>9.9g}: {rate:8.3g}" for size, rate in curve))
    lines.append("overhead of a call, microseconds: forward, with the gradient in the weight, and with that in x")
    for lowering, form in dict.fromkeys(words(name)[:2] for name in found.overheads):
        each = (found.overhead(lowering, form, passes) * 1e6 for passes in ("", " weight", " back"))
        lines.append(f"  {lowering + form:30s}" + "".join(f"  {us:8.1f}" for us in each))
    return "\n".join(lines)


def _bar(share: float, text: str) -> None:
    """Progress, on the line that is there."""
    done = round(30 * share)
    print(f"\rmeasuring [{'#' * done}{' ' * (30 - done)}] {text:40.40s}", end="", file=sys.stderr, flush=True)
    if share == 1:
        print(file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m gconv.calibrate", description="Measure this machine for plans.")
    parser.add_argument("--show", action="store_true", help="measure nothing, print the rates that plans use")
    if parser.parse_args(argv).show:
        print(table(rates()))
        return
    found = measure(_bar)
    try:
        where = store(found)
    except OSError as error:
        place = path() or "the calibration"
        sys.exit(f"error: cannot write {place}: {error.strerror or error}; GCONV_CALIBRATION=path names another file")
    print(table(found))
    print(f"stored in {where}")
