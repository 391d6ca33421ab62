"""What a small CNN's parts are worth on CIFAR-10: kernel size, strides, padding, activations, depth, light blocks.

Questions, a network each beside `base`, of which one part is exchanged:

    kernel     1x1, 5x5 and 7x7 in place of 3x3, at equal width and (=) at equal parameters; two 3x3 are the base, and
               one 5x5 sees as far with about as many parameters
    stride     maxima of 2x2 pixels between the stages, means, a convolution of stride 2, or none: 32x32 throughout
    padding    zeros, the other edge (circular), mirrored, repeated, or none at all (valid)
    activation ReLU, LeakyReLU, GELU, SiLU, tanh, sigmoid
    depth      one, two or four convolutions a stage
    light      MobileNetV2's and ShuffleNetV2's blocks in place of the convolutions

Protocol: three stages (widths 16, 32, 64), batch norm and the activation after each convolution, mean over the pixels,
a linear layer; the recipe and the training images of `experiments.images.ladder`, 8 epochs, nothing selected, the test
images read once, after the last. Second figure: accuracy on the test images moved by 8 pixels up, down, left and right,
the rest of the mean colour: objects at the border. Three seeds. One thread takes about 4 minutes for `base`, about 11
hours for all; --budget divides them.

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
    """A network: the base, and what differs."""

    kernels: tuple[int, ...] = (3, 3)
    """Of each stage's convolutions."""
    width: float = 1.0
    """In widths of the base."""
    down: str = "max"
    """max, mean, stride or none."""
    padding: str = "zeros"
    """A padding_mode of `conv2d`, or valid."""
    activation: str = "relu"
    block: str = ""
    """A key of `BLOCKS`, in place of all convolutions but the first."""


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
    """One network and its training."""

    network: str = "all"
    """A key of `NETWORKS`, or all of them."""
    width: int = 16
    """Channels of the base's first stage."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        super().__post_init__()
        if self.width < 2 or self.width % 2:
            raise ValueError(f"width must be even and positive, not {self.width}")


def expand(config: Config, seeds: int) -> list[Config]:
    """All networks, seed after seed. Raises: ValueError for an unknown one."""
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
                # ShuffleNetV2's block keeps its channels, so a matrix widens them at the start of a stage
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
    """Normalised images moved up, down, left and right, zeros (the mean colour) where nothing is left.

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
    """Share of the images, moved to each of the four borders, that the model names correctly."""
    model.eval()
    right = 0
    for images, labels in zip(split.images.split(batch), split.labels.split(batch), strict=True):
        for x in to_border(ready(images, data, where)):
            right += int((model(x).argmax(1).cpu() == labels).sum())
    return right / (4 * len(split.labels))


def run(config: Config, place: Place) -> common.Outcome:
    """One network, one seed."""
    data = task(config.dataset, place.root, config.limit)
    common.seed_everything(config.seed)
    model = network(NETWORKS[config.network], config.width)
    count = multiply_adds(model)
    metrics = fit(model, data, config, config.seed, place)
    moved = border_accuracy(model, data, data.test, common.device(place.device))
    return common.Outcome({**metrics, "border_accuracy": moved, "multiply_adds": count / 1e6})


def seen(config: Config, root: Path | None) -> common.Data:
    """What a run sees."""
    return task(config.dataset, root, config.limit).seen


def report(rows: list[common.Row]) -> None:
    """A line a network."""
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
