"""Reads photos from JPEG, PNG, BMP or TIFF files of any mode, size and bit depth, as RGB with 8 bits per channel."""

from __future__ import annotations

import io
import struct
import warnings
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gconv.arguments import checked

from .root import DataCorrupt, read

FORMATS = ("JPEG", "PNG", "BMP", "TIFF")
MAX_PIXELS = 2**26
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")


@checked
def read_photo(path: str | PathLike[str]) -> Tensor:
    """Read a photo, rotated according to its orientation tag; transparency is dropped.

    Shapes: (3, h, w) uint8.

    Raises:
        DataCorrupt: the file cannot be read, is not a photo, is damaged, has more than 2^26 pixels, or has pixels that
            are not grey, colour or palette values of 1, 8 or 16 bits.
    """
    place = Path(path)
    return decode_photo(read(place, 2**27), place)


def decode_photo(blob: bytes, path: Path) -> Tensor:
    """`read_photo` for the content of a file. The header is checked before decoding."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(blob), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise DataCorrupt(
                        f"{path} has {image.width} x {image.height} pixels; at most {MAX_PIXELS} are read: shrink it."
                    )
                if image.mode not in MODES and not image.mode.startswith("I"):
                    raise DataCorrupt(
                        f"{path} has pixels of mode {image.mode}, which are not grey or colour values; "
                        "save it as RGB with 8 bits a channel."
                    )
                turned = ImageOps.exif_transpose(image)
                pixels = np.array(turned if turned.mode.startswith("I") else turned.convert("RGB"))
    except UnidentifiedImageError:
        raise DataCorrupt(f"{path} is no photo: expected a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file.") from None
    except Image.DecompressionBombError:
        raise DataCorrupt(f"{path} has too many pixels; at most {MAX_PIXELS} are read: shrink it.") from None
    except (OSError, SyntaxError, ValueError, EOFError, OverflowError, TypeError, KeyError, struct.error) as error:
        raise DataCorrupt(f"{path} is damaged: {error}.") from None
    if pixels.ndim == 2:  # one channel of more than 8 bits
        if pixels.min() < 0 or pixels.max() > 65535:
            raise DataCorrupt(f"{path} has pixels outside of 0 to 65535; save it as RGB with 8 bits a channel.")
        pixels = np.repeat((pixels.astype(np.int64) // 257).astype(np.uint8)[:, :, None], 3, 2)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
