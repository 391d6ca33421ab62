"""Fine-tuning of a small CNN from eight classes of CIFAR-10 to the other two: which parameters must be trained.

    all       all parameters
    last      the last layer, on frozen features
    bias      the biases and the shifts of batch norms, and the last layer
    adapters  low-rank adapters on the frozen convolutions (`gconv.adapt`), and the last layer
    scratch   all parameters, without pretraining

Protocol: pretraining on the images of eight classes (all but cat and dog) among the first `pretraining` training
images, `epochs` epochs of Adam. The new task is cat or dog with 10, 50 or 500 images per class, drawn from the
remaining training images; `steps` steps of Adam in batches of 20, with frozen batch statistics (but for scratch) and
without model selection. The 2,000 test images of the two classes are scored once. The seed determines all random
choices.

    python -m experiments.large.finetune                        run missing runs, with one pretraining per seed
    python -m experiments.large.finetune --way adapters --shots 50
"""

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gconv
from datasets.cifar10 import load_cifar10
from experiments.harness import common
from experiments.harness.experiment import Experiment, Place
from experiments.harness.progress import report as progress
from experiments.harness.render import Figure, Table, mean_std
from gconv import GConv
from gconv.operators import conv2d, global_pool, pointwise

WAYS = ("last", "bias", "adapters", "all", "scratch")
SHOTS = (10, 50, 500)
NEW = (3, 5)  # cat and dog
RATES = {"last": 0.01, "bias": 0.005, "adapters": 0.005, "all": 0.001, "scratch": 0.001}


@dataclass(frozen=True)
class Config:
    """Fine-tuning options."""

    way: Literal["all", "last", "bias", "adapters", "scratch", "every"] = "every"
    """Fine-tuning method."""
    dataset: Literal["cifar10", "random"] = "cifar10"
    """random: generated images, for testing."""
    shots: int = 0
    """Images per class; 0 for each of 10, 50 and 500."""
    pretraining: int = 12500
    """Number of training images from which those of eight classes are used for pretraining."""
    epochs: int = 3
    """Epochs of pretraining."""
    steps: int = 100
    """Steps of fine-tuning."""
    width: int = 16
    """Number of channels."""
    rank: int = 4
    """adapters: rank."""
    seed: int = 0
    """Random seed."""

    def __post_init__(self) -> None:
        """Check the options."""
        for name, least in (("shots", 0), ("pretraining", 1), ("epochs", 1), ("steps", 1), ("width", 1), ("rank", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")


def expand(config: Config, seeds: int) -> list[Config]:
    """One configuration per run; those of one seed are consecutive."""
    ways: Any = WAYS if config.way == "every" else (config.way,)
    shots = (config.shots,) if config.shots else SHOTS
    return [
        replace(config, way=way, shots=n, seed=config.seed + s) for s in range(seeds) for n in shots for way in ways
    ]


# -- images --------------------------------------------------------------------------------------------------------


class Images(NamedTuple):
    """Normalised images and labels of both tasks, with label and hash."""

    old: tuple[Tensor, Tensor]
    new: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    label: str
    hash: str


@lru_cache(maxsize=1)
def images(dataset: str, pretraining: int, root: Path | None = None) -> Images:
    """Load both tasks. Raises: DataUnavailable, DataCorrupt."""
    if dataset == "random":
        generator = torch.Generator().manual_seed(0)
        y = torch.arange(600) % 10
        x = torch.rand(600, 3, 16, 16, generator=generator) + y[:, None, None, None] / 5
        parts = ((x[:pretraining], y[:pretraining]), (x[200:400], y[200:400]), (x[400:], y[400:]))
        label, content = "random images", "generated"
    else:
        data = load_cifar10(root)
        train, test = data.train_images / 255, data.test_images / 255
        mean, std = (f((0, 2, 3), keepdim=True) for f in (train[:pretraining].mean, train[:pretraining].std))
        train, test = (train - mean) / std, (test - mean) / std
        y = data.train_labels
        first, rest = slice(pretraining), slice(pretraining, None)
        parts = ((train[first], y[first]), (train[rest], y[rest]), (test, data.test_labels))
        label, content = data.label, data.content_hash
    old = [c for c in range(10) if c not in NEW]
    one, two, three = (_only(*part, classes) for part, classes in zip(parts, (old, NEW, NEW), strict=True))
    return Images(one, two, three, label, content)


def _only(x: Tensor, y: Tensor, classes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The images of some classes, with labels renumbered from 0."""
    number = torch.full((10,), -1).index_put((torch.tensor(classes),), torch.arange(len(classes)))
    keep = number[y] >= 0
    return x[keep], number[y[keep]]


def draw_shots(labels: Tensor, shots: int, seed: int) -> Tensor:
    """Indices of a number of images of each class, drawn by the seed.

    >>> draw_shots(torch.tensor([0, 0, 1, 1]), 2, 0).sort().values.tolist()
    [0, 1, 2, 3]
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    found = [order[labels[order] == c] for c in labels.unique()]
    if (fewest := min(map(len, found), default=0)) < shots:
        raise ValueError(f"there are not {shots} images of each class, only {fewest}")
    return torch.cat([rows[:shots] for rows in found])


# -- network and fine-tuning --------------------------------------------------------------------------------------


def network(width: int, classes: int) -> nn.Sequential:
    """Four 3x3 convolutions (two of them strided) with batch norms, global average pooling, a linear layer."""
    layers: list[nn.Module] = []
    i = 3
    for o, stride in ((width, 2), (2 * width, 1), (2 * width, 2), (4 * width, 1)):
        layers += [GConv(conv2d(i, o, 3, stride=stride, padding=1)), nn.BatchNorm2d(o), nn.ReLU()]
        i = o
    return nn.Sequential(*layers, GConv(global_pool("mean")), GConv(pointwise(i, classes)))


def scores(model: nn.Module, x: Tensor) -> Tensor:
    """(b, 3, h, w) -> (b, classes)."""
    y: Tensor = model(x)
    return y.flatten(1)


def train(model: nn.Module, x: Tensor, y: Tensor, steps: int, batch: int, lr: float, seed: int, frozen: bool) -> float:
    """Train with Adam, each image once per epoch. Returns: the last loss.

    Raises: ArithmeticError if the loss becomes NaN or infinite.
    """
    used = [p for p in model.parameters() if p.requires_grad]
    adam, generator = torch.optim.Adam(used, lr), torch.Generator().manual_seed(seed)
    model.train(not frozen)
    order, loss = torch.empty(0, dtype=torch.int64), torch.zeros(())
    for step in range(1, steps + 1):
        if not len(order):
            order = torch.randperm(len(x), generator=generator)
        rows, order = order[:batch], order[batch:]
        loss = F.cross_entropy(scores(model, x[rows]), y[rows])
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()
        if not math.isfinite(loss.item()):
            raise ArithmeticError(f"the loss became {loss.item()} in step {step}")
        if step % 100 == 0:
            progress(step / steps, f"step {step}, loss {loss.item():.3f}", False)
    return loss.item()


@lru_cache(maxsize=1)
def pretrained(dataset: str, pretraining: int, epochs: int, width: int, seed: int, root: Path | None) -> nn.Sequential:
    """The network after pretraining, computed once per seed."""
    common.seed_everything(seed)
    x, y = images(dataset, pretraining, root).old
    model = network(width, 10 - len(NEW))
    train(model, x, y, epochs * math.ceil(len(x) / 100), 100, 0.003, seed, False)
    return model.eval()


def prepared(model: nn.Sequential, config: Config) -> nn.Module:
    """A network for the new classes, in which only the parameters of a fine-tuning method require gradients."""
    model = copy.deepcopy(model)
    model[-1] = GConv(pointwise(4 * config.width, len(NEW)))
    if config.way == "adapters":
        convolutions = [
            path for path, m in model[:-1].named_children() if isinstance(m, GConv) and m.weight is not None
        ]
        adapted = gconv.adapt(model, rank=config.rank, layers=convolutions)
        adapted[-1].requires_grad_(True)
        return adapted
    for name, p in model[:-1].named_parameters():
        p.requires_grad_(config.way in ("all", "scratch") or (config.way == "bias" and name.endswith("bias")))
    return model


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Fraction of correctly classified images, in eval mode."""
    model.eval()
    right = [(scores(model, a).argmax(1) == b).sum() for a, b in zip(x.split(500), y.split(500), strict=True)]
    return float(sum(right)) / len(y)


def run(config: Config, place: Place) -> common.Outcome:
    """Run one method with one number of images and one seed."""
    data = images(config.dataset, config.pretraining, place.root)
    if config.way == "scratch":
        common.seed_everything(config.seed)
        start = network(config.width, 10 - len(NEW))
    else:
        start = pretrained(config.dataset, config.pretraining, config.epochs, config.width, config.seed, place.root)
    common.seed_everything(config.seed)
    model = prepared(start, config)
    rows = draw_shots(data.new[1], config.shots, config.seed)
    clock = time.perf_counter()
    frozen = config.way != "scratch"
    loss = train(model, data.new[0][rows], data.new[1][rows], config.steps, 20, RATES[config.way], config.seed, frozen)
    metrics: dict[str, Any] = {
        "train_loss": loss,
        "seconds_training": round(time.perf_counter() - clock, 2),
        "test_accuracy": accuracy(model, *data.test),
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    return common.Outcome(metrics, [repr(m.spec) for m in model.modules() if isinstance(m, GConv)])


def seen(config: Config, root: Path | None) -> common.Data:
    """The data of a run. Raises: ValueError if there are too few images."""
    data = images(config.dataset, config.pretraining, root)
    draw_shots(data.new[1], config.shots, config.seed)
    return common.Data(data.label, data.hash)


def report(rows: list[common.Row]) -> None:
    """Print one line per way and number of images."""
    cells: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["config"]["way"], row["config"]["shots"]), []).append(row["metrics"])
    for (way, shots), found in cells.items():
        text = mean_std(100)([m["test_accuracy"] for m in found])
        print(f"{way:9s} {shots:4d} images a class: {text}, {found[0]['trained']:,} trained parameters")


EXPERIMENT = Experiment(
    name="finetune",
    about=__doc__ or "",
    config=Config,
    expand=expand,
    run=run,
    data=seen,
    smoke={"dataset": "random", "shots": 4, "pretraining": 100, "epochs": 1, "steps": 3, "width": 4, "rank": 1},
    report=report,
    measured=("seconds_training",),
    tolerance={"test_accuracy": 0.04, "train_loss": 0.3},
    defaults={"seeds": 5},
)


def columns(row: common.Row) -> dict[str, float]:
    """Cells of a row: accuracy by number of images per class."""
    return {f"{row['config']['shots']} a class": row["metrics"]["test_accuracy"]}


TABLE = Table(
    name="finetune",
    experiment="finetune",
    label="config.way",
    labels=WAYS,
    n=5,
    unfinished=("*",),
    cells=columns,
    format=mean_std(100),
    vary=("seed", "shots"),
    words=(("trained parameters", "metrics.trained"),),
    caption=(
        "Cat or dog: test accuracy in % (chance is 50) of a CNN pretrained on the other eight classes of CIFAR-10 and "
        "fine-tuned with so many images a class, 100 steps, nothing selected. scratch: the same steps, not pretrained."
    ),
    command="python -m experiments.large.finetune --official",
)


def draw(axes: Any, rows: Sequence[common.Row]) -> None:
    """Plot accuracy against the number of images per class."""
    for way in WAYS:
        found: dict[int, list[float]] = {}
        for row in rows:
            if row["config"]["way"] == way:
                found.setdefault(row["config"]["shots"], []).append(100 * row["metrics"]["test_accuracy"])
        if found:
            shots = sorted(found)
            axes.plot(shots, [sum(found[n]) / len(found[n]) for n in shots], "o-", label=way)
    axes.set_xscale("log")
    axes.set_xlabel("images a class")
    axes.legend()


FIGURE = Figure(name="finetune", experiment="finetune", draw=draw, title="Cat or dog: test accuracy in %")

main = EXPERIMENT.main

if __name__ == "__main__":
    main()
