"""Experiments on graphs on disk: files in OGB's layout, made here; a run from the command line; bad input."""

import gzip
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from limits import fresh

from datasets.ogb import load_ogb
from datasets.root import DataCorrupt, DataUnavailable
from experiments.harness.common import Results
from experiments.harness.experiment import Place
from experiments.large_graphs import external, halo_rows, sign
from gconv import GConv, Graph
from gconv.operators import sgc
from gconv.parallel.halo import Halo


def packed(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))


def made(root, name, nodes=60):
    """Two classes that features tell apart, in the layout of a data set; the edges and features."""
    generator = np.random.default_rng(0)
    y = generator.integers(0, 2, nodes)
    x = (generator.normal(size=(nodes, 4)) + 3 * y[:, None]).astype("f4")
    edges = generator.integers(0, nodes, (2, 3 * nodes))
    edges = edges[:, y[edges[0]] == y[edges[1]]]
    folder = root / "ogb" / f"ogbn_{name}"
    if name == "papers100M":
        (folder / "raw").mkdir(parents=True)
        np.savez(folder / "raw" / "data.npz", edge_index=edges, node_feat=x, num_nodes_list=[nodes])
        labels = np.where(np.arange(nodes) % 10 == 9, np.nan, y)[:, None]
        np.savez(folder / "raw" / "node-label.npz", node_label=labels)
    else:
        packed(folder / "raw" / "edge.csv.gz", (f"{u},{v}" for u, v in edges.T))
        packed(folder / "raw" / "node-feat.csv.gz", (",".join(map(repr, row)) for row in x.tolist()))
        packed(folder / "raw" / "node-label.csv.gz", y)
    split = folder / "split" / ("sales_ranking" if name == "products" else "time")
    for part, numbers in (("train", range(30)), ("valid", range(30, 45)), ("test", range(45, nodes))):
        packed(split / f"{part}.csv.gz", numbers)
    return torch.from_numpy(edges), torch.from_numpy(x)


@pytest.mark.parametrize(("name", "model"), [("arxiv", "sign"), ("products", "sgc"), ("papers100M", "sign")])
def test_files_in_the_layout_of_ogb_are_trained_on(tmp_path, capsys, name, model):
    edges, x = made(tmp_path, name)
    options = ["--dataset", name, "--model", model, "--k", "2", "--epochs", "30", "--hidden", "8", "--lr", "0.05"]
    options += ["--batch", "10", "--memory", "8GB", "--data-root", str(tmp_path), "--out", str(tmp_path / "out")]
    sign.main(options)
    out = capsys.readouterr().out
    assert float(out.split("test_accuracy ")[1].split(",")[0]) > 0.8
    both = torch.cat([edges, edges.flip(0)], 1).unique(dim=1)
    layer = GConv(sgc(4, 4, k=2, bias=False))
    layer.weight.data.copy_(torch.eye(4)[None])
    power = torch.tensor(np.load(tmp_path / "out" / "powers-2" / "power-2.npy"))
    torch.testing.assert_close(power, layer(x, Graph(both, 60)).detach())


def test_files_of_ogb_that_are_missing_or_wrong_are_named(tmp_path):
    with pytest.raises(ValueError, match="There are arxiv, products, papers100M"):
        load_ogb("mag", tmp_path)
    with pytest.raises(DataUnavailable, match=r"edge\.csv\.gz is missing"):
        load_ogb("arxiv", tmp_path)
    with pytest.raises(SystemExit, match=r"error: .*edge\.csv\.gz is missing"):
        sign.main(["--out", str(tmp_path / "out"), "--data-root", str(tmp_path)])
    made(tmp_path, "arxiv")
    time = tmp_path / "ogb" / "ogbn_arxiv" / "split" / "time"
    packed(time / "test.csv.gz", ["60"])
    with pytest.raises(DataCorrupt, match="a number of a node is not in 0 to 59"):
        load_ogb("arxiv", tmp_path)
    packed(time / "test.csv.gz", ["3"])
    with pytest.raises(DataCorrupt, match="a node is in two parts"):
        load_ogb("arxiv", tmp_path)
    packed(time / "test.csv.gz", ["x"])
    with pytest.raises(DataCorrupt, match="one whole number a line is expected"):
        load_ogb("arxiv", tmp_path)
    made(tmp_path, "papers100M")
    data = load_ogb("papers100M", tmp_path)
    assert (data.y == -1).nonzero()[:, 0].tolist() == list(range(9, 60, 10))
    (tmp_path / "ogb" / "ogbn_papers100M" / "raw" / "node-label.npz").write_bytes(b"text")
    with pytest.raises(DataCorrupt, match="an array node_label is expected"):
        load_ogb("papers100M", tmp_path)


def test_the_drawn_graph_is_a_power_law_of_distinct_names():
    config = external.Config(nodes=100_000, edges=400_000)
    degree = np.sort(np.bincount(np.concatenate(list(external.drawn(config)))[:, 0], minlength=config.nodes))[::-1]
    assert degree.sum() == config.edges
    share = degree[: config.nodes // 4].sum() / config.edges
    assert 0.49 < share < 0.7  # a quarter of the ranks has half of the ends: P(rank < n / 4) = (1/4)^(1/2)
    with pytest.raises(ValueError, match="edges must be at least 1, not 0"):
        external.Config(edges=0)


@pytest.mark.slow
def test_a_small_run_measures(tmp_path):
    """In a process of its own: the peak memory of its children begins with its own."""
    code = "import sys; from experiments.large_graphs import external; external.EXPERIMENT.main(sys.argv[1:])"
    done = fresh(code, "--smoke", "--results", str(tmp_path / "rows.jsonl"))
    assert done.returncode == 0, done.stderr
    assert "19,669 edges: peak 0." in done.stdout


def test_halo_rows_are_those_that_the_library_exchanges():
    config = halo_rows.Config(graph="grid", method="rows", side=8, parts=4)
    metrics = halo_rows.run(config, Place()).metrics
    assert metrics["halo_rows"] == 3 * 16 and metrics["bytes"] == 48 * 64 * 4  # both sides of three cuts
    pytest.importorskip("scipy")
    for graph in halo_rows.GRAPHS:
        for method in ("random", "rcm"):
            config = replace(config, graph=graph, method=method)
            domain, bounds = halo_rows.shared(config, halo_rows.drawn(config))
            for rank, rows in enumerate(halo_rows.halos(domain, bounds)):
                process = SimpleNamespace(rank=rank, size=4, gathered=lambda ids: [ids] * 4)
                reads = domain.edge_index[0][(domain.target >= bounds[rank]) & (domain.target < bounds[rank + 1])]
                assert Halo(reads, bounds, process).rows == len(rows)
    with pytest.raises(ValueError, match="16 nodes cannot be shared out among 17 parts"):
        halo_rows.Config(side=4, parts=17)


@pytest.mark.slow
def test_metis_reads_least(tmp_path, capsys):
    pytest.importorskip("pymetis")
    halo_rows.main(["--smoke", "--graph", "grid", "--results", str(tmp_path / "rows.jsonl")])
    rows = {row["config"]["method"]: row["metrics"]["halo_rows"] for row in Results(tmp_path / "rows.jsonl").rows()}
    assert rows["metis"] < rows["rows"] < rows["random"] and "MB a layer" in capsys.readouterr().out
