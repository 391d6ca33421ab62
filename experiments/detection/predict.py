"""Detect the blood cells in a photo: print the boxes, and draw them into a picture.

    python -m experiments.detection.predict PHOTO --out boxes.png

The photo should be similar to those of BCCD, in which a red cell is about a sixth of the width of the photo. Any size,
colour mode and bit depth is supported; the longer side is resized to 320 pixels. The network is `grid` of
`experiments.detection.bccd`, seed 0, from the committed file.
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
from experiments.harness.options import command_name
from experiments.harness.outputs import check_not_folder, check_output, whole_file

CHECKPOINT = predicting.FOLDER / "detection.safetensors"
LONG_SIDE = 320


@dataclass(frozen=True)
class Options:
    """Input and output."""

    photo: Annotated[Path, tyro.conf.Positional]
    """JPEG, PNG, BMP or TIFF file."""
    out: Path | None = None
    """Picture to write, .png or .jpg; without it only the list is printed."""
    score: float = SHOWN
    """Minimum score of an object."""
    checkpoint: Path = CHECKPOINT
    """Weights of the network, as written by `experiments.detection.bccd`."""

    def __post_init__(self) -> None:
        """Check the options."""
        if not 0 < self.score < 1:
            raise ValueError(f"score must be between 0 and 1, not {self.score}")
        predicting.checked_picture(self.out)


def restored(path: Path) -> Detector:
    """Load the network from a file. Raises: InputError, OSError."""
    return predicting.restored(path, Detector(len(CLASSES), Config().width))


def predict(model: Detector, photo: Tensor, least: float = SHOWN) -> list[tuple[list[float], str, float]]:
    """The objects in a uint8 photo (3, h, w): (box in pixels, class, score), in order of decreasing score.

    Raises: ValueError if one side is more than 20 times the other, or if the photo is smaller than 16 x 16.
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
    """Command line. Raises: SystemExit with an error message."""
    from PIL import Image

    options = tyro.cli(Options, prog=command_name(), description=__doc__, args=argv)
    with predicting.one_sentence():
        check_output("--out", options.out, others=(options.photo, options.checkpoint))
        check_not_folder("--checkpoint", options.checkpoint)
        photo, model = read_photo(options.photo), restored(options.checkpoint)
        found = predict(model, photo, options.score)
        if options.out is not None:
            picture = outline(Image.fromarray(photo.permute(1, 2, 0).numpy()), found)
            with whole_file(options.out) as part:
                picture.save(part)
    for (left, top, right, bottom), name, score in found:
        print(f"{name:10s} {score:.2f}  {left:6.1f} {top:6.1f} {right:6.1f} {bottom:6.1f}")
    counts = ", ".join(f"{sum(name == c for _, name, _ in found)} {c}" for c in CLASSES)
    print(f"{len(found)} objects: {counts}" if found else "no cells found", file=sys.stderr)


if __name__ == "__main__":
    main()
