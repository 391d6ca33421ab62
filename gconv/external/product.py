"""Powers of a normalised adjacency times a signal, S^k X, for graphs and signals larger than memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from gconv.arguments import checked, integer, plural, shown
from gconv.external.features import Features
from gconv.external.files import (
    HEADER,
    RESERVE,
    Progress,
    budget,
    check_room,
    header,
    load,
    locked,
    number_of_bytes,
    opened,
    read_at,
    read_json,
    resident,
    sync,
    using,
    write_at,
    write_json,
)
from gconv.external.graph import NO_PROGRESS, DiskGraph
from gconv.kernels import empty, native
from gconv.kernels.sparse import spmm_torch

Norm = Literal["sym", "row"] | None
FORMAT = 1
MAX_ENTRIES = 1 << 22  # entries of S in a block
BLOCK_BYTES = 1 << 24  # of the results of a block, and of a single read
T = TypeVar("T")


@dataclass(frozen=True)
class Scaling:
    """The normalisation S of a graph on disk: diagonal matrices on both sides of its 0/1 pattern.

    Args:
        norm: "sym" for D^-1/2 A D^-1/2, "row" for D^-1 A, None for A; D holds the in-degrees of A.
        loops: whether to replace the self-loops of A by one per node first, as gcn does.
    """

    norm: Norm = "sym"
    loops: bool = True

    def __post_init__(self) -> None:
        if self.norm not in ("sym", "row", None):
            raise ValueError(f'norm must be "sym", "row" or None, but it is {shown(self.norm)}.')

    def sides(self, crow: np.ndarray, own: np.ndarray | None) -> tuple[np.ndarray | None, np.ndarray | None]:
        """The left and right factors (m, 1) of a range of rows, from their pointers and numbers of self-loops."""
        if self.norm is None:
            return None, None
        degree = np.diff(crow).astype(np.float64)
        degree += 1 if self.loops else 0 if own is None else own
        with np.errstate(divide="ignore"):
            found = np.where(degree > 0, degree ** (-0.5 if self.norm == "sym" else -1.0), 0.0)[:, None]
        return found, found if self.norm == "sym" else None


class Plan(NamedTuple):
    """Sizes held in memory: channels of the slab, entries and rows of a block, rows per read."""

    width: int
    entries: int
    rows: int
    window: int

    def bytes(self, nodes: int, item: int) -> int:
        """The approximate memory in bytes."""
        block = self.entries * (12 + item) + self.rows * (3 * self.width * item + 48)
        return nodes * self.width * item + block + 3 * BLOCK_BYTES


def make_plan(nodes: int, channels: int, item: int, left: int, slab: int | None, block: int | None) -> Plan:
    """A plan with the widest slab that fits, where all slabs have about the same number of channels."""
    part = min(left // 4, 12 * BLOCK_BYTES)
    entries = block or max(1, min(MAX_ENTRIES, part // (2 * (12 + item))))
    fits = max(1, (left - part - 3 * BLOCK_BYTES) // max(1, nodes * item))
    width = min(slab or fits, channels)
    width = -(-channels // -(-channels // width))
    rows = block or max(1, min(nodes, BLOCK_BYTES // (width * item), part // (2 * (3 * width * item + 48))))
    return Plan(width, entries, rows, max(1, BLOCK_BYTES // (4 * channels * 8)))


def check_steps(k: int, alpha: float) -> tuple[int, float]:
    """The number of steps and the weight of X as numbers. Raises: TypeError, ValueError."""
    k, alpha = integer(k, "k", 1), float(alpha)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], but it is {alpha!r}.")
    return k, alpha


@checked
def propagate(
    graph: DiskGraph | str | os.PathLike[str],
    x: Any,
    k: int,
    out: str | os.PathLike[str],
    *,
    norm: Norm = "sym",
    loops: bool = True,
    alpha: float = 0.0,
    keep: Literal["all", "last"] = "all",
    dtype: torch.dtype | None = None,
    memory: int | str = "2GB",
    slab: int | None = None,
    block: int | None = None,
    progress: Progress = NO_PROGRESS,
) -> list[np.ndarray]:
    """The powers S X, S^2 X, ..., S^k X on disk, computed within a memory limit.

    Equation: Z_0 = X, Z_{t+1} = (1 - alpha) S Z_t + alpha X; with alpha = 0, Z_t = S^t X.

    Meaning: a slab, some channels of Z_t at all nodes, is held in memory; S is streamed from disk in blocks of rows,
    once per slab and power. SGC trains on S^k X, SIGN on all powers concatenated, and alpha > 0 gives appnp. By default
    S is that of gcn; norm="row", loops=False is the mean of sage, norm=None a sum. The result equals that of the layer
    in memory up to rounding. It depends on `memory` only up to rounding, and not on the number of threads.

    If the call is repeated after an interruption or a kill, it resumes with the block that was being computed, and the
    final result is identical, bit for bit. If the result is complete, it is only opened.

    Args:
        graph: a DiskGraph or its folder.
        x: (n, c): a .npy or .npz file, a tensor or an array.
        k: number of powers, at least 1.
        out: a folder for power-1.npy, ..., power-k.npy, each (n, c); created if necessary.
        norm, loops: the normalisation, see `Scaling`.
        alpha: weight of X, in [0, 1].
        keep: "last" keeps only the last power.
        dtype: torch.float32 or torch.float64; None for float64 with float64 features, else float32.
        memory: limit for the whole process, such as "8GB". With more memory, S is read fewer times.
        slab, block: maximal number of channels in memory, and of entries and rows of a block; None: as many as `memory`
            allows.
        progress: called with a description and the numbers of completed and of all rows.

    Returns:
        the powers as read-only memory maps; only the last with keep="last".

    Raises:
        ValueError: if x does not match the graph, memory is not enough for one channel, or `out` contains another
            result.
        DiskError: if a file cannot be read or written, or the disk has too little free space.

    >>> import tempfile
    >>> from gconv import GConv, Graph
    >>> from gconv.operators import sgc
    >>> edges, x, layer = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]), torch.eye(3), GConv(sgc(3, 3, k=2, bias=False))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     graph = DiskGraph.build(f"{folder}/graph", edges, memory="4GB")
    ...     powers = propagate(graph, x, 2, f"{folder}/powers", memory="4GB")
    >>> torch.allclose(torch.tensor(powers[-1]) @ layer.weight[0], layer(x, edges), atol=1e-6)
    True
    """
    k, alpha = check_steps(k, alpha)
    if keep not in ("all", "last"):
        raise ValueError(f'keep must be "all" or "last", but it is {shown(keep)}.')
    graph = graph if isinstance(graph, DiskGraph) else DiskGraph.open(graph)
    features, scaling = Features(x), Scaling(norm, bool(loops))
    if features.shape[0] != graph.nodes:
        raise ValueError(
            f"The graph has {plural(graph.nodes, 'node')}, but {features.name} has {plural(features.shape[0], 'row')}."
        )
    if dtype is None:
        dtype = torch.float64 if features.dtype == np.float64 else torch.float32
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float32 or torch.float64, but it is {shown(dtype)}.")
    slab = None if slab is None else integer(slab, "slab", 1)
    block = None if block is None else integer(block, "block", 1)
    number_of_bytes(memory)
    folder = Path(out)
    settings = {
        "graph": read_json(graph.path / "graph.json"), "features": features.fingerprint, "k": k, "alpha": alpha,
        "keep": keep, "dtype": str(dtype), **asdict(scaling),
    }  # fmt: skip
    with locked(folder):
        known = read_json(folder / "propagate.json")
        begun = read_json(folder / "work" / "journal.json") if known is None else None
        if any(found is not None and found.get("settings") != settings for found in (known, begun)):
            raise ValueError(f"{folder} holds the result of another call; delete it or use another folder.")
        if known is None:
            _Run(graph, features, scaling, folder, settings, begun, memory, slab, block, progress).run()
    powers = range(1, k + 1) if keep == "all" else (k,)
    return [load(folder / f"power-{power}.npy") for power in powers]


class _Run:
    """The steps of `propagate`, with a journal of completed steps.

    With a single slab, part (power, 0) is the result; with several, their parts are concatenated at the end, and
    part (0, slab) is a slab of X.
    """

    def __init__(
        self,
        graph: DiskGraph,
        features: Features,
        scaling: Scaling,
        folder: Path,
        settings: dict[str, Any],
        journal: dict[str, Any] | None,
        memory: int | str,
        slab: int | None,
        block: int | None,
        progress: Progress,
    ) -> None:
        self.graph, self.features, self.scaling = graph, features, scaling
        self.folder, self.work, self.progress = folder, folder / "work", progress
        self.k, self.alpha, self.keep = settings["k"], settings["alpha"], settings["keep"]
        self.n, self.c = features.shape
        self.dtype = np.dtype(np.float64 if settings["dtype"] == "torch.float64" else np.float32)
        item = self.dtype.itemsize
        if journal is None:
            left = number_of_bytes(memory) - resident() - RESERVE - (1 << 20)
            self.plan = make_plan(self.n, self.c, item, left, slab, block)
        else:
            self.plan = Plan(*journal["plan"])
        what = f"{self.plan.width} of {self.c} channels of {self.n} nodes with a block of S"
        budget(memory, self.plan.bytes(self.n, item), what)
        self.slabs = [(at, min(self.c, at + self.plan.width)) for at in range(0, self.c, self.plan.width)]
        powers = self.k + (len(self.slabs) > 1) if self.keep == "all" else 2 + bool(self.alpha)
        if journal is None:
            room = (powers + (len(self.slabs) > 1)) * self.n * self.c * item
            with using(self.work):
                self.work.mkdir(exist_ok=True)
            check_room(self.folder, room, f"{self.k} powers of a signal {(self.n, self.c)}")
        self.journal = journal or {"settings": settings, "plan": list(self.plan), "slab": 0, "power": 1, "rows": 0}

    def record(self, **changes: Any) -> None:
        self.journal.update(changes)
        write_json(self.work / "journal.json", self.journal)

    def part(self, power: int, slab: int) -> Path:
        return self.work / f"part-{power}-{slab}.npy"

    def run(self) -> None:
        if len(self.slabs) > 1 and not self.journal.get("split"):
            self.split()
        slab: Tensor | None = None
        values = torch.ones(min(self.plan.entries, max(1, self.graph.entries)), dtype=_kind(self.dtype))
        while self.journal["slab"] < len(self.slabs):
            number, power = self.journal["slab"], self.journal["power"]
            if slab is None:
                slab = empty(values, (self.n, self.plan.width))
            first, last = self.slabs[number]
            view = (
                slab if last - first == self.plan.width else slab.view(-1)[: self.n * (last - first)].view(self.n, -1)
            )
            self.load(view, power - 1, number)
            self.multiply(view, values, power, number)
            done = {"power": power + 1} if power < self.k else {"power": 1, "slab": number + 1}
            self.record(rows=0, **done)
            if self.keep == "last" and power > 1:
                self.remove(power - 1, number)
        del slab
        self.finish()

    def remove(self, power: int, slab: int) -> None:
        with using(self.part(power, slab)):
            self.part(power, slab).unlink(missing_ok=True)

    # -- reading ---------------------------------------------------------------------------------------------------

    def split(self) -> None:
        """Split X into slabs on disk, so that each can be read separately."""
        paths = [self.part(0, number) for number in range(len(self.slabs))]
        for number, (first, last) in enumerate(self.slabs):
            self.begin(paths[number], last - first)
        done = self.journal.get("split_rows", 0)
        for at in range(done, self.n, self.plan.window):
            rows = self.features.read(at, min(self.n, at + self.plan.window)).astype(self.dtype)
            for path, (first, last) in zip(paths, self.slabs, strict=True):
                with opened(path, write=True) as file:
                    write_at(file, path, rows[:, first:last], HEADER + at * (last - first) * self.dtype.itemsize)
            if (at // self.plan.window) % 64 == 63:
                self.kept(paths, split_rows=at + len(rows))
            self.progress("splitting channels", at + len(rows), self.n)
        self.kept(paths, split=True)

    def kept(self, paths: list[Path], **changes: Any) -> None:
        for path in paths:
            with opened(path, write=True) as file:
                sync(file, path)
        self.record(**changes)

    def begin(self, path: Path, width: int) -> None:
        with opened(path, write=True) as file:
            write_at(file, path, header(self.dtype, (self.n, width)), 0)

    def signal(self, power: int, number: int, first: int, last: int, stream: int = 0) -> np.ndarray:
        """Rows of a slab of Z_power."""
        if power == 0 and len(self.slabs) == 1:
            return self.features.read(first, last, stream)
        path, width = self.part(power, number), self.slabs[number][1] - self.slabs[number][0]
        with opened(path) as file:
            out = np.empty((last - first, width), self.dtype)
            return read_at(file, path, out, HEADER + first * width * self.dtype.itemsize)

    def own_loops(self, first: int, last: int) -> np.ndarray | None:
        if not self.graph.loops or self.scaling.loops:
            return None
        path = self.graph.path / "loops.npy"
        with opened(path) as file:
            return read_at(file, path, np.empty(last - first, np.int32), HEADER + 4 * first)

    def load(self, slab: Tensor, power: int, number: int) -> None:
        """Read a slab of Z_power and multiply its rows by the right factor."""
        to = slab.numpy()
        for first, last, crow in self.graph.rows(1 << 62, self.plan.window):
            rows = self.signal(power, number, first, last)
            right = self.scaling.sides(crow, self.own_loops(first, last))[1]
            if right is None:
                to[first:last] = rows
            else:
                np.multiply(rows, right, out=to[first:last], casting="unsafe")

    def blocks(self, first: int) -> Iterator[tuple[int, int, np.ndarray, np.ndarray, np.ndarray, bool]]:
        """Row blocks of S from disk: (first row, last row, crow, local crow of these columns, columns, is complete).

        A row that is longer than a block is split into several blocks.
        """
        path = self.graph.path / "col.npy"
        with opened(path) as file:
            for a, b, crow in self.graph.rows(self.plan.entries, self.plan.rows, first):
                begin, end = int(crow[0]), int(crow[-1])
                for start in range(begin, max(end, begin + 1), self.plan.entries):
                    stop = min(end, start + self.plan.entries)
                    col = self.graph.columns(file, start, stop)
                    local = (crow - start).clip(0, stop - start).astype(np.int32)
                    yield a, b, crow, local, col, stop == end

    # -- computing -------------------------------------------------------------------------------------------------

    def multiply(self, slab: Tensor, values: Tensor, power: int, number: int) -> None:
        path, width = self.part(power, number), slab.shape[1]
        first, last = self.slabs[number]
        what = f"power {power} of {self.k}" + (f", channels {first} to {last - 1}" if len(self.slabs) > 1 else "")
        self.begin(path, width)
        buffers = [torch.empty(min(self.plan.rows, self.n), width, dtype=slab.dtype) for _ in range(2)]
        written: Future[None] | None = None
        open_row: Tensor | None = None
        with opened(path, write=True) as file, ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
            for a, b, crow, local, col, whole in _ahead(reader, self.blocks(self.journal["rows"])):
                y = buffers[0][: b - a]
                _product(local, col, values, slab, y, open_row)
                open_row = None if whole else y
                if not whole:
                    continue
                self.scale(y, slab[a:b], crow, a, b, number)
                if written is not None:
                    written.result()
                written = writer.submit(self.store, file, path, y, a, b)
                buffers.reverse()
                self.progress(what, b, self.n)
            if written is not None:
                written.result()

    def scale(self, y: Tensor, x: Tensor, crow: np.ndarray, a: int, b: int, number: int) -> None:
        """Add self-loops, multiply by the left factor, and add alpha X."""
        to, own = y.numpy(), self.own_loops(a, b)
        if self.scaling.loops:
            y += x
        elif own is not None:
            to += own[:, None].astype(to.dtype) * x.numpy()
        left = self.scaling.sides(crow, own)[0]
        if left is not None:
            np.multiply(to, left * (1 - self.alpha), out=to, casting="unsafe")
        elif self.alpha:
            to *= 1 - self.alpha
        if self.alpha:
            to += self.alpha * self.signal(0, number, a, b, 1).astype(to.dtype)

    def store(self, file: int, path: Path, y: Tensor, a: int, b: int) -> None:
        write_at(file, path, y.numpy(), HEADER + a * y.shape[1] * self.dtype.itemsize)
        sync(file, path)
        self.record(rows=b)

    # -- results -----------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        powers = range(1, self.k + 1) if self.keep == "all" else (self.k,)
        for power in powers:
            result = self.folder / f"power-{power}.npy"
            if len(self.slabs) > 1:
                if power > self.journal.get("merged", 0):
                    self.merge(power)
                    self.record(merged=power)
                for number in range(len(self.slabs)):
                    self.remove(power, number)
            trial = self.part(power, 0) if len(self.slabs) == 1 else self.work / result.name
            with using(result):
                if trial.exists():
                    os.replace(trial, result)
        write_json(self.folder / "propagate.json", {"format": FORMAT, "settings": self.journal["settings"]})
        shutil.rmtree(self.work, ignore_errors=True)

    def merge(self, power: int) -> None:
        path = self.work / f"power-{power}.npy"
        self.begin(path, self.c)
        with opened(path, write=True) as file:
            for at in range(0, self.n, self.plan.window):
                last = min(self.n, at + self.plan.window)
                rows = [self.signal(power, number, at, last) for number in range(len(self.slabs))]
                write_at(file, path, np.concatenate(rows, 1), HEADER + at * self.c * self.dtype.itemsize)
                self.progress(f"power {power}, merging channels", last, self.n)
            sync(file, path)


def _kind(dtype: np.dtype) -> torch.dtype:
    return torch.float64 if dtype == np.float64 else torch.float32


def _product(crow: np.ndarray, col: np.ndarray, values: Tensor, x: Tensor, y: Tensor, add: Tensor | None) -> None:
    """y = S x + add for a block of rows of S, by the compiled kernel if it is available."""
    pointers, columns = torch.from_numpy(crow), torch.from_numpy(col)
    values = values[: len(col)]
    if native.supports(values, x):
        native.spmm(pointers, columns, values, x, add, None, (1.0, float(add is not None), 0.0), y, whole=False)
        return
    sites = pointers.new_empty(1).expand(x.shape[0] + 1)  # only its length is used
    found = spmm_torch(values, x, None, pointers, columns, sites)
    y.copy_(found if add is None else found.add_(add))


def _ahead(pool: ThreadPoolExecutor, items: Iterator[T]) -> Iterator[T]:
    """The same items, prefetched by one: the next item is computed in another thread."""
    end: Any = object()
    following = pool.submit(next, items, end)
    while (item := following.result()) is not end:
        following = pool.submit(next, items, end)
        yield item
