"""Segment the blood cells in a photo: print the area of each kind, and draw a picture.

    python -m experiments.segmentation.predict PHOTO --out areas.png

The photo should be similar to those of BCCD, in which a red cell is about a sixth of the width of the photo. Any size,
colour mode and bit depth is supported; the longer side is resized to 160 pixels. The network is the U-Net of
`experiments.segmentation.cells`, seed 0, trained on ellipses drawn into boxes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from datasets.photos import read_photo
from experiments.harness import predicting
from experiments.harness.options import command_name
from experiments.harness.outputs import check_not_folder, check_output, whole_file
from experiments.segmentation.cells import NAMES, ColourUNet, Config, overlay, ready

CHECKPOINT = predicting.FOLDER / "cells.safetensors"
LONG_SIDE = 160


@dataclass(frozen=True)
class Options:
    """Input and output."""

    photo: Annotated[Path, tyro.conf.Positional]
    """JPEG, PNG, BMP or TIFF file."""
    out: Path | None = None
    """Picture to write, .png or .jpg; without it only the areas are printed."""
    checkpoint: Path = CHECKPOINT
    """Weights of the network, as written by `experiments.segmentation.cells`."""

    def __post_init__(self) -> None:
        """Check the options."""
        predicting.checked_picture(self.out)


def restored(path: Path) -> ColourUNet:
    """Load the network from a file. Raises: InputError, OSError."""
    return predicting.restored(path, ColourUNet(Config().width))


@torch.no_grad()
def predict(model: ColourUNet, photo: Tensor) -> Tensor:
    """The class of each pixel of a uint8 photo (3, h, w), as (h, w).

    Raises: ValueError if one side is more than 20 times the other, or if the photo is smaller than 16 x 16.
    """
    small, _ = predicting.shrunk(photo, LONG_SIDE, 16, "cells")
    h, w = small.shape[-2:]
    logits = model(ready(F.pad(small, (0, -w % 4, 0, -h % 4), mode="replicate")))[..., :h, :w]
    return F.interpolate(logits, photo.shape[-2:], mode="bilinear")[0].argmax(0)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line. Raises: SystemExit with an error message."""
    from PIL import Image

    options = tyro.cli(Options, prog=command_name(), description=__doc__, args=argv)
    with predicting.one_sentence():
        check_output("--out", options.out, others=(options.photo, options.checkpoint))
        check_not_folder("--checkpoint", options.checkpoint)
        photo, model = read_photo(options.photo), restored(options.checkpoint)
        classes = predict(model, photo)
        if options.out is not None:
            with whole_file(options.out) as part:
                Image.fromarray(overlay(photo, classes).permute(1, 2, 0).numpy()).save(part)
    shares = classes.flatten().bincount(minlength=len(NAMES)) / classes.numel()
    for name, share in zip(NAMES, shares.tolist(), strict=True):
        print(f"{name:10s} {100 * share:5.1f} % of the photo")
    if shares[0] == 1:
        print("no cells found")


if __name__ == "__main__":
    main()
