"""The data root, downloads, and content hashes.

The root is the argument, else `$GCONV_DATA`, else the user's cache folder. `ensure` uses existing files and downloads
missing ones (with checksum, progress bar, timeouts and atomic rename), or raises one error that says what is missing
and what to do. With `GCONV_OFFLINE=1` the network is never used.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import reprlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from torch import Tensor

from gconv.arguments import checked

if TYPE_CHECKING:
    from torch_geometric.data import Data

CONNECT_SECONDS, READ_SECONDS = 5, 30  # timeout for a server that does not respond


class DataError(RuntimeError):
    """Base class of data errors, with a complete message for the user."""


class DataUnavailable(DataError):
    """Files are missing and could not be downloaded."""


class DataCorrupt(DataError):
    """A file exists, but its content is not what was expected."""


class DataNotWritten(DataError):
    """A file could not be written (read-only or full disk, no permission); no partial file is left."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """The identity of a loaded data set.

    `official` is True if every file has its published checksum, False if one differs, None if none is known. `label`
    is the name printed in tables, `content_hash` identifies the bytes that were read.
    """

    label: str
    classes: tuple[str, ...]
    content_hash: str
    source: str
    official: bool | None = None

    def summary(self) -> str:
        """A short description: every field, tensors by shape."""
        shown = {f.name: getattr(self, f.name) for f in fields(self)}
        shown["classes"] = f"{len(self.classes)}: {', '.join(self.classes)}"
        return "\n".join(f"{name:12} {_short(value)}" for name, value in shown.items())


def _short(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {value.dtype}"
    if hasattr(value, "_asdict"):  # a named tuple
        return "; ".join(f"{name}: {_short(part)}" for name, part in value._asdict().items())
    if isinstance(value, tuple) and value:
        return f"{len(value)}, the first {reprlib.repr(value[0])}"
    return str(value)


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet(Loaded):
    """Labelled images with a split.

    Shapes: images (b, c, h, w), uint8 in 0..255 or float32 in [0, 1]; labels (b,), int64.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class GraphSet(Loaded):
    """A graph for node classification.

    Shapes: data.x (n, i) float32; data.edge_index (2, e) int64, row 0 source, row 1 target; data.y (n,) int64;
    data.train_mask, val_mask, test_mask (n,) bool, disjoint.
    """

    data: Data


@checked
def data_root(root: str | os.PathLike[str] | None = None) -> Path:
    """The data root: `root`, else `$GCONV_DATA`, else the user's cache folder.

    >>> data_root("/srv/data").as_posix()
    '/srv/data'
    """
    if root is None:
        root = os.environ.get("GCONV_DATA") or None
    if root is None:
        import pooch

        root = pooch.os_cache("gconv")
    return Path(root).expanduser()


def offline() -> bool:
    """Whether `$GCONV_OFFLINE` forbids the network (unset, empty, 0, false and no do not)."""
    return os.environ.get("GCONV_OFFLINE", "").strip().lower() not in ("", "0", "false", "no")


MAX_FILE_BYTES = 2**28  # the largest file of these data sets has 31 MB


def read(path: Path, most: int = MAX_FILE_BYTES) -> bytes:
    """The bytes of a file. Raises: DataCorrupt if it cannot be read, or is larger than any supported file."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            blob = b"" if size > most else file.read(size or most + 1)  # devices and pipes have no size
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise DataCorrupt(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    if size > most or len(blob) > most:
        raise DataCorrupt(
            f"{path} has more than {most >> 20} MiB, so it is not the file that its name says; replace or delete it."
        )
    return blob


@checked
def hash_parts(parts: Mapping[str, bytes | np.ndarray | Tensor]) -> str:
    """Short sha256 of named bytes and arrays, independent of their order; includes dtype and shape of arrays.

    >>> hash_parts({"a": b"1", "b": b"2"}) == hash_parts({"b": b"2", "a": b"1"}) != hash_parts({"a": b"12", "b": b""})
    True
    """
    total = hashlib.sha256()
    for name, part in sorted(parts.items()):
        content: Any = part
        if not isinstance(part, bytes):
            array = np.ascontiguousarray(part)
            content, name = array.reshape(-1).view(np.uint8), f"{name}:{array.dtype.str}:{array.shape}"
        total.update(f"{name}:{hashlib.sha256(content).hexdigest()}\n".encode())
    return total.hexdigest()[:16]


@checked
def content_hash(paths: Iterable[Path]) -> str:
    """Short sha256 of files, by name and content; used as the data hash of rows.

    >>> content_hash([Path(__file__)]) == hash_parts({"root.py": Path(__file__).read_bytes()})
    True
    """
    return hash_parts({path.name: read(path) for path in paths})


def describe_disk(error: OSError, target: Path) -> DataNotWritten:
    """The error for a failed write under `target`."""
    hints = {errno.EROFS: "is read-only", errno.EACCES: "is not writable", errno.ENOSPC: "is on a full disk"}
    why = hints.get(error.errno or 0, f"refused the write ({error.strerror or error})")
    return DataNotWritten(
        f"{target} {why}. No partial file was left. Point --data-root or GCONV_DATA at another folder."
    )


@contextlib.contextmanager
def scratch(root: Path) -> Iterator[Path]:
    """A temporary folder in `root`, always removed at the end; `root` too if it was created and is still empty."""
    folder = None
    new = [parent for parent in (root, *root.parents) if not parent.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".gconv-", dir=root))
        yield folder
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            for parent in new:
                parent.rmdir()


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write `path` atomically by `write(file)`. Raises: DataNotWritten."""
    try:
        with scratch(path.parent) as folder:
            with open(folder / path.name, "wb") as file:
                write(file)
            os.replace(folder / path.name, path)
    except OSError as error:
        raise describe_disk(error, path.parent) from error


def fetch(url: str, folder: Path, known_hash: str | None) -> Path:
    """Download a file into `folder` with pooch: checksum, progress bar, timeouts.

    Raises: requests.RequestException (network), ValueError (checksum), OSError (disk).
    """
    import pooch

    pooch.get_logger().setLevel("WARNING")
    downloader = pooch.HTTPDownloader(progressbar=True, timeout=(CONNECT_SECONDS, READ_SECONDS))
    return Path(pooch.retrieve(url, known_hash, url.rsplit("/", 1)[-1], folder, downloader=downloader))


def locate(folders: Iterable[Path], files: Iterable[str]) -> Path:
    """The first folder that contains one of the files, or the first of all.

    With this, a root given one level too deep (the folder of the files itself) is recognised.
    """
    known, names = list(folders), list(files)
    return next((folder for folder in known if any((folder / name).is_file() for name in names)), known[0])


def ensure(
    name: str,
    folder: Path,
    files: Iterable[str],
    source: str,
    download: Callable[[Path, list[str]], Path],
    instead: str,
    unpack: Callable[[Path], Path] | None = None,
) -> list[Path]:
    """Paths of `files` in `folder`, downloaded if necessary.

    `download(scratch_folder, missing)` downloads and unpacks into the scratch folder and returns the folder of the
    files; each missing file is then renamed into place, so it is either complete or missing. Existing files are kept.

    Args:
        name: name of the data set, for messages.
        folder: folder for the files.
        files: their names.
        source: source of the data, for messages.
        download: see above.
        instead: embedded data sets that can be used instead, for messages.
        unpack: unpacks an existing archive into the scratch folder, and returns the folder of the files.

    Raises:
        DataUnavailable: offline, no network, a wrong checksum, or an archive without the files.
        DataNotWritten: a file could not be written.
    """
    import requests

    paths = [folder / file for file in files]
    missing = [path.name for path in paths if not path.is_file()]
    if not missing:
        return paths
    try:
        if offline() and unpack is None:
            raise ConnectionRefusedError("GCONV_OFFLINE is set, so the network was not tried")
        with scratch(folder) as temporary:
            unpacked = download(temporary, missing) if unpack is None else unpack(temporary)
            for file in missing:
                if not (unpacked / file).is_file():
                    raise ValueError(f"what was downloaded has no {file}")
                os.replace(unpacked / file, folder / file)
        return paths
    except (ConnectionRefusedError, requests.RequestException, ValueError) as error:
        reason = getattr(error.args[0] if error.args else None, "reason", error)  # the underlying cause in requests
        raise DataUnavailable(
            f"{name} is not there and could not be downloaded.\n"
            f"  missing: {', '.join(missing)}\n  folder:  {folder}\n  source:  {source}\n  reason:  {reason}\n"
            f"  remedy:  put the files there, or point --data-root or GCONV_DATA at a root that has them "
            f"(unset GCONV_OFFLINE to download); {instead}."
        ) from error
    except OSError as error:
        raise describe_disk(error, folder) from error


def choose(value: str, allowed: Iterable[str], what: str) -> None:
    """Check that `value` is allowed. Raises: ValueError that names the nearest value first."""
    import difflib

    known = sorted(allowed)
    if value in known:
        return
    near = difflib.get_close_matches(str(value), known, 1)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"There is no {what} {value!r}.{guess} Known: {', '.join(known)}.")
