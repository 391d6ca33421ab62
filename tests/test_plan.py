"""The planner explains itself, picks the cheaper association, and refuses in prose."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gconv.plan as plan_module
from experiments.harness import measure
from gconv import GConv, Graph, Grid, Inadmissible, calibrate, rates
from gconv.basis import Shifts
from gconv.calibrate import simplify
from gconv.calibrate.__main__ import main as calibrate_command
from gconv.call import Call
from gconv.lowering import LOWERINGS, fixed, im2col
from gconv.lowering.base import Problem
from gconv.lowering.native import _onednn
from gconv.operators import (
    arma,
    avg_pool2d,
    bernstein,
    cheb,
    conv2d,
    depthwise,
    gat,
    gcn,
    gin,
    max_pool2d,
    monet,
    sage,
    selection,
    spectral,
)
from gconv.operators.shapes import grid, pixels, ring
from gconv.plan import plan
from gconv.testing import assert_close

NAMES = [option.name for option in LOWERINGS]


def test_a_plan_names_every_candidate_once_with_a_cost_or_a_reason():
    text = str(GConv(cheb(3, 4, k=3)).plan(torch.zeros(7, 3), ring()))
    assert text.startswith("plan for 1 signal of (7 sites, 3 channels) -> (7 sites, 4 channels), 3 taps, torch.float32")
    for name in NAMES:
        (line,) = (line for line in text.splitlines() if line[3:].startswith(name + " "))
        assert ("rejected: " in line) != ("GFLOP" in line and "MB" in line and "predicted" in line)
    assert sum(line.startswith("->") for line in text.splitlines()) == 1


def test_the_chosen_one_is_the_cheapest_admitted():
    for layer, x in (
        (conv2d(3, 8, 3), (2, 3, 9, 9)),
        (conv2d(16, 16, 3), (8, 16, 12, 12)),
        (conv2d(1, 1, 2), (1, 1, 2, 2)),
    ):
        made = GConv(layer).plan(torch.zeros(x))
        seconds = {c.name: c.seconds for c in made.candidates if c.reason is None}
        assert made.chosen.name == min(seconds, key=seconds.get)
    layer, x = GConv(gcn(32, 32)), torch.zeros(7, 32)
    seconds = {c.name: c.seconds for c in layer.plan(x, ring()).candidates if c.reason is None}
    assert layer.plan(x, ring()).chosen.name == min(seconds, key=seconds.get)


@pytest.mark.parametrize(("i", "o", "side"), [(4, 64, "aggregate"), (64, 4, "transform")])
def test_sparse_gathers_at_the_narrower_side(i, o, side):
    n = 500
    at = torch.arange(n)
    graph = Graph(torch.stack([at.repeat(20), torch.cat([(at + s) % n for s in range(20)])]), n)
    x = torch.zeros(n, i, requires_grad=True)
    assert GConv(gcn(i, o)).plan(x, graph, lowering="sparse").chosen.name == f"sparse:{side}"
    assert GConv(cheb(i, o, k=5)).plan(x, graph, lowering="recurrence").chosen.name == f"recurrence:{side}"
    assert GConv(gcn(i, o)).plan(x, graph).chosen.name == f"sparse:{side}"


def test_a_forced_lowering_is_taken():
    layer, x = GConv(conv2d(2, 2, 3)), torch.randn(1, 2, 5, 5)
    for name in ("native", "im2col", "fft", "dense", "sparse", "sparse:transform"):
        assert layer.plan(x, lowering=name).chosen.name.startswith(name)
        assert_close(name, layer(x, lowering=name), layer(x), 1e-5)


@pytest.mark.parametrize(
    ("spec", "args", "lowering", "reason"),
    [
        (gcn(2, 2), (torch.zeros(7, 2), ring()), "native", "and this structure is Taps"),
        (gcn(2, 2), (torch.zeros(7, 2), ring()), "fft", "needs the shifts of a kernel on a grid"),
        (gcn(2, 2), (torch.zeros(7, 2), ring()), "gft", "needs multipliers of a Fourier basis"),
        (gcn(2, 2), (torch.zeros(7, 2), ring()), "im2col", "unfolds the shifts of a kernel"),
        (gcn(2, 2), (torch.zeros(7, 2), ring()), "recurrence", "runs polynomials of a sparse matrix"),
        (cheb(2, 2, k=2), (torch.zeros(7, 2), ring()), "sparse", "this structure is Polynomial"),
        (spectral(2, 2, k=2), (torch.zeros(7, 2), ring()), "sparse:aggregate", "this structure is Diagonal"),
        (max_pool2d(2), (torch.zeros(1, 2, 4, 4),), "fft", "pooling has no kernel to transform"),
        (max_pool2d(2), (torch.zeros(1, 2, 4, 4),), "sparse:transform", "does not commute with mixing the channels"),
        (sage(2, 2, aggr="max"), (torch.zeros(7, 2), ring()), "sparse:transform", "a tap reduces with max"),
    ],
)  # fmt: skip
def test_an_inadmissible_lowering_gives_a_reason(spec, args, lowering, reason):
    with pytest.raises(Inadmissible, match=reason) as caught:
        GConv(spec)(*args, lowering=lowering)
    assert f"The lowering {lowering!r} cannot run this operator" in str(caught.value)


def test_an_unknown_lowering_lists_those_there_are():
    with pytest.raises(Inadmissible, match="There is no lowering named 'cuda'") as caught:
        GConv(gcn(2, 2))(torch.zeros(7, 2), ring(), lowering="cuda")
    assert all(name in str(caught.value) for name in NAMES)


def test_im2col_is_rejected_where_it_would_take_too_much_memory(monkeypatch):
    layer, x = GConv(conv2d(2, 2, 3, padding=1)), torch.zeros(1, 2, 17, 16)
    monkeypatch.setattr(im2col, "LIMIT", 1000)
    plan_module._PLANS.clear()
    (candidate,) = (c for c in layer.plan(x).candidates if c.name == "im2col")
    assert candidate.cost is None and candidate.reason.startswith("it would write 1.82e-05 GiB of patches")
    with pytest.raises(Inadmissible, match=r"it would write .* GiB of patches for this input, and its limit is"):
        layer(x, lowering="im2col")
    layer(x)  # another one serves
    plan_module._PLANS.clear()


def test_a_plan_depends_on_sizes_not_numbers():
    layer = GConv(gcn(3, 3))
    assert layer.plan(torch.zeros(7, 3), ring()) == layer.plan(torch.ones(7, 3), ring())
    assert layer.plan(torch.zeros(7, 3), ring()) != layer.plan(torch.zeros(2, 7, 3), ring())


def test_the_planner_sees_no_names():
    """A twin under another name has the same plan: the very same object from the cache."""
    S = Shifts((6, 6), (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
    x = torch.zeros(36, 2)
    layer = GConv(conv2d(2, 4, 3, padding=1))
    assert plan(S, Call(x, layer.spec.mixing)) is plan(layer.at(Grid((6, 6))).S, Call(x, layer.spec.mixing))


def test_plans_of_adaptive_and_batched_layers():
    made = GConv(gat(3, 2, heads=2)).plan(torch.zeros(4, 7, 3), ring())
    assert made.chosen.name.startswith("sparse")
    assert "4 signals" in GConv(gcn(3, 2)).plan(torch.zeros(2, 2, 7, 3), ring()).title


def test_conv2d_is_its_selection_twin():
    """The nine-offset graph twin with the convolution's own weights: one structure, written down twice."""
    conv, twin = (GConv(spec, dtype=torch.float64) for spec in (conv2d(3, 2, 3, padding=1), selection(3, 2, 9)))
    twin.load_state_dict(conv.state_dict())
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    want, got = conv(x), twin(x.flatten(2).mT, pixels()).mT.unflatten(-1, (4, 5))
    assert_close("value", got, want, 1e-12)
    dy = torch.randn_like(want)
    for a, b in zip(
        torch.autograd.grad(got, (x, *twin.parameters()), dy),
        torch.autograd.grad(want, (x, *conv.parameters()), dy),
        strict=True,
    ):
        assert_close("gradient", a, b, 1e-12)
    taps = conv.at(Grid((4, 5))).S.taps(torch.float64, torch.device("cpu"))
    eye = torch.eye(20, dtype=torch.float64)
    assert torch.equal(taps.expand(eye), twin.at(pixels()).S.expand(eye)), "the nine matrices themselves"


def test_average_pooling_is_a_row_stochastic_matrix_with_identity_mixing():
    A = GConv(avg_pool2d(2)).at(grid(4, 4), x=torch.zeros(16, 3))
    assert A.shape == (4 * 3, 16 * 3) and A.W is None


# -- rates and gradients ------------------------------------------------------------------------------------------


@pytest.fixture
def calibrated(monkeypatch, tmp_path):
    """Writes a calibration that plans then use: the built-in rates, changed."""
    monkeypatch.setattr(plan_module, "_PLANS", {})

    def write(change=None, text=None):
        plan_module._PLANS.clear()
        rates._read.cache_clear()
        built_in = rates.DEFAULTS[1]
        data = {"format": rates.FORMAT, "threads": {"1": {"curves": dict(built_in.curves)}}}
        data["threads"]["1"]["overheads"] = dict(built_in.overheads)
        if change:
            change(data)
        path = tmp_path / "calibration.json"
        path.write_text(json.dumps(data) if text is None else text)
        monkeypatch.setenv("GCONV_CALIBRATION", str(path))

    with measure.threads(1):
        yield write
    rates._read.cache_clear()


def scaled(kinds, factor):
    def change(data):
        curves = data["threads"]["1"]["curves"]
        for kind in list(curves):
            if kind.startswith(kinds):
                curves[kind] = [(size, rate * factor) for size, rate in curves[kind]]

    return change


LAST, FIRST = torch.channels_last, torch.contiguous_format


@pytest.mark.parametrize(("layout", "trains", "best"), [(LAST, 0, "native"), (FIRST, 0, "fft"), (LAST, 1, "fft")])
def test_torch_has_fast_large_depthwise_kernels_for_channels_last_images_only(layout, trains, best, calibrated):
    """And none for the gradient in the weight."""
    calibrated()
    layer, x = GConv(depthwise(64, 15, padding=7, ndim=2)), torch.zeros(8, 64, 64, 64).contiguous(memory_format=layout)
    with torch.set_grad_enabled(bool(trains)):
        assert layer.plan(x).chosen.name == best


def test_the_rates_decide(calibrated):
    layer, x = GConv(conv2d(16, 16, 7, padding=3)), torch.zeros(4, 16, 32, 32)
    calibrated()
    before = layer.plan(x)
    assert before.chosen.name == "native"
    calibrated(scaled(("fft", "mix", "turn", "stream"), 1e3))
    assert layer.plan(x).chosen.name == "fft"
    calibrated(scaled(("conv",), 1e-3))
    assert layer.plan(x).chosen.name != "native"
    calibrated()
    assert str(layer.plan(x)) == str(before), "the same file, the same plan"


def test_a_calibration_may_leave_out_what_fewer_words_say(calibrated):
    """And nothing else: the form with its last words cut off is what a plan falls back to."""
    name = "sparse:aggregate many"
    calibrated(lambda data: data["threads"]["1"]["overheads"].pop(name, None))
    found = rates.rates()
    assert found.source != "defaults" and name not in found.overheads
    assert found.overhead("sparse:aggregate", " many", "") == found.overheads["sparse:aggregate"]
    calibrated(lambda data: data["threads"]["1"]["overheads"].pop("sparse:aggregate"))
    with pytest.warns(UserWarning, match="it lacks 'sparse:aggregate'"):
        assert rates.rates().source == "defaults"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(1.0, 1e3), min_size=1, max_size=8))
def test_a_simplified_curve_is_within_its_tolerance(values):
    curve = tuple((2.0**k, rate) for k, rate in enumerate(values))
    thin = simplify.thinned(curve)
    assert len(thin) <= len(curve)
    for size, rate in curve:
        assert rate / (1 + simplify.RATE) * 0.999 <= rates.at(thin, size) <= rate * (1 + simplify.RATE) * 1.001


def test_simplified_overheads_are_within_their_tolerance():
    measured = {
        "dense": 1e-5,
        "dense many": 1.3e-5,
        "dense many more": 1.1e-5,
        "dense weight": 5e-5,
        "dense many weight": 4.5e-5,
    }
    kept = simplify.essential(measured)
    assert set(kept) == {"dense", "dense many", "dense weight"}
    for name, seconds in measured.items():
        found = rates.Rates({}, kept).overhead(*rates.words(name))
        assert seconds / 1.251 <= found <= seconds * 1.251


def test_another_number_of_threads_is_another_plan(calibrated):
    layer, x, graph = GConv(gcn(32, 64)), torch.zeros(2000, 32), ring(2000)
    entry = {"curves": dict(rates.DEFAULTS[1].curves)}
    overheads = dict(rates.DEFAULTS[1].overheads)
    slow = {
        threads: {**overheads, f"sparse:{way} weight": 9.0} for threads, way in ((1, "transform"), (2, "aggregate"))
    }
    calibrated(lambda data: data["threads"].update({str(t): entry | {"overheads": slow[t]} for t in slow}))
    assert layer.plan(x, graph).chosen.name == "sparse:aggregate"
    with measure.threads(2):
        assert layer.plan(x, graph).chosen.name == "sparse:transform"
    assert layer.plan(x, graph).chosen.name == "sparse:aggregate"


def test_the_association_follows_the_rates(calibrated):
    layer, x, graph = GConv(gcn(32, 64)), torch.zeros(2000, 32), ring(2000)
    calibrated(scaled(("gather",), 1e-3))  # what is gathered decides
    assert layer.plan(x, graph).chosen.name == "sparse:aggregate"
    calibrated(lambda data: data["threads"]["1"]["overheads"].update({"sparse:aggregate weight": 9.0}))
    assert layer.plan(x, graph).chosen.name == "sparse:transform"


def test_without_a_file_the_built_in_rates_are_used(calibrated, monkeypatch, tmp_path):
    monkeypatch.setenv("GCONV_CALIBRATION", str(tmp_path / "none.json"))
    assert rates.rates() is rates.DEFAULTS[1]
    monkeypatch.delenv("GCONV_CALIBRATION")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert rates.path() == tmp_path / "gconv" / "calibration.json"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "Expecting property name"),
        ("[]", "not a calibration of format"),
        ('{"format": 99, "threads": {"1": {}}}', "not a calibration of format"),
        ('{"format": 2, "threads": {"1": {"curves": {}, "overheads": {}}}}', "it lacks 'gemm float32'"),
    ],
)
def test_a_broken_file_is_one_warning_and_the_built_in_rates(calibrated, text, why):
    calibrated(text=text)
    with pytest.warns(UserWarning, match=why) as caught:
        found = [rates.rates(), rates.rates()]
    assert len(caught) == 1 and "python -m gconv.calibrate" in str(caught[0].message)
    assert found == [rates.DEFAULTS[1]] * 2


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan")])
def test_rates_that_are_no_rates_are_refused(calibrated, bad):
    calibrated(lambda data: data["threads"]["1"]["curves"].update(fft=[(1.0, bad)]))
    with pytest.warns(UserWarning, match="'fft' is not a curve of positive numbers"):
        assert rates.rates() is rates.DEFAULTS[1]


def test_the_nearest_number_of_threads_is_used(calibrated, monkeypatch):
    def twice(data):
        data["threads"]["8"] = data["threads"]["1"]

    calibrated(twice)
    one, eight = (rates._read(rates.path())[threads] for threads in (1, 8))
    for threads, want in ((1, one), (2, one), (4, eight), (64, eight)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert rates.rates() is want


def test_a_plan_knows_which_gradients_are_wanted():
    layer, x, graph = GConv(gcn(8, 8)), torch.zeros(7, 8), ring()
    training = layer.plan(x, graph)
    with torch.no_grad():
        inference = layer.plan(x, graph)
    whole = layer.plan(x.requires_grad_(), graph)
    assert "backward pass included" in training.title and "backward" not in inference.title
    seconds = [min(c.seconds for c in made.candidates) for made in (inference, training, whole)]
    assert seconds == sorted(seconds) and seconds[0] < seconds[2]


def test_a_measured_plan_shows_what_every_candidate_took():
    layer, x = GConv(cheb(3, 4, k=3)), torch.zeros(7, 3)
    with torch.no_grad():
        made = layer.plan(x, ring(), measure=1)
    assert all((len(c.measured) == 1 and c.measured[0] > 0) == (c.reason is None) for c in made.candidates)
    assert str(made).count("measured") == 3 and "+ backward" not in str(made)
    training = layer.plan(x.requires_grad_(), ring(), measure=True)
    assert {len(c.measured) for c in training.candidates if c.reason is None} == {2}
    assert str(training).count("+ backward") == 3
    assert layer.plan(x, ring()).candidates[0].measured == () and x.grad is None and layer.weight.grad is None


def test_measuring_leaves_out_what_is_predicted_to_be_far_too_slow():
    made = GConv(conv2d(16, 16, 3)).plan(torch.zeros(8, 16, 40, 40), measure=1)
    by_name = {c.name: c for c in made.candidates}
    assert by_name["native"].measured and by_name["dense"].cost and not by_name["dense"].measured


def test_calibrating_writes_a_file_that_is_used(calibrated, monkeypatch, capsys):
    calibrated(text="{")
    monkeypatch.setattr(calibrate, "measure", lambda say, device: rates.DEFAULTS[1])
    calibrate_command([])
    assert "stored in" in capsys.readouterr().out
    rates._read.cache_clear()
    found = rates.rates()
    assert found.overheads == rates.DEFAULTS[1].overheads and found.source == str(rates.path())
    calibrate_command(["--show"])
    assert f"rates from {rates.path()}" in capsys.readouterr().out


# -- what is priced, and how it is measured ------------------------------------------------------------------------


def works(made, name, kind):
    (candidate,) = (c for c in made.candidates if c.name == name)
    return [work for work in candidate.cost.work if work.kind == kind and work.amount]


def test_the_sampled_product_of_a_learned_structure_is_priced():
    graph = pixels()
    graph = Graph(graph.edge_index, graph.size, edge_attr=torch.rand(graph.num_edges, 2))
    layer, x = GConv(monet(3, 4, dim=2, kernel_size=2)), torch.zeros(graph.size, 3)
    training = layer.plan(x, graph)
    with torch.no_grad():
        inference = layer.plan(x, graph)
    for name in ("sparse:aggregate", "sparse:transform"):
        assert works(training, name, "sampled") and not works(inference, name, "sampled")
        assert not works(GConv(gcn(3, 4)).plan(x, graph), name, "sampled"), "S is fixed"


@pytest.mark.parametrize("spec", [bernstein(k=3), gin(train_eps=True), arma(3, 4)])
def test_a_measured_plan_has_the_gradient_of_what_a_structure_learns(spec):
    made = GConv(spec).plan(torch.zeros(7, 3), ring(), measure=1)
    assert "backward pass included" in made.title
    assert {len(c.measured) for c in made.candidates if c.measured} == {2}


def test_products_in_chunks_of_signals_are_priced_as_such():
    layer, graph = GConv(gcn(64, 16)), ring(2000)
    few, many = (layer.plan(torch.zeros(b, 2000, 64, requires_grad=True), graph) for b in (2, 64))
    assert all(work.size <= fixed.CHUNK_BYTES for work in works(many, "sparse:aggregate", "stream")[:1])
    back = lambda made: sum(work.amount for work in works(made, "sparse:aggregate", "gather"))  # noqa: E731
    assert back(many) < 32 * back(few), "backward at the narrower side"


CONVOLUTIONS = [
    (b, i, kernel, stride, dilation)
    for b in (1, 2, 16)
    for i in (1, 64)
    for kernel in ((1, 1), (3, 3), (5, 5), (1, 5))
    for stride in (1, 2)
    for dilation in (1, 2)
]


@pytest.mark.parametrize("side", [8, 24])
def test_the_plan_knows_the_backend_of_a_convolution(side):
    for b, i, kernel, stride, dilation in CONVOLUTIONS:
        x, W = torch.zeros(b, i, side, side), torch.zeros(4, i, *kernel)
        if min(side - dilation * (k - 1) for k in kernel) < 1:
            continue
        pair, zero = ([stride] * 2, [0, 0], [dilation] * 2), [0, 0]
        want = torch._C._select_conv_backend(x, W, None, *pair, False, zero, 1)
        S = Shifts((side, side), kernel, (stride,) * 2, (dilation,) * 2, ((0, 0), (0, 0)))
        assert _onednn(S, Problem(b, i, 4, 4), 1) == (want == torch._C._ConvBackend.Mkldnn), (b, i, kernel, stride)
        assert not _onednn(S, Problem(b, i, 4, 8, kind="float64"), 1)


@pytest.mark.slow
def test_calibrating_measures_every_kind_of_rate(monkeypatch):
    """Each step runs once, whatever it takes."""

    def once(steps, rounds, lasts, device):
        assert device.type == "cpu"
        for step in steps.values():
            step()
        return {name: 1e-3 * (1 + k) for k, name in enumerate(steps)}

    said = []
    monkeypatch.setattr(calibrate, "take_turns", once)
    monkeypatch.setattr(calibrate, "ROUNDS", 1)
    state = torch.random.get_rng_state()
    found = calibrate.measure(lambda share, text: said.append(share))
    assert said == sorted(said) and said[-1] == 1
    assert torch.equal(state, torch.random.get_rng_state())
    want = rates.DEFAULTS[1]
    assert found.curves.keys() == want.curves.keys()
    assert all(found.overhead(*rates.words(name)) for name in want.overheads)  # close ones are stored once


def test_a_call_is_priced_in_the_form_that_was_measured_or_a_plainer_one(calibrated):
    calibrated(
        lambda data: data["threads"]["1"]["overheads"].update({"fft back": 1.0, "fft a back": 2.0, "fft a": 4.0})
    )
    assert rates.price("fft", " a", " back", ()) == rates.price("fft", " a b", " back", ()) == 2.0
    assert rates.price("fft", " b", " back", ()) == 1.0 and rates.price("fft", " a b", "", ()) == 4.0
    assert rates.price("nothing", " a b", "", ()) == 0.0


def test_the_overhead_of_a_call_depends_on_the_form():
    words = {}
    for name, spec, x in (
        ("one", gcn(3, 4), (7, 3)),
        ("many", gcn(3, 4), (2, 7, 3)),
        ("parts", sage(3, 4), (7, 3)),
        ("bare", gin(), (7, 3)),
        ("heads", gat(3, 4), (7, 3)),
        ("terms", cheb(3, 4, k=3), (7, 3)),
    ):
        layer, signal = GConv(spec), torch.zeros(x)
        words[name] = plan_module.form(
            layer._basis(ring(), layer._call(signal)), spec.mixing, len(signal) if len(x) > 2 else 1
        )
    assert words.pop("one") == "" and all(word == f" {name}" for name, word in words.items())
    assert plan_module.form(GConv(conv2d(2, 2, 3)).at(Grid((4, 4))).S, conv2d(2, 2, 3).mixing) == " grid"


def test_groups_computed_one_by_one_are_priced_as_calls():
    spec = lambda groups: conv2d(12, 12, 3, groups=groups)  # noqa: E731
    for dtype, want in ((torch.float64, 11.0), (torch.float32, 0.0)):
        made = GConv(spec(12), dtype=dtype).plan(torch.zeros(2, 12, 8, 8, dtype=dtype))
        assert sum(work.amount for work in works(made, "native", "group") if work.size == 1) == want
        assert not sum(
            w.amount
            for w in works(GConv(spec(1), dtype=dtype).plan(torch.zeros(2, 12, 8, 8, dtype=dtype)), "native", "group")
        )
