"""What does JPEG compression cost a CNN on CIFAR-10? The images are compressed once more, and the CNN is trained again.

The results on CIFAR-10 were measured on a copy of the images that was stored as JPEG (quality 75, colours at half the
resolution), and published numbers on the official pixels. Without these pixels the effect of that compression cannot be
measured, but that of one more of the same kind can: the blocks of 8x8 pixels and the pairs of pixels with a common
colour are displaced by 5 pixels along both axes, so that the second compression rounds other numbers than the first.

Protocol: that of `experiments.images.ladder` for the CNN (rung 9), with training and test images compressed `times`
more times; compare with the ladder's row of the same seed.

    python -m experiments.sweep jpeg
    python -m experiments.images.jpeg --times 2
"""

import io
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets import channel_stats
from experiments.harness import common
from experiments.harness.experiment import Experiment, Place
from experiments.harness.fit import Recipe, Split, Task, fit, task
from experiments.harness.render import mean_std
from experiments.images import ladder

QUALITY = 75
DISPLACEMENT = 5
BLOCK = 16
"""Pixels along each axis that JPEG codes together if colours have half the resolution."""


@dataclass(frozen=True)
class Config(Recipe):
    """Network and training options."""

    times: int = 1
    """How many more times the images are compressed."""
    width: int = 32
    """Number of channels of the first stage."""
    seed: int = 0
    """Random seed."""

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if self.width < 1 or not 0 <= self.times <= 8:
            raise ValueError(f"width must be positive and times in 0..8, not {self.width} and {self.times}")


def expand(config: Config, seeds: int) -> list[Config]:
    """One configuration per seed."""
    return [replace(config, seed=config.seed + s) for s in range(seeds)]


def compressed(image: Tensor, displacement: int = DISPLACEMENT) -> Tensor:
    """Encode and decode an image as JPEG, with blocks displaced by this many pixels along both axes.

    Shapes: (3, h, w) uint8 -> the same.

    >>> image = torch.full((3, 32, 32), 100, dtype=torch.uint8)
    >>> torch.equal(compressed(image), image)
    True
    """
    from PIL import Image

    h, w = image.shape[-2:]
    rest = [(-(displacement + size)) % BLOCK for size in (h, w)]
    widths = ((displacement, rest[0]), (displacement, rest[1]), (0, 0))
    file = io.BytesIO()
    padded = np.pad(image.permute(1, 2, 0).numpy(), widths, mode="symmetric")
    Image.fromarray(padded).save(file, "JPEG", quality=QUALITY, subsampling="4:2:0")
    with Image.open(file) as read:
        pixels = torch.from_numpy(np.array(read)).permute(2, 0, 1)
    return pixels[:, displacement : displacement + h, displacement : displacement + w].contiguous()


@lru_cache(maxsize=2)
def recompressed(dataset: str, root: Path | None, limit: int | None, times: int) -> Task:
    """The images, compressed so many more times, and their mean and deviation."""
    data = task(dataset, root, limit)
    train, test = data.train, data.test
    for _ in range(times):
        train, test = (Split(torch.stack([compressed(x) for x in s.images]), s.labels) for s in (train, test))
    return Task(train, test, channel_stats(train.images), data.seen)


def run(config: Config, place: Place) -> common.Outcome:
    """Train one seed."""
    data = recompressed(config.dataset, place.root, config.limit, config.times)
    common.seed_everything(config.seed)
    model = ladder.network(ladder.Config(rung="9", width=config.width))
    return common.Outcome(fit(model, data, config, config.seed, place))


def seen(config: Config, root: Path | None) -> common.Data:
    """The data before they are compressed once more."""
    return task(config.dataset, root, config.limit).seen


def report(rows: list[common.Row]) -> None:
    """Print one line per number of compressions."""
    for times in sorted({row["config"]["times"] for row in rows}):
        found = [row["metrics"]["test_accuracy"] for row in rows if row["config"]["times"] == times]
        print(f"compressed {times} more times: test accuracy {mean_std(100, 2)(found)}")


EXPERIMENT = Experiment(
    name="jpeg",
    about=__doc__ or "",
    config=Config,
    expand=expand,
    run=run,
    data=seen,
    smoke={"dataset": "random", "limit": 16, "epochs": 1, "batch": 8, "width": 4},
    report=report,
    measured=("seconds_per_epoch",),
    tolerance={"test_accuracy": 0.01, "train_loss": 0.02},
    defaults={"seeds": 3},
)

main = EXPERIMENT.main

if __name__ == "__main__":
    main()
