"""Files that survive a kill and a full disk: positioned writes, JSON, .npy headers; a memory budget, sizes in words.

Nothing is memory-mapped: pages of a map count as resident memory, and writing to one on a full disk ends the process.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from gconv.arguments import integer, shown

RESERVE = 1 << 24  # bytes of memory for small objects, and what the C library keeps
HEADER = 128  # bytes of the header of every .npy file written here
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
Progress = Callable[[str, int, int], object]


class DiskError(OSError):
    """A file can't be read or written; the message names it, the reason, and what to do."""


def number_of_bytes(size: int | str) -> int:
    """A size as a number of bytes.

    Raises:
        TypeError, ValueError: if it is neither a positive integer nor a text such as "8GB", "512 MiB" or "1.5g".

    >>> number_of_bytes("8GB"), number_of_bytes("1.5 GiB"), number_of_bytes(1000)
    (8000000000, 1610612736, 1000)
    """
    if not isinstance(size, str):
        return integer(size, "memory", 1)
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(|[kmgt]i?)b?", size.strip().lower())
    count = int(float(found[1]) * UNITS[found[2]]) if found else 0
    if not count:
        raise ValueError(f'memory is a size such as "8GB" or "512MiB", but it is {shown(size)}.')
    return count


def in_words(size: float) -> str:
    """
    >>> in_words(8e9), in_words(1.25e6), in_words(12)
    ('8 GB', '1.2 MB', '12 B')
    """
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.2g} {unit}" if size < 100 * scale else f"{size / scale:.0f} {unit}"
    return f"{size:.0f} B"


def resident() -> int:
    """Bytes of memory that this process holds now (its peak where /proc is absent)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, AttributeError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def budget(memory: int | str, least: int, what: str) -> int:
    """What is left of `memory`, which is for the whole process, at least the `least` bytes that something needs.

    Raises:
        ValueError: if too little is left; the message says how much memory is enough.
    """
    given, held = number_of_bytes(memory), resident()
    left = given - held - RESERVE
    if left < least:
        raise ValueError(
            f"memory={in_words(given)} is too little: this process holds {in_words(held)} already and {what} takes "
            f"{in_words(least)}; give at least {in_words((held + least + RESERVE) * 1.02)}."
        )
    return left


@contextmanager
def using(path: Path, verb: str = "write") -> Iterator[None]:
    """Turns errors of the system into a DiskError of one sentence."""
    try:
        yield
    except DiskError:
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        todo = "; what is done stays valid: make room and repeat the same call to go on" if full else ""
        raise DiskError(f"Can't {verb} {path}: {(error.strerror or str(error)).lower()}{todo}.") from None


def as_bytes(array: np.ndarray) -> memoryview:
    """The memory of an array without gaps."""
    return memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]


def write_at(file: int, path: Path, data: np.ndarray | bytes, offset: int) -> int:
    """Write all of it, and return where it ends. Raises: DiskError."""
    view = memoryview(data) if isinstance(data, bytes) else as_bytes(np.ascontiguousarray(data))
    with using(path):
        while view:
            done = os.pwrite(file, view[: 1 << 30], offset)
            view, offset = view[done:], offset + done
    return offset


def read_at(file: int, path: Path, out: np.ndarray, offset: int) -> np.ndarray:
    """Fill an array, without gaps, from a file. Raises: DiskError, where the file ends too early as well."""
    view = as_bytes(out)
    with using(path, "read"):
        while view:
            done = os.preadv(file, [view[: 1 << 30]], offset)
            if not done:
                raise DiskError(f"Can't read {path}: it ends at byte {offset}, {len(view)} bytes too early.")
            view, offset = view[done:], offset + done
    return out


@contextmanager
def opened(path: Path, write: bool = False) -> Iterator[int]:
    """A descriptor of a file, to read from or to write at any place; a missing one is made. Raises: DiskError."""
    with using(path, "write" if write else "read"):
        file = os.open(path, os.O_RDWR | os.O_CREAT if write else os.O_RDONLY, 0o644)
    try:
        yield file
    finally:
        os.close(file)


def sync(file: int, path: Path) -> None:
    """Wait until what was written is on the disk. Raises: DiskError."""
    with using(path):
        os.fsync(file)


def header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """The first HEADER bytes of a .npy file in C order (format 1.0)."""
    text = repr({"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape})
    return b"\x93NUMPY\x01\x00" + (HEADER - 10).to_bytes(2, "little") + text.ljust(HEADER - 11).encode() + b"\n"


def read_header(file: Any, name: str) -> tuple[np.dtype, tuple[int, ...], bool, int]:
    """Of a .npy file: dtype, shape, whether it is in Fortran order, and where the numbers begin.

    Raises:
        ValueError: if it is no .npy file.
    """
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except (ValueError, EOFError, TokenError) as error:
        raise ValueError(f"{name} is no .npy file: {str(error).splitlines()[0]}.") from None
    return dtype, shape, fortran, file.tell()


def load(path: Path) -> np.ndarray:
    """A .npy file as a read-only memory map; an array without numbers as it is."""
    with using(path, "read"):
        with open(path, "rb") as file:
            dtype, shape, _, _ = read_header(file, str(path))
        if prod(shape) == 0:
            return np.empty(shape, dtype)
        mapped: np.ndarray = np.load(path, mmap_mode="r")
        return mapped


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole, or leave what was there. Raises: DiskError."""
    trial = path.with_name(f"{path.name}.new")
    try:
        with opened(trial, write=True) as file:
            with using(trial):
                os.ftruncate(file, 0)
            write_at(file, trial, content, 0)
            sync(file, trial)
        with using(path):
            os.replace(trial, path)
    except DiskError:
        trial.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file whole, or leave what was there. Raises: DiskError."""
    write_whole(path, json.dumps(content, indent=1).encode() + b"\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """What `write_json` wrote; None where there is no file. Raises: DiskError, ValueError."""
    try:
        with using(path, "read"):
            text = path.read_bytes() if path.exists() else None
        content = None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        content = 0
    if not (content is None or isinstance(content, dict)):
        raise ValueError(f"{path} was not written by gconv, or is damaged; delete it to start again.")
    return content


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder, made if there is none, for this process alone. Raises: DiskError if another one works in it."""
    import fcntl  # Linux and macOS have it

    with using(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with opened(folder / ".lock", write=True) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when the process ends, however it does
        except OSError:
            raise DiskError(f"Another process works in {folder}; wait for it, or give another folder.") from None
        yield


def check_room(folder: Path, needed: int, what: str) -> None:
    """Refuse to start what the disk has no room for. Raises: DiskError."""
    with using(folder):
        free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskError(f"{what} takes {in_words(needed)} in {folder}, but the disk has {in_words(free)} left.")
