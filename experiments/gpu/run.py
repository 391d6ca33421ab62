"""Checks, timings and training on a GPU, in parts of at most four minutes; with DEVICE=cpu a dry run on the CPU.

    make gpu OUT=DIR PART=tests      operators, analysis and converted layers on the device against the CPU in float64
    make gpu OUT=DIR PART=speed      time and memory against PyG, compiled PyG, torch.sparse and torch
    make gpu OUT=DIR PART=ladder     networks of experiments.images.ladder; DATA=FILE written by experiments.gpu.pack
    make gpu OUT=DIR PART=tests DEVICE=cpu TINY=1        a dry run: a few cases of tiny size

Requires torch, numpy and torch_geometric, and downloads nothing. A part writes DIR/PART.jsonl: a row for the machine,
one for each unit as soon as it is done, and one for the units that did not fit in the time. Exit status 1: a check
failed.
"""

import argparse
import importlib.metadata
import json
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import gconv
from experiments.gpu import checks, rungs, speed
from experiments.gpu.units import PARTS, SECONDS, Mismatch, Options, Unit
from experiments.harness import machine


class OutOfTime(BaseException):
    """Raised when the time of the part is over."""


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise OutOfTime from this block after the given number of seconds, even if code inside catches it."""
    rang = False

    def ring(*_: Any) -> None:
        nonlocal rang
        rang = True
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    except Exception as error:
        if rang:  # compilers wrap exceptions raised inside them
            raise OutOfTime from error
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def about(device: torch.device) -> dict[str, Any]:
    """The row that describes the machine."""
    cuda = device.type == "cuda"
    found: dict[str, Any] = {"device": torch.cuda.get_device_name(device) if cuda else str(device)}
    if cuda:
        found |= {"capability": torch.cuda.get_device_capability(device), "cuda": torch.version.cuda}
        found["memory_gb"] = round(torch.cuda.get_device_properties(device).total_memory / 1e9, 1)
    found |= {"kernels": gconv.backend(), "versions": machine.versions() | {"triton": _triton()}}
    return found | {"hardware": machine.hardware(), "commit": machine.commit()}


def _triton() -> str | None:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return None


def perform(units: Iterable[Unit], options: Options) -> bool:
    """Run the units in order while there is time, and write their rows. Returns: whether none of them failed."""
    options.out.mkdir(parents=True, exist_ok=True)
    end, missed, failed = time.monotonic() + options.seconds, [], 0
    with open(options.out / f"{options.part}.jsonl", "w", encoding="utf-8") as file:

        def write(**row: Any) -> None:
            file.write(json.dumps({"part": options.part, **row}) + "\n")
            file.flush()

        write(name="machine", **about(options.device))
        for unit in units:
            left = end - time.monotonic()
            if left < unit.needs:
                missed.append(unit.name)
                continue
            start = time.perf_counter()
            row: dict[str, Any] = {}
            try:
                with alarm(left):
                    row["metrics"] = unit.run()
            except OutOfTime:
                missed.append(unit.name)
                continue
            except Exception as error:  # continue with the next unit
                failed += 1
                said = str(error) if isinstance(error, Mismatch) else traceback.format_exc(limit=-4)
                row["failed"] = said
                print(f"FAILED {unit.name}: {said}", file=sys.stderr, flush=True)
            write(name=unit.name, seconds=round(time.perf_counter() - start, 3), **row)
            if "metrics" in row:
                print(
                    f"{time.monotonic() - end + options.seconds:6.1f} s  {unit.name}  {_short(row['metrics'])}",
                    flush=True,
                )
        write(name="not reached", units=missed)
    print(f"{failed} failed; not reached in {options.seconds:.0f} s: {', '.join(missed) or 'nothing'}")
    return not failed


def _short(metrics: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value:.4g}" for key, value in metrics.items() if isinstance(value, float))


def parse(argv: list[str] | None = None) -> Options:
    """Parse the command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m experiments.gpu", description=__doc__, formatter_class=form)
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the folder for rows")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"of the part ({SECONDS:g})")
    parser.add_argument("--data", type=Path, help="what experiments.gpu.pack wrote")
    parser.add_argument("--tiny", action="store_true", help="a few units at toy sizes")
    given = parser.parse_args(argv)
    if not 0 < given.seconds <= 86_400:
        parser.error(f"--seconds must be positive and at most a day, 86,400, not {given.seconds:g}")
    if given.data is not None and not given.data.is_file():
        parser.error(f"--data: there is no file {given.data}; python -m experiments.gpu.pack FILE makes one")
    try:
        device = machine.device(given.device)
    except ValueError as error:
        parser.error(str(error))
    try:
        given.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {given.out} cannot be used as a folder: {error.strerror}")
    return Options(**vars(given) | {"device": device})


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    options = parse(argv)
    units = {"tests": checks, "speed": speed, "ladder": rungs}[options.part].units(options)
    if not perform(units, options):
        sys.exit(1)


if __name__ == "__main__":
    main()
