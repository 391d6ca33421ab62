"""DiskGraph: a graph on disk in CSR format, built from an edge list larger than memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gconv.arguments import checked, integer, plural, shown
from gconv.external.edges import EdgeSource, Position, open_edges
from gconv.external.files import (
    HEADER,
    DiskError,
    Progress,
    budget,
    check_room,
    header,
    locked,
    opened,
    read_at,
    read_json,
    sync,
    using,
    write_at,
    write_json,
)

Duplicates = Literal["keep", "drop", "refuse"]
FORMAT = 1
MAX_BUCKETS = 256  # number of files open at once
EDGE_BYTES = 56  # memory per edge of a chunk: two indices, a key, and numpy temporaries
KEY_BYTES = 24  # memory per edge of a bucket while it is sorted
MAX_CHUNK = 1 << 24  # edges read at once
MAX_SORTED = 1 << 28  # edges sorted at once
CHECKPOINT = 1 << 26  # edges between updates of the journal while filling buckets
NO_PROGRESS: Progress = lambda what, done, total: None  # noqa: E731


@dataclass(frozen=True)
class DiskGraph:
    """A graph on disk: its adjacency A, with A[i, j] the number of edges j -> i, in CSR format.

    Its folder contains crow.npy (n + 1,) int64, the row pointers; col.npy (e,) int32, the sources of each row in
    ascending order without self-loops; and, if there are any, loops.npy (n,) int32, the number of self-loops of each
    node. Values are not stored: normalisations are diagonal scalings, and degrees are the differences of crow.

    Args:
        path: the folder.
        nodes: n, the number of nodes.
        entries: the number of edges other than self-loops.
        loops: the number of self-loops.
    """

    path: Path
    nodes: int
    entries: int
    loops: int

    @property
    def num_edges(self) -> int:
        """The number of edges, including self-loops."""
        return self.entries + self.loops

    @classmethod
    @checked
    def open(cls, path: str | os.PathLike[str]) -> DiskGraph:
        """Open a graph that was built before.

        Raises:
            DiskError, ValueError: if there is none, it is not complete, or one of its files was changed.

        >>> DiskGraph.open("nowhere")
        Traceback (most recent call last):
            ...
        gconv.external.files.DiskError: There is no graph in nowhere; create one with DiskGraph.build.
        """
        folder = Path(path)
        known = read_json(folder / "graph.json")
        if known is None:
            begun = (folder / "work").is_dir()
            state = f"The graph in {folder} is not finished; repeat the call of DiskGraph.build to resume."
            raise DiskError(state if begun else f"There is no graph in {folder}; create one with DiskGraph.build.")
        if known.get("format") != FORMAT:
            raise ValueError(f"The graph in {folder} was built by another version of gconv; build it again.")
        sizes: list[Any] = [known.get(name) for name in ("nodes", "entries", "loops")]
        if not all(type(size) is int and size >= 0 for size in sizes):
            raise DiskError(_damaged(folder / "graph.json", folder))
        graph = cls(folder, *sizes)
        lengths = {"crow.npy": 8 * (graph.nodes + 1), "col.npy": 4 * graph.entries}
        for name, length in lengths.items() if not graph.loops else [*lengths.items(), ("loops.npy", 4 * graph.nodes)]:
            file = folder / name
            if not file.is_file() or file.stat().st_size != HEADER + length:
                raise DiskError(_damaged(file, folder))
        return graph

    @classmethod
    @checked
    def build(
        cls,
        path: str | os.PathLike[str],
        edges: Any,
        nodes: int | None = None,
        *,
        undirected: bool = False,
        duplicates: Duplicates = "keep",
        memory: int | str = "2GB",
        progress: Progress = NO_PROGRESS,
    ) -> DiskGraph:
        """Build a graph in a folder from an edge list that may be larger than memory.

        Meaning: edges are distributed to buckets of rows on disk, and each bucket is sorted in memory. It takes 8 bytes
        of disk space per edge temporarily, and 4 per edge and 8 per node in the end. If the call is repeated after an
        interruption or a kill, it resumes: at most one bucket is processed again. A complete graph is only opened.

        Args:
            path: the folder, created if necessary.
            edges: a path, or a tensor (2, e): row 0 the sources, row 1 the targets; see `open_edges` for the formats.
            nodes: n, at most 2^31 - 1; None for the largest index plus one, which takes an additional pass.
            undirected: whether to add the reverse of each edge, except for self-loops.
            duplicates: "keep" repeated edges, which then add up as in a `Graph`; "drop" all but one; or "refuse" them.
            memory: limit for the whole process, such as "8GB".
            progress: called with a description, and the completed and total amounts.

        Raises:
            ValueError: if an edge is malformed or out of range (the message has its line or offset), an edge is
                repeated and duplicates is "refuse", memory is too little, or the folder holds another graph.
            DiskError: if a file cannot be read or written; an incomplete graph is never opened.

        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     DiskGraph.build(folder, torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]), memory="4GB")
        DiskGraph(3 nodes, 4 edges)
        """
        if duplicates not in ("keep", "drop", "refuse"):
            raise ValueError(f'duplicates must be "keep", "drop" or "refuse", but it is {shown(duplicates)}.')
        source = open_edges(edges)
        nodes = None if nodes is None else integer(nodes, "nodes", 0)
        folder = Path(path)
        with locked(folder):
            settings = {
                "edges": source.fingerprint, "nodes": nodes, "undirected": bool(undirected), "duplicates": duplicates
            }  # fmt: skip
            for file in ("graph.json", "work/journal.json"):
                known = read_json(folder / file)
                if known is not None and known.get("settings") != settings:
                    raise ValueError(
                        f"{folder} holds a graph of other edges or options; delete it or use another folder."
                    )
            if not (folder / "graph.json").exists():
                resumed = (folder / "work/journal.json").exists()
                try:
                    _Builder(folder, source, settings, memory, progress).run()
                except ValueError:  # once the edges are corrected, the same call is to begin again
                    if not resumed:
                        shutil.rmtree(folder / "work", ignore_errors=True)
                    raise
        return cls.open(folder)

    def rows(self, entries: int, rows: int, first: int = 0) -> Iterator[tuple[int, int, np.ndarray]]:
        """Blocks of rows from `first` on: (first row, end, crow of these rows).

        Args:
            entries, rows: maximal size of a block; a row with more entries is a separate block.
            first: the row at which to start.

        Raises:
            DiskError: if the file cannot be read, or does not contain row pointers.
        """
        path = self.path / "crow.npy"
        with opened(path) as file:
            while first < self.nodes:
                crow = np.empty(min(rows, self.nodes - first) + 1, np.int64)
                read_at(file, path, crow, HEADER + 8 * first)
                if crow[0] < 0 or crow[-1] > self.entries or (crow[1:] < crow[:-1]).any():
                    raise DiskError(_damaged(path, self.path))
                here = 0
                while here < len(crow) - 1:
                    stop = int(np.searchsorted(crow, crow[here] + entries, "right")) - 1
                    stop = min(max(stop, here + 1), len(crow) - 1)
                    yield first + here, first + stop, crow[here : stop + 1]
                    here = stop
                first += here

    def columns(self, file: int, first: int, last: int) -> np.ndarray:
        """The columns of the entries first to last - 1, from the opened col.npy.

        Raises:
            DiskError: if the file cannot be read, or one of them is no node; a kernel would read foreign memory.
        """
        path = self.path / "col.npy"
        found = read_at(file, path, np.empty(last - first, np.int32), HEADER + 4 * first)
        if len(found) and found.view(np.uint32).max() >= self.nodes:
            raise DiskError(_damaged(path, self.path))
        return found

    def __repr__(self) -> str:
        return f"DiskGraph({plural(self.nodes, 'node')}, {plural(self.num_edges, 'edge')})"


class _Builder:
    """The steps of DiskGraph.build, with a journal of completed steps."""

    def __init__(
        self, folder: Path, source: EdgeSource, settings: dict[str, Any], memory: int | str, progress: Progress
    ) -> None:
        self.folder, self.work, self.source = folder, folder / "work", source
        self.settings, self.progress = settings, progress
        self.undirected, self.duplicates = settings["undirected"], settings["duplicates"]
        left = budget(memory, 32 << 20, "building a graph")
        self.chunk = min(MAX_CHUNK, left // (EDGE_BYTES * (2 if self.undirected else 1)))
        self.most = min(MAX_SORTED, left // KEY_BYTES)  # edges that are sorted at once
        with using(self.work):
            self.work.mkdir(exist_ok=True)
        self.journal: dict[str, Any] = read_json(self.work / "journal.json") or {"settings": settings, "step": "begin"}

    def record(self, **changes: Any) -> None:
        self.journal.update(changes)
        write_json(self.work / "journal.json", self.journal)

    def run(self) -> None:
        if self.journal["step"] == "begin":
            self.begin()
        self.nodes, self.height = self.journal["nodes"], self.journal["height"]
        if self.journal["step"] == "scatter":
            self.scatter()
        if self.journal["step"] == "sort":
            self.sort()
        self.finish()

    # -- reading ---------------------------------------------------------------------------------------------------

    def checked(self, position: Position, nodes: int) -> Iterator[tuple[Position, Position, np.ndarray, np.ndarray]]:
        """Validated chunks of edges: (position before, position after, sources, targets). Raises: ValueError."""
        limit = np.uint64(nodes)  # as unsigned integers, negative numbers are large
        for after, source, target in self.source.chunks(position, self.chunk):
            bad = (source.view(np.uint64) >= limit) if source.flags.c_contiguous else (source < 0) | (source >= nodes)
            bad |= (target < 0) | (target >= nodes)
            if bad.any():
                at = int(bad.argmax())
                pair = f"{source[at]} -> {target[at]}"
                ids = f"with {plural(nodes, 'node')}, indices must be from 0 to {nodes - 1}"
                if min(source[at], target[at]) < 0:
                    ids = "indices must not be negative"
                elif nodes == 2**31 - 1:
                    ids = "at most 2^31 - 1 nodes are supported; renumber them"
                raise ValueError(f"{self.source.where(position, at)}: the edge is {pair}, but {ids}.")
            yield position, after, source, target
            position = after

    def begin(self) -> None:
        """Determine the number of nodes and the number of rows per bucket."""
        nodes, count = self.settings["nodes"], self.source.count
        if nodes is not None and nodes >= 2**31:
            raise ValueError(f"At most 2^31 - 1 nodes are supported, but nodes={nodes}.")
        if nodes is None:
            largest, count = -1, 0
            for _, _, source, target in self.checked([], 2**31 - 1):
                if len(source):
                    largest = max(largest, int(source.max()), int(target.max()))
                count += len(source)
                self.progress("counting nodes", count, self.source.count or 0)
            nodes = largest + 1
        elif count is None:
            count = _size_of(self.source) // 4  # an estimate from the size of a text file
        edges = count * (2 if self.undirected else 1)
        check_room(
            self.folder, 8 * edges + 8 * nodes, f"A graph of {plural(nodes, 'node')} and {plural(edges, 'edge')}"
        )
        wanted = max(1, min(MAX_BUCKETS, -(-4 * edges // self.most), nodes))
        height = max(1, -(-nodes // wanted))
        buckets = -(-nodes // height)
        self.record(step="scatter", nodes=nodes, height=height, position=[], sizes=[0] * buckets)

    # -- distribution of edges to buckets of rows, as 64-bit keys (row, column) ------------------------------------

    def bucket(self, number: int) -> Path:
        return self.work / f"bucket-{number}.keys"

    def scatter(self) -> None:
        sizes, position = self.journal["sizes"], self.journal["position"]
        files = []
        try:
            for number, size in enumerate(sizes):
                with using(self.bucket(number)):
                    files.append(os.open(self.bucket(number), os.O_RDWR | os.O_CREAT, 0o644))
                    os.ftruncate(files[number], 8 * size)  # discard edges written after the last journal entry
            bounds = np.arange(1, len(sizes), dtype=np.int64) * self.height << 32
            since = 0
            for _, after, source, target in self.checked(position, self.nodes):
                keys = target << 32
                keys |= source
                if self.undirected:
                    other = source != target
                    keys = np.concatenate([keys, source[other] << 32 | target[other]])
                keys.sort()
                cuts = [0, *np.searchsorted(keys, bounds).tolist(), len(keys)]
                for number, file in enumerate(files):
                    part = keys[cuts[number] : cuts[number + 1]]
                    if len(part):
                        write_at(file, self.bucket(number), part, 8 * sizes[number])
                        sizes[number] += len(part)
                since += len(source)
                position = after
                self.progress("distributing edges", sum(sizes), (self.source.count or 0) * (1 + self.undirected))
                if since >= CHECKPOINT:
                    self.save(files, sizes, position)
                    since = 0
            self.save(files, sizes, position)
            self.record(step="sort", bucket=0, row=0, entries=0, loops=0)
        finally:
            for file in files:
                os.close(file)

    def save(self, files: list[int], sizes: list[int], position: Position) -> None:
        for number, file in enumerate(files):
            sync(file, self.bucket(number))
        self.record(sizes=sizes, position=position)

    # -- sorting of buckets into rows --------------------------------------------------------------------------------

    def sort(self) -> None:
        names = [self.work / f"{name}.npy" for name in ("crow", "col", "loops")]
        with opened(names[0], True) as crow, opened(names[1], True) as col, opened(names[2], True) as loops:
            write_at(crow, names[0], np.zeros(1, np.int64), HEADER)
            for number in range(self.journal["bucket"], len(self.journal["sizes"])):
                end = min(self.nodes, (number + 1) * self.height)
                for first, last, keys in self.pieces(number, end):
                    entries = self.journal["entries"]
                    pointers, columns, own = self.compressed(keys, first, last)
                    write_at(crow, names[0], entries + pointers[1:], HEADER + 8 * (first + 1))
                    write_at(col, names[1], columns, HEADER + 4 * entries)
                    write_at(loops, names[2], own, HEADER + 4 * first)
                    for file, name in zip((crow, col, loops), names, strict=True):
                        sync(file, name)
                    self.record(row=last, entries=entries + len(columns), loops=self.journal["loops"] + int(own.sum()))
                self.record(bucket=number + 1)
                self.progress("sorting buckets", number + 1, len(self.journal["sizes"]))
                with using(self.bucket(number)):
                    self.bucket(number).unlink(missing_ok=True)
            nodes, entries = self.nodes, self.journal["entries"]
            write_at(crow, names[0], header(np.dtype("<i8"), (nodes + 1,)), 0)
            write_at(col, names[1], header(np.dtype("<i4"), (entries,)), 0)
            write_at(loops, names[2], header(np.dtype("<i4"), (nodes,)), 0)
            for file, name in zip((crow, col, loops), names, strict=True):
                sync(file, name)
        self.record(step="finish")

    def pieces(self, number: int, end: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """The remaining rows of a bucket in ranges that fit in memory: (first row, end, sorted keys)."""
        path, size, first = self.bucket(number), self.journal["sizes"][number], self.journal["row"]
        if first >= end:
            return
        with opened(path) as file:
            if size <= self.most:
                keys = read_at(file, path, np.empty(size, np.int64), 0)
                keys = keys if first == number * self.height else keys[keys >= first << 32]
                keys.sort()
                yield first, end, keys
                return
            counts = np.zeros(end - first, np.int64)
            for part in self.parts(file, path, size):
                rows = (part >> 32) - first
                counts += np.bincount(rows[rows >= 0], minlength=len(counts))
            while first < end:
                sums = counts.cumsum()
                rows = int(np.searchsorted(sums, self.most, "right"))
                if not rows:
                    raise ValueError(
                        f"Node {first} has {counts[0]} edges, which do not fit in memory; give memory="
                        f"{-(-int(counts[0]) * KEY_BYTES // 10**9) + 1}GB or more."
                    )
                low, high = first << 32, (first + rows) << 32
                found = [part[(part >= low) & (part < high)] for part in self.parts(file, path, size)]
                keys = np.concatenate(found)
                del found
                keys.sort()
                yield first, first + rows, keys
                first, counts = first + rows, counts[rows:]

    def parts(self, file: int, path: Path, size: int) -> Iterator[np.ndarray]:
        step = max(1, min(self.chunk, self.most // 4))
        for at in range(0, size, step):
            yield read_at(file, path, np.empty(min(step, size - at), np.int64), 8 * at)

    def compressed(self, keys: np.ndarray, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Row pointers starting from 0, columns, and the number of self-loops of each row."""
        if self.duplicates != "keep" and len(keys) > 1:
            again = np.flatnonzero(keys[1:] == keys[:-1])
            if len(again) and self.duplicates == "refuse":
                key = int(keys[again[0]])
                raise ValueError(self.repeated(key & (1 << 32) - 1, key >> 32))
            if len(again):
                keys = np.delete(keys, again)
        columns = keys.astype(np.int32)  # the lower 32 bits
        loop = keys >> 32 == columns
        own = np.zeros(last - first, np.int32)
        if loop.any():
            own += np.bincount((keys[loop] >> 32) - first, minlength=len(own)).astype(np.int32)
            keys, columns = keys[~loop], columns[~loop]
        pointers = np.searchsorted(keys, np.arange(first, last + 1, dtype=np.int64) << 32)
        return pointers, columns, own

    def repeated(self, source: int, target: int) -> str:
        """A message with the location of the second occurrence of an edge."""
        seen = 0
        for position, _, sources, targets in self.checked([], self.nodes):
            same = (sources == source) & (targets == target)
            if self.undirected:
                same |= (sources == target) & (targets == source)
            at = np.flatnonzero(same)
            if seen + len(at) > 1:
                place = self.source.where(position, int(at[1 - seen]))
                return f'{place}: the edge {source} -> {target} is repeated; duplicates="drop" keeps one of each.'
            seen += len(at)
        return f'The edge {source} -> {target} is repeated; duplicates="drop" keeps one of each.'

    def finish(self) -> None:
        names = ["crow.npy", "col.npy", *(["loops.npy"] if self.journal["loops"] else [])]
        for name in names:
            with using(self.folder / name):
                if (self.work / name).exists():
                    os.replace(self.work / name, self.folder / name)
        found = {"nodes": self.nodes, "entries": self.journal["entries"], "loops": self.journal["loops"]}
        write_json(self.folder / "graph.json", {"format": FORMAT, **found, "settings": self.settings})
        shutil.rmtree(self.work, ignore_errors=True)


def _damaged(file: Path, folder: Path) -> str:
    return f"{file} was changed or damaged; delete {folder} and build the graph again."


def _size_of(source: EdgeSource) -> int:
    path = Path(source.name)
    return path.stat().st_size if path.is_file() else 0
