"""The blood cells in a photo: a list of boxes, and a picture with them.

    python -m experiments.detection.predict PHOTO --out boxes.png

The photo shows cells as BCCD's do: a red cell is about a sixth as wide as the photo is. It may have another size,
colour mode or bit depth; its longer side is brought to 320 pixels for the network. The network is the grid's of
`experiments.detection.bccd`, seed 0, from the file that is committed.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor

from datasets.bccd import CLASSES
from datasets.photos import read_photo
from experiments.detection.bccd import SHOWN, Config, search
from experiments.detection.boxes import outline
from experiments.detection.detector import COARSEST, Detector
from experiments.harness import predicting

CHECKPOINT = predicting.FOLDER / "detection.safetensors"
LONG_SIDE = 320


@dataclass(frozen=True)
class Options:
    """What to look at, and where the answer goes."""

    photo: Annotated[Path, tyro.conf.Positional]
    """JPEG, PNG, BMP or TIFF file."""
    out: Path | None = None
    """Picture with the boxes to write, .png or .jpg; without it only the list is printed."""
    score: float = SHOWN
    """Score from which an object is told."""
    checkpoint: Path = CHECKPOINT
    """The network's weights, as `experiments.detection.bccd` leaves them."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        if not 0 < self.score < 1:
            raise ValueError(f"score must be between 0 and 1, not {self.score}")
        predicting.checked_picture(self.out)


def restored(path: Path) -> Detector:
    """The network in a file. Raises: InputError, OSError."""
    return predicting.restored(path, Detector(len(CLASSES), Config().width))


def predict(model: Detector, photo: Tensor, least: float = SHOWN) -> list[tuple[list[float], str, float]]:
    """The objects in a photo (3, h, w) of bytes: (box in its pixels, class, score), highest score first.

    Raises: ValueError for a photo of one pixel in one direction per 20 in the other, or less than 16 x 16.
    """
    h, w = photo.shape[-2:]
    small, scale = predicting.shrunk(photo, LONG_SIDE, COARSEST, "cells")
    (found,) = search(model, small, least)
    limit = torch.tensor([w, h, w, h])
    boxes = torch.minimum((found.boxes / scale).clamp(min=0), limit)
    return [(box.tolist(), CLASSES[int(kind)], score.item())
            for box, score, kind in zip(boxes, found.scores, found.kinds, strict=True)
            if bool((box[2:] > box[:2]).all())]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Command line. Raises: SystemExit with one sentence for what cannot be read or written."""
    from PIL import Image

    options = tyro.cli(Options, description=__doc__, args=argv)
    with predicting.one_sentence():
        photo, model = read_photo(options.photo), restored(options.checkpoint)
        found = predict(model, photo, options.score)
        if options.out is not None:
            picture = outline(Image.fromarray(photo.permute(1, 2, 0).numpy()), found)
            picture.save(options.out)
    for (left, top, right, bottom), name, score in found:
        print(f"{name:10s} {score:.2f}  {left:6.1f} {top:6.1f} {right:6.1f} {bottom:6.1f}")
    counts = ", ".join(f"{sum(name == c for _, name, _ in found)} {c}" for c in CLASSES)
    print(f"{len(found)} objects: {counts}" if found else "no cells found", file=sys.stderr)


if __name__ == "__main__":
    main()
