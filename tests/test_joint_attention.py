"""Attention where both ends of an entry meet before they are bent: one kernel each way, equal to its formula."""

import pytest
import torch
import torch.nn.functional as F

from gconv import GConv, Graph
from gconv.kernels import CSR, joint, joint_attention, native
from gconv.operators import gatv2
from gconv.testing import assert_close

DOUBLE = torch.float64
M, N = 5, 6
ROW = torch.tensor([2, 0, 2, 0, 2, 4])  # unsorted; (2, 1) twice; rows 1 and 3, columns 2, 3 and 5 empty
COL = torch.tensor([1, 0, 1, 4, 0, 1])


def problem(heads=2, width=3, dtype=DOUBLE):
    csr = CSR.build(ROW, COL, M, N)
    s, t = (torch.randn(n, heads, width, dtype=dtype, requires_grad=True) for n in (N, M))
    p = torch.randn(heads, width, dtype=dtype) / width  # logits of size 1: a saturated softmax has no gradients
    return csr, s, t, p.requires_grad_()


def by_hand(csr, s, t, p, slope, bend=F.leaky_relu):
    """Row by row, by torch."""
    crow, col = csr.crow.tolist(), csr.col.long()
    rows = [(bend(t[i] + s[col[crow[i] : crow[i + 1]]], slope) * p).sum(-1).softmax(0) for i in range(len(t))]
    return torch.cat(rows)


@pytest.mark.sampled(6)
@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("heads", [1, 3, 8, 70])
@pytest.mark.parametrize("width", [1, 3, 8, 16, 17, 33])
@pytest.mark.parametrize("slope", [0.2, -0.5, 2.0])
def test_values_and_gradients_are_the_formulas(heads, width, slope, dtype):
    csr, s, t, p = problem(heads, width, dtype)
    got, want = joint_attention(csr, s, t, p, slope), by_hand(csr, s, t, p, slope)
    tol = 1e-11 if dtype == DOUBLE else 2e-5
    assert_close("values", got, want, tol)
    g = torch.randn_like(want)
    grads = [torch.autograd.grad(v, (s, t, p), g) for v in (got, want)]
    for name, one, other in zip("stp", *grads, strict=True):
        assert_close(f"gradient in {name}", one, other, tol)
    wrong = torch.autograd.grad(by_hand(csr, s, t, p, slope + 0.5), (s, t, p), g)  # another slope
    with pytest.raises(AssertionError):
        for one, other in zip(grads[0], wrong, strict=True):
            assert_close("the control", one, other, tol)


@pytest.mark.usefixtures("anywhere")
def test_large_logits_are_safe():
    csr, s, t, p = problem(dtype=torch.float32)
    s = (s * 1e4).detach().requires_grad_()
    values = joint_attention(csr, s, t, p, 0.2)
    assert_close("values", values, by_hand(csr, s.double(), t.double(), p.double(), 0.2).float(), 1e-2)
    assert torch.autograd.grad(values.square().sum(), s)[0].isfinite().all()


@pytest.mark.usefixtures("anywhere")
def test_bfloat16_is_rounded_once():
    csr, *given = problem(3, 17, torch.float32)
    small = [x.detach().bfloat16().requires_grad_() for x in given]
    values, wide = joint_attention(csr, *small, 0.2), by_hand(csr, *(x.float() for x in small), 0.2)
    assert values.dtype == torch.bfloat16
    assert_close("values", values.float(), wide, 5e-2)
    grads = torch.autograd.grad(values.square().sum(), small)
    for one, other in zip(grads, torch.autograd.grad(wide.square().sum(), small), strict=True):
        assert one.dtype == torch.bfloat16
        assert_close("gradient", one.float(), other.float(), 1e-1)


@pytest.mark.sampled(6)
@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("needs", ["stp", "s", "t", "p", "st"])
def test_derivatives_twice(needs):
    csr, *given = problem()
    for name, x in zip("stp", given, strict=True):
        x.requires_grad_(name in needs)
    assert torch.autograd.gradcheck(lambda *given: joint_attention(csr, *given, 0.2), given)
    assert torch.autograd.gradgradcheck(lambda *given: joint_attention(csr, *given, 0.2), given)


def test_opcheck():
    csr, *given = problem()
    torch.library.opcheck(torch.ops.gconv.joint_attention.default, (*given, 0.2, *csr.tensors))
    given = [x.detach() for x in given]
    a, g = joint_attention(csr, *given, 0.2), torch.randn(len(ROW), 2, dtype=DOUBLE)
    torch.library.opcheck(torch.ops.gconv.joint_attention_back.default, (*given, 0.2, a, g, *csr.tensors))


@pytest.mark.usefixtures("anywhere")
def test_the_signal_may_lie_in_memory_as_it_likes():
    csr, s, t, p = problem(3, 17)
    want = joint_attention(csr, s, t, p, 0.2)
    grads = torch.autograd.grad(want.square().sum(), (s, t, p))
    both = torch.cat([s, s], 1).detach()[:, 3:].requires_grad_()
    turned = t.detach().permute(2, 0, 1).contiguous().permute(1, 2, 0).requires_grad_()
    got = joint_attention(csr, both, turned, p.mT.contiguous().mT, 0.2)
    assert_close("heads of many, channels apart", got, want, 1e-12)
    for one, other in zip(torch.autograd.grad(got.square().sum(), (both, turned, p)), grads, strict=True):
        assert_close("gradient", one, other, 1e-12)
    same = joint_attention(csr, s[:, :1].expand(N, 3, 17), t[:1].expand(M, 3, 17), p, 0.2)
    assert_close("repeated", same, by_hand(csr, s[:, :1].expand(N, 3, 17), t[:1].expand(M, 3, 17), p, 0.2), 1e-12)


@pytest.mark.usefixtures("anywhere")
def test_nothing_at_all():
    none = torch.empty(0, dtype=torch.int64)
    for n, heads, c in ((0, 2, 3), (4, 2, 3), (4, 2, 0)):
        csr = CSR.build(none, none, n, n)
        given = [torch.randn(*size, heads, c, requires_grad=True) for size in ((n,), (n,), ())]
        y = joint_attention(csr, *given, 0.2)
        assert y.shape == (0, heads)
        for grad, x in zip(torch.autograd.grad(y.sum(), given), given, strict=True):
            assert torch.equal(grad, torch.zeros_like(x))


def test_what_does_not_fit_is_refused():
    csr, s, t, p = problem()
    for wrong in ((s[1:], t, p), (s, t[1:], p), (s, t, p[1:]), (s, t, p[:, 1:]), (s[:, :1], t, p)):
        with pytest.raises(ValueError, match="Joint attention takes"):
            joint_attention(csr, *wrong, 0.2)


@pytest.mark.skipif(native.LIBRARY is None, reason="the compiled kernels were not built")
@pytest.mark.parametrize("width", [5, 8, 20])
def test_one_thread_and_two_agree_to_the_last_bit(width):
    n, e = 900, 30_000
    hub = torch.cat([torch.full((e // 2,), 7), torch.randint(n // 2, (e // 2,))])
    csr = CSR.build(hub, torch.randint(n, (e,)), n, n)
    given = [torch.randn(*size, 8, width, requires_grad=True) for size in ((n,), (n,), ())]
    g, before, found = torch.randn(e, 8), torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        y = joint_attention(csr, *given, 0.2)
        found.append((y, *torch.autograd.grad(y, given, g)))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_under_transforms_and_a_compiler():
    csr, s, t, p = problem()
    signals = torch.randn(3, N, 2, 3, dtype=DOUBLE)
    each = torch.stack([joint_attention(csr, one, t, p, 0.2) for one in signals])
    assert_close("vmap", torch.func.vmap(lambda one: joint_attention(csr, one, t, p, 0.2))(signals), each, 1e-12)

    def total(s):
        return joint_attention(csr, s, t, p, 0.2).square().sum()

    want = torch.autograd.grad(total(s), s)[0]
    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    assert_close("compiled", torch.autograd.grad(compiled(s), s)[0], want, 1e-12)
    with torch.no_grad():
        assert_close("torch.func", torch.func.grad(total)(s), want, 1e-12)


@pytest.mark.skipif(native.LIBRARY is None, reason="the compiled kernels were not built")
def test_no_number_of_an_entry_and_a_channel_is_made(monkeypatch):
    """gatv2 never comes to the path that gathers what both ends carry; where the kernels are missing it does."""
    calls, made = [], joint._sums
    monkeypatch.setattr(joint, "_sums", lambda *given: calls.append(1) or made(*given))
    layer, graph = GConv(gatv2(4, 3, heads=2)), Graph(torch.randint(9, (2, 30)), 9)
    x = torch.randn(9, 4, requires_grad=True)
    layer(x, graph).square().sum().backward()
    assert not calls
    monkeypatch.setattr(native, "LIBRARY", None)
    layer(x, graph).square().sum().backward()
    assert calls


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("again", [False, True])
def test_autocast_has_gradients_of_the_dtype_of_each_input(dtype, again):
    layer, graph = GConv(gatv2(3, 2, heads=2)), Graph(torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]]))
    x = torch.randn(4, 3, requires_grad=True)
    leaves = [x, *layer.parameters()]
    want = torch.autograd.grad(layer(x, graph).square().sum(), leaves)
    with torch.autocast("cpu", dtype=dtype):
        y = layer(x, graph)
    found = torch.autograd.grad(y.float().square().sum(), leaves, create_graph=again)
    for a, b, leaf in zip(found, want, leaves, strict=True):
        assert a.dtype == leaf.dtype
        assert_close("gradient", a.detach(), b, 0.05)
