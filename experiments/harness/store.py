"""Crash-safe files: result rows (one JSON line each) and checkpoints of long runs.

A line or a checkpoint is written completely and synced, or not at all. Concurrent writers wait for a lock.
"""

import copy
import fcntl
import glob
import hashlib
import io
import json
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from experiments.harness.machine import hardware, rng_state, set_rng_state

Row = dict[str, Any]


class ResultsError(RuntimeError):
    """Raised if a results file or a checkpoint cannot be read or written; the message names the file and the reason."""


class Results:
    """An append-only JSONL file of rows, safe against crashes, full disks and concurrent writers."""

    def __init__(self, path: str | Path, known: str | Path | None = None, rerun: bool = False):
        """Open a file, which need not exist.

        Args:
            path: the file to append to.
            known: another file, whose runs are not run again.
            rerun: whether runs recorded with other code are run again, and their rows replaced.
        """
        self.path, self.known, self.rerun = Path(path), None if known is None else Path(known), rerun
        self._read_to, self._keys = 0, set[str]()  # the part that `append` has read, so that it reads only the rest

    def sources(self) -> list[tuple[Path, list[Row]]]:
        """The rows of `known`, if any, and those of the file, each with its path. Raises: ResultsError."""
        known = [] if self.known is None else [(self.known, Results(self.known).rows())]
        return [*known, (self.path, self.rows())]

    def rows(self) -> list[Row]:
        """All complete rows, in order; a truncated last line is ignored. Raises: ResultsError."""
        try:
            text = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise ResultsError(f"cannot read {self.path}: {error.strerror or error}") from None
        return self._parse(text)[0]

    def done(self, key: str) -> bool:
        """Whether there is a row with this key."""
        return any(row["key"] == key for row in self.rows())

    def probe(self) -> None:
        """Check, before training starts, that rows can be read and written. Raises: ResultsError."""
        self.rows()
        trial = self.path.with_name(f"{self.path.name}.{os.getpid()}.probe")
        with self._writing():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(trial, "wb", buffering=0) as file:
                    _write(file, bytes(1 << 16))
            finally:
                trial.unlink(missing_ok=True)
            if self.path.exists() and not self.path.is_file():
                raise ResultsError(f"cannot write results to {self.path}: it is not a regular file; name another one")
            if self.path.exists():
                open(self.path, "ab").close()

    def append(self, row: Row, replace: bool = False) -> bool:
        """Append a row and sync it to disk. Returns: False, without writing, if there is already a row with its key.

        With `replace`, an existing row with its key is replaced, by atomically replacing the file.

        A truncated last line is removed first. Raises: ResultsError, leaving the file unchanged; ValueError for NaN or
        infinity.
        """
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        with self._writing():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._locked() as file:
                if os.fstat(file.fileno()).st_size < self._read_to:  # the file was replaced or truncated
                    self._read_to, self._keys = 0, set()
                start = max(0, self._read_to - 1)  # including the end of the last line that was read
                file.seek(start)
                text = file.readall()
                if start and text[:1] != b"\n":
                    start, self._keys = 0, set()
                    file.seek(0)
                    text = file.readall()
                rows, end = self._parse(text)
                self._keys |= {old["key"] for old in rows}
                known = row["key"] in self._keys
                if known and not replace:
                    return False
                file.truncate(start + end)
                if known:
                    file.seek(0)
                    self._replace(row, line, file.readall())
                    return True
                whole = text[:end].endswith(b"\n") or not end
                try:
                    _write(file, line if whole else b"\n" + line)
                except OSError:
                    file.truncate(start + end)
                    raise
                self._read_to = start + end + len(line) + (not whole)
                self._keys.add(row["key"])
        return True

    @contextmanager
    def _locked(self) -> Iterator[io.FileIO]:
        """The file, open and locked. A file that another process replaced during the wait is opened again."""
        while True:
            with open(self.path, "a+b", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
                if self.path.exists() and os.path.samestat(os.fstat(file.fileno()), os.stat(self.path)):
                    yield file
                    return

    def _replace(self, row: Row, line: bytes, text: bytes) -> None:
        """Replace the row with the same key in the text of the file by `line`."""
        old = text.splitlines(keepends=True)
        new = [line if one.strip() and json.loads(one)["key"] == row["key"] else one for one in old]
        replace_file(self.path, b"".join(new))
        self._read_to, self._keys = 0, set()

    def checkpoint(self, key: str) -> Path:
        """The path of the checkpoint of the run with this key: next to the results, in a folder ignored by git."""
        return self.path.parent / ".checkpoints" / f"{self.path.stem}-{key}.pt"

    def _parse(self, text: bytes) -> tuple[list[Row], int]:
        """The rows, and the length of the text without a truncated last line."""
        rows, end = [], 0
        for number, line in enumerate(text.splitlines(keepends=True), 1):
            try:
                row = json.loads(line) if line.strip() else None
                if row is not None and not (isinstance(row, dict) and isinstance(row.get("key"), str)):
                    raise ValueError("not a row")
            except (ValueError, RecursionError):
                half = end > 0 or line[:1] in (b"{", b"\0")  # of a row, and not the only line of another file
                if half and end + len(line) == len(text) and not line.endswith((b"\n", b"\r")):
                    break
                raise ResultsError(f"{self.path}, line {number}: not a result row; mend or delete the line") from None
            rows += [row] if row else []
            end += len(line)
        return rows, end

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ResultsError(f"cannot write results to {self.path}: {error.strerror or error}") from None


class Checkpoint:
    """The state of a long run on disk, so that an interruption costs at most one epoch.

    Args:
        path: as passed to a resumable run by `sweep`.
        every: save after every multiple of this number of epochs.
        parts: everything that the run mutates: modules, optimisers, schedulers (anything with `state_dict`) and the
            `torch.Generator` of a loader. The global generators of python, numpy and torch are saved automatically.

    Files are replaced atomically. A file that is damaged, does not fit `parts` or was saved by other code is discarded
    with a warning, `parts` stay unchanged, and the run starts again. Raises (save): ResultsError, TypeError.
    """

    code: Any = None
    """What identifies the run of this process: the code in its row, or the data and options of a command."""
    earlier = 0.0
    """Seconds that the run of this process had taken before the checkpoint that it restored."""
    elsewhere: Sequence[dict[str, Any]] = ()
    """Hardware and torch version of earlier parts of this run, where they differ: numbers are equal up to rounding."""

    @staticmethod
    def begin(code: Any) -> None:
        """Start a run in this process."""
        Checkpoint.code, Checkpoint.earlier, Checkpoint.elsewhere = code, 0.0, ()

    def __init__(self, path: str | Path, every: int = 1, **parts: Any):
        self.path, self.every, self.parts, self._checked = Path(path), every, parts, False
        self._start = time.perf_counter()

    def restore(self, extra: Any = None) -> tuple[int, Any]:
        """Restore the saved state. Returns: `(epochs done, saved extra)`, or `(0, extra)` if nothing is saved."""
        if not self.path.exists():
            return 0, extra
        before = copy.deepcopy(self._states())
        try:
            content = self.path.read_bytes()
            if hashlib.sha256(content[32:]).digest() != content[:32]:
                raise ValueError("checksum differs")
            saved = torch.load(io.BytesIO(content[32:]), weights_only=True, map_location="cpu")
            if saved["parts"].keys() != self.parts.keys():
                raise ValueError("saved from other parts")
            if saved.get("code", Checkpoint.code) != Checkpoint.code:  # not in files of earlier versions
                raise ValueError("saved by other code or from other data")
            self._load(saved["parts"])
            set_rng_state(saved["rng"])
            Checkpoint.earlier = saved.get("seconds", 0.0)
            Checkpoint.elsewhere = [place for place in saved.get("places", []) if place != _place()]
            return saved["epoch"], saved["extra"]
        except Exception as error:  # whatever is wrong with the file, it is discarded
            self._load(before)
            self.path.unlink(missing_ok=True)
            reason = str(error).splitlines()[0] if str(error) else repr(error)
            warnings.warn(f"checkpoint {self.path} discarded, the run starts again: {reason}", stacklevel=2)
            return 0, extra

    def save(self, epoch: int, extra: Any = None) -> None:
        """Save the state after `epoch` epochs; `extra` is plain data (numbers, lists, tensors), such as a curve."""
        if epoch % self.every:
            return
        buffer = io.BytesIO()
        seconds = Checkpoint.earlier + time.perf_counter() - self._start
        state = {"epoch": epoch, "extra": extra, "rng": rng_state(), "parts": self._states(), "seconds": seconds}
        state |= {"code": Checkpoint.code, "places": [*Checkpoint.elsewhere, _place()]}
        torch.save(state, buffer)
        body = buffer.getvalue()
        if not self._checked:
            try:
                torch.load(io.BytesIO(body), weights_only=True)
            except Exception as error:
                raise TypeError("a checkpoint holds tensors, numbers, strings, lists and dicts only") from error
            self._checked = True
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self.path, hashlib.sha256(body).digest() + body)
        except OSError as error:
            raise ResultsError(f"cannot write checkpoint {self.path}: {error.strerror or error}") from None

    def _states(self) -> dict[str, Any]:
        return {k: p.get_state() if isinstance(p, torch.Generator) else p.state_dict() for k, p in self.parts.items()}

    def _load(self, states: dict[str, Any]) -> None:
        for name, part in self.parts.items():
            (part.set_state if isinstance(part, torch.Generator) else part.load_state_dict)(states[name])


def _place() -> dict[str, Any]:
    return hardware() | {"torch": str(torch.__version__)}


def cached(path: Path) -> torch.Tensor | None:
    """The tensor that `save_cached` wrote; None if there is no file, or, with a warning, if it is damaged."""
    try:
        found = torch.load(io.BytesIO(path.read_bytes()), weights_only=True)
        if not isinstance(found, torch.Tensor):
            raise ValueError("it has no tensor")
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever is wrong with the file, its content is computed again
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        warnings.warn(f"the cache {path} cannot be read and is not used: {reason}", stacklevel=2)
        return None
    return found


def save_cached(path: Path, tensor: torch.Tensor) -> None:
    """Write a tensor to a file, atomically; a file that cannot be written is not an error, but a warning."""
    buffer = io.BytesIO()
    torch.save(tensor, buffer)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, buffer.getvalue())
    except OSError as error:
        warnings.warn(f"the cache {path} cannot be written: {error.strerror or error}", stacklevel=2)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file atomically, or leave it unchanged. A link is followed. Raises: OSError."""
    place = Path(os.path.realpath(path))
    trial = place.with_name(f"{place.name}.{os.getpid()}.tmp")
    for left in place.parent.glob(f"{glob.escape(place.name)}.*.tmp"):
        if not _alive(left.suffixes[-2][1:]):  # it was killed while it wrote
            left.unlink(missing_ok=True)
    try:
        with open(trial, "wb", buffering=0) as file:
            _write(file, content)
        os.replace(trial, place)
    except BaseException:
        trial.unlink(missing_ok=True)
        raise


def _alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ValueError, OverflowError, ProcessLookupError):
        return False
    except PermissionError:  # a process of another user
        pass
    return True


def _write(file: io.RawIOBase | io.FileIO, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(file.fileno(), view) :]
    os.fsync(file.fileno())
