"""Graphs on disk and products streamed from there: equal to those in memory, whatever stops them on the way."""

import gzip
import itertools
import os
import pickle
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader

from gconv import GConv, Graph
from gconv.__main__ import main
from gconv.external import DiskError, DiskGraph, Rows, features_from_text, infer, propagate
from gconv.external import files as files_module
from gconv.external import graph as graph_module
from gconv.external import network as external_network
from gconv.kernels import native
from gconv.laplacian import adjacency
from gconv.operators import appnp, cheb, gat, gcn, graphconv, lightgcn, sage, simple
from tests.limits import LIMIT, forked, processes

MEMORY = "8GB"  # of this process, in which other tests ran
ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder():
    """In memory, where the system has such a place: the disk is not what these tests are about."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as path:
        yield Path(path)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """What a disk confirms survives the machine, which these tests do not end."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


def small_buckets(monkeypatch, edges=7):
    """Chunks and buckets of a few edges."""
    monkeypatch.setattr(graph_module, "MAX_CHUNK", edges)
    monkeypatch.setattr(graph_module, "MAX_SORTED", edges)


def build(folder, edges, nodes=None, **options):
    return DiskGraph.build(folder, edges, nodes, memory=MEMORY, **options)


def rows_of(graph):
    """Pairs (row, column) and the numbers of self-loops."""
    crow, col = np.load(graph.path / "crow.npy"), np.load(graph.path / "col.npy")
    loops = np.load(graph.path / "loops.npy") if graph.loops else np.zeros(graph.nodes, np.int32)
    return np.repeat(np.arange(graph.nodes), np.diff(crow)).tolist(), col.tolist(), loops.tolist()


@st.composite
def graphs(draw):
    """Few nodes and many edges: repeated ones, self-loops, empty rows, isolated nodes, none at all."""
    n = draw(st.integers(1, 9))
    edges = draw(st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=40))
    return torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).T.contiguous(), n


COUNT = itertools.count()
PROPERTY = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@PROPERTY
@given(
    graph=graphs(),
    norm=st.sampled_from(["sym", "row", None]),
    loops=st.booleans(),
    alpha=st.sampled_from([0.0, 0.25]),
    channels=st.integers(1, 5),
    slab=st.integers(1, 5),
    block=st.integers(1, 12),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    compiled=st.booleans(),
)
def test_a_streamed_product_is_that_in_memory(
    folder, monkeypatch, graph, norm, loops, alpha, channels, slab, block, dtype, compiled
):
    edges, n = graph
    folder = folder / str(next(COUNT))
    x = torch.randn(n, channels, dtype=dtype)
    with monkeypatch.context() as patch:
        if not compiled:
            patch.setattr(native, "LIBRARY", None)
        disk = build(folder / "graph", edges, n)
        powers = propagate(
            disk, x, 3, folder / "out", norm=norm, loops=loops, alpha=alpha, memory=MEMORY, slab=slab, block=block
        )
    S = adjacency(Graph(edges, n), torch.float64, loops="fill" if loops else "keep", norm=norm)
    z = x.double()
    for power in powers:
        z = (1 - alpha) * S.expand(z)[0] + alpha * x
        assert power.dtype == np.dtype(str(dtype).split(".")[1]) and power.shape == x.shape
        torch.testing.assert_close(torch.tensor(power).double(), z, rtol=1e-5, atol=1e-5 * float(z.abs().max()))


@PROPERTY
@given(graph=graphs(), undirected=st.booleans(), drop=st.booleans(), edges_at_once=st.integers(1, 60))
def test_buckets_hold_each_edge(folder, monkeypatch, graph, undirected, drop, edges_at_once):
    edges, n = graph
    want = [(j, i) for i, j in edges.T.tolist()]
    want += [(i, j) for i, j in edges.T.tolist() if i != j and undirected]
    want = sorted(set(want) if drop else want)
    with monkeypatch.context() as patch:
        small_buckets(patch, edges_at_once)
        folder, options = (
            folder / str(next(COUNT)),
            {"undirected": undirected, "duplicates": "drop" if drop else "keep"},
        )
        try:
            disk = build(folder, edges, n, **options)
        except ValueError as error:  # a row that is longer than a bucket
            assert "which do not fit in memory; give memory=" in str(error)
            assert max(np.bincount([row for row, _ in want])) > edges_at_once or drop
            return
    row, col, loops = rows_of(disk)
    assert list(zip(row, col, strict=True)) == [(i, j) for i, j in want if i != j]
    assert loops == [sum(pair == (i, i) for pair in want) for i in range(n)]
    assert disk.num_edges == len(want)


LAYERS = [
    (gcn(4, 3, bias=False), {}),
    (gcn(4, 3, bias=False, add_self_loops=False), {"loops": False}),
    (sage(4, 3, root_weight=False, bias=False), {"norm": "row", "loops": False}),
    (sage(4, 3, aggr="sum", root_weight=False, bias=False), {"norm": None, "loops": False}),
    (lightgcn(), {"loops": False}),
    (simple(), {"norm": None, "loops": False}),
    (appnp(k=3, alpha=0.2), {"k": 3, "alpha": 0.2}),
]


@pytest.mark.parametrize(("spec", "options"), LAYERS, ids=[str(spec) for spec, _ in LAYERS])
def test_scalings_are_those_of_the_layers(tmp_path, spec, options):
    torch.manual_seed(0)
    edges, x, layer = torch.randint(50, (2, 300)), torch.randn(50, 4), GConv(spec)
    last = propagate(
        build(tmp_path / "g", edges, 50), x, options.pop("k", 1), tmp_path / "y", memory=MEMORY, **options
    )[-1]
    y = torch.tensor(last)
    torch.testing.assert_close(y if layer.weight is None else y @ layer.weight[0], layer(x, Graph(edges, 50)))


def test_results_do_not_depend_on_threads_slabs_or_blocks(tmp_path):
    torch.manual_seed(0)
    disk, x = build(tmp_path / "g", torch.randint(200, (2, 3000)), 200), torch.randn(200, 5)
    before, found = torch.get_num_threads(), []
    try:
        for threads, slab, block in [(1, None, None), (2, None, None), (1, None, 100), (2, 5, 7)]:
            torch.set_num_threads(threads)
            out = tmp_path / f"{threads}-{slab}-{block}"
            found.append(np.array(propagate(disk, x, 2, out, memory=MEMORY, slab=slab, block=block)[-1]))
    finally:
        torch.set_num_threads(before)
    assert all(np.array_equal(found[0], other) for other in found[1:3])
    np.testing.assert_allclose(found[0], found[3], rtol=1e-4, atol=1e-6)  # rows cut into pieces


# -- what edges are read from --------------------------------------------------------------------------------------


def written(folder, kind, edges):
    """The file of a kind that holds edges (2, e)."""
    path = folder / f"edges{kind}"
    text = "".join(f"{u}{',' if 'csv' in kind else ' '}{v}\n" for u, v in edges.T)
    if kind == ".npy":
        np.save(path, edges)
    elif kind == ".T.npy":
        np.save(path, np.ascontiguousarray(edges.T.astype("i4")))
    elif kind == ".F.npy":
        np.save(path, np.asfortranarray(edges))
    elif kind in (".npz", ".zip.npz"):
        (np.savez if kind == ".npz" else np.savez_compressed)(path, edge_index=edges, other=np.zeros(2))
    elif kind in (".i32", ".i64"):
        edges.T.astype(f"<i{int(kind[2:]) // 8}").tofile(path)
    elif kind.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(f"# a comment\n\n{text}" if kind == ".edges" else text)
    return path


@pytest.mark.parametrize(
    "kind",
    [".npy", ".T.npy", ".F.npy", ".npz", ".zip.npz", ".i32", ".i64", ".txt", ".csv", ".edges", ".csv.gz", ".tsv"],
)
def test_every_format_gives_the_same_graph(tmp_path, monkeypatch, kind):
    edges = np.random.default_rng(0).integers(0, 30, (2, 70))
    want = rows_of(build(tmp_path / "want", torch.from_numpy(edges)))
    small_buckets(monkeypatch, 40)
    path = written(tmp_path, kind, edges)
    assert rows_of(build(tmp_path / "graph", path)) == want
    assert rows_of(build(tmp_path / "graph", str(path))) == want  # opened


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 1\n1 2\nx 3\n", r"edges.txt, line 3: an edge must be two integers, but the line is 'x 3'"),
        ("source,target\n1,2\n", r"line 1: .* the line is 'source,target' \(if it is a header, delete it\)"),
        ("\ufeff# x\n1,2\n1,x\n", r"line 3: an edge must be two integers, but the line is '1,x'"),
        ("0 1\n\n2\n", r"line 3: an edge must be two integers, but the line is '2'"),
        ("0,1\n,2\n", r"line 2: an edge must be two"),
        ("0,1\n1,,2\n", r"line 2: an edge must be two"),
        ("0 1\n1 2 0.5\n", r"line 2: .*weights are not supported: keep the first two"),
        ("0 1\n1 2.5\n", r"line 2: an edge must be two"),
        ("0 1\n1 99999999999999999999\n", r"line 2: an edge must be two"),
        ("0 1\n# more\n1 -2\n", r"edges.txt, line 3: the edge is 1 -> -2, but indices must not be negative"),
        ("0 1\n1 7\n", r"edges.txt, line 2: the edge is 1 -> 7, but with 5 nodes, indices must be from 0 to 4"),
        ("0 1\n1 2\n0 1\n", r"edges.txt, line 3: the edge 0 -> 1 is repeated; duplicates=\"drop\""),
    ],
)
def test_a_bad_line_is_named(tmp_path, text, message):
    (tmp_path / "edges.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        build(tmp_path / "graph", tmp_path / "edges.txt", 5, duplicates="refuse")
    with pytest.raises(DiskError, match=r"is not finished|no graph"):
        DiskGraph.open(tmp_path / "graph")
    (tmp_path / "edges.txt").write_text("0 1\n1 2\n")  # the corrected file goes into the same folder
    assert build(tmp_path / "graph", tmp_path / "edges.txt", 5, duplicates="refuse").nodes == 5


@pytest.mark.parametrize(
    ("kind", "place"),
    [(".npy", r"edge 5 \(byte 168\)"), (".T.npy", r"edge 5 \(byte 168\)"), (".i64", r"edge 5 \(byte 80\)")],
)
@pytest.mark.parametrize("value", [-1, 10, 2**40])
def test_a_bad_number_is_named(tmp_path, kind, place, value):
    edges = np.zeros((2, 9), np.int64)
    edges[1, 5] = value if kind != ".T.npy" or value < 2**31 else 2**31 - 2
    with pytest.raises(ValueError, match=rf"edges{kind}, {place}: the edge is 0 -> {edges[1, 5]}, but"):
        build(tmp_path / "graph", written(tmp_path, kind, edges), 10)


def test_files_that_hold_no_edges_are_refused(tmp_path):
    def refused(name, content, message, error=ValueError):
        path = tmp_path / name
        path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)
        with pytest.raises(error, match=message):
            build(tmp_path / "graph", path)

    refused("a.npy", np.zeros((2, 3)), r"edges must be integers of shape \(2, e\) or \(e, 2\), but they are float64")
    refused("b.npy", np.zeros((3, 3), int), "edges must be integers of shape")
    refused("c.npy", b"text", "is not a .npy file")
    refused("d.npz", b"text", "is not a .npz archive")
    refused("e.i32", bytes(12), "is not a multiple of 8: it is truncated after byte 8")
    refused("f.parquet", b"", "edges must be in a .npy, .npz")
    refused("g.csv.gz", b"text", "is damaged|not a gzip", DiskError)
    whole = tmp_path / "h.npy"
    np.save(whole, np.zeros((2, 100), int))
    refused("h.npy", whole.read_bytes()[:-8], "is truncated: it has")
    np.savez(tmp_path / "i.npz", other=np.zeros(2))
    with pytest.raises(ValueError, match="has no array edge_index; it has other"):
        build(tmp_path / "graph", tmp_path / "i.npz")
    with pytest.raises(DiskError, match="There is no file"):
        build(tmp_path / "graph", tmp_path / "none.npy")
    with pytest.raises(TypeError, match=r"edges must be a path or a tensor"):
        build(tmp_path / "graph", [[0, 1]])
    with pytest.raises(ValueError, match="At most 2\\^31 - 1 nodes"):
        build(tmp_path / "graph", torch.zeros(2, 1, dtype=torch.int64), 2**31)


def test_calls_that_do_not_fit_are_refused(tmp_path):
    edges, x = torch.tensor([[0, 1], [1, 2]]), torch.ones(3, 2)
    disk = build(tmp_path / "g", edges)
    with pytest.raises(ValueError, match="holds a graph of other edges or options"):
        build(tmp_path / "g", edges, undirected=True)
    with pytest.raises(ValueError, match="The graph has 3 nodes, but x has 4 rows"):
        propagate(disk, torch.ones(4, 2), 1, tmp_path / "y", memory=MEMORY)
    with pytest.raises(ValueError, match=r"memory=1 MB is too little: this process holds .* give at least"):
        propagate(disk, x, 1, tmp_path / "y", memory="1MB")
    with pytest.raises(ValueError, match=r'memory is a size such as "8GB"'):
        propagate(disk, x, 1, tmp_path / "y", memory="much")
    with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\]"):
        propagate(disk, x, 1, tmp_path / "y", alpha=2.0)
    with pytest.raises(ValueError, match="norm must be 'sym', 'row' or None"):
        propagate(disk, x, 1, tmp_path / "y", norm="both")
    propagate(disk, x, 1, tmp_path / "y", memory=MEMORY)
    with pytest.raises(ValueError, match="holds the result of another call"):
        propagate(disk, 2 * x, 1, tmp_path / "y", memory=MEMORY)
    with files_module.locked(tmp_path / "y"), pytest.raises(DiskError, match="Another process works in"):
        propagate(disk, x, 1, tmp_path / "y", memory=MEMORY)
    os.truncate(tmp_path / "g" / "col.npy", 130)
    with pytest.raises(DiskError, match=r"col.npy was changed or damaged"):
        DiskGraph.open(tmp_path / "g")


# -- what stops a run ----------------------------------------------------------------------------------------------


class Stop(BaseException):
    """The process ends here."""


def stop_at(monkeypatch, number, error):
    """The write or rename with this number does half of its work, or none, and raises."""
    count = itertools.count()
    pwrite, replace = os.pwrite, os.replace

    def half(file, data, offset):
        if next(count) == number:
            pwrite(file, data[: len(data) // 2], offset)
            raise error
        return pwrite(file, data, offset)

    def none(source, target):
        if next(count) == number:
            raise error
        replace(source, target)

    monkeypatch.setattr(os, "pwrite", half)
    monkeypatch.setattr(os, "replace", none)


@pytest.mark.parametrize("error", [Stop(), OSError(28, "No space left on device")], ids=["killed", "disk full"])
@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 9])
def test_after_any_failed_write_the_next_call_resumes(folder, monkeypatch, error, every):
    torch.manual_seed(0)
    edges, x = torch.randint(12, (2, 40)), torch.randn(12, 3)
    np.save(folder / "edges.npy", edges.numpy())

    def run(to):
        disk = build(to / "g", folder / "edges.npy", 12)
        return rows_of(disk), propagate(disk, x, 2, to / "y", alpha=0.1, memory=MEMORY, slab=2, block=15)

    small_buckets(monkeypatch, 40)
    monkeypatch.setattr(graph_module, "CHECKPOINT", 1)
    rows, powers = run(folder / "want")
    for number in itertools.count(random.randrange(every), every):
        to = folder / str(number)
        with monkeypatch.context() as patch:
            stop_at(patch, number, error)
            try:
                run(to)
            except Stop:
                pass
            except DiskError as full:
                assert "no space left on device; completed steps are kept: free disk space and repeat" in str(full)
            else:
                break
        assert not (to / "y" / "propagate.json").exists()
        assert not (to / "g" / "graph.json").exists() or DiskGraph.open(to / "g").nodes == 12
        again, found = run(to)
        assert again == rows and all(np.array_equal(a, b) for a, b in zip(found, powers, strict=True))
        assert sorted(os.listdir(to / "y")) == [".lock", "power-1.npy", "power-2.npy", "propagate.json"]
    assert number > 40


def test_a_full_disk_is_an_error_before_and_during_a_run(tmp_path, monkeypatch):
    edges, x = torch.randint(3000, (2, 3000)), torch.randn(3000, 64)
    disk = build(tmp_path / "g", edges, 3000)

    def run():
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
        try:
            propagate(disk, x, 2, tmp_path / "y", memory=MEMORY)
        except DiskError as error:
            return int("part-1-0.npy: file too large; completed steps are kept" not in str(error))
        return 2

    assert forked(run) == 0
    assert not list((tmp_path / "y").glob("*.npy")) and not (tmp_path / "y" / "propagate.json").exists()
    assert propagate(disk, x, 2, tmp_path / "y", memory=MEMORY)[1].shape == (3000, 64)
    monkeypatch.setattr(files_module.shutil, "disk_usage", lambda folder: os.statvfs_result and Free())
    with pytest.raises(DiskError, match=r"2 powers of a signal \(3000, 64\) takes 1.5 MB in .*, but the disk has 1 kB"):
        propagate(disk, x, 2, tmp_path / "z", memory=MEMORY)
    with pytest.raises(DiskError, match="A graph of 3000 nodes and 3000 edges takes 48 kB"):
        build(tmp_path / "h", edges, 3000)


class Free:
    free = 1000


def inputs(folder, nodes, edges, channels):
    generator = np.random.default_rng(0)
    np.save(folder / "edges.npy", generator.integers(0, nodes, (2, edges), dtype=np.int32))
    np.save(folder / "x.npy", generator.normal(size=(nodes, channels)).astype("f4"))


def work(inputs, to):
    """A graph in many buckets, and three powers in two slabs and many blocks."""
    graph_module.MAX_CHUNK, graph_module.MAX_SORTED, graph_module.CHECKPOINT = 5000, 5000, 5000
    disk = build(to / "g", inputs / "edges.npy", 3000)
    propagate(disk, inputs / "x.npy", 3, to / "y", memory=MEMORY, slab=4, block=1000)


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_kill_9_at_any_moment_loses_nothing(tmp_path, kills):
    inputs(tmp_path, 3000, 40_000, 8)
    start, moment, killed = time.monotonic(), random.Random(kills), 0
    assert processes("fork", work, [(tmp_path, tmp_path / "want")]) == [0]
    whole = time.monotonic() - start
    for _ in range(kills):
        killed += processes("fork", work, [(tmp_path, tmp_path / "killed")], whole * moment.uniform(0, 0.7)) != [0]
    assert processes("fork", work, [(tmp_path, tmp_path / "killed")]) == [0]
    for name in ("g/crow.npy", "g/col.npy", "g/loops.npy", "y/power-1.npy", "y/power-2.npy", "y/power-3.npy"):
        assert (tmp_path / "want" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


PEAK = """
import sys, torch
from gconv.external import DiskGraph, propagate
from gconv.external.files import resident
print(resident())
disk = DiskGraph.build(f"{sys.argv[1]}/g", f"{sys.argv[1]}/edges.npy", memory=int(sys.argv[2]))
propagate(disk, f"{sys.argv[1]}/x.npy", 2, f"{sys.argv[1]}/y", memory=int(sys.argv[2]))
print(*[line.split()[1] for line in open("/proc/self/status") if "VmHWM" in line])
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("beyond", [100_000_000, 200_000_000])
def test_memory_is_kept(tmp_path, beyond):
    """The peak that the system counted, of a process that works on 32 MB of edges and 3 times 51 MB of signals."""
    inputs(tmp_path, 400_000, 4_000_000, 32)
    base = subprocess.run(
        [sys.executable, "-c", PEAK.split("disk =")[0]], capture_output=True, text=True, timeout=LIMIT
    )
    memory = int(base.stdout) + beyond
    command = [sys.executable, "-c", PEAK, str(tmp_path), str(memory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[1]) * 1024 < memory


def test_rows_are_minibatches(tmp_path):
    torch.manual_seed(0)
    disk, x, y = build(tmp_path / "g", torch.randint(50, (2, 300)), 50), torch.randn(50, 3), torch.randint(4, (50,))
    powers = propagate(disk, x, 2, tmp_path / "y", memory=MEMORY)
    train = torch.randperm(50)[:20]
    rows = Rows([x.numpy(), *powers], train, y)
    both = torch.cat([x, *map(torch.tensor, powers)], 1)
    for workers in (0, 1):
        loader = DataLoader(rows, 8, num_workers=workers)
        found, labels = map(torch.cat, zip(*loader, strict=True))
        assert torch.equal(found, both[train]) and torch.equal(labels, y[train])
    assert torch.equal(Rows(powers)[7][0], torch.cat([torch.tensor(p[7]) for p in powers])) and rows.channels == 9
    with pytest.raises(ValueError, match="index must contain node indices, 0 to 49"):
        Rows(powers, [50])
    with pytest.raises(ValueError, match="y must have 50 labels, one per row of the signals"):
        Rows(powers, y=y[:3])
    with pytest.raises(ValueError, match=r"signals must be \(n, c\) with the same n"):
        Rows([powers[0], np.ones((3, 2))])


@pytest.mark.parametrize("index", [np.array([3, 1], kind) for kind in ("u1", "u2", "u8", "i4")] + [[3, 1], (3, 1)])
@pytest.mark.parametrize("y", [[5, 6, 7, 8], np.array([5, 6, 7, 8]), torch.tensor([5, 6, 7, 8])])
def test_rows_take_labels_and_indices_of_every_kind(index, y):
    """torch takes uint8 for a mask, and lacks arithmetic of other unsigned integers."""
    x = torch.arange(4.0)[:, None]
    for signal in (x, x.bfloat16(), x.clone().requires_grad_(), x.numpy()):
        found, labels = next(iter(DataLoader(Rows([signal], index, y), 2)))
        assert found.tolist() == [[3], [1]] and labels.tolist() == [8, 6]
    assert len(Rows([x], [])) == 0
    for bad, message in (("abcd", "y must be a tensor of labels"), (3, "y must have 4 labels")):
        with pytest.raises((TypeError, ValueError), match=message):
            Rows([x], index, bad)


def test_rows_of_a_part_of_a_mapped_file_are_that_part(tmp_path):
    """A view of a memory map has the name of the file, too."""
    x = np.arange(20, dtype="f4").reshape(5, 4)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "f.npy", np.asfortranarray(x))
    x.tofile(tmp_path / "x.bin")
    mapped, columns = (np.load(tmp_path / name, mmap_mode="r") for name in ("x.npy", "f.npy"))
    raw = np.memmap(tmp_path / "x.bin", "f4", "r", shape=(5, 4))
    views = mapped[:, 1:3], mapped[1:3], mapped[::-1], mapped.T, mapped.view("i4"), raw[1:], columns[:, ::2]
    for signal in (mapped, columns, raw, *views):
        for rows in (Rows([signal]), pickle.loads(pickle.dumps(Rows([signal])))):
            assert np.array_equal(rows.batch(range(len(rows)))[0], signal)
    assert Rows([mapped]).sources == [tmp_path / "x.npy"]  # only the path goes to the workers of a loader
    os.unlink(tmp_path / "x.npy")
    assert np.array_equal(Rows([mapped]).batch([2])[0], x[2:3])


def test_rows_refuse_places_and_signals_that_are_no_numbers():
    rows = Rows([np.ones((4, 1))])
    for places in ([True, False, True, True], torch.ones(4, dtype=torch.bool), [0.5], "ab", [slice(0, 2)]):
        with pytest.raises(TypeError, match="places must be a sequence of indices"):
            rows.batch(places)
    assert rows.batch([])[0].shape == (0, 1)
    with pytest.raises(TypeError, match="a type that torch has, but they are float64, <U1"):
        Rows([np.ones((1, 1)), np.array([["a"]])])


def test_bfloat16_is_read_and_written_as_float32(tmp_path):
    """numpy has no bfloat16; every number of it is a float32."""
    graph, x = build(tmp_path / "g", torch.randint(9, (2, 30)), 9), torch.randn(9, 4).bfloat16()
    same = propagate(graph, x.float(), 1, tmp_path / "float", memory=MEMORY)
    assert np.array_equal(propagate(graph, x, 1, tmp_path / "y", memory=MEMORY), same)
    net = nn.Sequential(GConv(gcn(4, 2)), nn.ReLU()).bfloat16()
    y = infer(net, graph, x, tmp_path / "z", memory=MEMORY)
    assert y.dtype == np.float32 and np.abs(y - infer(net.float(), graph, x, tmp_path / "w", memory=MEMORY)).max() < 0.1
    with pytest.raises(TypeError, match="must be a dense tensor"):
        propagate(graph, x.float().to_sparse(), 1, tmp_path / "v", memory=MEMORY)


@pytest.mark.parametrize(("name", "kind", "value"), [("col", "i4", 10**8), ("col", "i4", -1), ("crow", "i8", 10**8)])
def test_a_graph_with_damaged_content_is_an_error_of_ours(folder, name, kind, value):
    """Its size is right, so it opens; the kernel would read memory of others, or leave out edges."""
    graph, x = build(folder / "g", torch.randint(9, (2, 30)), 9), torch.randn(9, 4)
    path = folder / "g" / f"{name}.npy"
    numbers = np.load(path, mmap_mode="r+")
    numbers[4] = value
    numbers.flush()
    with pytest.raises(DiskError, match=f"{name}.npy was changed or damaged; delete .* and build the graph again"):
        propagate(graph, x, 1, folder / "y", memory=MEMORY)


@pytest.mark.parametrize("content", ['{"format": 1}', '{"format": 1, "nodes": "9", "entries": 3, "loops": 0}'])
def test_a_damaged_description_of_a_graph_is_an_error_of_ours(tmp_path, content):
    build(tmp_path / "g", torch.randint(9, (2, 30)), 9)
    (tmp_path / "g" / "graph.json").write_text(content)
    with pytest.raises(DiskError, match=r"graph\.json was changed or damaged"):
        DiskGraph.open(tmp_path / "g")


def test_arrays_of_equal_bytes_are_distinguished(tmp_path):
    """Four zeros of float32 are two of float64, and pairs of int32 may be one int64."""
    edges = np.array([[0, 1], [1, 2]])
    graph = build(tmp_path / "g", edges, 3)
    assert build(tmp_path / "g", edges.copy(), 3) == graph
    with pytest.raises(ValueError, match="holds a graph of other edges"):
        build(tmp_path / "g", edges.view(np.int32), 3)
    x = np.zeros((3, 4), np.float32)
    for again in (x, x.copy()):
        assert propagate(graph, again, 1, tmp_path / "y", memory=MEMORY)[0].shape == (3, 4)
    with pytest.raises(ValueError, match="holds the result of another call"):
        propagate(graph, x.view(np.float64), 1, tmp_path / "y", dtype=torch.float32, memory=MEMORY)


def test_a_truncated_result_is_named(tmp_path):
    graph, x = build(tmp_path / "g", torch.randint(9, (2, 30)), 9), torch.randn(9, 4)
    propagate(graph, x, 1, tmp_path / "y", memory=MEMORY)
    path = tmp_path / "y" / "power-1.npy"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"Cannot read .*power-1\.npy, an array \(9, 4\) of float32"):
        propagate(graph, x, 1, tmp_path / "y", memory=MEMORY)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2\n3\n", "line 2: expected 2 numbers, but the line is '3'"),
        ("1\nx\n", "line 2: expected one number"),
        ("1\n1_0\n", "line 2: expected one number, but the line is '1_0'"),
        ("1,2\n3,4\n5,-1e39\n", r"line 3: -1e\+39 is too large for float32"),
        ("a,b\n1,2\n", r"line 1: expected 2 numbers, but the line is 'a,b' \(if it is a header, delete it\)"),
    ],
)
def test_features_from_text_are_numbers(tmp_path, text, message):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        features_from_text(tmp_path / "x.csv", tmp_path / "x.npy")
    assert not (tmp_path / "x.npy").exists()


def test_text_of_windows_is_read(tmp_path):
    """A byte order mark and its line endings."""
    for name, text in (("x.csv", "1,2\r\n3,4\r\n"), ("edges.csv", "0,1\r\n1,0\r\n")):
        (tmp_path / name).write_bytes(text.encode("utf-8-sig"))
    features = features_from_text(tmp_path / "x.csv", tmp_path / "x.npy")
    assert np.load(features).tolist() == [[1, 2], [3, 4]]
    graph = build(tmp_path / "graph", tmp_path / "edges.csv")
    assert (graph.nodes, graph.num_edges) == (2, 2)
    (tmp_path / "edges.csv").write_bytes(b"0,1\n\xef\xbb\xbf1,0\n")  # only at the start
    with pytest.raises(ValueError, match="line 2: an edge must be two integers"):
        build(tmp_path / "other", tmp_path / "edges.csv")


def test_features_from_text_never_replace_the_text(tmp_path):
    (tmp_path / "x.csv").write_text("1,2\n")
    (tmp_path / "link.csv").symlink_to(tmp_path / "x.csv")
    for out in ("x.csv", "link.csv"):
        with pytest.raises(ValueError, match="out must be another file than the text"):
            features_from_text(tmp_path / "x.csv", tmp_path / out)
    assert (tmp_path / "x.csv").read_text() == "1,2\n"
    assert np.load(features_from_text(tmp_path / "x.csv", tmp_path / "x.npy")).tolist() == [[1, 2]]


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


class Doubled(GConv):
    def forward(self, x, domain):
        return 2 * super().forward(x, domain)


def hooked(module):
    module.register_forward_hook(lambda module, x, y: 2 * y)
    return module


def network():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(5, 8),
        nn.Sequential(GConv(gcn(8, 6)), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5)),
        GConv(sage(6, 9)),
        nn.ELU(),
        GConv(graphconv(9, 4)),
        GConv(sage(4, 7, aggr="sum", root_weight=False)),
        GConv(lightgcn()),
        GConv(simple()),
        GConv(simple("mean")),
        GConv(gcn(7, 2, add_self_loops=False)),
        Residual(nn.Linear(2, 2), nn.Tanh()),
    )
    net[1][1].running_mean.normal_()
    return net


def whole(net, x, graph):
    for module in net:
        if type(module) is nn.Sequential:
            x = whole(module, x, graph)
        else:
            x = module(x, graph) if isinstance(module, GConv) else module(x)
    return x


def test_layer_by_layer_is_the_network_on_the_whole_graph(tmp_path, monkeypatch):
    net, edges, x = network().double(), torch.randint(80, (2, 400)), torch.randn(80, 5, dtype=torch.float64)
    disk = build(tmp_path / "g", edges, 80)
    monkeypatch.setattr(external_network, "BLOCK_BYTES", 16 * 9 * 13)  # windows of 13 rows
    y = infer(net, disk, x, tmp_path / "y", memory=MEMORY)
    assert net.training and net[1][1].training
    torch.testing.assert_close(torch.tensor(y), whole(net.eval(), x, Graph(edges, 80)))
    assert sorted(os.listdir(tmp_path / "y")) == [".lock", "infer.json", "output.npy"]
    with pytest.raises(ValueError, match="holds the output of another call"):
        infer(net, disk, x + 1, tmp_path / "y", memory=MEMORY)


def test_layer_wise_inference_resumes(folder, monkeypatch):
    net, edges, x = network(), torch.randint(80, (2, 400)), torch.randn(80, 5)
    disk = build(folder / "g", edges, 80)
    want = np.array(infer(net, disk, x, folder / "want", memory=MEMORY))
    for number in itertools.count(random.randrange(9), 17):
        with monkeypatch.context() as patch:
            stop_at(patch, number, Stop())
            try:
                infer(net, disk, x, folder / str(number), memory=MEMORY)
            except Stop:
                assert not (folder / str(number) / "work" / "output.npy").exists()
            else:
                break
        assert np.array_equal(infer(net, disk, x, folder / str(number), memory=MEMORY), want)
    assert number > 30


def test_a_network_in_double_precision_reads_other_features_as_such(tmp_path):
    net, edges, x = nn.Sequential(GConv(gcn(3, 4))).double(), torch.randint(80, (2, 400)), torch.randn(80, 3)
    disk = build(tmp_path / "g", edges, 80)
    y = torch.tensor(infer(net, disk, x, tmp_path / "y", memory=MEMORY))
    torch.testing.assert_close(y, whole(net, x.double(), Graph(edges, 80)), rtol=1e-13, atol=1e-13)


def test_the_imaginary_part_belongs_to_the_network(tmp_path):
    net = nn.Sequential(nn.Linear(2, 2, bias=False, dtype=torch.complex64))
    disk, x = build(tmp_path / "g", torch.tensor([[0], [1]])), torch.ones(2, 2)
    infer(net, disk, x, tmp_path / "y", memory=MEMORY)
    net[0].weight.data.imag.mul_(2)
    with pytest.raises(ValueError, match="holds the output of another call"):
        infer(net, disk, x, tmp_path / "y", memory=MEMORY)


def test_code_that_would_not_run_is_refused(tmp_path):
    disk, x = build(tmp_path / "g", torch.tensor([[0], [1]])), torch.ones(2, 5)
    for layer, why in ((hooked(GConv(gcn(5, 5))), "a forward hook is registered"), (Doubled(gcn(5, 5)), "of its own")):
        with pytest.raises(ValueError, match=rf"gcn\(5, 5\) cannot run on a graph on disk: .*{why}"):
            infer(nn.Sequential(layer), disk, x, tmp_path / "y", memory=MEMORY)
    for net in (Residual(nn.Linear(5, 5)), hooked(nn.Sequential(nn.Linear(5, 5)))):
        with pytest.raises(TypeError, match=r"infer takes an nn\.Sequential without hooks or a forward of its own"):
            infer(net, disk, x, tmp_path / "y", memory=MEMORY)


@pytest.mark.parametrize(
    "spec",
    [sage(5, 2, aggr="max"), gcn(5, 2, improved=True), cheb(5, 2, k=2), gat(5, 2), simple("max"), simple("sum", "sum")],
    ids=["max", "2 I", "cheb", "gat", "maxima", "with the node itself"],
)
def test_layers_that_are_not_streamed_are_refused(tmp_path, spec):
    disk = build(tmp_path / "g", torch.tensor([[0], [1]]))
    with pytest.raises(ValueError, match=r"cannot run on a graph on disk: layers that read one adjacency can"):
        infer(nn.Sequential(GConv(spec)), disk, torch.ones(2, 5), tmp_path / "y")
    with pytest.raises(TypeError, match=r"infer takes an nn\.Sequential"):
        infer(GConv(spec), disk, torch.ones(2, 5), tmp_path / "y")


def test_the_command_is_the_function(tmp_path, capsys):
    torch.manual_seed(0)
    edges, x = torch.randint(40, (2, 200)), torch.randn(40, 3)
    (tmp_path / "e.csv").write_text("".join(f"{u},{v}\n" for u, v in edges.T.tolist()))
    (tmp_path / "x.csv").write_text("".join(",".join(map(repr, row)) + "\n" for row in x.tolist()))
    out = tmp_path / "out"
    call = ["propagate", f"{tmp_path}/e.csv", f"{tmp_path}/x.csv", "--k", "2", "--memory", MEMORY, "--out", str(out)]
    call += ["--norm", "mean", "--undirected", "--duplicates", "drop"]
    main(call)
    text = capsys.readouterr()
    assert "DiskGraph(40 nodes" in text.out and "2 x (40, 3) float32" in text.out and "power 2 of 2" in text.err
    both = torch.cat([edges, edges.flip(0)], 1).unique(dim=1)
    S = adjacency(Graph(both, 40), torch.float32, norm="row")
    torch.testing.assert_close(torch.tensor(np.load(out / "power-2.npy")), S.expand(S.expand(x)[0])[0])
    for change, message in [
        (["--k", "0"], "error: k must be at least 1"),
        (["--memory", "much"], "error: memory is a size such as"),
        (["--norm", "gcn"], "error: .* holds the result of another call"),
        (["--nodes", "41"], "error: .* holds a graph of other edges or options"),
    ]:
        with pytest.raises(SystemExit, match=message):
            main([*call, *change])
    with pytest.raises(SystemExit, match="error: There is no file"):
        main(["propagate", "none.npy", f"{tmp_path}/x.csv", "--out", str(tmp_path / "new")])
    with pytest.raises(SystemExit) as end:
        main(["propagate", "--help"])
    assert end.value.code == 0 and "it resumes where it stopped" in capsys.readouterr().out


def test_the_command_never_takes_the_features_of_another_call(tmp_path, monkeypatch):
    """Text is converted to out/features.npy; a call with another text file must not use it."""
    (tmp_path / "e.csv").write_text("0,1\n1,0\n")
    for name, text in (("x.csv", "1\n2\n"), ("y.csv", "3\n4\n"), ("empty.csv", "")):
        (tmp_path / name).write_text(text)

    def call(features, out="out"):
        main(["propagate", f"{tmp_path}/e.csv", f"{tmp_path}/{features}", "--k", "1", "--norm", "sum",
              "--memory", MEMORY, "--out", str(tmp_path / out)])  # fmt: skip
        return np.load(tmp_path / out / "power-1.npy")[:, 0].tolist()

    with pytest.raises(SystemExit, match=r"empty\.csv is empty; expected one line of numbers per node"):
        call("empty.csv")
    assert not list((tmp_path / "out").glob("features.npy*"))  # so the same folder can be used with another file
    assert call("x.csv") == [2, 1] and call("x.csv") == [2, 1]
    with pytest.raises(SystemExit, match=r"features.npy was converted from another file than .*y.csv"):
        call("y.csv")
    (tmp_path / "x.csv").write_text("5\n6\n")
    with pytest.raises(SystemExit, match="or the file has changed since"):
        call("x.csv")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("gconv.external.features.write_at", killed)
        with pytest.raises(SystemExit, match="interrupted"):
            call("x.csv", "new")
    assert call("y.csv", "new") == [4, 3]


def test_wrong_paths_and_options_of_the_command_are_named(tmp_path, capsys):
    (tmp_path / "e.csv").write_text("0,1\n1,0\n")
    np.save(tmp_path / "x.npy", np.ones((2, 1), "f4"))
    np.save(tmp_path / "none.npy", np.ones((0, 1), "f4"))
    e, x, out = (str(tmp_path / name) for name in ("e.csv", "x.npy", "out"))
    main(["propagate", e, x, "--k", "1", "--memory", MEMORY, "--out", out])
    graph = f"{out}/graph"
    for edges, features, more, message in [
        (e, str(tmp_path), [], "is a folder, not a file"),
        (str(tmp_path), x, [], "is a folder, not a file"),
        (e, x, ["--nodes", "3"], "--nodes is 3, but .*npy has 2 rows, one per node"),
        (e, str(tmp_path / "none.npy"), [], "has no rows; features have one row per node"),
        (e, str(tmp_path / "none.csv"), [], "There is no file"),
        (e, x, ["--k", "0"], "k must be at least 1"),
        (e, x, ["--alpha", "2"], "alpha must be in"),
        (graph, x, ["--undirected"], "--undirected has an effect only while a graph is built"),
        (graph, x, ["--nodes", "3"], "built before, with nodes 2, and --nodes has an effect only"),
        (graph, x, ["--duplicates", "drop"], "--duplicates has an effect only while a graph is built"),
    ]:
        with pytest.raises(SystemExit, match=message):
            main(["propagate", edges, features, *more, "--memory", MEMORY, "--out", str(tmp_path / "other")])
    assert not (tmp_path / "other" / "graph").exists()  # each was found before the graph was built
    for more in ([], ["--nodes", "2", "--duplicates", "keep"]):  # the options with which it was built
        main(["propagate", graph, x, *more, "--k", "1", "--memory", MEMORY, "--out", str(tmp_path / "other")])
    for edges, features, folder in [("", x, out), (e, "", out), (e, x, "")]:
        with pytest.raises(SystemExit):
            main(["propagate", edges, features, "--out", folder])
        assert "expected a path, but it is empty" in capsys.readouterr().err


def test_a_mask_is_not_an_index(tmp_path):
    """Its numbers would be the nodes 0 and 1."""
    with pytest.raises(TypeError, match=r"mask\.nonzero\(\)"):
        Rows([np.ones((4, 1))], torch.tensor([True, False, True, True]))


def test_a_network_without_layers_moves_no_file(tmp_path):
    graph = build(tmp_path / "g", torch.randint(5, (2, 9)), 5)
    np.save(tmp_path / "x.npy", np.ones((5, 2)))
    for net in (nn.Sequential(), nn.Sequential(nn.Sequential())):
        with pytest.raises(ValueError, match="this one is empty"):
            infer(net, graph, tmp_path / "x.npy", tmp_path / "y", memory=MEMORY)
    assert (tmp_path / "x.npy").exists()


def test_a_damaged_compressed_archive_is_an_error_of_ours(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", node_feat=np.random.default_rng(0).random((400, 4)))
    whole, graph = (tmp_path / "x.npz").read_bytes(), build(tmp_path / "g", torch.randint(400, (2, 9)), 400)
    for first, kind, message in ((2000, ValueError, "is not a .npy file"), (8000, DiskError, "is damaged")):
        content = bytearray(whole)
        content[first : first + 200] = bytes(255 - byte for byte in content[first : first + 200])
        (tmp_path / "x.npz").write_bytes(content)
        with pytest.raises(kind, match=message):
            propagate(graph, tmp_path / "x.npz", 1, tmp_path / "y", memory=MEMORY)
