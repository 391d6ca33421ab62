"""Planetoid: the citation graphs Cora, CiteSeer and PubMed with the public split.

    ROOT/Planetoid/<Name>/raw/ind.<name>.{x, tx, allx, y, ty, ally, graph, test.index}

A node is a paper, x its bag of words, an edge a citation in either direction, y its topic. Nothing from the pickles is
executed, and no `processed` folder is written, so the root may be read-only; the result equals that of PyG's reader
(tested). Source: Sen et al. 2008, split of Yang et al. 2016, https://github.com/kimiyoung/planetoid
(MIT).
"""

from __future__ import annotations

import hashlib
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from gconv.arguments import checked

from . import pickles
from .root import DataCorrupt, GraphSet, choose, data_root, ensure, fetch, hash_parts, locate, read

if TYPE_CHECKING:
    from torch_geometric.data import Data

URL = "https://github.com/kimiyoung/planetoid/raw/master/data/"
PARTS = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")
VALIDATION = 500
CLASSES = {"Cora": 7, "CiteSeer": 6, "PubMed": 3}
SHA256 = {
    "ind.cora.x": "23cfa55d91c6f624233f5eb7b6e3f141f1bd2b2ae39608a63cf5d084bb27baab",
    "ind.cora.tx": "b9afbaa4a400df991f6f02ef677e1e44da55ffc04801fd02f9e673987829226a",
    "ind.cora.allx": "9419ba2f26f5c35243db64aba110e0f35a04851609e0dc5433450676ca6b8543",
    "ind.cora.y": "94465c14eb53e04ca262198dcbb2521ee8af60fb3f3d546cd6ca24a511b0e7d1",
    "ind.cora.ty": "41f5ac76596a1699cc33f53084a2419e92961c42bb75f36fc38e616d348532ad",
    "ind.cora.ally": "2b998f5cc7fedc86e7f97ca2498f47a1ffc1462c29e2d578b23bf3f62b6e7d71",
    "ind.cora.graph": "58f13302f39dde8852dad6fe6d15b89b077b6d7f837626bce671ef80344b383d",
    "ind.cora.test.index": "297ce89af2b51a6a194181c7dbe1796c6a1cf9cd9349a88383b1b1e227867875",
    "ind.citeseer.x": "d20de19150741e555de0ed037195630fc194114ebc7fd72ced62810148aa22f6",
    "ind.citeseer.tx": "539a8906a2da97628d212f2fdd668c109a8b3f0d36574b59e5d3fd5b5303da21",
    "ind.citeseer.allx": "2ac30345d95c9ec933a817ee0bdd6a5f077f8c184a20e696910192d534414668",
    "ind.citeseer.y": "8ba87e515d8e3ee3cf52f6d2c5b86aa73f11ecad825a808455209ec26cd54924",
    "ind.citeseer.ty": "55e5bd1ba1e733a04598753ad1a8d57957f4b8f89e74519f41f4f4938767e4ce",
    "ind.citeseer.ally": "f704b2d986dde6c2669934de1f3ae5696a6cf9455c0f6b2646a2d135ea0a1c95",
    "ind.citeseer.graph": "d79a4ef9d3e7169aee8946145f6b7306e35bc79bffad26346cfb94e10e9912a7",
    "ind.citeseer.test.index": "2af990671580b6b2df5d158d1038f8292e30c9cd821b5453f399659b25b723d4",
    # PubMed's files were not available, so no checksum is pinned; rows identify its version by content hash.
}


@checked
def load_planetoid(name: str, root: str | Path | None = None) -> GraphSet:
    """Load Cora, CiteSeer or PubMed with the public split: 20 training nodes per class, 500 validation, 1000 test.

    Duplicate edges and self-loops are removed, as in PyG. Features are as published, not row-normalised. CiteSeer
    contains papers without text, with zero features and class 0, which are in no mask.

    Args:
        name: "Cora", "CiteSeer" or "PubMed".
        root: the data root (default: `$GCONV_DATA`, else the user's cache folder).

    Shapes: Cora x (2708, 1433), edge_index (2, 10556), 7 classes; CiteSeer x (3327, 3703), edge_index (2, 9104),
        6 classes; PubMed x (19717, 500), edge_index (2, 88648), 3 classes; x in [0, 1].

    Raises:
        ValueError: an unknown name.
        DataUnavailable: the files are missing and cannot be downloaded.
        DataCorrupt: a file is truncated, damaged, malicious, or inconsistent with the others.

    >>> load_planetoid("Kora")
    Traceback (most recent call last):
        ...
    ValueError: There is no Planetoid graph 'Kora'. Did you mean 'Cora'? Known: CiteSeer, Cora, PubMed.
    """
    choose(name, CLASSES, "Planetoid graph")
    files = [f"ind.{name.lower()}.{part}" for part in PARTS]
    place = data_root(root)
    inside = (place / "Planetoid" / name / "raw", place / name / "raw", place / "raw", place, place / name)
    folder = locate(inside, files)
    instead = "the embedded graphs are 'citation-like', 'digits-knn' and 'karate'"
    paths = ensure(name, folder, files, f"{URL}{files[0]} and the other files there", _download, instead)
    blobs = {path.name: read(path) for path in paths}
    known = [SHA256[file] == hashlib.sha256(blobs[file]).hexdigest() for file in files if file in SHA256]
    official = all(known) if known else None
    origin = {True: URL, False: f"{folder}; its files do not have the checksums of {URL}", None: f"{folder}, as {URL}"}
    return GraphSet(
        label=name + (", not the official bytes" if official is False else ""),
        classes=tuple(f"topic {c}" for c in range(CLASSES[name])),
        content_hash=hash_parts(blobs),
        source=f"{origin[official]} (Yang et al. 2016)",
        official=official,
        data=_graph(blobs, folder, name),
    )


def _download(scratch: Path, missing: list[str]) -> Path:
    for file in missing:
        fetch(URL + file, scratch, f"sha256:{SHA256[file]}" if file in SHA256 else None)
    return scratch


def _graph(blobs: dict[str, bytes], folder: Path, name: str) -> Data:
    """Parse and cross-check the files: rows 0..len(allx) are in order; test nodes are stored in test.index order."""
    from torch_geometric.data import Data
    from torch_geometric.utils import coalesce, remove_self_loops

    def where(part: str) -> Path:
        return folder / f"ind.{name.lower()}.{part}"

    def require(good: bool, part: str, why: str) -> None:
        if not good:
            raise DataCorrupt(f"{where(part)} {why}.")

    raw = {part: pickles.loads(blobs[where(part).name], where(part)) for part in PARTS[:-1]}
    x, tx, allx, y, ty, ally = (pickles.csr(raw[part], where(part)) for part in PARTS[:6])
    for part, a, b in (("x", x, y), ("tx", tx, ty), ("allx", allx, ally)):
        require(a.ndim == b.ndim == 2 and len(a) == len(b), part, "does not have one row for each label")
        require(a.shape[1] == x.shape[1], part, f"does not have the {x.shape[1]} features of ind.*.x")
        require(b.shape[1] == CLASSES[name], f"{part[:-1]}y", f"does not have {CLASSES[name]} classes")
    require(len(y) + VALIDATION <= len(allx), "allx", f"has fewer than {len(y)} + {VALIDATION} rows")
    try:
        order = np.array(blobs[where("test.index").name].split(), dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise DataCorrupt(f"{where('test.index')} is not one number a line ({error}).") from error
    start, gaps_allowed = len(allx), 2 * len(tx)
    fits = len(order) == len(tx) == len(np.unique(order)) > 0 and order.min() == start
    require(fits and order.max() < start + gaps_allowed, "test.index", f"does not number {len(tx)} nodes from {start}")

    n = int(order.max()) + 1  # CiteSeer: indices of papers without text are skipped, and their rows stay zero
    features, onehot = np.zeros((n, x.shape[1]), np.float32), np.zeros((n, y.shape[1]), np.float32)
    features[:start], onehot[:start] = allx, ally
    features[order], onehot[order] = tx, ty
    graph = raw["graph"]
    lists = isinstance(graph, dict) and all(isinstance(v, list) for v in graph.values())
    require(lists, "graph", "is not a dict of lists")
    listed = sum(map(len, graph.values()))  # one list may stand for many
    require(listed <= len(blobs[where("graph").name]), "graph", "lists more neighbours than it has bytes")
    ends = [*graph, *chain.from_iterable(graph.values())]
    require(all(type(v) is int and 0 <= v < n for v in ends), "graph", f"names a node outside 0..{n - 1}")
    source = np.repeat(np.array([*graph], np.int64), [len(v) for v in graph.values()])
    edge_index = torch.from_numpy(np.stack([source, np.array(ends[len(graph) :], np.int64)]))
    edge_index = coalesce(remove_self_loops(edge_index)[0], num_nodes=n, sort_by_row=False)
    mask = torch.zeros(3, n, dtype=torch.bool)
    mask[0, : len(y)], mask[1, len(y) : len(y) + VALIDATION], mask[2, torch.from_numpy(order)] = True, True, True
    labels = torch.from_numpy(onehot.argmax(1))
    train_mask, val_mask, test_mask = mask
    return Data(
        x=torch.from_numpy(features), edge_index=edge_index, y=labels,
        train_mask=train_mask, val_mask=val_mask, test_mask=test_mask,
    )  # fmt: skip
