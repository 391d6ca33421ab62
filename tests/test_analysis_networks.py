"""Smoothing, squashing, costs, Lipschitz bounds, transforms and pictures."""

import math

import matplotlib
import numpy as np
import pytest
import torch
import torch.nn.utils.parametrize as parametrize
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gconv import GConv, Graph, Grid, NotLinear, analysis
from gconv.analysis import (
    SpectralNorm,
    adjoint_gap,
    clip_singular_values,
    cost,
    dirichlet_energy,
    effective_receptive_field,
    effective_resistance,
    energy_by_depth,
    equivariance_error,
    frequency_response,
    lipschitz_bound,
    matrix,
    mean_average_distance,
    norm,
    parameter_count,
    singular_values,
    spectral_normalise,
    total_influence,
)
from gconv.laplacian import laplacian
from gconv.linear import block_diag, identity
from gconv.operators import (
    appnp,
    avg_pool2d,
    cheb,
    conv1d,
    conv2d,
    conv_transpose1d,
    conv_transpose2d,
    depthwise,
    gat,
    gcn,
    heat,
    max_pool2d,
    monet,
    sage,
    separable,
    sgc,
    spectral,
)
from gconv.operators.shapes import messy, ring, weighted

DOUBLE = torch.float64


def layer_of(spec):
    return GConv(spec, dtype=DOUBLE)


def by_position(x, graph):
    """Not equivariant to permutations."""
    return x * torch.arange(len(x))[:, None] ** 2


# -- oversmoothing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalization", [None, "sym"])
def test_the_energy_is_the_quadratic_form_of_the_laplacian(normalization):
    graph, x = weighted(), torch.randn(3, 8, 2, dtype=DOUBLE)
    x[:, 7] = 0  # an isolated node has diagonal 1 in the normalised L, but no neighbour to differ from
    L = laplacian(graph, DOUBLE, norm=normalization).expand(torch.eye(8, dtype=DOUBLE))[0]
    want = torch.einsum("bnc,nm,bmc->b", x, L, x)
    torch.testing.assert_close(dirichlet_energy(x, graph, normalization), want)
    torch.testing.assert_close(dirichlet_energy(x, graph, normalization, relative=True), want / x.square().sum((1, 2)))


def test_constant_signals_have_no_energy():
    graph = weighted()
    assert dirichlet_energy(torch.ones(8, 1, dtype=DOUBLE), graph) == 0
    d = graph.out_degree(DOUBLE).sqrt()[:, None]
    assert dirichlet_energy(d, graph, "sym") < 1e-28
    assert dirichlet_energy(d, graph) > 0.1  # negative control
    assert dirichlet_energy(torch.randn(6, 2, dtype=DOUBLE), messy()) > 0  # a sum of squares on any graph
    with pytest.raises(ValueError, match="must be 'sym' or None, but it is 'row'"):
        dirichlet_energy(d, graph, "row")
    with pytest.raises(ValueError, match="8 nodes, but x"):
        dirichlet_energy(d[:3], graph)


def test_the_energy_is_differentiable():
    x = torch.randn(7, 2, dtype=DOUBLE, requires_grad=True)
    (g,) = torch.autograd.grad(dirichlet_energy(x, ring()), x)
    L = laplacian(ring(), DOUBLE, norm=None).expand(torch.eye(7, dtype=DOUBLE))[0]
    torch.testing.assert_close(g, 2 * L @ x)


def test_repeated_averaging_smooths_and_a_high_pass_does_not():
    x = torch.randn(9, 2, dtype=DOUBLE)
    averages = [layer_of(sgc(2, 2, k=1, bias=False)) for _ in range(6)]
    for layer in averages:
        layer.weight.data.copy_(torch.eye(2))
    falling = energy_by_depth(nn.Sequential(*averages), x, ring(9))
    assert (falling.diff() < 0).all() and falling[-1] < 0.5 * falling[0] and len(falling) == 7
    passing = [layer_of(cheb(2, 2, k=2, bias=False)) for _ in range(6)]
    for layer in passing:
        layer.weight.data.copy_(torch.stack([torch.eye(2), torch.eye(2)]))  # 1 + L~: high frequencies stay
    assert (energy_by_depth(list(passing), x, ring(9)).diff() > 0).all()
    with pytest.raises(TypeError, match="layers in a row"):
        energy_by_depth(averages[0], x, ring(9))


@pytest.mark.parametrize(
    "drawn",
    [
        lambda seed: adjoint_gap(layer_of(gcn(2, 2)), seed, domain=ring(9)),
        lambda seed: effective_receptive_field(nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh()), (2, 9, 9), seed=seed),
        lambda seed: equivariance_error(by_position, "permutation", torch.ones(9, 2).double(), ring(9), seed=seed),
    ],
    ids=["adjoint_gap", "effective_receptive_field", "equivariance_error"],
)
def test_random_draws_are_those_of_the_seed(drawn):
    def found(seed):
        torch.manual_seed(0)  # of the weights
        return torch.as_tensor(drawn(seed))

    assert torch.equal(found(3), found(3))
    assert any(not torch.equal(found(3), found(seed)) for seed in range(4, 12))


@pytest.mark.parametrize("normalization", ["sym", None])
@pytest.mark.parametrize("relative", [True, False])
def test_the_energy_by_depth_is_that_of_each_output(relative, normalization):
    layers, signals = [layer_of(sgc(2, 2, k=1)) for _ in range(3)], [3 * torch.randn(9, 2, dtype=DOUBLE)]
    for layer in layers:
        signals.append(layer(signals[-1], ring(9)).detach())
    want = [dirichlet_energy(x, ring(9), normalization, relative=relative) for x in signals]
    got = energy_by_depth(layers, signals[0], ring(9), normalization, relative=relative)
    torch.testing.assert_close(got, torch.stack(want))
    other = energy_by_depth(layers, signals[0], ring(9), normalization, relative=not relative)
    assert not torch.allclose(got, other)


def test_mean_average_distance():
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    c = 1 - math.sqrt(0.5)
    assert mean_average_distance(x) == pytest.approx(((1 + c) / 2 + (1 + c) / 2 + c) / 3)
    path = Graph(torch.tensor([[0, 2, 1, 2], [2, 0, 2, 1]]), 3)
    assert mean_average_distance(x, path) == pytest.approx(c)
    assert mean_average_distance(torch.ones(4, 2)) == 0


# -- over-squashing --------------------------------------------------------------------------------------------------


def test_influence_of_a_map_is_its_matrix():
    A = layer_of(cheb(2, 3, k=3)).at(messy())
    want = matrix(A).detach().abs().unflatten(0, (6, 3)).unflatten(2, (6, 2)).sum((1, 3))
    torch.testing.assert_close(total_influence(A), want)
    torch.testing.assert_close(total_influence(A, targets=[4, 1]), want[[4, 1]])


def test_influence_of_a_network_is_its_jacobian():
    net, graph = nn.Sequential(layer_of(gat(2, 2)), nn.Tanh(), layer_of(gcn(2, 3))), weighted()
    x = torch.randn(8, 2, dtype=DOUBLE)
    jacobian = torch.autograd.functional.jacobian(lambda z: net[2](net[1](net[0](z, graph)), graph), x)
    torch.testing.assert_close(total_influence(net, x, graph), jacobian.abs().sum((1, 3)))
    with pytest.raises(ValueError, match="give the x"):
        total_influence(net)


@settings(max_examples=10, deadline=None)
@given(n=st.integers(2, 8), seed=st.integers(0, 999))
def test_resistances_are_networkx_s(n, seed):
    import networkx as nx

    tree = nx.random_labeled_tree(n, seed=seed)
    more = nx.gnp_random_graph(n, 0.4, seed=seed)
    g = nx.compose(tree, more)
    rng = np.random.default_rng(seed)
    for u, v in g.edges:
        g[u][v]["weight"] = rng.uniform(0.5, 2.0)
    nodes = sorted(g.nodes)
    pairs = torch.tensor([(u, v) for u in nodes for v in nodes if u != v]).mT
    ordered = nx.Graph()
    ordered.add_nodes_from(nodes)
    ordered.add_weighted_edges_from((u, v, d["weight"]) for u, v, d in g.edges(data=True))
    # their inverted weights are resistances; ours are conductances
    want = [nx.resistance_distance(ordered, u, v, weight="weight", invert_weight=False) for u, v in pairs.mT.tolist()]
    got = effective_resistance(Graph.from_networkx(ordered), pairs)
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-8)


def test_foster_s_theorem_and_components():
    """The sum of w R over the edges is n minus the number of components."""
    graph = weighted()
    total = float((graph.weights(DOUBLE) * effective_resistance(graph)).sum()) / 2
    assert total == pytest.approx(8 - 2)
    assert effective_resistance(graph, torch.tensor([[0, 6, 3], [7, 7, 3]])).tolist() == [math.inf, math.inf, 0]
    with pytest.raises(ValueError, match="undirected graph"):
        effective_resistance(messy())
    with pytest.raises(ValueError, match=r"\(2, p\) tensor of nodes"):
        effective_resistance(graph, torch.tensor([0, 1]))


# -- costs -----------------------------------------------------------------------------------------------------------


CONVS = {
    "conv2d": (conv2d(3, 8, 3, padding=1, bias=False), (2, 3, 6, 7)),
    "stride": (conv2d(4, 6, 3, stride=2, dilation=2, bias=False), (2, 4, 9, 8)),
    "groups": (depthwise(4, 3, padding=1, bias=False), (2, 4, 6, 7)),
    "transposed": (conv_transpose2d(3, 8, 3, stride=2, bias=False), (2, 3, 4, 5)),
    "conv1d": (conv1d(3, 8, 3, bias=False), (2, 3, 9)),
}


@pytest.mark.parametrize("name", CONVS)
def test_flops_of_torch_s_kernels_are_what_torch_counts(name):
    spec, shape = CONVS[name]
    layer, x = GConv(spec), torch.randn(shape)
    A = layer.at(Grid(shape[2:]))  # whose product does not ask torch how it would lay out an image
    for lowering in ("native",) if name == "groups" else ("native", "im2col"):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            A.apply(x.flatten(2).mT, lowering)
        assert cost(layer, x)[lowering].flops == counter.get_total_flops(), lowering


def test_flops_of_mixing_on_graphs_are_what_torch_counts():
    """Torch counts the matrix products and not the sparse ones: without entries the two agree."""
    empty, x = Graph(torch.zeros(2, 0, dtype=torch.int64), 6), torch.randn(6, 3)
    layer = GConv(sage(3, 4, bias=False))
    with FlopCounterMode(display=False) as counter:
        layer(x, empty, lowering="sparse:aggregate")
    assert cost(layer, x, empty)["sparse:aggregate"].flops == counter.get_total_flops()
    full = cost(layer, x, ring(6))["sparse:aggregate"]
    assert full.flops == counter.get_total_flops() + 2 * 12 * 3 and full.bytes > 0 and full.peak > 0


def test_costs_of_compositions_add_up():
    A, B = layer_of(conv2d(2, 3, 3, padding=1)).at(Grid((4, 5))), layer_of(conv2d(3, 2, 3, padding=1)).at(Grid((4, 5)))
    one = {C: min(c.flops for name, c in cost(C).items() if name == "native") for C in (A, B)}
    whole = cost(B @ A)["planned"]
    assert whole.flops == one[A] + one[B]
    assert cost(B @ A + A.I)["planned"].flops > whole.flops and cost(2 * A)["planned"].flops == one[A] + 60
    assert cost(block_diag([A, B.T]))["planned"].flops > one[A] + one[B]
    assert cost(A, torch.zeros(7, 20, 2, dtype=DOUBLE))["native"].flops == 7 * one[A]
    with pytest.raises(TypeError, match="give an x"):
        cost(layer_of(conv2d(1, 1, 3)))


def test_parameters_are_counted():
    layer = GConv(monet(3, 4, dim=2, kernel_size=2))
    assert parameter_count(layer) == sum(p.numel() for p in layer.parameters())
    layer.weight.requires_grad_(False)
    assert parameter_count(layer) == parameter_count(layer, trainable=False) - layer.weight.numel()


# -- Lipschitz -------------------------------------------------------------------------------------------------------


def network():
    return nn.Sequential(
        layer_of(conv2d(2, 4, 3, padding=1)),
        nn.BatchNorm2d(4, dtype=DOUBLE),
        nn.LeakyReLU(0.1),
        layer_of(max_pool2d(3, stride=2, padding=1)),
        nn.Conv2d(4, 4, 3, padding=1, stride=2, groups=2, dtype=DOUBLE),
        nn.GELU(),
        nn.ConvTranspose2d(4, 2, 3, stride=2, output_padding=1, padding=1, dtype=DOUBLE),
        nn.AvgPool2d(2, padding=1, count_include_pad=False),
        nn.MaxPool2d(2),
        nn.Dropout(),
        nn.Flatten(),
        nn.Linear(2, 3, dtype=DOUBLE),
    )


def test_no_pair_of_inputs_is_stretched_beyond_the_bound():
    net = network()
    for _ in range(3):
        net(torch.randn(8, 2, 7, 6, dtype=DOUBLE))  # gives batch norm a spread
    net.eval()
    bound, tight = lipschitz_bound(net, (2, 7, 6)), lipschitz_bound(net, (2, 7, 6), certified=False)
    assert tight <= bound * (1 + 1e-9)
    x = torch.randn(64, 2, 7, 6, dtype=DOUBLE)
    step = 1e-3 * torch.randn(64, 2, 7, 6, dtype=DOUBLE)
    with torch.no_grad():
        ratio = (net(x + step) - net(x)).flatten(1).norm(dim=1) / step.flatten(1).norm(dim=1)
    assert float(ratio.max()) <= tight
    jacobian = torch.autograd.functional.jacobian(lambda z: net(z[None])[0], x[0])
    assert float(torch.linalg.matrix_norm(jacobian.flatten(1), 2)) <= tight


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(2, 4, 3, padding=1, groups=2, dtype=DOUBLE),
        nn.Conv2d(2, 3, 2, padding="same", padding_mode="reflect", dtype=DOUBLE),
        nn.ConvTranspose2d(2, 4, 3, stride=2, output_padding=1, groups=2, dtype=DOUBLE),
        nn.AvgPool2d(3, stride=2, padding=1),
    ],
    ids=lambda m: type(m).__name__,
)
def test_torch_s_linear_layers_are_read_with_their_weights(module):
    x = torch.zeros(1, 2, 6, 5, dtype=DOUBLE)
    offset = module(x)
    jacobian = torch.autograd.functional.jacobian(lambda z: module(z) - offset, x)
    want = float(torch.linalg.matrix_norm(jacobian.reshape(offset.numel(), x.numel()), 2))
    assert lipschitz_bound(module.double(), x[0], certified=False) == pytest.approx(want, rel=1e-7)
    assert lipschitz_bound(module.double(), x[0]) >= want * (1 - 1e-12)


def test_the_bound_of_overlapping_maxima():
    pool = GConv(max_pool2d(3, stride=1, padding=1))
    assert lipschitz_bound(pool, (1, 5, 5)) == 3.0  # a site lies under nine windows
    x = torch.zeros(1, 1, 5, 5)
    y = x.clone()
    y[0, 0, 2, 2] = 1.0
    assert float((pool(y) - pool(x)).norm()) == 3.0
    assert lipschitz_bound(GConv(max_pool2d(2)), (1, 4, 4)) == 1.0
    one = layer_of(sage(2, 3, aggr="max"))
    x = torch.randn(50, 7, 2, dtype=DOUBLE)
    y = x + 1e-3 * torch.randn_like(x)
    with torch.no_grad():
        gaps = (one(y, ring()) - one(x, ring())).flatten(1).norm(dim=1) / (y - x).flatten(1).norm(dim=1)
    assert float(gaps.max()) <= lipschitz_bound(one, (7, 2), ring())


def test_activations_are_no_steeper_than_their_bound():
    at = torch.linspace(-12, 12, 200001, dtype=DOUBLE)
    elementwise = [kind for kind in analysis.lipschitz.SLOPES if kind not in (nn.Softmax, nn.Flatten, nn.Unflatten)]
    for kind in elementwise:
        if "Pad" in kind.__name__:
            continue
        y = kind()(at)
        steepest = float((y.diff() / at.diff()).abs().max())
        assert 0.98 * analysis.lipschitz.SLOPES[kind] <= steepest + 1e-6 <= analysis.lipschitz.SLOPES[kind] + 2e-6, kind
    p = torch.tensor([0.5, 0.5], dtype=DOUBLE)
    assert float(torch.linalg.matrix_norm(torch.diag(p) - torch.outer(p, p), 2)) == 0.5  # softmax at its steepest


def test_rules_for_own_modules():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = layer_of(conv2d(2, 2, 3, padding=1))

        def forward(self, x):
            return x + self.body(x) if bool(x.isfinite().all()) else x  # which torch.fx cannot trace

    net = nn.Sequential(Residual(), nn.ReLU()).eval()
    with pytest.raises(TypeError, match=r"No bound is known for Residual: torch.fx cannot trace .*give one, rules="):
        lipschitz_bound(net, (2, 5, 5))
    bound = lipschitz_bound(net, (2, 5, 5), rules={Residual: lambda m, part: 1 + part(m.body)}, certified=False)
    A = net[0].body.at(Grid((5, 5)))
    assert bound == pytest.approx(1 + norm(A)) and bound >= norm(A + A.I)


def test_what_has_no_bound_is_refused():
    with pytest.raises(ValueError, match="freeze it"):
        lipschitz_bound(layer_of(gat(2, 2)), (7, 2), ring())
    with pytest.raises(ValueError, match=r"call model.eval\(\)"):
        lipschitz_bound(nn.Sequential(nn.BatchNorm1d(2)), (2, 5))
    with pytest.raises(ValueError, match="Dropout in training mode"):
        lipschitz_bound(nn.Dropout(), (2, 5))
    with pytest.raises(ValueError, match="give the graph as the domain"):
        lipschitz_bound(layer_of(gcn(2, 2)), (7, 2))
    with pytest.raises(TypeError, match="No bound is known for LayerNorm"):
        lipschitz_bound(nn.LayerNorm(2), (7, 2))


def test_graph_networks_have_bounds():
    net = nn.Sequential(layer_of(gcn(2, 4)), nn.ReLU(), layer_of(cheb(4, 3, k=3)))
    want = norm(net[0].at(weighted())) * norm(net[2].at(weighted()))
    assert lipschitz_bound(net, (8, 2), weighted()) == pytest.approx(want)


# -- transforms ------------------------------------------------------------------------------------------------------


def test_clipping_is_exact_where_the_kernel_is_as_large_as_the_grid():
    layer, grid = layer_of(conv2d(2, 3, (4, 5), padding="same", padding_mode="circular")), Grid((4, 5))
    before = singular_values(layer.at(grid))
    top = float(before[len(before) // 3])
    after = clip_singular_values(layer, grid, top)
    torch.testing.assert_close(singular_values(after.at(grid)), before.clamp(max=top))
    assert norm(layer.at(grid)) > top  # the layer itself is as it was
    U, sigma, Vh = torch.linalg.svd(matrix(layer.at(grid)).detach(), full_matrices=False)
    torch.testing.assert_close(matrix(after.at(grid)).detach(), U @ torch.diag(sigma.clamp(max=top)) @ Vh)


def test_clipping_a_small_kernel_comes_nearer_with_each_iteration():
    layer, grid = layer_of(conv2d(2, 3, 3, padding=1, padding_mode="circular")), Grid((6, 6))
    top = 0.7 * norm(layer.at(grid))
    sizes = [norm(clip_singular_values(layer, grid, top, iterations=n).at(grid)) for n in (1, 5, 50)]
    assert norm(layer.at(grid)) > sizes[0] > sizes[1] > sizes[2] and sizes[2] < 1.01 * top
    torch.testing.assert_close(clip_singular_values(layer, grid, 100.0).weight, layer.weight)  # nothing to clip


def test_clipping_with_zero_padding_groups_and_on_graphs():
    padded = layer_of(conv2d(2, 3, 3, padding=1))
    top = 0.7 * norm(padded.at(Grid((6, 6))))
    assert norm(clip_singular_values(padded, Grid((6, 6)), top, iterations=50).at(Grid((6, 6)))) < 1.01 * top
    grouped = layer_of(depthwise(3, 3, padding=1, padding_mode="circular"))
    top = 0.7 * norm(grouped.at(Grid((6, 6))))
    assert norm(clip_singular_values(grouped, Grid((6, 6)), top, iterations=50).at(Grid((6, 6)))) < 1.01 * top
    # a ring of seven has four different eigenvalues: four terms express any response
    exact = layer_of(cheb(2, 3, k=4))
    before = singular_values(exact.at(ring()))
    top = float(before[4])
    after = clip_singular_values(exact, ring(), top)
    torch.testing.assert_close(singular_values(after.at(ring())), before.clamp(max=top))
    assert torch.equal(after.bias, exact.bias)
    bumps = layer_of(spectral(2, 2, k=3))
    top = 0.7 * norm(bumps.at(weighted()))
    assert norm(clip_singular_values(bumps, weighted(), top, iterations=50).at(weighted())) < 1.02 * top


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        (conv_transpose1d(1, 1, 5), (2,)),
        (conv_transpose1d(2, 2, 3, dilation=3), (3,)),
        (conv_transpose2d(2, 3, 3), (2, 3)),
        (conv_transpose1d(2, 2, 4, padding=1), (6,)),
    ],
    ids=str,
)
def test_clipping_a_transposed_convolution_is_done_on_its_larger_grid(spec, shape):
    layer, grid = GConv(spec, dtype=torch.float64), Grid(shape)
    A = layer.at(grid)
    torch.testing.assert_close(matrix(clip_singular_values(layer, grid, 1e3).at(grid)), matrix(A))  # nothing to clip
    top = 0.7 * norm(A)
    clipped = clip_singular_values(layer, grid, top, iterations=100)
    assert norm(clipped.at(grid)) < top * 1.1 and not torch.equal(clipped.weight, layer.weight)


def test_clipping_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="densely or in groups, not as Separable"):
        clip_singular_values(layer_of(separable(2, 3, 3)), Grid((5, 5)), 1.0)
    with pytest.raises(ValueError, match="folds frequencies"):
        clip_singular_values(layer_of(conv2d(2, 3, 3, stride=2, padding=1)), Grid((5, 5)), 1.0)
    with pytest.raises(ValueError, match="undirected graph"):
        clip_singular_values(layer_of(cheb(2, 3, k=3)), messy(), 1.0)
    with pytest.raises(ValueError, match="top must be positive"):
        clip_singular_values(layer_of(cheb(2, 3, k=3)), ring(), 0.0)


@pytest.mark.parametrize(
    "spec, domain",
    [
        (conv2d(2, 3, 3, padding=1), Grid((6, 5))),
        (separable(2, 3, 3, padding=1), Grid((6, 5))),
        (cheb(2, 3, k=3), messy()),
    ],
    ids=["conv2d", "separable", "cheb"],
)
def test_normalising_sets_the_true_norm(spec, domain):
    layer = layer_of(spec)
    made = spectral_normalise(layer, domain, 2.0)
    want = torch.linalg.matrix_norm(matrix(made.at(domain)).detach(), 2)
    assert float(want) == pytest.approx(2.0, rel=1e-7)
    assert not torch.equal(made.weight, layer.weight)


def test_torch_s_spectral_norm_is_not_that_of_the_operator():
    """Negative control: dividing by the norm of the reshaped kernel leaves the operator at another one."""
    layer = layer_of(conv2d(1, 1, 3, padding=1))
    layer.weight.data.fill_(1.0)
    layer.weight.data /= float(torch.linalg.matrix_norm(layer.weight.detach().flatten(0, 1), 2))
    assert norm(layer.at(Grid((16, 16)))) > 2.5
    with pytest.raises(ValueError, match="nothing to normalise"):
        spectral_normalise(GConv(avg_pool2d(2)), Grid((4, 4)))


def test_a_parametrised_layer_trains_at_its_norm():
    torch.manual_seed(1)
    layer, grid = GConv(conv2d(2, 3, 3, padding=1)), Grid((6, 6))
    parametrize.register_parametrization(layer, "weight", SpectralNorm(layer, grid, 0.5))
    optimiser = torch.optim.SGD(layer.parameters(), 0.05)
    x, y = torch.randn(8, 2, 6, 6), torch.randn(8, 3, 6, 6)
    start = layer.weight.detach().clone()
    for _ in range(20):
        optimiser.zero_grad()
        (layer(x) - y).square().mean().backward()
        optimiser.step()
    assert norm(layer.eval().at(grid)) == pytest.approx(0.5, rel=0.02)
    assert not torch.allclose(start, layer.weight)
    with pytest.raises(ValueError, match="depends on the domain alone"):
        SpectralNorm(layer_of(gat(2, 2)), ring())


# -- pictures --------------------------------------------------------------------------------------------------------


@pytest.fixture
def ax():
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots()
    yield axis
    plt.close(figure)


def test_pictures_show_the_numbers(ax):
    A = layer_of(conv1d(1, 2, 3, padding=1)).at(Grid((5,)))
    assert analysis.plot_matrix(A, ax) is ax
    np.testing.assert_array_equal(ax.images[0].get_array(), matrix(A).detach().numpy())
    assert ax.images[0].norm.vmin == -ax.images[0].norm.vmax and ax.get_title() == "conv1d: 10 x 5"
    ax.clear()
    values = singular_values(A)
    analysis.plot_spectrum(values, ax, label="conv")
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), values.numpy())
    analysis.plot_spectrum(2 * values.flip(0), ax)
    assert len(ax.lines) == 2 and ax.lines[1].get_ydata()[0] == 2 * values[0] and ax.lines[0].get_label() == "conv"


@pytest.mark.parametrize("shape", [(4, 16), (9, 9), (1, 40), (2, 2)])
def test_ticks_of_a_matrix_are_numbers_of_rows_and_columns(ax, shape):
    analysis.plot_matrix(torch.ones(shape), ax)
    ax.figure.draw_without_rendering()
    for side in (ax.xaxis, ax.yaxis):
        low, high = sorted(side.get_view_interval())
        ticks = [at for at in side.get_majorticklocs() if low <= at <= high]
        assert ticks and all(at == int(at) for at in ticks)


def test_responses_are_drawn_in_order_of_frequency(ax):
    r = frequency_response(layer_of(spectral(2, 3, k=3)), weighted())
    analysis.plot_response(r, ax)
    assert len(ax.lines) == 6 and ax.lines[5].get_label() == "1 -> 2"
    np.testing.assert_array_equal(ax.lines[5].get_ydata(), r.gain[:, 1, 2].numpy())
    assert (np.diff(ax.lines[0].get_xdata()) >= 0).all()
    ax.clear()
    r = frequency_response(layer_of(conv2d(1, 2, 3, padding=1, padding_mode="circular")), Grid((6, 8)))
    analysis.plot_response(r, ax, [(0, 1)])
    np.testing.assert_array_equal(ax.images[0].get_array(), r.gain[:, 0, 1].abs().reshape(6, 8).numpy())
    ax.clear()
    r = frequency_response(layer_of(conv1d(1, 2, 3, padding=1, padding_mode="circular")), Grid((6,)))
    analysis.plot_response(r, ax)
    assert len(ax.lines) == 2 and (np.diff(ax.lines[0].get_xdata()) > 0).all()


def test_low_frequencies_are_on_the_left_for_every_operator(ax):
    """The constant of a regular graph, which every filter here multiplies by the same number, is drawn first."""
    for spec in (gcn(1, 1), sgc(1, 1, k=2), cheb(1, 1, k=3), appnp(k=3), spectral(1, 1, k=3), heat(t=1.0)):
        layer = layer_of(spec)
        if layer.bias is not None:
            torch.nn.init.zeros_(layer.bias)
        r = frequency_response(layer, ring(6))
        ax.clear()
        left, right = analysis.plot_response(r, ax).get_xlim()
        laplacian = r.low == "first"
        assert (left < right) == laplacian and laplacian == (spec.name not in ("gcn", "sgc", "appnp")), spec
        smoothest = r.gain[0 if laplacian else -1, 0, 0]
        assert torch.allclose(layer(torch.ones(6, 1, dtype=DOUBLE), ring(6)), smoothest.expand(6, 1)), spec


def test_many_channels_are_drawn_as_a_range(ax):
    analysis.plot_response(layer_of(cheb(40, 16, k=2)), ax, domain=ring(8))
    assert len(ax.lines) == 1 and len(ax.collections) == 1
    with pytest.raises(ValueError, match="too large to draw"):
        analysis.plot_matrix(GConv(conv2d(64, 64, 3, padding=1)), ax, domain=Grid((64, 64)))


def test_fields_and_energies_are_drawn(ax):
    field = torch.rand(3, 4)
    analysis.plot_receptive_field(field, ax)
    np.testing.assert_array_equal(ax.images[0].get_array(), field.double().numpy())
    ax.clear()
    analysis.plot_receptive_field(field.flatten(), ax, shape=(3, 4))
    assert ax.images[0].get_array().shape == (3, 4)
    ax.clear()
    analysis.plot_receptive_field(torch.tensor([1.0, 3.0]), ax)
    assert [bar.get_height() for bar in ax.patches] == [1.0, 3.0]
    ax.clear()
    analysis.plot_receptive_field(torch.tensor([1.0, 3.0]), ax, pos=torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
    np.testing.assert_array_equal(ax.collections[0].get_offsets(), [[0, 1], [2, 3]])
    np.testing.assert_array_equal(ax.collections[0].get_array(), [1, 3])
    ax.clear()
    analysis.plot_energy(torch.tensor([1.0, 0.1, 0.01]), ax)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [1, 0.1, 0.01])
    assert ax.get_yscale() == "log"


def test_axes_are_created_by_default():
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    axis = analysis.plot_matrix(identity(3).T)
    assert axis.images[0].get_array().shape == (3, 3)
    plt.close(axis.figure)


def test_maxima_have_no_map_to_ask_about():
    layer, grid = GConv(max_pool2d(2)), Grid((4, 4))
    for question in (clip_singular_values, spectral_normalise):
        with pytest.raises(NotLinear):
            question(layer, grid, 1.0)
    with pytest.raises(NotLinear):
        layer.at(grid)
