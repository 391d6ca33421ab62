"""Halo rows by partition method: how many rows of other processes a layer reads when a graph is partitioned.

    random    random node order; each process holds consecutive nodes
    rows      the given node order (row by row for the grid, random for the other graphs)
    rcm       reverse Cuthill-McKee order; each process holds consecutive nodes
    metis     METIS (pymetis), which minimises the edges between parts

Protocol: a square grid with 4 neighbours, a geometric graph (random points in a square, an edge from each of the 8
nearest points) and a power-law graph (8 edges per node, both ends drawn as in a Chung-Lu graph of degree exponent 3,
made undirected). Each process holds one part; its halo is the set of nodes of other parts that its nodes read, which
`gconv.parallel.halo` exchanges once per layer. Halos are counted without starting processes, from the column support of
the adjacency matrix. The number of bytes is halo rows x width x 4 (float32).

    python -m experiments.sweep halo_rows
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from experiments.harness import common
from experiments.harness.experiment import Experiment, Place
from experiments.harness.render import Table, plain
from gconv import Graph, grid_graph
from gconv.laplacian import adjacency
from gconv.parallel.halo import column_support
from gconv.parallel.partition import even, metis_parts

GRAPHS, METHODS = ("grid", "geometric", "power law"), ("random", "rows", "rcm", "metis")
ITEM = 4  # bytes per value


@dataclass(frozen=True)
class Config:
    """Options."""

    graph: Literal["grid", "geometric", "power law", "all"] = "all"
    """Graph."""
    method: Literal["random", "rows", "rcm", "metis", "all"] = "all"
    """Partition method."""
    side: int = 128
    """Side of the grid; the other graphs have the same number of nodes."""
    parts: int = 8
    """Number of processes."""
    width: int = 64
    """Number of channels that are exchanged."""
    seed: int = 0
    """Random seed."""

    def __post_init__(self) -> None:
        """Check the options."""
        for name, least in (("side", 4), ("parts", 1), ("width", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.parts > self.side**2:
            raise ValueError(f"{self.side**2} nodes cannot be shared out among {self.parts} parts")


def expand(config: Config, seeds: int) -> list[Config]:
    """One configuration per run."""
    graphs: Any = GRAPHS if config.graph == "all" else (config.graph,)
    methods: Any = METHODS if config.method == "all" else (config.method,)
    return [replace(config, graph=g, method=m, seed=config.seed + s)
            for s in range(seeds) for g in graphs for m in methods]  # fmt: skip


def drawn(config: Config) -> Graph:
    """The graph."""
    n, generator = config.side**2, torch.Generator().manual_seed(config.seed)
    if config.graph == "grid":
        return Graph(grid_graph((config.side, config.side), 4).edge_index, n)
    if config.graph == "geometric":
        points = torch.rand(n, 2, generator=generator, dtype=torch.float64)
        near = torch.cat([torch.cdist(part, points).topk(9, largest=False)[1][:, 1:] for part in points.split(1024)])
        return Graph(torch.stack([near.flatten(), torch.arange(n).repeat_interleave(8)]), n)
    ends = (torch.rand(2, 4 * n, generator=generator, dtype=torch.float64) ** 2 * n).long()
    ends = torch.randperm(n, generator=generator)[ends]
    ends = torch.unique(torch.cat([ends, ends.flip(0)], 1), dim=1)
    return Graph(ends[:, ends[0] != ends[1]], n)


def shared(config: Config, graph: Graph) -> tuple[Graph, tuple[int, ...]]:
    """The graph with its nodes ordered by part, and the bounds of the parts."""
    n, generator = graph.size, torch.Generator().manual_seed(config.seed + 1)
    if config.method == "random":
        return graph.permute(torch.randperm(n, generator=generator)), even(n, config.parts)
    if config.method == "rows":
        return graph, even(n, config.parts)
    if config.method == "rcm":
        return graph.reordered("rcm")[0], even(n, config.parts)
    part = metis_parts(graph, config.parts)
    place = torch.empty_like(part)
    place[torch.argsort(part, stable=True)] = torch.arange(n)
    return graph.permute(place), (0, *torch.bincount(part, minlength=config.parts).cumsum(0).tolist())


def halos(graph: Graph, bounds: Sequence[int]) -> list[Tensor]:
    """For each part, the nodes of other parts that it reads."""
    S, found = adjacency(graph, torch.float32), []
    for low, high in itertools.pairwise(bounds):
        read = column_support(S, low, high, torch.float32, torch.device("cpu"))
        found.append(read[(read < low) | (read >= high)])
    return found


def run(config: Config, place: Place) -> common.Outcome:
    """Partition one graph with one method."""
    graph, bounds = shared(config, drawn(config))
    rows = [len(part) for part in halos(graph, bounds)]
    own = [b - a for a, b in itertools.pairwise(bounds)]
    return common.Outcome({
        "nodes": graph.size,
        "edges": graph.edge_index.shape[1],
        "halo_rows": sum(rows),
        "share": sum(rows) / graph.size,
        "largest": max(rows),
        "imbalance": max(own) * config.parts / graph.size,
        "bytes": sum(rows) * config.width * ITEM,
    })  # fmt: skip


def seen(config: Config, root: Path | None) -> common.Data:
    """The data of a run."""
    return common.Data("random graphs", "generated")


def report(rows: list[common.Row]) -> None:
    """Print one line per run."""
    for row in rows:
        c, m = row["config"], row["metrics"]
        print(
            f"{c['graph']:10s} {c['method']:7s} {m['halo_rows']:6d} halo rows of {m['nodes']} nodes "
            f"({m['share']:.2f} an own row), {m['bytes'] / 1e6:.2f} MB a layer, largest part {m['imbalance']:.2f}"
        )


EXPERIMENT = Experiment(
    name="halo_rows",
    about=__doc__ or "",
    config=Config,
    expand=expand,
    run=run,
    data=seen,
    smoke={"side": 8, "parts": 4},
    report=report,
    tolerance={"halo_rows": 100, "share": 0.05, "largest": 100, "imbalance": 0.05, "bytes": 100_000},
    defaults={"seeds": 1},
)


def cells(row: common.Row) -> dict[str, float]:
    """Two columns per method: halo rows per own row, and megabytes."""
    method, m = row["config"]["method"], row["metrics"]
    return {f"{method}: halo rows an own row": m["share"], f"{method}: MB a layer": m["bytes"] / 1e6}


TABLE = Table(
    name="halo_rows",
    experiment="halo_rows",
    label="config.graph",
    labels=GRAPHS,
    cells=cells,
    format=plain,
    caption=(
        "16,384 nodes among 8 processes: rows of other processes that a layer reads, for each row of its own, and what "
        "all processes together send for one layer of 64 float32 channels: halo rows x width x 4 bytes."
    ),
    command="python -m experiments.sweep halo_rows --official",
)

main = EXPERIMENT.main

if __name__ == "__main__":
    main()
