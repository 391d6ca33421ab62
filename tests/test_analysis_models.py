"""What a module is: every function that takes a layer or a network sees the same in it."""

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.parametrizations as parametrizations
import torch.nn.utils.prune as prune
import torch_geometric.nn as pyg
from torch import nn

from gconv import GConv, Graph, Grid, OutsideFamily, analysis, as_linear_map, blocks, convert
from gconv.analysis import (
    clip_singular_values,
    cost,
    effective_receptive_field,
    energy_by_depth,
    equivariance_error,
    frequency_response,
    lipschitz_bound,
    matrix,
    norm,
    norm_bound,
    receptive_field,
    singular_values,
    spectral_normalise,
    total_influence,
)
from gconv.interop.layers import Chain, Layer, Other, engine_call, identify
from gconv.operators import cheb, conv2d, gcn, global_pool
from gconv.operators.shapes import ring, weighted

DOUBLE = torch.float64
INDEX = torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]])


def conv(**options):
    return nn.Conv2d(3, 4, 3, padding=1, dtype=DOUBLE, **options).eval()


def jacobian_norm(model, x):
    J = torch.autograd.functional.jacobian(model, x)
    return float(torch.linalg.matrix_norm(J.reshape(-1, x.numel()), 2))


class Twice(nn.Conv2d):
    """Inherits a layer and does something else."""

    def forward(self, x):
        return 2 * super().forward(x)


class Around(nn.Sequential):
    """Inherits a container and does something else."""

    def forward(self, x):
        return x + super().forward(x)


class Residual(nn.Module):
    """A block as torchvision writes it."""

    def __init__(self, make=nn.Identity):
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1, dtype=DOUBLE)
        self.norm = nn.BatchNorm2d(4, dtype=DOUBLE)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, dtype=DOUBLE)
        self.head = nn.Linear(4, 2, dtype=DOUBLE)

    def forward(self, x):
        y = F.relu(self.norm(self.conv1(x)), inplace=True)
        y = self.conv2(y)
        y += x
        y = F.max_pool2d(y, 2)
        y = torch.flatten(F.adaptive_avg_pool2d(y, 1), 1)
        return self.head(F.dropout(y, training=self.training))


# -- what a module is ----------------------------------------------------------------------------------------------


def test_what_runs_decides_what_a_module_is():
    plain, subclass = conv(), type("Sub", (nn.Conv2d,), {})(3, 4, 3)
    parametrised = parametrizations.spectral_norm(conv())
    for module in (plain, subclass, parametrised, convert(plain), convert(parametrised), GConv(conv2d(3, 4, 3))):
        assert isinstance(identify(module), Layer), module
    assert isinstance(identify(nn.Sequential(plain)), Chain)
    assert isinstance(identify(type("Sub", (nn.Sequential,), {})(plain)), Chain)
    for module in (Twice(3, 4, 3), Around(plain), nn.ReLU(), Residual(), pyg.EdgeConv(nn.Linear(2, 2))):
        found = identify(module)
        assert isinstance(found, Other) and found.follows and found.reason, module
    hooked, replaced = conv(), conv()
    hooked.register_forward_hook(lambda module, args, out: 3 * out)
    replaced.forward = lambda x: x
    for module in (hooked, replaced, convert(plain).gconv, nn.Sequential(plain).append(hooked)[1]):
        assert isinstance(identify(module), Other) and not identify(module).follows, module


def test_weights_that_hooks_make_are_those_of_now():
    layer = prune.l1_unstructured(conv(), "weight", 0.5)
    with torch.no_grad():
        layer.weight_orig *= 2  # the hook multiplies anew at the next call
    A = as_linear_map(layer, Grid((5, 5)))
    x = torch.randn(1, 3, 5, 5, dtype=DOUBLE)
    want = layer(x) - layer(torch.zeros_like(x))
    torch.testing.assert_close((A @ x.flatten(2).mT).mT.unflatten(-1, (5, 5)), want)


LAYERS = {
    "torch": lambda: conv(),
    "converted": lambda: convert(conv()),
    "spectral_norm": lambda: parametrizations.spectral_norm(conv()),
    "weight_norm": lambda: parametrizations.weight_norm(conv()),
    "converted weight_norm": lambda: convert(parametrizations.weight_norm(conv())),
    "pruned": lambda: prune.l1_unstructured(conv(), "weight", 0.4),
    "inherited": lambda: type("Sub", (nn.Conv2d,), {})(3, 4, 3, padding=1, dtype=DOUBLE),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", LAYERS)
def test_every_analysis_takes_every_kind_of_layer(name):
    layer, grid = LAYERS[name]().eval(), Grid((5, 6))
    x = torch.zeros(1, 3, 5, 6, dtype=DOUBLE)
    J = torch.autograd.functional.jacobian(lambda z: layer(z) - layer(x), x).reshape(120, 90)
    J = J.unflatten(0, (4, 30)).transpose(0, 1).unflatten(2, (3, 30)).transpose(2, 3).flatten(2).flatten(0, 1)
    torch.testing.assert_close(matrix(layer, domain=grid).detach(), J)
    want = torch.linalg.svdvals(J)
    assert norm(layer, domain=grid) == pytest.approx(float(want[0]), rel=1e-7)
    torch.testing.assert_close(singular_values(layer, domain=grid), want)
    assert norm_bound(layer, domain=grid) >= float(want[0]) * (1 - 1e-12)
    assert analysis.adjoint_gap(layer, domain=grid) < 1e-12
    assert torch.equal(receptive_field(layer, domain=grid), receptive_field(GConv(conv2d(3, 4, 3, padding=1)).at(grid)))
    assert frequency_response(layer, grid).gain.shape == (30, 3, 4)
    assert cost(layer, x)["native"].flops == cost(GConv(conv2d(3, 4, 3, padding=1)), x.float())["native"].flops
    assert lipschitz_bound(layer, (3, 5, 6), certified=False) == pytest.approx(float(want[0]), rel=1e-7)
    assert equivariance_error(layer, "shift", x + 1) > 0
    assert effective_receptive_field(layer, (3, 5, 6), (2, 2)).gt(0).sum() == 9


def test_analyses_take_layers_of_pyg():
    layer, graph = pyg.GCNConv(2, 3), Graph(INDEX, 4)
    same = GConv(gcn(2, 3))
    same.weight.data[0] = layer.lin.weight.data.t()
    for one in (layer, convert(layer)):
        torch.testing.assert_close(matrix(one, domain=graph), matrix(same, domain=graph))
        assert lipschitz_bound(one, (4, 2), graph) == pytest.approx(norm(same, domain=graph))
        assert set(cost(one, torch.zeros(4, 2), graph)) == set(cost(same, torch.zeros(4, 2), graph))
        x = torch.randn(4, 2)
        for domain in (graph, INDEX):
            torch.testing.assert_close(total_influence(one, x, domain), total_influence(same, x, graph))
            assert equivariance_error(one, "permutation", x, domain) < 1e-6
            assert energy_by_depth([one], x, domain).shape == (2,)
            assert effective_receptive_field(one, (4, 2), 0, domain).gt(0).tolist() == [True, True, False, False]


def test_a_pooling_leads_to_another_graph():
    net = nn.Sequential(GConv(gcn(2, 3)), GConv(global_pool()), GConv(conv2d(1, 1, 1)).requires_grad_(False))[:2]
    assert total_influence(net, torch.randn(4, 2), Graph(INDEX, 4)).shape == (1, 4)
    assert lipschitz_bound(net, (4, 2), Graph(INDEX, 4)) > 0


# -- networks ------------------------------------------------------------------------------------------------------


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "model, shape",
    [
        (Twice(3, 4, 3, padding=1, dtype=DOUBLE), (3, 6, 5)),
        (Around(conv(), nn.Conv2d(4, 3, 1, dtype=DOUBLE)), (3, 6, 5)),
        (Around(nn.Identity(), nn.ReLU()), (3, 6, 5)),
        (Residual(), (4, 6, 6)),
        (blocks.inverted_residual(4, 4).double(), (4, 6, 6)),
        (blocks.shufflenet_unit(12, 24, 3, 2).double(), (12, 6, 6)),
        (nn.Sequential(conv(), nn.SiLU(inplace=True), Around(nn.ReLU(inplace=True))), (3, 6, 5)),
    ],
    ids=["layer", "container", "identity", "residual", "inverted", "shuffle", "in place"],
)
def test_what_overrides_forward_is_followed(model, shape):
    x = torch.randn(8, *shape, dtype=DOUBLE)
    model.train()(x)  # a spread for batch norm
    for net in (model.eval(), convert(model).eval()):
        bound = lipschitz_bound(net, shape)
        step = 1e-4 * torch.randn_like(x)
        with torch.no_grad():
            ratio = (net(x + step) - net(x)).flatten(1).norm(dim=1) / step.flatten(1).norm(dim=1)
        assert float(ratio.max()) <= bound
        assert jacobian_norm(net, x[:1].clone()) <= bound * (1 + 1e-9)


def test_bounds_of_branches_are_sums():
    body = conv()
    layer = nn.Conv2d(4, 3, 3, padding=1, dtype=DOUBLE)
    chain = lipschitz_bound(nn.Sequential(body, layer), (3, 6, 5))
    assert lipschitz_bound(Around(body, layer), (3, 6, 5)) == pytest.approx(1 + chain)
    assert lipschitz_bound(blocks.Shortcut(body, body, "cat"), (3, 6, 5)) == pytest.approx(
        2**0.5 * lipschitz_bound(body, (3, 6, 5))
    )

    class Overwrites(nn.Module):
        def forward(self, x):
            y = x.view(-1)
            x.mul_(3.0)
            return y + x.view(-1)

    assert lipschitz_bound(Overwrites(), (2, 2)) >= 6  # y shows what x was made in place


def test_graph_networks_of_pyg_are_followed():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = pyg.GCNConv(3, 4), pyg.ChebConv(4, 2, 3)

        def forward(self, x, edge_index):
            return self.two(self.one(x, edge_index).relu(), edge_index)

    net, graph = Net().eval(), Graph(INDEX, 4)
    want = norm(net.one, domain=graph) * norm(net.two, domain=graph)
    for model in (net, convert(net)):
        assert lipschitz_bound(model, (4, 3), INDEX, certified=False) == pytest.approx(want, rel=1e-6)
        assert total_influence(model, torch.randn(4, 3), INDEX).shape == (4, 4)
        assert equivariance_error(model, "permutation", torch.randn(4, 3), INDEX) < 1e-5


@pytest.mark.parametrize("make", [pyg.GCN, pyg.GraphSAGE])
def test_models_of_pyg_are_followed(make):
    """Their forward has many arguments that are None, which decide what it does."""
    net = make(3, 8, 2, 2).double().eval()
    for model in (net, convert(net)):
        bound = lipschitz_bound(model, (4, 3), INDEX)
        x = torch.randn(4, 3, dtype=DOUBLE)
        assert jacobian_norm(lambda z, model=model: model(z, INDEX), x) <= bound


def test_parts_of_results_are_followed():
    class Splits(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Conv2d(2, 2, 3, padding=1, dtype=DOUBLE) for _ in range(3)])
            self.register_buffer("mask", torch.tensor([1.0, -2.0], dtype=DOUBLE).view(2, 1, 1))

        def forward(self, x, scale=0.5):
            out = [x]
            for layer in self.layers:
                out.append(torch.relu(layer(scale * out[-1] * self.mask)))
            b = x.shape[0]
            left, right = torch.cat(out, 1).chunk(2, 1)
            return (torch.stack([left, right]).mean(0) - right).view(b, -1)

    net, x = Splits().eval(), torch.randn(1, 2, 4, 4, dtype=DOUBLE)
    assert jacobian_norm(net, x) <= lipschitz_bound(net, (2, 4, 4))


def test_what_cannot_be_traced_is_refused():
    class Branches(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    class Gate(nn.Module):
        def forward(self, x):
            return x * torch.sigmoid(x)

    hooked = conv()
    hooked.register_forward_hook(lambda module, args, out: 3 * out)
    for model, why in (
        (Branches(), "torch.fx cannot trace its forward"),
        (Gate(), "No bound is known for mul, which Gate calls"),
        (hooked, "a forward hook is registered on it"),
        (nn.Sequential(hooked), "a forward hook is registered on it"),
        (nn.LayerNorm(5), "No bound is known for LayerNorm"),
        (nn.LSTM(5, 5), "No bound is known for LSTM"),
    ):
        with pytest.raises(TypeError, match=why):
            lipschitz_bound(model.eval(), (3, 5, 5))
    for question in (norm, matrix, receptive_field, singular_values):
        with pytest.raises(OutsideFamily, match="Twice has no LinearMap: a subclass of Conv2d with code of its own"):
            question(Twice(3, 4, 3), domain=Grid((5, 5)))
        with pytest.raises(OutsideFamily, match="a forward hook is registered on it"):
            question(hooked, domain=Grid((5, 5)))
        with pytest.raises(TypeError, match=f"{question.__name__} takes a linear map, and Conv2d is a map only on a"):
            question(conv())
    with pytest.raises(TypeError, match=r"clip_singular_values takes a layer.*code of its own"):
        clip_singular_values(Twice(3, 4, 3), Grid((5, 5)), 1.0)
    with pytest.raises(TypeError, match=r"energy_by_depth takes layers in a row.*forward"):
        energy_by_depth(Around(GConv(gcn(2, 2))), torch.zeros(4, 2), INDEX)


def test_a_container_that_overrides_forward_is_called_and_not_walked():
    class Half(nn.Sequential):
        def forward(self, x, graph):
            for layer in self:
                x = layer(x, graph)
            return x / 2

    layer = GConv(gcn(2, 2))
    x = torch.randn(7, 2)
    torch.testing.assert_close(2 * total_influence(Half(layer), x, ring()), total_influence(layer, x, ring()))
    image = torch.randn(3, 6, 6, dtype=DOUBLE)
    seen = effective_receptive_field(Around(conv(), nn.Conv2d(4, 3, 1, dtype=DOUBLE)), image, (2, 2))
    assert seen.gt(0).sum() == 9 and seen.dtype == DOUBLE


class Copies(nn.Module):
    """Selects some entries, perhaps several times."""

    def __init__(self, index):
        super().__init__()
        self.index = index

    def forward(self, x):
        return x[self.index]


@pytest.mark.parametrize(
    "index",
    [
        (slice(None), [0, 0, 0, 1]),
        (slice(None), torch.tensor([[1, 1], [1, 2]]), 0),
        (0, [0, 0], [1, 1]),
        (slice(None), [2, 1]),
        (slice(None), slice(1, 2)),
        (..., None),
    ],
)
def test_a_bound_counts_entries_that_an_index_repeats(index):
    model, x = Copies(index), torch.randn(1, 3, 4, dtype=DOUBLE)
    exact = jacobian_norm(model, x)
    assert exact * (1 - 1e-12) <= lipschitz_bound(model, (3, 4)) <= exact * (1 + 1e-12)


ASKED = {
    "equivariance_error": lambda net, x: equivariance_error(net, "permutation", x, ring()),
    "energy_by_depth": lambda net, x: energy_by_depth(net, x, ring()),
    "total_influence": lambda net, x: total_influence(net, x, ring(), targets=[0]),
    "effective_receptive_field": lambda net, x: effective_receptive_field(net, x, 0, ring(), draws=2),
}


@pytest.mark.parametrize("name", ASKED)
def test_analysis_leaves_a_model_in_training_as_it_was(name):
    net = nn.Sequential(GConv(gcn(2, 3)), nn.BatchNorm1d(3), nn.Dropout(0.5)).train()
    before, state = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    ASKED[name](net, torch.randn(7, 2, generator=torch.Generator().manual_seed(0)))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(m.training for m in net.modules()) and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("action", ["shift", "flip", "rot90", analysis.Shift((1,))])
def test_actions_of_grids_are_refused_on_graphs(action):
    """They would move the channels."""
    layer, x = GConv(gcn(2, 2)), torch.randn(7, 2)
    for model, domain in ((layer, ring()), (layer.at(ring()), None), (layer.at(ring()), ring())):
        with pytest.raises(ValueError, match="acts on grids"):
            equivariance_error(model, action, x, domain)


# -- what a call asks of the engine --------------------------------------------------------------------------------


def test_plans_take_what_the_layer_takes():
    linear = convert(nn.Linear(64, 10))
    for shape in ((4, 64), (64, 64), (2, 5, 64), (64,)):
        plan = linear.plan(torch.randn(shape))
        assert f"{max(1, torch.Size(shape[:-1]).numel())} sites" in str(plan) or plan.chosen is not None
        asked = engine_call(nn.Linear(64, 10), torch.randn(shape))
        assert asked.x.shape == (64, torch.Size(shape[:-1]).numel())
    assert cost(linear, torch.randn(4, 64))["dense"].flops >= 2 * 4 * 64 * 10
    x, graph = torch.randn(4, 3), Graph(INDEX, 4)
    for layer in (convert(pyg.GCNConv(3, 2)), convert(pyg.ChebConv(3, 2, 3))):
        assert layer.plan(x, INDEX).chosen.name == layer.plan(x, graph).chosen.name
        assert layer.plan(x, INDEX, lowering="dense").chosen.name == "dense"
    up = convert(nn.Upsample(scale_factor=2))
    assert up.plan(torch.zeros(1, 2, 4, 4)).chosen and up.plan(torch.zeros(1, 2, 4)).chosen
    square = convert(nn.Conv1d(4, 5, 3, padding=1))
    assert square.plan(torch.zeros(4, 4)).chosen and square.plan(torch.zeros(4, 4, 4)).chosen
    with pytest.raises(OutsideFamily, match="This call of Conv2d runs in torch's own forward"):
        convert(nn.Conv2d(3, 2, 1)).plan(torch.zeros(3, 3))


def test_maps_take_signals_as_the_layer_takes_them():
    grid = Grid((5, 6))
    for layer in (nn.Conv2d(3, 4, 3, padding=1), convert(nn.Conv2d(3, 4, 3, padding=1))):
        for x in (torch.randn(3, 5, 6), torch.randn(1, 3, 5, 6), torch.randn(30, 3)):
            assert as_linear_map(layer, grid, x).shape == (120, 90)
    assert convert(nn.Linear(4, 2)).at(Grid((4,)), torch.randn(4, 4)).shape == (8, 16)
    assert convert(nn.AvgPool1d(2)).at(Grid((6,)), torch.randn(3, 6)).shape == (9, 18)


# -- weights that are set ------------------------------------------------------------------------------------------


@pytest.mark.sampled(4)
@pytest.mark.parametrize("i, o, groups", [(2, 3, 1), (8, 8, 1), (9, 9, 1), (4, 8, 2)])
def test_clipping_a_torch_layer_is_clipping_the_gconv_of_its_weights(i, o, groups):
    layer, grid = nn.Conv2d(i, o, 3, padding=1, groups=groups, dtype=DOUBLE), Grid((8, 8))
    ours = GConv(conv2d(i, o, 3, padding=1, groups=groups), dtype=DOUBLE)
    top = 0.6 * norm(layer, domain=grid)
    ours.weight.data.copy_(identify(layer).settle(grid)[0].weight)
    want = matrix(clip_singular_values(ours, grid, top, iterations=4).at(grid))
    before = layer.weight.detach().clone()
    for one in (layer, convert(layer)):
        made = clip_singular_values(one, grid, top, iterations=4)
        assert type(made) is type(one) and torch.equal(made.bias, one.bias) and made.weight.requires_grad
        torch.testing.assert_close(matrix(made, domain=grid), want)
        assert torch.equal(one.weight, before)
        x = torch.randn(2, i, 8, 8, dtype=DOUBLE)
        torch.testing.assert_close(made(x), F.conv2d(x, made.weight, made.bias, padding=1, groups=groups))
        assert norm(spectral_normalise(one, grid, 0.5), domain=grid) == pytest.approx(0.5, rel=1e-7)


def test_clipping_layers_of_pyg():
    layer, graph = pyg.ChebConv(2, 3, 4).double(), ring()
    layer.lins[0].weight.requires_grad_(False)
    before = singular_values(layer, domain=graph)
    top = float(before[4])
    for one in (layer, convert(layer)):
        made = clip_singular_values(one, graph, top)
        torch.testing.assert_close(singular_values(made, domain=graph), before.clamp(max=top))
        assert [p.requires_grad for p in made.parameters()] == [p.requires_grad for p in one.parameters()]
        assert norm(spectral_normalise(one, graph), domain=graph) == pytest.approx(1.0)


def test_weights_that_are_computed_are_not_set():
    for layer in (LAYERS["spectral_norm"](), convert(LAYERS["weight_norm"]()), LAYERS["pruned"]()):
        for change in (clip_singular_values, spectral_normalise):
            with pytest.raises(ValueError, match="is computed by a parametrization or a hook"):
                change(layer, Grid((5, 5)), 1.0)
    ours = GConv(conv2d(2, 2, 3, padding=1))
    nn.utils.parametrize.register_parametrization(ours, "weight", analysis.SpectralNorm(ours, Grid((5, 5))))
    with pytest.raises(ValueError, match="is computed by a parametrization"):
        clip_singular_values(ours, Grid((5, 5)), 1.0)
    with pytest.raises(TypeError, match="SpectralNorm is for the weight of a GConv, but a Conv2d"):
        analysis.SpectralNorm(conv(), Grid((5, 5)))


# -- complex numbers -----------------------------------------------------------------------------------------------


def test_complex_numbers_are_supported():
    layer = GConv(conv2d(1, 1, 1, padding_mode="circular", bias=False), dtype=torch.complex128)
    layer.weight.data.fill_(2j)
    assert clip_singular_values(layer, Grid((4, 4)), 5.0).weight.item() == pytest.approx(2j)
    assert clip_singular_values(layer, Grid((4, 4)), 1.0).weight.item() == pytest.approx(1j)
    linear = nn.Linear(2, 2, False, dtype=torch.complex128)
    linear.weight.data = torch.diag(torch.tensor([3j, 1]))
    for one in (linear, nn.Sequential(linear), convert(linear)):
        assert lipschitz_bound(one, torch.zeros(1, 2, dtype=torch.complex128)) == pytest.approx(3)
    assert norm(linear) == pytest.approx(3)
    mixed = GConv(conv2d(2, 3, 3, padding=1), dtype=torch.complex128)
    A = mixed.at(Grid((5, 4)))
    want = torch.linalg.svdvals(matrix(A).detach())
    assert norm(A) == pytest.approx(float(want[0])) and norm_bound(A) >= float(want[0]) * (1 - 1e-12)
    torch.testing.assert_close(singular_values(A), want)
    influence = matrix(A).detach().abs().unflatten(0, (20, 3)).unflatten(2, (20, 2)).sum((1, 3))
    torch.testing.assert_close(total_influence(A), influence)
    assert analysis.adjoint_gap(A) < 1e-12
    assert norm(spectral_normalise(mixed, Grid((5, 4))), domain=Grid((5, 4))) == pytest.approx(1.0)
    top = 0.7 * float(want[0])
    assert norm(clip_singular_values(mixed, Grid((5, 4)), top, iterations=40), domain=Grid((5, 4))) < 1.02 * top
    x = torch.randn(8, 2, dtype=torch.complex128)
    energy = analysis.dirichlet_energy(x, weighted())
    torch.testing.assert_close(energy, sum(analysis.dirichlet_energy(p, weighted()) for p in (x.real, x.imag)))
    graph_layer = GConv(cheb(2, 2, k=3), dtype=torch.complex128)
    with pytest.raises(TypeError, match="which a model of complex numbers need not have"):
        total_influence(nn.Sequential(graph_layer), x, weighted())


def test_a_field_needs_sites_and_one_input():
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match=r"needs an output with sites, but the model returns \(1, 3\)"):
        analysis.effective_receptive_field(net, (2, 5, 5))
    with pytest.raises(ValueError, match=r"takes an input without its batch axis.*\(1, 4, 2, 5, 5\)"):
        analysis.effective_receptive_field(net, (4, 2, 5, 5))
    with pytest.raises(ValueError, match=r"its input has shape \(1, 4, 2, 5, 5\)"):
        analysis.lipschitz_bound(net, (4, 2, 5, 5))
