"""Data files of any writer are read; what they claim is bounded before it is allocated; errors say what to delete."""

import io
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets import DataCorrupt, DataUnavailable, cifar10, images, load, pickles, planetoid, root, superpixel_graph

ROOT = Path(cifar10.__file__).parents[1]
NAMES = [f"class {c}" for c in range(10)]
rng = np.random.default_rng(0)
PIXELS, LABELS = rng.integers(0, 256, (3, 3072), np.uint8), np.array([1, 9, 0])
BATCH = pickle.dumps({"data": PIXELS, "labels": [1, 2, 3]}, 4)


def cifar(folder, batch):
    folder.mkdir(parents=True)
    for name in cifar10.MD5:
        (folder / name).write_bytes(pickle.dumps({"label_names": NAMES}, 4) if name == "batches.meta" else batch)
    return folder


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", ["list", "array", "scalars", "bytes", "Fortran", "big-endian"])
def test_batches_of_every_protocol_and_writer(tmp_path, protocol, kind):
    labels = {
        "array": LABELS, "scalars": list(LABELS), "bytes": list(LABELS.astype(np.uint8)),
        "big-endian": LABELS.astype(">i4"),
    }.get(kind, LABELS.tolist())  # fmt: skip
    pixels = np.asfortranarray(PIXELS) if kind == "Fortran" else PIXELS
    cifar(tmp_path / cifar10.FOLDER, pickle.dumps({"data": pixels, "labels": labels}, protocol))
    data = cifar10.load_cifar10(tmp_path)
    assert np.array_equal(data.test_images.numpy().reshape(3, -1), PIXELS) and data.test_labels.tolist() == [1, 9, 0]


def test_numbers_are_checked():
    good = pickle.dumps([np.int64(3), np.float32(0.5), 7], 4)
    assert pickles.numbers(pickles.loads(good, "f"), "f") == [3, 0.5, 7]
    short = pickles.loads(good, "f")
    short[0].args = (short[0].args[0], b"abc")
    with pytest.raises(DataCorrupt, match=r"f holds a damaged number .*wrong number of bytes.*; delete it"):
        pickles.numbers(short, "f")
    with pytest.raises(DataCorrupt, match="damaged number"):
        pickles.numbers(pickles.loads(pickle.dumps([np.datetime64("2020")], 4), "f"), "f")


def tuples(depth):
    return b"\x80\x02)" + b"\x85" * depth


LITTLE_FILES = {
    "a bytearray of an exabyte": b"\x80\x05\x96" + (2**60).to_bytes(8, "little") + b".",
    "bytes of an exabyte": b"\x80\x04\x8e" + (2**60).to_bytes(8, "little") + b".",
    "a text of gigabytes": b"\x80\x02X\xff\xff\xff\x7f.",
    "a string of negative length": b"\x80\x02T\xff\xff\xff\xff.",
    "a frame of an exabyte": b"\x80\x04\x95" + (2**60).to_bytes(8, "little") + b"N.",
    "a long of gigabytes": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "a buffer elsewhere": b"\x80\x05\x97.",
    "a set": b"\x80\x04\x8f(K\x01\x90.",
    "a nested key": b"\x80\x02}" + tuples(300_000)[2:] + b"K\x01s.",
    "nested keys": b"\x80\x02}(" + tuples(300_000)[2:] + b"K\x01u.",
    "a dict of nested keys": b"\x80\x02(" + tuples(300_000)[2:] + b"K\x01d.",
    "a text encoded again and again": b"\x80\x02X\x00\x00\x01\x00" + b"a" * 65536 + b"q\x000"
    + b"c_codecs\nencode\nq\x010" + b"h\x01h\x00U\x06latin1\x86R0" * 50_000 + b"N.",
    "an unknown opcode": b"\x80\x02\xff.",
    "no end": b"\x80\x02N",
    "a long integer": b"\x80\x02I" + b"9" * 10_000 + b"\n.",
}  # fmt: skip


@pytest.mark.parametrize("what", LITTLE_FILES)
def test_what_a_pickle_claims_is_bounded_before_it_is_made(what):
    with pytest.raises(DataCorrupt, match=r"^f is .*(damaged|not a file of plain arrays).*\.$"):
        pickles.loads(LITTLE_FILES[what], "f")


def test_values_that_nest_without_end_recurse_nowhere():
    found = pickles.loads(tuples(300_000) + b".", "f")
    with pytest.raises(DataCorrupt, match="does not hold a dict of named fields"):
        pickles.text_keys(found, "f")
    for read in (pickles.array, pickles.csr):
        with pytest.raises(DataCorrupt, match="f holds a damaged"):
            read(found, "f")


def test_too_many_opcodes_are_refused(monkeypatch):
    monkeypatch.setattr(pickles, "MAX_OPCODES", 100)
    with pytest.raises(DataCorrupt, match="more than 100 opcodes"):
        pickles.loads(b"\x80\x02" + b"N0" * 60 + b"N.", "f")


def test_a_sparse_matrix_that_is_huge_when_dense_is_refused():
    sparse = pytest.importorskip("scipy.sparse")
    for shape in ((1, 2**40), (1, 2**25)):
        wide = pickle.dumps(sparse.csr_matrix(shape, dtype=np.float32), 2)
        assert len(wide) < 1000
        with pytest.raises(DataCorrupt, match="damaged sparse matrix"):
            pickles.csr(pickles.loads(wide, "f"), "f")


def test_a_list_that_stands_for_many_is_refused(tmp_path):
    """{0: l, 1: l, ...} with one long list l takes few bytes and lists many neighbours."""
    neighbours = [0] * 2000
    blob = pickle.dumps({k: neighbours for k in range(500)}, 2)
    assert len(blob) < 500 * 2000
    folder = tmp_path / "Planetoid" / "PubMed" / "raw"
    folder.mkdir(parents=True)
    rows = {"x": 3, "tx": 2, "allx": 520, "y": 3, "ty": 2, "ally": 520}
    for part, n in rows.items():
        width = 3 if part.endswith("y") else 4
        (folder / f"ind.pubmed.{part}").write_bytes(pickle.dumps(np.ones((n, width), np.float32), 2))
    (folder / "ind.pubmed.test.index").write_text("520\n521\n")
    (folder / "ind.pubmed.graph").write_bytes(blob)
    with pytest.raises(DataCorrupt, match="lists more neighbours than it has bytes"):
        planetoid.load_planetoid("PubMed", tmp_path)


def npz(claims, **arrays):
    """An .npz whose array "x" claims another shape."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": claims})
    members["x.npy"] = header.getvalue()
    with zipfile.ZipFile(out := io.BytesIO(), "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


@pytest.mark.parametrize("claims", [(2**40,), (2**20, 2**20), (10**30,)], ids=str)
def test_a_chunk_that_claims_more_than_it_has_is_built_again(tmp_path, claims):
    path = tmp_path / "0000000.npz"
    path.write_bytes(npz(claims, x=np.zeros(1), digest=np.array("x")))
    with pytest.warns(RuntimeWarning, match="0000000.npz is damaged; building it again"):
        assert images._read_chunk(path, 1) is None


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", r"truncated or damaged \(it is empty\); delete it"),
        (b"\n <!DOCTYPE html><html>Sign in</html>", "is a web page and not data; delete it"),
        (BATCH[:-900], r"truncated or damaged \(it ends too early\); delete it"),
        (pickle.dumps({"data": PIXELS, "labels": [1, 2, 3]}, 2)[:5000], r"damaged \(it ends too early\); delete it"),
    ],
    ids=["empty", "web page", "truncated 4", "truncated 2"],
)  # fmt: skip
def test_a_damaged_file_says_what_to_delete(tmp_path, content, says):
    path = cifar(tmp_path / cifar10.FOLDER, BATCH) / "data_batch_3"
    path.write_bytes(content)
    with pytest.raises(DataCorrupt, match=says) as caught:
        cifar10.load_cifar10(tmp_path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_far_too_large_is_not_read(tmp_path):
    path = cifar(tmp_path / cifar10.FOLDER, BATCH) / "data_batch_3"
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DataCorrupt, match="data_batch_3 has more than 256 MiB"):
        cifar10.load_cifar10(tmp_path)


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="needs an endless device")
def test_a_device_without_an_end_is_not_read_to_its_end():
    with pytest.raises(DataCorrupt, match="/dev/zero has more than 1 MiB"):
        root.read(Path("/dev/zero"), 1 << 20)
    with pytest.raises(DataCorrupt, match="cannot be read: embedded null"):
        root.read(Path("a\0b"))


def test_a_root_that_is_a_level_too_deep_is_recognised(tmp_path, monkeypatch):
    monkeypatch.setenv("GCONV_OFFLINE", "1")
    folder = cifar(tmp_path / cifar10.FOLDER, BATCH)
    assert load("cifar10", folder).content_hash == load("cifar10", tmp_path).content_hash
    (folder / "data_batch_1").unlink()
    with pytest.raises(DataUnavailable, match="missing: data_batch_1\n"):
        load("cifar10", folder)


@pytest.mark.data
def test_planetoid_of_a_root_too_deep(data_root):
    want = load("cora", data_root).content_hash
    for inner in ("Planetoid", "Planetoid/Cora", "Planetoid/Cora/raw"):
        assert load("cora", data_root / inner).content_hash == want


def archive(tmp_path, monkeypatch):
    source = cifar(tmp_path / "made" / cifar10.FOLDER, BATCH)
    place = tmp_path / "root"
    place.mkdir()
    with tarfile.open(place / cifar10.ARCHIVE, "w:gz") as tar:
        tar.add(source, cifar10.FOLDER)
    import hashlib

    monkeypatch.setattr(cifar10, "ARCHIVE_MD5", hashlib.md5((place / cifar10.ARCHIVE).read_bytes()).hexdigest())
    monkeypatch.setenv("GCONV_OFFLINE", "1")
    return place


def test_a_root_that_holds_only_the_archive_is_unpacked(tmp_path, monkeypatch):
    place = archive(tmp_path, monkeypatch)
    assert load("cifar10", place).content_hash == load("cifar10", tmp_path / "made").content_hash
    assert sorted(p.name for p in (place / cifar10.FOLDER).iterdir()) == sorted(cifar10.MD5)


def test_a_damaged_archive_is_named(tmp_path, monkeypatch):
    place = archive(tmp_path, monkeypatch)
    (place / cifar10.ARCHIVE).write_bytes(b"\x1f\x8b nothing")
    with pytest.raises(DataCorrupt, match=r"cifar-10-python.tar.gz does not have the checksum of .*; delete it"):
        load("cifar10", place)
    assert [p.name for p in place.iterdir()] == [cifar10.ARCHIVE]


def test_the_label_of_a_copy_is_checked_against_all_of_it(tmp_path, monkeypatch):
    cifar(tmp_path / cifar10.FOLDER, BATCH)
    monkeypatch.setattr(cifar10, "JPEG_COPY", load("cifar10", tmp_path).content_hash)
    assert load("cifar10", tmp_path).label.startswith("CIFAR-10, JPEG copy")
    (tmp_path / cifar10.FOLDER / "data_batch_1").write_bytes(pickle.dumps({"data": PIXELS, "labels": [1, 2, 4]}, 4))
    assert load("cifar10", tmp_path).label.startswith("CIFAR-10, not the official bytes")


@pytest.mark.slow
def test_an_ascii_terminal_prints_what_it_can(tmp_path):
    place = tmp_path / "dätä"
    cifar(place / cifar10.FOLDER, BATCH)
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "datasets", "cifar10", "--data-root", str(place)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0 and r"d\xe4t\xe4" in done.stdout, done.stderr


def oblique():
    """Black and white, 28 x 28, with an oblique edge."""
    row, column = np.mgrid[:28, :28]
    return torch.from_numpy((row * 0.6 + column > 20).astype(np.float32))


@pytest.mark.parametrize("channels", ["grey", "grey and alpha", "RGB and alpha"])
def test_superpixels_are_the_same_however_an_image_is_stored(channels):
    grey = oblique()
    opaque = torch.ones_like(grey)
    held = {"grey": [grey], "grey and alpha": [grey, opaque], "RGB and alpha": [grey, grey, grey, opaque]}[channels]
    want, got = superpixel_graph(torch.stack([grey] * 3), segments=30), superpixel_graph(torch.stack(held), segments=30)
    assert torch.equal(got.pos, want.pos) and torch.equal(got.edge_index, want.edge_index)
    assert bool(((got.x[:, 0] == 0) | (got.x[:, 0] == 1)).all()), "no patch mixes black and white"


def test_superpixels_follow_alpha_and_other_channels():
    flat, edge = torch.full((28, 28), 0.5), oblique()
    for held in ([flat, edge], [flat, flat, flat, edge], [flat, edge, flat, flat, flat]):
        patches = superpixel_graph(torch.stack(held), segments=30).x
        values = patches[:, [h is edge for h in held].index(True)]
        assert bool(((values == 0) | (values == 1)).all())
