"""Signals on disk, one row per node: features read by ranges of rows, and results for a DataLoader."""

from __future__ import annotations

import mmap
import os
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from gconv.arguments import checked, plural, shown
from gconv.external.edges import BOM, TEXT, ArrayFile, open_text, split_member, stamp
from gconv.external.files import (
    HEADER,
    DiskError,
    array_stamp,
    header,
    load,
    missing_file,
    opened,
    removed_on_error,
    sync,
    using,
    write_at,
)

LINES = 1 << 22  # bytes of text read at a time


def as_array(x: Any) -> np.ndarray:
    """A tensor or array as an array on the CPU; bfloat16, which numpy lacks, as float32. Raises: TypeError."""
    if not isinstance(x, Tensor):
        return np.asarray(x)
    x = x.detach().cpu()
    try:
        found: np.ndarray = (x.float() if x.dtype == torch.bfloat16 else x).numpy()
    except TypeError as error:
        raise TypeError(f"The signal must be a dense tensor, but it is {shown(x)}: {error}") from None
    return found


def file_of(x: Any) -> Path | None:
    """The .npy file that an array maps as a whole; None for a part of it, another view, or another kind of file."""
    if not isinstance(x.base, mmap.mmap) or not x.filename:
        return None
    try:
        whole = load(Path(x.filename))
    except (DiskError, ValueError):
        return None
    same = isinstance(whole, np.memmap) and (whole.offset, whole.shape, whole.strides) == (x.offset, x.shape, x.strides)
    return Path(x.filename) if same and whole.dtype == x.dtype else None


class Features:
    """A signal (n, c), read by ranges of rows.

    Args:
        x: the path of a .npy or .npz file ("data.npz:node_feat"), a tensor or an array, real numbers (n, c).

    Raises:
        TypeError, ValueError: if it is not such an array.
        DiskError: if the file cannot be read.
    """

    def __init__(self, x: Any) -> None:
        self.file: ArrayFile | None = None
        if isinstance(x, Tensor | np.ndarray):
            self.array = as_array(x)
            self.name, self.shape, dtype = "x", self.array.shape, self.array.dtype
        elif isinstance(x, str | os.PathLike):
            path, member = split_member(x)
            if not path.is_file():
                raise DiskError(missing_file(path))
            if path.suffix not in (".npy", ".npz"):
                raise ValueError(f"{path}: features must be a .npy or .npz file; features_from_text converts text.")
            self.file = ArrayFile(path, member or "node_feat")
            self.name, self.shape, dtype = self.file.name, self.file.shape, self.file.dtype
            if self.file.fortran and min(self.shape, default=0) > 1:
                raise ValueError(f"{self.name} is in Fortran order; save it in C order, with numpy.ascontiguousarray.")
        else:
            raise TypeError(f"x must be a path, a tensor or an array (n, c), but it is {shown(x)}.")
        if len(self.shape) != 2 or dtype.kind not in "fiu" or not self.shape[1]:
            raise ValueError(
                f"{self.name}: features must be real numbers (n, c), c >= 1, but it is {dtype} of shape {self.shape}."
            )
        self.dtype = dtype

    @property
    def fingerprint(self) -> str:
        """A string that identifies the values."""
        if self.file is not None:
            return f"{stamp(self.file.path)}-{self.file.member}"
        return array_stamp(self.array)

    def read(self, first: int, last: int, stream: int = 0) -> np.ndarray:
        """The rows first to last - 1. Raises: DiskError."""
        if self.file is None:
            return self.array[first:last]
        c = self.shape[1]
        return self.file.read(first * c, last * c, stream).reshape(-1, c)


@checked
def features_from_text(path: str | os.PathLike[str], out: str | os.PathLike[str]) -> Path:
    """Convert text (or .gz), one line per node with numbers separated by commas or whitespace, to a float32 .npy file.

    Raises:
        ValueError: if a line does not have as many numbers as the first one, or a number is too large for float32; the
            message has the line number. Also if there are no lines, or out is the text itself.
        DiskError: if a file cannot be read or written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "x.csv").write_text("1,2\\n3,4.5\\n")
    ...     np.load(features_from_text(f"{folder}/x.csv", f"{folder}/x.npy"))
    array([[1. , 2. ],
           [3. , 4.5]], dtype=float32)
    """
    path, out, line, columns = Path(path), Path(out), 0, 0
    trial = out.with_name(f"{out.name}.part")
    with using(path, "read"):
        if out.exists() and path.samefile(out):
            raise ValueError(f"out must be another file than the text, but both are {path}.")
        source = open_text(path)
    with source, removed_on_error(trial), opened(trial, write=True) as file:
        end = HEADER
        while True:
            try:
                with using(path, "read"):
                    text = source.read(LINES)
                    text += source.readline()
            except (EOFError, zlib.error) as error:
                raise DiskError(f"Cannot read {path}: it is damaged ({error}).") from None
            if not text:
                break
            lines = (text if line else text.removeprefix(BOM)).splitlines()
            columns = columns or len(lines[0].replace(b",", b" ").split())
            parsed = [_numbers(row, columns, f"{path}, line {line + i}") for i, row in enumerate(lines, 1)]
            values = np.array(parsed)
            with np.errstate(over="ignore"):
                rows = values.astype(np.float32)
            if len(lost := np.argwhere(np.isinf(rows) & np.isfinite(values))):
                at, column = lost[0]
                raise ValueError(f"{path}, line {line + at + 1}: {values[at, column]:g} is too large for float32.")
            end, line = write_at(file, trial, rows, end), line + len(lines)
        if not line:
            raise ValueError(f"{path} is empty; expected one line of numbers per node.")
        write_at(file, trial, header(np.dtype("<f4"), (line, columns)), 0)
        with using(trial):
            os.ftruncate(file, end)
        sync(file, trial)
    with using(out):
        os.replace(trial, out)
    return out


def _numbers(line: bytes, count: int, where: str) -> list[float]:
    try:
        row = list(map(float, line.split(b",") if b"," in line else line.split()))
    except ValueError:
        row = []
    if len(row) != count or not count or b"_" in line:  # Python reads 1_0 as 10
        given = line[:40].decode(errors="replace")
        wanted = "one number" if count == 1 else f"{count} numbers" if count else "numbers"
        more = " (if it is a header, delete it)" if where.endswith("line 1") and not re.search(rb"\d", line) else ""
        raise ValueError(f"{where}: expected {wanted}, but the line is {given!r}{more}.")
    return row


def is_text(path: str | os.PathLike[str]) -> bool:
    """Whether a file is text, compressed or not, by its extension."""
    return os.fspath(path).removesuffix(".gz").endswith(TEXT)


class Rows(Dataset[tuple[Tensor, ...]]):
    """A torch Dataset of rows of signals on disk, such as the powers written by `propagate`.

    Meaning: sample i consists of the rows of all signals for node index[i], concatenated, and its label. A DataLoader
    reads one minibatch at a time, and nothing else is in memory. Each worker opens the files itself. Pages that were
    read are in the system's page cache, which is released on demand but may be counted as memory of the process.

    Args:
        signals: arrays (n, c) or paths of .npy files.
        index: (m,) node indices, for example of the training set (for a mask: mask.nonzero()[:, 0]); None for all.
        y: (n,) labels of all nodes, or None.

    Raises:
        TypeError, ValueError: if signals, index or labels have the wrong type or do not match.

    >>> from torch.utils.data import DataLoader
    >>> rows = Rows([np.eye(4, dtype="f4"), np.ones((4, 1), "f4")], index=[3, 1], y=torch.arange(4))
    >>> next(iter(DataLoader(rows, batch_size=2)))
    [tensor([[0., 0., 0., 1., 1.],
            [0., 1., 0., 0., 1.]]), tensor([3, 1])]
    """

    @checked
    def __init__(self, signals: Sequence[Any], index: Any = None, y: Tensor | None = None) -> None:
        if isinstance(signals, str | os.PathLike):
            raise TypeError(f"signals must be a list of arrays and paths, but it is {shown(signals)}.")
        self.sources = [(file_of(s) or s) if isinstance(s, np.memmap) else s for s in signals]
        self._open()
        if not self.signals or {s.ndim for s in self.signals} != {2} or len({s.shape[0] for s in self.signals}) > 1:
            raise ValueError(f"signals must be (n, c) with the same n, but they are {[s.shape for s in self.signals]}.")
        try:
            torch.from_numpy(np.empty(0, np.result_type(*self.signals)))
        except TypeError:
            kinds = ", ".join(str(s.dtype) for s in self.signals)
            raise TypeError(f"signals must be numbers of a type that torch has, but they are {kinds}.") from None
        n = self.signals[0].shape[0]
        found = torch.arange(n) if index is None else _tensor(index, "index must be a sequence of node indices")
        if found.dtype == torch.bool:
            raise TypeError("index must contain node indices, but it is a mask: give mask.nonzero()[:, 0].")
        whole = not (found.is_floating_point() or found.is_complex())
        self.index = found.reshape(-1).to("cpu", torch.int64)  # torch takes uint8 for a mask
        if len(self.index) and not (whole and 0 <= int(self.index.min()) <= int(self.index.max()) < n):
            raise ValueError(f"index must contain node indices, 0 to {n - 1}.")
        self.y = None if y is None else _tensor(y, "y must be a tensor of labels or None")
        if self.y is not None and (not self.y.ndim or len(self.y) != n):
            raise ValueError(f"y must have {plural(n, 'label')}, one per row of the signals, but it is {shown(y)}.")

    @property
    def channels(self) -> int:
        """The number of channels of all signals together."""
        return sum(s.shape[1] for s in self.signals)

    def _open(self) -> None:
        self.signals = [load(Path(s)) if isinstance(s, str | os.PathLike) else as_array(s) for s in self.sources]

    def __len__(self) -> int:
        return len(self.index)

    @checked
    def batch(self, places: Sequence[int] | Tensor) -> tuple[Tensor, ...]:
        """(len(places), c) the rows of the nodes index[places], and their labels if there are any.

        Raises:
            TypeError, ValueError, IndexError: if places are not indices of samples.
        """
        found = _tensor(places, "places must be a sequence of indices")
        if found.numel() and (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool):
            raise TypeError(f"places must be a sequence of indices, but they are {found.dtype}.")
        at = self.index[found.to("cpu", torch.int64)]
        if at.ndim != 1:
            raise ValueError(f"places must be a sequence of indices, but its shape is {tuple(at.shape)}.")
        order = np.argsort(at.numpy(), kind="stable")  # read in file order
        nodes = at.numpy()[order]
        x = np.empty((len(nodes), self.channels), np.result_type(*(s.dtype for s in self.signals)))
        x[order] = np.concatenate([s[nodes] for s in self.signals], 1)
        rows = torch.from_numpy(x)
        return (rows,) if self.y is None else (rows, self.y[at])

    def __getitems__(self, places: list[int]) -> list[tuple[Tensor, ...]]:
        return list(zip(*self.batch(places), strict=True))

    def __getitem__(self, place: int) -> tuple[Tensor, ...]:
        return tuple(part[0] for part in self.batch([place]))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "signals": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


def _tensor(values: Any, expected: str) -> Tensor:
    """Labels or indices as a tensor. Raises: TypeError."""
    try:
        return values if isinstance(values, Tensor) else torch.tensor(np.asarray(values))
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{expected}, but it is {shown(values)}.") from None
