"""Blood cells: 364 photos of 640 x 480 pixels, with a box around each red cell, white cell and platelet.

    ROOT/bccd/BCCD/{JPEGImages/*.jpg, Annotations/*.xml, ImageSets/Main/{train, val, test}.txt}

https://github.com/Shenggan/BCCD_Dataset (MIT), with its split into 205, 87 and 72 photos. Not downloaded automatically.

Two boxes have no area (a red cell each in BloodImage_00338 and 00343); such boxes are removed and counted. Not every
cell has a box, in particular red cells at the border.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import torch
import torch.nn.functional as F
from torch import Tensor

from gconv.arguments import checked

from .photos import decode_photo
from .root import DataCorrupt, DataUnavailable, Loaded, data_root, hash_parts, locate, read

SOURCE = "https://github.com/Shenggan/BCCD_Dataset"
CLASSES = ("RBC", "WBC", "Platelets")
PARTS = ("train", "val", "test")
WIDTH, HEIGHT, MAX_PHOTOS, MAX_BOXES = 640, 480, 1000, 1000


@dataclass(frozen=True, kw_only=True, eq=False)
class BoxSet(Loaded):
    """Photos with boxes around objects.

    Shapes: images (b, 3, h, w) uint8; for each image boxes (k, 4) float32, left, top, right, bottom in pixels, and
    kinds (k,) int64; `parts` has the indices of the images for train, val and test; `left_out` is the number of boxes
    without area.
    """

    names: tuple[str, ...]
    images: Tensor
    boxes: tuple[Tensor, ...]
    kinds: tuple[Tensor, ...]
    parts: dict[str, range]
    left_out: int = 0


@checked
def load_bccd(root: str | Path | None = None, shrink: int = 1) -> BoxSet:
    """Load the photos with their boxes.

    Args:
        root: the data root (default: `$GCONV_DATA`, else the user's cache folder).
        shrink: 1, 2, 4, ...: reduce photos and boxes by this factor, averaging shrink x shrink pixels.

    Raises:
        ValueError: 640 x 480 is not divisible by shrink.
        DataUnavailable: a file is missing.
        DataCorrupt: a photo is damaged or has another size, an annotation is damaged, a box is of no known class or
            reaches outside of the photo, or a photo is in two parts of the split.
    """
    if shrink < 1 or WIDTH % shrink or HEIGHT % shrink:
        raise ValueError(f"shrink must divide {WIDTH} and {HEIGHT}, and {shrink} does not.")
    place = data_root(root)
    lists = [f"ImageSets/Main/{part}.txt" for part in PARTS]
    folder = locate((place / "bccd" / "BCCD", place / "BCCD", place), lists)
    _require(folder, lists)
    blobs = {name: read(folder / name, 2**16) for name in lists}
    split = [_names(blobs[name], folder / name) for name in lists]
    names = tuple(name for part in split for name in part)
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataCorrupt(
            f"{folder / 'ImageSets'} lists {twice[0]} twice; each photo belongs to one part of the split."
        )
    photos = [f"JPEGImages/{name}.jpg" for name in names]
    notes = [f"Annotations/{name}.xml" for name in names]
    _require(folder, [*photos, *notes])
    blobs |= {name: read(folder / name, 2**22) for name in photos} | {
        name: read(folder / name, 2**18) for name in notes
    }
    found = [_boxes(blobs[name], folder / name) for name in notes]
    areas = [(box[:, 2:] > box[:, :2]).all(1) for box, _ in found]
    starts = [0, *(sum(len(part) for part in split[: i + 1]) for i in range(len(PARTS)))]
    return BoxSet(
        label="BCCD",
        classes=CLASSES,
        content_hash=hash_parts(blobs),
        source=SOURCE,
        names=names,
        images=torch.stack([_photo(blobs[name], folder / name, shrink) for name in photos]),
        boxes=tuple(box[area] / shrink for (box, _), area in zip(found, areas, strict=True)),
        kinds=tuple(kind[area] for (_, kind), area in zip(found, areas, strict=True)),
        parts={part: range(starts[i], starts[i + 1]) for i, part in enumerate(PARTS)},
        left_out=sum(int((~area).sum()) for area in areas),
    )


def _require(folder: Path, files: list[str]) -> None:
    if missing := [file for file in files if not (folder / file).is_file()]:
        raise DataUnavailable(
            f"The blood cells (BCCD) are not there.\n  missing: {len(missing)} files, {missing[0]} the first\n"
            f"  folder:  {folder}\n  source:  {SOURCE}\n"
            "  remedy:  put the files there, or point --data-root or GCONV_DATA at a root that has them."
        )


def _names(blob: bytes, path: Path) -> list[str]:
    names = blob.decode("utf-8", "replace").split()
    if not 0 < len(names) <= MAX_PHOTOS or (odd := [n for n in names if not re.fullmatch(r"\w{1,60}", n)]):
        what = f"the entry {odd[0][:60]!r}" if 0 < len(names) <= MAX_PHOTOS else f"{len(names)} entries"
        raise DataCorrupt(f"{path} is no list of 1 to {MAX_PHOTOS} names of photos: it has {what}.")
    return names


def _photo(blob: bytes, path: Path, shrink: int) -> Tensor:
    """(3, h, w) uint8."""
    photo = decode_photo(blob, path)
    if photo.shape != (3, HEIGHT, WIDTH):
        raise DataCorrupt(f"{path} has {photo.shape[2]} x {photo.shape[1]} pixels, not {WIDTH} x {HEIGHT}.")
    return photo if shrink == 1 else F.avg_pool2d(photo.float(), shrink).round().to(torch.uint8)


def _boxes(blob: bytes, path: Path) -> tuple[Tensor, Tensor]:
    """Boxes (k, 4) in pixels and their kinds (k,), also those without area."""
    try:
        if b"<!" in blob.replace(b"\0", b"").replace(b"<!--", b""):  # without zeros, as text in UTF-16 has
            raise ValueError("a document type is not expected")
        tree = ElementTree.fromstring(blob)
        objects = tree.findall("object")
        if len(objects) > MAX_BOXES:
            raise ValueError(f"{len(objects)} boxes are more than {MAX_BOXES}")
        kinds = [thing.findtext("name", "") for thing in objects]
        sides = [[thing.findtext(f"bndbox/{s}", "") for s in ("xmin", "ymin", "xmax", "ymax")] for thing in objects]
        boxes = torch.tensor([[float(s) for s in box] for box in sides]).reshape(-1, 4)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DataCorrupt(f"{path} is no annotation of boxes: {error}.") from None
    if unknown := [kind for kind in kinds if kind not in CLASSES]:
        raise DataCorrupt(f"{path} has a box of class {unknown[0][:60]!r}; known are {', '.join(CLASSES)}.")
    limit = torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
    for box in boxes:
        if not bool(((box >= 0) & (box <= limit)).all()) or bool((box[2:] < box[:2]).any()):
            shown = ", ".join(f"{side:g}" for side in box.tolist())
            raise DataCorrupt(
                f"{path} has the box {shown}, which does not lie inside of the {WIDTH} x {HEIGHT} pixels of the photo."
            )
    return boxes, torch.tensor([CLASSES.index(kind) for kind in kinds], dtype=torch.int64)
