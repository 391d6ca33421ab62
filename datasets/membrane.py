"""Cell membranes: 30 electron microscopy slices, 512 x 512 pixels, each with a mask of the cells.

    ROOT/membrane/{image, label}/{0..29}.png

The training images of the ISBI 2012 challenge (Cardona et al. 2010, Arganda-Carreras et al. 2015), as PNG files in
https://github.com/zhixuhao/unet (MIT). The labels of the challenge's test images were never published. Not downloaded
automatically.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gconv.arguments import checked

from .root import DataCorrupt, DataUnavailable, Loaded, data_root, hash_parts, locate, read

SOURCE = "https://github.com/zhixuhao/unet"
COUNT, SIDE = 30, 512


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskSet(Loaded):
    """Greyscale images and masks.

    Shapes: images (b, h, w) uint8; masks (b, h, w) bool, True inside a cell, False on a membrane.
    """

    images: Tensor
    masks: Tensor


@checked
def load_membrane(root: str | Path | None = None) -> MaskSet:
    """Load the 30 slices in order.

    Args:
        root: the data root (default: `$GCONV_DATA`, else the user's cache folder).

    Raises:
        DataUnavailable: a file is missing.
        DataCorrupt: a file is not a greyscale PNG of 512 x 512 pixels, or a mask has values other than black and white.
    """
    place = data_root(root)
    names = [f"{part}/{i}.png" for part in ("image", "label") for i in range(COUNT)]
    folder = locate((place / "membrane", place), names)
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise DataUnavailable(
            f"The membrane images are not there.\n  missing: {len(missing)} files, {missing[0]} the first\n"
            f"  folder:  {folder}\n  source:  {SOURCE}, data/membrane/train\n"
            "  remedy:  put the files there, or point --data-root or GCONV_DATA at a root that has them."
        )
    blobs = {name: read(folder / name, 2**22) for name in names}
    pictures = [_grey(blob, folder / name) for name, blob in blobs.items()]
    masks = np.stack(pictures[COUNT:])
    for i, mask in enumerate(masks):
        if not np.isin(mask, (0, 255)).all():
            raise DataCorrupt(f"{folder / 'label' / f'{i}.png'} is no mask: it has values other than 0 and 255.")
    return MaskSet(
        label="membrane (ISBI 2012)",
        classes=("membrane", "cell"),
        content_hash=hash_parts(blobs),
        source=SOURCE,
        images=torch.from_numpy(np.stack(pictures[:COUNT])),
        masks=torch.from_numpy(masks == 255),
    )


def _grey(blob: bytes, path: Path) -> np.ndarray:
    """The pixels of a PNG, whose header is checked before decoding."""
    from PIL import Image

    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(blob), formats=["PNG"]) as image:
            if image.mode != "L" or image.size != (SIDE, SIDE):
                raise DataCorrupt(f"{path} is {image.mode} {image.size}, not a grey image of {SIDE} x {SIDE} pixels.")
            return np.array(image)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataCorrupt(f"{path} is not a readable PNG file ({error}).") from None
