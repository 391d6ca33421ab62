"""Which process holds which nodes of a graph, or rows of a grid."""

from __future__ import annotations

import hashlib
import importlib
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

import gconv
from gconv.arguments import integer, shown
from gconv.domains import Graph, Grid
from gconv.parallel.processes import Processes

Method = Literal["rows", "rcm", "metis"]


def even(n: int, parts: int) -> tuple[int, ...]:
    """Bounds of as even parts as there are: part r is n r // parts to n (r + 1) // parts - 1."""
    return tuple(n * r // parts for r in range(parts + 1))


@dataclass(eq=False, repr=False)
class Partition:
    """A graph or a grid whose sites are shared out among processes; `shard` makes it.

    domain: the Graph, with its nodes in the order of the parts, or the Grid.
    bounds: process r holds the nodes, or the rows along the first axis, bounds[r] to bounds[r + 1] - 1.
    order: (n,) the number that each node had in the graph that was given; None where it kept it.
    processes: the group.
    """

    domain: Graph | Grid
    bounds: tuple[int, ...]
    order: Tensor | None
    processes: Processes
    made: dict[Any, Any] = field(default_factory=dict)  # blocks of structures, by structure

    @property
    def rank(self) -> int:
        return self.processes.rank

    @property
    def range(self) -> tuple[int, int]:
        """The first node or row of this process, and the first that is no longer its own."""
        return self.bounds[self.rank], self.bounds[self.rank + 1]

    @property
    def sites(self) -> int:
        return self.domain.size if isinstance(self.domain, Grid) else self.domain.sites[1]

    @property
    def width(self) -> int:
        """Sites in a row."""
        return math.prod(self.domain.shape[1:]) if isinstance(self.domain, Grid) else 1

    @property
    def device(self) -> torch.device:
        return torch.device("cpu") if isinstance(self.domain, Grid) else self.domain.device

    @property
    def axis(self) -> int:
        """Of signals, counted from the end, along which they are cut."""
        return -self.domain.ndim if isinstance(self.domain, Grid) else -2

    def take(self, x: Tensor, axis: int | None = None) -> Tensor:
        """The part of this process of a signal, or with an axis of any tensor (labels: axis=0) on the whole domain.

        Raises:
            ValueError: if it has another number of nodes or rows.
        """
        axis = self.axis if axis is None else axis
        n = self.bounds[-1]
        if not -x.ndim <= axis < x.ndim or x.shape[axis] != n:
            raise ValueError(f"The whole signal has {n} rows along axis {axis}, but its shape is {tuple(x.shape)}.")
        low, high = self.range
        if self.order is not None:
            return x.index_select(axis, self.order[low:high].to(x.device))
        return x.narrow(axis, low, high - low)

    def gather(self, y: Tensor, axis: int | None = None) -> Tensor:
        """The whole signal, in every process, in the order of the graph that was given; gradients do not pass.

        The parts along the axis may also be of another grid, such as the output of a network.
        """
        axis = (self.axis if axis is None else axis) % y.ndim
        parts = self.processes.gathered(y.detach().movedim(axis, 0).cpu())
        whole = torch.cat(parts).movedim(0, axis).to(y.device)
        if self.order is None:
            return whole
        place = torch.empty_like(self.order)
        place[self.order] = torch.arange(len(place), device=place.device)
        return whole.index_select(axis, place.to(y.device))

    def __repr__(self) -> str:
        low, high = self.range
        return f"Partition({self.domain!r}, {self.processes.size} parts, this is {self.rank}: {low} to {high - 1})"


def shard(
    domain: Graph | Grid, parts: int | None = None, method: Method | Tensor = "rows", group: Any = None
) -> Partition:
    """Share a domain out among the processes of a group; every process makes the same call.

    Meaning: process r holds consecutive nodes, or rows along the first axis of a grid. Each process keeps the edges of
    the whole graph, from which it takes what its nodes read; signals, and what layers make of them, are in parts.

    Args:
        domain: a Graph or a Grid, the same in every process.
        parts: how many; that of the processes.
        method: of a graph: "rows" keeps the order of the nodes; "rcm" puts neighbours near each other (needs scipy);
            "metis" cuts few edges (needs pymetis); or (n,) the part of each node. Grids take "rows".
        group: of torch.distributed; default: all processes.

    Raises:
        RuntimeError: if torch.distributed has not been started.
        ValueError: if there are fewer nodes or rows than parts, or other parts than processes; or where pymetis (scipy)
            is missing.
        ProcessError: if the processes give different domains, methods, or run different versions.

    >>> import torch.distributed as dist
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> shard(Graph(torch.tensor([[0, 1], [1, 2]])))
    Partition(Graph(3 nodes, 2 edges), 1 parts, this is 0: 0 to 2)
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
        raise ValueError(f"Rank {rank} was given what shard refuses: {text}")
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
        return Partition(graph, bounds, order, processes)
    part = method if isinstance(method, Tensor) else metis_parts(domain, processes.size)
    order = torch.argsort(part, stable=True).to(domain.device)
    place = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device))
    counts = torch.bincount(part.cpu(), minlength=processes.size)
    return Partition(domain.permute(place), (0, *counts.cumsum(0).tolist()), order, processes)


def _check(domain: Any, parts: Any, method: Any, size: int) -> None:
    if not isinstance(domain, Graph | Grid):
        raise TypeError(f"shard takes a Graph or a Grid, but it was given {shown(domain)}.")
    count = size if parts is None else integer(parts, "parts", 1)
    n, what = (domain.shape[0], "rows") if isinstance(domain, Grid) else (domain.size, "nodes")
    if count > n:
        raise ValueError(f"{n} {what} cannot be shared out among {count} parts: use at most {n} processes.")
    if count != size:
        raise ValueError(f"Each process holds one part: there are {size} processes, but parts={count}.")
    if isinstance(method, Tensor):
        if isinstance(domain, Grid):
            raise ValueError("A grid is cut into slabs of rows: method='rows'.")
        if method.shape != (n,) or method.is_floating_point() or method.dtype == torch.bool:
            raise ValueError(f"method must give the part of each of {n} nodes, but its shape is {tuple(method.shape)}.")
        if n and not 0 <= int(method.min()) <= int(method.max()) < size:
            raise ValueError(f"The parts are numbered from 0 to {size - 1}, but method holds others.")
    elif method not in ("rows", "rcm", "metis"):
        raise ValueError(f"method must be 'rows', 'rcm', 'metis' or the part of each node, but it is {shown(method)}.")
    elif isinstance(domain, Grid) and method != "rows":
        raise ValueError(f"A grid is cut into slabs of rows: method='rows', not {method!r}.")
    elif method != "rows":
        _needed(method)


def _needed(method: str) -> Any:
    """The package that orders the nodes."""
    name = {"metis": "pymetis", "rcm": "scipy"}[method]
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ValueError(f"method={method!r} needs {name}, which is not installed: pip install {name}.") from None


def metis_parts(graph: Graph, parts: int) -> Tensor:
    """The part of each node (n,) by METIS, which cuts few edges. Raises: ValueError where pymetis is missing."""
    ends = torch.cat([graph.edge_index, graph.edge_index.flip(0)], 1).cpu()
    ends = torch.unique(ends[:, ends[0] != ends[1]], dim=1)  # sorted by the first
    first = torch.zeros(graph.size + 1, dtype=torch.int64)
    first[1:] = torch.bincount(ends[0], minlength=graph.size).cumsum(0)
    pymetis, lists = _needed("metis"), (first.tolist(), ends[1].tolist())
    if hasattr(pymetis, "CSRAdjacency"):
        _, part = pymetis.part_graph(parts, pymetis.CSRAdjacency(*lists))
    else:  # before pymetis 2025.2
        _, part = pymetis.part_graph(parts, xadj=lists[0], adjncy=lists[1])
    return torch.tensor(part, dtype=torch.int64)


def _digest(value: Graph | Grid | Tensor) -> str:
    """A short name of everything that it holds."""
    if isinstance(value, Grid):
        return repr(value)
    if isinstance(value, Tensor):
        tensors, text = [value], ""
    else:
        names = ("edge_index", "edge_weight", "edge_attr", "edge_type", "pos")
        tensors = [t for name in names if (t := getattr(value, name)) is not None]
        text = repr(value)
    made = hashlib.sha256(repr((text, [(tuple(t.shape), str(t.dtype)) for t in tensors])).encode())
    for t in tensors:
        made.update(t.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if t.numel() else b"")
    return f"{text or 'a tensor'} #{made.hexdigest()[:12]}"
