"""Layers of every operator as ONNX programs, run by onnxruntime: the same numbers, of both of torch's exporters."""

import numpy as np
import pytest
import torch
from shared import On
from torch import nn

from gconv import GConv, Graph, list_operators, operators
from gconv.kernels.transforms import REPLACED, tracing
from gconv.spec import operator
from gconv.testing import Case

onnxruntime = pytest.importorskip("onnxruntime")
UNKNOWN = {  # in torch's exporters, torch's own layer included; in onnxruntime
    "adaptive_max_pool1d": "output size that are not factor",
    "adaptive_max_pool2d": "output size that are not factor",
    "adaptive_max_pool3d": "output size that are not factor",
    "cayley": "Atan",  # of double precision
}
SAMPLES = [sample for name in list_operators() for sample in operator(name).samples()]
FEW = "gcn", "gat", "cheb", "upsample", "conv2d", "max_pool2d"
quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


def run(path, *given):
    """What onnxruntime makes of a program and its arguments."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    named = {entry.name: t.numpy() for entry, t in zip(session.get_inputs(), given, strict=True)}
    return torch.from_numpy(session.run(None, named)[0])


def exports(sample, path, dynamo):
    torch.manual_seed(0)
    case = Case.of(sample, torch.float32)
    case.layer.eval()
    with torch.no_grad():
        want = case(case.x)
        torch.onnx.export(On(case), (case.x,), str(path), dynamo=dynamo, verbose=False)
    torch.testing.assert_close(run(path, case.x), want, rtol=1e-4, atol=1e-5)


def first(name):
    return operator(name).samples()[0]


@pytest.mark.sampled(3)
@quiet
@pytest.mark.parametrize("name", FEW)
def test_the_older_exporter(name, tmp_path):
    exports(first(name), tmp_path / "layer.onnx", dynamo=False)


@quiet
@pytest.mark.sampled(12)
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: str(sample.name))
def test_the_older_exporter_takes_every_sample(sample, tmp_path):
    reason = UNKNOWN.get(sample.spec.name)
    if reason is None:
        exports(sample, tmp_path / "layer.onnx", dynamo=False)
        return
    try:
        exports(sample, tmp_path / "layer.onnx", dynamo=False)
    except Exception as error:
        assert reason in str(error)


@quiet
@pytest.mark.slow
@pytest.mark.parametrize("name", [*FEW, "sage", "agnn", "p4_conv"])
def test_the_newer_exporter(name, tmp_path):
    exports(first(name), tmp_path / "layer.onnx", dynamo=True)


@pytest.mark.sampled(2)
@quiet
@pytest.mark.parametrize("make", ["gcn", "gat"])
def test_an_edge_index_is_an_input(make, tmp_path):
    x, edges = torch.randn(4, 3), torch.tensor([[0, 1, 1, 2, 3], [1, 0, 2, 1, 0]])
    layer, path = GConv(getattr(operators, make)(3, 2)).eval(), tmp_path / "layer.onnx"
    with torch.no_grad():
        torch.onnx.export(layer, (x, edges), str(path), dynamo=False, input_names=["x", "edges"])
        for given in (edges, edges.flip(0)):
            torch.testing.assert_close(run(path, x, given), layer(x, Graph(given, 4)), rtol=1e-4, atol=1e-5)


CALLS = {
    "mT": lambda t, at: t.mT,
    "movedim": lambda t, at: t.movedim(-1, -3),
    "movedim back": lambda t, at: torch.movedim(t, 0, 2),
    "index_add": lambda t, at: t.index_add(-2, at, torch.ones(2, 4, 4)),
    "cumprod": lambda t, at: t.cumprod(1),
    "amax": lambda t, at: t.scatter_reduce(1, at.view(1, -1, 1).expand(2, 4, 4), 2 * t[:, [0, 1, 2, 0]], "amax"),
    "amin without t": lambda t, at: t.scatter_reduce(
        1, at.view(1, -1, 1).expand(2, 4, 4), t[:, [0, 1, 2, 0]] + 1, "amin", include_self=False
    ),
    "argsort": lambda t, at: torch.argsort(at, stable=True),
    "argsort down": lambda t, at: at.argsort(descending=True, stable=True),
    "leaky_relu": lambda t, at: nn.functional.leaky_relu(t, 0.3),
}


@quiet
@pytest.mark.parametrize("name", CALLS)
def test_operators_that_are_replaced_in_traces_give_the_same(name, tmp_path):
    t, at = torch.randn(2, 3, 4), torch.tensor([2, 0, 2, 0])
    call = CALLS[name]
    want = call(t, at)
    with tracing():
        torch.testing.assert_close(call(t, at), want, rtol=1e-6, atol=1e-7)

    class Call(nn.Module):
        def forward(self, t, at):
            with tracing():
                return call(t, at) + 0 * (t.sum() + at.sum()).to(want.dtype)

    torch.onnx.export(Call(), (t, at), str(tmp_path / "call.onnx"), dynamo=False)
    torch.testing.assert_close(run(tmp_path / "call.onnx", t, at), want, rtol=1e-6, atol=1e-6)
    assert np.isfinite(want.double().numpy()).all()


def test_every_replacement_is_covered():
    seen = set()

    class Seen(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), kwargs=None):
            seen.add(function)
            return function(*arguments, **(kwargs or {}))

    t, at = torch.randn(2, 3, 4), torch.tensor([2, 0, 2, 0])
    with Seen():
        for call in CALLS.values():
            call(t, at)
    assert set(REPLACED) <= seen
