"""The two checks of the engine as a whole: every lowering computes the same, and gconv costs no more than it should."""

import json
import time

import numpy as np
import pytest
import torch
from limits import fresh

import gconv.plan
from experiments.conformance import equivalence
from experiments.harness import measure
from experiments.speed import overhead
from experiments.speed.overhead import Case, Config, Sides
from gconv import GConv, Graph
from gconv.call import Call
from gconv.kernels.sparse import CSR
from gconv.lowering import LOWERINGS
from gconv.lowering.base import Cost, Lowering
from gconv.lowering.dense import run as dense
from gconv.operators import gcn

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def rows(tmp_path):
    return lambda name: [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]


# -- equivalence ---------------------------------------------------------------------------------------------------


def wrong_value(S, call):
    return dense(S, call) * (1 + 1e-8)


def wrong_input_gradient(S, call):
    return dense(S, call.at(call.x * 1.001 - (0.001 * call.x).detach()))


def wrong_weight_gradient(S, call):
    W = None if call.W is None else call.W * 1.001 - (0.001 * call.W).detach()
    return dense(S, Call(call.x, call.mixing, W, call.bias))


def not_a_number(S, call):
    return dense(S, call) * torch.nan


@pytest.fixture
def broken(monkeypatch):
    """Admit a lowering that is broken on purpose."""

    def admit(run):
        option = Lowering("broken", run, lambda S, mixing: None, lambda S, mixing, p: Cost(1e30, 1e30))
        monkeypatch.setattr(gconv.plan, "LOWERINGS", (*LOWERINGS, option))
        gconv.plan._PLANS.clear()
        equivalence.living.cache_clear()

    yield admit
    gconv.plan._PLANS.clear()
    equivalence.living.cache_clear()


def test_all_lowerings_of_an_operator_are_equal_and_their_rows_complete(tmp_path, rows, capsys):
    equivalence.main(["--only", "monet", "--results", str(tmp_path / "rows.jsonl")])
    found = rows("rows.jsonl")
    names = {(r["config"]["lowering"], r["config"]["dtype"]) for r in found}
    assert names == {(a, b) for a in ("dense", "sparse:aggregate", "sparse:transform") for b in ("float64", "float32")}
    for row in found:
        m, dtype = row["metrics"], row["config"]["dtype"]
        errors = [m[f"{kind}_error"] for kind in equivalence.KINDS]
        assert m["max_error"] == max(errors) <= equivalence.BOUND[dtype] and m["samples"] == 2
        assert row["lowering"] == [row["config"]["lowering"]] and row["data"] == equivalence.source()._asdict()
        assert dtype == "float64" or min(errors) > 0  # all four are measured
    assert "float64: largest error" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("run", "kind"),
    [(wrong_value, "value"), (wrong_input_gradient, "input_gradient"), (wrong_weight_gradient, "weight_gradient")],
)
def test_a_broken_lowering_is_caught(run, kind, broken, tmp_path, rows):
    """Negative control."""
    broken(run)
    with pytest.raises(SystemExit, match="more than rounding:\ngcn broken float64 0"):
        equivalence.main(["--only", "gcn", "--results", str(tmp_path / "rows.jsonl")])
    for row in rows("rows.jsonl"):
        large = {k for k in equivalence.KINDS if row["metrics"][f"{k}_error"] > equivalence.BOUND["float64"]}
        if row["config"]["dtype"] == "float64":
            assert (kind in large) == (row["config"]["lowering"] == "broken")


def test_numbers_that_are_not_finite_are_a_failed_run(broken, tmp_path):
    broken(not_a_number)
    with pytest.raises(SystemExit, match="2 of 8 runs failed"):
        equivalence.main(["--only", "gcn", "--results", str(tmp_path / "rows.jsonl")])


def test_rows_of_another_source_are_replaced_and_those_of_this_one_kept(tmp_path, rows, monkeypatch, capsys):
    path = tmp_path / "rows.jsonl"
    arguments = ["--only", "max_pool1d", "--results", str(path)]
    monkeypatch.setattr(equivalence, "source", lambda: equivalence.common.Data("gconv's source", "before"))
    equivalence.main(arguments)
    monkeypatch.setattr(equivalence, "source", lambda: equivalence.common.Data("gconv's source", "now"))
    equivalence.main(arguments)
    once = rows("rows.jsonl")
    assert {row["data"]["hash"] for row in once} == {"now"} and len(once) == 8
    equivalence.main(arguments)
    assert rows("rows.jsonl") == once and "8 of 8 runs are in" in capsys.readouterr().err


def test_an_unknown_operator_is_one_error(tmp_path):
    with pytest.raises(SystemExit, match="error: There is no operator named 'gnc'; did you mean 'sgc'"):
        equivalence.main(["--only", "gnc", "--results", str(tmp_path / "rows.jsonl")])


# -- overhead ------------------------------------------------------------------------------------------------------


def test_small_comparisons_run_and_their_rows_are_complete(tmp_path, rows, capsys, monkeypatch):
    monkeypatch.setattr(measure, "LASTS", 1e-3)
    arguments = ["--pairs", "2", "--results", str(tmp_path / "rows.jsonl")]
    overhead.main(["--only", "call", *arguments])
    found = rows("rows.jsonl")
    assert len(found) == 6
    for row in found:
        m = row["metrics"]
        assert 0 < m["ratio_low"] <= m["ratio"] <= m["ratio_high"] and m["gap"] <= 1e-5
        assert m["bare_min_ms"] <= m["bare_ms"] and m["threads"] == 1
    assert {row["lowering"][0].split(":")[0] for row in found} == {"native", "sparse"}
    assert capsys.readouterr().out.count("ms gconv") == 6


def test_sides_of_every_kind_agree():
    torch.manual_seed(0)
    for last in (False, True):
        case = Case("conv", "conv", 1, 0, (3, 4), 5, 2, last, True)
        assert overhead.control(case, overhead.conv_sides(case)) < 1e-5
    for peer in ("edge_index", "CSR"):
        case = Case("gcn", "gcn", 1, 0, (6, 3), 50, edges=200, peer=peer)
        assert overhead.control(case, overhead.gcn_sides(case)) < 1e-5


def test_sides_that_differ_are_not_timed():
    """Negative control."""
    case = Case("gcn", "gcn", 1, 0)
    for want in (torch.tensor([1.001, 2.0]), torch.tensor([torch.nan, 2.0])):
        sides = Sides(id, id, lambda want=want: iter([("value", torch.tensor([1.0, 2.0]), want)]), [])  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="gcn: value differs by"):
            overhead.control(case, sides)


def test_turns_measure_what_a_call_takes():
    """Negative control: a side that does three times the work is seen as three times slower."""

    def work(times):
        return lambda: [sum(range(20_000)) for _ in range(times)]

    bare, ours = measure.take_turns({"bare": work(1), "ours": work(3)}, 9, time.process_time).values()
    assert len(bare) == len(ours) == 9 and 2 < np.median(ours / bare) < 4


ALLOCATES = """
import json
import torch
from experiments.speed import overhead

class Step:
    def __init__(self, case, side):
        self.side = side

    def step(self):
        torch.empty((200 if self.side == "bare" else 4) << 20, dtype=torch.uint8).fill_(1)

overhead.Training = Step
case = overhead.Case("gcn", "gcn", 1, 0)
print(json.dumps([overhead.peak(case, "bare")["peak_mb"], overhead.peak(case, "ours")["step_peak_mb"]]))
"""


def test_peak_memory_sees_what_a_step_allocates():
    """Negative control: 200 MiB held for a moment, in a process of its own, as it is measured for the table."""
    done = fresh(ALLOCATES)
    assert not done.returncode, done.stderr
    bare, ours = json.loads(done.stdout)
    assert 190 < bare < 300 and ours < 60, (bare, ours)


def test_training_steps_reuse_the_transpose(monkeypatch):
    """What is derived from a graph is built in the first step, and not again."""
    built = []
    build = CSR.build.__func__
    monkeypatch.setattr(CSR, "build", classmethod(lambda cls, *a: built.append(a) or build(cls, *a)))
    graph = Graph(measure.power_law(60, 240, 0))
    first, second = GConv(gcn(4, 8)), GConv(gcn(8, 2))
    x = torch.randn(60, 4)
    counts = []
    for _ in range(3):
        second(first(x, graph).relu(), graph).sum().backward()
        counts.append(len(built))
    assert counts == [1, 1, 1]
    structure = GConv(gcn(4, 8)).at(graph).S
    assert structure.symmetric and structure.pattern is first.at(graph).S.pattern


def test_random_graph_is_simple_and_symmetric():
    index = measure.power_law(200, 1000, 1)
    pairs = set(map(tuple, index.T.tolist()))
    assert len(pairs) == 1000 and all((b, a) in pairs and a != b for a, b in pairs)
    assert torch.equal(index, measure.power_law(200, 1000, 1))
    assert not torch.equal(index, measure.power_law(200, 1000, 2))


def test_cases_are_named_apart_and_bad_ones_refused():
    names = [case.case for case in overhead.cases(Config())]
    assert len(set(names)) == len(names) == 32
    for bad in ({"pairs": -1}, {"nodes": 1}, {"edges": 0}, {"nodes": 100, "edges": 5000}, {"threads": 0}):
        with pytest.raises(ValueError, match=r"pairs must not be negative|the graph needs two"):
            Config(**bad)
    with pytest.raises(SystemExit, match="leave --jobs at 1"):
        overhead.main(["--jobs", "2"])
