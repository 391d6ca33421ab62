"""Ablations of a small CNN on CIFAR-10: kernel size, stride, padding, activation, depth, lightweight blocks.

In each network, one choice of `base` is changed:

    kernel     1x1, 5x5 and 7x7 instead of 3x3, at equal width and (=) with an equal number of parameters; `base` has
               two 3x3 per stage, and one 5x5 has the same receptive field with about as many parameters
    stride     2x2 max pooling between the stages, average pooling, a convolution with stride 2, or none (32x32 pixels)
    padding    zeros, circular, reflect, replicate, or none (valid)
    activation ReLU, LeakyReLU, GELU, SiLU, tanh, sigmoid
    depth      one, two or four convolutions per stage
    light      the blocks of MobileNetV2 and ShuffleNetV2 instead of convolutions

Protocol: three stages (widths 16, 32, 64), batch norm and activation after each convolution, mean over the pixels, a
linear layer; the recipe and the training images of `experiments.images.ladder`, 8 epochs, no model selection; the test
images are read once, after the last epoch. A second number is the accuracy on test images shifted by 8 pixels up,
down, left and right (objects at the border), padded with the mean colour. Three seeds. With one thread, `base` takes
about 4 minutes and everything about 11 hours, which --budget can divide.

    python -m experiments.sweep studies
    python -m experiments.images.studies --network "padding circular"
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from experiments.harness import common
from experiments.harness.experiment import Experiment, Place
from experiments.harness.fit import Recipe, Split, Task, fit, ready, task
from experiments.harness.render import mean_std
from experiments.images.light import Inverted, Shuffled, multiply_adds
from gconv import GConv
from gconv.operators import avg_pool2d, conv2d, max_pool2d

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}
BLOCKS: dict[str, Callable[[int, int], nn.Module]] = {"mobile": Inverted, "shuffle": Shuffled}


class Net(NamedTuple):
    """A network: its differences from the base."""

    kernels: tuple[int, ...] = (3, 3)
    """Kernel size of the convolutions of each stage."""
    width: float = 1.0
    """Width relative to the base."""
    down: str = "max"
    """max, mean, stride or none."""
    padding: str = "zeros"
    """A padding_mode of `conv2d`, or valid."""
    activation: str = "relu"
    block: str = ""
    """A key of `BLOCKS`, which replaces all convolutions except the first."""


NETWORKS: dict[str, Net] = {
    "base": Net(),
    **{f"kernel {k}x{k}": Net((k, k)) for k in (1, 5, 7)},
    **{f"kernel {k}x{k}=": Net((k, k), 3 / k) for k in (1, 5, 7)},
    "one 5x5": Net((5,)),
    **{f"stride: {how}": Net(down=how) for how in ("mean", "stride", "none")},
    **{f"padding {how}": Net(padding=how) for how in ("circular", "reflect", "replicate", "valid")},
    **{name: Net(activation=name) for name in list(ACTIVATIONS)[1:]},
    **{f"depth {n}": Net((3,) * n) for n in (1, 4)},
    **{f"light: {name}": Net(block=name) for name in BLOCKS},
}


@dataclass(frozen=True)
class Config(Recipe):
    """Network and training options."""

    network: str = "all"
    """A key of `NETWORKS`, or all."""
    width: int = 16
    """Number of channels of the first stage of the base."""
    seed: int = 0
    """Random seed."""

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if self.width < 2 or self.width % 2:
            raise ValueError(f"width must be even and positive, not {self.width}")


def expand(config: Config, seeds: int) -> list[Config]:
    """All networks, seed by seed. Raises: ValueError for an unknown one."""
    if config.network not in ("all", *NETWORKS):
        raise ValueError(f"there is no network {config.network!r}; there are {', '.join(NETWORKS)}")
    names = NETWORKS if config.network == "all" else [config.network]
    return [replace(config, network=name, seed=config.seed + s) for s in range(seeds) for name in names]


def network(net: Net, width: int) -> nn.Sequential:
    """Three stages, mean over the pixels, a linear layer."""
    layers: list[nn.Module] = []
    i = 3
    for stage in range(3):
        o = max(1, round(width * net.width)) << stage
        if stage and net.down in ("max", "mean"):
            layers.append(GConv(max_pool2d(2) if net.down == "max" else avg_pool2d(2)))
        for number, k in enumerate(net.kernels):
            if net.block and layers:
                # ShuffleNetV2's block keeps the number of channels, so a matrix increases it at the start of a stage
                if i != o and net.block == "shuffle":
                    layers += [GConv(conv2d(i, o, 1, bias=False)), nn.BatchNorm2d(o), nn.ReLU()]
                layers.append(BLOCKS[net.block](o if net.block == "shuffle" else i, o))
            else:
                stride = 2 if stage and not number and net.down == "stride" else 1
                padding: Any = {"padding": 0 if net.padding == "valid" else k // 2}
                padding |= {} if net.padding == "valid" else {"padding_mode": net.padding}
                layers.append(GConv(conv2d(i, o, k, stride, bias=False, **padding)))
                layers += [nn.BatchNorm2d(o), ACTIVATIONS[net.activation]()]
            i = o
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(i, 10))


def to_border(x: Tensor, by: int = 8) -> list[Tensor]:
    """Normalised images shifted up, down, left and right, padded with zeros (the mean colour).

    >>> [moved.flatten().tolist() for moved in to_border(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), 1)[:2]]
    [[3.0, 4.0, 0.0, 0.0], [0.0, 0.0, 1.0, 2.0]]
    """
    found = []
    for axis in (2, 3):
        for sign in (-1, 1):
            moved = x.roll(sign * by, axis)
            empty = slice(None, by) if sign > 0 else slice(-by, None)
            moved[(slice(None),) * axis + (empty,)] = 0
            found.append(moved)
    return found


@torch.no_grad()
def border_accuracy(model: nn.Module, data: Task, split: Split, where: torch.device, batch: int = 500) -> float:
    """Fraction of correctly classified images, shifted to each of the four borders."""
    model.eval()
    right = 0
    for images, labels in zip(split.images.split(batch), split.labels.split(batch), strict=True):
        for x in to_border(ready(images, data, where)):
            right += int((model(x).argmax(1).cpu() == labels).sum())
    return right / (4 * len(split.labels))


def run(config: Config, place: Place) -> common.Outcome:
    """Run one network with one seed."""
    data = task(config.dataset, place.root, config.limit)
    common.seed_everything(config.seed)
    model = network(NETWORKS[config.network], config.width)
    count = multiply_adds(model)
    metrics = fit(model, data, config, config.seed, place)
    moved = border_accuracy(model, data, data.test, common.device(place.device))
    return common.Outcome({**metrics, "border_accuracy": moved, "multiply_adds": count / 1e6})


def seen(config: Config, root: Path | None) -> common.Data:
    """The data of a run."""
    return task(config.dataset, root, config.limit).seen


def report(rows: list[common.Row]) -> None:
    """Print one line per network."""
    for title in dict.fromkeys(row["config"]["network"] for row in rows):
        found = [row["metrics"] for row in rows if row["config"]["network"] == title]
        here, there = (mean_std(100)([m[name] for m in found]) for name in ("test_accuracy", "border_accuracy"))
        cost = f"{found[0]['parameters']:,} parameters, {found[0]['multiply_adds']:.1f} M multiply-adds"
        print(f"{title:18s} {here:18s} at the border {there:18s} {cost}")


EXPERIMENT = Experiment(
    name="studies",
    about=__doc__ or "",
    config=Config,
    expand=expand,
    run=run,
    data=seen,
    smoke={"network": "light: shuffle", "dataset": "random", "limit": 8, "epochs": 1, "batch": 8, "width": 2},
    report=report,
    measured=("seconds_per_epoch",),
    tolerance={"test_accuracy": 0.01, "border_accuracy": 0.01, "train_loss": 0.02},
    defaults={"seeds": 3},
)

main = EXPERIMENT.main

if __name__ == "__main__":
    main()
