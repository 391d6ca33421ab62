"""Programs for other machines: exported with open sizes, saved, and run where gconv cannot be imported."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from gconv import GConv, Graph, Grid, list_operators
from gconv.lowering import images as images_lowering
from gconv.operators import avg_pool2d, cheb, conv2d, conv_transpose2d, gat, gatv2, gcn, global_pool, max_pool2d, sage
from gconv.spec import operator
from gconv.testing import Case, assert_close

AUTO, DYNAMIC = torch.export.Dim.AUTO, torch.export.Dim.DYNAMIC
EDGES = "edge_index", "edge_weight", "edge_attr", "edge_type"
SAMPLES = [operator(name).samples()[0] for name in list_operators()]
CONSTANT = {  # in the program, so that other sizes are refused when it is called
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
    "adaptive_max_pool3d", "spline", "upsample",
}  # fmt: skip
ONE_GRID = {"fold"}
READS = {"hypergraph"}  # the number of hyperedges off the edges, which no program can
CHILD = """
import sys
sys.modules["gconv"] = None  # an import raises
import torch
kind, program, data, out = sys.argv[1:]
given = torch.load(data)
if kind == "aoti":
    y = torch._inductor.aoti_load_package(program)(*given)
elif kind == "export":
    y = torch.export.load(program).module()(*given)
else:
    import onnxruntime
    session = onnxruntime.InferenceSession(program, providers=["CPUExecutionProvider"])
    named = {entry.name: t.numpy() for entry, t in zip(session.get_inputs(), given, strict=True)}
    y = torch.from_numpy(session.run(None, named)[0])
assert not any(name.startswith("gconv.") for name in sys.modules)
torch.save(y, out)
"""
quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


class OnGraph(nn.Module):
    """Layers one after another on a graph that is given by its edges."""

    def __init__(self, *specs):
        super().__init__()
        self.layers = nn.ModuleList(GConv(spec) for spec in specs)

    def forward(self, x, edge_index):
        for layer in self.layers:
            x = layer(x, edge_index).relu()
        return x


def images():
    """A small network of each kind of layer on a grid, two images, and three of another size."""
    torch.manual_seed(0)
    net = nn.Sequential(
        GConv(conv2d(3, 8, 3, stride=2, padding=1)), nn.BatchNorm2d(8), nn.ReLU(), GConv(max_pool2d(2)),
        GConv(conv2d(8, 8, 3, padding=1, padding_mode="circular")), GConv(avg_pool2d(3, 1, 1)),
        GConv(conv_transpose2d(8, 4, 4, stride=2, padding=1)), GConv(conv2d(4, 2, 1)), GConv(global_pool()),
    )  # fmt: skip
    open_sizes = ({0: torch.export.Dim("b"), **{axis: torch.export.Dim("hw"[axis - 2], min=8) for axis in (2, 3)}},)
    return net.eval(), (torch.randn(2, 3, 16, 20),), (torch.randn(3, 3, 33, 45),), open_sizes


def graphs(*specs):
    """The same of layers on a graph: other nodes, and other edges."""
    torch.manual_seed(0)
    first, second = ((torch.randn(n, 4), torch.randint(n, (2, e))) for n, e in ((12, 40), (57, 301)))
    return OnGraph(*specs).eval(), first, second, ({0: torch.export.Dim("n", min=4)}, {1: torch.export.Dim("e", min=2)})


NETWORKS = {
    "images": images,
    "gcn": lambda: graphs(gcn(4, 8), gcn(8, 3)),
    "gat": lambda: graphs(gat(4, 8, heads=2), gat(16, 3)),
    "mixed": lambda: graphs(cheb(4, 8, k=3), sage(8, 8), gatv2(8, 3)),
}


def made(kind, name, path):
    """A program of a network in a file, and what it must give for inputs of another size: (inputs, outputs)."""
    net, first, second, sizes = NETWORKS[name]()
    with torch.no_grad():
        if kind == "onnx":
            torch.onnx.export(net, first, str(path), dynamo=True, dynamic_shapes=sizes, verbose=False)
        else:
            program = torch.export.export(net, first, dynamic_shapes=sizes)
            assert not any("gconv" in str(node.target) for node in program.graph.nodes)
            if kind == "aoti":
                torch._inductor.aoti_compile_and_package(program, package_path=str(path))
            else:
                torch.export.save(program, path)
        return second, net(*second)


def elsewhere(kind, program, given, folder):
    """What a process that cannot import gconv makes of a program and its inputs."""
    torch.save(given, folder / "given.pt")
    command = [sys.executable, "-W", "ignore", "-c", CHILD, kind]
    command += [str(path) for path in (program, folder / "given.pt", folder / "out.pt")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return torch.load(folder / "out.pt")


@quiet
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in ("export", "onnx", "aoti") for name in NETWORKS])
def test_saved_programs_run_at_other_sizes_without_gconv(kind, name, tmp_path):
    if kind == "onnx":
        pytest.importorskip("onnxscript")
    path = tmp_path / ("net.onnx" if kind == "onnx" else "net.pt2")
    given, want = made(kind, name, path)
    assert_close(f"{name} by {kind}", elsewhere(kind, path, given, tmp_path), want, 2e-5)


def test_an_image_network_is_exported_with_open_sizes():
    net, first, second, sizes = images()
    with torch.no_grad():
        program = torch.export.export(net[:2], first, dynamic_shapes=sizes).module()
        assert_close("exported", program(*second), net[:2](*second), 1e-5)


class On(nn.Module):
    """A layer as a module of x and what the edges carry."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, given):
        return self.layer(x, Graph(size=x.shape[-2], **given))


def larger(case):
    """A module of tensors, its arguments on the sample's domain and on one twice as large, and their open sizes."""
    if isinstance(case.domain, Grid):
        shapes = [[n * (k + axis) for axis, n in enumerate(case.domain.shape)] for k in (2, 3)]
        first, second = (torch.randn(b, case.x.shape[1], *shape) for b, shape in zip((2, 3), shapes, strict=True))
        sizes = ({0: DYNAMIC} | {axis + 2: AUTO for axis in range(case.domain.ndim)},)
        return case.layer, (first,), (second,), sizes
    given = {name: getattr(case.domain, name) for name in EDGES if getattr(case.domain, name) is not None}
    twice = {name: torch.cat([t, t], -1 if name == "edge_index" else 0) for name, t in given.items()}
    twice["edge_index"] = torch.cat([given["edge_index"], given["edge_index"] + case.domain.size], 1)
    if case.domain.pos is not None:
        given["pos"], twice["pos"] = case.domain.pos, torch.cat([case.domain.pos, case.domain.pos + 1])
    x = torch.randn(3, 2 * case.domain.size, case.x.shape[-1])
    sizes = ({0: DYNAMIC, 1: AUTO}, {name: {1 if name == "edge_index" else 0: AUTO} for name in given})
    return On(case.layer), (case.x, given), (x, twice), sizes


@quiet
@pytest.mark.sampled(8)
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: str(sample.name))
def test_every_operator_is_exported_with_open_sizes(sample):
    case = Case.of(sample, torch.float32)
    if case.one_graph or type(case.domain) not in (Grid, Graph):
        pytest.skip("it belongs to one graph, or lies between two sets of nodes")
    if sample.spec.name in ONE_GRID:
        pytest.skip("it leads from a grid of one size")
    module, first, second, sizes = larger(case)
    if sample.spec.name in READS:
        with pytest.raises(torch.fx.experimental.symbolic_shapes.GuardOnDataDependentSymNode):
            torch.export.export(module, first, dynamic_shapes=sizes)
        return
    with torch.no_grad():
        program = torch.export.export(module, first, dynamic_shapes=sizes)
        assert not any("gconv" in str(node.target) for node in program.graph.nodes)
        if sample.spec.name in CONSTANT:
            assert_close("exported", program.module()(*first), module(*first), 1e-5)
            with pytest.raises(AssertionError, match="Guard failed"):
                program.module()(*second)
            return
        assert_close("exported", program.module()(*second), module(*second), 1e-5)


def traced_at_another_size(sample):
    """What a trace makes of images of another size, and what the layer makes of them; None if the trace refuses."""
    case = Case.of(sample, torch.float32)
    layer, first, second, _ = larger(case)
    with torch.no_grad():
        program = torch.jit.trace(layer.eval(), first, check_trace=False)
        try:
            return program(*second), layer(*second)
        except RuntimeError:
            return None


@quiet
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_at_another_size_is_right_or_refuses(monkeypatch):
    named = [sample for sample in SAMPLES if sample.spec.name not in ONE_GRID]
    on_grids = [sample for sample in named if isinstance(Case.of(sample, torch.float32).domain, Grid)]
    found = {sample.spec.name: traced_at_another_size(sample) for sample in on_grids}
    for name, pair in found.items():
        if pair is not None:
            assert_close(f"{name}, traced", *pair, 1e-5)
    assert found["conv2d"] is not None and found["max_pool2d"] is not None
    monkeypatch.setattr(images_lowering, "is_jit_tracing", lambda: False)
    ours, wanted = traced_at_another_size(next(sample for sample in SAMPLES if sample.spec.name == "global_pool"))
    assert ours.shape != wanted.shape
