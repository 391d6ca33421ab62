"""Kernels at their entries: what does not fit is refused in a sentence, and NaN and infinities are torch's."""

import _ctypes
import contextlib
import ctypes
import itertools
import os
import subprocess
import sys

import pytest
import torch

from gconv import GConv, kernels, portable
from gconv.basis import Pattern, Taps
from gconv.kernels import CSR, native, ready, ready_recurrence, registry, spmm, spmm_rows, unrecorded
from gconv.kernels import heads as heads_kernels
from gconv.kernels import joint as joint_kernels
from gconv.kernels import maximum as maximum_kernels
from gconv.kernels import recurrence as recurrence_kernels
from gconv.kernels import sparse as sparse_kernels
from gconv.kernels.registry import Kernel
from gconv.operators import feast, gat, gatv2, gcn, monet, resgated, sage, transformer
from gconv.operators.shapes import messy

attention_kernels = sys.modules["gconv.kernels.attention"]  # the package has a function of that name
MODULES = attention_kernels, heads_kernels, joint_kernels, maximum_kernels, recurrence_kernels, sparse_kernels
KERNELS = {k.name: k for module in MODULES for k in vars(module).values() if isinstance(k, Kernel)}
ROWS = [1.0, 0.0, 0.0, 2.0, 0.0, 0.5]  # two steps of a recurrence
LEVELS = native.LEVELS[: native.LEVEL + 1]


def pattern(n=9, entries=60, seed=0, long_row=0):
    """A square pattern with repeated entries and empty rows and columns; row 1 may have many more."""
    generator = torch.Generator().manual_seed(seed)
    row, col = torch.randint(n - 1, (2, entries), generator=generator)
    more = torch.arange(long_row)
    return CSR.build(torch.cat([row, torch.ones_like(more)]), torch.cat([col, more % (n - 1)]), n, n)


def arguments(name, csr, heads=2, c=5, dtype=torch.float32, b=(), seed=1, own=False):
    """What each kernel takes; `own`: what entries carry differs from signal to signal, where it need not."""
    generator = torch.Generator().manual_seed(seed)
    n, e = csr.shape[0], len(csr.col)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    values, x = draw(e), draw(*b, n, c)
    z, p, q = draw(*b, n, heads, c), draw(heads, c), draw(heads, c)
    if name == "attention_back":
        made = attention_kernels._attention_torch(z, p, q, None, 0.2, 0.0, True, *csr.tensors)
        return [z, p, q, None, 0.2, 0.0, draw(*b, n, heads, c), *made]
    if name == "joint_attention_back":
        a = joint_kernels._joint_torch(z, z.flip(-3), p, 0.2, *csr.tensors)
        return [z, z.flip(-3), p, 0.2, a, draw(*b, e, heads)]
    if name in ("max_dx", "max_dvalues"):
        return [values, x, maximum_kernels._max_torch(values, x, *csr.tensors), draw(*b, n, c)]
    return {
        "spmm": lambda: [values, x, None],
        "sddmm": lambda: [x, draw(*b, n, c)],
        "heads_spmm": lambda: [draw(*(b if own else ()), e, heads), draw(*b, n, heads, c), False, False],
        "heads_sddmm": lambda: [draw(*b, n, heads, c), draw(*b, n, heads, c), heads, own],
        "row_softmax": lambda: [draw(*b, e, heads)],
        "softmax_back": lambda: [draw(*b, e, heads), draw(*b, e, heads)],
        "ends": lambda: [draw(*b, n, heads), draw(*b, n, heads)],
        "row_sums": lambda: [draw(*b, e, heads), False],
        "segment_max": lambda: [values, x],
        "attention": lambda: [z, p, q, None, 0.2, 0.0, True],
        "joint_attention": lambda: [z, z.flip(-3), p, 0.2],
        "terms": lambda: [values, x, None, ROWS],
        "clenshaw": lambda: [values, draw(*b, n, 3, c), None, ROWS],
        "filtered": lambda: [values, x, None, ROWS, [0.5, 0.0, 2.0]],
    }[name]()


OWN = {"heads_spmm", "heads_sddmm", "row_softmax", "softmax_back", "ends", "row_sums"} | {
    "attention",
    "attention_back",
    "joint_attention",
    "joint_attention_back",
}  # whose signals may each have matrices of their own
BATCHED = OWN | {"spmm", "sddmm", "segment_max", "max_dx", "max_dvalues", "terms", "clenshaw", "filtered"}


def torch_alone(name, csr, given, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(native, "LIBRARY", None)
        out = KERNELS[name].anywhere(*given, *csr.tensors)
    return out if isinstance(out, tuple) else (out,)


SPECIAL = [float("nan"), float("inf"), -float("inf"), 0.0, 1e30, -1e30]


@pytest.mark.sampled(2)
@pytest.mark.skipif(native.LIBRARY is None, reason="the compiled kernels were not built")
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", KERNELS)
def test_nan_and_infinities_are_those_of_pure_torch(name, level, monkeypatch):
    """Wherever such a number stands, the same entries are finite, and those are equal.

    Which of the others are NaN and which infinite may hang on the order of a sum, inf - inf, in derivatives.
    """
    monkeypatch.setattr(native, "LEVEL", native.LEVELS.index(level))
    csr = pattern(long_row=700)
    for seed, (special, c) in enumerate(itertools.product(SPECIAL, (1, 17))):
        generator = torch.Generator().manual_seed(seed)
        given = arguments(name, csr, c=c, seed=seed)
        for argument in given:
            if isinstance(argument, torch.Tensor) and argument.numel():
                at = torch.randint(argument.numel(), (2,), generator=generator)
                argument.view(-1)[at] = special
        want = torch_alone(name, csr, given, monkeypatch)
        out = KERNELS[name].cpu(*given, *csr.tensors)
        got, right = (out[0], want[0]) if isinstance(out, tuple) else (out, want[0])
        finite = right.isfinite()
        assert torch.equal(got.isfinite(), finite), (special, c)
        scale = max(1.0, float(right[finite].abs().max())) if finite.any() else 1.0  # sums of 1e30 - 1e30 are no zeros
        torch.testing.assert_close(got[finite], right[finite], rtol=1e-3, atol=1e-4 * scale)


def negatives(given):
    """The same numbers, with their signs in the type of the tensor instead of in memory."""
    floats = (isinstance(t, torch.Tensor) and t.is_floating_point() for t in given)
    return [torch._neg_view(-t) if is_float else t for t, is_float in zip(given, floats, strict=True)]


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("name", KERNELS)
def test_signs_that_are_not_in_memory_count(name):
    """Those of the imaginary part of a conjugate, as which a signal or gradient may arrive."""
    csr = pattern()
    given = arguments(name, csr)
    assert torch.equal(KERNELS[name](csr.tensors, *negatives(given)), KERNELS[name](csr.tensors, *given))
    values, x, _ = arguments("spmm", csr)
    assert torch.equal(unrecorded(csr, values, *negatives([x])), unrecorded(csr, values, x))
    (signs,) = negatives([values])
    S, T = (
        Taps(Pattern((1, 9, 9), 0 * csr.col.long(), sparse_kernels.rows_of(*csr.tensors[:2]), csr.col), v)
        for v in (signs, values)
    )
    assert torch.equal(S.expand_flat(x), T.expand_flat(x))


@pytest.mark.skipif(native.LIBRARY is None, reason="the compiled kernels were not built")
def test_signs_that_are_not_in_memory_would_be_lost(monkeypatch):
    csr = pattern()
    given = arguments("row_softmax", csr)
    monkeypatch.setattr(registry, "_signed", lambda argument: argument)
    assert not torch.equal(
        KERNELS["row_softmax"](csr.tensors, *negatives(given)), KERNELS["row_softmax"](csr.tensors, *given)
    )


HUB = 3000  # entries of a row and of a column: a running sum of ones in bfloat16 ends at 256, in float16 at 2048
LONG = {
    "spmm": (kernels.spmm, ("e", "2 n c")),
    "sddmm": (kernels.sddmm, ("2 n c", "2 n c")),
    "heads_spmm": (kernels.heads_spmm, ("e h", "2 n h c")),
    "heads_spmm, own": (kernels.heads_spmm, ("2 e h", "2 n h c")),
    "heads_sddmm": (lambda csr, a, b: kernels.heads_sddmm(csr, a, b, 2), ("2 n h c", "2 n h c")),
    "row_softmax": (kernels.row_softmax, ("2 e h",)),
    "row_sums": (kernels.row_sums, ("2 e h",)),
    "ends": (kernels.ends, ("2 n h", "2 n h")),
    "attention": (lambda csr, *given: kernels.attention(csr, *given, 0.2), ("2 n h c", "h c", "h c")),
    "joint_attention": (lambda csr, *given: kernels.joint_attention(csr, *given, 0.2), ("2 n h c", "2 n h c", "h c")),
    "segment_max": (lambda csr, v: kernels.segment_max(csr, v * 0 + 1, torch.ones_like(v[:HUB, None])), ("e",)),
    "terms": (lambda csr, v, x: kernels.terms(csr, v.detach(), x, [(1.0, 0.0, 0.0)]), ("e", "2 n c")),
    "clenshaw": (lambda csr, v, z: kernels.clenshaw(csr, v.detach(), z, [(1.0, 0.0, 0.0)]), ("e", "2 n h c")),
    "a running sum": (lambda csr, v: v.new_zeros(HUB).index_add(0, csr.col, v), ("e",)),
}


def at_a_hub(name, dtype, again):
    """A function's result and gradients for a pattern of a hub; `again`: by operators that have derivatives."""
    function, shapes = LONG[name]
    leaves, generator = torch.arange(HUB), torch.Generator().manual_seed(0)
    csr = CSR.build(torch.cat([leaves, 0 * leaves]), torch.cat([0 * leaves, leaves]), HUB, HUB)
    sizes = {"e": len(csr.col), "n": HUB, "h": 2, "c": 2, "2": 2}
    low = 0.3 if "attention" in name else 0.0  # so that LeakyReLU has both slopes
    given = [torch.rand([sizes[axis] for axis in shape.split()], generator=generator) - low for shape in shapes]
    given = [t.bfloat16().to(dtype).requires_grad_() for t in given]
    y = function(csr, *given)
    dy = (torch.rand(y.shape, generator=generator) > 0.5).to(dtype)
    found = torch.autograd.grad(y, given, dy, create_graph=again, allow_unused=True)
    return y, *(g for g in found if g is not None)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("again", [False, True], ids=["once", "again"])
@pytest.mark.parametrize("body", ["compiled", "torch", "portable"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", LONG)
def test_sums_over_a_hub_in_half_precision(name, dtype, body, again, monkeypatch):
    """Results and gradients are within the rounding of one number, not of 3000 additions."""
    want = at_a_hub(name, torch.float64, again)
    if body == "torch":
        monkeypatch.setattr(native, "LIBRARY", None)
    with portable() if body == "portable" else contextlib.nullcontext():
        found = at_a_hub(name, dtype, again)
    errors = [float(((a - b).abs().max() / b.abs().max()).detach()) for a, b in zip(found, want, strict=True)]
    assert (max(errors) < torch.finfo(dtype).eps) == (name != "a running sum"), errors


@pytest.mark.parametrize("body", [contextlib.nullcontext, portable])
def test_products_below_the_smallest_number_of_float16_add_up(body):
    csr, a = CSR.build(torch.zeros(1).long(), torch.zeros(1).long(), 1, 1), torch.full((1, 1, 2048), 1.5e-4).half()
    assert not (a * a).any()
    with body():
        for found in (kernels.sddmm(csr, a, a), kernels.heads_sddmm(csr, a, a, 1).flatten()):
            assert found.item() == pytest.approx(2048 * float(a[0, 0, 0]) ** 2, rel=1e-2)


def second_derivatives(name, csr):
    given = arguments(name, csr, dtype=torch.float64)
    leaves = [t.requires_grad_() for t in given if isinstance(t, torch.Tensor)]
    y = KERNELS[name](csr.tensors, *given)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    first = torch.autograd.grad(y, leaves, dy, create_graph=True)
    total = sum(g.square().sum() for g in first)
    return torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)


TWICE = ["spmm", "sddmm", "heads_spmm", "heads_sddmm", "row_softmax", "softmax_back", "attention"]


@pytest.mark.parametrize("name", [*TWICE, "joint_attention"])
def test_second_derivatives_of_a_body_whose_result_is_a_view(name, monkeypatch):
    """What is saved for the backward pass is the result that is returned: through another tensor runs no derivative."""
    csr, body = pattern(), KERNELS[name].cpu
    want = second_derivatives(name, csr)

    def viewed(*given):
        made = body(*given)
        return made.view(made.shape) if isinstance(made, torch.Tensor) else (made[0].view(made[0].shape), *made[1:])

    monkeypatch.setattr(KERNELS[name], "cpu", viewed)
    for got, right in zip(second_derivatives(name, csr), want, strict=True):
        torch.testing.assert_close(got, right)


def test_second_derivatives_through_another_tensor_would_be_lost(monkeypatch):
    monkeypatch.setattr(KERNELS["row_softmax"], "keep", lambda ctx, arguments, output: [output.detach()])
    with pytest.raises(RuntimeError, match="does not require grad"):
        second_derivatives("row_softmax", pattern())


TIED = {
    "spmm": lambda csr, z: kernels.spmm(csr, z.flatten()[: len(csr.col)], z[:, 0]),
    "sddmm": lambda csr, z: kernels.sddmm(csr, z[:, 0], z[:, 0]),
    "heads_spmm": lambda csr, z: kernels.heads_spmm(csr, z.flatten()[: 2 * len(csr.col)].view(-1, 2), z),
    "heads_sddmm": lambda csr, z: kernels.heads_sddmm(csr, z, z, 2),
    "segment_max": lambda csr, z: kernels.segment_max(csr, z.flatten()[: len(csr.col)], z[:, 0]),
    "attention": lambda csr, z: kernels.attention(csr, z, z[0], z[0], 0.2),
    "joint_attention": lambda csr, z: kernels.joint_attention(csr, z, z, z[0], 0.2),
    "dot_attention, one tensor": lambda csr, z: kernels.dot_attention(csr, z, z, z),
    "dot_attention": lambda csr, z: kernels.dot_attention(csr, z, 2 * z, z.square()),
}


@pytest.mark.parametrize("name", TIED)
def test_arguments_that_depend_on_each_other_have_their_own_derivatives(name):
    """Also by the operators that have derivatives, of which each argument's part is asked for alone."""
    csr = CSR.build(*torch.randint(6, (2, 15), generator=torch.Generator().manual_seed(1)), 6, 6)
    z = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64, requires_grad=True)
    y = TIED[name](csr, z)
    (once,), (again,) = (torch.autograd.grad(y, z, y.detach(), True, create) for create in (False, True))
    torch.testing.assert_close(again, once)
    assert torch.autograd.gradgradcheck(lambda z: TIED[name](csr, z), z)


@pytest.mark.parametrize("body", ["compiled", "torch"])
def test_a_row_with_a_nan_is_nan_in_any_order(body, monkeypatch):
    if body == "torch":
        monkeypatch.setattr(native, "LIBRARY", None)
    csr, nan, inf = CSR.build(torch.zeros(3).long(), torch.arange(3), 3, 3), float("nan"), float("inf")
    for row in itertools.permutations([1.0, nan, 0.0]):
        assert heads_kernels.row_softmax(csr, torch.tensor(row).unsqueeze(1)).isnan().all()
    for row in ([inf, 1.0, 2.0], [-inf] * 3):
        assert heads_kernels.row_softmax(csr, torch.tensor(row).unsqueeze(1)).isnan().all()
    found = heads_kernels.row_softmax(csr, torch.tensor([-inf, 1.0, 1.0]).unsqueeze(1)).flatten()
    assert torch.allclose(found, torch.tensor([0.0, 0.5, 0.5]))


@pytest.mark.usefixtures("anywhere")
def test_logits_of_minus_infinity_before_finite_ones():
    """In attention's one pass over a long row: an entry of 0, not of inf - inf."""
    n = 1200
    csr = CSR.build(torch.zeros(n).long(), torch.arange(n), n, n)
    z = torch.zeros(n, 1, 2, dtype=torch.float64)
    z[:, 0, 1] = torch.arange(n)
    z[:600, 0, 0] = -1e308
    p, q = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[10.0, 0.0]], dtype=torch.float64)
    y = attention_kernels.attention(csr, z, p, q, 1.0)  # the first 600 logits are -inf, the others 0
    assert torch.allclose(y[0, 0], torch.tensor([0.0, 899.5], dtype=torch.float64))


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("name", sorted(BATCHED))
def test_an_empty_batch(name):
    """No signals: products are empty, and what is summed over signals is 0."""
    csr = pattern()
    for c in (0, 1, 3, 8, 40):
        out = KERNELS[name](csr.tensors, *arguments(name, csr, c=c, b=(0,)))
        assert out.numel() == 0 or (out == 0).all()
        assert torch.isfinite(out).all()


@pytest.mark.sampled(2)
@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("name", sorted(OWN))
def test_each_signal_has_matrices_of_its_own(name, monkeypatch):
    """Many signals at once give what each gives alone, also in pieces and on several threads."""
    csr, b, before = pattern(n=70, entries=300, long_row=600), (2, 3), torch.get_num_threads()
    given = arguments(name, csr, c=9, dtype=torch.float64, b=b, own=True)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            with monkeypatch.context() as patch:
                patch.setattr(native, "SERIAL", 0)
                patch.setattr(native, "CHUNK", 100_000)
                found = KERNELS[name].cpu(*given, *csr.tensors)
        finally:
            torch.set_num_threads(before)
        found = found if isinstance(found, tuple) else (found,)
        vectors, sums = {"attention_back": 2, "joint_attention_back": 1}.get(name, 0), 0
        for number, at in enumerate(itertools.product(*map(range, b))):
            alone = [t[at] if isinstance(t, torch.Tensor) and t.shape[:2] == b and t.ndim > 2 else t for t in given]
            want = KERNELS[name].cpu(*alone, *csr.tensors)
            if vectors:  # the gradients of sites, signal after signal, and the sum of those of the vectors
                sums, sites = sums + want[-vectors:], want[:-vectors].split(csr.shape[0])
                parts = found[0][:-vectors].split(csr.shape[0])
                for got, one in zip(parts[number::6], sites, strict=True):
                    torch.testing.assert_close(got, one, rtol=1e-12, atol=1e-12)
                continue
            for got, one in zip(found, want if isinstance(want, tuple) else (want,), strict=True):
                torch.testing.assert_close(got[at], one, rtol=1e-12, atol=1e-12)
        if vectors:
            torch.testing.assert_close(found[0][-vectors:], sums, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "spec", [gcn(2, 2), sage(2, 2), feast(2, 2), monet(2, 2, dim=2, kernel_size=3), gat(2, 2), gatv2(2, 2)]
)
def test_an_empty_batch_has_gradients(spec):
    layer, graph = GConv(spec, dtype=torch.float64), messy()
    x = torch.zeros(0, graph.size, 2, dtype=torch.float64, requires_grad=True)
    y = layer(x, graph)
    found = torch.autograd.grad(y.sum(), [x, *layer.parameters()], allow_unused=True)
    assert y.shape[0] == 0 and all(g is None or (g == 0).all() for g in found)


def test_an_empty_batch_has_a_gradient_in_edge_weights():
    w = torch.ones(4, requires_grad=True)
    ei = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    GConv(gcn(2, 2))(torch.zeros(0, 3, 2), ei, edge_weight=w).sum().backward()
    assert torch.equal(w.grad, torch.zeros(4))


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize(("name", "b"), [*((name, ()) for name in KERNELS), *((name, (2,)) for name in sorted(OWN))])
def test_what_does_not_fit_is_refused(name, b):
    """One size of one tensor wrong, by one more or one less: a ValueError, in the eager call and as an operator."""
    csr = pattern()
    given = arguments(name, csr, heads=3, b=b, own=bool(b))
    KERNELS[name](csr.tensors, *given)  # the control
    for number, argument in enumerate(given):
        if not isinstance(argument, torch.Tensor):
            continue
        for axis, size in itertools.product(range(argument.ndim), (-1, 1)):
            shape = list(argument.shape)
            shape[axis] += size
            wrong = [*given[:number], torch.zeros(shape), *given[number + 1 :]]
            if fits_too(name, wrong, csr):
                continue
            with pytest.raises(ValueError):
                KERNELS[name](csr.tensors, *wrong)
            with pytest.raises(ValueError):
                getattr(torch.ops.gconv, name)(*wrong, *csr.tensors)


def fits_too(name, given, csr):
    """Other sizes that are right: of channels where one signal comes, of heads where one tensor has them."""
    n, e = csr.shape[0], len(csr.col)
    first = given[0]
    if name in ("spmm", "segment_max"):
        return given[1].shape[-2] == n and len(first) == e
    if name in ("terms", "filtered"):
        return given[1].shape[-2] == n and len(first) == e
    if name == "clenshaw":
        return len(first) == e and given[1].shape[-3] == n and given[1].shape[-2] == 3
    if name in ("row_softmax", "row_sums"):
        return first.shape[-2] == e
    if name == "heads_spmm":
        return first.shape == (*given[1].shape[:-3], e, 3) and given[1].shape[-3:-1] == (n, 3)
    if name == "attention":  # any number of signals
        return first.shape[-3:] == (n, *given[1].shape) and given[1].shape == given[2].shape
    return False


def test_a_ready_product_refuses_what_it_was_not_made_for():
    csr = pattern()
    product = ready(csr, torch.ones(len(csr.col)), 4, (9, 4))
    if product is None:
        pytest.skip("the compiled kernels were not built")
    assert product(torch.ones(9, 4)).shape == (9, 4)
    for wrong in (torch.ones(9, 3), torch.ones(8, 4), torch.ones(9, 4).double()):
        with pytest.raises(ValueError, match="takes 9 rows of 4 channels"):
            product(wrong)
    for wrong in (torch.ones(9, 3), torch.ones(8, 4), torch.ones(9, 4).double()):
        with pytest.raises(ValueError, match="added"):
            product(torch.ones(9, 4), wrong)
    with pytest.raises(ValueError, match="added"):
        product(torch.ones(9, 4), None, torch.ones(3))
    assert torch.equal(product(torch.ones(4, 9).t()), product(torch.ones(9, 4)))  # channels apart


@pytest.mark.usefixtures("anywhere")
def test_patterns_refuse_entries_outside():
    for row, col in (([0, 3], [0, 0]), ([0, 0], [0, 2]), ([-1, 0], [0, 0]), ([0, 0], [0, -1])):
        with pytest.raises(IndexError, match="entry out of range"):
            CSR.build(torch.tensor(row), torch.tensor(col), 3, 2)
    with pytest.raises(ValueError, match="a row and a column for each entry"):
        CSR.build(torch.zeros(3).long(), torch.zeros(2).long(), 3, 3)
    short = CSR.build(torch.tensor([1, 0]).short(), torch.tensor([0, 1]).short(), 2, 2)
    assert short.col.tolist() == [1, 0]


REPLACED = {
    "key": (transformer(4, 3, heads=2), (2, 4, 2)),
    "query": (resgated(4, 3), (2, 4)),
    "mu": (monet(4, 3, dim=2, kernel_size=3), (1, 2)),
    "u": (feast(4, 3, heads=2), (1, 4)),
}


@pytest.mark.parametrize("name", REPLACED)
def test_parameters_keep_their_shapes(name):
    spec, shape = REPLACED[name]
    layer, graph = GConv(spec, dtype=torch.float64), messy()
    x = torch.randn(graph.size, 4, dtype=torch.float64)
    layer(x, graph)
    assert getattr(layer, name).shape != shape
    setattr(layer, name, torch.nn.Parameter(torch.randn(shape, dtype=torch.float64)))
    with pytest.raises(ValueError, match=f"has a {name} of shape"):
        layer(x, graph)


@pytest.mark.slow
@pytest.mark.parametrize("wanted", ["off", "base", *LEVELS[1:]])
def test_the_level_is_chosen_by_an_environment_variable(wanted):
    code = "from gconv.kernels import backend; print(backend())"
    env = {**os.environ, "GCONV_KERNELS": wanted}
    found = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=500)
    built = native.LIBRARY is not None
    if wanted == "off" or built:
        assert found.stdout.strip() == ("torch" if wanted == "off" else f"c-{wanted}"), found.stderr
    else:
        assert "the kernels were not compiled" in found.stderr


@pytest.mark.parametrize(
    "path, message", [("nowhere.so", "can't be loaded"), (_ctypes.__file__, "from another version")]
)
def test_a_library_asked_for_by_name_is_never_left_out_in_silence(path, message, monkeypatch):
    monkeypatch.setenv("GCONV_KERNELS_LIBRARY", path)
    with pytest.raises(ImportError, match=message):
        native.load()


def test_levels_that_are_not_there():
    with pytest.raises(ImportError, match="GCONV_KERNELS is 'sse9'; it may be off, base, avx2 or avx512"):
        native.choose(None, "sse9")
    with pytest.raises(ImportError, match="the kernels were not compiled"):
        native.choose(None, "avx2")


@pytest.mark.skipif(native.LIBRARY is None, reason="the compiled kernels were not built")
@pytest.mark.parametrize("name", KERNELS)
def test_chunks_change_no_bit(name, monkeypatch):
    """A kernel that is asked for in pieces, so that Python can answer an interrupt in between."""
    csr, before = pattern(n=90, entries=900), torch.get_num_threads()
    given = arguments(name, csr, c=17, b=(2,) if name in BATCHED else ())
    want = KERNELS[name].cpu(*given, *csr.tensors)
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for chunk in (1000, 50_000):
                with monkeypatch.context() as patch:
                    patch.setattr(native, "CHUNK", chunk)
                    patch.setattr(native, "SERIAL", 0)
                    found = KERNELS[name].cpu(*given, *csr.tensors)
                for a, b in zip(*(t if isinstance(t, tuple) else (t,) for t in (found, want)), strict=True):
                    assert torch.equal(a, b), (threads, chunk)
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(native.LIBRARY is None, reason="the compiled kernels were not built")
def test_an_interrupt_is_answered_between_chunks(monkeypatch):
    calls = []

    def kernel(*_):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        native.call(kernel, 10 * native.CHUNK)
    assert len(calls) == 3


def test_patterns_in_pieces(monkeypatch):
    whole = pattern(n=50, entries=500)
    monkeypatch.setattr(native, "ENTRIES", 7)
    for a, b in zip(whole.tensors, pattern(n=50, entries=500).tensors, strict=True):
        assert torch.equal(a, b)


def broken_patterns(csr):
    """The tensors of a pattern with one of them of another type, layout or length."""
    for k, t in enumerate(csr.tensors):
        apart = torch.stack([t, t], 1)[:, 0]
        for wrong in (t.long(), t.short(), t.float(), apart, t[:-1] if k else t[:0], t.unsqueeze(0)):
            if k in (0, 2) and wrong.shape == t[:-1].shape:
                continue  # another number of rows or columns, which the signals show
            yield [*csr.tensors[:k], wrong, *csr.tensors[k + 1 :]]


@pytest.mark.usefixtures("anywhere")
def test_patterns_of_other_types_layouts_and_lengths_are_refused():
    """By the class and, for those who call torch's operators with tensors of their own, by the operators."""
    csr = pattern()
    values, x, z = torch.ones(len(csr.col)), torch.ones(9, 4), torch.ones(9, 2, 4)
    for crow, col, crow_t, col_t, to_t, from_t in broken_patterns(csr):
        with pytest.raises(ValueError, match="A sparse pattern consists of"):
            CSR(crow, col, crow_t, col_t, None, to_t, from_t)
        with pytest.raises(ValueError, match="A sparse pattern consists of"):
            torch.ops.gconv.spmm(values, x, None, crow, col, crow_t, col_t, to_t, from_t)
        with pytest.raises(ValueError, match="A sparse pattern consists of"):
            torch.ops.gconv.attention(z, z[0], z[0], None, 0.2, 0.0, False, crow, col, crow_t, col_t, to_t, from_t)
    crow, col, crow_t, col_t, to_t, from_t = csr.tensors  # the control: as they are, and in int64
    assert torch.equal(torch.ops.gconv.spmm(values, x, None, *csr.tensors), spmm(csr, values, x))
    wide = CSR(*(t.long() for t in (crow, col, crow_t, col_t)), None, to_t.long(), from_t.long())
    torch.testing.assert_close(spmm(wide, values, x), spmm(csr, values, x))


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("c", [0, 1, 3, 4, 8, 16, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_no_heads_are_no_numbers(c, dtype):
    csr = pattern()
    values, e = torch.ones(60, 0, requires_grad=True), len(csr.col)
    for heads in (0, 1):
        x = torch.ones(9, heads, c, dtype=dtype, requires_grad=True)
        for transposed in (False, True):
            assert heads_kernels.heads_spmm(csr, values, x, False, transposed).shape == (9, 0, c)
            together = heads_kernels.heads_spmm(csr, values, x, True, transposed)
            assert torch.equal(together, torch.zeros(9, 1, c, dtype=dtype))
            dv, dx = torch.autograd.grad(together.sum(), (values, x), allow_unused=True)
            assert dv.shape == values.shape and not dx.any()
    none = torch.ones(9, 0, c)
    assert heads_kernels.heads_sddmm(csr, none, none, 0).shape == (e, 0)
    assert heads_kernels.row_softmax(csr, torch.ones(e, 0)).shape == (e, 0)
    assert heads_kernels.row_sums(csr, torch.ones(e, 0)).shape == (9, 0)


@pytest.mark.usefixtures("anywhere")
def test_a_range_of_rows_is_a_part_of_the_product():
    csr = pattern()
    values, x = torch.randn(len(csr.col)), torch.randn(9, 4)
    whole = spmm(csr, values, x)
    for first, last in ((0, 9), (0, 4), (3, 9), (4, 4), (9, 9), (0, 0)):
        torch.testing.assert_close(spmm_rows(csr, values, x, first, last), whole[first:last])
    for first, last in ((-1, 9), (0, -1), (5, 3), (0, 10), (10, 10), (-3, None)):
        with pytest.raises(ValueError, match="range of the 9 rows"):
            spmm_rows(csr, values, x, first, last)
    for wrong in (values.unsqueeze(1), values[1:], values.expand(2, -1)):
        for run in (spmm_rows, unrecorded):
            with pytest.raises(ValueError, match=f"takes {len(values)} values"):
                run(csr, wrong, x)
    for run in (spmm_rows, unrecorded):
        with pytest.raises(ValueError, match="signal"):
            run(csr, values, x[:, 0])


@pytest.mark.usefixtures("anywhere")
def test_a_result_is_not_written_over_what_is_still_read():
    csr = pattern()
    values, x, add = torch.randn(len(csr.col)), torch.randn(9, 4), torch.randn(9, 4)
    want, room = spmm(csr, values, x) + add, torch.empty(9, 13)
    apart = room[:, 2:6], room[:, 6:10]  # columns of one matrix
    apart[1].copy_(x)
    for signal, given, out in (
        (x, add, torch.empty(9, 4)),
        (x, add.clone(), None),
        (apart[1], add, apart[0]),
        (x, add, room[:, :4]),
    ):
        out = given if out is None else out
        assert spmm_rows(csr, values, signal, add=given, out=out).data_ptr() == out.data_ptr()
        torch.testing.assert_close(out, want)
    rows = torch.randn(10, 4)
    wrong = {
        "x itself": (x, None, x),
        "a row further": (rows[1:], None, rows[:9]),
        "one column of x": (room[:, 2:6], None, room[:, 5:9]),
        "the next rows of add": (x, rows[1:], rows[:9]),
        "a row of add": (x, rows[0], rows[:9]),
        "one row for all": (x, None, torch.zeros(4).expand(9, 4)),
        "rows that overlap": (x, None, torch.zeros(40).as_strided((9, 4), (3, 1))),
        "channels apart": (x, None, torch.zeros(4, 9).t()),
    }
    for name, (signal, given, out) in wrong.items():
        before = out.clone()
        with pytest.raises(ValueError, match="share no memory with x"):
            spmm_rows(csr, values, signal, add=given, out=out)
        assert torch.equal(out, before), name


@pytest.mark.skipif(native.LIBRARY is None, reason="the compiled kernels were not built")
def test_a_ready_product_takes_the_shape_it_was_made_for():
    """As many numbers in another shape would be read from other places, also beyond the end."""
    csr = pattern()
    product = ready(csr, torch.ones(len(csr.col)), 4, (9, 4))
    for shape in ((4, 9), (36,), (1, 9, 4), (18, 2), (9, 4, 1)):
        with pytest.raises(ValueError, match="takes 9 rows of 4 channels"):
            product(torch.ones(shape))
    x, row = torch.randn(9, 4), torch.randn(8)
    assert torch.equal(product(x, None, row[::2]), product(x, None, row[::2].clone()))
    assert not torch.equal(row[::2], row[:4])  # the control: what lies in memory is another row


@pytest.mark.parametrize("n", [9, 3000])
@pytest.mark.parametrize("spec", [gcn(3, 4), gcn(3, 2), gcn(3, 17), sage(3, 4), gat(3, 4)], ids=str)
def test_a_bias_may_lie_in_memory_as_it_likes(spec, n):
    generator = torch.Generator().manual_seed(0)
    graph, x = torch.randint(n, (2, 4 * n), generator=generator), torch.randn(n, 3, generator=generator)
    layer = GConv(spec)
    for lowering in (None, "sparse:aggregate", "sparse:transform"):
        for learn in (True, False):
            bias = torch.randn(2 * len(layer.bias), generator=generator)
            with torch.set_grad_enabled(learn):
                for _ in range(2):
                    found = []
                    for one in (bias[::2], bias[::2].clone()):
                        layer.bias = torch.nn.Parameter(one)
                        found.append(layer(x, graph, lowering=lowering))
                    assert torch.equal(*found)


@pytest.mark.skipif(native.LIBRARY is None, reason="the compiled kernels were not built")
def test_tensors_of_a_pattern_may_be_moved_in_memory():
    """As by sharing them with another process; what is in their old place then does not count."""
    csr = pattern()
    values, x = torch.randn(len(csr.col)), torch.randn(9, 4)
    product, steps = ready(csr, values, 4, (9, 4)), ready_recurrence(csr, values, 4, ((1.0, 0.5, 0.0),), values.dtype)
    want = product(x), steps.terms(x), steps.clenshaw(torch.cat([x, x], 1))
    before = [t.data_ptr() for t in (csr.crow, csr.col, values)]
    old = [t.untyped_storage() for t in (csr.crow, csr.col, values)]
    for t in (csr.crow, csr.col, values):
        t.set_(t.clone())
    for storage in old:
        ctypes.memset(storage.data_ptr(), 0x7F, storage.nbytes())
    assert all(a != t.data_ptr() for a, t in zip(before, (csr.crow, csr.col, values), strict=True))
    assert all(map(torch.equal, want, (product(x), steps.terms(x), steps.clenshaw(torch.cat([x, x], 1)))))


@pytest.mark.parametrize("which", range(3))
def test_results_of_attention_may_lie_in_memory_as_they_like(which):
    csr = pattern()
    given = arguments("attention_back", csr)
    want = torch.ops.gconv.attention_back(*given, *csr.tensors)
    made = given[7 + which]
    given[7 + which] = torch.stack([made, torch.full_like(made, 7.0)], -1)[..., 0]
    assert not given[7 + which].is_contiguous()
    assert torch.equal(torch.ops.gconv.attention_back(*given, *csr.tensors), want)
