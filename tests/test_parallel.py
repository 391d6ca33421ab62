"""gconv.parallel: several processes give what one does, and say which of them failed."""

import copy
import json
import os
import re
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
from torch.utils.checkpoint import checkpoint
from torch_geometric import nn as pyg

from experiments.harness.machine import ROOT
from gconv import GConv, Graph, Grid, adapt, cache_info, clear_cache
from gconv.blocks import Shortcut
from gconv.operators import cheb, conv2d, gat, gcn, global_pool, graphconv, sage, spectral
from gconv.parallel import ProcessError, distribute, halo, shard, sync_batch_norm
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
    assert held(together(tmp_path, 2, "quick graphs", "quick grids", "second", "models", "pools")) == []


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("job", ["graphs", "grids", "networks", "pools", "partitions", "second", "models", "mistakes"])
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


def test_a_wrong_number_is_detected():
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
    monkeypatch.setattr("gconv.parallel.layers.MAX_SHAPES", 3)
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


def test_layers_that_cannot_be_distributed_are_named(alone):
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
    later = Graph(PATH.edge_index, edge_weight=torch.ones(3))
    net = distribute(GConv(gcn(3, 2)), shard(later))
    net(torch.randn(4, 3))
    later.edge_weight.requires_grad_()
    with pytest.raises(TypeError, match="must not need gradients"):
        net(torch.randn(4, 3))
    for options in ({"lowering": "dense"}, {"edge_weight": torch.ones(3)}):
        with pytest.raises(TypeError, match=rf"takes x and partition\.domain .* also given {next(iter(options))}"):
            distribute(Two(**options), shard(PATH))(torch.randn(4, 3))
    for kind in (torch.uint8, torch.uint16, torch.int32):
        assert shard(PATH, method=torch.zeros(4, dtype=kind)).bounds == (0, 4)


def test_bad_calls_are_errors_with_a_message(alone):
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
        (lambda: part.gather(torch.tensor(1.0)), ValueError, r"the rows of this process along axis -2, not \(\)"),
        (lambda: shard(Grid((4, 3, 2))).gather(torch.ones(4, 3)), ValueError, r"along axis -3, not \(4, 3\)"),
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
    with pytest.raises(ValueError, match=r"holds 4 rows, along axis -2, but x is \(3, 4\)"):
        halo(adjacency(PATH, torch.float32), part)(torch.ones(3, 4))
    pooled = distribute(nn.Sequential(GConv(global_pool("mean")), GConv(gcn(3, 2))), part)
    with pytest.raises(ValueError, match="follows a pool"):
        pooled(torch.randn(4, 3))
    for last in (nn.BatchNorm2d(3), nn.Softmax(-2)):
        with pytest.raises(ValueError, match=r"must not be combined with parts|pool all of them first"):
            distribute(Gated(last), shard(Grid((8, 6))))(torch.randn(2, 3, 8, 6))
    flat = distribute(nn.Flatten(), shard(Grid((8, 6))))
    with pytest.raises(ValueError, match="pool all of them first"):
        flat(torch.randn(1, 3, 8, 6))


class Listed(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.steps = [self.layer]

    def forward(self, x):
        return self.steps[0](x)


@pytest.mark.parametrize("layer", [GConv(conv2d(3, 3, 3)), nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)], ids=repr)
def test_a_layer_in_a_plain_list_is_not_called_without_its_halo(alone, layer):
    part, x = shard(Grid((8, 6))), torch.randn(1, 3, 8, 6)
    with pytest.raises(TypeError, match=f"calls a {type(layer).__name__} that was replaced: a list, dict or function"):
        distribute(Listed(layer), part)(x)
    assert_close("the model itself", Listed(layer)(x), nn.Sequential(layer)(x), 1e-6)
    assert_close("in a Sequential", distribute(nn.Sequential(layer), part)(x), layer(x), 1e-5)


class Gated(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, last):
        super().__init__()
        self.pool, self.last = GConv(global_pool()), last

    def forward(self, x):
        return self.last(x * self.pool(x).sigmoid())


class Two(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.layer, self.options = GConv(gcn(3, 2)), options

    def forward(self, x):
        return self.layer(x, Graph(PATH.edge_index), **self.options)


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class DoubledNorm(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


class DoubledConv(GConv):
    def forward(self, x):
        return 2 * super().forward(x)


class Same(nn.Conv2d):
    pass


class Shared(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3))
        self[1].weight = self[0].weight


def hooked(layer, method="register_forward_hook"):
    getattr(layer, method)(lambda module, *arguments: None)
    return layer


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (Doubled(3, 3, 3), "a subclass of Conv2d with code of its own (forward)"),
        (DoubledNorm(3), "it has a forward of its own"),
        (DoubledConv(conv2d(3, 3, 3)), "a subclass of GConv with a forward of its own"),
        (hooked(nn.Conv2d(3, 3, 3)), "a hook is registered on it"),
        (hooked(nn.BatchNorm2d(3)), "a hook is registered on it"),
        (hooked(GConv(conv2d(3, 3, 3))), "a forward hook is registered on it"),
        (hooked(GConv(conv2d(3, 3, 3)), "register_full_backward_hook"), "a hook is registered on it"),
        (nn.utils.spectral_norm(nn.Conv2d(3, 3, 3)), "a hook is registered on it"),
        (nn.utils.spectral_norm(GConv(conv2d(3, 3, 3))), "a hook is registered on it"),
        (adapt(nn.Conv2d(3, 3, 3)), "computed by a parametrization, whose parameters a GConv would not have"),
        (Shared(), "it shares a parameter with another layer"),
        (nn.Unfold(2), "its patches are not rows of images"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_layer_whose_copy_would_compute_something_else_is_refused(alone, layer, why):
    with pytest.raises(TypeError, match=rf"(?s)\(0(\.0)?\) cannot be distributed: .*{re.escape(why)}"):
        distribute(nn.Sequential(layer), shard(Grid((8, 6))))


def test_layers_that_only_look_different_are_distributed(alone):
    """Control of the test above."""
    part, x = shard(Grid((8, 6))), torch.randn(1, 3, 8, 6)
    for layer in (Same(3, 3, 3), adapt(GConv(conv2d(3, 3, 3))), Shortcut(nn.Conv2d(3, 3, 3, padding=1))):
        assert_close("distributed", distribute(nn.Sequential(layer), part)(part.take(x)), layer(x), 1e-5)


def test_a_graph_changed_in_place_is_cut_again(alone):
    graph, x = Graph(PATH.edge_index, edge_weight=torch.tensor([1.0, 2.0, 3.0])), torch.randn(4, 3)
    for layer in (GConv(gcn(3, 2)), GConv(cheb(3, 2, k=3)), GConv(graphconv(3, 2)), GConv(gat(3, 2, edge_dim=2))):
        own = Graph(graph.edge_index, edge_weight=graph.edge_weight, edge_attr=torch.rand(3, 2))
        part = shard(own)
        net = distribute(layer, part)
        before = net(x)
        own.edge_weight.mul_(torch.tensor([3.0, 1.0, 0.5]))
        own.edge_attr.mul_(-3)
        assert_close(repr(layer), net(x), layer(x, own), 1e-5)
        assert not torch.allclose(net(x), before), "the change matters"


class Doubled(nn.Conv2d):
    """A class of the user's, whose forward is that of its base."""


@pytest.mark.parametrize("frozen", [False, True])
def test_a_trained_model_is_restored_for_a_single_process(alone, frozen):
    """With its classes and names, tied layers tied, and what it learned; the distributed model goes on."""
    again = GConv(conv2d(4, 4, 3, padding=1))
    net = nn.Sequential(
        Doubled(3, 4, 3, padding=1, groups=1), nn.BatchNorm2d(4), again, nn.ReLU(), again,
        nn.ConvTranspose2d(4, 4, 2, 2, bias=False), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 2),
    ).double()  # fmt: skip
    net[0].weight.requires_grad_(not frozen)
    many, x = distribute(net, shard(Grid((6, 5)))), torch.randn(2, 3, 6, 5, dtype=torch.float64)
    untrained = many.restored()
    for model in (net, many):
        step = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
        (model(x) ** 2).sum().backward()
        step.step()
    one = many.restored()
    assert repr(one) == repr(net) and list(one.state_dict()) == list(net.state_dict()) and one[2] is one[4]
    assert [p.requires_grad for p in one.parameters()] == [p.requires_grad for p in net.parameters()]
    for name, want in net.state_dict().items():
        assert_close(name, one.state_dict()[name], want, 1e-12)
    assert not torch.allclose(untrained[9].weight, one[9].weight), "a copy of an earlier state"
    assert all(module.training for module in one.modules())
    assert not any(module.training for module in many.eval().restored().modules())
    for each in (one.eval(), many):
        assert_close("output", each(x), net.eval()(x), 1e-12)


@pytest.mark.parametrize("make", [pyg.GCNConv, pyg.SAGEConv, pyg.GATConv, pyg.GraphConv, pyg.TAGConv])
def test_layers_of_pyg_are_restored(alone, make):
    layer = make(3, 2)
    found = distribute(layer, shard(PATH)).restored()
    assert type(found) is make and not any(p.is_meta for p in found.parameters())
    x = torch.randn(4, 3)
    assert torch.equal(found(x, PATH.edge_index), layer(x, PATH.edge_index))


def test_copies_of_a_model_run_on_its_part(alone):
    class Called(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = GConv(gcn(3, 2))

        def forward(self, x, graph):
            return self.layer(x, graph)

    part, x = shard(PATH), torch.randn(4, 3)
    net = distribute(Called(), part)
    want = net(x, part.domain)
    for twin in (copy.deepcopy(net), torch.optim.swa_utils.AveragedModel(net)):
        assert torch.equal(twin(x, part.domain), want)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_sums_in_half_precision_do_not_overflow(alone, kind):
    nodes = Graph(torch.empty(2, 0, dtype=torch.int64), 70_000)
    x, images = torch.rand(70_000, 2).to(kind) + 1, torch.rand(1, 2, 300, 300).to(kind) + 1
    layer, batch = GConv(global_pool()), nn.BatchNorm1d(2)
    assert_close("graph", distribute(layer, shard(nodes))(x), layer(x, nodes), 1e-2)
    assert_close("grid", distribute(layer, shard(Grid((300, 300))))(images), layer(images), 1e-2)
    y = distribute(nn.Sequential(batch), shard(nodes))(x)
    assert y.dtype == kind
    assert_close("normalised", y, batch(x), 1e-1)


def test_autocast_gives_the_type_of_a_single_process(alone):
    x = torch.randn(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        for layer in (GConv(sage(3, 2)), GConv(cheb(3, 2, k=3)), GConv(gat(3, 2))):
            y, want = distribute(layer, shard(PATH))(x), layer(x, PATH)
            assert y.dtype == want.dtype == torch.bfloat16
            assert_close(repr(layer), y.float(), want.float(), 0.05)


def test_a_layer_outside_of_the_forward_pass_is_refused(alone):
    """The gradients of its weights would not be summed over the processes."""

    class Checkpointed(nn.Module):
        def __init__(self, again):
            super().__init__()
            self.layer, self.again = GConv(gcn(3, 2)), again

        def forward(self, x):
            return checkpoint(self.layer, x, use_reentrant=self.again)

    x = torch.randn(4, 3, requires_grad=True)
    distribute(Checkpointed(False), shard(PATH))(x).sum().backward()
    net = distribute(Checkpointed(True), shard(PATH))
    with pytest.raises(ValueError, match="use_reentrant=False"):
        net(x).sum().backward()
    with pytest.raises(ValueError, match="outside of the forward pass"):
        net.model.layer(x)


def test_batch_normalisation_that_cannot_be_synchronised_is_named(alone):
    for norm, why in (
        (DoubledNorm(3), "it has a forward of its own"),
        (nn.LazyBatchNorm2d(), "it is not initialised"),
        (nn.utils.parametrizations.weight_norm(nn.BatchNorm2d(3), dim=None), "its weight or bias is parametrized"),
    ):
        with pytest.raises(TypeError, match=rf"\(0\) cannot be synchronised: {why}"):
            sync_batch_norm(nn.Sequential(norm))
    doubled = hooked(nn.BatchNorm2d(3))
    doubled.register_forward_hook(lambda module, x, y: 2 * y)
    x = torch.randn(2, 3, 4, 4)
    assert_close("hooks run", sync_batch_norm(doubled)(x), doubled(x), 1e-5)


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


def test_without_a_group_or_pymetis_the_error_gives_advice(monkeypatch, alone):
    monkeypatch.setitem(sys.modules, "pymetis", None)
    with pytest.raises(ValueError, match="pip install pymetis"):
        shard(PATH, method="metis")
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ValueError, match="pip install scipy"):
        shard(PATH, method="rcm")


def test_without_a_group_the_error_gives_advice():
    with pytest.raises(RuntimeError, match="torchrun"):
        shard(PATH)
