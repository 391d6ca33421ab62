"""Measure the throughputs of this machine, from which plans predict times.

    python -m gconv.calibrate                 measure for the current number of threads (a minute or so), store, print
    python -m gconv.calibrate --device cuda   the same on a GPU, for the layers that run there
    python -m gconv.calibrate --show          print the throughputs that plans use now

Every throughput is the best of several rounds, so that other processes have little influence; with one thread, CPU time
is measured. The file also keeps the results for other numbers of threads (OMP_NUM_THREADS=1 python -m ... for one
thread) and other devices. A process reads the file once: start it again to use a new calibration.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from gconv.arguments import absence
from gconv.calibrate.calls import overheads as calls
from gconv.calibrate.convolutions import conv, groups, onednn, single
from gconv.calibrate.sections import Steps, gather, gemm, rest, stream
from gconv.calibrate.simplify import simplified
from gconv.plan import take_turns
from gconv.rates import DEVICES, FORMAT, TABLES, TYPES, Curve, Rates, parse, path, read_bounded, words

ROUNDS, LASTS = 5, 3e-3


def device_kind(name: str) -> str:
    """The kind of a device, for example cuda for cuda:1. Raises: ValueError if there is no calibration for it."""
    found = name.split(":")[0]
    if found not in ("cpu", *DEVICES):
        raise ValueError(f"Rates are measured for {', '.join(('cpu', *DEVICES))}, not for {name!r}.")
    return found


def usable(name: str) -> torch.device:
    """The device of a name.

    Raises:
        ValueError: if this torch or this machine has no such device, or there is no calibration for its kind.

    >>> usable("gpu")
    Traceback (most recent call last):
        ...
    ValueError: Rates are measured for cpu, cuda, xpu, not for 'gpu'.
    """
    device_kind(name)
    if reason := absence(name):
        raise ValueError(reason)
    return torch.device(name)


def measure(say: Callable[[float, str], None] = lambda share, text: None, device: str = "cpu") -> Rates:
    """The throughputs of this machine; on the CPU for the current number of threads.

    All sections run in each round, so that temporary load affects at most some of the rounds.

    Args:
        say: called with the fraction that is done, and the name of the next section.
        device: "cpu", "cuda", "cuda:1".

    Raises:
        ValueError: if there is no such device.
    """
    place = usable(device)
    curves: dict[str, Curve] = {}
    torch.zeros(31 << 18)  # freeing 31 MiB raises malloc's mmap threshold, as happens early in any real program
    sections: dict[str, Generator[Steps, dict[str, float], Any]] = {}
    sections |= {f"products in {kind}": gemm(kind) for kind in TYPES}
    sections |= {"convolutions": conv(), "channels by themselves": single()}
    sections |= {f"sparse products, {place} tables": gather(place) for place in TABLES}
    sections |= {"oneDNN": onednn(), "groups": groups(), "streams": stream(), "others": rest(), "calls": calls(curves)}
    here: AbstractContextManager[object] = nullcontext() if place.type == "cpu" else place
    with torch.random.fork_rng([place] if place.type == "cuda" else []), here:  # each section creates its tensors here
        torch.manual_seed(0)
        steps = {name: next(section) for name, section in sections.items()}
    took: dict[str, dict[str, float]] = {name: {} for name in sections}
    for turn in range(ROUNDS):
        for k, name in enumerate(sections):
            say((turn + k / len(sections)) / ROUNDS, name)
            with torch.no_grad():
                now = take_turns(steps[name], 1, LASTS, place)
            took[name] = {step: min(seconds, took[name].get(step, seconds)) for step, seconds in now.items()}
    say(1.0, "done")
    overheads: dict[str, float] = {}
    for name, section in sections.items():
        try:
            section.send(took[name])
        except StopIteration as done:
            (overheads if name == "calls" else curves).update(done.value)
    return simplified(Rates(curves, overheads, "measured now"))


def prepared() -> Path:
    """The path of the calibration file; its folder is created, and the file to lock it, which `store` needs, too.

    Called before anything is measured, so that nobody waits for a result that cannot be written.

    Raises:
        OSError: if the folder cannot be written, or there is no home folder.
    """
    where = path()
    if where is None:
        raise FileNotFoundError(errno.ENOENT, "there is no home folder")
    if where.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    where.parent.mkdir(parents=True, exist_ok=True)
    with open(_lock_of(where), "a"), tempfile.TemporaryFile(dir=where.parent):
        return where


def _lock_of(where: Path) -> Path:
    return where.with_name(f"{where.name}.lock")


def store(found: Rates, device: str = "cpu") -> Path:
    """Write throughputs to the calibration file, which keeps those for other numbers of threads and devices.

    Returns its path.

    The file is replaced atomically, under a lock, so that concurrent calls do not lose results. Who may read it is
    decided by the umask, as for other files: it may be shared.

    Raises:
        OSError: if the file cannot be written, or there is no home folder.
    """
    where = prepared()
    curves = {kind: [[float(f"{number:.4g}") for number in point] for point in c] for kind, c in found.curves.items()}
    overheads = {name: float(f"{seconds:.4g}") for name, seconds in found.overheads.items()}
    with _locked(_lock_of(where)) as lock:
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
            shutil.copymode(lock, trial)  # by the umask; a file of mkstemp is for its owner only
            os.replace(trial, where)
        except BaseException:
            Path(trial).unlink(missing_ok=True)
            raise
    return where


def text(kept: Mapping[str, Mapping[str, Any]]) -> str:
    """The content of a calibration file, one curve or overhead per line."""
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
    """The content of the file for threads and devices; damaged entries, or a damaged or foreign file, are dropped.

    Raises:
        PermissionError: if it may not be read.
    """
    kept: dict[str, dict[str, Any]] = {"threads": {}, "devices": {}}
    try:
        data = json.loads(read_bounded(where))
        if data["format"] != FORMAT:  # numbers of another version may mean something else
            return kept
        entries = [(part, *entry) for part in kept for entry in data.get(part, {}).items()]
    except PermissionError:  # it may hold what others have measured
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return kept
    for part, key, numbers in entries:
        try:
            parse({"format": FORMAT, "threads": {"1": numbers}} | {part: {key: numbers}}, str(where))
        except (ValueError, RecursionError):
            continue
        kept[part][key] = numbers
    return kept


@contextmanager
def _locked(where: Path) -> Iterator[Path]:
    """Hold a lock on a file; does nothing on systems without fcntl. Gives its path."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield where
        return
    with open(where, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
        yield where


def table(found: Rates, device: str = "cpu") -> str:
    """The throughputs as text."""
    where = f"{torch.get_num_threads()} threads" if device == "cpu" else device
    lines = [f"rates from {found.source}, {where}: throughput per second, by size"]
    for kind, curve in found.curves.items():
        lines.append(f"  {kind:22s}" + "".join(f"  {size:>9.9g}: {rate:8.3g}" for size, rate in curve))
    lines.append("overhead of a call, microseconds: forward, with the gradient in the weight, and also in x")
    for lowering, form in dict.fromkeys(words(name)[:2] for name in found.overheads):
        each = (found.overhead(lowering, form, passes) * 1e6 for passes in ("", " weight", " back"))
        lines.append(f"  {lowering + form:30s}" + "".join(f"  {us:8.1f}" for us in each))
    return "\n".join(lines)
