"""16-bit signals: every operator is as exact as if its inputs were rounded once more.

A result in float16 or bfloat16 is compared with that of the same numbers in float64. The error must be of the size by
which the exact result changes if all inputs change by one rounding. Sums that stop growing, and logits or products that
are kept in 16 bits where their derivatives need more, exceed it by far.
"""

import copy
import sys

import pytest
import torch

from gconv import GConv, Graph
from gconv.basis import Pattern, Polynomial, Product, Recurrence, Shifts, Stack, Taps
from gconv.basis.entries import entries
from gconv.operators import conv1d, conv2d, depthwise, pan, separable
from gconv.spec import list_operators, operator
from gconv.testing.case import assert_close, random_like

HALF = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
TIMES = 4  # the error allowed, in units of the change by one rounding


def star(leaves, like):
    """A hub that reads all leaves, which read it, with attributes and labels like those of another graph."""
    leaf, generator = torch.arange(1, leaves + 1), torch.Generator().manual_seed(0)
    attr = None if like.edge_attr is None else torch.rand(leaves, like.edge_attr.shape[1], generator=generator)
    return Graph(
        torch.stack([torch.cat([leaf, 0 * leaf]), torch.cat([0 * leaf, leaf])]),
        leaves + 1,
        edge_weight=None if like.edge_weight is None else torch.linspace(0.5, 2, leaves).repeat(2),
        edge_attr=None if attr is None else torch.cat([attr, attr]),
        edge_type=None if like.edge_type is None else torch.arange(leaves).repeat(2) % (int(like.edge_type.max()) + 1),
    )


def found(layer, x, domain, change=0.0):
    """The result and the gradients; with `change` all inputs are changed by so much, relatively."""

    def changed(t):
        return t * (1 + change * torch.randn_like(t)) if change else t

    layer, x = copy.deepcopy(layer), changed(x.detach()).requires_grad_()
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(changed(p))
    y = layer(x) if domain is None else layer(x, domain)
    r = (random_like(y.double()) if domain is not None else torch.ones_like(y).double()).bfloat16().to(y.dtype)
    inputs = {"x": x, **dict(layer.named_parameters())}
    gradients = torch.autograd.grad((y * changed(r)).sum(), list(inputs.values()), allow_unused=True)
    return {
        "value": y.detach(),
        **{f"gradient in {name}": g for name, g in zip(inputs, gradients, strict=True) if g is not None},
    }


def excess(spec, x, domain, dtype):
    """The largest error, in units of the change by one rounding."""
    torch.manual_seed(0)
    layer, eps, x = GConv(spec, dtype=dtype).eval(), torch.finfo(dtype).eps, x.to(dtype)
    exact = GConv(spec, dtype=torch.float64).eval()
    exact.load_state_dict({name: v.double() for name, v in layer.state_dict().items()})
    got, want = found(layer, x, domain), found(exact, x.double(), domain)
    near = [found(exact, x.double(), domain, eps) for _ in range(6)]
    floor = 1e-6 * max(float(g.abs().max()) for name, g in want.items() if name != "value")  # of sums that cancel
    errors = {}
    for name, w in want.items():
        top = float(w.abs().max())
        if top > torch.finfo(dtype).max:
            continue
        change = max(float((n[name] - w).abs().max()) for n in near)
        allowed = change + eps * max(top, floor, torch.finfo(dtype).smallest_normal)
        errors[name] = float((got[name].double() - w).abs().max()) / allowed
    return max(errors.values()), errors


@pytest.mark.sampled(4)
@HALF
@pytest.mark.parametrize("leaves", [400, 3000])
@pytest.mark.parametrize("name", [name for name in list_operators() if operator(name).samples()])
def test_operators_at_a_hub(name, leaves, dtype):
    for sample in operator(name).samples():
        like = sample.domain()
        if not isinstance(like, Graph) or sample.spec.structure.nodes is not None:
            continue
        if leaves == 3000 and name in ("cayley", "wavelet", "gwnn", "spectral", "lanczos", "heat", "ppr"):
            continue  # dense eigenvectors
        x = torch.randn(1, leaves + 1, sample.channels, generator=torch.Generator().manual_seed(0))
        for size in (1e-3, 1.0):
            worst, errors = excess(sample.spec, size * x, star(leaves, like), dtype)
            assert worst < TIMES, (sample, size, errors)


def test_gathered_logits_in_16_bits_are_found(monkeypatch):
    """The control."""
    sample = operator("gatv2").samples()[2]
    monkeypatch.setattr(sys.modules["gconv.operators.gat"], "widened", lambda t: t)
    x = 1e-3 * torch.randn(1, 401, sample.channels)
    assert excess(sample.spec, x, star(400, sample.domain()), torch.float16)[0] > TIMES


@pytest.mark.parametrize("size", [1e-3, 0.1])
def test_walks_beyond_float16_between_roots(size):
    """A^7 x of a hub of 400 leaves exceeds float16 although N^-1/2 A^7 N^-1/2 x does not."""
    spec, graph = pan(3, 2, filter_size=7), star(400, Graph(torch.zeros(2, 0, dtype=torch.long), 1))
    x = size * torch.randn(1, 401, 3)
    assert excess(spec, x, graph, torch.float16)[0] < TIMES
    powers = Polynomial(adjacency_of(graph, torch.float16), Recurrence.monomial(8))
    assert powers.expand(x.half())[..., 7, :, :].isinf().any()  # the control


def adjacency_of(graph, dtype):
    tap = torch.zeros_like(graph.source)
    return Taps(
        Pattern((1, graph.size, graph.size), tap, graph.target, graph.source), torch.ones(len(tap), dtype=dtype)
    )


@HALF
def test_entries_of_products_at_a_hub(dtype):
    A = adjacency_of(star(300, Graph(torch.zeros(2, 0, dtype=torch.long), 1)), dtype)
    small = Taps(A.pattern, A.values * 1e-3)
    weighted = Polynomial(A, Recurrence.monomial(4), torch.full((1, 4), 1e-3, dtype=dtype))
    for S in (Product(A, A), Product(small, Product(A, A)), Stack((Product(A, A), A)), weighted):
        made, x = entries(S, dtype, torch.device("cpu")), torch.eye(301, 1).to(dtype)  # the column of the hub
        assert made.values.dtype == dtype
        assert_close("entries", made.expand(x), S.expand(x).double(), 2 * torch.finfo(dtype).eps)
    ones = A.values.new_zeros(1).index_add(0, torch.zeros(2000, dtype=torch.long), A.values.new_ones(2000))
    assert (ones != 2000).all() == (dtype == torch.bfloat16)  # the control: a sum in 16 bits


LARGE = {
    "padding of 400": (conv1d(1, 2, 5, padding=400, padding_mode="replicate"), (1, 301)),
    "padding of both axes": (conv2d(1, 2, 3, padding=24, padding_mode="replicate"), (1, 25, 25)),
    "a large kernel": (conv2d(1, 2, 19, padding=9), (1, 40, 40)),
    "a large kernel of each channel": (depthwise(2, 19, padding=9), (2, 40, 40)),
    "a large separable kernel": (separable(2, 3, 19, padding=9), (2, 40, 40)),
}


@HALF
@pytest.mark.parametrize("case", LARGE)
def test_grids_whose_sites_are_read_often(case, dtype):
    spec, size = LARGE[case]
    worst, errors = excess(spec, torch.rand(1, *size) + 0.5, None, dtype)
    assert worst < TIMES, errors


def test_padding_in_16_bits_is_found(monkeypatch):
    """The control."""
    monkeypatch.setattr(Shifts, "_wide", lambda self, x: x)
    spec, size = LARGE["padding of both axes"]
    assert excess(spec, torch.rand(1, *size) + 0.5, None, torch.bfloat16)[0] > TIMES


@HALF
def test_the_adjoint_of_much_padding(dtype):
    S, y = Shifts((3,), (1,), (1,), (1,), ((1000, 1000),), mode="replicate"), torch.ones(2003, 1, dtype=dtype)
    assert_close("sums", S.unpad(y).double(), S.unpad(y.double()), torch.finfo(dtype).eps)
