"""The machinery of experiments.grids, on tiny sizes."""

import json
from dataclasses import replace

import pytest
import torch

from experiments import tables
from experiments.grids import kernels as grids
from experiments.grids import summary as grids_summary
from experiments.grids.kernels import GOALS, KERNELS, OURS, PEER, Config, cases
from experiments.harness import measure, render

QUICK = Config(quick=True)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setattr(measure, "LASTS", 1e-4)
    with measure.threads(1):
        yield


def of(kind, **config):
    return [case for case in cases(replace(QUICK, only=kind, **config)) if case.backward]


@pytest.mark.parametrize("kind", ["depthwise", "conv", "twin", "chebyshev"])
def test_all_sides_agree(kind):
    for case in of(kind):
        made = {name: make() for name, make in grids.sides(case).items()}
        assert next(iter(made)) == OURS and len(made) > 1
        assert grids.control(case, made) <= grids.TOL
        forward = replace(case, backward=False)
        assert grids.control(forward, {name: make() for name, make in grids.sides(forward).items()}) <= grids.TOL


@pytest.mark.parametrize("number", range(4))
def test_a_broken_side_is_not_timed(number):
    """Negative control: the value, or a gradient, of one side is off by one in a hundred."""
    (case,) = of("twin")
    made = {name: make() for name, make in grids.sides(case).items()}
    right = made[PEER]
    wrong = lambda found: [t * 1.01 if n == number else t for n, t in enumerate(right.alike(found))]  # noqa: E731
    made[PEER] = right._replace(alike=wrong)
    what = ("value", "gradient in weight", "gradient in bias", "gradient in x")[number]
    with pytest.raises(ValueError, match=f"{PEER}: {what} differs by"):
        grids.control(case, made)


def test_the_cases_are_those_of_the_goals():
    found = cases(Config())
    assert len({case.case for case in found}) == len(found) == 2 * (len(KERNELS) + 5)
    goals = {(case.kind, case.kernel): case.goal for case in found if case.backward}
    assert goals[("depthwise", 15)] == 4 and goals[("depthwise", 31)] == 15 and goals[("chebyshev", 3)] == 10
    assert all(goals[name] == goal for name, goal in GOALS.items()) and min(goals.values()) == pytest.approx(1 / 3)
    assert not any(case.goal for case in found if not case.backward)
    assert {(case.side, case.batch, case.i) for case in found if case.kind == "depthwise"} == {(64, 8, 64)}
    assert all("2 threads" in case.case for case in cases(Config(threads=2)))
    with pytest.raises(ValueError, match="at least 1"):
        Config(rounds=0)


def test_a_run_leaves_rows_that_make_tables_and_figures(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(measure, "peak_of_a_process", lambda *arguments: {"peak_mb": 1.0, "step_peak_mb": 1.0})
    arguments = ["--quick", "--rounds", "3", "--results", str(tmp_path / "grids.jsonl")]
    grids.main(arguments)
    assert "times as fast" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "grids.jsonl").read_text().splitlines()]
    assert len(rows) == len(cases(QUICK))
    for row in rows:
        m = row["metrics"]
        assert m["faster_low"] <= m["faster"] <= m["faster_high"] and m["gap"] <= grids.TOL and m["threads"] == 1
        assert m["verdict"] in (("met", "missed") if row["config"]["backward"] else ("-",))
        assert ("gconv_by_fft_ms" in m) == (row["config"]["kind"] == "depthwise") and m["lowering"] in row["lowering"]
    found = {table.name: table for table in tables.TABLES}
    text = render.render(found["grids"], rows)
    assert text.count("\n| ") == len(rows) + 1 and text.count("times as fast as torch in the same layout") == 4
    assert render.render(found["grids_memory"], rows).count("\n| ") == len(rows) // 2 + 1
    for figure in tables.FIGURES:
        if figure.experiment == "grids":
            render.paint(figure, rows, tmp_path / f"{figure.name}.png")
    assert len(list(tmp_path.glob("*.png"))) == 2 and grids_summary.remarks([]) == []
    grids.main(arguments)
    assert len((tmp_path / "grids.jsonl").read_text().splitlines()) == len(rows)


@pytest.mark.slow
def test_peak_memory_of_a_side():
    (case,) = of("chebyshev")
    found = measure.peak_of_a_process("experiments.grids", "PyG", json.dumps(grids.asdict(case)))
    assert set(found) == {"peak_mb", "step_peak_mb"}


def test_gradients_that_training_asks_for():
    """Of an image's pixels none, of features further in, those too."""
    first, second = of("conv")[0], of("conv")[1]
    for case, count in ((replace(first, i=3), 2), (second, 3)):
        side = grids.sides(case)[OURS]()
        assert len(side.leaves) == count and len(grids.step_of(case, side)()) == count + 1
        with torch.no_grad():
            assert not grids.step_of(replace(case, backward=False), side)()[0].requires_grad
