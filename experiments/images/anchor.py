"""How accurate does an hour on two processor cores make a CNN of these operators on CIFAR-10?

The network has the shape of airbench (Keller Jordan, 94% on CIFAR-10 in 3.29 seconds on a single GPU, 2024):

    2x2 convolution with fixed weights that whiten the patches of the training images (12 eigenvectors of their
    covariance, and their negatives), GELU; three blocks of widths 64, 128, 128: 3x3 convolution, 2x2 max pooling, batch
    norm, GELU, 3x3 convolution, batch norm, GELU; 3x3 max pooling; a linear layer, divided by 9

with 54 M multiply-adds per image. 3x3 convolutions start as the identity on their first channels, batch norms have a
shift but no scale, and the shift learns 64 times as fast as the weights.

Protocol: all 50,000 training images, the recipe of `experiments.images.ladder` (Nesterov SGD, linear increase and
decrease of the learning rate, mirrored and shifted images) with airbench's batch size, momentum, label smoothing,
learning rate and weight decay (the last two as those of the mean loss), and 18 epochs in bfloat16 (by autocast;
parameters and their updates in float32), which take less than an hour on two cores that multiply matrices in bfloat16.
Nothing is selected; the test images are read once, after the last epoch, as they are and as the mean over six views
(shifted by -1, 0 and 1 pixels along the diagonal, and mirrored). Published, on the official pixels and on a GPU: 93 %
for this size (airbench93), 94 % for twice the cost.

    python -m experiments.images.anchor                train with all threads; an interrupted run continues
    python -m experiments.images.anchor --epochs 2     a short run
    python -m experiments.images.anchor --precision float32     faster on processors without bfloat16
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.harness import common
from experiments.harness.experiment import Experiment, Place
from experiments.harness.fit import Recipe, Split, Task, fit, ready, task
from experiments.harness.render import mean_std
from experiments.images.light import multiply_adds
from gconv import GConv
from gconv.operators import max_pool2d


@dataclass(frozen=True)
class Config(Recipe):
    """Network and training options."""

    epochs: int = 18
    """Number of epochs."""
    batch: int = 1024
    """Batch size."""
    lr: float = 1.5
    """Peak learning rate."""
    momentum: float = 0.85
    """Momentum."""
    weight_decay: float = 1.33e-3
    """Weight decay of kernels and matrices; biases and batch norms have none."""
    smoothing: float = 0.2
    """Label smoothing."""
    width: int = 64
    """Number of channels of the first block; the others have twice as many."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Precision of the activations and products."""
    seed: int = 0
    """Random seed."""

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if self.width < 24:
            raise ValueError(f"width must be at least 24, the number of channels before the blocks, not {self.width}")


def expand(config: Config, seeds: int) -> list[Config]:
    """One configuration per seed."""
    return [replace(config, seed=config.seed + s) for s in range(seeds)]


def whitening(images: Tensor, eps: float = 5e-4) -> Tensor:
    """Weights (24, 3, 2, 2) that turn 2x2 patches into uncorrelated numbers of equal variance, and their negatives.

    Args:
        images: normalised images (b, 3, h, w).
        eps: added to the eigenvalues of the covariance.
    """
    patches = F.unfold(images.double(), 2).transpose(1, 2).flatten(0, 1)
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    # The sign of an eigenvector is arbitrary: its largest entry is made positive, on every machine.
    vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    weight = (vectors / (values + eps).sqrt()).T.reshape(-1, 3, 2, 2).float()
    return torch.cat([weight, -weight])


def convolution(i: int, o: int) -> GConv:
    """A 3x3 convolution that starts as the identity on the first channels."""
    plain = nn.Conv2d(i, o, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(plain.weight[: min(i, o)])
    return GConv.from_torch(plain)


class Norm(nn.BatchNorm2d):
    """Batch norm without a scale. Its shift is 8 times its parameter, so its learning rate is 64 times as large."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.register_parameter("weight", None)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, c, h, w)."""
        return F.batch_norm(x, self.running_mean, self.running_var, None, 8 * self.bias, self.training, 0.4)


class Scaled(nn.Linear):
    """A linear layer whose output is divided by 9."""

    def forward(self, x: Tensor) -> Tensor:
        """(b, i) -> (b, o)."""
        return super().forward(x) / 9


class Autocast(nn.Sequential):
    """Layers that run in bfloat16 by autocast; the result is in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """(b, 3, 32, 32) -> (b, 10)."""
        with torch.autocast(x.device.type, torch.bfloat16):
            y: Tensor = super().forward(x)
        return y.float()


def network(width: int, images: Tensor, precision: str = "float32") -> nn.Sequential:
    """The network, with a first layer that whitens these normalised images."""
    first = nn.Conv2d(3, 24, 2)
    with torch.no_grad():
        first.weight.copy_(whitening(images))
        nn.init.zeros_(first.bias)  # type: ignore[arg-type]
    whiten = GConv.from_torch(first)
    whiten.requires_grad_(False)
    assert whiten.bias is not None
    whiten.bias.requires_grad_()
    layers: list[nn.Module] = [whiten, nn.GELU()]
    i = 24
    for o in (width, 2 * width, 2 * width):
        layers += [convolution(i, o), GConv(max_pool2d(2)), Norm(o), nn.GELU(), convolution(o, o), Norm(o), nn.GELU()]
        i = o
    kind = Autocast if precision == "bfloat16" else nn.Sequential
    return kind(*layers, GConv(max_pool2d(3)), nn.Flatten(), Scaled(i, 10, bias=False))


@torch.no_grad()
def accuracy_of_views(model: nn.Module, data: Task, split: Split, where: torch.device, batch: int = 250) -> float:
    """Fraction of correctly classified images, by the mean score of six views."""
    model.eval()
    right = 0
    for images, labels in zip(split.images.split(batch), split.labels.split(batch), strict=True):
        padded = F.pad(images.float(), (1, 1, 1, 1), mode="reflect").to(images.dtype)
        views = [padded[..., k : k + images.shape[-2], k : k + images.shape[-1]] for k in range(3)]
        scores: Any = sum(model(ready(x, data, where)) for view in views for x in (view, view.flip(-1)))
        right += int((scores.argmax(1).cpu() == labels).sum())
    return right / len(split.labels)


def run(config: Config, place: Place) -> common.Outcome:
    """Train one seed."""
    data = task(config.dataset, place.root, config.limit)
    where = common.device(place.device)
    common.seed_everything(config.seed)
    model = network(config.width, ready(data.train.images[:5000], data, torch.device("cpu")), config.precision)
    count = multiply_adds(model)
    metrics = fit(model, data, config, config.seed, place)
    views = accuracy_of_views(model, data, data.test, where)
    threads = torch.get_num_threads()
    return common.Outcome({**metrics, "six_views": views, "multiply_adds": count / 1e6, "threads": threads})


def seen(config: Config, root: Path | None) -> common.Data:
    """The data of a run."""
    return task(config.dataset, root, config.limit).seen


def report(rows: list[common.Row]) -> None:
    """Print the accuracies, the cost and the time."""
    found = [row["metrics"] for row in rows]
    here, views = (mean_std(100)([m[name] for m in found]) for name in ("test_accuracy", "six_views"))
    minutes = [m["seconds_per_epoch"] * row["config"]["epochs"] / 60 for m, row in zip(found, rows, strict=True)]
    print(f"test accuracy {here}, six views {views}; {found[0]['parameters']:,} parameters, "
          f"{found[0]['multiply_adds']:.1f} M multiply-adds, "
          f"{sum(minutes) / len(minutes):.0f} minutes in {rows[0]['config']['precision']}")  # fmt: skip


EXPERIMENT = Experiment(
    name="anchor",
    about=__doc__ or "",
    config=Config,
    expand=expand,
    run=run,
    data=seen,
    smoke={"dataset": "random", "limit": 8, "epochs": 1, "batch": 8, "width": 24},
    report=report,
    measured=("seconds_per_epoch", "threads"),
    tolerance={"test_accuracy": 0.01, "six_views": 0.01, "train_loss": 0.02},
)

main = EXPERIMENT.main

if __name__ == "__main__":
    main()
