"""Edge lists larger than memory, read in chunks: .npy and .npz arrays, raw pairs, text, and tensors.

An edge source has a method `chunks(position, most)`, which yields chunks of at most `most` edges from a position on, as
int64 sources and targets with the position after the chunk. A position is a JSON-serialisable list of integers.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from gconv.arguments import plural, shown
from gconv.external.files import DiskError, array_stamp, as_bytes, missing_file, read_header, using

Position = list[int]
Chunk = tuple[Position, np.ndarray, np.ndarray]
RAW = {".i32": np.dtype("<i4"), ".i64": np.dtype("<i8")}
TEXT = (".txt", ".csv", ".tsv", ".edges", ".el")
LINES = 1 << 23  # bytes of text read at a time
BOM = b"\xef\xbb\xbf"  # with which some programs start a text file
DIGITS = 18  # number of decimal digits that always fit int64


class EdgeSource(Protocol):
    """The interface of edge sources."""

    name: str

    @property
    def count(self) -> int | None:
        """The number of edges; None if it is unknown before reading."""

    @property
    def fingerprint(self) -> str:
        """A string that identifies the edges."""

    def chunks(self, position: Position, most: int) -> Iterator[Chunk]:
        """Chunks of the edges after a position; [] for all edges."""

    def where(self, start: Position, number: int) -> str:
        """A description of the location of edge `number` of the chunk that starts at a position."""


def open_edges(edges: Any) -> EdgeSource:
    """An edge source for a file, tensor or array.

    Args:
        edges: a path, or a tensor or array (2, e) like PyG's edge_index. Formats by file extension:
            .npy: integers (2, e) or (e, 2);
            .npz: such an array named edge_index, or NAME as in "data.npz:NAME";
            .i32, .i64: pairs of little-endian integers without a header;
            .txt, .csv, .tsv, .edges, .el: one edge per line, two integers separated by space, tab or comma; lines
            starting with # or % are comments. These may be compressed, with an additional .gz.

    Raises:
        TypeError, ValueError: if it is none of these, or the array does not contain edges.
        DiskError: if the file cannot be read.
    """
    if isinstance(edges, Tensor | np.ndarray):
        array = edges.detach().cpu().numpy() if isinstance(edges, Tensor) else edges
        return _Given(array)
    if not isinstance(edges, str | os.PathLike):
        raise TypeError(f"edges must be a path or a tensor (2, e), but it is {shown(edges)}.")
    path, member = split_member(edges)
    with using(path, "read"):
        if not path.is_file():
            raise DiskError(missing_file(path))
        path.open("rb").close()
    ends = path.suffixes[-1:] if path.suffix != ".gz" else path.suffixes[-2:-1]
    ending = ends[0] if ends else ""
    if path.suffix in (".npy", ".npz"):
        return _Pairs(ArrayFile(path, member or "edge_index"))
    if path.suffix in RAW:
        return _Pairs(ArrayFile(path, raw=RAW[path.suffix]))
    if ending in TEXT:
        return _Lines(path)
    raise ValueError(f"{path}: edges must be in a .npy, .npz, .i32, .i64 or {', '.join(TEXT)} file (or .gz of text).")


def split_member(path: str | os.PathLike[str]) -> tuple[Path, str]:
    """The path, and the array name after a colon for .npz files.

    >>> split_member("data.npz:node_feat")[1], split_member("edges.npy")[1]
    ('node_feat', '')
    """
    text = os.fspath(path)
    found = re.fullmatch(r"(.*\.npz):(\w+)", text)
    return (Path(found[1]), found[2]) if found else (Path(text), "")


def open_text(path: Path) -> Any:
    """A text file, compressed or not, opened for reading bytes."""
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def stamp(path: Path) -> str:
    """A fingerprint of a file: its size, modification time and a hash of the first megabyte."""
    with using(path, "read"), path.open("rb") as file:
        start = hashlib.sha256(file.read(1 << 20)).hexdigest()[:16]
        known = os.fstat(file.fileno())
    return f"{known.st_size}-{known.st_mtime_ns}-{start}"


class ArrayFile:
    """An array in a .npy file, in a (compressed) .npz archive, or in a raw file of integer pairs.

    `read` returns a range of elements in file order, without memory mapping.
    """

    shape: tuple[int, ...]

    def __init__(self, path: Path, member: str = "", raw: Any = None) -> None:
        self.path, self.member, self._files = path, member if path.suffix == ".npz" else "", dict[int, Any]()
        self.name = f"{path}:{self.member}" if self.member else str(path)
        if raw is not None:
            size = path.stat().st_size
            if size % (2 * raw.itemsize):
                raise ValueError(
                    f"{path} must contain pairs of {raw.itemsize}-byte integers, but its size of {size} bytes is not a "
                    f"multiple of {2 * raw.itemsize}: it is truncated after byte "
                    f"{size // (2 * raw.itemsize) * 2 * raw.itemsize}."
                )
            self.dtype, self.shape, self.fortran, self.start = raw, (size // (2 * raw.itemsize), 2), False, 0
            return
        self.dtype, self.shape, self.fortran, self.start = read_header(self._file(0), self.name)
        if self.dtype.hasobject:
            raise ValueError(f"{self.name} must contain numbers, but it contains Python objects.")
        have, need = self._length(), self.start + math.prod(self.shape) * self.dtype.itemsize
        if have < need:
            raise ValueError(f"{self.name} is truncated: it has {have} bytes, but an array {self.shape} takes {need}.")

    def _file(self, stream: int) -> Any:
        """The file object of a stream: sequential readers at different positions use separate ones."""
        if stream not in self._files:
            with using(self.path, "read"):
                self._files[stream] = self._opened_member() if self.member else self.path.open("rb")
        return self._files[stream]

    def _opened_member(self) -> Any:
        with self._archive() as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            if self.member not in names:
                raise ValueError(f"{self.path} has no array {self.member}; it has {', '.join(names)}.")
            return archive.open(f"{self.member}.npy")  # stays open without the archive

    def _length(self) -> int:
        if not self.member:
            return self.path.stat().st_size
        with self._archive() as archive:
            return archive.getinfo(f"{self.member}.npy").file_size

    def _archive(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.path)
        except zipfile.BadZipFile:
            raise ValueError(f"{self.path} is not a .npz archive, or is truncated.") from None

    def read(self, first: int, last: int, stream: int = 0) -> np.ndarray:
        """The elements from first to last - 1. Raises: DiskError."""
        file, out = self._file(stream), np.empty(last - first, self.dtype)
        with using(self.path, "read"):
            try:
                file.seek(self.start + first * self.dtype.itemsize)
                view = as_bytes(out)
                while view:
                    done = file.readinto(view)
                    if not done:
                        raise DiskError(f"Cannot read {self.name}: it ends {plural(len(view), 'byte')} too early.")
                    view = view[done:]
            except (zipfile.BadZipFile, EOFError, zlib.error) as error:
                raise DiskError(f"Cannot read {self.name}: it is damaged ({error}).") from None
        return out

    def __del__(self) -> None:
        for file in self.__dict__.get("_files", {}).values():
            file.close()


def _as_int64(values: np.ndarray) -> np.ndarray:
    return values if values.dtype == np.int64 else values.astype(np.int64)  # a uint64 beyond int64 becomes negative


class _Pairs:
    """Edges in a file as an array (2, e) or (e, 2)."""

    def __init__(self, array: ArrayFile) -> None:
        shape = array.shape
        if array.dtype.kind not in "iu" or len(shape) != 2 or 2 not in shape:
            raise ValueError(
                f"{array.name}: edges must be integers of shape (2, e) or (e, 2), but they are {array.dtype} of shape "
                f"{shape}."
            )
        self.array, self.name = array, array.name
        self.count = max(shape) if min(shape) == 2 else math.prod(shape) // 2
        self.apart = (shape[0] == 2) != array.fortran  # whether all sources precede all targets in the file

    @property
    def fingerprint(self) -> str:
        return f"{stamp(self.array.path)}-{self.array.member}"

    def chunks(self, position: Position, most: int) -> Iterator[Chunk]:
        for first in range(position[0] if position else 0, self.count, most):
            last = min(self.count, first + most)
            if self.apart:
                source = self.array.read(first, last)
                target = self.array.read(self.count + first, self.count + last, 1)
            else:
                source, target = self.array.read(2 * first, 2 * last).reshape(-1, 2).T
            yield [last], _as_int64(source), _as_int64(target)

    def where(self, start: Position, number: int) -> str:
        edge = (start[0] if start else 0) + number
        place = edge if self.apart else 2 * edge
        return f"{self.name}, edge {edge} (byte {self.array.start + place * self.array.dtype.itemsize})"


class _Given:
    """Edges in memory."""

    name = "the edges"

    def __init__(self, array: np.ndarray) -> None:
        if array.dtype.kind not in "iu" or array.ndim != 2 or array.shape[0] != 2:
            raise ValueError(f"edges must be integers (2, e), but they are {array.dtype} of shape {array.shape}.")
        self.array, self.count = array, array.shape[1]

    @property
    def fingerprint(self) -> str:
        return array_stamp(self.array)

    def chunks(self, position: Position, most: int) -> Iterator[Chunk]:
        for first in range(position[0] if position else 0, self.count, most):
            part = self.array[:, first : first + most]
            yield [first + part.shape[1]], _as_int64(part[0]), _as_int64(part[1])

    def where(self, start: Position, number: int) -> str:
        return f"{self.name}, column {(start[0] if start else 0) + number}"


class _Lines:
    """Edges as lines of text; a position is a byte offset and the number of lines before it."""

    count = None

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)

    @property
    def fingerprint(self) -> str:
        return stamp(self.path)

    def chunks(self, position: Position, most: int) -> Iterator[Chunk]:
        byte, line = position or (0, 0)
        with using(self.path, "read"), open_text(self.path) as file:
            file.seek(byte)
            while True:
                text = self._read(file, min(LINES, max(64, most)))
                if not text:
                    return
                source, target = _parse(text, self.name, line)
                byte, line = byte + len(text), line + text.count(b"\n")
                yield [byte, line], source, target

    def _read(self, file: io.BufferedIOBase, most: int) -> bytes:
        try:
            text = file.read(most)
            return text + file.readline() if text and not text.endswith(b"\n") else text
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DiskError(f"Cannot read {self.name}: it is damaged ({error}).") from None

    def where(self, start: Position, number: int) -> str:
        byte, line = start or (0, 0)
        with using(self.path, "read"), open_text(self.path) as file:
            file.seek(byte)
            for text in file:
                line += 1
                number -= _is_edge(text)
                if number < 0:
                    break
        return f"{self.name}, line {line}"


_PLAIN = b"0123456789 \t\n,"


def _is_edge(line: bytes) -> bool:
    text = line.removeprefix(BOM).strip()
    return bool(text) and text[:1] not in b"#%"


def _parse(text: bytes, name: str, lines: int) -> tuple[np.ndarray, np.ndarray]:
    """The edges in complete lines of text, preceded by `lines` others. Raises: ValueError with the line number.

    >>> _parse(b"0 1\\n5,2\\n", "edges.txt", 0)
    (array([0, 5]), array([1, 2]))
    """
    text = (text if lines else text.removeprefix(BOM)).replace(b"\r\n", b"\n")
    if not text.translate(None, _PLAIN):
        found = _parse_plain(text)
        if found is not None:
            return found
    pairs = []  # the slow path, for comments and error messages
    for number, line in enumerate(text.splitlines(), lines + 1):
        if not _is_edge(line):
            continue
        fields = line.split(b",") if b"," in line else line.split()
        try:
            if len(fields) != 2:
                raise ValueError
            pair = tuple(map(_number, fields))
        except ValueError:
            more = " (weights are not supported: keep the first two columns)" if len(fields) > 2 else ""
            if number == 1 and not re.search(rb"\d", line):
                more = " (if it is a header, delete it)"
            given = line[:40].decode(errors="replace")
            raise ValueError(
                f"{name}, line {number}: an edge must be two integers, but the line is {given!r}{more}."
            ) from None
        pairs.append(pair)
    source, target = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return source, target


def _number(field: bytes) -> int:
    if not re.fullmatch(rb"\s*-?\d{1,18}\s*", field):
        raise ValueError
    return int(field)


def _parse_plain(text: bytes) -> tuple[np.ndarray, np.ndarray] | None:
    """The edges in text that consists of digits and separators; None unless each line is empty or well formed."""
    data = np.frombuffer(text, np.uint8)
    digit = data >= ord("0")
    edge = np.diff(digit, prepend=False, append=False)
    start, stop = np.flatnonzero(edge).reshape(-1, 2).T
    if len(start) % 2 or (len(start) and int((stop - start).max()) > DIGITS):
        return None
    newline = np.flatnonzero(data == ord("\n"))
    line = np.searchsorted(newline, start)
    if (line[0::2] != line[1::2]).any() or (np.diff(line[0::2]) < 1).any():
        return None
    comma = np.flatnonzero(data == ord(","))
    if len(comma):  # at most one between two numbers
        pair = np.searchsorted(start[1::2], comma)
        if pair[-1] >= len(start) // 2 or (np.diff(pair) < 1).any() or (comma < stop[0::2][pair]).any():
            return None
    numbers = np.fromstring(text.replace(b",", b" ").decode("ascii"), np.int64, sep=" ")
    return numbers[0::2], numbers[1::2]
