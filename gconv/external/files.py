"""Crash-safe files: positioned writes, atomic JSON files, .npy headers; memory budgets, and sizes as text.

Files are not memory-mapped for writing: mapped pages count as resident memory, and writing to a map on a full disk
kills the process.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from gconv.arguments import integer, plural, shown
from gconv.errors import first_line

RESERVE = 1 << 24  # bytes of memory for small objects and allocator overhead
HEADER = 128  # bytes of the header of the .npy files written here
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
Progress = Callable[[str, int, int], object]


class DiskError(OSError):
    """Raised if a file cannot be read or written; the message names the file, the reason, and what to do."""


def number_of_bytes(size: int | str) -> int:
    """A size as a number of bytes.

    Raises:
        TypeError, ValueError: if it is neither a positive integer nor a string such as "8GB", "512 MiB" or "1.5g".

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


def format_bytes(size: float) -> str:
    """A number of bytes as text.

    >>> format_bytes(8e9), format_bytes(1.25e6), format_bytes(12)
    ('8 GB', '1.2 MB', '12 B')
    """
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.2g} {unit}" if size < 100 * scale else f"{size / scale:.0f} {unit}"
    return f"{size:.0f} B"


def resident() -> int:
    """The resident memory of this process in bytes (its peak if /proc is not available)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, AttributeError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def budget(memory: int | str, least: int, what: str) -> int:
    """The bytes left of `memory`, the limit of the whole process.

    Raises:
        ValueError: if fewer than `least` bytes are left; the message says how much memory is enough.
    """
    given, held = number_of_bytes(memory), resident()
    left = given - held - RESERVE
    if left < least:
        raise ValueError(
            f"memory={format_bytes(given)} is too little: this process holds {format_bytes(held)} already and "
            f"{what} takes {format_bytes(least)}; give at least {format_bytes((held + least + RESERVE) * 1.02)}."
        )
    return left


def missing_file(path: str | os.PathLike[str]) -> str:
    """A message that says that a path is no file: a folder, or nothing.

    >>> missing_file("x.npy")
    'There is no file x.npy.'
    """
    return f"{path} is a folder, not a file." if os.path.isdir(path) else f"There is no file {path}."


@contextmanager
def removed_on_error(path: Path) -> Iterator[None]:
    """Removes a file that is not finished when an error ends its writing."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        raise


@contextmanager
def using(path: Path, verb: str = "write") -> Iterator[None]:
    """Converts OSErrors to DiskErrors with a message for the user."""
    try:
        yield
    except DiskError:
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        todo = "; completed steps are kept: free disk space and repeat the call to resume" if full else ""
        raise DiskError(f"Cannot {verb} {path}: {(error.strerror or str(error)).lower()}{todo}.") from None


def as_bytes(array: np.ndarray) -> memoryview:
    """The bytes of a contiguous array."""
    return memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]


def array_stamp(array: np.ndarray) -> str:
    """A fingerprint of an array: a hash of its dtype, shape and values."""
    total = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    total.update(as_bytes(np.ascontiguousarray(array)))
    return total.hexdigest()


def write_at(file: int, path: Path, data: np.ndarray | bytes, offset: int) -> int:
    """Write all data at an offset, and return the offset of its end. Raises: DiskError."""
    view = memoryview(data) if isinstance(data, bytes) else as_bytes(np.ascontiguousarray(data))
    with using(path):
        while view:
            done = os.pwrite(file, view[: 1 << 30], offset)
            view, offset = view[done:], offset + done
    return offset


def read_at(file: int, path: Path, out: np.ndarray, offset: int) -> np.ndarray:
    """Fill a contiguous array from a file. Raises: DiskError, also if the file is too short."""
    view = as_bytes(out)
    with using(path, "read"):
        while view:
            done = os.preadv(file, [view[: 1 << 30]], offset)
            if not done:
                raise DiskError(f"Cannot read {path}: it ends at byte {offset}, {plural(len(view), 'byte')} too early.")
            view, offset = view[done:], offset + done
    return out


@contextmanager
def opened(path: Path, write: bool = False) -> Iterator[int]:
    """A file descriptor for reading or writing at any position; files to write are created. Raises: DiskError."""
    with using(path, "write" if write else "read"):
        file = os.open(path, os.O_RDWR | os.O_CREAT if write else os.O_RDONLY, 0o644)
    try:
        yield file
    finally:
        os.close(file)


def sync(file: int, path: Path) -> None:
    """Flush a file to disk. Raises: DiskError."""
    with using(path):
        os.fsync(file)


def header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """The first HEADER bytes of a .npy file in C order (format 1.0)."""
    text = repr({"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape})
    return b"\x93NUMPY\x01\x00" + (HEADER - 10).to_bytes(2, "little") + text.ljust(HEADER - 11).encode() + b"\n"


def read_header(file: Any, name: str) -> tuple[np.dtype, tuple[int, ...], bool, int]:
    """The dtype, shape, Fortran order and data offset of a .npy file.

    Raises:
        ValueError: if it is not a .npy file.
    """
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except (ValueError, EOFError, TokenError, zlib.error) as error:
        raise ValueError(f"{name} is not a .npy file: {first_line(error)}.") from None
    return dtype, shape, fortran, file.tell()


def load(path: Path) -> np.ndarray:
    """A .npy file as a read-only memory map; an empty array if it has no elements, which cannot be mapped."""
    with using(path, "read"):
        with open(path, "rb") as file:
            dtype, shape, _, _ = read_header(file, str(path))
        if prod(shape) == 0:
            return np.empty(shape, dtype)
        try:
            mapped: np.ndarray = np.load(path, mmap_mode="r")
        except ValueError as error:  # it has Python objects, or fewer bytes than its header says
            raise ValueError(f"Cannot read {path}, an array {shape} of {dtype}: {error}.") from None
        return mapped


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically: on failure the previous contents remain. Raises: DiskError."""
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
    """Write a JSON file atomically. Raises: DiskError."""
    write_whole(path, json.dumps(content, indent=1).encode() + b"\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a file written by `write_json`; None if it does not exist. Raises: DiskError, ValueError."""
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
    """Create a folder if necessary and lock it for this process. Raises: DiskError if another process uses it."""
    import fcntl  # available on Linux and macOS

    with using(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with opened(folder / ".lock", write=True) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released even if the process is killed
        except OSError:
            raise DiskError(f"Another process works in {folder}; wait for it or use another folder.") from None
        yield


def check_room(folder: Path, needed: int, what: str) -> None:
    """Check that the disk has enough free space. Raises: DiskError."""
    with using(folder):
        free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskError(f"{what} takes {format_bytes(needed)} in {folder}, but the disk has {format_bytes(free)} left.")
