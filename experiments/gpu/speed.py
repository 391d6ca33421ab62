"""Time and memory on the device: layers, products, training steps and convolutions, compared with other libraries.

All implementations of a unit have the same weights; values and gradients must agree before they are timed. They are
timed in alternation, and a number is the median over rounds, including synchronisation. Memory is the peak of a step
above its start: as counted by torch on CUDA, of the process on a CPU. Compiled implementations are measured last, since
compiling takes longer than measuring.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.gpu.checks import gap
from experiments.gpu.units import Options, Unit
from experiments.harness import machine, measure
from experiments.speed.cases import FORMS
from experiments.speed.sides import graph_for, peer, spec
from gconv import GConv, Graph, OperatorSpec

OPS = ("gcn", "gat", "sage", "cheb", "tag", "appnp")
TOL = 2e-3  # for gradients that are sums over millions of float32 values
Step = Callable[[], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Sizes:
    """The sizes of all cases."""

    nodes: int = 170_000
    edges: int = 2_330_000
    widths: tuple[int, ...] = (16, 64, 256)
    small: tuple[int, int, int] = (2708, 10_556, 1433)
    """Number of nodes, edges and features of the small training step."""
    images: tuple[int, int, int] = (128, 64, 32)
    """Number of images, channels and pixels per side."""
    rounds: int = 15
    budget: float = 3.0
    """Time limit for the rounds of a unit in seconds; at least three rounds are run."""
    compiler: str = "inductor"


FULL = Sizes()
TINY = Sizes(nodes=300, edges=2_400, widths=(16,), small=(120, 480, 60), images=(2, 8, 8), rounds=1, budget=0.01,
    compiler="eager",
)  # fmt: skip


def units(options: Options) -> Iterator[Unit]:
    """All units, the most important first."""
    torch.backends.cudnn.allow_tf32 = False  # of both implementations
    where, sizes = options.device, TINY if options.tiny else FULL
    place = f"{sizes.nodes} nodes, {sizes.edges} edges"
    ops = OPS[:2] if options.tiny else OPS
    for op in ops:
        yield Unit(f"{op} layer, {place}", partial(layer, op, sizes, where), 5)
    for width in sizes.widths:
        yield Unit(f"S X at width {width}, {place}", partial(product, width, sizes, where), 5)
    for kind in CONVOLUTIONS:
        for dtype in (torch.float32, torch.bfloat16):
            yield Unit(f"convolution {kind}, {str(dtype)[6:]}", partial(convolution, kind, dtype, sizes, where), 3)
    for op in ops[:4]:
        yield Unit(f"{op} training step, {place}", partial(training, op, sizes, where, False), 5)
        yield Unit(f"{op} training step, {sizes.small[0]} nodes", partial(training, op, sizes, where, True), 3)
    for op in ops[:4]:
        yield Unit(
            f"{op} layer, {place}, compiled", partial(layer, op, sizes, where, True), 30 if not options.tiny else 1
        )


# -- measuring -------------------------------------------------------------------------------------------------------


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak(step: Step, device: torch.device) -> float:
    """Peak memory of a step in MiB, above the memory used before."""
    if device.type != "cuda":
        start = measure.resident()
        step()
        return round(machine.peak_memory_mb() - start, 1)
    _wait(device)
    start = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    _wait(device)
    return round((torch.cuda.max_memory_allocated(device) - start) / 2**20, 1)


def compared(steps: dict[str, Step], sizes: Sizes, device: torch.device, tol: float = TOL) -> dict[str, Any]:
    """Check that results agree, then measure milliseconds with quartiles, MiB, and how many times faster gconv is."""
    want = steps["gconv"]()
    found: dict[str, Any] = {"gap": 0.0}
    for name, step in steps.items():
        for n, (got, right) in enumerate(zip(step(), want, strict=True)):
            found["gap"] = max(found["gap"], gap(f"{name}, result {n}", got, right, tol))
    del want

    def clock() -> float:
        _wait(device)
        return time.perf_counter()

    times = measure.take_turns(steps, sizes.rounds, clock, sizes.budget)
    for name, seconds in times.items():
        found |= {f"{name}: {key}": value for key, value in measure.quartiles("ms", 1e3 * seconds).items()}
        found[f"{name}: MiB"] = peak(steps[name], device)
    ours = float(np.median(times["gconv"]))
    return found | {f"faster than {n}": float(np.median(t)) / ours for n, t in times.items() if n != "gconv"}


# -- graphs ----------------------------------------------------------------------------------------------------------


@cache
def _edges(nodes: int, edges: int) -> Tensor:
    return measure.power_law(nodes, edges, 0)


def _random(device: torch.device, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)


def _grads(module: Callable[..., Tensor], leaves: list[Tensor], x: Tensor, graph: Any, dy: Tensor) -> Step:
    """A step: the value and the gradient with respect to x; those of the parameters are computed too."""

    def step() -> tuple[Tensor, ...]:
        y = module(x, graph)
        return y, torch.autograd.grad(y, [x, *leaves], dy)[0]

    return step


def layer(op: str, sizes: Sizes, device: torch.device, compiled: bool = False) -> dict[str, Any]:
    """Forward and backward pass of a layer, compared with PyG's for each graph format that it supports."""
    i, o = (64, 64) if op == "appnp" else (128, 64)
    index = _edges(sizes.nodes, sizes.edges)
    x, dy = _random(device, sizes.nodes, i).requires_grad_(), _random(device, sizes.nodes, o)
    torch.manual_seed(0)
    ours = GConv(spec(op, i, o))

    made: dict[str, tuple[nn.Module, Any]] = {"gconv": (ours, Graph(index, sizes.nodes))}
    for form in FORMS[op][: 1 if compiled else None]:
        theirs = peer(ours)
        made[form] = theirs, graph_for(form, op, theirs, index, sizes.nodes)
    steps: dict[str, Step] = {}
    for name, (module, graph) in made.items():
        module, graph = module.to(device), graph.to(device)
        leaves: list[Tensor] = list(module.parameters())
        steps[name] = _grads(module, leaves, x, graph, dy)
        if compiled:
            run = torch.compile(module, backend=sizes.compiler)
            steps[f"{name}, compiled"] = _grads(run, leaves, x, graph, dy)
    return compared(steps, sizes, device)


def product(width: int, sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """The product of GCN's matrix and a signal, compared with torch's CSR product."""
    index = _edges(sizes.nodes, sizes.edges)
    x = _random(device, sizes.nodes, width)
    S = GConv(OperatorSpec.parse("gcn(1, 1, bias=False)")).to(device).at(Graph(index, sizes.nodes).to(device)).S

    def csr() -> Tensor:
        from torch_geometric.nn.conv.gcn_conv import gcn_norm

        where, weight = gcn_norm(index, None, sizes.nodes)
        return measure.adjacency(where, sizes.nodes, weight).to(device)

    matrix = csr()
    steps: dict[str, Step] = {
        "gconv": lambda: (S.expand(x).view(sizes.nodes, -1),),
        "torch CSR": lambda: (matrix @ x,),
    }
    with torch.no_grad():
        return compared(steps, sizes, device)


class Network(nn.Module):
    """Two layers with a ReLU between them."""

    def __init__(self, first: nn.Module, second: nn.Module):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor, graph: Any) -> Tensor:
        """(n, i) -> (n, o)."""
        y: Tensor = self.second(F.relu(self.first(x, graph)), graph)
        return y


def training(op: str, sizes: Sizes, device: torch.device, small: bool) -> dict[str, Any]:
    """Two layers, cross-entropy, backward, Adam; the result compared is the loss of the first step."""
    nodes, edges, i = sizes.small if small else (sizes.nodes, sizes.edges, 128)
    index, hidden, classes = _edges(nodes, edges), 64, 8
    x = _random(device, nodes, i)
    label = torch.randint(classes, (nodes,), generator=torch.Generator().manual_seed(0)).to(device)
    torch.manual_seed(0)
    ours = [GConv(spec(op, i, hidden)), GConv(spec(op, hidden, classes))]

    def side(model: Network, graph: Any) -> Step:
        model = model.to(device)
        adam = torch.optim.Adam(model.parameters(), 0.0)  # the same values at every step

        def step() -> tuple[Tensor, ...]:
            adam.zero_grad(set_to_none=True)
            loss = F.cross_entropy(model(x, graph), label)
            loss.backward()
            adam.step()
            return (loss.detach(),)

        return step

    steps: dict[str, Step] = {}
    for form in FORMS[op]:
        made = [peer(part) for part in ours]
        graph, _ = (graph_for(form, op, part, index, nodes) for part in made)
        steps[form] = side(Network(*made), graph.to(device))
    steps = {"gconv": side(Network(*ours), Graph(index, nodes).to(device)), **steps}
    return compared(steps, sizes, device)


# -- grids -----------------------------------------------------------------------------------------------------------

CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "1x1": {"kernel_size": 1},
    "7x7, stride 2": {"kernel_size": 7, "stride": 2, "padding": 3},
    "3x3, depthwise": {"kernel_size": 3, "padding": 1, "groups": True},
}


def convolution(kind: str, dtype: torch.dtype, sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """Forward and backward pass of a convolution, compared with torch's, with channels-last layout."""
    b, c, side = sizes.images
    given = dict(CONVOLUTIONS[kind])
    given["groups"] = c if given.get("groups") else 1
    torch.manual_seed(0)
    theirs = nn.Conv2d(c, c, **given)
    ours = GConv.from_torch(theirs)
    x = _random(device, b, c, side, side).to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()

    def step(module: nn.Module) -> Step:
        module = module.to(device, dtype)
        leaves = [x, *module.parameters()]

        def run() -> tuple[Tensor, ...]:
            y = module(x)
            return y, torch.autograd.grad(y, leaves, torch.ones_like(y))[0]

        return run

    return compared(
        {"gconv": step(ours), "torch": step(theirs)}, sizes, device, 3e-2 if dtype == torch.bfloat16 else TOL
    )
