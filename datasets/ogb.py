"""ogbn-arxiv, ogbn-products and ogbn-papers100M, read from existing files; nothing is downloaded.

Layout under ROOT/ogb, as in the archives of the Open Graph Benchmark (the raw files, not OGB's processed ones):

    ogbn_arxiv/raw/edge.csv.gz            `source,target` per line; node-feat.csv.gz: 128 numbers per line (node);
                                          node-label.csv.gz: the class of a node per line
    ogbn_arxiv/split/time/                train.csv.gz, valid.csv.gz, test.csv.gz: a node index per line
    ogbn_products/raw/                    the same, 100 features; each undirected edge once; split/sales_ranking/
    ogbn_papers100M/raw/data.npz          edge_index (2, e), node_feat (n, 128)
    ogbn_papers100M/raw/node-label.npz    node_label (n, 1), NaN for unlabelled nodes; split/time/

Hu et al., Open Graph Benchmark: Datasets for Machine Learning on Graphs, NeurIPS 2020. Licences: ODC-BY (arxiv and
papers100M), Amazon's (products).
"""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets.root import DataCorrupt, DataUnavailable, data_root
from gconv.arguments import checked

MAX_BYTES = 2**28  # of a file of numbers; the largest has 20 MB
MAX_LABEL_BYTES = 2**31  # of the labels of papers100M, which have 444 MB
MAX_CLASS = 10**6
SPLITS = {"arxiv": "time", "products": "sales_ranking", "papers100M": "time"}


@dataclass(frozen=True)
class OGB:
    """The paths of the graph and the features, for `gconv.external`, with labels and split in memory.

    edges, features: arguments of `DiskGraph.build` and `propagate` (text features via `features_from_text`).
    y: (n,) classes, -1 for unlabelled nodes.
    train, valid, test: node indices.
    """

    name: str
    edges: str
    features: str
    y: Tensor
    train: Tensor
    valid: Tensor
    test: Tensor


@checked
def load_ogb(name: str, root: str | Path | None = None) -> OGB:
    """Load one of "arxiv", "products" and "papers100M".

    Raises:
        ValueError: for another name.
        DataUnavailable: if a file is missing; the message names it.
        DataCorrupt: if a file cannot be read or has inconsistent values.
    """
    if name not in SPLITS:
        raise ValueError(f"There are {', '.join(SPLITS)}, but {name!r} was asked for.")
    folder = Path(data_root(root)) / "ogb" / f"ogbn_{name}"
    raw, split = folder / "raw", folder / "split" / SPLITS[name]
    if name == "papers100M":
        edges, features = f"{_there(raw / 'data.npz')}:edge_index", f"{raw / 'data.npz'}:node_feat"
        labels = _labels_of_archive(_there(raw / "node-label.npz"))
    else:
        edges, features = str(_there(raw / "edge.csv.gz")), str(_there(raw / "node-feat.csv.gz"))
        labels = _numbers(_there(raw / "node-label.csv.gz"))
    parts = [_numbers(_there(split / f"{part}.csv.gz")) for part in ("train", "valid", "test")]
    for part in parts:
        if len(part) and not 0 <= int(part.min()) <= int(part.max()) < len(labels):
            raise DataCorrupt(f"{split}: a number of a node is not in 0 to {len(labels) - 1}")
    if len(torch.cat(parts).unique()) < sum(map(len, parts)):
        raise DataCorrupt(f"{split}: a node is in two parts, or twice in one")
    return OGB(name, edges, features, labels, *parts)


def _there(path: Path) -> Path:
    if not path.is_file():
        raise DataUnavailable(
            f"{path} is missing: unpack the archive of the Open Graph Benchmark there (https://ogb.stanford.edu)"
        )
    return path


def _numbers(path: Path) -> Tensor:
    try:
        with gzip.open(path) as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise ValueError(f"it unpacks to more than {MAX_BYTES >> 20} MiB")
        return torch.from_numpy(np.array(text.split(), np.int64))
    except (OSError, EOFError, ValueError, OverflowError, zlib.error) as error:
        raise DataCorrupt(f"{path}: one whole number a line is expected ({error})") from None


def _labels_of_archive(path: Path) -> Tensor:
    try:
        with np.load(path) as archive:
            if (size := archive.zip.getinfo("node_label.npy").file_size) > MAX_LABEL_BYTES:
                raise ValueError(f"it unpacks to {size:,} bytes, and at most {MAX_LABEL_BYTES:,} are read")
            labels = archive["node_label"].reshape(-1)
        if labels.dtype.kind not in "fiu":
            raise ValueError(f"it has values of type {labels.dtype}, not numbers")
        known = ~np.isnan(labels)
        classes = np.where(known, labels, -1)
        if ((classes != np.floor(classes)) | (abs(classes) > MAX_CLASS)).any():
            raise ValueError("a label is not a whole number, or too large")
    except Exception as error:  # numpy raises what zipfile, zlib and the header's parser raise
        raise DataCorrupt(f"{path}: an array node_label is expected ({error})") from None
    return torch.from_numpy(classes.astype(np.int64))
