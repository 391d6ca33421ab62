"""gconv.parallel: several processes give what one does, and say which of them failed."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from experiments.harness.machine import ROOT
from gconv import GConv, Graph, Grid, cache_info, clear_cache
from gconv.operators import cheb, conv2d, gat, gcn, global_pool, spectral
from gconv.parallel import ProcessError, distribute, halo, shard
from gconv.parallel.processes import Processes
from gconv.testing import assert_close

LIMIT = 240  # seconds, for processes that start on a busy machine


def together(folder, world, *jobs, ends=(), **environment):
    """The rows (what, error, bound) of all processes; `ends`: those that will not report."""
    command = [sys.executable, "-m", "tests.parallel_worker"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"} | environment
    running = [
        subprocess.Popen(
            [*command, str(rank), str(world), str(folder), *jobs],
            cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(world)
    ]  # fmt: skip
    until, said = time.monotonic() + LIMIT, []
    try:
        for process in running:
            said.append(process.communicate(timeout=max(1, until - time.monotonic()))[0])
    finally:
        for process in running:
            process.kill()
            process.wait(10)
            process.stdout.close()
    rows = []
    for rank, process in enumerate(running):
        if rank in ends:
            assert process.returncode == -signal.SIGKILL
            continue
        assert process.returncode == 0, f"rank {rank}: {said[rank][-3000:]}"
        rows += [(f"rank {rank}: {what}", *rest) for what, *rest in json.loads((folder / f"{rank}.json").read_text())]
    return rows


def held(rows):
    return [(what, value) for what, value, bound in rows if not value <= bound] if rows else ["nothing was tested"]


def test_two_processes_give_what_one_does(tmp_path):
    assert held(together(tmp_path, 2, "quick graphs", "quick grids")) == []


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("job", ["graphs", "grids", "networks", "pools", "partitions", "mistakes"])
def test_several_processes_give_what_one_does(tmp_path, world, job):
    assert held(together(tmp_path, world, job)) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10**6), world=st.integers(2, 4))
def test_kernels_of_any_geometry(tmp_path_factory, seed, world):
    assert held(together(tmp_path_factory.mktemp("run"), world, f"random {seed}")) == []


@pytest.mark.slow
@pytest.mark.parametrize(("world", "victim"), [(2, 1), (3, 0), (3, 2)])
def test_a_process_that_is_killed_is_named(tmp_path, world, victim):
    assert held(together(tmp_path, world, "killed", ends=(victim,), VICTIM=str(victim))) == []


def test_a_wrong_number_would_be_noticed():
    """Negative control."""
    assert held([("a", 1e-3, 1e-12)]) and held([("b", float("nan"), 1.0)]) and held([])


@pytest.fixture
def alone():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


PATH = Graph(torch.tensor([[0, 1, 2], [1, 2, 3]]))


def test_one_process_is_a_group_too(alone):
    part, x = shard(PATH), torch.randn(4, 3)
    layer = GConv(gcn(3, 2))
    net = distribute(nn.Sequential(layer, nn.ReLU()), part)
    assert torch.equal(net(part.take(x)), layer(x, PATH).relu())
    assert torch.equal(part.gather(net(x)), net(x)) and "4 nodes" in repr(part)


def test_what_a_distributed_model_keeps_is_bounded_and_listed(alone, monkeypatch):
    monkeypatch.setattr("gconv.parallel.partition.MAX_BLOCKS", 3)
    monkeypatch.setattr("gconv.parallel.network.MAX_SHAPES", 3)
    part = shard(Grid((4, 4)))
    model = distribute(GConv(conv2d(1, 2, 3, padding=1)), part)
    names = "blocks of partitions", "lowerings of distributed layers"
    before = [cache_info()[name].entries for name in names]
    for width in range(3, 9):
        images = torch.ones(1, 1, 4, width)
        assert_close("again", model(images), model(images), 1e-6)
        for name, start in zip(names, before, strict=True):
            assert 1 <= cache_info()[name].entries - start <= 3, name
    clear_cache()
    assert cache_info()[names[0]].entries > before[0], "building a block communicates, so that they are kept"
    assert cache_info()[names[1]].entries == 0


def test_a_union_of_graphs_keeps_its_order(alone):
    """Reordered, it would be one part, and pools would give one row."""
    both, y = Graph.union([PATH, PATH]), torch.rand(2, 3)
    part = shard(both)
    layer, x = GConv(global_pool()), torch.randn(8, 3)
    assert torch.equal(distribute(layer, part)(part.take(x)), layer(x, both))
    for method in ("rcm", torch.zeros(8, dtype=torch.int64)):
        with pytest.raises(ValueError, match="A union of 2 graphs keeps the order"):
            shard(both, method=method)
    with pytest.raises(ValueError, match="one row per node, 4, along axis 0"):
        shard(PATH, method=torch.zeros(4, dtype=torch.int64)).gather(y)


def test_what_cannot_be_distributed_is_said_in_a_sentence(alone):
    both = Graph(torch.cat([PATH.edge_index, PATH.edge_index.flip(0)], 1))
    graph, grid = shard(both), shard(Grid((8, 6)))
    for part, model, text in [
        (graph, GConv(spectral(3, 2, 4)), "eigenbasis"), (graph, GConv(conv2d(3, 2, 3)), "works on grids"),
        (graph, nn.GRU(3, 3), "GRU"), (grid, nn.InstanceNorm2d(3), "InstanceNorm2d"),
        (grid, nn.GroupNorm(1, 3), "GroupNorm"), (grid, nn.Sequential(nn.LayerNorm(6)), r"LayerNorm \(0\)"),
        (grid, GConv(cheb(3, 2, k=2)), "cheb"),
    ]:  # fmt: skip
        with pytest.raises(TypeError, match=text):
            net = distribute(model, part)
            net(part.take(torch.randn(1, 3, 8, 6) if part is grid else torch.randn(4, 3)))
    with pytest.raises(TypeError, match="distribute takes"):
        distribute(nn.ReLU(), PATH)
    learned = Graph(PATH.edge_index, edge_weight=torch.ones(3).requires_grad_())
    with pytest.raises(TypeError, match="must not need gradients"):
        distribute(GConv(gcn(3, 2)), shard(learned))


def test_bad_calls_are_said_in_a_sentence(alone):
    for domain, options, error, text in [
        (PATH, {"parts": 5}, ValueError, "use at most 4"), (PATH, {"parts": 2}, ValueError, "number of processes, 1"),
        (PATH, {"method": "random"}, ValueError, "random"), ("path", {}, TypeError, "Graph or a Grid"),
        (Grid((8, 6)), {"method": "rcm"}, ValueError, "slabs"), (PATH, {"parts": 0}, ValueError, "at least 1"),
        (PATH, {"method": torch.zeros(3, dtype=torch.int64)}, ValueError, "each of 4 nodes"),
        (PATH, {"method": torch.ones(4, dtype=torch.int64)}, ValueError, "parts from 0 to 0"),
        (PATH, {"method": torch.zeros(4, dtype=torch.cfloat)}, ValueError, "torch.complex64"),
        (PATH, {"method": torch.zeros(4).numpy()}, ValueError, "the part of each node, but it is a ndarray"),
    ]:  # fmt: skip
        with pytest.raises(error, match=text):
            shard(domain, **options)
    part = shard(PATH)
    net = distribute(GConv(gcn(3, 2)), part)
    with pytest.raises(ValueError, match=r"partition\.take"):
        net(torch.randn(5, 3))
    with pytest.raises(ValueError, match="whole signal has 4 rows"):
        part.take(torch.randn(5, 3))
    for call, error, text in [
        (lambda: part.take([1, 2, 3, 4]), TypeError, r"take: x must be a torch tensor"),
        (lambda: part.gather(torch.ones(4).numpy()), TypeError, r"gather: y must be a torch tensor"),
        (lambda: part.gather(torch.tensor(1.0)), ValueError, r"the rows of this process along axis None, not \(\)"),
        (lambda: part.gather(torch.ones(4, 2), 2), ValueError, r"the rows of this process along axis 2, not \(4, 2\)"),
        (lambda: distribute(nn.LazyLinear(2), part), ValueError, "parameters without values: run it once"),
    ]:
        with pytest.raises(error, match=text):
            call()
    with pytest.raises(TypeError, match=r"partition\.domain"):
        distribute(Two(), part)(torch.randn(4, 3))
    from gconv.laplacian import adjacency

    with pytest.raises(ValueError, match="partitions are of"):
        halo(adjacency(Graph(PATH.edge_index, 6), torch.float32), part)
    pooled = distribute(nn.Sequential(GConv(global_pool("mean")), GConv(gcn(3, 2))), part)
    with pytest.raises(ValueError, match="follows a pool"):
        pooled(torch.randn(4, 3))
    flat = distribute(nn.Flatten(), shard(Grid((8, 6))))
    with pytest.raises(ValueError, match="pool all of them first"):
        flat(torch.randn(1, 3, 8, 6))


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = GConv(gcn(3, 2))

    def forward(self, x):
        return self.layer(x, Graph(PATH.edge_index))


@pytest.mark.parametrize("spec", [spectral(1, 1, 4), cheb(1, 1, k=3), gcn(1, 1), gat(1, 1)], ids=repr)
def test_every_form_has_a_halo(alone, spec):
    """Forms that list no entries of their own, too: they are found by expanding S."""
    both = Graph(torch.cat([PATH.edge_index, PATH.edge_index.flip(0)], 1))
    layer, part = GConv(spec).double(), shard(both)
    S = layer.at(both, x=torch.randn(4, 1, dtype=torch.float64) if spec.structure.kind == "adaptive" else None).S
    read = S.expand(torch.eye(4, dtype=torch.float64)).abs().sum((0, 1)) > 1e-6
    assert read.nonzero()[:, 0].tolist() == halo(S, part).sites.tolist()


@pytest.mark.parametrize("what", ["the_domain", "the_method", "versions", "the_model", "the_parameters", "the_input"])
def test_what_the_processes_do_not_share_is_named_at_the_handshake(monkeypatch, alone, what):
    """A second process is simulated, which answers as this one does, but for one value."""
    part, layer = shard(PATH), GConv(gcn(3, 2))
    net, x = distribute(layer, part), torch.ones(4, 3)

    def gathered(self, value):
        return [value, {**value, what: "another"} if isinstance(value, dict) and what in value else value]

    monkeypatch.setattr(Processes, "gathered", gathered)
    monkeypatch.setattr(Processes, "total", lambda self, x, largest=False: torch.ones_like(x))
    act = {"the_model": lambda: distribute(layer, part), "the_input": lambda: net(x)}
    with pytest.raises(
        ProcessError, match=f"(?s)disagree on {what.replace('_', ' ')}: rank 0 has .*, rank 1 has another"
    ):
        act.get({"the_parameters": "the_model"}.get(what, what), lambda: shard(PATH))()


def test_without_a_group_or_pymetis_it_says_what_to_do(monkeypatch, alone):
    monkeypatch.setitem(sys.modules, "pymetis", None)
    with pytest.raises(ValueError, match="pip install pymetis"):
        shard(PATH, method="metis")
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ValueError, match="pip install scipy"):
        shard(PATH, method="rcm")


def test_without_a_group_it_says_what_to_do():
    with pytest.raises(RuntimeError, match="torchrun"):
        shard(PATH)
