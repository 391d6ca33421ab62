"""A plain CNN on CIFAR-10 built from gconv operators, with the same losses as a torch.nn control in its first steps.

Protocol: conv 64-128-256 (3x3, padding 1), ReLU and 2x2 max pooling after each; fully connected 4096-1024-512-10;
SGD, learning rate 0.001, momentum 0.9, 10 epochs on all 50,000 training images, no augmentation; images normalised by
channel with the training set's mean and deviation; test accuracy after every epoch, without model selection; n seeds.

The batch size is 16, chosen before any accuracy was seen: at a fixed learning rate of 0.001, small batches give more
steps per epoch. Other sizes were not trained (`--batch`).

    python -m experiments.images.cifar10_cnn                      three seeds, resumable
    python -m experiments.images.cifar10_cnn --engine torch       full training of the control
    python -m experiments.images.cifar10_cnn --bf16               bfloat16 autocast, if the processor supports it
"""

from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from datasets import ImageSet
from experiments.harness import common
from experiments.harness.training import Batches, Recipe, cifar10, cifar10_or_exit, prepare, step, train
from gconv import GConv
from gconv.operators import conv2d, max_pool2d

WIDTHS = (3, 64, 128, 256)


@dataclass(frozen=True)
class Config(Recipe):
    """Network and training options."""

    engine: Literal["gconv", "torch"] = "gconv"
    """Layers of gconv, or of torch.nn with the same initial weights."""
    limit: int | None = None
    """Use only the first images of each split; recorded in the row."""
    control_steps: int = 50
    """Number of steps run by both engines from the same weights before training; the largest loss gap is recorded."""
    seed: int = 0
    """Random seed."""


def head() -> list[nn.Module]:
    """The fully connected layers."""
    return [nn.Flatten(), nn.Linear(4096, 1024), nn.ReLU(), nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 10)]


def gconv_network() -> nn.Sequential:
    """The network, with convolutions and pooling as gconv operators."""
    layers: list[nn.Module] = []
    for i, o in pairwise(WIDTHS):
        layers += [GConv(conv2d(i, o, 3, padding=1)), nn.ReLU(), GConv(max_pool2d(2))]
    return nn.Sequential(*layers, *head())


def torch_network(like: nn.Sequential) -> nn.Sequential:
    """The same network of torch.nn layers, with the weights of a `gconv_network`."""
    layers: list[nn.Module] = []
    for i, o in pairwise(WIDTHS):
        layers += [nn.Conv2d(i, o, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    control = nn.Sequential(*layers, *head())
    with torch.no_grad():
        for mine, theirs in zip(like, control, strict=True):
            if isinstance(theirs, nn.Conv2d):
                theirs.weight.copy_(mine.weight.permute(2, 1, 0).unflatten(-1, (3, 3)))  # type: ignore[operator]
                theirs.bias.copy_(mine.bias)  # type: ignore[union-attr, arg-type]
            elif isinstance(theirs, nn.Linear):
                theirs.load_state_dict(mine.state_dict())
    return control


def control_gap(images: ImageSet, config: Config) -> float:
    """The largest difference of the losses of the two engines over some steps, from the same weights and batches."""
    if not config.control_steps:
        return 0.0
    common.seed_everything(config.seed)
    mine = gconv_network()
    theirs = torch_network(mine)
    (mine_, mine_opt), (theirs_, theirs_opt) = prepare(mine, config), prepare(theirs, config)
    gap = 0.0
    for number, (x, y) in enumerate(Batches(images, config, config.seed).train()):
        if number == config.control_steps:
            break
        gap = max(gap, abs(step(mine_, mine_opt, x, y, config.bf16) - step(theirs_, theirs_opt, x, y, config.bf16)))
    return gap


def run(config: Config, path: Path | None = None, *, root: Path | None = None) -> common.Outcome:
    """Train one seed."""
    images = cifar10(root, config.limit)
    gap = control_gap(images, config)
    common.seed_everything(config.seed)
    model = gconv_network()
    x = torch.zeros(config.batch, 3, 32, 32)
    chosen: list[str] = []
    for layer in model:
        if isinstance(layer, GConv):
            chosen.append(layer.plan(x).chosen.name)
        x = layer(x)
    if config.engine == "torch":
        model, chosen = torch_network(model), []
    metrics: dict[str, Any] = train(model, images, config, config.seed, path, f"cifar10_cnn {config.engine}")
    return common.Outcome(metrics | {"control_loss_gap": gap}, chosen)


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    config, options = common.cli(Config, __doc__, argv, seeds=3)
    images = cifar10_or_exit(options.data_root, config.limit)
    configs = [replace(config, seed=config.seed + s) for s in range(options.seeds)]
    rows = common.sweep(
        configs,
        partial(run, root=options.data_root),
        options.open("cifar10_cnn"),
        experiment="cifar10_cnn",
        data=common.Data(images.label, images.content_hash),
        jobs=options.jobs,
        resumable=True,
    )
    for row in rows:
        m = row["metrics"]
        last = f"{100 * m['test_accuracy'][-1]:.2f} % after {len(m['test_accuracy'])} epochs"
        gap = f"largest loss gap to the other engine {m['control_loss_gap']:.1e}"
        print(f"seed {row['seed']}: {last}; {gap}; {row['data']['label']}")


if __name__ == "__main__":
    main()
