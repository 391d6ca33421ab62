"""Negative controls: for each law an operator, basis or lowering broken on purpose, which it must reject."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

import gconv.plan
from gconv import analysis
from gconv.basis import Shifts, Taps
from gconv.call import Call
from gconv.kernels import transformed
from gconv.lowering import dense
from gconv.lowering.base import Cost, Lowering
from gconv.mixing import Dense
from gconv.operators import conv2d, gat, gcn, gin, sage
from gconv.operators.gin import Sum
from gconv.operators.shapes import grid, messy, ring
from gconv.spec import Sample, Structure
from gconv.testing import LAWS, law_compile

DOUBLE = torch.float64
CONV = Sample(conv2d(2, 3, 3, padding=1, padding_mode="circular"), lambda: grid(4, 5), 2)
GCN = Sample(gcn(2, 2), messy, 2)
covered = set()


def rejects(law, sample, message, dtype=DOUBLE):
    check = LAWS.get(law, law_compile)
    covered.add(law)
    with pytest.raises(AssertionError, match=message):
        check(sample, dtype)


# -- broken lowerings ----------------------------------------------------------------------------------------------


@pytest.fixture
def lowered(monkeypatch):
    """Puts a lowering made of a function in the place of all but dense."""

    def put(run):
        def called(S, call):
            return run(S, call.mixing, call.W, call.x, call.bias)

        broken = Lowering("broken", called, lambda S, mixing: None, lambda S, mixing, p: Cost(0, 0))
        monkeypatch.setattr(gconv.plan, "LOWERINGS", (broken, dense.DENSE))
        monkeypatch.setattr(gconv.plan, "_PLANS", {})

    return put


def densely(S, mixing, W, x, bias):
    return dense.run(S, Call(x, mixing, W, bias))


def drops_a_tap(S, mixing, W, x, bias):
    keep = torch.ones(len(W), 1, 1, dtype=W.dtype)
    keep[-1] = 0
    return densely(S, mixing, W * keep, x, bias)


def forgets_the_weight_gradient(S, mixing, W, x, bias):
    return densely(S, mixing, W.detach(), x, bias)


def forgets_the_signal_gradient(S, mixing, W, x, bias):
    y = densely(S, mixing, W, x, bias)
    return (
        y
        + (densely(S, mixing, W, x.detach(), bias) - y) * 2
        - (densely(S, mixing, W, x.detach(), bias) - y).detach() * 2
    )


def transposes_the_weight(S, mixing, W, x, bias):
    return densely(S, mixing, W.mT, x, bias)


def sees_everything(S, mixing, W, x, bias):
    return densely(S, mixing, W, x, bias) + 1e-3 * x.mean()


def mixes_the_batch(S, mixing, W, x, bias):
    return densely(S, mixing, W, x - x.mean(0, keepdim=True) if x.ndim > 2 else x, bias)


def adds_nothing_of_the_batch(S, mixing, W, x, bias):
    return densely(S, mixing, W, x, bias) + 0 * x.sum()


def forgets_empty_batches(S, mixing, W, x, bias):
    y = densely(S, mixing, W, x, bias)
    return y if len(x) else torch.cat([y, W.sum() + y.new_zeros(1, *y.shape[1:])])


def keeps_its_result():
    """Answers later calls by the tensor of the first."""
    kept = {}

    def run(S, mixing, W, x, bias):
        return kept.setdefault(x.shape, densely(S, mixing, W, x, bias).detach())

    return run


class _View(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y):
        return y.view_as(y)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def returns_a_view(S, mixing, W, x, bias):
    return _View.apply(densely(S, mixing, W, x, bias))


class _Reads(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y):
        ctx.save_for_backward(y)
        ctx.result = y.clone()  # not saved, so that torch does not notice changes of it
        return ctx.result

    @staticmethod
    def backward(ctx, gradient):
        return gradient + (ctx.result - ctx.saved_tensors[0])


def reads_its_result(S, mixing, W, x, bias):
    return _Reads.apply(densely(S, mixing, W, x, bias))


def leaves_bfloat16(S, mixing, W, x, bias):
    return densely(S, mixing, W, x, bias).double()


def conjugates(S, mixing, W, x, bias):
    return densely(S, mixing, W, x.conj(), bias)


def loses_the_imaginary_part(S, mixing, W, x, bias):
    return densely(S, mixing, W, x, bias).real


def is_rough(S, mixing, W, x, bias):
    return densely(S, mixing, W, x, bias) * (1 + 1e-4)


def _within(change, where):
    """`dense`, its weight changed within some transforms."""

    def run(S, mixing, W, x, bias):
        return densely(S, mixing, change(W) if where(W) else W, x, bias)

    return run


def _stale():
    """Doubles the weight after the first transform."""
    met = []

    def run(S, mixing, W, x, bias):
        if transformed():
            met.append(1)
        return densely(S, mixing, 2 * W if met and not transformed() else W, x, bias)

    return run


def _differentiated(W):
    return torch._C._functorch.is_gradtrackingtensor(W) and forward_ad._current_level < 0


def _functional(W):
    return torch._C._are_functorch_transforms_active()


def _functions_jvp(W):
    return _functional(W) and forward_ad._current_level >= 0


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (_within(torch.Tensor.detach, _differentiated), "torch.func.grad in weight"),
        (_within(torch.Tensor.detach, _functions_jvp), "torch.func.jvp"),
        (
            _within(
                torch.Tensor.detach,
                lambda W: (
                    forward_ad._current_level >= 0 and type(W) is not torch.nn.Parameter and not _functions_jvp(W)
                ),
            ),
            "forward mode",
        ),
        (_within(lambda W: 2 * W, torch._C._functorch.is_batchedtensor), "vmap of signals and weights"),
        (_stale(), "a plain call after by_grad"),
    ],
    ids=["grad", "jvp", "forward mode", "vmap", "stale"],
)
def test_broken_transform_is_rejected(run, message, lowered):
    lowered(run)
    rejects("law_transforms", GCN, message)


@pytest.mark.parametrize(
    ("law", "run", "sample", "message"),
    [
        ("law_lowerings", drops_a_tap, CONV, "value, broken against dense: off by"),
        ("law_lowerings", transposes_the_weight, GCN, "value, broken"),
        ("law_lowerings", is_rough, CONV, "value, broken"),
        ("law_lowerings", forgets_the_weight_gradient, CONV, "gradient in weight, broken"),
        ("law_lowerings", forgets_the_signal_gradient, CONV, "gradient in x, broken"),
        ("law_adjoint", transposes_the_weight, GCN, "<A x, y> and <x, A|against the matrix"),
        ("law_receptive_field", sees_everything, CONV, "support of the Jacobian differ in"),
        ("law_gradcheck", forgets_the_weight_gradient, GCN, "Numerical gradient|Gradients failed|Jacobian"),
        ("law_batch", mixes_the_batch, CONV, "a batch against one by one"),
        ("law_edge_cases", mixes_the_batch, GCN, "broken against dense"),
        ("law_samples_apart", adds_nothing_of_the_batch, CONV, "sample 0 next to huge numbers and NaN"),
        ("law_empty_batches_learn", forgets_empty_batches, GCN, "empty batch has the"),
        ("law_complex", conjugates, GCN, "of complex numbers: off by"),
        ("law_complex", loses_the_imaginary_part, GCN, "turns complex128 into torch.float64"),
        ("law_results_are_their_callers", keeps_its_result(), GCN, "call 1 after the result was modified"),
        ("law_results_are_their_callers", returns_a_view, GCN, "cannot be modified in place"),
        ("law_results_are_their_callers", reads_its_result, GCN, "a gradient through the modified result"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_broken_lowering_is_rejected(law, run, sample, message, lowered):
    lowered(run)
    rejects(law, sample, message)


def test_broken_dtype_is_rejected(lowered):
    lowered(leaves_bfloat16)
    rejects("law_bfloat16", GCN, "turns bfloat16 into torch.float64", torch.float32)


# -- broken bases and mixings --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class OwnTranspose(Taps):
    """Claims to be symmetric."""

    @property
    def T(self):
        return self


@dataclass(frozen=True)
class ZeroBorders(Shifts):
    """Says circular, pads with zeros."""

    def pad(self, x, fill=0.0):
        return F.pad(x, [0, 0, *(p for pair in reversed(self.padding) for p in pair)])

    def pad_images(self, x, fill=0.0):
        return F.pad(x, [p for pair in reversed(self.padding) for p in pair])

    def unpad(self, y):
        return F.pad(y, [0, 0, *(-p for pair in reversed(self.padding) for p in pair)])


@dataclass(frozen=True)
class LosesScale(Dense):
    """Its transpose forgets the scale."""

    def transpose(self, W, i):
        return Dense(self.taps, self.o, self.i), W.mT


@dataclass(frozen=True)
class Wrapped(Structure):
    """Another structure, whose basis goes through `change(S, domain, theta, call)`."""

    inner: object
    change: object
    kind: str = "fixed"

    @property
    def taps(self):
        return self.inner.taps

    @property
    def domain(self):
        return self.inner.domain

    @property
    def ndim(self):
        return self.inner.ndim

    def parameters(self):
        return self.inner.parameters()

    def target(self, domain):
        return self.inner.target(domain)

    def basis(self, domain, theta, call):
        return self.change(self.inner.basis(domain, theta, call), domain, theta, call)


def broken(sample, change, kind="fixed", **rest):
    return replace(sample, spec=replace(sample.spec, structure=Wrapped(sample.spec.structure, change, kind)), **rest)


def claims_symmetry(S, domain, theta, call):
    return OwnTranspose(S.pattern, S.values)


def zero_borders(S, domain, theta, call):
    return ZeroBorders(**{name: getattr(S, name) for name in S.__dataclass_fields__})


def scaled(S, factor):
    S = getattr(S, "written", S)
    return replace(S, values=S.values * factor)


class Stale:
    """Keeps the first basis a layer ever made, as a cache with too small a key would."""

    first: ClassVar[dict] = {}

    def __call__(self, S, domain, theta, call):
        return self.first.setdefault(id(call.weight), S)


def keeps_old_weights(S, domain, theta, call):
    return scaled(S, call.weight.detach().sum())  # but calls itself fixed


@pytest.mark.parametrize(
    ("law", "sample", "message"),
    [
        ("law_adjoint", broken(GCN, claims_symmetry), "<A x, y> and <x, A"),
        ("law_hand_rule", broken(GCN, claims_symmetry), "dX by the formula"),
        ("law_hand_rule", replace(GCN, spec=replace(GCN.spec, mixing=LosesScale(1, 2, 2, 0.5))), "dX by the formula"),
        ("law_norm", broken(GCN, claims_symmetry), "norm"),
        ("law_norm", broken(CONV, zero_borders), "norm.A. against the singular values"),
        ("law_translation", broken(CONV, zero_borders), "translated by"),
        (
            "law_linearity",
            broken(GCN, lambda S, g, theta, call: scaled(S, call.x.mean()), "learned"),
            "its map plus bias",
        ),
        ("law_permutation", broken(GCN, lambda S, g, theta, call: scaled(S, 1.0 + S.pattern.row)), "nodes renamed"),
        (
            "law_permutation",
            broken(GCN, lambda S, g, theta, call: scaled(S, 1.0 + torch.arange(S.nnz))),
            "another order|renamed",
        ),
        ("law_union", broken(GCN, lambda S, g, theta, call: scaled(S, 1 / g.size)), "against each part alone"),
        ("law_row_stochastic", replace(GCN, row_stochastic=True), "row sums of S"),
        (
            "law_row_stochastic",
            broken(Sample(sage(2, 2, root_weight=False, aggr="sum"), ring, 2, True), lambda S, *_: S),
            "row sums",
        ),
        (
            "law_edge_cases",
            broken(GCN, lambda S, g, *_: scaled(S, 1 / (g.in_degree(DOUBLE)[S.pattern.row]))),
            "not finite|off by nan",
        ),
        ("law_caches", broken(GCN, Stale(), "learned"), "on a second graph"),
        ("law_domains_in_turn", broken(GCN, Stale(), "learned"), "turn 0 on Graph"),
        ("law_caches", broken(GCN, keeps_old_weights), "after the weights changed"),
        ("law_round_trips", broken(GCN, lambda S, *_: S), "through to_dict and JSON it became"),
        (
            "law_gradcheck",
            broken(GCN, lambda S, g, theta, call: scaled(S, call.weight.detach().sum()), "learned"),
            "acobian",
        ),
        (
            "law_compile",
            broken(GCN, lambda S, g, theta, call: scaled(S, -1.0 if call.weight.sum() > 1e9 else 1.0), "learned"),
            "fullgraph",
        ),
    ],
)
def test_broken_operator_is_rejected(law, sample, message):
    rejects(law, sample, message)


def test_a_measure_that_squares_is_rejected(monkeypatch):
    """Squares of small numbers vanish."""
    monkeypatch.setattr(analysis, "norm", lambda A: float(analysis.matrix(A).detach().float().square().sum().sqrt()))
    rejects("law_homogeneous", GCN, "norm")


def test_a_lowering_that_multiplies_by_zero_is_rejected(lowered):
    """0 times NaN is NaN."""

    def everything(S, mixing, W, x, bias):
        return densely(S, mixing, W, x, bias) + 0 * x.sum((-2, -1), keepdim=True)

    lowered(everything)
    rejects("law_not_finite_stays_in_its_field", CONV, "that cannot depend on it", torch.float32)


def test_a_coefficient_that_overflows_is_rejected(monkeypatch):
    """1 + eps, squared."""
    plain = Sum.basis

    def squares(self, domain, theta, call):
        return plain(replace(self, eps=(1 + self.eps) * (1 + self.eps)), domain, theta, call)

    monkeypatch.setattr(Sum, "basis", squares)
    rejects("law_no_coefficient_overflows", Sample(gin(eps=0.5), messy, 2), "gives the output")


def test_wrong_attention_is_rejected():
    """Attention whose rows do not sum to one."""
    sample = Sample(gat(2, 2, heads=2), ring, 2, row_stochastic=True)
    rejects("law_row_stochastic", broken(sample, lambda S, *_: scaled(S, 1.01), "adaptive"), "row sums of S")


def test_every_law_has_a_control():
    """Runs after the controls, on what they covered."""
    if len(covered) < 5:
        pytest.skip("only meaningful after the controls")
    assert covered == {*LAWS, "law_compile"}


def test_controls_break_one_thing():
    """The wrapper itself is innocent: with nothing changed the laws hold."""
    innocent = broken(GCN, lambda S, *_: S)
    for name, law in LAWS.items():
        if name != "law_round_trips":
            law(innocent, DOUBLE)
