r"""Safe reading of untrusted pickles, without executing code.

CIFAR-10 and Planetoid are published as pickles, and unpickling executes any code that a file names. Here the few
globals that such files need (numpy arrays and scalars, scipy csr matrices, `defaultdict(list)`) are mapped to inert
*records* that only store their arguments; all other globals are rejected. `array`, `numbers` and `csr` then validate a
record and build the numpy array, so that neither numpy nor scipy receives unchecked state. Python 2 files (mixed bytes
and str) and protocols 0 to 5 are supported.

Memory is bounded by the size of the file: before loading, `_scan` checks every length in the opcodes against the
remaining bytes. Keys must be numbers or strings, so there is no recursion into nested values.

>>> import pickle
>>> array(loads(pickle.dumps({"y": np.arange(3, dtype=np.int32)}, protocol=5), "demo")["y"], "demo")
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
import pickletools
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from .root import DataCorrupt

OPCODES = {ord(opcode.code): opcode for opcode in pickletools.opcodes}
MAX_OPCODES = 5_000_000
MAX_VALUES = 2**26  # csr matrices are made dense; no supported file is larger than this
MAX_VALUES_PER_BYTE = 4096  # maximum bytes of the dense matrix per byte of the sparse one in the file
# Opcodes not needed for plain arrays: sets, persistent objects, out-of-band buffers.
REFUSED = {"EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID", "NEXT_BUFFER", "READONLY_BUFFER",
           "EMPTY_SET", "ADDITEMS", "FROZENSET"}  # fmt: skip


AGAIN = "delete it, and it can be downloaded again."


def damaged(where: object, why: str) -> DataCorrupt:
    """The error for a damaged file, which says what to delete."""
    return DataCorrupt(f"{where} is truncated or damaged ({why}); delete it, and it can be downloaded again.")


class Record:
    """An inert object of the file: the arguments and the state that it was given."""

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


class _Buffer(Record):  # an array by protocol 5: (bytes, dtype, shape, order)
    __slots__ = ()


class _Scalar(Record):  # a number of numpy: (dtype, bytes)
    __slots__ = ()


class _Csr(Record):
    __slots__ = ()


class _Name(Record):
    __slots__ = ()


class _Dict(dict):  # a defaultdict without its factory
    __slots__ = ()

    def __init__(self, *factory: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("state on a dict")


_GLOBALS: dict[tuple[str, str], Any] = {
    ("__builtin__", "bytes"): "empty",  # and empty bytes as bytes()
    ("builtins", "bytes"): "empty",
    ("numpy", "ndarray"): _Name,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): "latin1",  # protocols 0 to 2 write bytes as _codecs.encode(text, "latin1")
    ("collections", "defaultdict"): _Dict,
    ("__builtin__", "list"): _Name,
    ("builtins", "list"): _Name,
    ("scipy.sparse.csr", "csr_matrix"): _Csr,
    ("scipy.sparse._csr", "csr_matrix"): _Csr,
    ("scipy.sparse._csr", "csr_array"): _Csr,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.multiarray", "scalar"): _Scalar,
    ("numpy._core.multiarray", "scalar"): _Scalar,
    ("numpy.core.numeric", "_frombuffer"): _Buffer,
    ("numpy._core.numeric", "_frombuffer"): _Buffer,
}


class _Unpickler(pickle._Unpickler):  # in Python: its memo is a dict, so files cannot make it allocate gigabytes
    def __init__(self, blob: bytes) -> None:
        super().__init__(io.BytesIO(blob), encoding="latin1")
        self.bytes_left = 2 * len(blob) + 4096  # limit for `_codecs.encode`, since a text can be encoded repeatedly

    def find_class(self, module: str, name: str) -> Any:
        try:
            found = _GLOBALS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which was refused and not run") from None
        return {"latin1": self.encode, "empty": self.empty}.get(found, found) if isinstance(found, str) else found

    def empty(self) -> bytes:
        return b""

    def encode(self, text: str, encoding: str) -> bytes:
        self.bytes_left -= len(text)
        if self.bytes_left < 0:
            raise pickle.UnpicklingError("it makes more bytes than it has")
        return text.encode("latin1")

    def check_keys(self, keys: list[Any]) -> None:
        if not all(isinstance(key, str | bytes | int) for key in keys):
            raise pickle.UnpicklingError("a key is neither a number nor a word")


def _checked(load: Callable[[Any], None], first: int, step: int) -> Callable[[Any], None]:
    """An opcode handler that first checks the keys on the stack, since hashing a nested key would recurse."""

    def handler(self: Any) -> None:
        self.check_keys(self.stack[first::step])
        load(self)

    return handler


_Unpickler.dispatch = dict(pickle._Unpickler.dispatch)
for _opcode, _first, _step in ((pickle.SETITEM, -2, 2), (pickle.SETITEMS, 0, 2), (pickle.DICT, 0, 2)):
    _Unpickler.dispatch[_opcode[0]] = _checked(pickle._Unpickler.dispatch[_opcode[0]], _first, _step)


def _scan(blob: bytes, where: object) -> None:
    """Check every length in the opcodes against the available bytes. Raises: DataCorrupt."""
    at, count = 0, 0
    while at < len(blob):
        opcode = OPCODES.get(blob[at])
        count += 1
        if opcode is None:
            raise damaged(where, f"byte {at} is no opcode of a pickle")
        if opcode.name in REFUSED:
            raise DataCorrupt(f"{where} is not a file of plain arrays: it has the opcode {opcode.name}.")
        if count > MAX_OPCODES:
            raise DataCorrupt(f"{where} is not a file of plain arrays: it has more than {MAX_OPCODES} opcodes.")
        at += 1
        if opcode.name == "STOP":
            return
        size = opcode.arg.n if opcode.arg else 0
        if size == pickletools.UP_TO_NEWLINE:
            for _ in range(2 if opcode.name in ("GLOBAL", "INST") else 1):
                at = blob.find(b"\n", at) + 1
                if not at:
                    raise damaged(where, "it ends too early")
            continue
        if opcode.name == "FRAME" and int.from_bytes(blob[at : at + 8], "little") > len(blob) - at - 8:
            raise damaged(where, "it ends too early")
        if size < 0:
            width = {pickletools.TAKEN_FROM_ARGUMENT1: 1, pickletools.TAKEN_FROM_ARGUMENT8U: 8}.get(size, 4)
            claimed = int.from_bytes(blob[at : at + width], "little")
            size = width + claimed
        at += size
    raise damaged(where, "it ends too early")


def loads(blob: bytes, where: object) -> Any:
    """Load a pickle as plain objects and records. Raises: DataCorrupt that names `where`."""
    if not blob:
        raise damaged(where, "it is empty")
    if blob[:64].lstrip()[:1] == b"<":
        raise DataCorrupt(f"{where} is a web page and not data; delete it, and it can be downloaded again.")
    _scan(blob, where)
    try:
        return _Unpickler(blob).load()
    except pickle.UnpicklingError as error:
        raise DataCorrupt(f"{where} is not a file of plain arrays: {str(error)[:200]}.") from error
    except Exception as error:  # a damaged pickle may raise anything: EOFError, IndexError, KeyError, MemoryError, ...
        raise damaged(
            where, f"{type(error).__name__}: {str(error)[:200]}" if str(error) else "it ends too early"
        ) from error


def text_keys(value: Any, where: object) -> dict[str, Any]:
    """A dict with bytes keys decoded. Raises: DataCorrupt if it is not a dict with string keys."""
    if not isinstance(value, dict) or not all(isinstance(key, str | bytes) for key in value):
        raise DataCorrupt(f"{where} does not hold a dict of named fields.")
    return {key.decode("latin1") if isinstance(key, bytes) else key: item for key, item in value.items()}


def array(record: Any, where: object) -> np.ndarray:
    """The numpy array described by a record, after validation. Raises: DataCorrupt."""
    try:
        if isinstance(record, _Buffer):
            raw, dtype, shape, order = record.args
            fortran = order == "F"
        elif isinstance(record, _Array):
            _, shape, dtype, fortran, raw = record.state
        else:
            raise TypeError(f"{type(record).__name__} in place of an array")
        kind, raw = _kind(dtype), _raw(raw)
        if not isinstance(shape, tuple) or len(shape) > 8 or not all(type(size) is int and size >= 0 for size in shape):
            raise TypeError("an array without a shape")
        if math.prod(shape) * kind.itemsize != len(raw):
            raise ValueError(f"an array of {len(shape)} axes with the wrong number of bytes")
        flat = np.frombuffer(raw, kind).astype(kind.newbyteorder("="))  # a copy, writable and native
        return flat.reshape(shape, order="F" if fortran else "C")
    except (TypeError, ValueError, AttributeError, IndexError, KeyError, OverflowError) as error:
        raise DataCorrupt(
            f"{where} holds a damaged array ({error}); delete it, and it can be downloaded again."
        ) from error


def numbers(values: list[Any], where: object) -> list[Any]:
    """A list with numpy numbers converted to Python numbers. Raises: DataCorrupt."""
    try:
        return [_number(*value.args) if isinstance(value, _Scalar) else value for value in values]
    except (TypeError, ValueError, AttributeError, IndexError, KeyError) as error:
        raise DataCorrupt(
            f"{where} holds a damaged number ({error}); delete it, and it can be downloaded again."
        ) from error


def _number(dtype: Any, raw: Any) -> Any:
    kind, raw = _kind(dtype), _raw(raw)
    if len(raw) != kind.itemsize:
        raise ValueError("a number with the wrong number of bytes")
    return np.frombuffer(raw, kind)[0].item()


def _kind(dtype: Any) -> np.dtype:
    if not isinstance(dtype, _Dtype):
        raise TypeError("an array without a type")
    code, order = dtype.args[0], dtype.state[1]
    if not isinstance(code, str) or not re.fullmatch("[biuf][1248]", code) or order not in ("<", ">", "|", "="):
        raise TypeError("an array of another type than numbers")
    return np.dtype(order + code)


def _raw(raw: Any) -> bytes:
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    if not isinstance(raw, bytes | bytearray):
        raise TypeError("an array without bytes")
    return bytes(raw)


def csr(record: Any, where: object) -> np.ndarray:
    """The dense float32 matrix described by a scipy csr record or an array. Raises: DataCorrupt."""
    if isinstance(record, _Array | _Buffer):
        return array(record, where).astype(np.float32)
    try:
        state: dict[str, Any] = record.state if isinstance(record, _Csr) else {}
        rows, columns = state.get("_shape", state.get("shape", ()))
        data, indices, indptr = (array(state[part], where) for part in ("data", "indices", "indptr"))
        counts: Any = np.diff(indptr.astype(np.int64))
        stored = data.nbytes + indices.nbytes + indptr.nbytes
        most = min(MAX_VALUES, MAX_VALUES_PER_BYTE * stored)
        fits = len(counts) == rows and 0 < rows * columns <= most and indptr[0] == 0 and indptr[-1] == len(data)
        if not fits or (counts < 0).any() or len(indices) != len(data):
            raise ValueError("its row pointers do not fit its shape")
        if len(data) and not 0 <= indices.min() <= indices.max() < columns:
            raise ValueError("a column index is out of range")
        dense = np.zeros((rows, columns), np.float32)
        np.add.at(dense, (np.repeat(np.arange(rows), counts), indices), data)
        return dense
    except (TypeError, ValueError, AttributeError, IndexError, KeyError, OverflowError) as error:
        raise DataCorrupt(
            f"{where} holds a damaged sparse matrix ({error}); delete it, and it can be downloaded again."
        ) from error
