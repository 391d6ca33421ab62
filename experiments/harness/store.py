"""Files that survive a kill: result rows (one JSON line each) and checkpoints of long runs.

A line or a checkpoint is written whole and synced, or not at all; whoever comes second waits for the lock.
"""

import copy
import fcntl
import hashlib
import io
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from experiments.harness.machine import rng_state, set_rng_state

Row = dict[str, Any]


class ResultsError(RuntimeError):
    """The results file or a checkpoint cannot be read or written; the message says which and why."""


class Results:
    """An append-only JSONL file of rows, safe against kills, full disks and a second writer."""

    def __init__(self, path: str | Path, known: str | Path | None = None):
        """Args: path: the file that is appended to; known: another one, whose runs need not be run again."""
        self.path, self.known = Path(path), None if known is None else Path(known)
        self._read_to, self._keys = 0, set[str]()  # what `append` has read of the file, so that it reads only the rest

    def sources(self) -> list[tuple[Path, list[Row]]]:
        """The rows of `known`, where there are any, and those of the file, each with its path. Raises: ResultsError."""
        known = [] if self.known is None else [(self.known, Results(self.known).rows())]
        return [*known, (self.path, self.rows())]

    def rows(self) -> list[Row]:
        """All whole rows, in order; a last line torn by a kill does not count. Raises: ResultsError."""
        try:
            text = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise ResultsError(f"cannot read {self.path}: {error.strerror or error}") from None
        return self._parse(text)[0]

    def done(self, key: str) -> bool:
        """Whether the run with this key has its row."""
        return any(row["key"] == key for row in self.rows())

    def probe(self) -> None:
        """Raise ResultsError unless rows can be read and written here: called before any training starts."""
        self.rows()
        trial = self.path.with_name(f"{self.path.name}.{os.getpid()}.probe")
        with self._writing():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(trial, "wb", buffering=0) as file:
                    _write(file, bytes(1 << 16))
            finally:
                trial.unlink(missing_ok=True)
            if self.path.exists():
                open(self.path, "ab").close()

    def append(self, row: Row, replace: bool = False) -> bool:
        """Add one row and sync it to disk; False, and nothing written, where its key is there already.

        With `replace`, a row with its key gives way to it, in a new file that takes the old one's place at once.

        A torn last line is cut off first. Raises: ResultsError, the file as it was; ValueError for NaN or infinity.
        """
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        with self._writing():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a+b", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
                if os.fstat(file.fileno()).st_size < self._read_to:  # another file, or cut
                    self._read_to, self._keys = 0, set()
                start = max(0, self._read_to - 1)  # with the end of the last line that was read
                file.seek(start)
                text = file.readall()
                if start and text[:1] != b"\n":
                    start, self._keys = 0, set()
                    file.seek(0)
                    text = file.readall()
                rows, end = self._parse(text)
                self._keys |= {old["key"] for old in rows}
                if row["key"] in self._keys:
                    if replace:
                        self._replace(row, line)
                    return replace
                file.truncate(start + end)
                whole = text[:end].endswith(b"\n") or not end
                try:
                    _write(file, line if whole else b"\n" + line)
                except OSError:
                    file.truncate(start + end)
                    raise
                self._read_to = start + end + len(line) + (not whole)
                self._keys.add(row["key"])
        return True

    def _replace(self, row: Row, line: bytes) -> None:
        """Put `line` in place of the row with the same key."""
        old = self.path.read_bytes().splitlines(keepends=True)
        new = [line if text.strip() and json.loads(text)["key"] == row["key"] else text for text in old]
        replace_file(self.path, b"".join(new))
        self._read_to, self._keys = 0, set()

    def checkpoint(self, key: str) -> Path:
        """Where the run with this key keeps its checkpoint: beside the results, in a folder that git ignores."""
        return self.path.parent / ".checkpoints" / f"{self.path.stem}-{key}.pt"

    def _parse(self, text: bytes) -> tuple[list[Row], int]:
        """The rows, and the length of the text up to a torn last line."""
        rows, end = [], 0
        for number, line in enumerate(text.splitlines(keepends=True), 1):
            try:
                row = json.loads(line) if line.strip() else None
                if row is not None and not (isinstance(row, dict) and isinstance(row.get("key"), str)):
                    raise ValueError("not a row")
            except (ValueError, RecursionError):
                if end + len(line) == len(text) and not line.endswith((b"\n", b"\r")):
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
    """State of a long run on disk, so that a kill costs one epoch and not the run.

    Args:
        path: as handed to a resumable run by `sweep`.
        every: save at multiples of this many epochs.
        parts: whatever the run mutates: modules, optimisers, schedulers (anything with `state_dict`) and the
            `torch.Generator` of a loader. The global generators of python, numpy and torch are saved by themselves.

    A file is replaced whole or not at all. One that is damaged or does not fit `parts` is discarded with a warning,
    `parts` stay as they were, and the run starts again. Raises (save): ResultsError, TypeError.
    """

    def __init__(self, path: str | Path, every: int = 1, **parts: Any):
        self.path, self.every, self.parts, self._checked = Path(path), every, parts, False

    def restore(self, extra: Any = None) -> tuple[int, Any]:
        """Put the saved state back: `(epochs done, extra as saved)`; `(0, extra)` where there is nothing to resume."""
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
            self._load(saved["parts"])
            set_rng_state(saved["rng"])
            return saved["epoch"], saved["extra"]
        except Exception as error:  # whatever is wrong with the file, the answer is the same
            self._load(before)
            self.path.unlink(missing_ok=True)
            reason = str(error).splitlines()[0] if str(error) else repr(error)
            warnings.warn(f"checkpoint {self.path} discarded, the run starts again: {reason}", stacklevel=2)
            return 0, extra

    def save(self, epoch: int, extra: Any = None) -> None:
        """Save after `epoch` epochs are done; `extra` is plain data (numbers, lists, tensors), say the curve so far."""
        if epoch % self.every:
            return
        buffer = io.BytesIO()
        torch.save({"epoch": epoch, "extra": extra, "rng": rng_state(), "parts": self._states()}, buffer)
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


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole, or leave what was there. Raises: OSError."""
    trial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(trial, "wb", buffering=0) as file:
            _write(file, content)
        os.replace(trial, path)
    except OSError:
        trial.unlink(missing_ok=True)
        raise


def _write(file: io.RawIOBase | io.FileIO, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(file.fileno(), view) :]
    os.fsync(file.fileno())
