"""Speed of convolutions on grids with kernels of any size, and of graph convolutions on pixels, compared with torch.

Protocol: all implementations of a case start from the same data and weights, and values and gradients must agree
before they are timed. They are timed in alternation, one measurement per round, in alternating order; the ratio is the
median over rounds of the peer's time divided by gconv's, with quartiles. Convolutions are compared with F.conv2d in the
channels-last memory format; both also run in contiguous format, and depthwise ones also with the FFT lowering only.
`twin` is a 3x3 convolution computed as a graph convolution with nine edge labels, compared with F.conv2d in
channels-last format; for `chebyshev`, gconv processes all images on one graph, and PyG a block-diagonal graph. With
one thread, processor time is measured, otherwise wall time. Peak memory is the resident memory of a separate process
for each implementation, from before the first step to the end of the third.

    python -m experiments.grids                        everything, about ten minutes
    python -m experiments.grids --only depthwise       depthwise kernels from 3x3 to 31x31
    python -m experiments.grids --only conv            the convolutions of a CIFAR network; or twin, chebyshev

Rows remain valid until their file is removed: timings are not repeated when code changes.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.harness import common, measure
from experiments.harness.machine import ROOT
from gconv import GConv
from gconv.domains import grid_graph
from gconv.kernels import backend
from gconv.operators import cheb, conv2d, depthwise, selection
from gconv.spec import OperatorSpec

Kind = Literal["depthwise", "conv", "twin", "chebyshev"]
KERNELS = (3, 5, 7, 9, 11, 15, 21, 31)
SIZES = ((3, 64, 32), (64, 128, 16), (128, 256, 8))  # input channels, output channels, pixels per side
GOALS = {("depthwise", 15): 4.0, ("depthwise", 31): 15.0, ("twin", 3): 1 / 3, ("chebyshev", 3): 10.0}
EQUAL = 0.95  # otherwise: not slower, apart from the overhead of a call
OURS, PEER, CONTIGUOUS = "gconv", "conv2d", " contiguous"
TOL = 1e-3  # sums over hundreds of thousands of float32 values


@dataclass(frozen=True)
class Config:
    """Options."""

    only: Literal["all"] | Kind = "all"
    """Cases to run."""
    rounds: int = 11
    """Number of rounds; fewer if they take more than a minute, but at least three."""
    threads: int = 1
    """Number of threads."""
    quick: bool = False
    """Run tiny sizes, for testing; rows are written to runs/."""
    seed: int = 0
    """Random seed."""

    def __post_init__(self) -> None:
        """Check the options."""
        if self.rounds < 1 or self.threads < 1:
            raise ValueError(f"rounds and threads must be at least 1, not {self.rounds} and {self.threads}")


@dataclass(frozen=True)
class Case:
    """A comparison: images (batch, i, side, side), a kernel that keeps their size, o output channels."""

    case: str
    kind: Kind
    kernel: int
    i: int
    o: int
    side: int
    batch: int
    backward: bool
    rounds: int
    threads: int
    seed: int

    @property
    def goal(self) -> float:
        """The goal: how many times faster than the peer in training."""
        return GOALS.get((self.kind, self.kernel), EQUAL) if self.backward else 0.0


class Side(NamedTuple):
    """A call, the tensors for which gradients are needed, its data as images and gconv weights, the chosen lowering."""

    call: Callable[[], Tensor]
    leaves: list[Tensor]
    dy: Tensor
    alike: Callable[[list[Tensor]], list[Tensor]]
    lowering: str = ""


def cases(config: Config) -> list[Case]:
    """All comparisons selected by the options."""
    small = config.quick
    batch = 2 if small else 64
    sizes: list[tuple[Kind, int, int, int, int, int]] = []
    sizes += [
        ("depthwise", k, *((4, 4, 9, 2) if small else (64, 64, 64, 8))) for k in (KERNELS[:6] if small else KERNELS)
    ]
    sizes += [("conv", 3, i, o, 8 if small else side, batch) for i, o, side in SIZES]
    wide, side = (4, 6) if small else (64, 32)
    sizes += [("twin", 3, wide, wide, side, batch), ("chebyshev", 3, wide, wide, side, batch)]
    found = []
    for kind, k, i, o, side, b in sizes:
        if config.only not in ("all", kind):
            continue
        what = f"K = {k}" if kind == "chebyshev" else f"{k}x{k}"
        for backward in (False, True):
            how = "forward + backward" if backward else "forward"
            name = f"{kind} {what}, {i}->{o} at {side}x{side}, batch {b}, {how}"
            name += f", {config.threads} threads" if config.threads > 1 else ""
            found.append(Case(name, kind, k, i, o, side, b, backward, config.rounds, config.threads, config.seed))
    return found


# -- the sides -----------------------------------------------------------------------------------------------------


def sides(case: Case) -> dict[str, Callable[[], Side]]:
    """Functions that create each implementation, by name."""
    if case.kind == "chebyshev":
        return {OURS: lambda: on_graph(case, cheb(case.i, case.o, k=case.kernel)), "PyG": lambda: block_diagonal(case)}
    layouts = {PEER: torch.channels_last, f"{PEER}{CONTIGUOUS}": torch.contiguous_format}
    made: dict[str, Callable[[], Side]] = {name: partial(bare, case, layout) for name, layout in layouts.items()}
    if case.kind == "twin":
        return {OURS: lambda: on_graph(case, selection(case.i, case.o, taps=9))} | made
    ours = {
        OURS: lambda: on_images(case, torch.channels_last),
        f"{OURS}{CONTIGUOUS}": lambda: on_images(case, torch.contiguous_format),
    }
    if case.kind == "depthwise":
        ours[f"{OURS} by fft"] = lambda: on_images(case, torch.channels_last, "fft")
    return ours | made


def numbers(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x and dy as images, the weight (taps, i, o) or (taps, i, 1, 1), and the bias."""
    generator = torch.Generator().manual_seed(case.seed)
    shape = (case.i, 1, 1) if case.kind == "depthwise" else (case.i, case.o)
    taps = case.kernel if case.kind == "chebyshev" else case.kernel**2
    x = torch.randn(case.batch, case.i, case.side, case.side, generator=generator)
    dy = torch.randn(case.batch, case.o, case.side, case.side, generator=generator)
    weight = torch.randn(taps, *shape, generator=generator) / (taps * shape[0]) ** 0.5
    return x, dy, weight, torch.randn(case.o, generator=generator)


def wanted(case: Case, x: Tensor, *parameters: Tensor) -> list[Tensor]:
    """The tensors for which gradients are computed: as in training, not the images."""
    x.requires_grad_(case.backward and case.i > 3)
    return [*parameters, x] if x.requires_grad else list(parameters)


def layer_of(spec: OperatorSpec, weight: Tensor, bias: Tensor) -> GConv:
    """A layer with these weights."""
    layer = GConv(spec)
    with torch.no_grad():
        layer.weight.copy_(weight)  # type: ignore[union-attr]
        layer.bias.copy_(bias)
    return layer


def chosen(case: Case, layer: GConv, *call: Any) -> str:
    """The lowering chosen for the layer."""
    with torch.set_grad_enabled(case.backward):
        return layer.plan(*call).chosen.name


def on_images(case: Case, layout: torch.memory_format, lowering: str | None = None) -> Side:
    """A convolution in gconv, with a given lowering or as planned."""
    x, dy, weight, bias = numbers(case)
    k = case.kernel
    spec = (
        depthwise(case.i, k, padding=k // 2) if case.kind == "depthwise" else conv2d(case.i, case.o, k, padding=k // 2)
    )
    layer = layer_of(spec, weight, bias).to(memory_format=layout)  # type: ignore[call-overload]
    x, dy = x.to(memory_format=layout), dy.to(memory_format=layout)
    leaves = wanted(case, x, *layer.parameters())
    return Side(lambda: layer(x, lowering=lowering), leaves, dy, list, lowering or chosen(case, layer, x))


def bare(case: Case, layout: torch.memory_format) -> Side:
    """The same convolution in torch."""
    x, dy, weight, bias = numbers(case)
    k = case.kernel
    groups = case.i if case.kind == "depthwise" else 1
    order = (1, 3, 2, 0) if case.kind == "depthwise" else (2, 1, 0)
    kernel = weight.permute(order).reshape(case.o, -1, k, k).to(memory_format=layout).clone().requires_grad_()
    x, dy = x.to(memory_format=layout), dy.to(memory_format=layout)

    def alike(found: list[Tensor]) -> list[Tensor]:
        return [found[0], *(_taps(g, weight) for g in found[1:2]), *found[2:]]

    leaves = wanted(case, x, kernel, bias.requires_grad_())
    return Side(lambda: F.conv2d(x, kernel, bias, padding=k // 2, groups=groups), leaves, dy, alike)


def _taps(kernel: Tensor, like: Tensor) -> Tensor:
    """torch's (o, i, k, k) as ours."""
    flat = kernel.flatten(2).permute(2, 1, 0)  # (taps, i, o), or (taps, 1, channels)
    return flat.reshape(like.shape)


def on_graph(case: Case, spec: OperatorSpec) -> Side:
    """A layer on the graph of pixels, all images in one call."""
    x, dy, weight, bias = numbers(case)
    graph = grid_graph((case.side, case.side), 8, loops=case.kind == "twin")
    layer = layer_of(spec, weight, bias)
    x, dy = (t.flatten(2).mT.contiguous() for t in (x, dy))

    def image(t: Tensor) -> Tensor:
        return t.mT.unflatten(-1, (case.side, case.side))

    def alike(found: list[Tensor]) -> list[Tensor]:
        return [image(found[0]), *found[1:3], *map(image, found[3:])]

    leaves = wanted(case, x, *layer.parameters())
    return Side(lambda: layer(x, graph), leaves, dy, alike, chosen(case, layer, x, graph))


def block_diagonal(case: Case) -> Side:
    """PyG's Chebyshev convolution, with a copy of the graph for each image."""
    from torch_geometric.nn import ChebConv

    x, dy, weight, bias = numbers(case)
    graph = grid_graph((case.side, case.side), 8)
    n = graph.size
    index = torch.cat([graph.edge_index + n * copy for copy in range(case.batch)], 1)
    layer = ChebConv(case.i, case.o, case.kernel)
    with torch.no_grad():
        for own, given in zip(layer.lins, weight, strict=True):
            own.weight.copy_(given.T)
        layer.bias.copy_(bias)
    x, dy = (t.flatten(2).mT.flatten(0, 1).contiguous() for t in (x, dy))

    def image(t: Tensor) -> Tensor:
        return t.unflatten(0, (case.batch, n)).mT.unflatten(-1, (case.side, case.side))

    def alike(found: list[Tensor]) -> list[Tensor]:
        value, grads, rest = found[0], found[1 : 1 + case.kernel], found[1 + case.kernel :]
        together = [torch.stack([g.T for g in grads])] if grads else []
        return [image(value), *together, *rest[:1], *map(image, rest[1:])]

    weights = [lin.weight for lin in layer.lins]
    return Side(lambda: layer(x, index), wanted(case, x, *weights, layer.bias), dy, alike)


# -- measuring -----------------------------------------------------------------------------------------------------


def step_of(case: Case, side: Side) -> Callable[[], list[Tensor]]:
    """A step of an implementation: the value, and with a backward pass the gradients."""

    def step() -> list[Tensor]:
        if not case.backward:
            with torch.no_grad():
                return [side.call()]
        y = side.call()
        return [y, *torch.autograd.grad(y, side.leaves, side.dy)]

    return step


def control(case: Case, made: dict[str, Side]) -> float:
    """The largest relative difference of any implementation from gconv. Raises: ValueError if it exceeds rounding."""
    found = {name: side.alike(step_of(case, side)()) for name, side in made.items()}
    names = ("value", "gradient in weight", "gradient in bias", "gradient in x")
    return max(
        measure.gap(f"{case.case}, {name}", what, got, want, TOL)
        for name, theirs in found.items()
        for what, got, want in zip(names, found[OURS], theirs, strict=False)
    )


def run(case: Case) -> common.Outcome:
    """Check the results, then measure time and memory."""
    common.seed_everything(case.seed, deterministic=False)
    clock = time.process_time if case.threads == 1 else time.perf_counter
    makers = sides(case)
    peer = "PyG" if case.kind == "chebyshev" else PEER
    with measure.threads(case.threads):
        made = {name: make() for name, make in makers.items()}
        metrics: dict[str, Any] = {"gap": control(case, made), "threads": case.threads, "kernels": backend()}
        steps = {name: step_of(case, side) for name, side in made.items()}
        times = measure.take_turns(steps, case.rounds, clock, 60.0)
        lowering = [side.lowering for side in made.values() if side.lowering]
    metrics |= {"peer": peer, "goal": f"{case.goal:.3g}" if case.goal else "-", "ratios": {}}
    for name, seconds in times.items():
        key = name.replace(" ", "_")
        metrics[f"{key}_ms"] = float(np.median(seconds)) * 1e3
        if not name.startswith(OURS):
            metrics["ratios"][name] = measure.quartiles("faster", seconds / times[OURS])
    metrics |= {"peer_ms": metrics[f"{peer}_ms"]} | measure.quartiles("faster", times[peer] / times[OURS])
    metrics["verdict"] = measure.verdict(metrics["faster"], case.goal)
    metrics["lowering"] = made[OURS].lowering
    if f"{OURS}{CONTIGUOUS}" in times:
        ratio = times[f"{PEER}{CONTIGUOUS}"] / times[f"{OURS}{CONTIGUOUS}"]
        metrics |= measure.quartiles("contiguous_faster", ratio)
    if case.backward:
        for key, name in (("gconv", OURS), ("peer", peer)):
            found = measure.peak_of_a_process("experiments.grids", name, json.dumps(asdict(case)))
            metrics[f"{key}_peak_mb"] = found["peak_mb"]
    return common.Outcome(metrics, lowering)


def data(case: Case) -> common.Data:
    """The data of a comparison, determined by the sizes and the seed."""
    return common.Data("random images", "generated")


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["--peak-of"]:  # used when this script starts itself in a new process
        case = Case(**json.loads(argv[2]))
        with measure.threads(case.threads):
            step = step_of(case, sides(case)[argv[1]]())
            print(json.dumps(measure.peak_of_steps(lambda: step)))
        return
    config, options = common.cli(Config, __doc__, argv)
    if options.jobs != 1:
        raise SystemExit("error: two timings at a time would disturb each other; leave --jobs at 1")
    todo = [case for s in range(options.seeds) for case in cases(replace(config, seed=config.seed + s))]
    if config.quick and options.results is None:  # results of tiny sizes are not recorded
        options = replace(options, results=ROOT / "runs" / "grids-quick.jsonl", official=False)
    for row in common.sweep(todo, run, measure.timings(options, "grids"), experiment="grids", data=data):
        m = row["metrics"]
        ratio = f"{m['faster']:.3g} times as fast [{m['faster_low']:.3g}, {m['faster_high']:.3g}]"
        goal = f", goal {m['goal']}: {m['verdict']}" if m["goal"] != "-" else ""
        print(f"{row['config']['case']}: {m['gconv_ms']:.3g} ms, {m['peer']} {m['peer_ms']:.3g} ms, {ratio}{goal}")
