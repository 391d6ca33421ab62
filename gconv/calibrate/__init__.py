"""Measure this machine once, so that plans price work as it does here.

    python -m gconv.calibrate                 measure for the number of threads in use (a minute or so), store, print
    python -m gconv.calibrate --device cuda   the same on a GPU, for the layers that run there
    python -m gconv.calibrate --show          print what plans use now

Every rate is the best of some rounds, so that what else the machine does matters little; with one thread they are
measured in processor time. The file keeps the numbers of other thread counts (OMP_NUM_THREADS=1 python -m ... for one
thread) and devices. Running layers take it up when they are made anew: a process reads it once.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from gconv.arguments import absence
from gconv.calibrate.calls import overheads as calls
from gconv.calibrate.convolutions import apart, conv, onednn, single
from gconv.calibrate.sections import Steps, gather, gemm, rest, stream
from gconv.calibrate.simplify import simplified
from gconv.plan import take_turns
from gconv.rates import DEVICES, FORMAT, TABLES, TYPES, Curve, Rates, parse, path, read_bounded, words

ROUNDS, LASTS = 5, 3e-3


def usable(name: str) -> torch.device:
    """The device of a name.

    Raises:
        ValueError: if this torch or this machine has no such device, or there is no calibration for its kind.

    >>> usable("gpu")
    Traceback (most recent call last):
        ...
    ValueError: Rates are measured for cpu, cuda, xpu, not for 'gpu'.
    """
    if name.split(":")[0] not in ("cpu", *DEVICES):
        raise ValueError(f"Rates are measured for {', '.join(('cpu', *DEVICES))}, not for {name!r}.")
    if reason := absence(name):
        raise ValueError(reason)
    return torch.device(name)


def measure(say: Callable[[float, str], None] = lambda share, text: None, device: str = "cpu") -> Rates:
    """The rates of this machine, on the CPU for the number of threads in use.

    Everything has its turn in each of the rounds, so that what else the machine does for a while matters little.

    Args:
        say: is told which share is done, and what comes next.
        device: where: "cpu", "cuda", "cuda:1".

    Raises:
        ValueError: if there is no such device.
    """
    place = usable(device)
    curves: dict[str, Curve] = {}
    torch.zeros(31 << 18)  # 31 MiB, given back at once: from then on the allocator keeps what it has, as it soon does
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    sections: dict[str, Generator[Steps, dict[str, float], Any]] = {}
    sections |= {f"products in {kind}": gemm(kind) for kind in TYPES}
    sections |= {"convolutions": conv(), "channels by themselves": single()}
    sections |= {f"sparse products, {place} tables": gather(place) for place in TABLES}
    sections |= {"oneDNN": onednn(), "groups": apart(), "streams": stream(), "the rest": rest(), "calls": calls(curves)}
    here: AbstractContextManager[object] = nullcontext() if place.type == "cpu" else place
    with here:  # where each section makes its tensors, before the clock runs
        steps = {name: next(section) for name, section in sections.items()}
    took: dict[str, dict[str, float]] = {name: {} for name in sections}
    for turn in range(ROUNDS):
        for k, name in enumerate(sections):
            say((turn + k / len(sections)) / ROUNDS, name)
            with torch.no_grad():
                now = take_turns(steps[name], 1, LASTS, place)
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


def store(found: Rates, device: str = "cpu") -> Path:
    """Put rates into the calibration's file, which keeps those of other numbers of threads and devices.

    Returns its path.

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
        kept = _stored(where)
        kind = device.split(":")[0]
        part, key = ("threads", str(torch.get_num_threads())) if kind == "cpu" else ("devices", kind)
        kept[part][key] = {"curves": curves, "overheads": overheads}
        handle, trial = tempfile.mkstemp(prefix=f"{where.name}.", suffix=".tmp", dir=where.parent)
        try:
            with open(handle, "w", encoding="utf-8") as file:
                file.write(text(kept))
                file.flush()
                os.fsync(file.fileno())
            os.replace(trial, where)
        except BaseException:
            Path(trial).unlink(missing_ok=True)
            raise
    return where


def text(kept: Mapping[str, Mapping[str, Any]]) -> str:
    """A calibration's file, a curve or an overhead a line."""
    entries = {part: ",\n".join(f"{json.dumps(key)}: {_lines(n)}" for key, n in kept[part].items()) for part in kept}
    parts = (f'"{part}": {{\n{lines}}}' for part, lines in entries.items() if lines)
    return f'{{"format": {FORMAT}, ' + ", ".join(parts) + "}\n"


def _lines(numbers: Mapping[str, Any]) -> str:
    named = (
        f'"{part}": {{\n' + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in numbers[part].items()) + "}"
        for part in ("curves", "overheads")
    )
    return "{" + ",\n".join(named) + "}"


def _stored(where: Path) -> dict[str, dict[str, Any]]:
    """What the file holds for threads and devices; a damaged entry, or a damaged file, is dropped."""
    kept: dict[str, dict[str, Any]] = {"threads": {}, "devices": {}}
    try:
        data = json.loads(read_bounded(where))
        entries = [(part, *entry) for part in kept for entry in data.get(part, {}).items()]
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return kept
    for part, key, numbers in entries:
        try:
            parse({"format": FORMAT, "threads": {"1": numbers}} | {part: {key: numbers}}, str(where))
        except (ValueError, RecursionError):
            continue
        kept[part][key] = numbers
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


def table(found: Rates, device: str = "cpu") -> str:
    """The rates as text."""
    where = f"{torch.get_num_threads()} threads" if device == "cpu" else device
    lines = [f"rates from {found.source}, {where}; a second, by size"]
    for kind, curve in found.curves.items():
        lines.append(f"  {kind:22s}" + "".join(f"  {size:>9.9g}: {rate:8.3g}" for size, rate in curve))
    lines.append("overhead of a call, microseconds: forward, with the gradient in the weight, and with that in x")
    for lowering, form in dict.fromkeys(words(name)[:2] for name in found.overheads):
        each = (found.overhead(lowering, form, passes) * 1e6 for passes in ("", " weight", " back"))
        lines.append(f"  {lowering + form:30s}" + "".join(f"  {us:8.1f}" for us in each))
    return "\n".join(lines)
