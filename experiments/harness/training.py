"""Training of image classifiers: the same loop for every network, so that only the network differs between rows."""

import math
import sys
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets import DataError, ImageSet, channel_stats, load_cifar10, normalise
from experiments.harness import common


@dataclass(frozen=True)
class Recipe:
    """Training settings, independent of the network."""

    epochs: int = 10
    """Number of epochs."""
    batch: int = 16
    """Batch size."""
    lr: float = 0.001
    """Learning rate."""
    momentum: float = 0.9
    """Momentum."""
    channels_last: bool = True
    """Use the channels-last memory format."""
    bf16: bool = False
    """Use bfloat16 autocast."""
    device: str = "auto"
    """Device for training."""

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.epochs < 1 or self.batch < 1:
            raise ValueError(f"epochs and batch must be at least 1, not {self.epochs} and {self.batch}")
        if not (self.lr > 0 and 0 <= self.momentum < 1):
            raise ValueError(f"lr must be positive and momentum in [0, 1), not {self.lr} and {self.momentum}")


@lru_cache(maxsize=1)
def cifar10(root: Path | None, limit: int | None) -> ImageSet:
    """CIFAR-10, loaded once per process."""
    return load_cifar10(root, limit)


def cifar10_or_exit(root: Path | None, limit: int | None) -> ImageSet:
    """CIFAR-10 for a command line: missing or damaged data end with a message instead of a traceback."""
    try:
        return cifar10(root, limit)
    except (DataError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None


class Batches:
    """Normalised batches of an image set, in an order determined by the seed."""

    def __init__(self, images: ImageSet, recipe: Recipe, seed: int):
        self.images, self.recipe = images, recipe
        self.device = common.device(recipe.device)
        self.stats = channel_stats(images.train_images)
        self.generator = torch.Generator().manual_seed(seed)

    def _ready(self, images: Tensor) -> Tensor:
        x = normalise(images.to(self.device), *self.stats)
        return x.contiguous(memory_format=torch.channels_last) if self.recipe.channels_last else x

    def train(self) -> Any:
        """Shuffled (images, labels) of one epoch."""
        order = torch.randperm(len(self.images.train_labels), generator=self.generator)
        for part in order.split(self.recipe.batch):
            yield self._ready(self.images.train_images[part]), self.images.train_labels[part].to(self.device)

    def test(self) -> Any:
        """(images, labels) of the test set, in their original order."""
        pairs = zip(self.images.test_images.split(500), self.images.test_labels.split(500), strict=True)
        for images, labels in pairs:
            yield self._ready(images), labels.to(self.device)


def prepare(model: nn.Module, recipe: Recipe) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Move and convert the model as the recipe requires. Returns: the model and its optimiser."""
    model = model.to(common.device(recipe.device))
    if recipe.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model, torch.optim.SGD(model.parameters(), recipe.lr, recipe.momentum)


def step(model: nn.Module, optimiser: torch.optim.Optimizer, x: Tensor, y: Tensor, bf16: bool = False) -> float:
    """One step of stochastic gradient descent. Returns: the mean cross-entropy.

    Raises: ArithmeticError if the loss becomes NaN or infinite.
    """
    optimiser.zero_grad(set_to_none=True)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
        loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimiser.step()
    value = loss.item()
    if not math.isfinite(value):
        raise ArithmeticError(f"the training loss became {value}: lower the learning rate")
    return value


@torch.no_grad()
def accuracy(model: nn.Module, batches: Any, bf16: bool = False) -> float:
    """Fraction of correctly classified images."""
    model.eval()
    right = total = 0
    for x, y in batches:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            right += int((model(x).argmax(1) == y).sum())
        total += len(y)
    model.train()
    return right / total


def train(
    model: nn.Module, images: ImageSet, recipe: Recipe, seed: int, path: Path | None = None, name: str = ""
) -> dict[str, Any]:
    """Train, and test after each epoch; with a path, resume an interrupted run from the last finished epoch.

    Returns: test_accuracy and train_loss (per epoch), images_per_second (training only), parameters.
    """
    model, optimiser = prepare(model, recipe)
    batches = Batches(images, recipe, seed)
    curve: dict[str, Any] = {"test_accuracy": [], "train_loss": [], "images_per_second": []}
    checkpoint = (
        None if path is None else common.Checkpoint(path, model=model, optimiser=optimiser, order=batches.generator)
    )
    done, curve = checkpoint.restore(curve) if checkpoint else (0, curve)
    for epoch in range(done, recipe.epochs):
        start, losses = time.perf_counter(), []
        for x, y in batches.train():
            losses.append(step(model, optimiser, x, y, recipe.bf16) * len(y))
        seconds = time.perf_counter() - start
        count = len(images.train_labels)
        curve["train_loss"].append(sum(losses) / count)
        curve["images_per_second"].append(round(count / seconds, 1))
        curve["test_accuracy"].append(accuracy(model, batches.test(), recipe.bf16))
        last = f"loss {curve['train_loss'][-1]:.4f}, test accuracy {100 * curve['test_accuracy'][-1]:.2f} %"
        print(
            f"{name} seed {seed} epoch {epoch + 1}/{recipe.epochs}: {last}, {count / seconds:.0f} images/s",
            file=sys.stderr,
            flush=True,
        )
        if checkpoint:
            checkpoint.save(epoch + 1, curve)
    return curve | {"parameters": sum(p.numel() for p in model.parameters())}
