"""Every measure is homogeneous over the range of its dtype, f(c A) = |c|^p f(A); 16-bit layers are widened first."""

import math
from functools import lru_cache

import pytest
import torch
from torch import nn

from gconv import GConv, Graph, Grid, analysis
from gconv.analysis import (
    SpectralNorm,
    adjoint_gap,
    clip_singular_values,
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
    norm_bound,
    receptive_field,
    singular_values,
    spectral_normalise,
    total_influence,
)
from gconv.analysis.numbers import power_of_two, vector_norm, widen
from gconv.linear import block_diag
from gconv.operators import avg_pool2d, cheb, conv2d, depthwise, gat, gcn, heat, sage, spectral, tag
from gconv.operators.shapes import messy, ring, weighted

DOUBLE = torch.float64
SCALES = {
    torch.float64: (1e-250, 1e-160, 3e160, 1e250),
    torch.float32: (1e-35, 1e-23, 3e18, 1e34),
    torch.bfloat16: (2.0**-110, 2.0**100),
    torch.float16: (2.0**-6, 2.0**10),
}
CASES = [(dtype, c) for dtype, scales in SCALES.items() for c in scales]
IDS = [f"{str(dtype).removeprefix('torch.')}, {c:.0e}" for dtype, c in CASES]

LAYERS = {
    "zeros": (conv2d(2, 3, 3, padding=1, bias=False), lambda: Grid((5, 4))),
    "circular": (conv2d(2, 3, 3, padding=1, padding_mode="circular", bias=False), lambda: Grid((5, 4))),
    "stride": (conv2d(2, 3, 3, padding=1, padding_mode="reflect", stride=2, bias=False), lambda: Grid((5, 4))),
    "depthwise": (depthwise(2, 3, padding=1, bias=False), lambda: Grid((5, 4))),
    "cheb": (cheb(2, 3, k=3, bias=False), weighted),
    "directed": (sage(2, 3, bias=False), messy),
    "multipliers": (spectral(2, 3, k=3, bias=False), ring),
}


def layer_of(name, dtype, c=1.0):
    """A layer with weights c W; W is the same for every c, and has few digits, so that c W is exact."""
    spec, domain = LAYERS[name]
    layer, place = GConv(spec, dtype=DOUBLE), domain()
    generator = torch.Generator().manual_seed(1)
    W = torch.randint(1, 8, layer.weight.shape, generator=generator) / 8.0 - 0.4375
    layer.weight.data = (c * W.double()).to(dtype)
    for p in layer.parameters():
        p.data = p.data.to(dtype)
    return layer, place


def in_rows(A):
    return [float(v) for v in matrix(widen(A)).detach().abs().sum(1)]


MEASURES = {
    "norm": norm,
    "norm by products": lambda A: norm(A + 0.0 * A),
    "norm_bound": norm_bound,
    "singular_values": lambda A: singular_values(A).tolist(),
    "the largest": lambda A: singular_values(A, 2).tolist(),
    "total_influence": lambda A: total_influence(A).flatten().tolist(),
    "effective_receptive_field": lambda A: effective_receptive_field(A, (A.sites[1], A.i), 0).flatten().tolist(),
    "a sum": lambda A: norm(A + A),
    "a product": lambda A: norm(A @ A.I) + norm_bound(A @ A.I),
    "blocks": lambda A: norm_bound(block_diag([A, A])) + norm(block_diag([A, A])),
    "rows": in_rows,
}


OFTEN = {
    torch.float64: (1e-250, 1e250),
    torch.float32: (1e-35,),
    torch.bfloat16: (2.0**100,),
    torch.float16: (2.0**-6,),
}
MARKED = [
    pytest.param(dtype, c, id=name, marks=() if c in OFTEN[dtype] else pytest.mark.slow)
    for (dtype, c), name in zip(CASES, IDS, strict=True)
]


@lru_cache(None)
def measured(name, dtype, c):
    """What every measure says of a layer with weights c W."""
    layer, place = layer_of(name, dtype, c)
    found = {what: measure(layer.at(place)) for what, measure in MEASURES.items()}
    shape, graph = ((2, 5, 4), None) if isinstance(place, Grid) else ((place.size, 2), place)
    found["lipschitz_bound"] = lipschitz_bound(layer, shape, graph)
    return {what: value if isinstance(value, list) else [value] for what, value in found.items()}


@pytest.mark.sampled(6)
@pytest.mark.parametrize("dtype, c", MARKED)
@pytest.mark.parametrize("name", LAYERS)
def test_measures_of_maps_scale_with_the_map(name, dtype, c):
    exact = 2.0 ** round(math.log2(c))  # rounds nothing
    one, place = layer_of(name, dtype)
    many, _ = layer_of(name, dtype, exact)
    scaled = measured(name, dtype, exact)
    for what, want in measured(name, dtype, 1.0).items():
        top = max(map(abs, want))
        assert top > 0, what
        for w, g in zip(want, scaled[what], strict=True):
            assert g / exact == pytest.approx(w, rel=1e-6, abs=1e-6 * top), (what, name)
    assert torch.equal(receptive_field(many.at(place)), receptive_field(one.at(place)))
    loose = 1e-3 if dtype in (torch.bfloat16, torch.float16) else 1e-6
    assert adjoint_gap(many.at(place)) == pytest.approx(adjoint_gap(one.at(place)), abs=loose)


def test_a_measure_that_squares_is_detected():
    """Negative control: the same sums without a power of two taken out."""
    one, place = layer_of("zeros", DOUBLE)
    many, _ = layer_of("zeros", DOUBLE, 2.0**-600)
    frobenius = [float(matrix(layer.at(place)).detach().square().sum().sqrt()) for layer in (one, many)]
    assert frobenius[1] == 0 < frobenius[0]
    assert vector_norm(matrix(many.at(place))) == 2.0**-600 * vector_norm(matrix(one.at(place)))


@pytest.mark.parametrize("dtype, c", CASES, ids=IDS)
def test_measures_of_signals_scale_with_the_signal(dtype, c):
    exact = 2.0 ** round(math.log2(c))
    graph = weighted()
    x = (torch.randint(-7, 8, (3, 8, 2), generator=torch.Generator().manual_seed(2)) / 8.0).to(dtype)
    y = x * exact
    for normalization in ("sym", None):
        want = dirichlet_energy(x, graph, normalization, relative=True)
        torch.testing.assert_close(dirichlet_energy(y, graph, normalization, relative=True), want)
        energy = dirichlet_energy(x, graph, normalization)
        assert energy.dtype == (torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype)
        small = 2.0 ** round(math.log2(c) / 2)  # its square is in range, that of an element need not be
        torch.testing.assert_close(dirichlet_energy(x * small, graph, normalization) / small / small, energy)
    assert mean_average_distance(y[0]) == pytest.approx(mean_average_distance(x[0]))
    assert mean_average_distance(y[0], graph) == pytest.approx(mean_average_distance(x[0], graph))
    steps = [GConv(gcn(2, 2, bias=False), dtype=dtype) for _ in range(2)]
    torch.testing.assert_close(
        energy_by_depth(steps, y[0], graph), energy_by_depth(steps, x[0], graph), rtol=1e-2, atol=0
    )
    layer = GConv(conv2d(2, 2, 3, padding=1, bias=False), dtype=torch.float32 if dtype == torch.float16 else dtype)
    image = (torch.randint(-7, 8, (1, 2, 4, 4), generator=torch.Generator().manual_seed(2)) / 8.0).to(layer.weight)
    assert equivariance_error(layer, "flip", image * exact) == pytest.approx(
        equivariance_error(layer, "flip", image), rel=1e-6
    )


def test_each_sample_of_a_batch_has_its_own_energy():
    x = torch.randn(4, 8, 2)
    x[1] *= 1e-30
    x[2], x[3] = torch.inf, torch.nan
    both = dirichlet_energy(x, weighted(), relative=True)
    torch.testing.assert_close(both[:2], torch.stack([dirichlet_energy(s, weighted(), relative=True) for s in x[:2]]))
    assert bool(both[:2].isfinite().all()) and not bool(both[2:].isfinite().any())
    assert dirichlet_energy(torch.zeros(2, 8, 1), weighted()).tolist() == [0, 0]
    assert dirichlet_energy(torch.zeros(0, 8, 1), weighted()).shape == (0,)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype, c", CASES, ids=IDS)
def test_transforms_scale_with_the_layer(dtype, c):
    exact = 2.0 ** round(math.log2(c))
    grid = Grid((5, 4))
    one, many = layer_of("zeros", dtype)[0], layer_of("zeros", dtype, exact)[0]
    top = 0.7 * norm(one.at(grid))
    clipped = clip_singular_values(one, grid, top).weight.double()
    torch.testing.assert_close(clip_singular_values(many, grid, exact * top).weight.double() / exact, clipped)
    loose = 1e-2 if dtype in (torch.bfloat16, torch.float16) else 1e-5
    assert norm(spectral_normalise(many, grid, 2.0), domain=grid) == pytest.approx(2.0, rel=loose)
    torch.testing.assert_close(frequency_response(many, grid).gain / exact, frequency_response(one, grid).gain)
    nn.utils.parametrize.register_parametrization(many, "weight", SpectralNorm(many, grid, 0.5))
    assert norm(many.eval(), domain=grid) == pytest.approx(0.5, rel=2 * loose)
    many.train().weight.double().sum().backward()
    assert many.parametrizations.weight.original.grad.isfinite().all()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", [*LAYERS, "pooling", "attention"])
def test_narrow_layers_are_widened_first(name, dtype):
    """The norm is that of the matrix with the numbers that the layer has, to 1e-8 and from below."""
    if name == "pooling":
        A = GConv(avg_pool2d(2)).at(Grid((4, 4)), torch.zeros(16, 2, dtype=dtype))
    elif name == "attention":
        A = GConv(gat(2, 2), dtype=dtype).at(ring(), torch.randn(7, 2, dtype=dtype))
    else:
        layer, place = layer_of(name, dtype)
        A = layer.at(place)
    assert A.dtype == dtype and widen(A).dtype == DOUBLE
    want = torch.linalg.svdvals(matrix(widen(A)))
    exact = 1e-6 if dtype == torch.float32 and name in ("cheb", "multipliers") else 1e-8  # float32 counts as symmetric
    assert norm(A) == pytest.approx(float(want[0]), rel=exact)
    assert norm(A) <= float(want[0]) * (1 + exact / 1e2) or name in ("cheb", "multipliers", "circular", "pooling")
    torch.testing.assert_close(singular_values(A), want, rtol=1e-6, atol=1e-6 * float(want[0]))
    assert norm_bound(A) >= float(want[0]) * (1 - 1e-6)
    assert total_influence(A).dtype == torch.float32
    assert matrix(A, "sparse").shape == A.shape


def test_values_that_are_not_finite_are_refused():
    layer = GConv(conv2d(2, 2, 3, padding=1))
    A = layer.at(Grid((5, 5)))
    layer.weight.data[0, 0, 0] = torch.nan
    for question in (norm, norm_bound, singular_values, adjoint_gap):
        for B in (A, A.T @ A, A + A.I, 2 * A, block_diag([A, A.I])):
            with pytest.raises(ValueError, match=f"{question.__name__} needs finite numbers"):
                question(B)
    with pytest.raises(ValueError, match="norm needs finite numbers"):
        norm(math.inf * A.I)
    with pytest.raises(ValueError, match="clip_singular_values needs finite numbers"):
        clip_singular_values(layer, Grid((5, 5)), 1.0)
    with pytest.raises(ValueError, match="finite numbers"):
        lipschitz_bound(layer, (2, 5, 5))
    assert matrix(A).isnan().any()  # what is a picture of the numbers shows them


def test_powers_of_two_are_factored_out():
    for x in (torch.tensor([3.0]), torch.tensor([1e-310], dtype=DOUBLE), torch.tensor([1e308], dtype=DOUBLE)):
        assert math.frexp(power_of_two(x))[0] == 0.5
    assert (
        power_of_two(torch.tensor([math.inf]))
        == power_of_two(torch.tensor([math.nan]))
        == power_of_two(torch.empty(0))
        == 1
    )


# -- graphs --------------------------------------------------------------------------------------------------------


def path(weights):
    n = len(weights)
    index = torch.stack([torch.arange(n), torch.arange(1, n + 1)])
    w = torch.tensor(weights, dtype=DOUBLE)
    return Graph(torch.cat([index, index.flip(0)], 1), n + 1, edge_weight=torch.cat([w, w]))


def test_weak_and_strong_resistors_in_one_network():
    index = torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]])
    graph = Graph(index, 4, edge_weight=torch.tensor([1e9, 1e9, 1e-8, 1e-8], dtype=DOUBLE))
    torch.testing.assert_close(
        effective_resistance(graph), torch.tensor([1e-9, 1e-9, 1e8, 1e8], dtype=DOUBLE), rtol=1e-14, atol=0
    )
    weights = [1e9, 1e-8, 3.0, 1e9, 1e-12, 1e12]  # in a row: resistances add up
    for order in (list(range(7)), [3, 0, 6, 1, 5, 2, 4], [6, 5, 4, 3, 2, 1, 0]):
        graph = path(weights).permute(torch.tensor(order))
        pairs = torch.combinations(torch.arange(7)).mT
        want = torch.tensor([sum(1 / w for w in weights[a:b]) for a, b in pairs.mT.tolist()], dtype=DOUBLE)
        got = effective_resistance(graph, torch.tensor(order)[pairs])
        torch.testing.assert_close(got, want, rtol=1e-9, atol=0)


@pytest.mark.parametrize("c", [1e-300, 1e-8, 1e8, 1e300])
def test_resistances_scale_with_the_inverse_of_the_weights(c):
    graph = weighted()
    many = Graph(graph.edge_index, graph.size, edge_weight=c * graph.weights(DOUBLE))
    one = Graph(graph.edge_index, graph.size, edge_weight=graph.weights(DOUBLE))
    torch.testing.assert_close(effective_resistance(many) * c, effective_resistance(one), rtol=1e-12, atol=0)


def test_resistances_of_a_graph_larger_than_a_panel():
    generator = torch.Generator().manual_seed(0)
    n = 150
    u, v = torch.randint(0, n, (2, 500), generator=generator)
    u, v = torch.cat([u, torch.arange(n)]), torch.cat([v, torch.arange(n).roll(1)])
    w = torch.rand(len(u), dtype=DOUBLE, generator=generator) + 0.1
    index = torch.stack([torch.cat([u, v]), torch.cat([v, u])])
    graph = Graph(index, n, edge_weight=torch.cat([w, w]))
    L = torch.zeros(n, n, dtype=DOUBLE).index_put((index[0], index[1]), -torch.cat([w, w]), accumulate=True)
    L.fill_diagonal_(0)
    L -= torch.diag(L.sum(1))
    P = torch.linalg.pinv(L)
    pairs = torch.randint(0, n, (2, 300), generator=generator)
    want = P[pairs[0], pairs[0]] + P[pairs[1], pairs[1]] - 2 * P[pairs[0], pairs[1]]
    torch.testing.assert_close(effective_resistance(graph, pairs), want.clamp(min=0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, DOUBLE])
@pytest.mark.parametrize("weight", [1e-9, 1e-30, 1.0, 1e9])
def test_a_receptive_field_does_not_round(dtype, weight):
    graph = path([1.0, weight, 1.0])
    for spec in (cheb(1, 1, k=4, normalization=None), tag(1, 1, k=3), heat(k=10), sage(1, 1)):
        want = receptive_field(GConv(spec, dtype=dtype).at(path([1.0, 1.0, 1.0])))
        assert torch.equal(receptive_field(GConv(spec, dtype=dtype).at(graph)), want), spec
    A = GConv(sage(1, 1), dtype=dtype).at(graph)
    both = receptive_field(A @ A)
    assert torch.equal(both, (torch.arange(4)[:, None] - torch.arange(4)).abs() <= 2)
    assert not receptive_field(A - A).any() and torch.equal(receptive_field(A + A), receptive_field(A))
    assert torch.equal(
        receptive_field(block_diag([A, A])), torch.block_diag(receptive_field(A), receptive_field(A)).bool()
    )
    assert torch.equal(receptive_field(1e-300 * A), receptive_field(A))
    assert analysis.receptive_field(A.restrict(rows=[0], cols=[3])).item() is False
