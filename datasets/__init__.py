"""Data sets: loaders, checksums, licences. Used from the root of the repository; not part of the installed package.

| name | what | source, licence | download |
|---|---|---|---|
| cifar10 | 60,000 colour images 32x32, 10 classes | Krizhevsky 2009; research use, no licence stated | 170 MB |
| cora, citeseer, pubmed | citation graphs, public split | Sen 2008, Yang 2016 (MIT repository) | 1 to 6 MB |
| bccd | 364 photos of blood cells with boxes | Shenggan/BCCD_Dataset (MIT) | by hand |
| membrane | 30 microscopy slices with masks | ISBI 2012, in zhixuhao/unet (MIT repository) | by hand |
| mr, r8, trec | labelled texts | Pang 2005, Reuters, Li 2002, in yao8839836/text_gcn; none stated | by hand |
| multi30k | 31,014 sentences with translations | multi30k/dataset; none stated | by hand |
| digits | 1,797 images 8x8, 10 classes | UCI optdigits in scikit-learn (BSD-3 wheel) | none |
| digits-knn | k-NN graph of the digits | as digits | none |
| karate | 34 nodes, 4 communities | Zachary 1977, in PyG (MIT wheel) | none |
| citation-like | contextual block model, seeded | generated here | none |

Modules: `root` (data root, downloads, errors, content hashes, record types), `pickles` (reading pickles without
executing them), `images` (images as graphs: grid, k-NN, superpixels), and one module per data set or family. The data
root is an argument, else `$GCONV_DATA`, else the user's cache folder; `GCONV_OFFLINE=1` forbids downloads.

    python -m datasets                  # list the names
    python -m datasets cora             # load a data set and describe it

>>> load("karate").data.num_nodes
34
>>> load("corra")
Traceback (most recent call last):
    ...
ValueError: There is no data set 'corra'. Did you mean 'cora'? Known: bccd, cifar10, citation-like, ...
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

if sys.argv[:1] == ["-m"]:
    from gconv_command import end_in_one_line

    end_in_one_line()
    if sys.orig_argv[-2:] in (["datasets", "-h"], ["datasets", "--help"]):  # needs no torch
        import runpy

        runpy.run_path(str(Path(__file__).with_name("__main__.py")), run_name="__main__")

from gconv.arguments import checked

from .bccd import load_bccd
from .cifar10 import channel_stats, load_cifar10, normalise
from .embedded import load_citation_like, load_digits, load_digits_knn, load_karate
from .images import SuperpixelSet, grid_graph, knn_graph, superpixel_graph, superpixel_set
from .membrane import load_membrane
from .multi30k import load_multi30k
from .planetoid import load_planetoid
from .root import (
    DataCorrupt,
    DataError,
    DataNotWritten,
    DataUnavailable,
    GraphSet,
    ImageSet,
    choose,
    content_hash,
    data_root,
    hash_parts,
)
from .text import FOLDERS, load_text

EMBEDDED = {
    "digits": load_digits,
    "digits-knn": load_digits_knn,
    "karate": load_karate,
    "citation-like": load_citation_like,
}
PLANETOID = {"cora": "Cora", "citeseer": "CiteSeer", "pubmed": "PubMed"}
TEXTS = {name.lower(): name for name in FOLDERS}
FILES = {"cifar10": load_cifar10, "bccd": load_bccd, "membrane": load_membrane, "multi30k": load_multi30k}
NAMES = (*FILES, *PLANETOID, *TEXTS, *EMBEDDED)


@checked
def load(name: str, root: str | Path | None = None, **options: Any) -> Any:
    """Load a data set by name (case-insensitive); `options` are those of its loader (`limit`, `seed`, ...).

    Returns: a `Loaded` record, of the class that the loader returns.

    Args:
        name: one of `NAMES`.
        root: the data root; not needed for embedded data sets.
        **options: passed to the loader after a check of their names.

    Raises:
        ValueError: an unknown name or option.
        DataError: `DataUnavailable`, `DataCorrupt` or `DataNotWritten`, as documented by the loader.
    """
    key = name.lower()
    choose(key, NAMES, "data set")
    named = PLANETOID | TEXTS
    loader: Any = {**EMBEDDED, **FILES}.get(key) or (load_planetoid if key in PLANETOID else load_text)
    allowed = set(inspect.signature(loader).parameters) - {"root", "name"}
    for option in options:
        choose(option, allowed, f"option of {key!r} named")
    if key in EMBEDDED:
        return loader(**options)
    return loader(named[key], root) if key in named else loader(root, **options)


__all__ = [
    "EMBEDDED",
    "NAMES",
    "PLANETOID",
    "DataCorrupt",
    "DataError",
    "DataNotWritten",
    "DataUnavailable",
    "GraphSet",
    "ImageSet",
    "SuperpixelSet",
    "channel_stats",
    "content_hash",
    "data_root",
    "grid_graph",
    "hash_parts",
    "knn_graph",
    "load",
    "load_cifar10",
    "load_citation_like",
    "load_digits",
    "load_digits_knn",
    "load_karate",
    "load_planetoid",
    "normalise",
    "superpixel_graph",
    "superpixel_set",
]
