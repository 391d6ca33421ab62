"""analysis.affine: a piecewise linear network is exactly its map and offset within one activation region."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch_geometric.nn import GATConv, GATv2Conv, GCNConv, SAGEConv

import gconv
from gconv import Bipartite, GConv, Graph, Grid, NotLinear, list_operators
from gconv.analysis import adjoint_gap, affine, matrix, norm, norm_bound, receptive_field, singular_values
from gconv.linear.program import Program, Slot, Step
from gconv.operators import avg_pool2d, cheb, conv2d, conv_transpose2d, gat, gcn, max_pool2d, sage
from gconv.spec import operator

DOUBLE = torch.float64
EDGES = torch.tensor([[0, 1, 2, 3, 4, 0, 2, 5, 1], [1, 0, 3, 2, 0, 4, 5, 2, 1]])


class Residual(nn.Module):
    """Every way in which branches meet: sums, products with constants, concatenation, slices, writes in place."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(2, 4, 3, padding=1, stride=2)
        self.b = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3, padding=1, groups=2))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu6(self.a(x) * 3)
        x = x + 0.5 * self.b(x.clone())
        out = torch.zeros(len(x), 8, *x.shape[2:], dtype=x.dtype)
        out[:, :4] = F.hardtanh(x)
        out[:, 4:] += torch.maximum(x, 0.1 * x.flip(1)).abs()
        return self.head(out.clamp(max=2.0).mean((2, 3)) + out.amax((2, 3)))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.middle = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.up, self.out = nn.ConvTranspose2d(6, 4, 2, stride=2), nn.Conv2d(12, 2, 1)

    def forward(self, x):
        first = F.leaky_relu(self.down(x), 0.1)
        deep = F.relu(self.middle(F.max_pool2d(first, 2)))
        same = F.interpolate(deep, scale_factor=2, mode="bilinear")[:, :4]
        return self.out(torch.cat([first, self.up(deep), same], 1))


class OnGraph(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x, edge_index):
        for layer in self.layers:
            x = F.relu(layer(x, edge_index)) + 0.1 * x.mean(-1, keepdim=True)
        return x


def cnn():
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(6), nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1), nn.Dropout(), nn.Conv2d(6, 6, 3, dilation=2), nn.PReLU(6), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(24, 5), nn.RReLU(), nn.Hardshrink(0.1),
    )  # fmt: skip


def native():
    return nn.Sequential(
        GConv(conv2d(2, 4, 3, padding="same")), nn.ReLU(), GConv(max_pool2d(2)), GConv(conv2d(4, 4, 3, padding=1)),
        nn.ReLU(), GConv(avg_pool2d(2)), GConv(conv_transpose2d(4, 2, 2, stride=2)), nn.AdaptiveMaxPool2d(2),
    )  # fmt: skip


IMAGES = {
    "cnn": (cnn, (2, 2, 11, 12)),
    "residual": (Residual, (1, 2, 8, 8)),
    "unet": (UNet, (1, 1, 8, 8)),
    "gconv": (native, (1, 2, 8, 8)),
    "converted": (lambda: gconv.convert(cnn().eval()), (1, 2, 12, 11)),
    "circular": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), nn.ReLU()),
        (1, 1, 5, 4),
    ),
    "line": (lambda: nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(0)), (2, 9)),
}
GRAPHS = {
    "gcn": lambda: OnGraph(GCNConv(3, 4), GCNConv(4, 2)),
    "sage": lambda: OnGraph(SAGEConv(3, 4), SAGEConv(4, 4, aggr="max"), SAGEConv(4, 2, project=True)),
    "gconv": lambda: OnGraph(GConv(gcn(3, 4)), GConv(cheb(4, 4, k=3)), GConv(sage(4, 4, aggr="max"))),
    "converted": lambda: gconv.convert(OnGraph(GCNConv(3, 4), SAGEConv(4, 2))),
}
ATTENTION = {
    "pyg": lambda: OnGraph(GATConv(3, 4, heads=2), GATv2Conv(8, 2, heads=2, concat=False)),
    "gconv": lambda: OnGraph(GConv(gat(3, 4, heads=2)), GConv(gcn(8, 2))),
    "converted": lambda: gconv.convert(OnGraph(GATConv(3, 4, heads=2), GCNConv(8, 2))),
}


def made(make, seed=0):
    torch.manual_seed(seed)
    model = make().double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model


def cases():
    for name, (make, shape) in IMAGES.items():
        model = made(make)
        yield name, model, torch.randn(shape, dtype=DOUBLE), None
    for name, make in GRAPHS.items():
        yield f"graph {name}", made(make), torch.randn(6, 3, dtype=DOUBLE), EDGES


@pytest.mark.parametrize("name", [*IMAGES, *(f"graph {name}" for name in GRAPHS)])
def test_it_is_the_network_within_a_region_and_not_outside(name):
    _, model, x, graph = next(case for case in cases() if case[0] == name)
    run = model if graph is None else lambda x: model(x, graph)
    A, v = affine(model, x, graph), torch.randn_like(x)
    direction, step = torch.randn_like(x), 1.0
    while not same_map(affine(model, x + step * direction, graph), A, v):
        step /= 4
    assert step > 1e-9
    with torch.no_grad():
        for t in (1.0, 0.4, 0.0):
            d = t * step * direction
            torch.testing.assert_close(A.map @ (x + d) + A.offset, run(x + d), rtol=0, atol=1e-10)
            torch.testing.assert_close(A.map @ d, run(x + d) - run(x), rtol=0, atol=1e-10)
        assert (A(-3 * x) - run(-3 * x)).abs().max() > 1e-3, "control: another region, another map"
    # the adjoint, as an equation and as autograd has it
    w = torch.randn_like(A.offset)
    assert torch.allclose((A.map @ v * w).sum(), (v * (A.map.T @ w)).sum(), rtol=1e-12)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(A.map.T @ w, torch.autograd.grad(run(leaf), leaf, w)[0], rtol=1e-10, atol=1e-12)
    index = tuple(n - 1 for n in A.offset.shape)
    row = A.row(*index)
    assert row.shape == x.shape
    torch.testing.assert_close((row * x).sum() + A.offset[index], run(x)[index].detach(), rtol=0, atol=1e-10)


def same_map(A, B, v):
    return torch.allclose(A.map @ v, B.map @ v, rtol=1e-9) and torch.allclose(A.offset, B.offset, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_frozen_at_x(name):
    model, x = made(ATTENTION[name]), torch.randn(6, 3, dtype=DOUBLE)
    with pytest.raises(NotLinear, match=r"'layers.0' \(.*freeze_attention=True"):
        affine(model, x, EDGES)
    A = affine(model, x, EDGES, freeze_attention=True)
    assert all("forward" not in vars(module) for module in model.modules())
    torch.testing.assert_close(A(x), model(x, EDGES).detach(), rtol=0, atol=1e-12)
    assert adjoint_gap(A.map) < 1e-12
    first = model.layers[0]
    frozen = gconv.as_linear_map(first, EDGES, x)
    bias = (first(x, EDGES) - frozen @ x).detach()

    def held(x):  # the first layer frozen by hand, and the second, whose attention is that of x, by its map
        y = F.relu(frozen @ x + bias) + 0.1 * x.mean(-1, keepdim=True)
        return F.relu(second @ y + rest) + 0.1 * y.mean(-1, keepdim=True)

    y = (F.relu(frozen @ x + bias) + 0.1 * x.mean(-1, keepdim=True)).detach()
    second = gconv.as_linear_map(model.layers[1], EDGES, y)
    rest = (model.layers[1](y, EDGES) - second @ y).detach()
    d = 1e-7 * torch.randn_like(x)
    torch.testing.assert_close(A(x + d), held(x + d).detach(), rtol=0, atol=1e-12)
    assert (A(x + d) - model(x + d, EDGES)).abs().max() > 1e-11, "control: attention does depend on x"


OPERATORS = list_operators()


@pytest.mark.parametrize(
    "name", [n if i % 9 == 0 else pytest.param(n, marks=pytest.mark.slow) for i, n in enumerate(OPERATORS)]
)
def test_every_operator_is_its_own_map(name):
    for sample in operator(name).samples():
        domain, layer = sample.domain(), GConv(sample.spec, dtype=DOUBLE).eval()
        if isinstance(domain, Bipartite):
            continue
        on_grid = isinstance(domain, Grid)
        x = torch.randn(
            (1, sample.channels, *domain.shape) if on_grid else (domain.size, sample.channels), dtype=DOUBLE
        )
        place = () if on_grid else (domain,)
        if layer.spec.structure.kind == "adaptive":
            with pytest.raises(NotLinear, match="freeze_attention=True"):
                affine(layer, x, *place)
        A = affine(layer, x, *place, freeze_attention=True)
        torch.testing.assert_close(A(x), layer(x, *place).detach(), rtol=0, atol=1e-10)
        assert adjoint_gap(A.map) < 1e-10
        if not on_grid:
            with contextlib.suppress(NotLinear):
                B, v = layer.at(domain, x), torch.randn_like(x)
                torch.testing.assert_close(A.map @ v, B @ v, rtol=0, atol=1e-10)


def test_a_layer_of_attention_on_a_chain_and_on_pairs():
    net = nn.Sequential(GConv(gat(3, 2)), nn.ReLU(), GConv(gcn(2, 2))).double()
    graph, x = Graph(EDGES), torch.randn(6, 3, dtype=DOUBLE)
    A = affine(net, x, graph, freeze_attention=True)
    with torch.no_grad():
        want = net[2](F.relu(net[0](x, graph)), graph)
    torch.testing.assert_close(A(x), want)
    pair = OnGraph(GATConv((3, 3), 2, add_self_loops=False)).double()
    with pytest.raises(NotLinear, match=r"'layers\.0' cannot be frozen"):
        affine(lambda_of(pair), x, freeze_attention=True)


def lambda_of(model):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = model.layers

        def forward(self, x):
            return self.layers[0]((x, x), EDGES)

    return Both()


def test_analysis_functions_take_its_map():
    model, x = made(UNet), torch.randn(1, 1, 4, 4, dtype=DOUBLE)
    A = affine(model, x).map
    M = torch.autograd.functional.jacobian(model, x).reshape(A.shape)
    torch.testing.assert_close(matrix(A), M)
    torch.testing.assert_close(A.collapse() @ x.view(4, 4), (A @ x).view(8, 4))
    torch.testing.assert_close(A.T.collapse() @ (A @ x).view(8, 4), (A.T @ (A @ x)).view(4, 4))
    assert (matrix(A, "sparse").toarray() == matrix(A).numpy()).all()
    values = torch.linalg.svdvals(M)
    torch.testing.assert_close(singular_values(A), values)
    torch.testing.assert_close(singular_values(A, k=2), values[:2])
    assert norm(A) == pytest.approx(float(values[0])) and norm_bound(A) >= norm(A)
    assert receptive_field(A).shape == A.sites
    batch = torch.randn(3, 2, 4, 4, dtype=DOUBLE)  # signals (*b, n, i)
    torch.testing.assert_close(((A.T @ A) @ batch).reshape(6, 16), batch.reshape(6, 16) @ M.mT @ M)
    assert (A @ batch[:0]).shape == (0, 2, 8, 4)
    v = torch.randn_like(x, requires_grad=True)
    torch.testing.assert_close(torch.autograd.grad((A @ v).sum(), v)[0].flatten(), M.sum(0))
    single = affine(model.float(), x.float()).map  # measured in double precision
    assert single.dtype == torch.float32 and norm(single) == pytest.approx(float(values[0]), rel=1e-5)
    assert singular_values(single).dtype == DOUBLE
    assert repr(A.T) == "ProgramMap(16 x 32).T"


TIES = {
    "relu": F.relu, "relu6": F.relu6, "hardtanh": F.hardtanh, "leaky": F.leaky_relu, "abs": torch.abs,
    "clamp": lambda x: x.clamp(-1, 2), "threshold": lambda x: F.threshold(x, 1.0, 1.0), "softshrink": F.softshrink,
    "hardshrink": lambda x: F.hardshrink(x, 1.0), "hardsigmoid": F.hardsigmoid,
    "maximum": lambda x: torch.maximum(x, -x),
    "minimum": lambda x: torch.minimum(torch.ones_like(x), x), "pool": lambda x: F.max_pool2d(x, 2),
    "adaptive": lambda x: F.adaptive_max_pool2d(x, 1), "amax": lambda x: x.amax((2, 3)), "amin": lambda x: x.amin(-1),
    "max": lambda x: x.max(), "max along": lambda x: x.max(2, keepdim=True).values, "sort": lambda x: x.sort(-1).values,
    "topk": lambda x: x.topk(2, 2).values, "median": lambda x: x.median(-1)[0], "cummax": lambda x: x.cummax(3)[0],
    "kth": lambda x: x.kthvalue(2, -1).values, "prelu": lambda x: F.prelu(x, torch.full((2,), 0.3, dtype=DOUBLE)),
    "pool3d": lambda x: F.max_pool3d(x, (1, 2, 2)), "max over edges": lambda x: x.flatten().new_zeros(3).scatter_reduce(
        0, torch.arange(32) % 3, x.flatten(), "amax", include_self=False),
}  # fmt: skip


@pytest.mark.parametrize("name", TIES)
def test_ties_are_broken_as_autograd_breaks_them(name):
    f = TIES[name]
    x = (
        torch.tensor([-3.0, -1, -0.5, 0, 0, 0.5, 1, 1, 2, 3, 3, -1, 0, 6, 2, 1], dtype=DOUBLE)
        .repeat(2)
        .view(1, 2, 4, 4)
    )
    A = affine(f, x)
    leaf = x.clone().requires_grad_()
    y = f(leaf)
    w = torch.randn_like(y)
    torch.testing.assert_close(A.map.T @ w, torch.autograd.grad(y, leaf, w)[0])
    torch.testing.assert_close(A(x), y.detach())
    assert affine(lambda x: f(x).sum(), x).offset.ndim == 0


REFUSED = {
    "gelu": (nn.GELU(), "gelu"),
    "sigmoid": (nn.Sigmoid(), "sigmoid"),
    "softmax": (nn.Softmax(-1), "softmax"),
    "layer norm": (nn.LayerNorm(4), "layer_norm"),
    "instance norm": (nn.InstanceNorm2d(2), "statistics of its input"),
    "group norm": (nn.GroupNorm(1, 2), "group_norm"),
    "batch norm": (nn.BatchNorm2d(2).train(), "statistics of its input"),
    "dropout": (nn.Dropout().train(), "random numbers.*model.eval()"),
    "channel dropout": (nn.Dropout2d().train(), "random numbers"),
    "hardswish": (nn.Hardswish(), "hardswish"),
    "gate": (lambda x: x * x.mean(), "two values that both depend"),
    "number": (lambda x: x * x.sum().item(), "converts a tensor that depends on the input to a Python number"),
    "divided": (lambda x: 1 / (1 + x.abs()), "reciprocal|div"),
    "norm": (lambda x: x / x.norm(), "not piecewise linear"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_piecewise_linear_is_refused_by_its_layer(name):
    part, why = REFUSED[name]
    x = torch.randn(1, 2, 4, 4)
    if not isinstance(part, nn.Module):
        with pytest.raises(NotLinear, match=why):
            affine(part, x)
        return
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Sequential(nn.ReLU(), part))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    with pytest.raises(NotLinear, match=rf"Layer '1.1' \({type(part).__name__}\) .*{why}"):
        affine(model, x)
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not nn.modules.module._has_any_global_hook()


def test_constants_detached_values_and_float32():
    x = torch.randn(2, 3)
    A = affine(lambda x: torch.ones(2), x)
    assert not (A.map @ x).any() and not (A.map.T @ torch.ones(2)).any() and A.row(1).shape == x.shape
    A = affine(lambda x: x.detach() * (x > 0) + x.round(), x)  # a statement about values, not about gradients
    torch.testing.assert_close(A.map @ x, F.relu(x))
    with torch.inference_mode():
        A = affine(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), x)
        assert (A.map.T @ torch.ones(2, 4)).shape == x.shape


@pytest.mark.parametrize("how", ["floor", "trunc"])
def test_a_division_that_rounds_is_locally_constant(how):
    x = torch.randn(3, 4, dtype=DOUBLE)
    for run in (
        lambda x: torch.div(x, 0.3, rounding_mode=how) + x,
        lambda x: x.clone().div_(0.3, rounding_mode=how) + x,
        lambda x: x // 0.3 + x,
    ):
        A, offset = affine(run, x)
        torch.testing.assert_close(A @ x + offset, run(x))
        torch.testing.assert_close(A @ (2 * x), 2 * x)  # linear, and the slope of the rest
    A, _ = affine(lambda x: torch.div(x, 0.5, rounding_mode=None), x)  # the control: without rounding it counts
    torch.testing.assert_close(A @ x, 2 * x)


def test_the_adjoint_passes_through_detach():
    W = torch.randn(4, 3, dtype=DOUBLE)
    for run in (lambda x: x.detach() @ W + x[:, :3], lambda x: x.clone().detach_() @ W + x[:, :3]):
        A = affine(run, torch.randn(2, 4, dtype=DOUBLE)).map
        M = matrix(A)
        assert (M != 0).sum() == 24 and adjoint_gap(A) < 1e-12
        torch.testing.assert_close(matrix(A.T), M.mT)
        assert norm(A) == pytest.approx(float(torch.linalg.matrix_norm(M, 2)))


def test_the_modulus_of_complex_numbers_is_refused_and_so_are_complex_results():
    x = torch.randn(2, 6, dtype=DOUBLE)
    for run in (lambda x: torch.fft.rfft(x).abs(), lambda x: torch.fft.rfft(x).sgn().real + x[:, :4]):
        with pytest.raises(NotLinear, match=r"abs|sgn"):
            affine(run, x)
    with pytest.raises(TypeError, match=r"returns real numbers, but this one returns torch\.complex128"):
        affine(torch.fft.rfft, x)
    A, offset = affine(lambda x: torch.view_as_real(torch.fft.rfft(x)), x)
    torch.testing.assert_close((A @ x).view_as(offset) + offset, torch.view_as_real(torch.fft.rfft(x)))


def test_bad_input_is_an_error_with_a_message():
    net = nn.Linear(3, 2)
    for model, x, error, message in [
        (net, (2, 3), TypeError, "the model's input x"),
        (net, torch.ones(2, 3, dtype=torch.long), TypeError, "real numbers"),
        (net, torch.ones(2, 3, dtype=torch.complex64), TypeError, "real numbers"),
        ("net", torch.ones(2, 3), TypeError, "takes a model"),
        (lambda x: (x, x), torch.ones(2, 3), TypeError, "must return one tensor"),
    ]:
        with pytest.raises(error, match=message):
            affine(model, x)
    with pytest.raises(TypeError, match="freeze_attention must be True or False"):
        affine(net, torch.ones(2, 3), freeze_attention=1)
    A = affine(net, torch.ones(2, 3))
    with pytest.raises(ValueError, match="x has shape"):
        A.map @ torch.ones(3, 3)
    with pytest.raises(TypeError, match="convert one of them"):
        A.map @ torch.ones(2, 3, dtype=DOUBLE)
    with pytest.raises(TypeError, match="row takes the 2 indices"):
        A.row(1)
    with pytest.raises(IndexError, match="no entry"):
        A.row(0, 2)
    with pytest.raises(TypeError, match="takes a torch tensor"):
        A.map @ [1.0]


def test_memory_is_less_than_twice_that_of_the_activations():
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8192, 10),
    ).eval()  # fmt: skip
    x, activations = torch.rand(1, 3, 64, 64), 0
    y = x
    for layer in net:
        y = layer(y)
        activations += y.numel() * y.element_size()
    A = affine(net, x)
    weights = {p.data_ptr() for p in net.parameters()}
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in A.map.program.constants()}
    assert sum(size for place, size in held.items() if place not in weights) < activations
    w = torch.ones(1, 10)
    for call in (lambda: affine(net, x), lambda: A.map @ x, lambda: A.map.T @ w):
        assert peak(call) < 2 * activations
    assert peak(lambda: [torch.empty_like(y) for _ in range(3) for y in outputs(net, x)]) > 2 * activations, "control"


def outputs(net, x):
    for layer in net:
        x = layer(x)
        yield x


def peak(call):
    """Bytes that were allocated at most, beyond those at the start."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    total = top = 0
    for event in sorted(profiler.events(), key=lambda e: e.time_range.start):
        total += event.self_cpu_memory_usage
        top = max(top, total)
    del result
    return top


def test_a_program_in_another_dtype_converts_lists_of_tensors_among_keywords():
    step = Step(lambda v, factors: v * factors[0], (Slot(0),), {"factors": [torch.tensor(2.0)]}, (1,))
    program = Program.of([step], 1, (torch.Size([2]), torch.Size([2])), torch.float32, torch.device("cpu"))
    converted = program.to(torch.float64)
    assert [t.dtype for t in converted.constants()] == [torch.float64]
    assert torch.equal(converted.run(torch.ones(2, dtype=torch.float64)), torch.full((2,), 2.0, dtype=torch.float64))
