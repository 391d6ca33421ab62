"""The overhead of gconv: convolutions and single calls compared with direct calls of torch or PyG; a GCN training step.

Protocol: both implementations start from the same weights, and their values and gradients must agree before they are
timed. They are timed in alternation, one measurement each, in alternating order; the ratio is the median over pairs, so
that other load affects both alike, and quartiles are recorded. Short calls are repeated within a measurement.
Convolutions and single calls use one thread and processor time, which is not affected by waiting; the overhead of a
call in microseconds does not depend on the number of threads. Training steps use all threads and wall time. Peak memory
is the resident memory of a separate process for each, from before its first step to the end of its third.

    python -m experiments.speed.overhead                      everything, some minutes
    python -m experiments.speed.overhead --only conv          the convolutions of `experiments.images.cifar10_cnn`
    python -m experiments.speed.overhead --only gcn           a training step of a two-layer GCN on a large random graph
    python -m experiments.speed.overhead --only call          single calls on tiny inputs, where overhead dominates

Rows remain valid until their file is removed: timings are not repeated when code changes.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.harness import common, measure
from experiments.harness.measure import (
    Step,
    adjacency,
    gap,
    peak_of_a_process,
    peak_of_steps,
    power_law,
    quartiles,
    take_turns,
    threads,
)
from gconv import GConv, Graph
from gconv.kernels import backend
from gconv.operators import conv2d, gcn

Only = Literal["all", "conv", "gcn", "call"]
SIZES = ((3, 64, 32), (64, 128, 16), (128, 256, 8))  # input channels, output channels, pixels per side
CHANNELS, HIDDEN, CLASSES = 128, 256, 40
TOL = {"conv": 1e-4, "gcn": 1e-4, "call": 1e-5}


@dataclass(frozen=True)
class Config:
    """Options."""

    only: Only = "all"
    """Cases to run."""
    pairs: int = 0
    """Number of measurements; 0 for 40 (conv), 7 (gcn) and 100 (call)."""
    threads: int = 1
    """Number of threads of conv and call; with more than one, wall time is measured."""
    nodes: int = 170_000
    """Number of nodes of the random graph."""
    edges: int = 2_300_000
    """Number of directed edges of the random graph."""
    seed: int = 0
    """Random seed."""

    def __post_init__(self) -> None:
        """Check the options."""
        if self.pairs < 0 or self.threads < 1:
            raise ValueError(f"pairs must not be negative and threads at least 1, not {self.pairs} and {self.threads}")
        if self.nodes < 2 or not 2 <= self.edges <= self.nodes * (self.nodes - 1) // 4:
            raise ValueError(
                f"the graph needs two nodes and some, but not nearly all, edges, not {self.nodes} and {self.edges}"
            )


@dataclass(frozen=True)
class Case:
    """A comparison."""

    case: str
    kind: Only
    pairs: int
    seed: int
    channels: tuple[int, int] = (0, 0)
    """Input and output channels; for a training step, those of the network."""
    sites: int = 0
    """Pixels per side, or number of nodes."""
    batch: int = 1
    channels_last: bool = False
    backward: bool = False
    edges: int = 0
    peer: str = "torch"
    threads: int = 0
    """Number of threads; 0 for all."""

    @property
    def clock(self) -> Callable[[], float]:
        return time.process_time if self.threads == 1 else time.perf_counter


class Sides(NamedTuple):
    """A comparison: a step of each implementation, its results for the check, and the lowerings chosen by gconv."""

    bare: Step
    ours: Step
    numbers: Callable[[], Iterator[tuple[str, Tensor, Tensor]]]
    lowering: list[str]


def cases(config: Config) -> list[Case]:
    """All comparisons selected by the options."""
    chosen: list[Case] = []
    many = f", {config.threads} threads" if config.threads > 1 else ""
    if config.only in ("all", "conv"):
        for (i, o, sites), batch in ((size, batch) for size in SIZES for batch in (16, 64)):
            for last, backward in ((last, backward) for last in (False, True) for backward in (False, True)):
                how = f"{'channels_last' if last else 'contiguous'}, {'forward + backward' if backward else 'forward'}"
                name = f"conv {i}->{o} at {sites}x{sites}, batch {batch}, {how}{many}"
                how_often = {"pairs": config.pairs or 40, "seed": config.seed, "threads": config.threads}
                shape = {"channels": (i, o), "sites": sites, "batch": batch, "channels_last": last}
                chosen.append(Case(name, "conv", backward=backward, **how_often, **shape))  # type: ignore[arg-type]
    if config.only in ("all", "gcn"):
        for peer in ("edge_index", "CSR"):
            name = f"GCN training step, {config.nodes} nodes, {config.edges} edges, against PyG on {peer}"
            graph = {"sites": config.nodes, "edges": config.edges, "peer": peer, "backward": True}
            chosen.append(Case(name, "gcn", config.pairs or 7, config.seed, (CHANNELS, CLASSES), **graph))  # type: ignore[arg-type]
    if config.only in ("all", "call"):
        for backward in (False, True):
            how = "forward + backward" if backward else "forward"
            few = {"backward": backward, "channels": (4, 4), "threads": config.threads}
            pairs = config.pairs or 100
            chosen.append(Case(f"one call, conv 4->4 at 6x6, {how}{many}", "call", pairs, config.seed, sites=6, **few))  # type: ignore[arg-type]
            for peer in ("Graph", "edge_index"):
                name = f"one call, GCN 4->4 on 10 nodes, gconv on {peer}, {how}{many}"
                chosen.append(Case(name, "call", pairs, config.seed, sites=10, edges=30, peer=peer, **few))  # type: ignore[arg-type]
    return chosen


# -- the sides -----------------------------------------------------------------------------------------------------


def conv_sides(case: Case) -> Sides:
    """GConv(conv2d) and nn.Conv2d; as in training, there is no gradient with respect to x if x is the image."""
    i, o = case.channels
    layout = torch.channels_last if case.channels_last else torch.contiguous_format
    ours = GConv(conv2d(i, o, 3, padding=1)).to(memory_format=layout)  # type: ignore[call-overload]
    bare = nn.Conv2d(i, o, 3, padding=1)
    with torch.no_grad():
        bare.weight.copy_(ours.weight.permute(2, 1, 0).unflatten(-1, (3, 3)))
        bare.bias.copy_(ours.bias)  # type: ignore[union-attr]
    bare = bare.to(memory_format=layout)  # type: ignore[call-overload]
    x = torch.randn(case.batch, i, case.sites, case.sites).to(memory_format=layout)
    x.requires_grad_(case.backward and i > 3)
    dy = torch.randn(case.batch, o, case.sites, case.sites).to(memory_format=layout)

    def step(layer: nn.Module) -> Step:
        return lambda: _call(lambda: layer(x), [*layer.parameters(), x], dy if case.backward else None)

    def numbers() -> Iterator[tuple[str, Tensor, Tensor]]:
        (y, grads), (want, wanted) = step(ours)(), step(bare)()
        yield "value", y, want
        for name, got, right in zip(("weight", "bias", "x"), grads, wanted, strict=False):
            yield f"gradient in {name}", got.permute(2, 1, 0).reshape(right.shape) if got.ndim == 3 else got, right

    return Sides(step(bare), step(ours), numbers, [ours.plan(x).chosen.name])


def _call(run: Callable[[], Tensor], leaves: list[Tensor], dy: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The value and the gradients; only the value if there is no dy."""
    if dy is None:
        with torch.no_grad():
            return run(), ()
    y = run()
    return y, torch.autograd.grad(y, [leaf for leaf in leaves if leaf.requires_grad], dy)


def call_sides(case: Case) -> Sides:
    """The same, and a GCN layer, on tiny inputs."""
    if not case.edges:
        return conv_sides(case)
    from torch_geometric.nn import GCNConv

    ours, bare = GConv(gcn(*case.channels)), GCNConv(*case.channels, cached=True)
    index = power_law(case.sites, case.edges, case.seed)
    graph: Any = Graph(index, case.sites) if case.peer == "Graph" else index
    x = torch.randn(case.sites, case.channels[0], requires_grad=case.backward)
    dy = torch.randn(case.sites, case.channels[1])
    _same_gcn(ours, bare)

    def step(layer: nn.Module, place: Any, parameters: list[Any]) -> Step:
        return lambda: _call(lambda: layer(x, place), [*parameters, x], dy if case.backward else None)

    mine, theirs = step(ours, graph, [ours.weight, ours.bias]), step(bare, index, [bare.lin.weight, bare.bias])

    def numbers() -> Iterator[tuple[str, Tensor, Tensor]]:
        (y, grads), (want, wanted) = mine(), theirs()
        yield "value", y, want
        for name, got, right in zip(("weight", "bias", "x"), grads, wanted, strict=False):
            yield f"gradient in {name}", got[0].T if got.ndim == 3 else got, right

    return Sides(theirs, mine, numbers, [ours.plan(x, graph).chosen.name])


def _same_gcn(ours: GConv, bare: Any) -> None:
    """Copy gconv's weights to a PyG layer."""
    with torch.no_grad():
        bare.lin.weight.copy_(ours.weight[0].T)  # type: ignore[index]
        bare.bias.copy_(ours.bias)


class Task(NamedTuple):
    """Node classification on a random graph with random features."""

    x: Tensor
    label: Tensor
    edge_index: Tensor


@cache
def task(case: Case) -> Task:
    """The data of a training step."""
    common.seed_everything(case.seed, deterministic=False)
    x, label = torch.randn(case.sites, case.channels[0]), torch.randint(case.channels[1], (case.sites,))
    return Task(x, label, power_law(case.sites, case.edges, case.seed))


class Training:
    """A two-layer GCN and a training step of it: forward, mean cross-entropy of all nodes, backward, Adam."""

    def __init__(self, case: Case, side: Literal["ours", "bare"]):
        from torch_geometric.nn import GCNConv

        self.data = data = task(case)
        torch.manual_seed(case.seed)
        widths = ((case.channels[0], HIDDEN), (HIDDEN, case.channels[1]))
        layers = [GConv(gcn(i, o)) for i, o in widths]
        self.layers: list[Any] = layers
        self.graph: Any = Graph(data.edge_index, case.sites)
        if side == "bare":
            self.layers = [GCNConv(i, o, cached=True) for i, o in widths]
            for mine, theirs in zip(layers, self.layers, strict=True):
                _same_gcn(mine, theirs)
            self.graph = data.edge_index if case.peer == "edge_index" else adjacency(data.edge_index, case.sites)
        self.optimizer = torch.optim.Adam([p for layer in self.layers for p in layer.parameters()], lr=0.01)

    def forward(self, activation: Callable[[Tensor], Tensor] = torch.relu) -> Tensor:
        first, second = self.layers
        return second(activation(first(self.data.x, self.graph)), self.graph)

    def backward(self, activation: Callable[[Tensor], Tensor] = torch.relu) -> Tensor:
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.forward(activation), self.data.label)
        loss.backward()
        return loss.detach()

    def step(self) -> Tensor:
        loss = self.backward()
        self.optimizer.step()
        return loss

    def numbers(self) -> dict[str, Tensor]:
        """The results on which both implementations must agree.

        Gradients are computed with tanh instead of ReLU, since rounding switches some of millions of ReLUs, and each
        is a jump of the gradient.
        """
        with torch.no_grad():
            value = self.forward()
        found: dict[str, Any] = {"value": value, "loss": self.backward(torch.tanh)}
        for number, layer in enumerate(self.layers, 1):
            ours = isinstance(layer, GConv)
            found[f"gradient in weight {number}"] = layer.weight.grad[0] if ours else layer.lin.weight.grad.T
            found[f"gradient in bias {number}"] = layer.bias.grad
        return found


def gcn_sides(case: Case) -> Sides:
    """A training step with gconv on a `Graph`, and with PyG's cached GCNConv."""
    ours, bare = Training(case, "ours"), Training(case, "bare")

    def numbers() -> Iterator[tuple[str, Tensor, Tensor]]:
        mine, theirs = ours.numbers(), bare.numbers()
        yield from ((name, mine[name], theirs[name]) for name in mine)

    first, second = ours.layers
    hidden = torch.zeros(case.sites, HIDDEN)
    chosen = [first.plan(ours.data.x, ours.graph).chosen.name, second.plan(hidden, ours.graph).chosen.name]
    return Sides(bare.step, ours.step, numbers, chosen)


# -- measuring -----------------------------------------------------------------------------------------------------


def control(case: Case, sides: Sides) -> float:
    """The largest relative difference between the two. Raises: ValueError if it exceeds rounding."""
    return max((gap(case.case, *compared, TOL[case.kind]) for compared in sides.numbers()), default=0.0)


def peak(case: Case, side: Literal["ours", "bare"]) -> dict[str, float]:
    """Peak resident memory in MiB above the start of this process: of three steps, and of a fourth."""
    training = Training(case, side)
    return peak_of_steps(lambda: training.step)


def run(case: Case) -> common.Outcome:
    """Run a comparison."""
    common.seed_everything(case.seed, deterministic=False)
    with threads(case.threads):
        sides = {"conv": conv_sides, "gcn": gcn_sides, "call": call_sides}[case.kind](case)
        metrics: dict[str, Any] = {"gap": control(case, sides), "threads": torch.get_num_threads()}
        metrics["kernels"] = backend()
        bare, ours = take_turns({"bare": sides.bare, "ours": sides.ours}, case.pairs, case.clock).values()
    metrics |= quartiles("bare_ms", bare * 1e3) | quartiles("gconv_ms", ours * 1e3) | quartiles("ratio", ours / bare)
    metrics |= quartiles("added_us", (ours - bare) * 1e6)
    metrics |= {"bare_min_ms": float(bare.min() * 1e3), "gconv_min_ms": float(ours.min() * 1e3)}
    if case.kind == "gcn":
        for name, side in (("bare", "bare"), ("gconv", "ours")):
            found = peak_of_a_process("experiments.speed.overhead", side, json.dumps(asdict(case)))
            metrics |= {f"{name}_{what}": number for what, number in found.items()}
        metrics["peak_ratio"] = metrics["gconv_peak_mb"] / metrics["bare_peak_mb"]
    return common.Outcome(metrics, sides.lowering)


def data(case: Case) -> common.Data:
    """The data of a comparison, determined by the sizes and the seed."""
    what = f"random power-law graph, {case.sites} nodes, {case.edges} edges" if case.edges else "random images"
    return common.Data(what, "generated")


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["--peak-of"]:  # used when this script starts itself in a new process
        side, case = argv[1], json.loads(argv[2])
        print(json.dumps(peak(Case(**case | {"channels": tuple(case["channels"])}), side)))  # type: ignore[arg-type]
        return
    config, options = common.cli(Config, __doc__, argv)
    if options.jobs != 1:
        raise SystemExit("error: two timings at a time would disturb each other; leave --jobs at 1")
    todo = [case for s in range(options.seeds) for case in cases(replace(config, seed=config.seed + s))]
    rows = common.sweep(todo, run, measure.timings(options, "overhead"), experiment="overhead", data=data)
    show(rows)


def show(rows: list[common.Row]) -> None:
    """Print a summary of the rows."""
    for row in rows:
        m = row["metrics"]
        ratio = f"{m['ratio']:.3f} [{m['ratio_low']:.3f}, {m['ratio_high']:.3f}]"
        print(f"{row['config']['case']}\n    {m['bare_ms']:.3f} ms bare, {m['gconv_ms']:.3f} ms gconv, ratio {ratio}")
        if "peak_ratio" in m:
            three = f"{m['bare_peak_mb']:.0f} MiB bare, {m['gconv_peak_mb']:.0f} MiB gconv, ratio {m['peak_ratio']:.3f}"
            one = f"{m['bare_step_peak_mb']:.0f} and {m['gconv_step_peak_mb']:.0f} MiB"
            print(f"    peak {three}; of a later step alone {one}")


if __name__ == "__main__":
    main()
