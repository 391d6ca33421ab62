"""Partitions: the assignment of graph nodes, or rows of a grid, to processes."""

from __future__ import annotations

import hashlib
import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

import gconv
from gconv.arguments import checked, integer, plural, shown
from gconv.caches import Holders
from gconv.domains import Graph, Grid
from gconv.parallel.processes import Processes

Method = Literal["rows", "rcm", "metis"]
T = TypeVar("T")
MAX_BLOCKS = 64  # cached blocks of a partition
# clear_cache keeps them, because building a block communicates: a process that has lost its block would wait for others
_BLOCKS: Holders[Partition] = Holders(
    "blocks of partitions", "partitions", lambda partition: [partition.made], stays=True
)


def even(n: int, parts: int) -> tuple[int, ...]:
    """Bounds of an even partition: part r is n r // parts to n (r + 1) // parts - 1."""
    return tuple(n * r // parts for r in range(parts + 1))


@dataclass(eq=False, repr=False)
class Partition:
    """A graph or a grid whose sites are distributed over processes, returned by `shard`.

    domain: the Graph, with its nodes in the order of the parts, or the Grid.
    bounds: process r holds the nodes, or the rows along the first axis, bounds[r] to bounds[r + 1] - 1.
    order: (n,) the original index of each node; None if the order is unchanged.
    processes: the group.
    """

    domain: Graph | Grid
    bounds: tuple[int, ...]
    order: Tensor | None
    processes: Processes
    made: dict[Any, Any] = field(default_factory=dict)  # cached blocks of structures, see `memo`

    def __post_init__(self) -> None:
        _BLOCKS.add(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Partition:
        return self  # copies of a model run on the same part, and are called with the same domain

    def memo(self, key: Any, make: Callable[[], T]) -> T:
        """The block that `make` builds, cached. All processes make the same calls, so they evict the same blocks."""
        if key not in self.made:
            block = make()
            if len(self.made) >= MAX_BLOCKS:
                self.made.clear()
            self.made[key] = block
        found: T = self.made[key]
        return found

    @property
    def rank(self) -> int:
        return self.processes.rank

    @property
    def range(self) -> tuple[int, int]:
        """The first node or row of this process, and the end of its range."""
        return self.bounds[self.rank], self.bounds[self.rank + 1]

    @property
    def sites(self) -> int:
        return self.domain.size if isinstance(self.domain, Grid) else self.domain.sites[1]

    @property
    def width(self) -> int:
        """The number of sites per row."""
        return math.prod(self.domain.shape[1:]) if isinstance(self.domain, Grid) else 1

    @property
    def device(self) -> torch.device:
        return torch.device("cpu") if isinstance(self.domain, Grid) else self.domain.device

    @property
    def axis(self) -> int:
        """The (negative) axis along which signals are partitioned."""
        return -self.domain.ndim if isinstance(self.domain, Grid) else -2

    @checked
    def take(self, x: Tensor, axis: int | None = None) -> Tensor:
        """The part of a signal on the whole domain that belongs to this process; axis=0 for labels.

        Raises:
            ValueError: if it has another number of nodes or rows.
        """
        axis = self.axis if axis is None else axis
        n = self.bounds[-1]
        if not -x.ndim <= axis < x.ndim or x.shape[axis] != n:
            raise ValueError(
                f"The whole signal has {plural(n, 'row')} along axis {axis}, but its shape is {tuple(x.shape)}."
            )
        low, high = self.range
        if self.order is not None:
            return x.index_select(axis, self.order[low:high].to(x.device))
        return x.narrow(axis, low, high - low)

    @checked
    def gather(self, y: Tensor, axis: int | None = None) -> Tensor:
        """The whole signal, in every process, in the original order of the nodes; without gradients.

        The parts may also be on another grid, such as the output of a network.

        Raises:
            ValueError: if y has no such axis, or the nodes were reordered and the parts together do not have one row
                per node.
        """
        if axis is None:
            axis = 0 if y.ndim == 1 else self.axis
        if not -y.ndim <= axis < y.ndim:
            raise ValueError(f"gather needs the rows of this process along axis {axis}, not {tuple(y.shape)}.")
        axis %= y.ndim
        parts = self.processes.gathered(y.detach().movedim(axis, 0).cpu().clone())  # of a view all memory would be sent
        whole = torch.cat(parts).movedim(0, axis).to(y.device)
        if self.order is None:
            return whole
        if whole.shape[axis] != len(self.order):
            raise ValueError(
                f"gather needs one row per node, {len(self.order)}, along axis {axis}, but the parts have "
                f"{whole.shape[axis]} rows in all."
            )
        place = torch.empty_like(self.order)
        place[self.order] = torch.arange(len(place), device=place.device)
        return whole.index_select(axis, place.to(y.device))

    def __repr__(self) -> str:
        low, high = self.range
        parts = plural(self.processes.size, "part")
        return f"Partition({self.domain!r}, {parts}, this is {self.rank}: {low} to {high - 1})"


def shard(
    domain: Graph | Grid, parts: int | None = None, method: Method | Tensor = "rows", group: Any = None
) -> Partition:
    """Partition a domain over the processes of a group; every process must make the same call.

    Meaning: process r holds consecutive nodes, or rows along the first axis of a grid. Each process stores the edges of
    the whole graph and selects those that its nodes need; signals and outputs of layers are partitioned.

    Args:
        domain: a Graph or a Grid, the same in every process.
        parts: the number of parts; must be the number of processes.
        method: for a graph, "rows" keeps the order of the nodes; "rcm" places neighbours close together (needs scipy);
            "metis" minimises the number of cut edges (needs pymetis); or (n,) the part of each node. For grids, and for
            unions of graphs, "rows".
        group: of torch.distributed; default: all processes.

    Raises:
        RuntimeError: if torch.distributed is not initialised.
        TypeError: if domain is not a Graph or Grid.
        ValueError: if there are fewer nodes or rows than parts, the number of parts differs from that of processes, the
            method is not supported for the domain, or pymetis or scipy is missing.
        ProcessError: if the processes pass different domains or methods, or run different versions.

    >>> import torch.distributed as dist
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> shard(Graph(torch.tensor([[0, 1], [1, 2]])))
    Partition(Graph(3 nodes, 2 edges), 1 part, this is 0: 0 to 2)
    >>> dist.destroy_process_group()
    """
    processes = Processes(group)
    problem = None
    try:
        _check(domain, parts, method, processes.size)
    except (TypeError, ValueError) as error:
        problem = error
    found = processes.gathered(None if problem is None else str(problem))
    if problem is not None:
        raise problem
    if any(found):
        rank, text = next((r, t) for r, t in enumerate(found) if t)
        raise ValueError(f"shard failed in rank {rank}: {text}")
    processes.agree(
        the_domain=_digest(domain),
        the_method=method if isinstance(method, str) else _digest(method),
        versions=(torch.__version__, gconv.__version__),
    )
    n = domain.shape[0] if isinstance(domain, Grid) else domain.size
    bounds = even(n, processes.size)
    if isinstance(domain, Grid) or (isinstance(method, str) and method == "rows"):
        return Partition(domain, bounds, None, processes)
    if isinstance(method, str) and method == "rcm":
        graph, order = domain.reordered("rcm")
        processes.agree(the_order_of_nodes=_digest(order))
        return Partition(graph, bounds, order, processes)
    part = method.long() if isinstance(method, Tensor) else metis_parts(domain, processes.size)
    processes.agree(the_parts=_digest(part))
    order = torch.argsort(part, stable=True).to(domain.device)
    place = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device))
    counts = torch.bincount(part.cpu(), minlength=processes.size)
    return Partition(domain.permute(place), (0, *counts.cumsum(0).tolist()), order, processes)


def _check(domain: Any, parts: Any, method: Any, size: int) -> None:
    if not isinstance(domain, Graph | Grid):
        raise TypeError(f"shard takes a Graph or a Grid, but {shown(domain)} was given.")
    count = size if parts is None else integer(parts, "parts", 1)
    n, what = (domain.shape[0], "rows") if isinstance(domain, Grid) else (domain.size, "nodes")
    if count > n:
        raise ValueError(f"{n} {what} cannot be distributed over {plural(count, 'part')}: use at most {n} processes.")
    if count != size:
        raise ValueError(f"parts must be the number of processes, {size}, but it is {count}.")
    if isinstance(method, Tensor):
        if isinstance(domain, Grid):
            raise ValueError("A grid is cut into slabs of rows: use method='rows'.")
        kind = method.dtype
        if method.shape != (n,) or kind.is_floating_point or kind.is_complex or kind == torch.bool:
            raise ValueError(
                f"method must give the part of each of {n} nodes, integers ({n},), but it is {kind} of shape "
                f"{tuple(method.shape)}."
            )
        found = method.long()
        if n and not 0 <= int(found.min()) <= int(found.max()) < size:
            raise ValueError(f"method must contain parts from 0 to {size - 1}, but it contains others.")
    elif not isinstance(method, str) or method not in ("rows", "rcm", "metis"):
        raise ValueError(f"method must be 'rows', 'rcm', 'metis' or the part of each node, but it is {shown(method)}.")
    elif isinstance(domain, Grid) and method != "rows":
        raise ValueError(f"A grid is cut into slabs of rows: use method='rows', not {method!r}.")
    elif method != "rows":
        _required(method)
    if isinstance(domain, Graph) and len(domain.ptr) != 2 and not (isinstance(method, str) and method == "rows"):
        raise ValueError(
            f"A union of {len(domain.ptr) - 1} graphs keeps the order of its nodes, which marks its parts: use "
            "method='rows'."
        )


def _required(method: str) -> Any:
    """The package that computes the order of the nodes."""
    name = {"metis": "pymetis", "rcm": "scipy"}[method]
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ValueError(f"method={method!r} needs {name}, which is not installed: pip install {name}.") from None


def metis_parts(graph: Graph, parts: int) -> Tensor:
    """(n,) the part of each node by METIS, which minimises the number of cut edges. Raises: ValueError."""
    ends = torch.cat([graph.edge_index, graph.edge_index.flip(0)], 1).cpu()
    ends = torch.unique(ends[:, ends[0] != ends[1]], dim=1)  # sorted by the first
    first = torch.zeros(graph.size + 1, dtype=torch.int64)
    first[1:] = torch.bincount(ends[0], minlength=graph.size).cumsum(0)
    pymetis, lists = _required("metis"), (first.tolist(), ends[1].tolist())
    if hasattr(pymetis, "CSRAdjacency"):
        _, part = pymetis.part_graph(parts, pymetis.CSRAdjacency(*lists))
    else:  # before pymetis 2025.2
        _, part = pymetis.part_graph(parts, xadj=lists[0], adjncy=lists[1])
    return torch.tensor(part, dtype=torch.int64)


def _digest(value: Graph | Grid | Tensor) -> str:
    """A short description with a hash of the contents."""
    if isinstance(value, Grid):
        return repr(value)
    if isinstance(value, Tensor):
        tensors, text = [value], ""
    else:
        names = ("edge_index", "edge_weight", "edge_attr", "edge_type", "pos")
        tensors = [t for name in names if (t := getattr(value, name)) is not None]
        text = f"{value!r} {value.ptr}"
    made = hashlib.sha256(repr((text, [(tuple(t.shape), str(t.dtype)) for t in tensors])).encode())
    for t in tensors:
        made.update(t.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if t.numel() else b"")
    return f"{text or 'a tensor'} #{made.hexdigest()[:12]}"
