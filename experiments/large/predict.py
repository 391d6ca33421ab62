"""Classify a photo into the ten classes of CIFAR-10: print the probabilities, and draw a figure.

    python -m experiments.large.predict PHOTO --out classes.png
    python -m experiments.large.predict --train                        train the network (minutes), save to runs/

The photo may have any size, colour mode or bit depth; its largest central square is resized to 32 x 32 pixels. The
network is that of `experiments.large.finetune` with ten classes, trained for only two epochs, so it is often wrong. A
photo of anything else is also assigned to one of the ten classes.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor, nn

from datasets.cifar10 import load_cifar10
from datasets.photos import read_photo
from experiments.harness import predicting
from experiments.harness.common import RUNS, seed_everything
from experiments.harness.options import command_name
from experiments.harness.outputs import check_not_folder, check_output, refuse_together, whole_file
from experiments.large.finetune import network, scores, train

NAME = "images"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE, WIDTH, STEPS = 32, 16, 900


@dataclass(frozen=True)
class Options:
    """Input and output."""

    photo: Annotated[Path | None, tyro.conf.Positional] = None
    """JPEG, PNG, BMP or TIFF file."""
    out: Path | None = None
    """Figure to write, .png or .jpg: the input of the network and the probabilities."""
    checkpoint: Path | None = None
    """Weights of the network (default: experiments/checkpoints, else runs)."""
    train: bool = False
    """Train the network and write the checkpoint instead of predicting."""
    steps: int = STEPS
    """For --train: number of steps, with batches of 100 images."""
    data_root: Path | None = None
    """For --train: folder of the data sets (default: $GCONV_DATA, else the user's cache folder)."""

    def __post_init__(self) -> None:
        """Check the options."""
        predicting.checked_picture(self.out)
        if self.train:
            refuse_together("--train", {"a photo": self.photo, "--out": self.out})
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, not {self.steps}")


def ready(images: Tensor) -> Tensor:
    """Normalise bytes for the network."""
    return images.float() / 63.75 - 2


def square(photo: Tensor) -> Tensor:
    """The central square of a uint8 photo (3, h, w), resized to 32 x 32 pixels.

    Raises: ValueError if one side is more than 20 times the other, or if the photo is smaller than 8 x 8.
    """
    side = min(photo.shape[-2:])
    top, left = ((size - side) // 2 for size in photo.shape[-2:])
    predicting.shrunk(photo, SIDE, 8, "anything")
    small, _ = predicting.shrunk(photo[:, top : top + side, left : left + side], SIDE, 8, "anything")
    return small[0].clamp(0, 255).to(torch.uint8)


def restored(path: Path) -> nn.Module:
    """Load the network from a file. Raises: InputError, OSError."""
    return predicting.restored(path, network(WIDTH, len(CLASSES)))


@torch.no_grad()
def predict(model: nn.Module, small: Tensor) -> Tensor:
    """Probabilities of the classes for an image (3, 32, 32) of bytes: (10,)."""
    return scores(model, ready(small[None]))[0].softmax(0)


def learn(options: Options) -> None:
    """Train the network, and print its accuracy on the test images."""
    path = options.checkpoint or RUNS / f"{NAME}.safetensors"
    check_output("--checkpoint", path, parents=True)
    data = load_cifar10(options.data_root)
    seed_everything(0)
    model = network(WIDTH, len(CLASSES))
    x, y = data.train_images, data.train_labels
    for rate, seed in ((0.004, 0), (0.001, 1), (0.0003, 2)):  # flips are drawn for each part separately
        flipped = torch.rand(len(x), generator=torch.Generator().manual_seed(seed)) < 0.5
        moved = torch.where(flipped[:, None, None, None], x.flip(-1), x)
        train(model, ready(moved), y, max(1, options.steps // 3), 100, rate, seed, False)
    model.load_state_dict(model.half().state_dict())
    model.float().eval()
    with torch.no_grad():
        guess = torch.cat([scores(model, ready(part)).argmax(1) for part in data.test_images.split(500)])
    predicting.written(model, path)
    right = 100 * (guess == data.test_labels).float().mean().item()
    print(f"wrote {path}: {right:.1f} % of the test images of {data.label} are named right")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line. Raises: SystemExit with an error message."""
    options = tyro.cli(Options, prog=command_name(), description=__doc__, args=argv)
    with predicting.one_sentence():
        if options.train:
            learn(options)
            return
        if options.photo is None:
            raise ValueError("give the file of a photo")
        check_output("--out", options.out, others=(options.photo, options.checkpoint))
        check_not_folder("--checkpoint", options.checkpoint)
        small = square(read_photo(options.photo))
        found = predict(restored(options.checkpoint or predicting.place(NAME)), small).tolist()
        ranked = sorted(zip(found, CLASSES, strict=True), reverse=True)
        if options.out is not None:
            title = f"{ranked[0][1]}: {100 * ranked[0][0]:.0f} %"
            with whole_file(options.out) as part:
                predicting.bars(part, [name for _, name in ranked], [p for p, _ in ranked], title, small)
    for probability, name in ranked[:3]:
        print(f"{name:10s} {100 * probability:5.1f} %")
    if ranked[0][0] < 0.5:
        print("the network is not sure", file=sys.stderr)


if __name__ == "__main__":
    main()
