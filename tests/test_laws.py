"""Every law on every sample of every registered operator, in both dtypes."""

import inspect
import itertools
import random
from collections import Counter
from functools import partial

import pytest
import torch
from conftest import SEED
from eigensolver import perturbed

import gconv
from gconv import GConv, errors, list_operators
from gconv.basis import functions
from gconv.domains import Graph
from gconv.kernels import native
from gconv.operators import avg_pool2d, cheb, conv2d, gat, gcn, max_pool2d, sage, selection
from gconv.operators.shapes import grid, messy, ring, weighted
from gconv.spec import OutsideFamily, Sample, operator
from gconv.testing import LAWS, TOL, Case, assert_close, check_operator, law_compile, law_lowerings

SLOW = pytest.mark.slow
SAMPLES = [sample for name in list_operators() for sample in operator(name).samples()]

# the fewest operators that each law must concern, so that none passes by having nothing to say
CONCERNS = {
    "law_lowerings": 60, "law_adjoint": 60, "law_hand_rule": 40, "law_linearity": 60, "law_permutation": 35,
    "law_translation": 3, "law_receptive_field": 60, "law_norm": 60, "law_row_stochastic": 10, "law_union": 40,
    "law_gradcheck": 75, "law_edge_cases": 75, "law_batch": 75, "law_caches": 75,
    "law_samples_apart": 75, "law_not_finite_stays_in_its_field": 75, "law_empty_batches_learn": 75,
    "law_results_are_their_callers": 75, "law_domains_in_turn": 60, "law_homogeneous": 45,
    "law_no_coefficient_overflows": 18, "law_round_trips": 75, "law_bfloat16": 75, "law_transforms": 75,
    "law_complex": 60,
}  # fmt: skip
concerned: dict[str, set[str]] = {}


# every operator against `dense`, and half of the other pairs; the other half with GCONV_TEST_SEED=1
PAIRS = [
    (name, law)
    for (n, name), (k, law) in itertools.product(enumerate(list_operators()), enumerate(LAWS.values(), SEED))
    if law is law_lowerings or (n + k) % 2 == 0
]


@pytest.mark.parametrize(("name", "law"), PAIRS, ids=lambda value: getattr(value, "__name__", value))
def test_law_holds(name, law):
    """On the first sample, on all against `dense`, and on a few drawn; the slow tests take all, in both dtypes."""
    first, *others = operator(name).samples()
    any(law(sample, dtype) for sample in (first, *others) for dtype in TOL)  # up to the first that is concerned
    if law is law_lowerings:
        rest = [(sample, tuple(TOL)[k % 2]) for k, sample in enumerate(others)]
    else:
        draw = random.Random(f"{SEED} {name} {law.__name__}")
        rest = [(sample, dtype) for sample in (first, *others) for dtype in TOL if draw.random() < 1 / 32]
    for sample, dtype in rest:
        law(sample, dtype)


def test_every_law_is_drawn_for_half_of_the_operators():
    drawn = Counter(law for _, law in PAIRS)
    assert min(drawn[law] for law in LAWS.values()) >= len(list_operators()) // 2


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("name", list_operators())
def test_law_holds_on_every_sample(name, law):
    if any([law(sample, dtype) for sample in operator(name).samples() for dtype in TOL]):
        concerned.setdefault(law.__name__, set()).add(name)


@pytest.mark.parametrize("name", ["spectral", "wavelet", "cayley", "lanczos"])
@pytest.mark.parametrize(
    "law", ["law_lowerings", "law_adjoint", "law_permutation", "law_union", "law_caches", "law_transforms"]
)
@pytest.mark.parametrize("samples", [slice(1), pytest.param(slice(1, None), marks=SLOW)], ids=["first", "others"])
def test_laws_hold_whichever_eigenvectors_a_solver_returns(name, law, samples, monkeypatch):
    monkeypatch.setattr(functions, "_solver", perturbed)
    for sample in operator(name).samples()[samples]:
        LAWS[law](sample, torch.float64)


@pytest.mark.slow
def test_no_law_is_empty(request):
    """Runs after the laws, on what they found."""
    laws = sum(item.name.startswith("test_law_holds_on_every_sample[") for item in request.session.items)
    drawn = request.config.getoption("--minutes") is not None
    if drawn or laws < len(LAWS) * len(list_operators()):
        pytest.skip("only meaningful after all laws on all operators")
    short = {law: len(concerned.get(law, ())) for law, least in CONCERNS.items() if len(concerned.get(law, ())) < least}
    assert set(CONCERNS) == set(LAWS) and not short, f"these laws concern fewer operators than they should: {short}"


# arguments that PyG has and that lie outside of the family: anything but the default is refused
OUTSIDE = {"transformer": {"beta": True, "edge_dim": 2}}


@pytest.mark.parametrize("name", list_operators())
def test_every_option_leaves_its_default_in_a_sample(name):
    """So that every law meets it."""
    entry = operator(name)
    seen = [dict(sample.spec.arguments) for sample in entry.samples()]
    for key, option in inspect.signature(entry.factory).parameters.items():
        if key in OUTSIDE.get(name, {}):
            with pytest.raises(OutsideFamily):
                entry.factory(**{**seen[0], key: OUTSIDE[name][key]})
        elif option.default is not inspect.Parameter.empty:
            assert any(arguments[key] != option.default for arguments in seen), (
                f"no sample of {name} sets {key} to anything but {option.default!r}: add it to one"
            )


def test_samples_cover_the_edges():
    """One site, a 1 x 1 kernel, a stride beyond the kernel, one channel; loops, double edges, loners, weights."""
    arguments = [dict(s.spec.arguments) for s in SAMPLES]
    assert any(s.domain().size == 1 for s in SAMPLES)
    assert any(a.get("kernel_size") == 1 and a.get("stride") == 3 for a in arguments)
    assert any(s.channels == 1 for s in SAMPLES)
    graphs = [s.domain() for s in SAMPLES if isinstance(s.domain(), Graph)]
    assert any((g.source == g.target).any() for g in graphs)
    assert any(len(g.edge_index.unique(dim=1).t()) < g.num_edges for g in graphs)
    assert any(((g.in_degree() + g.out_degree()) == 0).any() for g in graphs)
    assert any(not g.is_undirected for g in graphs) and any(g.is_undirected for g in graphs)
    assert {s.spec.name for s in SAMPLES if isinstance(s.domain(), Graph) and s.domain().edge_weight is not None} >= {
        "gcn",
        "cheb",
    }


SECOND = [
    Sample(conv2d(2, 2, 2, padding=1, padding_mode="circular"), lambda: grid(3, 2), 2),
    Sample(cheb(2, 2, k=3), weighted, 2),
    Sample(gat(2, 1, heads=2), ring, 2),
]


@pytest.mark.parametrize("sample", SECOND, ids=lambda s: s.spec.name)
def test_second_derivatives(sample):
    case = Case.of(sample, torch.float64, batch=1)
    theta = dict(case.layer.named_parameters())

    def run(x, *values):
        y = torch.func.functional_call(case.layer, dict(zip(theta, values, strict=True)), (x, case.domain))
        return y.square()  # linear maps alone have no second derivative

    assert torch.autograd.gradgradcheck(run, (case.x.requires_grad_(), *theta.values()), fast_mode=True)


@pytest.mark.parametrize("name", list_operators())
def test_batches_of_gradients(name):
    """As torch.autograd.functional.jacobian(vectorize=True) asks for them, in x and in all parameters."""
    case = Case.of(next(iter(operator(name).samples())), torch.float64, batch=1)
    leaves = [case.x.requires_grad_(), *(p for p in case.layer.parameters() if p.requires_grad)]
    y = case.layer(case.x, case.domain)
    many = torch.randn(2, *y.shape, dtype=y.dtype)
    together = torch.autograd.grad(y, leaves, many, is_grads_batched=True, retain_graph=True, allow_unused=True)
    for k, one in enumerate(many):
        single = torch.autograd.grad(y, leaves, one, retain_graph=True, allow_unused=True)
        for a, b in zip(together, single, strict=True):
            assert (a is None) == (b is None)
            if b is not None:
                assert_close("batch of gradients", a[k], b, 1e-12)


@pytest.mark.skipif(native.LIBRARY is None, reason="the compiled kernels were not built")
def test_kernels_cannot_read_batches_of_gradients(monkeypatch):
    """Negative control."""
    monkeypatch.setattr(errors, "is_batched", lambda t: False)
    with pytest.raises(RuntimeError):
        test_batches_of_gradients("gcn")


WITHOUT = [
    Sample(gcn(3, 2), messy, 3),
    Sample(cheb(3, 2, k=3), weighted, 3),
    Sample(gat(3, 2, heads=2), messy, 3),
    Sample(sage(2, 3, aggr="max"), messy, 2),
    Sample(selection(2, 4, 3), messy, 2),
]


@pytest.mark.parametrize(
    "number, laws, dtype",
    [(k, slice(k, None, len(WITHOUT)), tuple(TOL)[k % 2]) for k in range(len(WITHOUT))]  # each law on one of them
    + [pytest.param(k, slice(None), dtype, marks=SLOW) for k in range(len(WITHOUT)) for dtype in TOL],
)
def test_laws_hold_without_the_compiled_kernels(number, laws, dtype, monkeypatch):
    monkeypatch.setattr(native, "LIBRARY", None)
    assert gconv.backend() == "torch"
    for law in list(LAWS.values())[laws]:
        law(WITHOUT[number], dtype)


COMPILED = [
    Sample(conv2d(2, 3, 3, padding=1), lambda: grid(4, 5), 2),
    Sample(avg_pool2d(3, stride=2, padding=1, count_include_pad=False), lambda: grid(5, 6), 2),
    Sample(gcn(3, 2), weighted, 3),
    Sample(cheb(3, 2, k=3), messy, 3),
    Sample(gat(3, 2, heads=2), ring, 3),
    Sample(selection(2, 4, 3), messy, 2),
]


def drawn(samples, *quick):
    """Parametrized over samples, of which those of other operators than `quick` are slow."""
    given = [pytest.param(s, marks=[SLOW] * (s.spec.name not in quick), id=s.spec.name) for s in samples]
    return pytest.mark.parametrize("sample", given)


@drawn(COMPILED, "gcn")
def test_compiled_equals_eager(sample):
    assert law_compile(sample, torch.float64)


def compiled_and_counted(layer):
    made = []

    def backend(module, inputs):
        made.append(module)
        return module.forward

    return torch.compile(layer, fullgraph=True, backend=backend), made


@pytest.mark.parametrize("spec", [conv2d(2, 3, 3, stride=2), max_pool2d(2)], ids=str)
def test_dense_on_grids_compiles_without_a_first_call(spec):
    layer, x = GConv(spec, dtype=torch.float64), torch.randn(2, 2, 9, 7, dtype=torch.float64)  # sizes of no other test
    run, made = compiled_and_counted(partial(layer, lowering="dense"))
    assert_close("compiled", run(x), layer(x, lowering="dense"), 1e-12)
    assert len(made) == 1


@drawn(COMPILED[:3], "gcn")
def test_a_compiled_layer_is_not_compiled_again_because_others_run(sample):
    case = Case.of(sample, torch.float64)
    case(case.x)
    run, made = compiled_and_counted(case.layer)
    run(case.x, case.domain)
    Case.of(sample, torch.float32)(case.x.float())  # fills every cache with something else
    GConv(gcn(5, 5))(torch.zeros(7, 5), ring())
    run(case.x, case.domain)
    assert len(made) == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, when it loads its inductor
@pytest.mark.parametrize("sample", COMPILED, ids=lambda s: s.spec.name)
def test_compiled_by_inductor_equals_eager(sample):
    assert law_compile(sample, torch.float32, backend="inductor")


def test_check_operator_takes_a_spec_a_domain_and_channels():
    applied = check_operator(cheb(2, 3, k=2), ring(), 2, dtypes=[torch.float64])
    assert applied["law_lowerings"] and applied["law_gradcheck"] and not applied["law_translation"]
    with pytest.raises(TypeError, match="on a domain and a number of channels"):
        check_operator(cheb(2, 3, k=2))


def test_check_operator_runs_every_law_in_every_dtype_of_an_iterator():
    seen = []

    def first(sample, dtype):
        seen.append(("first", dtype))
        return True

    def second(sample, dtype):
        seen.append(("second", dtype))
        return True

    check_operator(cheb(2, 3, k=2), ring(), 2, dtypes=iter([torch.float32, torch.float64]), laws=[first, second])
    assert seen == [(name, dtype) for name in ("first", "second") for dtype in (torch.float32, torch.float64)]
    with pytest.raises(ValueError, match="dtypes is empty"):
        check_operator(cheb(2, 3, k=2), ring(), 2, dtypes=[])
