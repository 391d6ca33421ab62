"""Images as graphs: pixel grids, k-NN graphs of pixels, or superpixels.

Each function takes one image and returns a PyG `Data` with these conventions: row 0 of `edge_index` is the source, row
1 the target; no self-loops; edges are sorted by target; `pos` is (row, column) in pixels; `edge_attr` is pos[source] -
pos[target], the pseudo-coordinates of MoNet and SplineCNN. `superpixel_set` builds a whole data set once and caches it
on disk.
"""

from __future__ import annotations

import io
import math
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from gconv.arguments import checked

from .root import choose, data_root, hash_parts, read, write_atomic

if TYPE_CHECKING:
    from torch_geometric.data import Data

_FIELDS = ("x", "pos", "edge_index", "nodes", "edges")


@checked
def grid_graph(image: Tensor, neighbours: Literal[4, 8] = 8, y: int | None = None) -> Data:
    """The pixel grid: a node for each pixel, connected to its 4 or 8 neighbours (fewer at the border).

    Args:
        image: (c, h, w), uint8 in 0..255 or float in [0, 1].
        neighbours: 4 (edges only) or 8 (edges and corners).
        y: the label of the image.

    Shapes: x (h*w, c) float32 in [0, 1], row-major; pos (h*w, 2) pixels; edge_index (2, e); edge_attr (e, 2) in -1..1.

    Raises: ValueError: not an image, or another number of neighbours.

    >>> grid_graph(torch.zeros(1, 2, 2), neighbours=4).edge_index.tolist()
    [[1, 2, 0, 3, 0, 3, 1, 2], [0, 0, 1, 1, 2, 2, 3, 3]]
    """
    if neighbours not in (4, 8):
        raise ValueError(f"A pixel grid has 4 or 8 neighbours, not {neighbours}.")
    x, pos, (h, w) = _pixels(image)
    node = np.arange(h * w).reshape(h, w)
    pairs = []
    for dr, dc in [(0, 1), (1, 0), (1, 1), (1, -1)][: neighbours // 2]:
        a = node[: h - dr, max(0, -dc) : w - max(0, dc)]
        b = node[dr:, max(0, dc) : w - max(0, -dc)]
        pairs.append(np.stack([a.ravel(), b.ravel()]))
    return _graph(x, pos, np.concatenate(pairs, 1), y)


@checked
def knn_graph(image: Tensor, k: int = 8, colour: float = 0.0, y: int | None = None) -> Data:
    """Each pixel connected to its k nearest pixels by position, or by position and colour; symmetrised.

    With `colour` > 0, edges prefer pixels of similar colour, as in a bilateral filter: distances are those of
    (row, column, colour * rgb), with positions in pixels and rgb in [0, 1].

    Args:
        image: (c, h, w), uint8 in 0..255 or float in [0, 1].
        k: neighbours of a pixel before symmetrising, 1 <= k < h*w.
        colour: weight of colour against position, in pixels, >= 0.
        y: the label of the image.

    Shapes: as for `grid_graph`; each node has at least k edges.

    Raises: ValueError: not an image, or k out of range.

    >>> knn_graph(torch.zeros(1, 1, 3), k=1).edge_index.shape[1] >= 3
    True
    """
    x, pos, _ = _pixels(image)
    if not 0 <= colour < math.inf:
        raise ValueError(f"colour is a weight of at least 0, not {colour}.")
    return _graph(x, pos, _nearest(np.concatenate([pos, colour * x], 1) if colour else pos, k), y)


@checked
def superpixel_graph(
    image: Tensor,
    segments: int = 75,
    compactness: float = 10.0,
    edges: Literal["adjacency", "knn"] = "adjacency",
    k: int = 8,
    y: int | None = None,
) -> Data:
    """SLIC superpixels: a node for each patch of similar pixels, with its mean colour and centroid.

    Args:
        image: (c, h, w), uint8 in 0..255 or float in [0, 1]. Greyscale (c = 1) and RGB images (c = 3) are compared in
            Lab, also with an alpha channel (c = 2 and 4), which is scaled like lightness, as are further channels.
            Greyscale and opaque images have the patches of the same image in RGB.
        segments: approximate number of patches; SLIC may return fewer.
        compactness: high for square patches, low for patches that follow colour.
        edges: "adjacency" connects patches with adjacent pixels, "knn" the k nearest centroids, symmetrised.
        k: neighbours for "knn"; fewer if there are not so many patches.
        y: the label of the image.

    Shapes: x (n, c + 2) float32 in [0, 1]: mean colour, then centroid row / h and column / w; pos (n, 2) pixels.

    Raises: ValueError: not an image, or an option out of range.

    >>> halves = torch.zeros(3, 8, 8)
    >>> halves[:, :, 4:] = 1
    >>> superpixel_graph(halves, segments=4).x[:, 0].tolist()
    [0.0, 1.0, 0.0, 1.0]
    """
    from skimage.segmentation import slic

    choose(edges, ("adjacency", "knn"), "kind of superpixel edge")
    if segments < 1 or not 0 < compactness < math.inf or k < 1:
        raise ValueError(f"segments, compactness and k are positive, not {segments}, {compactness}, {k}.")
    x, pos, (h, w) = _pixels(image)
    seen, lab, scale = _as_seen(x.reshape(h, w, -1))
    patch = slic(seen, n_segments=segments, compactness=compactness * scale, convert2lab=lab)
    _, flat = np.unique(patch, return_inverse=True)
    flat = flat.reshape(-1)
    size = np.bincount(flat)[:, None]
    mean = np.stack([np.bincount(flat, column) for column in np.concatenate([x, pos], 1).T], 1) / size
    centroid = mean[:, -2:].astype(np.float32)
    features = np.concatenate([mean[:, :-2], (centroid + 0.5) / (h, w)], 1).astype(np.float32)
    if edges == "knn":
        pairs = _nearest(centroid, min(k, len(size) - 1)) if len(size) > 1 else np.empty((2, 0), np.int64)
    else:
        patch = flat.reshape(h, w)
        touching = [(patch[:, :-1], patch[:, 1:]), (patch[:-1], patch[1:])]
        pairs = np.concatenate([np.stack([a.ravel(), b.ravel()]) for a, b in touching], 1)
    return _graph(features, centroid, pairs, y)


def _as_seen(image: np.ndarray) -> tuple[np.ndarray, bool, float]:
    """The input of SLIC, whether it converts the input to Lab, and a factor for its compactness.

    SLIC scales its input to [0, 1], and its compactness is made for Lab, where lightness goes up to 100. Channels that
    it does not convert are brought to that scale here, and the compactness is divided by the scaling.
    """
    from skimage.color import rgb2lab

    c = image.shape[2]
    colour, alpha = (image[..., :-1], image[..., -1:]) if c in (2, 4) else (image, np.ones((1, 1, 1)))
    rgb = np.repeat(colour, 3, 2) if colour.shape[2] == 1 else colour
    if rgb.shape[2] == 3 and np.ptp(alpha) == 0:
        return rgb, True, 1.0
    if rgb.shape[2] == 3:
        span = np.ptp(rgb)
        rgb = (rgb - rgb.min()) / (span if span > 0 else 1)
        values = np.concatenate([rgb2lab(rgb), 100 * alpha], 2)
    else:
        values = 100 * image
    span = float(np.ptp(values))
    return values, False, 1 / span if span > 0 else 1.0


@dataclass(frozen=True, eq=False)
class SuperpixelSet(Sequence["Data"]):
    """Many superpixel graphs in five flat arrays; indexing returns one `Data`, so PyG's `DataLoader` can be used."""

    x: Tensor
    pos: Tensor
    edge_index: Tensor
    node_start: Tensor
    edge_start: Tensor
    labels: Tensor
    content_hash: str

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int | slice) -> Any:  # a Data, or a list of them
        from torch_geometric.data import Data

        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[int(index)]  # negative counts from the end, IndexError ends a for loop
        n0, n1 = self.node_start[index : index + 2].tolist()
        e0, e1 = self.edge_start[index : index + 2].tolist()
        pos, edge_index = self.pos[n0:n1], self.edge_index[:, e0:e1]
        attr = pos[edge_index[0]] - pos[edge_index[1]]
        return Data(x=self.x[n0:n1], edge_index=edge_index, edge_attr=attr, pos=pos, y=self.labels[index : index + 1])


@checked
def superpixel_set(
    images: Tensor,
    labels: Tensor,
    root: str | Path | None = None,
    segments: int = 75,
    compactness: float = 10.0,
    edges: Literal["adjacency", "knn"] = "adjacency",
    k: int = 8,
    chunk: int = 1000,
    progress: bool = True,
) -> SuperpixelSet:
    """`superpixel_graph` of every image, built once and cached under ROOT/superpixels.

    The name of the folder is a hash of images, parameters and the version of scikit-image. Chunks are written
    atomically, so an interrupted build can be resumed; a chunk that does not match its checksum is built again, with a
    warning. Nothing is unpickled.

    Args:
        images: (b, c, h, w), uint8 in 0..255 or float in [0, 1].
        labels: (b,) integers; not part of the cache.
        root: the data root (default: `$GCONV_DATA`, else the user's cache folder).
        segments: as in `superpixel_graph`.
        compactness: as in `superpixel_graph`.
        edges: as in `superpixel_graph`.
        k: as in `superpixel_graph`.
        chunk: number of images per file.
        progress: whether to draw a bar on stderr.

    Shapes: item: x (n, c + 2) in [0, 1], pos (n, 2) pixels, edge_index (2, e), edge_attr (e, 2) pixels, y (1,).

    Raises:
        ValueError: images and labels that do not match, or an option out of range.
        DataNotWritten: the cache cannot be written.
    """
    from importlib.metadata import version

    from rich.console import Console
    from rich.progress import track

    if images.ndim != 4 or labels.ndim != 1 or len(images) != len(labels) or not len(images) or chunk < 1:
        raise ValueError(
            f"expected images (b, c, h, w), one label for each and chunk >= 1, "
            f"not {tuple(images.shape)}, {tuple(labels.shape)} and {chunk}."
        )
    options = f"{segments} {float(compactness)} {edges} {k} {chunk} {version('scikit-image')}"
    options += "" if images.shape[1] == 3 else " Lab"
    key = hash_parts({"images": images.numpy(), "options": options.encode()})
    folder = data_root(root) / "superpixels" / key
    starts = range(0, len(images), chunk)
    bar = track(starts, f"superpixels {key}", console=Console(stderr=True), disable=not progress)
    chunks = []
    for start in bar:
        path = folder / f"{start:07d}.npz"
        arrays = _read_chunk(path, min(chunk, len(images) - start))
        if arrays is None:
            part = images[start : start + chunk]
            arrays = _flatten(superpixel_graph(image, segments, compactness, edges, k) for image in part)
            _write_chunk(path, arrays)
        chunks.append(arrays)
    flat = {name: torch.from_numpy(np.concatenate([c[name] for c in chunks], -1 if name == "edge_index" else 0))
            for name in _FIELDS}  # fmt: skip
    starts_of = {name: torch.cat([torch.zeros(1, dtype=torch.int64), flat[name].cumsum(0)]) for name in _FIELDS[3:]}
    return SuperpixelSet(
        x=flat["x"],
        pos=flat["pos"],
        edge_index=flat["edge_index"],
        node_start=starts_of["nodes"],
        edge_start=starts_of["edges"],
        labels=labels.long(),
        content_hash=hash_parts({**flat, "labels": labels}),
    )


def _flatten(graphs: Iterator[Data]) -> dict[str, np.ndarray]:
    parts = [(g.x, g.pos, g.edge_index, g.num_nodes, g.num_edges) for g in graphs]
    x, pos, edge_index, nodes, edges = zip(*parts, strict=True)
    joined = torch.cat(x), torch.cat(pos), torch.cat(edge_index, 1), torch.tensor(nodes), torch.tensor(edges)
    return dict(zip(_FIELDS, (part.numpy() for part in joined), strict=True))


def _write_chunk(path: Path, arrays: dict[str, np.ndarray]) -> None:
    write_atomic(path, lambda file: np.savez(file, digest=np.array(hash_parts(arrays)), **arrays))  # type: ignore[arg-type]


def _read_chunk(path: Path, count: int) -> dict[str, np.ndarray] | None:
    """The arrays of a chunk, or None if it is missing or (with a warning) damaged."""
    if not path.exists():
        return None
    try:
        blob = read(path)
        _check_members(blob)
        with np.load(io.BytesIO(blob), allow_pickle=False) as file:
            arrays = {name: file[name] for name in _FIELDS}
            if str(file["digest"]) == hash_parts(arrays) and len(arrays["nodes"]) == count:
                return arrays
    except (ValueError, KeyError, OSError, EOFError, RuntimeError, NotImplementedError, MemoryError, SyntaxError):
        pass
    except zipfile.BadZipFile:
        pass
    warnings.warn(f"{path} is damaged; building it again.", RuntimeWarning, stacklevel=3)
    return None


def _check_members(blob: bytes) -> None:
    """Check the stated sizes of arrays in an .npz before numpy allocates them. Raises: ValueError."""
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        members = archive.infolist()
        if len(members) > 64 or any(m.compress_type != zipfile.ZIP_STORED for m in members):
            raise ValueError("it is not a chunk: np.savez stores few arrays, uncompressed")
        for member in members:
            with archive.open(member) as file:
                header = np.lib.format.read_magic(file)
                read_header = (
                    np.lib.format.read_array_header_1_0 if header == (1, 0) else np.lib.format.read_array_header_2_0
                )
                shape, _, dtype = read_header(file)
                if math.prod(shape) * dtype.itemsize > member.file_size or member.file_size > len(blob):
                    raise ValueError("an array claims more bytes than there are")


def _pixels(image: Tensor) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Returns: x (h*w, c) in [0, 1], pos (h*w, 2) and (h, w) of an image."""
    if image.ndim != 3 or 0 in image.shape or not (image.dtype == torch.uint8 or image.is_floating_point()):
        raise ValueError(f"expected a uint8 or float image (c, h, w), not {image.dtype} {tuple(image.shape)}.")
    c, h, w = image.shape
    scaled = image.float() / 255 if image.dtype == torch.uint8 else image.float()
    if not bool((scaled >= 0).all() and (scaled <= 1).all()):
        raise ValueError("a float image has values in [0, 1] (and no NaN); this one does not. Normalise the graph's x.")
    rows, columns = np.divmod(np.arange(h * w), w)
    return scaled.reshape(c, -1).T.numpy(), np.stack([rows, columns], 1).astype(np.float32), (h, w)


def _nearest(points: np.ndarray, k: int) -> np.ndarray:
    from sklearn.neighbors import kneighbors_graph

    if not 1 <= k < len(points):
        raise ValueError(f"k must be in 1..{len(points) - 1} for {len(points)} points, not {k}.")
    return np.stack(kneighbors_graph(points, k).nonzero())


def _graph(x: np.ndarray, pos: np.ndarray, pairs: np.ndarray, y: int | None) -> Data:
    """A Data with each pair in both directions, sorted by target, without duplicates and self-loops."""
    from torch_geometric.data import Data

    n = len(x)
    pairs = pairs[:, pairs[0] != pairs[1]].astype(np.int64)
    key = np.unique(np.concatenate([pairs[0] * n + pairs[1], pairs[1] * n + pairs[0]]))
    edge_index = torch.from_numpy(np.stack([key % n, key // n]))
    at = torch.from_numpy(np.ascontiguousarray(pos))
    return Data(
        x=torch.from_numpy(np.ascontiguousarray(x)),
        edge_index=edge_index,
        edge_attr=at[edge_index[0]] - at[edge_index[1]],
        pos=at,
        y=None if y is None else torch.tensor([y]),
    )
