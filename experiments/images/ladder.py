"""How much of a CNN's accuracy on CIFAR-10 depends on direction? One architecture with fewer and fewer distinct taps.

A 3x3 convolution has a weight matrix for each of nine offsets. The rungs of the ladder share matrices among offsets;
the name is the number of distinct matrices:

    9          the CNN                                       6   left and right share (columns 0 and 2)
    3          centre, edges, corners                        2   the pixel and its neighbours
    1          one matrix for all nine, as in a GCN          pointwise   the centre only
    p4, p4m    nine taps, each kernel in 4 rotations (8 with reflections); the number of channels includes all poses

Shared taps are computed as a graph convolution on the pixels, y = sum_k (S_k x) W_k, where S_k sums the pixels with the
same label, so there are as many products as labels.

Protocol: three stages of two convolutions (widths w, 2w, 4w; w = 32), batch norm and ReLU after each, 2x2 max pooling
between the stages, mean over the pixels, one linear layer. Only the convolutions change. All 50,000 training images,
mirrored and shifted by up to 2 pixels; SGD with Nesterov momentum, learning rate increasing linearly to 0.1 and
decreasing linearly to 0, label smoothing; 8 epochs in float32. No model selection: the test images are read once, after
the last epoch. Three seeds. `where` names the stages in which a rung replaces the nine taps; the CNN of width 11 has as
many parameters as rung 1 with width 32.

    python -m experiments.sweep ladder                     run missing runs, the most informative first
    python -m experiments.images.ladder --rung 3 --where last
    python -m experiments.images.ladder --spec "gconv.operators:cheb(k=3)"    your own operator, with the same protocol
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from experiments.harness import common
from experiments.harness.experiment import Experiment, Place
from experiments.harness.fit import Recipe, fit, task
from experiments.harness.render import mean_std
from experiments.harness.specs import read_spec
from experiments.images.pixels import OnPixels, pixel_graph
from gconv import GConv, Graph
from gconv.operators import conv2d, max_pool2d, p4_conv, p4_lift, selection

LABELS: dict[str, tuple[int, ...]] = {  # labels of the nine offsets in raster order
    "6": (0, 1, 0, 2, 3, 2, 4, 5, 4),
    "3": (0, 1, 0, 1, 2, 1, 0, 1, 0),
    "2": (0, 0, 0, 0, 1, 0, 0, 0, 0),
    "1": (0, 0, 0, 0, 0, 0, 0, 0, 0),
}
POSES = {"p4": 4, "p4m": 8}
RUNGS = ("9", "1", "pointwise", "3", "2", "6")
PLACES = ("first", "middle", "last", "not first", "not middle", "not last")
Rung = Literal["all", "9", "6", "3", "2", "1", "pointwise", "p4", "p4m"]
Where = Literal["all", "first", "middle", "last", "not first", "not middle", "not last"]


@dataclass(frozen=True)
class Config(Recipe):
    """Network and training options."""

    rung: Rung = "all"
    """Number of distinct weight matrices per kernel, or pointwise, p4, p4m."""
    where: Where = "all"
    """Stages with this rung; the others have nine taps."""
    width: int = 32
    """Number of channels of the first stage."""
    spec: str = ""
    """Instead of a rung: an operator "module:factory(k=3)" on the pixel graph or on the grid."""
    seed: int = 0
    """Random seed."""

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if self.width < 1 or self.width % POSES.get(self.rung, 1):
            raise ValueError(f"width must be a positive multiple of the poses, not {self.width}")
        if self.spec and (self.rung, self.where) != ("all", "all"):
            raise ValueError("--spec goes without --rung and --where")


def expand(config: Config, seeds: int) -> list[Config]:
    """All runs, seed by seed: the ladder, then single stages, then rotations, then equal parameters."""
    if config.spec:
        read_spec(config.spec)(1, 1)
    if config.spec or config.rung != "all":
        return [replace(config, seed=config.seed + s) for s in range(seeds)]
    chosen = [replace(config, rung=rung) for rung in RUNGS]  # type: ignore[arg-type]
    chosen += [replace(config, rung="3", where=where) for where in PLACES]  # type: ignore[arg-type]
    chosen += [replace(config, rung="p4"), replace(config, rung="p4m")]
    if config.width == 32:  # as many parameters as rung 1 at width 32
        chosen += [replace(config, rung="9", width=11)]
    if config.where != "all":
        chosen = [c for c in chosen if c.where == config.where]
    return [replace(c, seed=config.seed + s) for s in range(seeds) for c in chosen]


# -- the network ---------------------------------------------------------------------------------------------------


def stages(config: Config) -> list[str]:
    """The rung of each stage.

    >>> stages(Config(rung="3", where="not first"))
    ['9', '3', '3']
    """
    place = ("first", "middle", "last")
    where = config.where.removeprefix("not ")
    inside = [where in ("all", name) for name in place]
    if config.where.startswith("not "):
        inside = [not here for here in inside]
    return [config.rung if here else "9" for here in inside]


def convolution(rung: str, i: int, o: int, side: int, first: bool = False, spec: str = "") -> nn.Module:
    """The convolution of a rung, (b, i, side, side) -> (b, o, side, side); the batch norm has the bias."""
    if spec:
        made = read_spec(spec)(i, o)
        return GConv(made) if made.structure.domain == "grid" else OnPixels(made, pixel_graph(side))
    if rung == "9":
        return GConv(conv2d(i, o, 3, padding=1, bias=False))
    if rung == "pointwise":
        return GConv(conv2d(i, o, 1, bias=False))
    if rung in POSES:
        poses: Any = {"padding": 1, "bias": False, "group": rung}
        n = POSES[rung]
        return GConv(p4_lift(i, o // n, 3, **poses) if first else p4_conv(i // n, o // n, 3, **poses))
    labels = LABELS[rung]
    return OnPixels(selection(i, o, max(labels) + 1, bias=False), pixel_graph(side, labels))


class Norm(nn.Module):
    """Batch norm with the same mean, deviation, scale and shift for all poses of a channel."""

    def __init__(self, width: int, poses: int):
        super().__init__()
        self.poses, self.norm = poses, nn.BatchNorm3d(width // poses)

    def forward(self, x: Tensor) -> Tensor:
        """(b, o poses, h, w) -> the same."""
        y: Tensor = self.norm(x.unflatten(1, (-1, self.poses))).flatten(1, 2)
        return y


class Head(nn.Module):
    """Mean over pixels and poses, and a linear layer."""

    def __init__(self, width: int, poses: int):
        super().__init__()
        self.poses, self.linear = poses, nn.Linear(width // poses, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(b, o poses, h, w) -> (b, 10)."""
        y: Tensor = self.linear(x.mean((2, 3)).unflatten(1, (-1, self.poses)).mean(2))
        return y


def network(config: Config) -> nn.Sequential:
    """Three stages of two convolutions."""
    layers: list[nn.Module] = []
    i, poses = 3, POSES.get(config.rung, 1)
    for number, rung in enumerate(stages(config)):
        o, side = config.width << number, 32 >> number
        for _ in range(2):
            norm = Norm(o, poses) if poses > 1 else nn.BatchNorm2d(o)
            layers += [convolution(rung, i, o, side, not layers, config.spec), norm, nn.ReLU()]
            i = o
        if number < 2:
            layers.append(GConv(max_pool2d(2)))
    return nn.Sequential(*layers, Head(i, poses))


def lowerings(model: nn.Sequential, batch: int, where: torch.device) -> list[str]:
    """The lowering of each convolution."""
    chosen, x = [], torch.zeros(batch, 3, 32, 32, device=where).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, OnPixels):
                chosen.append(layer.conv.plan(x.flatten(2).mT, layer.graph).chosen.name)
            elif isinstance(layer, GConv) and layer.weight is not None:
                chosen.append(layer.plan(x).chosen.name)
            x = layer(x)
    return chosen


# -- the control: the same network on permuted pixels ----------------------------------------------------------------


class Relabelled(nn.Module):
    """A network of graph convolutions on images with permuted pixels: graphs and windows are renumbered accordingly.

    Its logits on permuted images equal those of `model` on the original images.
    """

    def __init__(self, model: nn.Sequential, orders: list[Tensor]):
        super().__init__()
        self.layers = nn.ModuleList()
        level = 0
        for layer in model:
            if isinstance(layer, OnPixels):
                layer = _renumbered(layer, orders[level])
            elif isinstance(layer, GConv) and layer.weight is None:
                layer = _Windows(orders[level], orders[level + 1])
                level += 1
            elif isinstance(layer, GConv) and layer.spec.structure.taps > 1:
                raise ValueError("a grid convolution has no permuted twin")
            self.layers.append(layer)

    def forward(self, x: Tensor) -> Tensor:
        """(b, 3, h, w), pixels permuted -> (b, 10)."""
        for layer in self.layers:
            x = layer(x)
        return x


def _renumbered(layer: OnPixels, order: Tensor) -> OnPixels:
    g = layer.graph
    new = OnPixels(layer.conv.spec, Graph(order.argsort()[g.edge_index], g.size, edge_type=g.edge_type))
    new.conv.load_state_dict(layer.conv.state_dict(), assign=True)
    return new


class _Windows(nn.Module):
    """2x2 max pooling of permuted pixels."""

    def __init__(self, order: Tensor, after: Tensor):
        super().__init__()
        side = round(len(order) ** 0.5)
        place = order.argsort().view(side // 2, 2, side // 2, 2).transpose(1, 2).reshape(-1, 4)
        self.members = place[after]

    def forward(self, x: Tensor) -> Tensor:
        side = round(len(self.members) ** 0.5)
        return x.flatten(2)[:, :, self.members].amax(-1).unflatten(-1, (side, side))


def permuted(images: Tensor, order: Tensor) -> Tensor:
    """Permute pixels: pixel j of the result is pixel order[j] of the given images."""
    return images.flatten(2)[:, :, order].view_as(images)


# -- runs ----------------------------------------------------------------------------------------------------------


def run(config: Config, place: Place) -> common.Outcome:
    """Run one network with one seed."""
    data = task(config.dataset, place.root, config.limit)
    common.seed_everything(config.seed)
    model = network(config)
    metrics = {"network": name(asdict(config)), **fit(model, data, config, config.seed, place)}
    return common.Outcome(metrics, lowerings(model, config.batch, common.device(place.device)))


def seen(config: Config, root: Path | None) -> common.Data:
    """The data of a run."""
    return task(config.dataset, root, config.limit).seen


def name(config: dict[str, Any]) -> str:
    """The label of a configuration in tables.

    >>> name({"rung": "3", "where": "not last", "width": 32, "spec": ""})
    '3, not last'
    """
    parts = [config["spec"] or config["rung"]]
    parts += [config["where"]] if config["where"] != "all" else []
    parts += [f"width {config['width']}"] if config["width"] != 32 else []
    return ", ".join(parts)


def report(rows: list[common.Row]) -> None:
    """Print one line per network."""
    for title in dict.fromkeys(name(row["config"]) for row in rows):
        found = [row["metrics"] for row in rows if name(row["config"]) == title]
        text = mean_std(100, 2)([m["test_accuracy"] for m in found])
        cost = f"{found[0]['parameters']:,} parameters, {found[0]['seconds_per_epoch']:.0f} s an epoch"
        print(f"{title:16s} {text:22s} {cost}")


def modules(config: Config) -> list[str]:
    """The module of an operator given by --spec."""
    return [config.spec.partition(":")[0]] if config.spec else []


EXPERIMENT = Experiment(
    name="ladder",
    about=__doc__ or "",
    config=Config,
    expand=expand,
    run=run,
    data=seen,
    smoke={"dataset": "random", "limit": 32, "epochs": 1, "batch": 16, "width": 8},
    report=report,
    modules=modules,
    measured=("seconds_per_epoch",),
    tolerance={"test_accuracy": 0.01, "train_loss": 0.02},
    defaults={"seeds": 3},
)

main = EXPERIMENT.main

if __name__ == "__main__":
    main()
