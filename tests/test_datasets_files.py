"""CIFAR-10 and Planetoid files: what they hold comes out, and nothing in them is ever run."""

import hashlib
import io
import os
import pickle
import shutil
import tarfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets import DataCorrupt, DataUnavailable, channel_stats, cifar10, normalise, pickles, planetoid, root

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("GCONV_OFFLINE", "1")


def real(name):
    """The folder `name` of the real data, or a skip that says why."""
    if not os.environ.get("GCONV_DATA"):
        pytest.skip("GCONV_DATA is not set: the real data is not here")
    folder = Path(os.environ["GCONV_DATA"]) / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return folder


# ---------------------------------------------------------------------------------------------------------- CIFAR-10


def write_cifar(data_root, per_batch=3, protocol=4, seed=0):
    folder = data_root / cifar10.FOLDER
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for name in list(cifar10.MD5)[:6]:
        pixels = rng.integers(0, 256, (per_batch, 3072), dtype=np.uint8)
        batch = {"data": pixels, "labels": rng.integers(0, 10, per_batch).tolist(), "batch_label": name}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=protocol))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": NAMES, "num_vis": 3072}, protocol=protocol))
    return folder


def python2_batch(pixels, labels):
    """Opcodes as Python 2's cPickle wrote them in the official archive: every string a byte string."""

    def text(value):
        return b"U" + bytes([len(value)]) + value.encode()

    rows = len(pixels).to_bytes(2, "little")
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text("b") + b"\x87R(K\x01M" + rows
        + b"M\x00\x0c\x86cnumpy\ndtype\n" + text("u1") + b"K\x00K\x01\x87R(K\x03" + text("|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T" + pixels.nbytes.to_bytes(4, "little")
        + pixels.tobytes() + b"tb"
    )  # fmt: skip
    numbers = b"](" + b"".join(b"K" + bytes([y]) for y in labels) + b"e"
    fields = text("batch_label") + text("testing batch 1 of 1") + text("labels") + numbers + text("data") + array
    return b"\x80\x02}(" + fields + b"u."


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_cifar_gives_back_what_was_written(tmp_path, protocol):
    folder = write_cifar(tmp_path, protocol=protocol)
    data = cifar10.load_cifar10(tmp_path)
    written = [pickle.loads((folder / name).read_bytes()) for name in list(cifar10.MD5)[:6]]
    expected = np.concatenate([b["data"] for b in written[:5]]).reshape(-1, 3, 32, 32)
    assert np.array_equal(data.train_images, expected)
    assert data.train_labels.tolist() == [y for b in written[:5] for y in b["labels"]]
    assert np.array_equal(data.test_images.reshape(3, -1), written[5]["data"])
    assert data.classes == tuple(NAMES)
    assert data.official is False
    assert data.label == "CIFAR-10, not the official bytes (15 + 3 images)"


def test_cifar_hash_names_the_images_not_the_pickle(tmp_path):
    hashes = []
    for place, options in (("a", {}), ("b", {"protocol": 2}), ("c", {"seed": 1})):
        write_cifar(tmp_path / place, **options)
        hashes.append(cifar10.load_cifar10(tmp_path / place).content_hash)
    assert hashes[0] == hashes[1] != hashes[2]


def test_cifar_reads_python_2_and_bytes_keys(tmp_path):
    folder = write_cifar(tmp_path)
    pixels = np.arange(2 * 3072).astype(np.uint8).reshape(2, 3072)
    (folder / "test_batch").write_bytes(python2_batch(pixels, [7, 0]))
    (folder / "data_batch_1").write_bytes(pickle.dumps({b"data": pixels, b"labels": np.array([1, 2])}, protocol=3))
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [n.encode() for n in NAMES]}))
    data = cifar10.load_cifar10(tmp_path)
    assert np.array_equal(data.test_images.reshape(2, -1), pixels)
    assert data.test_labels.tolist() == [7, 0]
    assert data.train_labels[:2].tolist() == [1, 2]
    assert data.classes == tuple(NAMES)


def test_cifar_knows_the_official_bytes_and_one_changed_byte(tmp_path, monkeypatch):
    folder = write_cifar(tmp_path)
    md5 = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in cifar10.MD5}
    monkeypatch.setattr(cifar10, "MD5", md5)
    data = cifar10.load_cifar10(tmp_path)
    assert data.official is True and data.label == "CIFAR-10" and cifar10.URL in data.source
    blob = bytearray((folder / "data_batch_3").read_bytes())
    blob[len(blob) // 2] ^= 1
    (folder / "data_batch_3").write_bytes(blob)
    data = cifar10.load_cifar10(tmp_path)
    assert data.official is False and data.label.startswith("CIFAR-10, not the official bytes")


def test_cifar_limit_cuts_and_says_so(tmp_path):
    write_cifar(tmp_path)
    whole, cut = cifar10.load_cifar10(tmp_path), cifar10.load_cifar10(tmp_path, limit=2)
    assert torch.equal(cut.train_images, whole.train_images[:2]) and len(cut.test_labels) == 2
    assert cut.label == whole.label + ", first 2" and cut.content_hash == whole.content_hash


def test_cifar_missing_file_is_named(tmp_path):
    folder = write_cifar(tmp_path)
    (folder / "data_batch_4").unlink()
    with pytest.raises(DataUnavailable, match="missing: data_batch_4\n"):
        cifar10.load_cifar10(tmp_path)


BAD_BATCHES = {
    "empty": b"",
    "text": b"<html>404</html>",
    "a list": pickle.dumps([1, 2]),
    "no labels": pickle.dumps({"data": np.zeros((1, 3072), np.uint8)}, protocol=4),
    "float pixels": pickle.dumps({"data": np.zeros((1, 3072)), "labels": [0]}, protocol=4),
    "narrow": pickle.dumps({"data": np.zeros((1, 3071), np.uint8), "labels": [0]}, protocol=4),
    "no images": pickle.dumps({"data": np.zeros((0, 3072), np.uint8), "labels": []}, protocol=4),
    "flat": pickle.dumps({"data": np.zeros(3072, np.uint8), "labels": [0]}, protocol=4),
    "label 10": pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}, protocol=4),
    "label -1": pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [-1]}, protocol=4),
    "text label": pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": ["cat"]}, protocol=4),
    "too few labels": pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}, protocol=4),
    "data is text": pickle.dumps({"data": "x", "labels": [1]}, protocol=4),
    "objects": pickle.dumps({"data": np.array([[None]]), "labels": [1]}, protocol=4),
}


@pytest.mark.parametrize("what", BAD_BATCHES)
def test_cifar_bad_batch_is_named(tmp_path, what):
    path = write_cifar(tmp_path) / "data_batch_2"
    path.write_bytes(BAD_BATCHES[what])
    with pytest.raises(DataCorrupt, match="data_batch_2"):
        cifar10.load_cifar10(tmp_path)


def test_cifar_truncated_anywhere_is_corrupt(tmp_path):
    path = write_cifar(tmp_path, per_batch=1) / "test_batch"
    blob = path.read_bytes()
    for size in (1, 2, 40, len(blob) // 2, len(blob) - 1):
        path.write_bytes(blob[:size])
        with pytest.raises(DataCorrupt, match="test_batch"):
            cifar10.load_cifar10(tmp_path)


def test_cifar_meta_must_have_ten_names(tmp_path):
    folder = write_cifar(tmp_path)
    for meta in ({"label_names": NAMES[:9]}, {"label_names": list(range(10))}, {}):
        (folder / "batches.meta").write_bytes(pickle.dumps(meta))
        with pytest.raises(DataCorrupt, match=r"batches\.meta"):
            cifar10.load_cifar10(tmp_path)


def serve_archive(monkeypatch, tmp_path, members):
    """Stand in for the network: `fetch` leaves an archive of {name: bytes} (or of prepared TarInfo) in the scratch."""

    def fetch(url, folder, known_hash):
        assert known_hash == f"md5:{cifar10.ARCHIVE_MD5}"
        path = folder / "cifar-10-python.tar.gz"
        with tarfile.open(path, "w:gz") as tar:
            for name, blob in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(blob)
                tar.addfile(info, io.BytesIO(blob))
        return path

    monkeypatch.delenv("GCONV_OFFLINE")
    monkeypatch.setattr(cifar10, "fetch", fetch)


def test_cifar_archive_is_unpacked_into_place(monkeypatch, tmp_path):
    source = write_cifar(tmp_path / "source")
    members = {f"{cifar10.FOLDER}/{p.name}": p.read_bytes() for p in source.iterdir()}
    serve_archive(monkeypatch, tmp_path, members)
    data = cifar10.load_cifar10(tmp_path / "new")
    assert data.content_hash == cifar10.load_cifar10(tmp_path / "source").content_hash
    assert sorted(p.name for p in (tmp_path / "new").rglob("*")) == sorted([cifar10.FOLDER, *cifar10.MD5])


@pytest.mark.parametrize("name, says", [("../../evil", "outside"), ("/evil", "data_batch_1"), ("x", "data_batch_1")])
def test_cifar_archive_cannot_write_outside(monkeypatch, tmp_path, name, says):
    serve_archive(monkeypatch, tmp_path, {name: b"evil"})
    with pytest.raises(DataUnavailable, match=says):
        cifar10.load_cifar10(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_channel_stats_match_numpy_and_normalise_undoes_them():
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (20, 3, 8, 8), dtype=np.uint8))
    mean, std = channel_stats(images)
    scaled = images.double() / 255
    assert torch.allclose(mean.double(), scaled.mean((0, 2, 3)), atol=1e-7)
    assert torch.allclose(std.double(), scaled.std((0, 2, 3), correction=0), atol=1e-7)
    out = normalise(images, mean, std)
    assert out.dtype == torch.float32 and out.mean((0, 2, 3)).abs().max() < 1e-5
    assert (out.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-5
    with pytest.raises(ValueError, match="uint8"):
        channel_stats(images.float())


@pytest.mark.data
def test_cifar_real():
    folder = real(cifar10.FOLDER)
    data = cifar10.load_cifar10(folder.parent)
    assert data.train_images.shape == (50_000, 3, 32, 32) and data.test_images.shape == (10_000, 3, 32, 32)
    assert data.train_labels.bincount().tolist() == [5000] * 10 and data.test_labels.bincount().tolist() == [1000] * 10
    mean, std = channel_stats(data.train_images)
    assert torch.allclose(mean, torch.tensor([0.4914, 0.4822, 0.4465]), atol=2e-3)  # the well-known statistics
    assert torch.allclose(std, torch.tensor([0.2470, 0.2435, 0.2616]), atol=4e-3)
    assert data.official or data.label in ("CIFAR-10, JPEG copy", "CIFAR-10, not the official bytes")


# ----------------------------------------------------------------------------------------------------- hostile pickles


class Run:
    """Unpickling an instance would create the file `ran`."""

    def __reduce__(self):
        return os.system, ("touch ran",)


class Remove(Run):
    def __reduce__(self):
        return exec, ("open('ran', 'w').close()",)


HOSTILE = {
    "os.system": pickle.dumps(Run()),
    "in a field": pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [Run()]}),
    "as a key": b"\x80\x02}cposix\nsystem\nU\ttouch ran\x85RK\x01s.",
    "protocol 0": pickle.dumps(Run(), protocol=0),
    "exec": pickle.dumps(Remove()),
    "inst": b"(S'touch ran'\nios\nsystem\n.",
    "object": b"(cos\nsystem\nS'touch ran'\no.",
    "dotted": b"\x80\x04\x8c\x05numpy\x8c\x09os.system\x93\x8c\x09touch ran\x85R.",
    "allowed module": b"cnumpy\nload\n(S'ran'\ntR.",
    "builtins.getattr": b"cbuiltins\ngetattr\n(cnumpy\nndarray\nS'__class__'\ntR.",
    "extension": b"\x80\x02\x82\x01.",
    "persistent": b"Pran\n.",
    "state on a class": b"cnumpy\nndarray\n}U\x04args}sb.",
    "state on a dict": b"ccollections\ndefaultdict\n)R}U\x01a}sb.",
    "other encoding": b"c_codecs\nencode\n(U\x01aU\x04zliibtR.",
    "memo bomb": b"\x80\x02K\x01r\xff\xff\xff\x7f0.",
    "length bomb": b"\x80\x04\x96\xff\xff\xff\xff\xff\xff\xff\x7f.",
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_pickles_are_refused_and_not_run(tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    path = write_cifar(tmp_path) / "data_batch_1"
    path.write_bytes(HOSTILE[what])
    with pytest.raises(DataCorrupt, match="data_batch_1"):
        cifar10.load_cifar10(tmp_path)
    assert not Path("ran").exists()
    pixels = np.zeros((1, 3072), np.uint8)  # and the reader still works after it
    assert pickles.array(pickles.loads(pickle.dumps(pixels, 4), "x"), "x").shape == pixels.shape


@pytest.mark.parametrize("what", ["os.system", "protocol 0", "exec", "inst", "object"])
def test_negative_control_plain_pickle_runs_them(tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    pickle.loads(HOSTILE[what])
    assert Path("ran").exists()


def state(shape=(2,), code="u1", order="|", raw=b"ab", fortran=False):
    record, dtype = pickles._Array(), pickles._Dtype(code, 0, 1)
    dtype.state = (3, order, None, None, None, -1, -1, 0)
    record.state = (1, shape, dtype, fortran, raw)
    return record


@pytest.mark.parametrize(
    "changes",
    [{"shape": (3,)}, {"shape": (10**15,)}, {"shape": (-2, -1)}, {"shape": ("2",)}, {"shape": None}, {"code": "O8"},
     {"code": "V2"}, {"code": "u1,u1"}, {"order": "?"}, {"raw": [1, 2]}, {"raw": "\u20ac\u20ac"}],
)  # fmt: skip
def test_array_records_are_checked(changes):
    assert pickles.array(state(), "f").tolist() == [97, 98]
    with pytest.raises(DataCorrupt, match="damaged array"):
        pickles.array(state(**changes), "f")


def test_arrays_of_every_layout_survive():
    for value in (
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3)),
        np.ones(()),
    ):
        for protocol in (0, 2, 4):
            got = pickles.array(pickles.loads(pickle.dumps(value, protocol), "f"), "f")
            assert np.array_equal(got, value) and got.dtype.isnative and got.flags.writeable


# ----------------------------------------------------------------------------------------------------------- Planetoid


def write_planetoid(data_root, name="CiteSeer", gap=True, seed=0):
    """A small citation graph in Planetoid's files, with duplicate edges, self-loops and skipped test nodes."""
    scipy_sparse = pytest.importorskip("scipy.sparse")
    rng, classes = np.random.default_rng(seed), planetoid.CLASSES[name]
    train, rest, test = 2 * classes, 540, 9
    skipped = 2 if gap else 0
    numbers = rng.permutation(np.delete(np.arange(rest, rest + test + skipped), [3, 5][:skipped]))
    n = rest + test + skipped

    def labels(count):
        return np.eye(classes, dtype=np.int32)[rng.integers(0, classes, count)]

    def words(count):
        return scipy_sparse.csr_matrix((rng.random((count, 30)) < 0.1).astype(np.float32))

    allx, ally, graph = words(rest), labels(rest), defaultdict(list)
    for a, b in rng.integers(0, n, (900, 2)).tolist():
        graph[a].append(b)
        graph[b].append(a)
    graph[0] += [0, 1, 1]
    graph[1] += [0]
    parts = dict(x=allx[:train], tx=words(test), allx=allx, y=ally[:train], ty=labels(test), ally=ally, graph=graph)
    folder = data_root / "Planetoid" / name / "raw"
    folder.mkdir(parents=True)
    for part, value in parts.items():
        (folder / f"ind.{name.lower()}.{part}").write_bytes(pickle.dumps(value, protocol=2))
    (folder / f"ind.{name.lower()}.test.index").write_text("".join(f"{i}\n" for i in numbers))
    return folder


def assert_equals_pyg(raw, tmp_path):
    """Our reading of a raw folder equals torch_geometric's of a copy of it."""
    from torch_geometric.datasets import Planetoid

    name = raw.parent.name
    ours = planetoid.load_planetoid(name, raw.parents[2])
    copied = tmp_path / "pyg" / name / "raw"
    copied.mkdir(parents=True)
    for path in raw.iterdir():
        shutil.copyfile(path, copied / path.name)
    theirs = Planetoid(str(tmp_path / "pyg"), name)[0]
    assert sorted(ours.data.keys()) == sorted(theirs.keys())
    for key in theirs.keys():  # noqa: SIM118 (a Data, not a dict)
        assert torch.equal(ours.data[key], theirs[key]), key
        assert ours.data[key].dtype == theirs[key].dtype, key
    assert sorted(p.name for p in raw.parent.iterdir()) == ["raw"]  # nothing was written beside the files
    return ours


@pytest.mark.parametrize("name, gap", [("Cora", False), ("CiteSeer", True), ("PubMed", False)])
def test_planetoid_equals_pyg_on_small_files(tmp_path, name, gap):
    ours = assert_equals_pyg(write_planetoid(tmp_path, name, gap), tmp_path)
    assert ours.official is (None if name == "PubMed" else False)
    assert ours.label == (name if name == "PubMed" else f"{name}, not the official bytes")
    masks = torch.stack([ours.data.train_mask, ours.data.val_mask, ours.data.test_mask]).int()
    assert masks.sum(0).max() == 1
    assert masks.sum(1).tolist() == [2 * planetoid.CLASSES[name], 500, 9]


@pytest.mark.data
@pytest.mark.parametrize("name, shape", [("Cora", (2708, 10556, 1433)), ("CiteSeer", (3327, 9104, 3703))])
def test_planetoid_equals_pyg_on_the_real_files(tmp_path, name, shape):
    ours = assert_equals_pyg(real(f"Planetoid/{name}/raw"), tmp_path)
    assert (ours.data.num_nodes, ours.data.num_edges, ours.data.num_features) == shape
    assert ours.official is True and ours.label == name
    assert ours.data.is_undirected()


def test_planetoid_hash_follows_the_bytes(tmp_path):
    hashes = []
    for place, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_planetoid(tmp_path / place, seed=seed)
        hashes.append(planetoid.load_planetoid("CiteSeer", tmp_path / place).content_hash)
    assert hashes[0] == hashes[1] != hashes[2]


def test_planetoid_missing_files_are_named_before_anything_is_read(tmp_path):
    folder = write_planetoid(tmp_path)
    (folder / "ind.citeseer.ty").unlink()
    (folder / "ind.citeseer.x").write_bytes(b"junk")
    with pytest.raises(DataUnavailable, match=r"missing: ind\.citeseer\.ty\n"):
        planetoid.load_planetoid("CiteSeer", tmp_path)


def dump(value):
    return pickle.dumps(value, protocol=2)


BAD_PARTS = {
    "hostile graph": ("graph", pickle.dumps({0: [Run()]})),
    "hostile features": ("allx", HOSTILE["os.system"]),
    "truncated": ("tx", None),
    "swapped": ("x", dump({1: [2]})),
    "features of another width": ("tx", dump(np.zeros((9, 31), np.float32))),
    "labels of another length": ("ally", dump(np.zeros((3, 6), np.int32))),
    "too few classes": ("ty", dump(np.zeros((9, 5), np.int32))),
    "flat labels": ("y", dump(np.zeros(12, np.int32))),
    "graph is a list": ("graph", dump([[1], [0]])),
    "graph of text": ("graph", dump({0: ["1"]})),
    "graph of dicts": ("graph", dump({0: {1: 1}})),
    "negative node": ("graph", dump({0: [-1]})),
    "node out of range": ("graph", dump({0: [100_000]})),
    "key out of range": ("graph", dump({100_000: [0]})),
    "index of words": ("test.index", b"one\ntwo\n"),
    "index too short": ("test.index", b"540\n"),
    "index repeats": ("test.index", b"540\n" * 9),
    "index far away": ("test.index", "\n".join(map(str, [*range(540, 548), 10**12])).encode()),
    "index huge": ("test.index", b"9" * 40),
}


@pytest.mark.parametrize("what", BAD_PARTS)
def test_planetoid_bad_part_is_named(tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    part, blob = BAD_PARTS[what]
    path = write_planetoid(tmp_path) / f"ind.citeseer.{part}"
    path.write_bytes(path.read_bytes()[:-20] if blob is None else blob)
    with pytest.raises(DataCorrupt, match=part if what != "labels of another length" else "allx"):
        planetoid.load_planetoid("CiteSeer", tmp_path)
    assert not Path("ran").exists()


def test_csr_claims_are_checked():
    sparse = pytest.importorskip("scipy.sparse")
    good = sparse.csr_matrix(np.diag([1.0, 2.0, 3.0]).astype(np.float32))
    record = pickles.loads(dump(good), "f")
    assert np.array_equal(pickles.csr(record, "f"), good.toarray())
    for key, value in (
        ("_shape", (3, 10**9)), ("_shape", (4, 3)), ("_shape", (3, 2)), ("_shape", "33"), ("_shape", (3,)),
        ("indices", state()), ("indptr", pickles.loads(dump(np.array([0, 3, 1, 3], np.int32)), "f")),
        ("indices", pickles.loads(dump(np.array([0, -1, 2], np.int32)), "f")), ("data", None),
    ):  # fmt: skip
        bad = pickles.loads(dump(good), "f")
        bad.state[key] = value
        with pytest.raises(DataCorrupt, match="f holds a damaged"):
            pickles.csr(bad, "f")


def test_planetoid_download_asks_for_pinned_checksums(tmp_path, monkeypatch):
    source, asked = write_planetoid(tmp_path / "source", "Cora", gap=False), {}

    def fetch(url, folder, known_hash):
        file = url.removeprefix(planetoid.URL)
        asked[file] = known_hash
        return Path(shutil.copyfile(source / file, folder / file))

    monkeypatch.delenv("GCONV_OFFLINE")
    monkeypatch.setattr(planetoid, "fetch", fetch)
    data = planetoid.load_planetoid("Cora", tmp_path / "new")
    assert data.content_hash == planetoid.load_planetoid("Cora", tmp_path / "source").content_hash
    assert asked == {f"ind.cora.{part}": "sha256:" + planetoid.SHA256[f"ind.cora.{part}"] for part in planetoid.PARTS}


def test_an_unreadable_file_is_corrupt_not_a_traceback(tmp_path, monkeypatch):
    folder = write_planetoid(tmp_path)

    def refuse(path, mode):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(root.Path, "open", refuse)
    with pytest.raises(DataCorrupt, match=f"{folder}.*cannot be read: Permission denied"):
        planetoid.load_planetoid("CiteSeer", tmp_path)
