"""Graph.sample: exact with all neighbours, unbiased with fewer, the same from the same generator, and in workers."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader
from torch_geometric.data import Data

from gconv import Bipartite, GConv, Graph, apply_blocks, list_operators
from gconv.operators import cheb, conv2d, gat, gcn, gin, graphconv, le, lightgcn, sage, simple
from gconv.operators.shapes import messy
from gconv.spec import operator
from gconv.testing import assert_close
from gconv.testing.case import Case

DOUBLE = torch.float64


def generator(seed):
    return torch.Generator().manual_seed(seed)


def busy(n=30, e=200):
    """Directed, weighted, with double edges and self-loops; the last three nodes are isolated."""
    index = torch.randint(n - 3, (2, e), generator=generator(0))
    index = torch.cat([index, torch.tensor([[3, 3, 5, 7], [3, 3, 5, 7]])], 1)
    weight = torch.rand(index.shape[1], dtype=DOUBLE, generator=generator(1))
    return Graph(index, n, edge_weight=weight)


def layer(spec):
    torch.manual_seed(0)
    return GConv(spec, dtype=DOUBLE)


QUICK = {"gcn", "sage", "gat", "cheb", "gin"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in list_operators()]
)
def test_with_all_neighbours_every_operator_gives_the_rows_of_the_whole_graph_or_refuses(name):
    for sample in operator(name).samples():
        case = Case.of(sample, DOUBLE)
        if not isinstance(case.domain, Graph) or sample.spec.structure.domain != "graph":
            continue
        seeds = torch.arange(case.domain.size - 1, -1, -2)
        (block,) = case.domain.sample(seeds, [-1])
        structure = sample.spec.structure
        if structure.reads is None and structure.reads_block is None:
            with pytest.raises(TypeError, match="A sampled block holds one step"):
                case(case.x[..., block.n_id, :], domain=block)
        else:
            got = case(case.x[..., block.n_id, :], domain=block)
            assert_close(name, got, case(case.x)[..., seeds, :], 1e-12)


NETWORKS = {
    "gcn": [gcn(3, 4), gcn(4, 2, improved=True)],
    "sage": [sage(3, 4), sage(4, 2, "max")],
    "gat": [gat(3, 2, 2), gat(4, 2)],
    "graphconv": [graphconv(3, 4), graphconv(4, 2, "mean")],
}


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_two_layers_with_all_neighbours_are_the_whole_graph_and_so_are_their_gradients(name, weighted):
    graph = busy() if weighted else replace(busy(), edge_weight=None)
    first, second = (layer(spec) for spec in NETWORKS[name])
    net = torch.nn.Sequential(first, torch.nn.Sequential(torch.nn.ELU(), second))
    x = torch.randn(graph.size, 3, dtype=DOUBLE, requires_grad=True)
    seeds = torch.tensor([29, 3, 0, 7, 12])
    blocks = graph.sample(seeds, [-1, -1])
    assert blocks[-1].n_id[: len(seeds)].equal(seeds) and blocks[0].sizes[1] == blocks[1].sizes[0]
    want, got = second(net[1][0](first(x, graph)), graph)[seeds], apply_blocks(net, x[blocks[0].n_id], blocks)
    assert_close(name, got, want, 1e-12)
    for a, b in zip(*(torch.autograd.grad(y.cos().sum(), [x, *net.parameters()]) for y in (got, want)), strict=True):
        assert_close(name, a, b, 1e-12)


def test_gradients_of_learned_weights_go_through_the_degrees_of_the_whole_graph():
    graph, net, seeds = busy(), layer(gcn(3, 2)), [3, 0, 7]
    w = graph.edge_weight.clone().requires_grad_()
    learned = replace(graph, edge_weight=w)
    x = torch.randn(graph.size, 3, dtype=DOUBLE)
    (block,) = learned.sample(seeds, [-1])
    (got,) = torch.autograd.grad(net(x[block.n_id], block).cos().sum(), w)
    (want,) = torch.autograd.grad(net(x, learned)[seeds].cos().sum(), w)
    assert_close("edge weights", got, want, 1e-12)


def deviations(spec, draws=400, biased=False):
    """How many standard errors the mean over draws is off the whole graph, at most over the output's numbers."""
    graph, net, seeds = busy(), layer(spec).requires_grad_(False), torch.arange(0, 30, 3)
    x, source = torch.rand(graph.size, 3, dtype=DOUBLE, generator=generator(2)), generator(3)
    got = []
    for _ in range(draws):
        (block,) = graph.sample(seeds, [2], source)
        if biased:
            object.__setattr__(block, "whole", replace(block.whole, scale=None))
        got.append(net(x[block.n_id], block))
    found, want = torch.stack(got), net(x, graph)[seeds]
    error, spread = found.mean(0) - want, found.std(0) / draws**0.5
    assert bool((spread > 1e-6).any())
    assert_close("rows that lose no edge", error[spread < 1e-12], torch.zeros_like(error[spread < 1e-12]), 1e-12)
    return float((error / spread)[spread >= 1e-12].abs().max())


UNBIASED = [
    gcn(3, 2), gcn(3, 2, improved=True), gcn(3, 2, add_self_loops=False), lightgcn(), sage(3, 2),
    sage(3, 2, "sum"), graphconv(3, 2), graphconv(3, 2, "mean"), simple(), simple("mean", "self_loop"), gin(0.5),
    gin(0.5, True), le(3, 2),
]  # fmt: skip


@pytest.mark.parametrize("spec", [pytest.param(s, marks=pytest.mark.slow, id=repr(s)) for s in UNBIASED])
def test_sampled_sums_and_means_are_unbiased(spec):
    assert deviations(spec) < 5


def test_the_mean_over_a_few_draws_is_near():
    assert deviations(gcn(3, 2), draws=60) < 6


@pytest.mark.parametrize(
    "spec",
    [
        sage(3, 2, "sum"), pytest.param(gcn(3, 2), marks=pytest.mark.slow),
        pytest.param(graphconv(3, 2, "mean"), marks=pytest.mark.slow),
    ],
    ids=repr,
)  # fmt: skip
def test_a_sampler_that_does_not_scale_is_detected(spec):
    """Negative control."""
    assert deviations(spec, draws=60, biased=True) > 6


def test_each_edge_is_drawn_as_often_and_none_twice():
    star = Graph(torch.stack([torch.arange(6), torch.zeros(6, dtype=torch.int64)]))  # one of them a self-loop
    source, seen = generator(0), torch.zeros(6)
    for _ in range(100):
        (block,) = star.sample([0], [2], source)
        assert block.num_edges == 3 and len(block.whole.edges.unique()) == 3
        seen[block.whole.edges] += 1
    assert seen[0] == 100 and (seen[1:] - 40).abs().max() < 5 * (100 * 0.4 * 0.6) ** 0.5


def same(a, b):
    return all(x.edge_index.equal(y.edge_index) and x.n_id.equal(y.n_id) for x, y in zip(a, b, strict=True))


def test_the_same_generator_gives_the_same_blocks():
    graph = busy()
    one, again, other = (graph.sample([3, 9, 0], [3, 2], generator(seed)) for seed in (5, 5, 6))
    assert same(one, again) and not same(one, other)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_in_the_workers_of_a_loader():
    graph, net = busy(), layer(gcn(3, 2))
    x = torch.randn(graph.size, 3, dtype=DOUBLE)
    take = partial(graph.sample, fanouts=[-1])
    seeds = list(range(0, 30, 2))
    loader = DataLoader(seeds, batch_size=4, collate_fn=take, num_workers=2)
    got = torch.cat([net(x[block.n_id], block) for (block,) in loader])
    assert_close("workers", got, net(x, graph)[seeds], 1e-12)
    loader = DataLoader(seeds, 4, collate_fn=partial(graph.sample, fanouts=[2]), num_workers=2, generator=generator(0))
    epochs = [[block for (block,) in loader] for _ in range(2)]
    assert not same(*epochs)  # each worker and epoch draws anew


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("name", ["edge_weight", "edge_attr"])
def test_learned_edges_in_a_worker_are_an_error_and_no_hang(name):
    """The worker could not send the block, and the loader would wait for it."""
    plain = busy()
    learned = torch.ones(plain.num_edges, requires_grad=True)
    for tensor in (learned, learned.detach()):
        graph = Graph(plain.edge_index, plain.size, **{name: tensor})
        loader = DataLoader([0, 1], 2, collate_fn=partial(graph.sample, fanouts=[2]), num_workers=1, timeout=60)
        if tensor.requires_grad:
            with pytest.raises(ValueError, match=f"Gradients of {name} cannot leave a worker"):
                next(iter(loader))
        else:
            assert next(iter(loader))[0].n_id[:2].tolist() == [0, 1]
    assert getattr(Graph(plain.edge_index, plain.size, **{name: learned}).sample([0], [2])[0], name).requires_grad


def test_seeds_may_be_a_series():
    """The rows that pandas selected, whatever their labels are."""
    pandas = pytest.importorskip("pandas")
    for labels in ([7, 9], [1, 0], ["a", "b"]):
        assert busy().sample(pandas.Series([3, 0], labels), [-1])[0].n_id[:2].tolist() == [3, 0]


def pyg_batch(graph, blocks, seeds):
    """What NeighborLoader gives for these draws: one graph on the nodes of all hops, and each edge once."""
    n_id, edges = blocks[0].n_id, torch.cat([block.whole.edges for block in blocks]).unique()
    place = torch.full((graph.size,), -1).index_copy(0, n_id, torch.arange(len(n_id)))
    return Data(
        n_id=n_id, edge_index=place[graph.edge_index[:, edges]], e_id=edges, batch_size=len(seeds),
        input_id=torch.arange(len(seeds)),
    )  # fmt: skip


def test_batches_of_neighbour_loaders_are_blocks():
    graph, seeds, nets = busy(), torch.tensor([4, 29, 3]), [layer(gcn(3, 4)), layer(sage(4, 2))]
    x = torch.randn(graph.size, 3, dtype=DOUBLE)
    net = torch.nn.Sequential(*nets)
    batch = pyg_batch(graph, graph.sample(seeds, [-1, -1]), seeds)
    blocks = graph.blocks_of(batch, 2)
    assert_close("all", apply_blocks(net, x[blocks[0].n_id], blocks), nets[1](nets[0](x, graph), graph)[seeds], 1e-12)
    (drawn,) = graph.sample(seeds, [2], generator(0))
    (block,) = graph.blocks_of(pyg_batch(graph, [drawn], seeds), 1)
    assert_close("scaled alike", nets[0](x[block.n_id], block), nets[0](x[drawn.n_id], drawn), 1e-12)
    bare = replace(graph, edge_weight=None)
    del batch.e_id
    assert same(bare.blocks_of(batch, 2), blocks)
    for wrong, layers, match in [
        (batch, 2, "needs e_id"), (Data(n_id=seeds), 1, "lacks edge_index"),
        (pyg_batch(graph, [drawn], seeds), 2, "fewer layers"),
        (Data(n_id=seeds, edge_index=torch.tensor([[0], [7]]), batch_size=1), 1, "positions in n_id"),
        (Data(n_id=seeds, edge_index=torch.tensor([[0], [1]]), batch_size=9), 1, "length of input_id"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=match):
            graph.blocks_of(wrong, layers)
    batch.edge_index = torch.zeros_like(batch.edge_index)
    with pytest.raises(ValueError, match="sampled from another graph"):
        bare.blocks_of(batch, 1)


@pytest.mark.parametrize(
    ("seeds", "fanouts", "error", "match"),
    [
        ([], [2], ValueError, "at least one node, but"), ([1, 2, 1], [2], ValueError, "contains node 1 twice"),
        ([6], [2], ValueError, "node 6, but the graph has 6 nodes"), ([-1], [2], ValueError, "node -1"),
        ([0.5], [2], TypeError, "node indices"), ("ab", [2], TypeError, "node indices"),
        (torch.ones(6, dtype=torch.bool), [2], TypeError, "torch.bool"), (3, [2], TypeError, "shape"),
        ([1], [], TypeError, "fanouts must list"), ([1], 5, TypeError, "fanouts must list"),
        ([1], [0], ValueError, "at least 1, or -1"), ([1], [-2], ValueError, "is -2"),
        ([1], [2.5], TypeError, "must be an integer"), ([1], [True], TypeError, "must be an integer"),
    ],
)  # fmt: skip
def test_mistakes_are_errors_with_a_message(seeds, fanouts, error, match):
    with pytest.raises(error, match=match):
        messy().sample(seeds, fanouts)


class Residual(torch.nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


def test_the_forward_and_the_hooks_of_a_nested_sequential_run():
    graph, seeds = busy(), [4, 3]
    inner = torch.nn.Sequential(torch.nn.Linear(4, 4, dtype=DOUBLE))
    inner.register_forward_hook(lambda module, x, y: 3 * y)
    net = torch.nn.Sequential(layer(gcn(3, 4)), Residual(torch.nn.Linear(4, 4, dtype=DOUBLE)), inner)
    x = torch.randn(graph.size, 3, dtype=DOUBLE)
    blocks = graph.sample(seeds, [-1])
    want = inner(net[1](net[0](x, graph)))[seeds]
    assert_close("nested", apply_blocks(net, x[blocks[0].n_id], blocks), want, 1e-12)
    for outer in (Residual(net[0]), inner):
        with pytest.raises(TypeError, match=r"without hooks or a forward of its own, but"):
            apply_blocks(outer, x, blocks)


def test_what_blocks_refuse():
    (block,) = messy().sample([1, 2], [1])
    assert block.to("meta").whole.nodes.device.type == "meta"
    with pytest.raises(TypeError, match="generator must be"):
        messy().sample([1], [2], 7)
    same = torch.arange(9)
    changes = lambda: replace(block, edge_weight=None), lambda: replace(block), lambda: block.permute(same, same)
    for change in changes:
        with pytest.raises(ValueError, match="cannot be changed"):  # it would lose the degrees of the whole graph
            change()
    with pytest.raises(ValueError, match="have no union"):
        Bipartite.union([block, block])
    with pytest.raises(ValueError, match="has an n_id"):
        block.T.n_id  # noqa: B018
    with pytest.raises(ValueError, match="takes 2 blocks, not 1"):
        apply_blocks(torch.nn.Sequential(layer(gcn(2, 2)), layer(gcn(2, 2))), torch.ones(2, 2), [block])
    with pytest.raises(TypeError, match=r"takes an nn\.Sequential"):
        apply_blocks(layer(gcn(2, 2)), torch.ones(2, 2), [block])
    for spec in (cheb(2, 2, k=3), conv2d(2, 2, 3)):
        with pytest.raises(TypeError):
            layer(spec)(torch.ones(block.sizes[0], 2, dtype=DOUBLE), block)
