"""Multiply-adds and parameters of networks with depthwise convolutions: MobileNetV2 and ShuffleNetV2.

The counter is compared with published counts for 32x32 images and ten classes, with the first strides set to 1:
MobileNetV2 x1.0 88.0 M and ShuffleNetV2 x1.0 45.0 M (github.com/chenyaofo/pytorch-cifar-models). The plain networks
have a 3x3 convolution instead of each block, at the same widths.

    python -m experiments.sweep multiply_adds
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.harness import common
from experiments.harness.experiment import Experiment, Place
from gconv import GConv
from gconv.operators import conv2d, depthwise, pointwise


def layer(spec: Any, width: int, activation: nn.Module | None) -> list[nn.Module]:
    """An operator without bias, followed by batch norm and an activation."""
    return [GConv(spec), nn.BatchNorm2d(width), *([activation] if activation else [])]


class Inverted(nn.Module):
    """The block of MobileNetV2: a pointwise expansion, a depthwise 3x3, a pointwise projection, a skip connection."""

    def __init__(self, i: int, o: int, stride: int = 1, times: int = 6):
        super().__init__()
        inner, act = i * times, nn.ReLU6()
        wide = layer(pointwise(i, inner, bias=False), inner, act) if times > 1 else []
        deep = layer(depthwise(inner, 3, stride, padding=1, bias=False), inner, act)
        self.body = nn.Sequential(*wide, *deep, *layer(pointwise(inner, o, bias=False), o, None))
        self.added = stride == 1 and i == o

    def forward(self, x: Tensor) -> Tensor:
        """(b, i, h, w) -> (b, o, h / stride, w / stride)."""
        y: Tensor = self.body(x)
        return x + y if self.added else y


class Shuffled(nn.Module):
    """The block of ShuffleNetV2: a depthwise 3x3 on half of the channels (all if strided), then a channel shuffle."""

    def __init__(self, i: int, o: int, stride: int = 1):
        super().__init__()
        half, act = o // 2, nn.ReLU()
        given = i if stride > 1 else i // 2
        self.left = nn.Sequential()
        if stride > 1:
            deep = layer(depthwise(i, 3, stride, padding=1, bias=False), i, None)
            self.left = nn.Sequential(*deep, *layer(pointwise(i, half, bias=False), half, act))
        self.right = nn.Sequential(
            *layer(pointwise(given, half, bias=False), half, act),
            *layer(depthwise(half, 3, stride, padding=1, bias=False), half, None),
            *layer(pointwise(half, half, bias=False), half, act),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(b, i, h, w) -> (b, o, h / stride, w / stride)."""
        a, b = x.chunk(2, 1) if not len(self.left) else (x, x)
        return F.channel_shuffle(torch.cat([self.left(a), self.right(b)], 1), 2)


class Plain(nn.Sequential):
    """A 3x3 convolution instead of either block."""

    def __init__(self, i: int, o: int, stride: int = 1, times: int = 1):
        super().__init__(*layer(conv2d(i, o, 3, stride, padding=1, bias=False), o, nn.ReLU()))


def head(width: int) -> list[nn.Module]:
    """Mean over the pixels and a linear layer."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)]


def mobile(block: Callable[..., nn.Module] = Inverted) -> nn.Sequential:
    """MobileNetV2 x1.0 for 32x32 images."""
    layers: list[nn.Module] = layer(conv2d(3, 32, 3, padding=1, bias=False), 32, nn.ReLU6())
    i = 32
    stages = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for times, o, count, stride in stages:
        for number in range(count):
            layers.append(block(i, o, 1 if number else stride, times))
            i = o
    return nn.Sequential(*layers, *layer(pointwise(i, 1280, bias=False), 1280, nn.ReLU6()), *head(1280))


def shuffle(block: Callable[..., nn.Module] = Shuffled) -> nn.Sequential:
    """ShuffleNetV2 x1.0 for 32x32 images."""
    layers: list[nn.Module] = layer(conv2d(3, 24, 3, padding=1, bias=False), 24, nn.ReLU())
    i = 24
    for o, count in ((116, 4), (232, 8), (464, 4)):
        for number in range(count):
            layers.append(block(i, o, 1 if number else 2))
            i = o
    return nn.Sequential(*layers, *layer(pointwise(i, 1024, bias=False), 1024, nn.ReLU()), *head(1024))


NETWORKS: dict[str, Callable[[], nn.Sequential]] = {
    "MobileNetV2 x1.0": mobile,
    "MobileNetV2 x1.0, plain 3x3": lambda: mobile(Plain),
    "ShuffleNetV2 x1.0": shuffle,
    "ShuffleNetV2 x1.0, plain 3x3": lambda: shuffle(Plain),
}


@torch.no_grad()
def multiply_adds(model: nn.Module, side: int = 32) -> int:
    """Multiply-adds of convolutions and linear layers for one image: one per weight and output pixel.

    >>> multiply_adds(nn.Sequential(GConv(conv2d(3, 8, 3, padding=1)), *head(8))) == 32 * 32 * 9 * 3 * 8 + 80
    True
    """
    count = 0

    def add(module: Any, _: Any, y: Tensor) -> None:
        nonlocal count
        count += module.weight.numel() * y.shape[2:].numel()

    counted = [m for m in model.modules() if isinstance(m, GConv | nn.Linear) and m.weight is not None]
    hooks = [m.register_forward_hook(add) for m in counted]
    training = model.training
    where = next(model.parameters()).device
    model.eval()(torch.zeros(1, 3, side, side, device=where))
    model.train(training)
    for hook in hooks:
        hook.remove()
    return count


@dataclass(frozen=True)
class Config:
    """Options."""

    network: str = "all"
    """A key of `NETWORKS`, or all."""


def expand(config: Config, seeds: int) -> list[Config]:
    """One run per network; nothing is random. Raises: ValueError for an unknown one."""
    if config.network not in ("all", *NETWORKS):
        raise ValueError(f"there is no network {config.network!r}; there are {', '.join(NETWORKS)}")
    return [replace(config, network=name) for name in (NETWORKS if config.network == "all" else [config.network])]


def run(config: Config, place: Place) -> common.Outcome:
    """Count the multiply-adds and parameters of a network."""
    model = NETWORKS[config.network]()
    parameters = sum(p.numel() for p in model.parameters())
    return common.Outcome({"multiply_adds": multiply_adds(model) / 1e6, "parameters": parameters / 1e6})


def report(rows: list[common.Row]) -> None:
    """Print one line per network."""
    for row in rows:
        found = row["metrics"]
        print(
            f"{row['config']['network']:30s} {found['multiply_adds']:7.1f} M, {found['parameters']:6.2f} M parameters"
        )


EXPERIMENT = Experiment(
    name="multiply_adds",
    about=__doc__ or "",
    config=Config,
    expand=expand,
    run=run,
    data=lambda config, root: common.Data("no data", "none"),
    smoke={"network": "ShuffleNetV2 x1.0"},
    report=report,
)

main = EXPERIMENT.main

if __name__ == "__main__":
    main()
