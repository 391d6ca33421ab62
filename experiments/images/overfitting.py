"""Remedies against overfitting on 5,000 images of CIFAR-10: augmentation, weight decay, dropout, early stopping, all.

Protocol: the base network of `experiments.images.studies` with width 32 (about 290,000 parameters, 58 per image),
trained on the first 5,000 training images; the last 5,000 are used for validation, and images are normalised by the
mean and deviation of all 50,000. 30 epochs of the recipe of `experiments.images.ladder` without augmentation, weight
decay and label smoothing (`none`), with one of the remedies, or with all. Early stopping keeps the (first) epoch with
the highest validation accuracy; the others keep the last. Curves: accuracy on training and validation images after each
epoch. The test images are read once, at the end. Three seeds. With one thread a run takes about 5 minutes, all runs 90.

    python -m experiments.sweep overfitting
"""

import copy
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from experiments.harness import common
from experiments.harness.experiment import Experiment, Place
from experiments.harness.fit import Epoch, Recipe, Split, accuracy, learning_rate, loss_of, optimiser, task
from experiments.harness.progress import report as progress
from experiments.harness.render import mean_std
from experiments.images.studies import Net, network

AUGMENTED: dict[str, Any] = {"flip": True, "shift": 2}
DECAYED: dict[str, Any] = {"weight_decay": 5e-3}
REMEDIES: dict[str, dict[str, Any]] = {
    "none": {},
    "augmentation": AUGMENTED,
    "weight decay": DECAYED,
    "dropout": {"dropout": 0.3},
    "early stopping": {"stopping": True},
    "all": {**AUGMENTED, **DECAYED, "dropout": 0.3, "stopping": True},
}


@dataclass(frozen=True)
class Config(Recipe):
    """Options."""

    remedy: str = "each"
    """A key of `REMEDIES`, or all."""
    images: int = 5000
    """Number of training images; as many are used for validation."""
    width: int = 32
    """Number of channels of the first stage."""
    dropout: float = 0.0
    """Dropout probability after each stage."""
    stopping: bool = False
    """Keep the epoch with the highest validation accuracy."""
    epochs: int = 30
    """Number of epochs."""
    weight_decay: float = 0.0
    """Weight decay."""
    smoothing: float = 0.0
    """Label smoothing."""
    flip: bool = False
    """Mirror a random half of the images in each epoch."""
    shift: int = 0
    """Shift images by up to this many pixels along each axis."""
    seed: int = 0
    """Random seed."""


def expand(config: Config, seeds: int) -> list[Config]:
    """All remedies, seed by seed. Raises: ValueError for an unknown one."""
    if config.remedy not in ("each", *REMEDIES):
        raise ValueError(f"there is no remedy {config.remedy!r}; there are {', '.join(REMEDIES)}")
    if config.limit is not None:
        raise ValueError("--images says how many there are, so --limit is not possible here")
    names = list(REMEDIES) if config.remedy == "each" else [config.remedy]
    return [
        replace(config, remedy=name, seed=config.seed + s, **REMEDIES[name]) for s in range(seeds) for name in names
    ]


def model_of(config: Config) -> nn.Sequential:
    """The base network with dropout before each pooling and before the linear layer."""
    layers: list[nn.Module] = []
    for layer in network(Net(), config.width):
        pooling = getattr(layer, "weight", layer) is None or isinstance(layer, nn.Linear)
        layers += [nn.Dropout(config.dropout), layer] if pooling and config.dropout else [layer]
    return nn.Sequential(*layers)


def run(config: Config, place: Place) -> common.Outcome:
    """Train, select an epoch in the case of early stopping, and test once. Raises: ArithmeticError, ValueError."""
    data, where = task(config.dataset, place.root), common.device(place.device)
    images, labels = data.train
    if 2 * config.images > len(labels):
        raise ValueError(f"there are {len(labels)} images, too few for {config.images} and as many for validation")
    train, val = (Split(images[part], labels[part]) for part in (slice(config.images), slice(-config.images, None)))
    common.seed_everything(config.seed)
    model = model_of(config).to(where).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    sgd, steps = optimiser(model, config), math.ceil(config.images / config.batch)
    curves: dict[str, list[float]] = {"train_accuracy": [], "val_accuracy": []}
    kept, best, chosen = model.state_dict(), -1.0, config.epochs
    for number in range(config.epochs):
        model.train()
        epoch = Epoch(train, config, config.seed, number)
        for step in range(steps):
            for group in sgd.param_groups:
                group["lr"] = learning_rate((number * steps + step + 1) / (config.epochs * steps), config)
            loss = loss_of(model, *epoch.batch(step), data, config.smoothing, where)
            sgd.zero_grad(set_to_none=True)
            loss.backward()
            sgd.step()
        if not math.isfinite(loss.item()):
            raise ArithmeticError(f"the training loss became {loss.item()} in epoch {number + 1}: lower --lr")
        for name, split in (("train_accuracy", train), ("val_accuracy", val)):
            curves[name].append(accuracy(model, data, split, where))
        if config.stopping and curves["val_accuracy"][-1] > best:
            kept, best, chosen = copy.deepcopy(model.state_dict()), curves["val_accuracy"][-1], number + 1
        said = f"epoch {number + 1}/{config.epochs}, validation accuracy {curves['val_accuracy'][-1]:.3f}"
        progress((number + 1) / config.epochs, said, True)
    model.load_state_dict(kept)
    gap = curves["train_accuracy"][chosen - 1] - curves["val_accuracy"][chosen - 1]
    metrics = {"test_accuracy": accuracy(model, data, data.test, where), "gap": gap, "epoch": chosen, **curves}
    return common.Outcome(metrics | {"parameters": sum(p.numel() for p in model.parameters())})


def seen(config: Config, root: Path | None) -> common.Data:
    """The data of a run."""
    return task(config.dataset, root).seen


def report(rows: list[common.Row]) -> None:
    """Print one line per remedy."""
    for title in dict.fromkeys(row["config"]["remedy"] for row in rows):
        found = [row["metrics"] for row in rows if row["config"]["remedy"] == title]
        test, gap = (mean_std(100)([m[name] for m in found]) for name in ("test_accuracy", "gap"))
        print(f"{title:16s} {test:18s} training above validation by {gap}")


EXPERIMENT = Experiment(
    name="overfitting",
    about=__doc__ or "",
    config=Config,
    expand=expand,
    run=run,
    data=seen,
    smoke={"remedy": "all", "dataset": "random", "images": 8, "epochs": 2, "batch": 8, "width": 2},
    report=report,
    tolerance={"test_accuracy": 0.02, "gap": 0.03, "epoch": 30, "train_accuracy": 0.03, "val_accuracy": 0.03},
    defaults={"seeds": 3},
)

main = EXPERIMENT.main

if __name__ == "__main__":
    main()
