"""Negative control of the random cases: a broken lowering is found, and the printed line repeats the finding."""

import json
import re
import subprocess
import sys
import time
import warnings

import pytest
import torch
from torch.utils.weak import WeakIdKeyDictionary

import gconv.plan
from gconv.call import Call
from gconv.kernels import composes
from gconv.lowering import Cost, Lowering, dense

ZEROS = torch.zeros(2, dtype=torch.long)
WAITS = "import time; print(flush=True); time.sleep(600)"


def halves_the_weight_s_gradient(S, call):
    W = call.W
    return dense.run(S, Call(call.x, call.mixing, W if W is None else (W + W.detach()) / 2, call.bias))


def drops_the_last_site(S, call):
    kept = torch.ones(call.x.shape[-2], 1, dtype=call.x.dtype)
    kept[-1:] = 0
    return dense.run(S, call.at(call.x * kept))


def keeps_its_first_weight(S, call, kept=WeakIdKeyDictionary()):  # noqa: B008
    W = call.W
    if W is not None:
        owner = W if W._base is None else W._base
        W = kept.setdefault(owner, W.detach().clone()) + (W - W.detach())
    return dense.run(S, Call(call.x, call.mixing, W, call.bias))


def doubles_where_portable(S, call):
    return dense.run(S, call.at(call.x * (1 + composes())))


class DoubledAgain(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g * (1 + torch.is_grad_enabled())


def doubles_derivatives_that_have_derivatives(S, call):
    return dense.run(S, call.at(DoubledAgain.apply(call.x)))


@pytest.fixture
def put(monkeypatch):
    """Puts a lowering made of a function in the place of all but dense."""

    def put(run):
        broken = Lowering("native", run, lambda S, mixing: None, lambda S, mixing, p: Cost(0, 0))
        monkeypatch.setattr(gconv.plan, "LOWERINGS", (broken, dense.DENSE))
        monkeypatch.setattr(gconv.plan, "_PLANS", {})

    threads, filters = torch.get_num_threads(), warnings.filters[:]
    yield put
    torch.set_num_threads(threads)
    warnings.filters[:] = filters


@pytest.mark.parametrize(
    "broken, what",
    [
        (drops_the_last_site, "lowering native: value"),
        (halves_the_weight_s_gradient, "lowering native: gradient in weight"),
        (keeps_its_first_weight, "after weights: value"),
        (doubles_where_portable, "after portable: value"),
        (doubles_derivatives_that_have_derivatives, "after again: gradient in x"),
    ],
)
def test_a_broken_lowering_is_found_and_the_line_repeats_it(broken, what, put, monkeypatch, tmp_path, capsys):
    from tests.fuzz.__main__ import one, work

    put(broken)
    work(1, 40, tmp_path)
    records = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    found = [record for record in records if re.search(f"{what}.*: off by", record.get("found", ""))]
    assert found, f"none of {len(records)} cases found it"
    assert one(found[0]["case"]) == 1 and capsys.readouterr().out == f"FOUND {found[0]['found']}\n"
    monkeypatch.undo()
    assert one(found[0]["case"]) == 0 and "agree with the reference" in capsys.readouterr().out


def test_what_rounding_explains_is_what_cancels_in_any_step():
    from tests.fuzz.check import Rounded

    def moved(f, dtype=torch.float32):
        with Rounded(dtype, seed=0):
            noisy = f()
        return float((noisy - f()).abs().max())

    x, eps = torch.tensor([3.0, 5.0], dtype=torch.float64), torch.finfo(torch.float32).eps
    w = x.clone().requires_grad_()

    def slope():  # of w / (sqrt(w) sqrt(w)) = 1, the difference of two terms of size 1 / w
        return torch.autograd.grad((w / (w.sqrt() * w.sqrt())).sum(), w)[0]

    assert eps / 10 < moved(lambda: (x + 1e3) - 1e3) / 1e3 < 10 * eps
    assert eps / 100 < moved(slope) < 10 * eps
    assert moved(lambda: x * 0) == 0 and moved(lambda: x.view(1, 2)) == 0, "zeros and views are exact"
    assert moved(lambda: (x == x).long() + (x > x).long()) == 0, "comparisons see unmoved numbers"
    with Rounded(torch.float32, seed=0):
        table = x.outer(x)
    assert torch.equal(table, table.T) and not torch.equal(table, x.outer(x)), "equal numbers move equally"
    assert moved(lambda: x + 1, torch.float16) > 1000 * moved(lambda: x + 1)


@pytest.mark.parametrize("largest", [lambda t: t.amax(0), lambda t: t.new_zeros(1).scatter_reduce(0, ZEROS, t, "amax")])
def test_infinite_numbers_and_maxima_move_to_no_nan(largest):
    from tests.fuzz.check import Rounded

    x = torch.tensor([3.0, 5.0], dtype=torch.float64, requires_grad=True)
    with Rounded(torch.bfloat16, seed=0):
        infinite = x.detach().div(0.0).neg().exp() + 1 / x.detach().div(0.0)
        (slope,) = torch.autograd.grad(largest(x * 3).sum(), x)
    assert torch.equal(infinite, torch.zeros(2, dtype=torch.float64))
    assert slope[0] == 0 and 2.9 < slope[1] < 3.1 and slope[1] != 3


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--minutes", "nan"], "--minutes must be positive and finite, not nan"),
        (["--minutes", "-1"], "--minutes must be positive and finite, not -1"),
        (["--cases", "0"], "--cases must be at least 1, not 0"),
        (["--jobs", "0"], "--jobs must be at least 1, not 0"),
        (["--seed", "-1"], "--seed must be at least 0, not -1"),
        (["--again", ""], "'' is none"),
        (["--again", "[1"], "'[1' is none"),
        (["--again", "{}"], "'{}' is none"),
    ],
)
def test_a_wrong_command_line_runs_no_case_and_is_not_a_success(argv, said, monkeypatch, capsys):
    from tests.fuzz import __main__ as fuzz

    monkeypatch.setattr(fuzz, "watch", lambda options: pytest.fail("it ran"))
    monkeypatch.setattr(sys, "argv", ["fuzz", *argv])
    with pytest.raises(SystemExit) as caught:
        fuzz.main()
    assert caught.value.code and said in f"{caught.value.code}{capsys.readouterr().err}"


@pytest.mark.parametrize(("code", "waited", "ends"), [("while 1: pass", 0, True), (WAITS, 0, False), (WAITS, 11, True)])
def test_a_case_hangs_by_the_time_it_works_not_by_that_of_a_busy_machine(code, waited, ends, monkeypatch, tmp_path):
    from tests.fuzz import __main__ as fuzz

    monkeypatch.setattr(fuzz, "HANGS", 0.3)
    child = object.__new__(fuzz.Child)
    child.path, child.errors = tmp_path, (tmp_path / "errors").open("w+")
    with child.errors, subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child.process:
        try:
            if code == WAITS:
                child.process.stdout.read(1)
            child.last = time.monotonic() - waited * fuzz.HANGS, child.worked()
            while (ended := child.end()) is None and ends:
                time.sleep(0.05)
        finally:
            child.kill()
    assert (ended is not None) == ends and (not ends or ended[0] == "hangs")
