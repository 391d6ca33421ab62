"""Multi30k, task 1: descriptions of pictures in English with their German translations.

    ROOT/multi30k/{train, val, test_2016_flickr}.{en, de}.gz

The raw text of https://github.com/multi30k/dataset (Elliott et al. 2016): 29,000 pairs for training, 1,014 for
validation, and the 1,000 of test2016. One sentence per line, untokenised and cased. Not downloaded automatically.
"""

from __future__ import annotations

import gzip
import io
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gconv.arguments import checked

from .root import DataCorrupt, DataUnavailable, Loaded, data_root, hash_parts, locate, read

PARTS = ("train", "val", "test_2016_flickr")
LANGUAGES = ("en", "de")
SOURCE = "https://github.com/multi30k/dataset, data/task1/raw"
MAX_BYTES = 2**24


class Pairs(NamedTuple):
    """Sentences and their translations, in the same order."""

    source: tuple[str, ...]
    target: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class TranslationSet(Loaded):
    """Sentences of two languages with their split; `classes` are the languages."""

    train: Pairs
    val: Pairs
    test: Pairs


@checked
def load_multi30k(root: str | Path | None = None) -> TranslationSet:
    """Load English to German sentence pairs, with the split of task 1.

    Args:
        root: the data root (default: `$GCONV_DATA`, else the user's cache folder).

    Raises:
        DataUnavailable: a file is missing.
        DataCorrupt: a file is not gzipped UTF-8 text, has an empty line, or the two languages differ in length.
    """
    place = data_root(root)
    files = [f"{part}.{language}.gz" for part in PARTS for language in LANGUAGES]
    folder = locate((place / "multi30k", place), files)
    if missing := [file for file in files if not (folder / file).is_file()]:
        raise DataUnavailable(
            f"Multi30k is not there.\n  missing: {', '.join(missing)}\n  folder:  {folder}\n  source:  {SOURCE}\n"
            "  remedy:  put the files there, or point --data-root or GCONV_DATA at a root that has them."
        )
    blobs = {file: read(folder / file, MAX_BYTES) for file in files}
    lines = [_lines(blob, folder / file) for file, blob in blobs.items()]
    pairs = [Pairs(source, target) for source, target in zip(lines[::2], lines[1::2], strict=True)]
    for part, (source, target) in zip(PARTS, pairs, strict=True):
        if len(source) != len(target):
            raise DataCorrupt(
                f"{folder}: {part} has {len(source)} sentences in English and {len(target)} in German; "
                "they must be pairs."
            )
    return TranslationSet(
        label="Multi30k en-de, test2016",
        classes=LANGUAGES,
        content_hash=hash_parts(blobs),
        source=SOURCE,
        train=pairs[0],
        val=pairs[1],
        test=pairs[2],
    )


def _lines(blob: bytes, path: Path) -> tuple[str, ...]:
    """The lines of a gzipped text file of limited size."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(blob)) as file:
            text = file.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataCorrupt(f"{path} is not a whole gzip file ({error}).") from None
    if len(text) > MAX_BYTES:
        raise DataCorrupt(f"{path} unpacks to more than {MAX_BYTES >> 20} MiB, so it is not what its name says.")
    try:
        lines = text.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataCorrupt(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}).") from None
    lines = [line.strip() for line in (lines[:-1] if lines[-1] == "" else lines)]
    if "" in lines or not lines:
        where = f"line {lines.index('') + 1} is empty" if lines else "it has no lines"
        raise DataCorrupt(f"{path}: {where}; each line must be a sentence.")
    return tuple(lines)
