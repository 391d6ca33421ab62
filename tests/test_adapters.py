"""Adapters: the function is unchanged at first, only adapters are trained, and merging is exact, for every operator."""

import copy

import pytest
import torch
from oracles.pyg_layers import BUILDS, HOW, IDS, edge_arguments
from shared import every_operator
from test_converted_networks import UNet, resnet, small
from torch import nn
from torch_geometric import nn as pyg

import gconv
from gconv import GConv, adapt, merge, unmerge
from gconv.adapters import LowRank, adapters
from gconv.operators import avg_pool2d, conv2d, conv_transpose2d, gcn, separable
from gconv.operators.shapes import messy
from gconv.spec import operator
from gconv.testing import Case

F64 = torch.float64


def disturb(model):
    """Random adapters, as after training."""
    for name, p in model.named_parameters():
        if p.requires_grad and name.rpartition(".")[2] in "AB":
            nn.init.normal_(p, std=0.3)
    return model


def close(a, b, tol=1e-12):
    torch.testing.assert_close(a, b, rtol=tol, atol=tol * max(1.0, float(b.detach().abs().max()) if b.numel() else 1.0))


def expected(layer):
    """The weight W_k + s A_k B_k in the layer's own layout, written out."""
    part = adapters(layer)["weight"]
    return layer.parametrizations.weight.original + part.difference()


@every_operator
def test_every_operator(name, first):
    for sample in operator(name).samples()[first:]:
        case = Case.of(sample, F64)
        if case.layer.weight is None:
            with pytest.raises(ValueError, match="nothing to learn"):
                adapt(case.layer)
            continue
        before = case(case.x)
        twin = adapt(case.layer, rank=1, scale=0.5)
        run = lambda layer, case=case: layer(case.x, case.domain)  # noqa: E731
        close(run(twin), before)
        trained = [n for n, p in twin.named_parameters() if p.requires_grad]
        assert trained and all(n.startswith("parametrizations.weight.0.") for n in trained)
        disturb(twin)
        y = run(twin)
        grads = torch.autograd.grad(y.square().sum(), [p for p in twin.parameters() if p.requires_grad])
        assert all(g.isfinite().all() for g in grads)
        assert any(g.abs().sum() > 0 for g in grads) or not y.numel()
        assert not y.numel() or not torch.equal(y, before)
        plain = merge(twin)
        assert type(plain) is GConv and list(plain.state_dict()) == list(case.layer.state_dict())
        close(plain.weight, expected(twin), 0)
        close(run(plain), y)
        assert torch.equal(run(twin), y)  # untouched by merging its copy
        again = unmerge(plain)
        close(run(again), y)
        close(again.parametrizations.weight.original, case.layer.weight)
        assert [n for n, p in again.named_parameters() if p.requires_grad] == trained
        close(run(copy.deepcopy(twin)), y, 0)
        fresh = adapt(case.layer, rank=1, scale=0.5)
        fresh.load_state_dict(twin.state_dict())
        close(run(fresh), y, 0)
        assert case.layer.weight.requires_grad and torch.equal(case(case.x), before)  # the model is not changed


GRIDS = [
    nn.Conv2d(4, 6, 3, stride=2, padding=1),
    nn.Conv2d(4, 6, (3, 2), dilation=(1, 2)),
    nn.Conv2d(4, 6, 3, groups=2, padding=1),
    nn.Conv2d(4, 8, 3, groups=4, padding=1),
    nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
    nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
    nn.ConvTranspose2d(4, 6, 3, groups=2),
]


@pytest.mark.parametrize("converted", [False, True])
@pytest.mark.parametrize("layer", GRIDS, ids=repr)
def test_layers_of_torch(layer, converted):
    layer = layer.double()
    x = torch.randn(2, 4, 7, 6, dtype=F64)
    twin = adapt(gconv.convert(layer) if converted else layer, rank=1)
    close(twin(x), layer(x))
    disturb(twin)
    y = twin(x)
    grid = gconv.Grid((7, 6))
    part = adapters(twin)["weight"]
    # by the formula, one tap at a time: W_k + A_k B_k in gconv's layout
    spec, W = gconv.convert(layer).spec, gconv.convert(layer).at(grid).W
    added = part.A if part.B is None else part.A @ part.B
    own = GConv(spec, dtype=F64)
    own.load_state_dict({"weight": W + added.reshape(W.shape), "bias": layer.bias})
    close(y, own(x))
    close(merge(twin)(x), y)
    assert [*merge(twin).state_dict()] == [*layer.state_dict()]
    close(unmerge(merge(twin))(x), y)
    assert type(merge(twin)) is type(gconv.convert(layer) if converted else layer)


QUICK = ("GCNConv-0", "ChebConv-0", "SAGEConv-0", "GATConv-0", "ARMAConv-0", "RGCNConv-1", "GINConv-0")


@pytest.mark.parametrize(
    ("name", "edges", "build"),
    [pytest.param(*b, id=i, marks=() if i in QUICK else pytest.mark.slow) for b, i in zip(BUILDS, IDS, strict=True)],
)
def test_layers_of_pyg(name, edges, build):
    torch.manual_seed(0)
    layer = build(3, 2).double().eval()
    graph, x = messy(), torch.randn(messy().size, 3, dtype=F64)

    def run(model):
        return HOW[edges](model, x, graph) if edges in HOW else model(x, graph.edge_index, **given)

    given = {key: value.detach() for key, value in edge_arguments(graph, edges, False).items()}
    for model in (layer, gconv.convert(layer)):
        try:
            twin = adapt(model, rank=1).eval()
        except ValueError as error:
            assert "nothing to" in str(error)
            continue
        before = run(model)
        close(run(twin), before)
        y = run(disturb(twin))
        assert not torch.equal(y, before)
        close(run(merge(twin)), y)
        close(run(unmerge(merge(twin))), y)


@pytest.mark.parametrize("make", [small, resnet, UNet])
def test_whole_models(make):
    torch.manual_seed(0)
    model = make().double().eval()
    x = torch.randn(2, 1, 16, 16, dtype=F64)
    twin = adapt(model, rank=2).eval()
    close(twin(x), model(x))
    optimiser = torch.optim.SGD([p for p in twin.parameters() if p.requires_grad], 0.1)
    frozen = {n: p.clone() for n, p in twin.named_parameters() if not p.requires_grad}
    for _ in range(2):  # only B has a gradient at first
        optimiser.zero_grad()
        twin(x).square().mean().backward()
        optimiser.step()
    assert all(torch.equal(p, frozen[n]) for n, p in twin.named_parameters() if n in frozen)
    assert all(p.grad is not None for p in twin.parameters() if p.requires_grad)
    assert not torch.equal(twin(x), model(x))
    plain = merge(twin)
    close(plain(x), twin(x))
    assert list(plain.state_dict()) == list(model.state_dict())
    assert [type(m) for m in plain.modules()] == [type(m) for m in model.modules()]


def test_a_layer_named_report_stays():
    net = nn.Sequential()
    net.add_module("report", nn.Conv2d(8, 8, 3))
    tuned = adapt(net)
    assert isinstance(tuned.report, nn.Conv2d) and adapters(tuned.report)


def test_layers_can_be_chosen():
    net = nn.Sequential(nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)), nn.Conv2d(8, 8, 3))
    assert [e.path for e in adapt(net, layers=["0"]).report() if e.parameters] == ["0.0", "0.1"]
    assert [e.path for e in adapt(net, layers=["0.1", "1"]).report() if e.parameters] == ["0.1", "1"]
    assert [e.path for e in adapt(net, layers=[""]).report() if e.parameters] == ["0.0", "0.1", "1"]


def test_biases_are_trained_if_asked():
    twin = adapt(nn.Sequential(nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16)), bias=True)
    assert {n for n, p in twin.named_parameters() if p.requires_grad} == {
        "0.bias", "0.parametrizations.weight.0.A", "0.parametrizations.weight.0.B",
    }  # fmt: skip


def test_fewer_numbers_than_the_weight():
    """Where A and B would have more, the whole difference is learned."""
    for layer in (conv2d(8, 8, 3, groups=8), conv2d(3, 4, 3), conv2d(32, 32, 3)):
        twin = adapt(GConv(layer), rank=4)
        assert sum(p.numel() for p in twin.parameters() if p.requires_grad) <= GConv(layer).weight.numel()
    assert adapters(adapt(GConv(conv2d(8, 8, 3, groups=8))))["weight"].rank is None


def test_the_separable_convolution_is_adapted_where_channels_are_mixed():
    twin = disturb(adapt(GConv(separable(6, 5, 3)), rank=2))
    assert torch.equal(twin.weight[:9], twin.parametrizations.weight.original[:9])
    assert not torch.equal(twin.weight[9:], twin.parametrizations.weight.original[9:])


def test_shared_layers_and_tied_weights():
    layer = nn.Linear(6, 6)
    net = nn.Sequential(layer, nn.Tanh(), layer)
    twin = disturb(adapt(net, rank=1))
    assert twin[0] is twin[2]
    x = torch.randn(3, 6)
    close(merge(twin)(x), twin(x), 1e-6)
    tied = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    tied[1].weight = tied[0].weight
    twin = adapt(tied, rank=1)
    assert twin[0].parametrizations.weight.original is twin[1].parametrizations.weight.original


def test_a_merged_tie_is_not_added_twice():
    tied = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)).double()
    tied[1].weight = tied[0].weight
    twin, x = disturb(adapt(tied, rank=1)), torch.randn(3, 6, dtype=F64)
    close(merge(twin)(x), twin(x))


@pytest.mark.parametrize("spec", [conv2d(8, 8, 3, padding=1), gcn(8, 8)], ids=repr)
def test_autocast(spec):
    twin = disturb(adapt(GConv(spec), rank=2))
    case = (torch.randn(2, 8, 6, 6),) if spec.name == "conv2d" else (torch.randn(6, 8), messy())
    with torch.autocast("cpu", torch.bfloat16):
        y, z = twin(*case), merge(twin)(*case)
    assert y.dtype == z.dtype == torch.bfloat16
    assert torch.equal(y, z)


@pytest.mark.slow
def test_compiled():
    twin = disturb(adapt(GConv(conv2d(8, 8, 3, padding=1)), rank=2)).double()
    x = torch.randn(2, 8, 6, 6, dtype=F64)
    close(torch.compile(twin, fullgraph=True, backend="eager")(x), twin(x))


def test_analysis_sees_the_adapted_weight():
    twin = disturb(adapt(GConv(conv2d(4, 4, 3, padding=1), dtype=F64), rank=1))
    x = torch.randn(1, 4, 5, 4, dtype=F64)
    y = gconv.as_linear_map(twin, gconv.Grid((5, 4))) @ x.flatten(2).mT
    close(y.mT.reshape(x.shape) + twin.bias[:, None, None], twin(x))


def test_bad_input():
    net = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU())
    for call, error, text in [
        (lambda: adapt("net"), TypeError, "takes a torch module"),
        (lambda: adapt(net, rank=0), ValueError, "rank must be at least 1"),
        (lambda: adapt(net, rank=2.5), TypeError, "rank must be an integer"),
        (lambda: adapt(net, scale=0.0), ValueError, "scale must be a number other than 0"),
        (lambda: adapt(net, scale=float("nan")), ValueError, "finite"),
        (lambda: adapt(net, bias="yes"), TypeError, "bias must be"),
        (lambda: adapt(net, layers="0"), TypeError, "list of paths"),
        (lambda: adapt(net, layers=["conv"]), ValueError, "no layer at 'conv'"),
        (lambda: adapt(net, layers=[["0"]]), ValueError, "no layer at"),
        (lambda: adapt(net, layers=["1"]), ValueError, "nothing to adapt.*an activation"),
        (lambda: adapt(GConv(avg_pool2d(2))), ValueError, "nothing to learn"),
        (lambda: adapt(adapt(net)), ValueError, "adapters already"),
        (lambda: merge(net), ValueError, "no layer has any"),
        (lambda: unmerge(net), ValueError, "no layer of this model was merged"),
        (lambda: merge(3), TypeError, "takes a torch module"),
    ]:
        with pytest.raises(error, match=text):
            call()


def test_layers_with_computed_weights_are_left_alone():
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3)), nn.Conv2d(8, 8, 3))
    report = adapt(net).report()
    assert not report.entries[0].parameters and "parametrization" in report.entries[0].reason
    net[0] = nn.utils.spectral_norm(nn.Conv2d(8, 8, 3))
    assert adapt(net).report().entries[1].parameters


def test_a_wrong_difference_is_detected(monkeypatch):
    """Negative control: the factors in the wrong order of taps."""
    monkeypatch.setattr(LowRank, "difference", lambda self: self.layout.place((self.A @ self.B).flip(0)))
    with pytest.raises(AssertionError):
        test_layers_of_torch(nn.Conv2d(4, 6, 3, padding=1), False)


def test_transposed_layout_of_graphs():
    twin = adapt(pyg.GCNConv(6, 5), rank=2)
    part = adapters(twin.lin)["weight"]
    assert part.A.shape == (6, 2) and part.B.shape == (2, 5)
    assert conv_transpose2d(2, 2, 2).mixing.shape == (4, 2, 2)


def test_a_parameter_that_was_added_later_survives_merging():
    layer = adapt(GConv(gcn(3, 4)), rank=1)
    layer.register_parameter("extra", nn.Parameter(torch.ones(1)))
    assert list(dict(gconv.merge(layer).named_parameters())) == ["weight", "bias", "extra"]
