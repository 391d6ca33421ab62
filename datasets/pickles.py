r"""Reading other people's pickles without running them.

CIFAR-10 and Planetoid are published as pickles, and unpickling runs whatever code the file names. Here the few globals
that such files need (numpy arrays and scalars, scipy csr matrices, `defaultdict(list)`) are mapped to inert *records*
that only remember what the file said; every other global is refused. `array`, `numbers` and `csr` then check a record
and build the numpy array themselves, so that neither numpy nor scipy ever sees unchecked state. Python 2 files (bytes
and str mixed) and protocols 0 to 5 read alike.

Nothing is allocated that the file does not pay for: before it is read, `_scan` walks over its opcodes and holds every
length against the bytes that are left; keys are numbers and words, so that nothing recurses into nested values.

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
MAX_VALUES = 2**26  # a csr matrix is made dense; a file that claims more than this is not one of ours
MAX_VALUES_PER_BYTE = 4096  # of the dense matrix, for each byte that the sparse one takes in the file
# Opcodes that no file of plain arrays needs: sets, objects that live elsewhere, buffers that travel separately.
REFUSED = {"EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID", "NEXT_BUFFER", "READONLY_BUFFER",
           "EMPTY_SET", "ADDITEMS", "FROZENSET"}  # fmt: skip


AGAIN = "delete it, and it can be downloaded again."


def damaged(where: object, why: str) -> DataCorrupt:
    """The error for a file whose content is broken: it says what to delete."""
    return DataCorrupt(f"{where} is truncated or damaged ({why}); delete it, and it can be downloaded again.")


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


class _Buffer(Record):  # an array by protocol 5: (bytes, dtype, shape, order)
    __slots__ = ()


class _Scalar(Record):  # a number of numpy: (dtype, bytes)
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


_GLOBALS: dict[tuple[str, str], Any] = {
    ("__builtin__", "bytes"): "empty",  # and no bytes as bytes()
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


class _Unpickler(pickle._Unpickler):  # the one in Python: its memo is a dict, so no file can ask it for gigabytes
    def __init__(self, blob: bytes) -> None:
        super().__init__(io.BytesIO(blob), encoding="latin1")
        self.bytes_left = 2 * len(blob) + 4096  # that `_codecs.encode` may make; a text can be encoded again and again

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
    """A handler of the unpickler that looks at the keys on the stack first: hashing a nested one would recurse."""

    def handler(self: Any) -> None:
        self.check_keys(self.stack[first::step])
        load(self)

    return handler


_Unpickler.dispatch = dict(pickle._Unpickler.dispatch)
for _opcode, _first, _step in ((pickle.SETITEM, -2, 2), (pickle.SETITEMS, 0, 2), (pickle.DICT, 0, 2)):
    _Unpickler.dispatch[_opcode[0]] = _checked(pickle._Unpickler.dispatch[_opcode[0]], _first, _step)


def _scan(blob: bytes, where: object) -> None:
    """Hold every length that the opcodes claim against the bytes that are there. Raises: DataCorrupt."""
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
    """The plain objects and records of a pickle. Raises: DataCorrupt that names `where`."""
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
    """A dict with its bytes keys decoded. Raises: DataCorrupt if it is no dict of names."""
    if not isinstance(value, dict) or not all(isinstance(key, str | bytes) for key in value):
        raise DataCorrupt(f"{where} does not hold a dict of named fields.")
    return {key.decode("latin1") if isinstance(key, bytes) else key: item for key, item in value.items()}


def array(record: Any, where: object) -> np.ndarray:
    """The numpy array that a record describes, after checking it. Raises: DataCorrupt."""
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
        flat = np.frombuffer(raw, kind).astype(kind.newbyteorder("="))  # a copy: writable, native
        return flat.reshape(shape, order="F" if fortran else "C")
    except (TypeError, ValueError, AttributeError, IndexError, KeyError, OverflowError) as error:
        raise DataCorrupt(
            f"{where} holds a damaged array ({error}); delete it, and it can be downloaded again."
        ) from error


def numbers(values: list[Any], where: object) -> list[Any]:
    """A list with the numbers of numpy in it as Python's own. Raises: DataCorrupt."""
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
    """The dense float32 matrix that a scipy csr record (or an array) describes. Raises: DataCorrupt."""
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
