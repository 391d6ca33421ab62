"""Labelled texts: MR (sentiment of film reviews), R8 (topics of news) and TREC (kinds of questions).

    ROOT/text/<name>/{clean.txt, split.txt}

`clean.txt` has one document per line, with words separated by spaces; `split.txt` has a number, train or test, and a
class in each line, separated by tabs. MR and R8 are those of Text GCN with its split (Yao, Mao and Luo 2019,
https://github.com/yao8839836/text_gcn); MR is Pang and Lee 2005, R8 a part of Reuters-21578, TREC Li and Roth 2002.
Not downloaded automatically.

In the copy of TREC, the first word of a line is the fine-grained class of the question ("manner", "cremat"), which
would reveal the answer; the loader removes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gconv.arguments import checked

from .root import DataCorrupt, DataUnavailable, Loaded, choose, data_root, hash_parts, locate, read

FILES = ("clean.txt", "split.txt")
FOLDERS = {"MR": "mr", "R8": "R8", "TREC": "TREC"}
SOURCE = "https://github.com/yao8839836/text_gcn"
MAX_BYTES = 2**24


@dataclass(frozen=True, kw_only=True, eq=False)
class TextSet(Loaded):
    """Labelled documents with a split.

    Shapes: n documents, tuples of words; labels (n,) int64; test (n,) bool.
    """

    documents: tuple[tuple[str, ...], ...]
    labels: Tensor
    test: Tensor


@checked
def load_text(name: str, root: str | Path | None = None) -> TextSet:
    """Load MR, R8 or TREC with its split.

    Args:
        name: "MR", "R8" or "TREC".
        root: the data root (default: `$GCONV_DATA`, else the user's cache folder).

    Raises:
        ValueError: an unknown name.
        DataUnavailable: a file is missing.
        DataCorrupt: a file is not UTF-8, or the two files are inconsistent.

    >>> load_text("TRAC")
    Traceback (most recent call last):
        ...
    ValueError: There is no text set 'TRAC'. Did you mean 'TREC'? Known: MR, R8, TREC.
    """
    choose(name, FOLDERS, "text set")
    place = data_root(root)
    folder = locate((place / "text" / FOLDERS[name], place / FOLDERS[name], place), FILES)
    if missing := [file for file in FILES if not (folder / file).is_file()]:
        raise DataUnavailable(
            f"{name} is not there.\n  missing: {', '.join(missing)}\n  folder:  {folder}\n  source:  {SOURCE}\n"
            "  remedy:  put the files there (one document a line; number, train or test, class), or point --data-root "
            "or GCONV_DATA at a root that has them."
        )
    blobs = {file: read(folder / file, MAX_BYTES) for file in FILES}
    lines, splits = (_lines(blobs[file], folder / file) for file in FILES)
    where = folder / "split.txt"
    if not splits:
        raise DataCorrupt(f"{where} is empty; expected a line for each document.")
    if len(lines) != len(splits):
        raise DataCorrupt(f"{where} has {len(splits)} lines, and clean.txt has {len(lines)} documents.")
    marks = [line.split("\t") for line in splits]
    for number, mark in enumerate(marks, 1):
        if len(mark) != 3 or mark[1] not in ("train", "test") or not mark[2]:
            raise DataCorrupt(f"{where}, line {number}: expected a number, train or test, and a class, with tabs.")
    test = torch.tensor([mark[1] == "test" for mark in marks])
    classes = tuple(sorted({mark[2] for mark in marks}))
    label_of = {name: i for i, name in enumerate(classes)}
    labels = torch.tensor([label_of[mark[2]] for mark in marks])
    if len(labels[~test].unique()) != len(classes) or not test.any():
        raise DataCorrupt(f"{where} leaves a class without training documents, or has no test documents.")
    start = 1 if name == "TREC" else 0
    return TextSet(
        label=name,
        classes=classes,
        content_hash=hash_parts(blobs),
        source=SOURCE,
        documents=tuple(tuple(line.split()[start:]) for line in lines),
        labels=labels,
        test=test,
    )


def _lines(blob: bytes, path: Path) -> list[str]:
    try:
        lines = blob.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataCorrupt(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}).") from None
    return [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
