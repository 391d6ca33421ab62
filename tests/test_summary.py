"""gconv.summary: closed forms, published counts, torch's own counter, and a model that stays what it was."""

import json

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torch_geometric.nn import GATConv, GCNConv, GINConv, SAGEConv

import gconv
from gconv import GConv, Graph, summary
from gconv.operators import appnp, avg_pool2d, cheb, conv2d, gcn, global_pool, max_pool2d

EDGES = torch.tensor([[0, 1, 2, 3, 4, 0, 2], [1, 0, 3, 2, 0, 4, 4]])


def counts(model, *inputs, **options):
    return {row.path: row.multiply_adds for row in summary(model, *inputs, **options).rows}


# -- counts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("convert", [False, True])
def test_layers_by_closed_form(convert):
    change = gconv.convert if convert else lambda model: model
    image = torch.zeros(2, 4, 9, 7)
    for layer, want in [
        (nn.Conv2d(4, 6, 3, padding=1), 2 * 9 * 4 * 6 * 63),
        (nn.Conv2d(4, 6, 3, stride=2, groups=2, bias=False), 2 * 9 * 2 * 6 * 4 * 3),
        (nn.Conv2d(4, 4, 3, groups=4, dilation=2), 2 * 9 * 4 * 5 * 3),
        (nn.ConvTranspose2d(4, 3, 2, stride=2), 2 * 4 * 4 * 3 * 63),
        (nn.Linear(7, 5), 2 * 4 * 9 * 7 * 5),
        (nn.AvgPool2d(3, 3), 0),
        (nn.MaxPool2d(3, 3), 0),
        (nn.BatchNorm2d(4), 0),
        (nn.GELU(), 0),
    ]:
        assert counts(change(layer), image) == {"": want}, layer
    x, n = torch.zeros(5, 3), 5
    entries = EDGES.shape[1] + n  # with self-loops
    for layer, want in [
        (GCNConv(3, 8), n * 3 * 8 + entries * 3),
        (GCNConv(3, 2), n * 3 * 2 + entries * 2),
        (SAGEConv(3, 2), 2 * n * 3 * 2 + EDGES.shape[1] * 2),
    ]:
        assert counts(change(layer), x, EDGES) == {"": want}, layer


def test_layers_of_gconv_by_closed_form():
    assert counts(GConv(conv2d(2, 3, 3)), torch.zeros(1, 2, 5, 6)) == {"": 9 * 2 * 3 * 12}
    assert counts(GConv(max_pool2d(2)), torch.zeros(1, 2, 6, 6)) == {"": 0}
    assert counts(GConv(avg_pool2d(2)), torch.zeros(1, 2, 6, 6)) == {"": 0}
    graph, x = Graph(EDGES), torch.zeros(4, 5, 3)
    entries = EDGES.shape[1] + 5
    assert (
        counts(GConv(gcn(3, 2)), x, graph) == {"": 4 * (5 * 3 * 2 + entries * 2)} == counts(GConv(gcn(3, 2)), x, EDGES)
    )
    assert counts(GConv(gcn(3, 2)), x, domain=graph) == counts(GConv(gcn(3, 2)), x, graph)
    assert counts(GConv(global_pool("mean")), x, graph) == {"": 0}
    assert counts(GConv(appnp(k=2)), x[0], graph) == {"": 2 * entries * 3}
    dense = nn.Conv2d(3, 5, 3)  # a kernel larger than the planner's FFT threshold counts as written
    big = gconv.convert(nn.Conv2d(3, 5, 31, padding=15))
    assert counts(big, torch.zeros(1, 3, 64, 64)) == {"": 31 * 31 * 3 * 5 * 64 * 64}
    assert counts(dense, torch.zeros(3, 8, 8)) == {"": 9 * 3 * 5 * 36}, "an image without a batch axis"


def mobilenet():
    """MobileNetV2 1.0: t, c, n, s of each stage as in Table 2 of Sandler et al., CVPR 2018."""

    def conv(i, o, k=1, s=1, g=1, act=True):
        layers = [nn.Conv2d(i, o, k, s, k // 2, groups=g, bias=False), nn.BatchNorm2d(o)]
        return nn.Sequential(*layers, nn.ReLU6(inplace=True)) if act else nn.Sequential(*layers)

    layers, i = [conv(3, 32, 3, 2)], 32
    stages = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for t, c, n, s in stages:
        for number in range(n):
            h = i * t
            expand = [] if t == 1 else [conv(i, h)]
            layers.append(nn.Sequential(*expand, conv(h, h, 3, s if number == 0 else 1, h), conv(h, c, act=False)))
            i = c
    return nn.Sequential(*layers, conv(320, 1280), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000))


def test_mobilenet_has_its_published_counts():
    """300 M multiply-adds and 3.4 M parameters (Table 4 of the paper), and half of what torch's counter counts."""
    with torch.device("meta"):
        model, x = mobilenet().eval(), torch.zeros(1, 3, 224, 224)
    total = summary(model, x).totals
    assert total["parameters"] == 3_504_872 and pytest.approx(total["parameters"], rel=0.04) == 3.4e6
    assert pytest.approx(total["multiply_adds"], rel=0.01) == 300e6
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert counter.get_total_flops() == 2 * total["multiply_adds"]


def test_the_shuffle_unit_by_hand():
    """A stride 1 unit of ShuffleNet with c channels, bottleneck m and g groups: hw (2 c m / g + 9 m), section 3.2 of
    Zhang et al., ShuffleNet, CVPR 2018.
    """
    c, m, g, h, w = 24, 6, 3, 7, 5
    unit = nn.Sequential(
        nn.Conv2d(c, m, 1, groups=g, bias=False), nn.BatchNorm2d(m), nn.ReLU(), nn.ChannelShuffle(g),
        nn.Conv2d(m, m, 3, padding=1, groups=m, bias=False), nn.BatchNorm2d(m),
        nn.Conv2d(m, c, 1, groups=g, bias=False),
    )  # fmt: skip
    for model in (unit, gconv.convert(unit)):
        assert summary(model, torch.zeros(1, c, h, w)).totals["multiply_adds"] == h * w * (2 * c * m // g + 9 * m)


def test_other_layers_are_counted_by_torch():
    attention, x = nn.MultiheadAttention(8, 2, batch_first=True), torch.zeros(2, 5, 8)
    (row,) = summary(attention, x, x, x, need_weights=False).rows
    with FlopCounterMode(display=False) as counter:
        attention.train()(x, x, x, need_weights=False)
    assert row.multiply_adds == counter.get_total_flops() / 2 > 0 and row.operator is None

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.layer = nn.Parameter(torch.zeros(4, 6)), nn.Linear(6, 3)

        def forward(self, x, *, scale):
            return scale * self.layer(x @ self.token)

    found = summary(Own(), torch.zeros(2, 4), scale=2.0)
    assert [(row.path, row.parameters, row.multiply_adds) for row in found.rows] == [
        ("layer", 21, 36), ("(other)", 24, 48)]  # fmt: skip


# -- rows --------------------------------------------------------------------------------------------------------------


def test_every_call_is_a_row_and_parameters_count_once():
    shared = nn.Linear(4, 4)
    tied = nn.Linear(4, 4)
    tied.weight = shared.weight
    found = summary(nn.Sequential(shared, nn.ReLU(inplace=True), shared, nn.Flatten(), tied), torch.zeros(2, 4))
    assert [row.path for row in found.rows] == ["0", "1", "0", "3", "4"]
    assert [row.parameters for row in found.rows] == [20, 0, 0, 0, 4] and found.totals["parameters"] == 24
    assert [row.bytes for row in found.rows] == [32, 0, 32, 0, 32], "in place and views take no new memory"
    assert [row.share for row in found.rows] == [1 / 3, 0, 1 / 3, 0, 1 / 3]
    row = found.rows[0]
    assert (row.layer, row.operator, row.inputs, row.outputs) == (
        "Linear",
        "pointwise(4, 4, ndim=1)",
        ((2, 4),),
        ((2, 4),),
    )


def test_lowerings_and_predictions_are_those_of_the_plan():
    layer, x = GConv(cheb(3, 4, k=3)), torch.zeros(5, 3)
    (row,) = summary(layer, x, EDGES).rows
    with torch.no_grad():
        plan = layer.plan(x, EDGES)
    assert row.lowering == plan.chosen.name
    assert row.predicted == next(c.seconds for c in plan.candidates if c.name == row.lowering)
    assert [r.lowering for r in summary(GCNConv(3, 4), x, EDGES).rows] == ["PyG"]
    assert [r.lowering for r in summary(nn.Linear(3, 4), x).rows] == ["torch"]
    (row,) = summary(gconv.convert(GCNConv(3, 4)), x, EDGES).rows
    assert row.lowering not in ("PyG", "torch") and row.predicted > 0 and row.layer == "GCNConv"
    assert summary(nn.Sequential(nn.Linear(3, 4)), x).totals["predicted"] is None


def test_networks_inside_layers_have_their_own_rows():
    model = GINConv(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    for each in (model, gconv.convert(model)):
        found = summary(each, torch.zeros(5, 3), EDGES)
        assert {row.path: row.parameters for row in found.rows} == {"nn.0": 16, "nn.1": 0, "nn.2": 10, "": 0}
        assert found.totals["multiply_adds"] >= 5 * (12 + 8)
    found = summary(GATConv(3, 4, heads=2), torch.zeros(5, 3), EDGES)
    assert len(found.rows) == 1 and found.rows[0].parameters == found.totals["parameters"] == 24 + 8 + 8 + 8


def test_times():
    net, x = nn.Sequential(gconv.convert(nn.Linear(64, 64)), nn.ReLU()), torch.zeros(256, 64)
    found = summary(net, x, measure=2)
    assert all(row.measured > 0 for row in found.rows)
    assert 0 < sum(row.measured for row in found.rows) <= 1.5 * found.totals["measured"]
    assert "measured ms" in str(found) and "measured ms" not in str(summary(net, x))


def test_text_html_and_data():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())
    found = summary(net, torch.zeros(1, 1, 4, 4))
    lines = str(found).splitlines()
    assert lines[0].split() == [
        "layer",
        "operator",
        "output",
        "parameters",
        "multiply-adds",
        "bytes",
        "lowering",
        "share",
    ]
    assert lines[2].split() == ["0", "conv2d(1,", "2,", "3)", *"1x2x2x2", "20", "72", "32", "torch", "100.0", "%"]
    assert lines[-1].split() == ["total", "20", "72", "32"] and repr(found) == str(found)
    assert json.loads(json.dumps(found.to_dict()))["totals"]["multiply_adds"] == 72
    assert found.to_dict()["rows"][0]["outputs"] == ((1, 2, 2, 2),)
    assert "<td>conv2d(1, 2, 3)</td>" in found._repr_html_() and found._repr_html_().count("<tr>") == 4


# -- the model stays what it was ---------------------------------------------------------------------------------------


class Fails(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        self.norm(x)
        raise RuntimeError("on purpose")


def test_the_model_is_unchanged():
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Sequential(nn.Linear(4, 2)))
    net[3].eval()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    modes, random = [m.training for m in net.modules()], torch.get_rng_state()
    summary(net, torch.randn(3, 4), measure=1)
    assert modes == [m.training for m in net.modules()] and torch.is_grad_enabled()
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    torch.set_rng_state(random)
    assert not nn.modules.module._has_any_global_hook()
    model = Fails()
    with pytest.raises(RuntimeError, match="on purpose"):
        summary(model, torch.randn(3, 4))
    assert not nn.modules.module._has_any_global_hook()
    assert model.training and model.norm.num_batches_tracked == 0 and model.norm.training


def test_lazy_models_and_empty_ones():
    net = nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(2))
    found = summary(net, torch.zeros(1, 2, 5, 5))
    assert found.totals["parameters"] == 76 + 74 and found.totals["multiply_adds"] == 9 * 2 * 4 * 9 + 72
    assert all(nn.parameter.is_lazy(p) for p in net.parameters())
    empty = summary(nn.Sequential(), torch.zeros(2, 3))
    assert empty.totals["multiply_adds"] == empty.totals["parameters"] == 0 and "total" in str(empty)
    assert summary(nn.Linear(3, 2), torch.zeros(0, 3)).totals["multiply_adds"] == 0


def test_bad_input_is_an_error_with_a_message():
    net = nn.Linear(3, 2)
    for call, message in [
        (lambda: summary(lambda x: x, torch.zeros(3)), "takes a torch module, but a function"),
        (lambda: summary(nn.Linear, torch.zeros(3)), "the class Linear"),
        (lambda: summary(net), "Linear does not accept: missing a required argument: 'input'"),
        (lambda: summary(net, torch.zeros(1, 3), size=3), "unexpected keyword argument 'size'"),
        (lambda: summary(net, (1, 3)), r"such as torch.zeros\(1, 3\)"),
        (lambda: summary(net, torch.zeros(1, 3), measure="yes"), "measure must be True or False or an integer"),
    ]:
        with pytest.raises(TypeError, match=message):
            call()


def test_a_sparse_signal_is_counted_as_a_dense_one():
    layer, x = GConv(gcn(4, 2)), torch.eye(5, 4)
    graph = Graph(EDGES, 5)
    (row,) = summary(layer, x.to_sparse(), graph).rows
    (want,) = summary(layer, x, graph).rows
    assert (row.multiply_adds, row.outputs, row.bytes) == (want.multiply_adds, want.outputs, want.bytes)
