"""In-place use of a layer's output: as in torch, with and without gradients, and no later result changes."""

import pytest
import torch

from gconv import GConv, Graph, constant, list_operators
from gconv.kernels import memory
from gconv.lowering import fixed
from gconv.operators import appnp, cheb, gat, gcn, global_pool, simple
from gconv.operators.shapes import messy
from gconv.spec import operator
from gconv.testing import Case

GRAPHS = [s for name in list_operators() for s in operator(name).samples() if isinstance(s.domain(), Graph)]


@pytest.fixture(params=["small", pytest.param("large", marks=pytest.mark.slow)])
def sizes(request, monkeypatch):
    """Small signals as they are, and as large ones go: a few rows or signals at a time, results in pooled buffers."""
    if request.param == "large":
        monkeypatch.setattr(fixed, "CHUNK_BYTES", 0)
        monkeypatch.setattr(fixed, "MIN_BYTES_ROWS", 0)
        monkeypatch.setattr(memory, "MIN_BYTES_POOLED", 1)


def in_place_changes_nothing(layer, x, domain, lowering=None):
    """The value of a call after the output of the call before was overwritten, and gradients through `relu_`."""
    want = layer(x, domain, lowering=lowering)
    kept, signal = want.detach().clone(), x.detach().clone()
    want.detach().fill_(7.0) if not want.requires_grad else None
    assert torch.equal(x.detach(), signal), "the output lies in the input"
    again = layer(x, domain, lowering=lowering)
    assert torch.equal(again.detach(), kept), "the output was kept"
    if not again.requires_grad:
        torch.relu_(again.neg_())
        assert torch.equal(layer(x, domain, lowering=lowering), kept)
        return
    leaves = [t for t in (x, *layer.parameters()) if t.requires_grad]
    plain = torch.autograd.grad(torch.relu(again).square().sum(), leaves, allow_unused=True)
    third = layer(x, domain, lowering=lowering)
    found = torch.autograd.grad(torch.relu_(third).square().sum(), leaves, allow_unused=True)
    for a, b in zip(found, plain, strict=True):
        assert (a is None) == (b is None) and (a is None or torch.allclose(a, b, rtol=1e-12, atol=1e-12))
    assert torch.equal(layer(x, domain, lowering=lowering).detach(), kept)


@pytest.mark.sampled(7)
@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize("sample", GRAPHS, ids=lambda s: s.name)
def test_the_output_is_the_callers(sample):
    for batch in (1, 2):
        case = Case.of(sample, torch.float64, batch=batch)
        x = case.x[0] if batch == 1 else case.x
        for lowering in (None, *case.lowerings) if batch == 1 else (None,):
            with torch.no_grad():
                in_place_changes_nothing(case.layer, x, case.domain, lowering)
            in_place_changes_nothing(case.layer, x.clone().requires_grad_(), case.domain, lowering)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("sample", GRAPHS, ids=lambda s: s.name)
def test_constant_signals_keep_what_is_computed_once(sample):
    case = Case.of(sample, torch.float64)
    x = constant(case.x[0])
    for lowering in (None, *case.lowerings):
        with torch.no_grad():
            in_place_changes_nothing(case.layer, x, case.domain, lowering)
        in_place_changes_nothing(case.layer, x, case.domain, lowering)


def test_a_retained_output_is_detected():
    """The control."""

    class Keeps(torch.nn.Module):
        def forward(self, x, domain, lowering=None):
            self.y = getattr(self, "y", x * 2)
            return self.y

    with pytest.raises(AssertionError, match="kept"):
        in_place_changes_nothing(Keeps(), torch.randn(3, 2), None)


@pytest.mark.parametrize(
    "spec", [gcn(3, 3), cheb(3, 2, k=3), gat(3, 2), appnp(k=3), simple("max"), global_pool("mean")]
)
def test_no_view_leaves_a_layer(spec):
    """torch refuses in-place operations on views that a Function returns."""
    layer, x = GConv(spec), torch.randn(2, 6, 3, requires_grad=True)
    torch.relu_(layer(x, messy())).sum().backward()
    assert x.grad is not None
