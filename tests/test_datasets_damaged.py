"""Damaged and harmful files of the data sets: one error that names the file, in bounded time and memory."""

import gzip
import struct
import zlib

import numpy as np
import pytest

from datasets import DataCorrupt, membrane, ogb
from datasets.bccd import _boxes
from datasets.text import load_text

SPLIT = "0\ttrain\tgood\n1\ttrain\tbad\n2\ttest\tgood\n"


def text_files(root, documents, split):
    folder = root / "text" / "mr"
    folder.mkdir(parents=True)
    for name, content in (("clean.txt", documents), ("split.txt", split)):
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def test_texts_without_lines_are_refused(tmp_path):
    with pytest.raises(DataCorrupt, match=r"split.txt is empty"):
        load_text("MR", text_files(tmp_path, "", ""))


def test_the_mark_and_the_line_ends_of_an_editor_are_no_text(tmp_path):
    plain = load_text("MR", text_files(tmp_path / "a", "x y\nz\nx\n", SPLIT))
    edited = [("\ufeff" + text).replace("\n", "\r\n") for text in ("x y\nz\nx\n", SPLIT)]
    found = load_text("MR", text_files(tmp_path / "b", *edited))
    assert (found.documents, found.classes, found.labels.tolist()) == (
        plain.documents,
        ("bad", "good"),
        plain.labels.tolist(),
    )


def test_a_class_for_each_text_takes_linear_time(tmp_path):
    lines = [f"{i}\ttrain\tclass{i}\n" for i in range(500_000)]  # hours, if each class were searched for
    found = load_text("MR", text_files(tmp_path, "x\n" * (len(lines) + 1), "".join(lines) + "0\ttest\tclass5\n"))
    assert len(found.classes) == len(lines)


def test_a_document_type_is_refused_in_every_encoding(tmp_path):
    harmless = "<annotation></annotation>"
    entity = '<!DOCTYPE annotation [<!ENTITY a "RBC">]>' + harmless
    for encoding in ("utf-8", "utf-16"):
        text = f'<?xml version="1.0" encoding="{encoding}"?>'
        assert len(_boxes((text + harmless).encode(encoding), tmp_path)[0]) == 0
        with pytest.raises(DataCorrupt, match="a document type is not expected"):
            _boxes((text + entity).encode(encoding), tmp_path)


@pytest.mark.parametrize("size", [(512, 2**31 + 5), (14_000, 14_000), (0, 512)])
def test_a_slice_that_claims_too_many_pixels_is_refused(tmp_path, size):
    head = b"IHDR" + struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0)
    with pytest.raises(DataCorrupt, match=r"not a readable PNG|not a grey image"):
        membrane._grey(
            b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head)), tmp_path
        )


def test_damage_anywhere_in_a_gzip_file_is_named(tmp_path):
    path, whole = tmp_path / "train.csv.gz", gzip.compress(b"".join(b"%d\n" % i for i in range(300)))
    path.write_bytes(whole)
    assert ogb._numbers(path).tolist() == list(range(300))
    for i in range(0, len(whole), 5):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 0x5A]) + whole[i + 1 :])
        try:
            ogb._numbers(path)  # a flag that does not matter
        except DataCorrupt as error:
            assert str(path) in str(error)
    for text in (b"9" * 25, b"1.5\n", b"x\n", b"\xff\n"):
        path.write_bytes(gzip.compress(text))
        with pytest.raises(DataCorrupt, match="one whole number a line"):
            ogb._numbers(path)


def test_what_unpacks_to_more_than_any_file_has_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ogb, "MAX_BYTES", 2**20)
    monkeypatch.setattr(ogb, "MAX_LABEL_BYTES", 2**20)
    lines, labels = tmp_path / "train.csv.gz", tmp_path / "node-label.npz"
    lines.write_bytes(gzip.compress(b"1\n" * 2**20))
    with pytest.raises(DataCorrupt, match="unpacks to more than 1 MiB"):
        ogb._numbers(lines)
    np.savez_compressed(labels, node_label=np.zeros(2**20))
    with pytest.raises(DataCorrupt, match=r"unpacks to 8,388,736 bytes"):
        ogb._labels_of_archive(labels)


@pytest.mark.parametrize("values", [["a"], [1e30], [np.inf], [0.5], [1j], [None], [True]])
def test_labels_that_are_no_classes_are_refused(tmp_path, values):
    path = tmp_path / "node-label.npz"
    np.savez(path, node_label=np.array(values))
    with pytest.raises(DataCorrupt, match="an array node_label is expected"):
        ogb._labels_of_archive(path)
    np.savez(path, node_label=np.array([[3.0], [np.nan]]))
    assert ogb._labels_of_archive(path).tolist() == [3, -1]
