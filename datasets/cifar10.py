"""CIFAR-10: 60,000 colour images, 32x32, 10 classes, in the official 'python version' layout.

    ROOT/cifar-10-batches-py/{data_batch_1..5, test_batch, batches.meta}

A copy that differs from the published files (re-encoded, shuffled, truncated) can be loaded too; its `label`, which
tables print, says so. Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
https://www.cs.toronto.edu/~kriz/cifar.html, free for research with citation; no licence is stated.
"""

from __future__ import annotations

import hashlib
import tarfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gconv.arguments import checked

from . import pickles
from .root import DataCorrupt, ImageSet, data_root, ensure, fetch, hash_parts, locate, read

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
FOLDER = "cifar-10-batches-py"
MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3bb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}
ARCHIVE = URL.rsplit("/", 1)[-1]
# A known copy, identified by its images and labels (not by the pickle): JPEG quality 75, chroma 4:2:0, shuffled.
JPEG_COPY = "5520b31e4a6365b1"


@checked
def load_cifar10(root: str | Path | None = None, limit: int | None = None) -> ImageSet:
    """CIFAR-10 as tensors, loaded without executing anything from its files.

    `limit` keeps the first images of each split, for quick runs; the label then says so. The content hash is that of
    all images and labels, with or without `limit`, and does not depend on the pickle format.

    Args:
        root: the data root (default: `$GCONV_DATA`, else the user's cache folder).
        limit: at most this many images of each split.

    Shapes: train_images (50000, 3, 32, 32) and test_images (10000, 3, 32, 32), uint8 in 0..255, channels red, green,
        blue; labels int64 in 0..9.

    Raises:
        DataUnavailable: the files are missing and cannot be downloaded.
        DataCorrupt: a file is truncated, damaged, malicious or of the wrong shape.

    >>> load_cifar10(limit=0)
    Traceback (most recent call last):
        ...
    ValueError: limit must be at least 1, not 0.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}.")
    place = data_root(root)
    folder = locate((place / FOLDER, place), MD5)
    archive = locate((place, place / FOLDER, place.parent), [ARCHIVE]) / ARCHIVE
    unpack = partial(_unpack, archive) if archive.is_file() else None
    paths = ensure("CIFAR-10", folder, MD5, URL, _download, "the embedded images are 'digits'", unpack)
    blobs = {path.name: read(path) for path in paths}
    official = all(hashlib.md5(blob, usedforsecurity=False).hexdigest() == MD5[name] for name, blob in blobs.items())
    batches = [_batch(blob, folder / name) for name, blob in blobs.items() if name != "batches.meta"]
    classes = _class_names(blobs["batches.meta"], folder / "batches.meta")
    images, labels = np.concatenate([b[0] for b in batches[:5]]), np.concatenate([b[1] for b in batches[:5]])
    test_images, test_labels = batches[5]
    parts = {"train": images, "train labels": labels, "test": test_images, "test labels": test_labels}
    label = "CIFAR-10"
    if not official:
        copy = hash_parts(parts) == JPEG_COPY
        label += ", JPEG copy" if copy else ", not the official bytes"
        if (len(images), len(test_images)) != (50_000, 10_000):
            label += f" ({len(images)} + {len(test_images)} images)"
    label += f", first {limit}" if limit else ""
    return ImageSet(
        label=label,
        classes=classes,
        content_hash=hash_parts(parts),
        source=f"{URL} (Krizhevsky 2009)" if official else f"{folder}; its files do not have the checksums of {URL}",
        official=official,
        train_images=torch.from_numpy(images[:limit]),
        train_labels=torch.from_numpy(labels[:limit]),
        test_images=torch.from_numpy(test_images[:limit]),
        test_labels=torch.from_numpy(test_labels[:limit]),
    )


@checked
def channel_stats(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (population) standard deviation of each channel on the [0, 1] scale, exact and with little memory.

    Compute them from the training images, and use them for the test images too.

    Shapes: images (b, c, h, w) uint8 in 0..255 -> mean (c,), std (c,), float32 in [0, 1].

    >>> mean, std = channel_stats(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1))
    >>> mean.item(), std.item()
    (0.5, 0.5)
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or not images.numel():
        raise ValueError(f"expected uint8 images (b, c, h, w), not {images.dtype} {tuple(images.shape)}.")
    counts = torch.stack([torch.bincount(channel.reshape(-1), minlength=256) for channel in images.unbind(1)]).double()
    values, total = torch.arange(256, dtype=torch.float64) / 255, counts[0].sum()
    mean = counts @ values / total
    return mean.float(), (counts * (values - mean[:, None]) ** 2).sum(1).div(total).sqrt().float()


@checked
def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 images to float32, (image / 255 - mean) / std by channel; use it on batches, not on the whole data set.

    Shapes: images (b, c, h, w) uint8 in 0..255, mean (c,), std (c,) > 0 -> (b, c, h, w) float32, about [-3, 3].

    >>> normalise(torch.full((1, 1, 1, 1), 255, dtype=torch.uint8), torch.tensor([0.5]), torch.tensor([0.25])).item()
    2.0
    """
    if images.ndim != 4 or not mean.shape == std.shape == images.shape[1:2]:
        raise ValueError(
            f"expected images (b, c, h, w) and a mean and std (c,), not {tuple(images.shape)}, {tuple(mean.shape)} and "
            f"{tuple(std.shape)}."
        )
    mean, std = (v.to(images.device).view(-1, 1, 1) for v in (mean, std))
    return images.float().div_(255).sub_(mean).div_(std)


def _download(scratch: Path, missing: list[str]) -> Path:
    return _extract(fetch(URL, scratch, f"md5:{ARCHIVE_MD5}"), scratch)


def _unpack(archive: Path, scratch: Path) -> Path:
    """Unpack an archive in the data root. Raises: DataCorrupt if it is not the published one."""
    try:
        with open(archive, "rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise DataCorrupt(f"{archive} cannot be read: {error.strerror or error}.") from error
    if digest != ARCHIVE_MD5:
        raise DataCorrupt(
            f"{archive} does not have the checksum of {URL}: it is truncated or another file; delete it, and it can be "
            "downloaded again."
        )
    return _extract(archive, scratch)


def _extract(archive: Path, scratch: Path) -> Path:
    """Unpack an archive with known checksum, so that its content is bounded."""
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(scratch, filter="data")  # refuses links and paths that leave the folder
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{archive.name} does not unpack: {error}") from error
    return scratch / FOLDER


def _batch(blob: bytes, path: Path) -> tuple[np.ndarray, np.ndarray]:
    fields = pickles.text_keys(pickles.loads(blob, path), path)
    if absent := {"data", "labels"} - fields.keys():
        raise DataCorrupt(f"{path} has no field {' and '.join(sorted(absent))}.")
    pixels, labels = pickles.array(fields["data"], path), fields["labels"]
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3072 or not len(pixels):
        raise DataCorrupt(f"{path} holds {pixels.dtype} {pixels.shape}, not uint8 images (b, 3072).")
    labels = pickles.numbers(labels, path) if isinstance(labels, list) else pickles.array(labels, path).tolist()
    if (
        not isinstance(labels, list)
        or len(labels) != len(pixels)
        or not all(type(y) is int and 0 <= y <= 9 for y in labels)
    ):
        raise DataCorrupt(f"{path} does not hold one label in 0..9 for each of its {len(pixels)} images.")
    return pixels.reshape(-1, 3, 32, 32), np.array(labels, np.int64)


def _class_names(blob: bytes, path: Path) -> tuple[str, ...]:
    names = pickles.text_keys(pickles.loads(blob, path), path).get("label_names")
    if not isinstance(names, list) or len(names) != 10 or not all(isinstance(n, str | bytes) for n in names):
        raise DataCorrupt(f"{path} does not hold ten label_names.")
    return tuple(n.decode("latin1") if isinstance(n, bytes) else n for n in names)
