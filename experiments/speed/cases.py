"""The cases of `experiments.speed` as data: sizes, goals and time limits."""

from dataclasses import dataclass, replace
from typing import Any, Literal

Kind = Literal["limits", "spmm", "layer", "training", "edges", "call", "filter", "signals"]
LAYERS = ("gcn", "cheb", "sage", "gat", "tag", "appnp")
MODES = ("default", "max-autotune-no-cudagraphs")
"""Modes of torch.compile in which PyG is also measured; the faster one is used."""
COMPILED = ", compiled "
"""Prefix of the mode in the names of compiled variants."""

# The graph formats that each PyG layer supports. "cached": the layer caches its normalised graph. "normalised": the
# graph is normalised once, outside the layer (TAGConv has no cache). ChebConv supports only edge_index.
FORMS: dict[str, tuple[str, ...]] = {
    "gcn": ("PyG edge_index", "PyG edge_index cached", "PyG CSR cached"),
    "cheb": ("PyG edge_index",),
    "sage": ("PyG edge_index", "PyG CSR"),
    "gat": ("PyG edge_index",),
    "tag": ("PyG edge_index", "PyG CSR normalised"),
    "appnp": ("PyG edge_index cached", "PyG CSR cached"),
}
# If PyG's layer also accepts features as a CSR tensor, this variant is measured in training steps.
SPARSE_FEATURES = ("gcn", "gat", "appnp")


@dataclass(frozen=True)
class Case:
    """A comparison."""

    case: str
    kind: Kind
    compared: bool = True
    """Whether gconv is compared with a peer."""
    group: str = ""
    """Group of cases with a goal for their geometric mean, or to which an exponent is fitted."""
    op: str = ""
    nodes: int = 0
    edges: int = 0
    """Number of directed edges; each has its reverse."""
    channels: tuple[int, ...] = ()
    """Channel widths from the input to the output."""
    density: float = 1.0
    """Fraction of non-zero features."""
    backward: bool = True
    against: str = ""
    """The peer to compare with; if empty, the fastest."""
    goal: float = 0.0
    """Goal: how many times faster than that peer gconv should be; 0 for none."""
    memory: bool = False
    """Whether `experiments.speed.memory` measures the peak memory of this case."""
    memory_goal: float = 0.0
    """Goal: maximum fraction of that peer's peak memory; 0 for none."""
    budget: float = 10.0
    """Time limit of the rounds in seconds; at least three rounds are run."""
    rounds: int = 40
    """Maximum number of rounds."""
    threads: int = 0
    """Number of threads, 0 for all; with one thread, processor time is measured."""
    seed: int = 0


@dataclass(frozen=True)
class Sizes:
    """The sizes of all cases."""

    nodes: int = 170_000
    edges: int = 2_330_000
    """Number of edges; with a self-loop per node, 2.5 million non-zeros."""
    widths: tuple[int, ...] = (16, 64, 128, 256)
    cora: tuple[int, int, tuple[int, ...], float] = (2708, 10_556, (1433, 16, 7), 0.0127)
    """Nodes, edges, widths, and fraction of non-zero features."""
    pubmed: tuple[int, int, tuple[int, ...], float] = (19_717, 88_648, (500, 16, 3), 0.1)
    growth: tuple[int, ...] = (1_000, 3_160, 10_000, 31_600, 100_000, 316_000, 1_000_000, 3_160_000, 10_000_000)
    """Numbers of edges, with 16 edges per node."""
    heard: int = 100_000
    """Number of edges from which memory is measured; for fewer edges it is comparable to the noise of a process."""
    signals: tuple[int, int] = (20_000, 32)
    """Nodes and signals of the filter."""
    batch: tuple[int, int, int] = (5_000, 40_000, 32)
    """Nodes, edges and signals of attention on many signals of one graph."""
    budget: float = 1.0
    """Factor for the time limit of each case."""


FULL = Sizes()
QUICK = Sizes(
    nodes=300, edges=2_400, widths=(16, 64), cora=(120, 480, (60, 8, 7), 0.05), pubmed=(200, 800, (40, 8, 3), 0.1),
    growth=(1_000, 3_160, 10_000), heard=10_000, signals=(300, 2), batch=(60, 240, 3), budget=0.02,
)  # fmt: skip
MODELS = {"cora": "Cora's size", "pubmed": "PubMed's size"}


def cases(sizes: Sizes = FULL, threads: int = 0, seed: int = 0) -> list[Case]:
    """All cases, in the order of the table in docs/results/speed.md."""
    found = [Case("limits of the machine", "limits", compared=False, rounds=10, budget=20, threads=threads, seed=seed)]
    large: dict[str, Any] = {"nodes": sizes.nodes, "edges": sizes.edges}
    where = f"{sizes.nodes} nodes, {sizes.edges + sizes.nodes} non-zeros"
    for width in sizes.widths:
        signal: dict[str, Any] = {"channels": (width, width), "op": "gcn", "seed": seed, "threads": threads, **large}
        name = f"S X at width {width}, {where}"
        once: dict[str, Any] = {"group": "spmm forward", "backward": False, "against": "torch CSR", "goal": 2.0}
        both: dict[str, Any] = {"group": "spmm", "against": "PyG edge_index", "goal": 10.0, "memory": True}
        found.append(Case(f"{name}, forward", "spmm", **once, **signal))
        found.append(Case(f"{name}, forward + backward", "spmm", **both, **signal))
    for op in LAYERS:
        name = f"{op} layer, {_widths(op, (128, 64))}, {sizes.nodes} nodes, {sizes.edges} edges, forward + backward"
        how: dict[str, Any] = {
            "goal": 4.0,
            "memory": True,
            "memory_goal": 0.2,
            "budget": 15.0,
            "rounds": 9,
            "threads": threads,
        }
        channels = (64, 64) if op == "appnp" else (128, 64)
        found.append(Case(name, "layer", True, "layers", op, channels=channels, seed=seed, **large, **how))
    for key, label in MODELS.items():
        nodes, edges, channels, density = getattr(sizes, key)
        for op in LAYERS:
            middle = (64,) if op == "gat" and sizes == FULL else channels[1:2]
            widths = (channels[0], *middle, channels[-1])
            name = f"{op} training step, {_widths(op, widths)}, {label}"
            task: dict[str, Any] = {
                "nodes": nodes,
                "edges": edges,
                "channels": widths,
                "density": density,
                "seed": seed,
            }
            found.append(Case(name, "training", True, "training", op, goal=4, budget=8, threads=threads, **task))
    for edges in sizes.growth:
        name = f"growth, {edges} edges: gcn layer, 16 -> 16, forward + backward"
        size: dict[str, Any] = {
            "nodes": max(2, edges // 16),
            "edges": edges,
            "channels": (16, 16),
            "seed": seed,
            "threads": threads,
        }
        found.append(Case(name, "edges", True, "edges", "gcn", memory=edges >= sizes.heard, budget=6, **size))
    for op in LAYERS:
        for backward in (False, True):
            way = "forward + backward" if backward else "forward"
            name = f"one call, {op}, {_widths(op, (4, 8))} on 10 nodes, {way}"
            tiny: dict[str, Any] = {
                "nodes": 10,
                "edges": 30,
                "channels": (8, 8) if op == "appnp" else (4, 8),
                "seed": seed,
            }
            found.append(
                Case(
                    name, "call", True, "call", op, backward=backward, goal=1.3, rounds=100, budget=4, threads=1, **tiny
                )
            )
    nodes, edges, signals = sizes.batch
    for op in ("gat", "transformer"):
        graph = f"{nodes} nodes, {edges} edges"
        name = f"{op} layer, {signals} signals, {_widths('gat', (64, 64))}, {graph}, forward + backward"
        how = {"goal": 5.0, "budget": 20.0, "rounds": 9, "threads": threads, "seed": seed}
        found.append(Case(name, "signals", True, "signals", op, nodes, edges, (signals, 64, 64), **how))
    nodes, signals = sizes.signals
    name = f"heat filter, order 30, {signals} signals on {nodes} nodes, float64, forward"
    found.append(
        Case(
            name, "filter", True, "", "heat", nodes, 10 * nodes, (signals,), backward=False, threads=threads, seed=seed
        )
    )
    return [_within(case, sizes.budget) for case in found]


def _within(case: Case, share: float) -> Case:
    return case if share == 1 else replace(case, budget=case.budget * share, rounds=min(case.rounds, 3))


def _widths(op: str, channels: tuple[int, ...]) -> str:
    """A description of the sizes.

    >>> _widths("gat", (128, 64)), _widths("appnp", (128, 64)), _widths("cheb", (1433, 16, 7))
    ('128 -> 8 heads of 8', '64 channels, 10 steps', '1433 -> 16 -> 7, K = 3')
    """
    if op == "appnp" and len(channels) == 2:
        return f"{channels[-1]} channels, 10 steps"
    extra = {"cheb": ", K = 3", "tag": ", K = 3", "appnp": ", 10 steps"}.get(op, "")
    if op == "gat":
        ends = [f"8 heads of {channels[1] // 8}", *map(str, channels[2:])]
        return " -> ".join([str(channels[0]), *ends])
    return " -> ".join(map(str, channels)) + extra


# Goals for groups of cases: group -> geometric mean of how many times faster gconv should be.
MEANS = {"layers": 6.5, "training": 10.0}
FLOOR = 1.35
"""The geometric mean over the layers of gconv's time by that of its bare products must not be more."""
EXPONENT = 1.05
"""Time and memory must not grow faster than edges to this power."""
