"""The one rule of autograd for a fixed structure and a dense mixing, with each way that makes its numbers."""

import pytest
import torch

from gconv import GConv, Graph
from gconv.call import Call
from gconv.lowering import batches, rule, single, steps
from gconv.operators import cheb, gcn, sage
from gconv.testing import assert_close

INDEX = torch.tensor([[0, 0, 1, 2, 2, 3, 4, 4, 4], [1, 1, 2, 2, 0, 4, 0, 3, 3]])  # double edges, a loop, a node alone
GRAPH = Graph(INDEX, 6)
SPECS = {"gcn": gcn(3, 4), "gcn, narrower": gcn(4, 3), "sage": sage(3, 4), "cheb": cheb(3, 4, k=3)}
WAYS = {"steps": steps.Step, "single": single.Rows, "batches": batches.Parts}


class Case:
    """Y by one of the ways, and by operators that torch knows."""

    def __init__(self, spec, way, aggregate):
        batch = (2,) if way == "batches" else ()
        i, o = spec.mixing.i, spec.mixing.o
        shapes = (*batch, 6, i), (spec.mixing.taps, i, o), (o,)
        self.x, self.W, self.bias = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes)
        self.S = GConv(spec, dtype=torch.float64)._basis(GRAPH, Call(self.x.detach(), weight=torch.zeros(1, 2, 2)))
        self.way = WAYS[way](self.S, aggregate)

    @property
    def leaves(self):
        return self.x, self.W, self.bias

    def __call__(self):
        return rule.mixed(*self.leaves, self.way)

    def plain(self):
        return torch.einsum("...kmi,kio->...mo", self.S.expand(self.x), self.W) + self.bias


@pytest.fixture(params=[(s, w, a) for s in SPECS for w in WAYS for a in (True, False)], ids=str)
def case(request, monkeypatch):
    monkeypatch.setattr(single, "CHUNK", 100)
    monkeypatch.setattr(batches, "CHUNK", 1)
    spec, way, aggregate = request.param
    return Case(SPECS[spec], way, aggregate)


def test_derivatives_up_to_the_third(case):
    def chain(y):
        """A function of Y, one of its gradients, one of theirs."""
        found = [y.pow(3).sum()]
        for _ in range(3):
            gradients = torch.autograd.grad(found[-1], case.leaves, create_graph=True)
            found.append(sum(g.square().sum() + g.sum() for g in gradients))
        return found

    for order, (got, want) in enumerate(zip(chain(case()), chain(case.plain()), strict=True)):
        assert_close(f"order {order}", got, want, 1e-9)


def test_many_gradients_at_once(case):
    """vmap over torch.autograd.grad: of the value, and of gradients that were made differentiable."""
    y = case()
    gradients = torch.autograd.grad(y.square().sum(), (case.x, case.W), create_graph=True)
    for what, of in (("value", y), ("gradient in x", gradients[0]), ("gradient in W", gradients[1])):
        seeds = torch.randn(5, *of.shape, dtype=torch.float64)

        def pull(seed, of=of):
            return torch.autograd.grad(of, (case.x, case.W), seed, retain_graph=True)

        together = torch.func.vmap(pull)(seeds)
        for got, want in zip(together, zip(*map(pull, seeds), strict=True), strict=True):
            assert_close(what, got, torch.stack(want), 1e-12)


@pytest.mark.parametrize("frozen", ["x", "W", "nothing", "both"])
def test_what_no_gradient_needs_is_neither_kept_nor_made(case, frozen):
    case.x.requires_grad_(frozen not in ("x", "both"))
    case.W.requires_grad_(frozen not in ("W", "both"))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = case()
    assert any(t is case.x for t in kept) == case.W.requires_grad
    assert any(t is case.W for t in kept) == case.x.requires_grad
    leaves = [leaf for leaf in case.leaves if leaf.requires_grad]
    for create_graph in (True, False):
        found = torch.autograd.grad(y.square().sum(), leaves, create_graph=create_graph, retain_graph=True)
        for got, want in zip(found, torch.autograd.grad(case.plain().square().sum(), leaves), strict=True):
            assert_close(f"{frozen}, {create_graph}", got, want, 1e-10)


def test_a_wrong_way_is_noticed():
    """Negative control: a gradient in x through the structure as it is, not transposed."""
    case = Case(SPECS["gcn"], "steps", True)
    assert torch.autograd.gradcheck(lambda *leaves: rule.mixed(*leaves, case.way), case.leaves)
    case.way.back = [lambda z, add, row: case.S.contract(z.unsqueeze(-3))]
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(lambda *leaves: rule.mixed(*leaves, case.way), case.leaves)
