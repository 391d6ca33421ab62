r"""Reading other people's pickles without running them.

CIFAR-10 and Planetoid are published as pickles, and unpickling runs whatever code the file names. Here the few globals
that the official files need (numpy arrays, scipy csr matrices, `defaultdict(list)`) are mapped to inert *records* that
only remember what the file said; every other global is refused. `array` and `csr` then check a record and build the
numpy array themselves, so that neither numpy nor scipy ever sees unchecked state. Python 2 files (bytes and str mixed)
and protocols 2 to 4 read alike.

>>> import pickle
>>> array(loads(pickle.dumps({"y": np.arange(3, dtype=np.int32)}, protocol=4), "demo")["y"], "demo")
array([0, 1, 2], dtype=int32)
>>> loads(b"cos\nsystem\n(S'echo gotcha'\ntR.", "demo")
Traceback (most recent call last):
    ...
datasets.root.DataCorrupt: demo is not a file of plain arrays: it asks for os.system, which was refused and not run.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from typing import Any

import numpy as np

from .root import DataCorrupt

MAX_VALUES = 2**28  # a csr matrix is made dense; a file that claims more than this is not one of ours


class Record:
    """An object of the file: what it was called with, and the state it was given. Does nothing."""

    __slots__ = ("args", "state")

    def __init__(self, *args: Any) -> None:
        self.args = args
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Array(Record):
    __slots__ = ()


class _Dtype(Record):
    __slots__ = ()


class _Csr(Record):
    __slots__ = ()


class _Name(Record):
    __slots__ = ()


class _Dict(dict):  # a defaultdict whose factory is forgotten
    __slots__ = ()

    def __init__(self, *factory: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("state on a dict")


class _Latin1(bytes):  # protocols 0 to 2 write bytes as _codecs.encode(text, "latin1")
    __slots__ = ()

    def __new__(cls, text: str, encoding: str) -> _Latin1:
        return super().__new__(cls, text, "latin1")

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("state on bytes")


_GLOBALS: dict[tuple[str, str], type] = {
    ("numpy", "ndarray"): _Name,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Latin1,
    ("collections", "defaultdict"): _Dict,
    ("__builtin__", "list"): _Name,
    ("builtins", "list"): _Name,
    ("scipy.sparse.csr", "csr_matrix"): _Csr,
    ("scipy.sparse._csr", "csr_matrix"): _Csr,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
}


class _Unpickler(pickle._Unpickler):  # the one in Python: its memo is a dict, so no file can ask it for gigabytes
    def find_class(self, module: str, name: str) -> type:
        try:
            return _GLOBALS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which was refused and not run") from None


def loads(blob: bytes, where: object) -> Any:
    """The plain objects and records of a pickle. Raises: DataCorrupt that names `where`."""
    try:
        return _Unpickler(io.BytesIO(blob), encoding="latin1").load()
    except pickle.UnpicklingError as error:
        raise DataCorrupt(f"{where} is not a file of plain arrays: {error}.") from error
    except Exception as error:  # a damaged pickle may raise anything: EOFError, IndexError, KeyError, MemoryError, ...
        raise DataCorrupt(f"{where} is truncated or damaged ({type(error).__name__}: {error}).") from error


def text_keys(value: Any, where: object) -> dict[str, Any]:
    """A dict with its bytes keys decoded. Raises: DataCorrupt if it is no dict of names."""
    if not isinstance(value, dict) or not all(isinstance(key, str | bytes) for key in value):
        raise DataCorrupt(f"{where} does not hold a dict of named fields.")
    return {key.decode("latin1") if isinstance(key, bytes) else key: item for key, item in value.items()}


def array(record: Any, where: object) -> np.ndarray:
    """The numpy array that a record describes, after checking it. Raises: DataCorrupt."""
    try:
        if not isinstance(record, _Array):
            raise TypeError(f"{type(record).__name__} in place of an array")
        _, shape, dtype, fortran, raw = record.state
        code, order = dtype.args[0], dtype.state[1]
        if not re.fullmatch("[biuf][1248]", code) or order not in "<>|=":
            raise TypeError(f"array of type {code!r}")
        if not all(type(size) is int and size >= 0 for size in shape):
            raise TypeError(f"array of shape {shape!r}")
        kind = np.dtype(order + code)
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        if not isinstance(raw, bytes) or math.prod(shape) * kind.itemsize != len(raw):
            raise ValueError(f"array of shape {shape!r} with the wrong number of bytes")
        flat = np.frombuffer(raw, kind).astype(kind.newbyteorder("="))  # a copy: writable, native
        return flat.reshape(shape, order="F" if fortran else "C")
    except (TypeError, ValueError, AttributeError, IndexError, KeyError) as error:
        raise DataCorrupt(f"{where} holds a damaged array ({error}).") from error


def csr(record: Any, where: object) -> np.ndarray:
    """The dense float32 matrix that a scipy csr record (or an array) describes. Raises: DataCorrupt."""
    if isinstance(record, _Array):
        return array(record, where).astype(np.float32)
    try:
        state: dict[str, Any] = record.state if isinstance(record, _Csr) else {}
        rows, columns = state.get("_shape", state.get("shape", ()))
        data, indices, indptr = (array(state[part], where) for part in ("data", "indices", "indptr"))
        counts: Any = np.diff(indptr.astype(np.int64))
        fits = len(counts) == rows and 0 < rows * columns <= MAX_VALUES and indptr[0] == 0 and indptr[-1] == len(data)
        if not fits or (counts < 0).any() or len(indices) != len(data):
            raise ValueError("its row pointers do not fit its shape")
        if len(data) and not 0 <= indices.min() <= indices.max() < columns:
            raise ValueError("a column index is out of range")
        dense = np.zeros((rows, columns), np.float32)
        np.add.at(dense, (np.repeat(np.arange(rows), counts), indices), data)
        return dense
    except (TypeError, ValueError, AttributeError, IndexError, KeyError) as error:
        raise DataCorrupt(f"{where} holds a damaged sparse matrix ({error}).") from error
