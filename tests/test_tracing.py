"""Layers that are traced, exported, faked or run portably: the right graph, the right numbers, and nothing cached."""

import copy
import gc
import pickle
import warnings

import pytest
import torch
from shared import On
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from gconv import GConv, Graph, Grid, binding, convert, list_operators, plan, portable
from gconv.interop import restore
from gconv.kernels.transforms import concrete
from gconv.operators import conv2d, gat, gcn, upsample
from gconv.spec import operator
from gconv.testing import TOL, Case, assert_close

SAMPLES = [operator(name).samples()[0] for name in list_operators()]
DOUBLE = torch.float64
EDGES = torch.tensor([[0, 1, 1, 2, 3], [1, 0, 2, 1, 0]])


@pytest.fixture(params=SAMPLES, ids=lambda sample: f"{sample.name}")
def case(request):
    case = Case.of(request.param, DOUBLE)
    return Case(case.sample, case.layer.eval(), case.domain, case.x)


def fresh(domain):
    """A domain that has derived nothing yet."""
    return pickle.loads(pickle.dumps(domain))


def kinds(traced):
    return {node.kind() for node in traced.inlined_graph.nodes()}


@pytest.mark.sampled(2)
def test_portable_mode_composes_the_same_numbers_of_aten_operators(case):
    want = case(case.x)
    seen = set()

    class Seen(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), kwargs=None):
            seen.add(function.namespace)
            return function(*arguments, **(kwargs or {}))

    with portable():
        got = case(case.x, domain=fresh(case.domain))
        with Seen():
            case(case.x)
    assert_close("portable", got, want, TOL[DOUBLE])
    assert seen <= {"aten", "prim", "prims"}


@pytest.mark.sampled(12)
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("gradients", [True, False])
def test_jit_traces_hold_aten_operators_and_the_right_numbers(case, gradients):
    module, other = On(case), torch.randn_like(case.x)
    if not isinstance(case.domain, Grid):
        module.domain = fresh(case.domain)  # cold
    with torch.set_grad_enabled(gradients):
        traced = torch.jit.trace(module, (case.x,), check_trace=False)
        assert {kind.split("::")[0] for kind in kinds(traced)} <= {"aten", "prim"}
        for x in (case.x, other):
            assert_close("traced", traced(x), case(x), TOL[DOUBLE])
        if gradients:
            weights = list(case.layer.parameters())
            for x in (case.x, other) if weights else ():
                got, want = (torch.autograd.grad(run(x).sum(), weights) for run in (traced, module))
                for a, b in zip(got, want, strict=True):
                    assert_close("gradient", a, b, 1e-10)
    afresh = copy.deepcopy(case.layer)
    assert_close("the layer afterwards", case(other), afresh(other, fresh(case.domain)), TOL[DOUBLE])


@pytest.mark.sampled(3)
def test_fake_and_meta_tensors_have_the_shapes_and_types_of_numbers(case):
    want = case(case.x)
    layer, mode = copy.deepcopy(case.layer), FakeTensorMode()
    for name, p in list(layer.named_parameters()):
        setattr(layer, name, nn.Parameter(mode.from_tensor(p.detach())))
    domains, x = {id(d): d for d in (case.domain, fresh(case.domain))}, mode.from_tensor(case.x)
    for domain in domains.values():
        with mode:
            y = layer(x, domain)
        assert (y.shape, y.dtype, y.device) == (want.shape, want.dtype, want.device)
    on_meta = copy.deepcopy(case.layer).to("meta")
    domain = case.domain if isinstance(case.domain, Grid) else case.domain.to("meta")
    y = on_meta(case.x.to("meta"), domain)
    assert (y.shape, y.dtype, y.is_meta) == (want.shape, want.dtype, True)
    assert_close("numbers afterwards", case(case.x), want, TOL[DOUBLE])
    if isinstance(case.domain, Graph):
        assert concrete(case.domain)


@pytest.mark.sampled(12)
def test_layers_compile_in_one_graph_without_a_call_beforehand(case):
    torch._dynamo.reset()
    compiled = torch.compile(case.layer, fullgraph=True, backend="eager")
    y = compiled(case.x, None if isinstance(case.domain, Grid) else fresh(case.domain))
    assert_close("compiled", y, case(case.x), TOL[DOUBLE])


RESIZED = [sample for sample in SAMPLES if sample.spec.structure.domain == "grid" and sample.spec.name != "fold"]


@pytest.mark.slow
@pytest.mark.parametrize("sample", RESIZED, ids=lambda sample: str(sample.spec))
def test_operators_on_grids_compile_in_one_graph_at_three_sizes(sample):
    torch._dynamo.reset()
    layer = GConv(sample.spec)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    for more in (0, 4, 8):  # a compiler takes the second size as the first of many
        x = torch.randn(2, sample.channels, *(n + more for n in sample.domain().shape))
        assert_close(f"at {tuple(x.shape)}", compiled(x), layer(x), 1e-5)


@pytest.mark.parametrize(
    "layer",
    [nn.Upsample(scale_factor=1.5, mode="bilinear"), nn.Upsample(5), nn.AdaptiveAvgPool2d(3), nn.AdaptiveAvgPool2d(1)],
    ids=str,
)
def test_resampling_compiles_in_one_graph_at_three_sizes(layer):
    torch._dynamo.reset()
    twin = convert(layer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled = torch.compile(twin, fullgraph=True, backend="eager")
        for n in (4, 6, 9):
            x = torch.randn(2, 3, n, n + 1)
            assert_close(f"at {tuple(x.shape)}", compiled(x), layer(x), 1e-5)


@pytest.mark.sampled(4)
def test_layers_compile_with_dynamic_sizes(case):
    torch._dynamo.reset()
    layer = On(case)
    assert_close("dynamic", torch.compile(layer, dynamic=True, backend="eager")(case.x), layer(case.x), TOL[DOUBLE])


@pytest.mark.parametrize("spec", [gcn(3, 2), gat(3, 2)], ids=["gcn", "gat"])
def test_a_learned_structure_in_one_graph_with_dynamic_sizes_is_refused(spec):
    torch._dynamo.reset()
    layer, x, graph = GConv(spec), torch.randn(4, 3), Graph(EDGES)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="eager")
    if spec.name == "gcn":
        assert_close("fixed", compiled(x, graph), layer(x, graph), 1e-5)
    else:
        with pytest.raises(RuntimeError, match="Leave out dynamic=True, or pass an edge_index"):
            compiled(x, graph)
    assert_close("an edge_index", compiled(x, EDGES), layer(x, EDGES), 1e-5)


@pytest.mark.slow
def test_a_network_compiles_at_changing_batch_sizes_after_a_graph_layer():
    x, graph, layer = torch.randn(4, 3), Graph(EDGES, 4), GConv(gcn(3, 2))
    cold = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert_close("a graph that is cold", cold(x, graph), layer(x, graph), 1e-6)
    conv = convert(nn.Conv2d(4, 2, 3))
    net = nn.Sequential(GConv(conv2d(3, 4, 3, padding=1)), nn.ReLU(), GConv(upsample(scale_factor=2)), conv)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    for b in (2, 3, 5):
        images = torch.randn(b, 3, 6, 6)
        assert_close("compiled", compiled(images), net(images), 1e-5)


@pytest.mark.parametrize("spec", [gcn(3, 2), gat(3, 2)], ids=["gcn", "gat"])
def test_exported_programs_take_another_edge_index_and_hold_aten_operators(spec):
    x, other, layer = torch.randn(4, 3), EDGES.flip(0), GConv(spec).eval()
    program = torch.export.export(layer, (x, EDGES))
    assert not any("gconv" in str(node.target) for node in program.graph.nodes)
    assert_close("exported", program.module()(x, other), layer(x, other), 1e-5)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    "model",
    [
        GConv(conv2d(3, 2, 3)),
        nn.Sequential(GConv(gcn(3, 2))),
        convert(nn.Linear(3, 2)),
        convert(nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU())),
    ],
    ids=["native", "within", "converted", "network"],
)
def test_torch_jit_script_is_refused(model):
    with pytest.raises(TypeError, match=r"torch\.jit\.script cannot compile a .*gconv\.interop\.restore\(model\)\.$"):
        torch.jit.script(model)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_restored_model_can_be_scripted():
    model, x = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU()), torch.randn(1, 3, 5, 5)
    assert_close("scripted", torch.jit.script(restore(convert(model)))(x), model(x), 1e-6)


@pytest.mark.slow
def test_what_compiled_functions_read_is_dropped_with_the_layer():
    torch._dynamo.reset()
    gc.collect()
    held = len(vars(binding._TRACED))
    layers = [GConv(upsample(scale_factor=2)), GConv(upsample(scale_factor=3))]
    for layer in layers:
        compiled, x = torch.compile(layer, fullgraph=True, backend="eager"), torch.randn(1, 2, 4, 4)
        for _ in range(2):
            assert_close("compiled", compiled(x), layer(x), 1e-6)
    assert len(vars(binding._TRACED)) == len(binding._TRACED_NAMES) == held + 2
    del layers, layer, compiled
    torch._dynamo.reset()
    for cache in (binding._GRID_BASES, binding._GRID_TARGETS, plan._PLANS):  # which are bounded
        cache.clear()
    gc.collect()
    assert len(vars(binding._TRACED)) == len(binding._TRACED_NAMES) <= held
