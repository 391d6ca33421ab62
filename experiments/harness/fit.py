"""The training loop for image classifiers, with a fixed recipe; can be interrupted and resumed with equal results."""

import math
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets import channel_stats, load_cifar10, normalise
from experiments.harness.experiment import Place
from experiments.harness.machine import device
from experiments.harness.options import Data
from experiments.harness.progress import report
from experiments.harness.store import Checkpoint

SAVED_EVERY = 60.0  # seconds between checkpoints


@dataclass(frozen=True)
class Recipe:
    """Training settings: SGD with Nesterov momentum, with linear increase and decrease of the learning rate."""

    epochs: int = 8
    """Number of epochs."""
    batch: int = 128
    """Batch size."""
    lr: float = 0.1
    """Peak learning rate."""
    warmup: float = 0.2
    """Fraction of the steps until the peak."""
    momentum: float = 0.9
    """Momentum."""
    weight_decay: float = 5e-4
    """Weight decay of kernels and matrices; biases and batch norms have none."""
    smoothing: float = 0.1
    """Label smoothing."""
    flip: bool = True
    """Mirror a random half of the images in each epoch."""
    shift: int = 2
    """Shift images by up to this many pixels along each axis, with reflected borders."""
    limit: int | None = None
    """Use only the first images of each split; recorded in the row."""
    dataset: str = "cifar10"
    """cifar10, or random: generated images, for testing."""

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.epochs < 1 or self.batch < 1 or self.shift < 0:
            raise ValueError(
                f"epochs and batch must be at least 1 and shift 0, not {self.epochs}, {self.batch} and {self.shift}"
            )
        if not (self.lr > 0 and 0 <= self.momentum < 1 and 0 <= self.warmup < 1 and 0 <= self.smoothing < 1):
            raise ValueError("lr must be positive, and momentum, warmup and smoothing in [0, 1)")
        if self.dataset not in ("cifar10", "random"):
            raise ValueError(f"dataset must be cifar10 or random, not {self.dataset!r}")


class Split(NamedTuple):
    """Images (b, c, h, w), uint8, and their labels (b,)."""

    images: Tensor
    labels: Tensor


class Task(NamedTuple):
    """A task: training and test images, mean and standard deviation of the training images, and its label for rows."""

    train: Split
    test: Split
    stats: tuple[Tensor, Tensor]
    seen: Data


@lru_cache(maxsize=2)
def task(dataset: str, root: Path | None = None, limit: int | None = None) -> Task:
    """The images, loaded once per process. Raises: DataUnavailable, DataCorrupt."""
    if dataset == "random":
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(2 * (limit or 64)) % 10
        images = torch.randint(0, 128, (len(labels), 3, 32, 32), generator=generator, dtype=torch.uint8)
        images += (labels * 12).to(torch.uint8).view(-1, 1, 1, 1)
        train, test = (Split(images[half], labels[half]) for half in (slice(0, None, 2), slice(1, None, 2)))
        return Task(train, test, channel_stats(train.images), Data("random images", "generated"))
    found = load_cifar10(root, limit)
    train, test = Split(found.train_images, found.train_labels), Split(found.test_images, found.test_labels)
    return Task(train, test, channel_stats(train.images), Data(found.label, found.content_hash))


def learning_rate(done: float, recipe: Recipe) -> float:
    """The learning rate after this fraction of the steps.

    >>> [round(learning_rate(t, Recipe()), 3) for t in (0.0, 0.1, 0.2, 0.6, 1.0)]
    [0.0, 0.05, 0.1, 0.05, 0.0]
    """
    up = done / recipe.warmup if recipe.warmup else 1.0
    return recipe.lr * min(up, (1 - done) / (1 - recipe.warmup))


def moved(images: Tensor, offset: Tensor, shift: int) -> Tensor:
    """Shift each image by an offset (b, 2) in 0 .. 2 shift; the offset `shift` leaves it unchanged."""
    if not shift:
        return images
    h, w = images.shape[-2:]
    padded = F.pad(images.float(), (shift,) * 4, mode="reflect").to(images.dtype)
    out = torch.empty_like(images)
    for row in range(2 * shift + 1):
        for col in range(2 * shift + 1):
            here = (offset[:, 0] == row) & (offset[:, 1] == col)
            out[here] = padded[here, :, row : row + h, col : col + w]
    return out


class Epoch:
    """Order and augmentation of an epoch, determined by seed and number, so that any step can be repeated."""

    def __init__(self, split: Split, recipe: Recipe, seed: int, number: int):
        generator = torch.Generator().manual_seed(seed * 100_003 + number)
        count = len(split.labels)
        self.split, self.recipe = split, recipe
        self.order = torch.randperm(count, generator=generator)
        self.mirrored = torch.rand(count, generator=generator) < (0.5 if recipe.flip else 0.0)
        self.offset = torch.randint(0, 2 * recipe.shift + 1, (count, 2), generator=generator)

    def batch(self, step: int) -> Split:
        """The augmented images of a step, and their labels."""
        which = self.order[step * self.recipe.batch : (step + 1) * self.recipe.batch]
        images = moved(self.split.images[which], self.offset[which], self.recipe.shift)
        mirrored = self.mirrored[which].view(-1, 1, 1, 1)
        return Split(torch.where(mirrored, images.flip(-1), images), self.split.labels[which])


def optimiser(model: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """SGD; weight decay applies to parameters with two or more axes."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, recipe.lr, recipe.momentum, nesterov=recipe.momentum > 0)


def fit(model: nn.Module, data: Task, recipe: Recipe, seed: int, place: Place) -> dict[str, Any]:
    """Train all epochs, then compute the test accuracy once. No model selection.

    Returns: test_accuracy, train_loss (per epoch), seconds_per_epoch (of training), parameters.

    Raises: ArithmeticError if the loss becomes NaN or infinite.
    """
    where = device(place.device)
    model = model.to(where).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    sgd, split = optimiser(model, recipe), data.train
    steps = math.ceil(len(split.labels) / recipe.batch)
    total = steps * recipe.epochs
    curve: dict[str, Any] = {"train_loss": [], "sum": 0.0, "seconds": 0.0}
    saved = Checkpoint(place.checkpoint, model=model, optimiser=sgd) if place.checkpoint else None
    start, curve = saved.restore(curve) if saved else (0, curve)
    epoch, number = None, -1
    clock, last = time.perf_counter(), time.monotonic()
    model.train()
    for step in range(start, total):
        if step // steps != number:
            number = step // steps
            epoch = Epoch(split, recipe, seed, number)
        assert epoch is not None
        images, labels = epoch.batch(step % steps)
        for group in sgd.param_groups:
            group["lr"] = learning_rate((step + 1) / total, recipe)
        loss = loss_of(model, images, labels, data, recipe.smoothing, where)
        sgd.zero_grad(set_to_none=True)
        loss.backward()
        sgd.step()
        if not math.isfinite(value := loss.item()):
            raise ArithmeticError(f"the training loss became {value} in epoch {number + 1}: lower the learning rate")
        curve["sum"] += value * len(labels)
        whole = (step + 1) % steps == 0
        if whole:
            curve["train_loss"].append(curve["sum"] / len(split.labels))
            curve["sum"] = 0.0
        if whole or time.monotonic() - last > SAVED_EVERY:
            curve["seconds"] += time.perf_counter() - clock
            clock, last = time.perf_counter(), time.monotonic()
            said = f"loss {curve['train_loss'][-1] if whole else value:.3f}"
            report((step + 1) / total, f"epoch {number + 1}/{recipe.epochs}, {said}", whole)
            if saved:
                saved.save(step + 1, curve)
    return {
        "test_accuracy": accuracy(model, data, data.test, where),
        "train_loss": curve["train_loss"],
        "seconds_per_epoch": round(curve["seconds"] / recipe.epochs, 3),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def ready(images: Tensor, data: Task, where: torch.device) -> Tensor:
    """Normalise uint8 images for a network."""
    return normalise(images.to(where), *data.stats).contiguous(memory_format=torch.channels_last)


def loss_of(
    model: nn.Module, images: Tensor, labels: Tensor, data: Task, smoothing: float, where: torch.device
) -> Tensor:
    """Mean cross-entropy with smoothed labels."""
    return F.cross_entropy(model(ready(images, data, where)), labels.to(where), label_smoothing=smoothing)


@torch.no_grad()
def accuracy(model: nn.Module, data: Task, split: Split, where: torch.device, batch: int = 500) -> float:
    """Fraction of correctly classified images."""
    model.eval()
    pairs = zip(split.images.split(batch), split.labels.split(batch), strict=True)
    right = sum(int((model(ready(x, data, where)).argmax(1).cpu() == y).sum()) for x, y in pairs)
    return right / len(split.labels)
