"""What a photo shows, of the ten classes of CIFAR-10: the probabilities, and a picture.

    python -m experiments.large.predict PHOTO --out classes.png
    python -m experiments.large.predict --train                        train the network, some minutes, into runs/

The photo may have any size, colour mode or bit depth; the largest square in its middle is brought to 32 x 32 pixels.
The network is that of `experiments.large.finetune` with ten classes, trained for two epochs, so it is
often wrong, and it knows nothing but these classes: a photo of something else gets one of them all the same.
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
from experiments.large.finetune import network, scores, train

NAME = "images"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE, WIDTH, STEPS = 32, 16, 900


@dataclass(frozen=True)
class Options:
    """What to look at, and where the answer goes."""

    photo: Annotated[Path | None, tyro.conf.Positional] = None
    """JPEG, PNG, BMP or TIFF file."""
    out: Path | None = None
    """Picture to write, .png or .jpg: what the network saw, and the probabilities."""
    checkpoint: Path | None = None
    """The network's weights (default: experiments/checkpoints, else runs)."""
    train: bool = False
    """Train the network and write the checkpoint, in place of answering."""
    steps: int = STEPS
    """--train: steps, in batches of 100 images."""
    data_root: Path | None = None
    """--train: folder of the data sets (default: $GCONV_DATA, else the user's cache folder)."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        predicting.checked_picture(self.out)
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, not {self.steps}")


def ready(images: Tensor) -> Tensor:
    """Bytes as the network reads them."""
    return images.float() / 63.75 - 2


def square(photo: Tensor) -> Tensor:
    """The middle of a photo (3, h, w) at 32 x 32 pixels, bytes.

    Raises: ValueError for a photo of one pixel in one direction per 20 in the other, or less than 8 x 8.
    """
    side = min(photo.shape[-2:])
    top, left = ((size - side) // 2 for size in photo.shape[-2:])
    predicting.shrunk(photo, SIDE, 8, "anything")
    small, _ = predicting.shrunk(photo[:, top : top + side, left : left + side], SIDE, 8, "anything")
    return small[0].clamp(0, 255).to(torch.uint8)


def restored(path: Path) -> nn.Module:
    """The network in a file. Raises: InputError, OSError."""
    return predicting.restored(path, network(WIDTH, len(CLASSES)))


@torch.no_grad()
def predict(model: nn.Module, small: Tensor) -> Tensor:
    """Probabilities of the classes for an image (3, 32, 32) of bytes: (10,)."""
    return scores(model, ready(small[None]))[0].softmax(0)


def learn(options: Options) -> None:
    """Train the network and say how often it is right on the test images."""
    data = load_cifar10(options.data_root)
    seed_everything(0)
    model = network(WIDTH, len(CLASSES))
    x, y = data.train_images, data.train_labels
    for rate, seed in ((0.004, 0), (0.001, 1), (0.0003, 2)):  # flips are drawn anew for each part
        flipped = torch.rand(len(x), generator=torch.Generator().manual_seed(seed)) < 0.5
        moved = torch.where(flipped[:, None, None, None], x.flip(-1), x)
        train(model, ready(moved), y, max(1, options.steps // 3), 100, rate, seed, False)
    model.load_state_dict(model.half().state_dict())
    model.float().eval()
    with torch.no_grad():
        guess = torch.cat([scores(model, ready(part)).argmax(1) for part in data.test_images.split(500)])
    path = options.checkpoint or RUNS / f"{NAME}.safetensors"
    predicting.written(model, path)
    right = 100 * (guess == data.test_labels).float().mean().item()
    print(f"wrote {path}: {right:.1f} % of the test images of {data.label} are named right")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line. Raises: SystemExit with one sentence for what cannot be read or written."""
    options = tyro.cli(Options, description=__doc__, args=argv)
    with predicting.one_sentence():
        if options.train:
            learn(options)
            return
        if options.photo is None:
            raise ValueError("give the file of a photo")
        small = square(read_photo(options.photo))
        found = predict(restored(options.checkpoint or predicting.place(NAME)), small).tolist()
        ranked = sorted(zip(found, CLASSES, strict=True), reverse=True)
        if options.out is not None:
            title = f"{ranked[0][1]}: {100 * ranked[0][0]:.0f} %"
            predicting.bars(options.out, [name for _, name in ranked], [p for p, _ in ranked], title, small)
    for probability, name in ranked[:3]:
        print(f"{name:10s} {100 * probability:5.1f} %")
    if ranked[0][0] < 0.5:
        print("the network is not sure", file=sys.stderr)


if __name__ == "__main__":
    main()
