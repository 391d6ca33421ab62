"""Pack CIFAR-10 into one small file for a machine without network access: JPEG images and their residuals.

    python -m experiments.gpu.pack build/cifar10.npz

Packing is lossless, which a content hash verifies. A copy whose images were stored as JPEG takes about 40 MB; the
official images take three times as much. Files larger than `LIMIT` are rejected.
"""

import argparse
import io
import lzma
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from datasets import DataError, load_cifar10
from datasets.cifar10 import FOLDER, MD5
from experiments.harness.outputs import check_output, whole_file

LIMIT = 50 << 20  # bytes
SIDE = 100  # images per row of a sheet


def _sheet(images: np.ndarray) -> np.ndarray:
    """(b, 3, 32, 32) -> (h, w, 3), b a multiple of `SIDE`."""
    return images.reshape(-1, SIDE, 3, 32, 32).transpose(0, 3, 1, 4, 2).reshape(-1, 32 * SIDE, 3)


def _images(sheet: np.ndarray) -> np.ndarray:
    return sheet.reshape(-1, 32, SIDE, 32, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, 32, 32)


def encode(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images (b, 3, 32, 32), b a multiple of `SIDE`, as a JPEG and its residual modulo 256, compressed."""
    from PIL import Image

    sheet, made = _sheet(images), io.BytesIO()
    Image.fromarray(sheet).save(made, "JPEG", quality=75, subsampling="4:2:0", optimize=True)
    rest = lzma.compress((sheet - _read(made.getvalue())).tobytes(), preset=6)
    return np.frombuffer(made.getvalue(), np.uint8), np.frombuffer(rest, np.uint8)


def decode(jpeg: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """Decode the result of `encode`."""
    sheet = _read(jpeg.tobytes())
    return _images(sheet + np.frombuffer(lzma.decompress(rest.tobytes()), np.uint8).reshape(sheet.shape))


def _read(data: bytes) -> np.ndarray:
    from PIL import Image

    return np.array(Image.open(io.BytesIO(data)))


def pack(path: Path, root: Path | None = None) -> int:
    """Write the file. Returns: its size in bytes. Raises: DataError, ValueError if it would be too large."""
    found = load_cifar10(root)
    if (len(found.train_images), len(found.test_images)) != (50_000, 10_000):
        raise ValueError(f"{found.label} is not 50,000 and 10,000 images")
    held: dict[str, Any] = {"labels": np.concatenate([found.train_labels, found.test_labels]).astype(np.uint8)}
    held |= {"classes": np.array(found.classes), "hash": np.array(found.content_hash)}
    for n, images in enumerate([*np.split(found.train_images.numpy(), 5), found.test_images.numpy()]):
        held[f"jpeg{n}"], held[f"rest{n}"] = encode(images)
    size = sum(array.nbytes for array in held.values())
    if size > LIMIT:
        raise ValueError(f"{found.label} takes {size >> 20} MiB packed, and {LIMIT >> 20} MiB is the limit")
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part, open(part, "wb") as file:
        np.savez(file, **held)
    return path.stat().st_size


def unpack(path: Path, root: Path) -> Path:
    """Write the data set below a root for `load_cifar10`. Returns the root. Raises: ValueError if it differs."""
    folder = root / FOLDER
    folder.mkdir(parents=True)
    with np.load(path, allow_pickle=False) as held:
        labels, wanted = held["labels"].tolist(), str(held["hash"])
        for n, name in enumerate(name for name in MD5 if name != "batches.meta"):
            images = decode(held[f"jpeg{n}"], held[f"rest{n}"])
            batch = {"data": images.reshape(-1, 3072), "labels": labels[10_000 * n : 10_000 * (n + 1)]}
            (folder / name).write_bytes(pickle.dumps(batch, 2))
        (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": held["classes"].tolist()}, 2))
    if (found := load_cifar10(root).content_hash) != wanted:
        raise ValueError(f"{path} unpacks to other images ({found}) than were packed ({wanted})")
    return root


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m experiments.gpu.pack", description=__doc__, formatter_class=form)
    parser.add_argument("path", type=Path, help="of the file to write")
    parser.add_argument("--root", type=Path, help="the folder of the data sets")
    given = parser.parse_args(argv)
    try:
        check_output("path", given.path, parents=True)  # packing takes a minute
        size = pack(given.path, given.root)
    except (DataError, ValueError, OSError) as error:
        parser.error(str(error))
    print(f"{given.path}: {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
