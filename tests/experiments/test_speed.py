"""The machinery of experiments.speed and experiments.speed.whole_models, on tiny sizes."""

import json
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from experiments import tables
from experiments.harness import common, measure, render
from experiments.speed import layers as speed
from experiments.speed import memory as speed_memory
from experiments.speed import profiles, whole_models
from experiments.speed import sides as speed_sides
from experiments.speed import summary as speed_summary
from experiments.speed.cases import COMPILED, FORMS, FULL, LAYERS, QUICK, Case, cases


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setattr(measure, "LASTS", 1e-4)
    with measure.threads(1):
        yield


def of(kind, sizes=QUICK):
    return [case for case in cases(sizes, threads=1) if case.kind == kind]


@pytest.mark.parametrize("kind", ["spmm", "layer", "training", "call", "filter"])
def test_all_sides_agree(kind):
    found = of(kind)
    for case in found[:6] if kind == "training" else found:
        made = {name: make() for name, make in speed_sides.sides(case).items()}
        assert next(iter(made)) == "gconv" and len(made) > 1
        assert speed.control(case, made) <= speed.TOL.get(kind, 1e-4)


@pytest.mark.parametrize("what", ["value", "gradient in x", "gradient in lin.weight"])
def test_a_broken_side_is_not_timed(what):
    """Negative control: one number of one side is off by one in a hundred."""
    case = next(case for case in of("layer") if case.op == "gcn")
    made = {name: make() for name, make in speed_sides.sides(case).items()}
    right = made["PyG CSR cached"]

    def wrong():
        found = right.numbers()
        return found | {what: found[what] * 1.01}

    made["PyG CSR cached"] = right._replace(numbers=wrong)
    with pytest.raises(ValueError, match=f"PyG CSR cached: {what} differs by"):
        speed.control(case, made)


def test_sides_without_the_same_numbers_are_refused():
    case = of("spmm")[0]
    made = {name: make() for name, make in speed_sides.sides(case).items()}
    made["scipy"] = made["scipy"]._replace(numbers=dict)
    with pytest.raises(ValueError, match="scipy has"):
        speed.control(case, made)


def test_the_cases_are_those_of_the_goals():
    names = [case.case for case in cases(FULL)]
    assert len(names) == len(set(names)) == len(cases(QUICK)) + 10
    for group, goal, many in (
        ("layers", 4, 6),
        ("training", 4, 12),
        ("call", 1.3, 12),
        ("spmm", 10, 4),
        ("signals", 5, 2),
    ):
        found = [case for case in cases(FULL) if case.group == group]
        assert len(found) == many and {case.goal for case in found} == {goal}
    assert {case.memory_goal for case in of("layer", FULL)} == {0.2} and set(FORMS) == set(LAYERS)
    assert max(case.edges for case in of("edges", FULL)) == 10**7


def test_the_peer_is_the_fastest_or_the_named_one():
    ours, slow, fast = np.array([1.0, 2.0, 1.0]), np.array([9.0, 18.0, 9.0]), np.array([4.0, 8.0, 3.0])
    times = {"gconv": ours, "gconv on edge_index": ours / 9, "slow": slow, "fast": fast}
    found = speed.compared(times)
    assert (found["peer"], found["faster"], found["rounds"]) == ("fast", 4.0, 3)
    assert speed.compared(times, "slow")["faster"] == 9.0 and found["faster_than"]["slow"]["faster"] == 9.0


def test_rounds_stay_within_their_budget():
    counts = {"a": 0, "b": 0}

    def step(name):
        counts[name] += 1
        torch.ones(10).sum()

    found = measure.take_turns({n: lambda n=n: step(n) for n in counts}, 50, budget=1e-9)
    assert {len(times) for times in found.values()} == {measure.LEAST} and min(counts.values()) > measure.LEAST
    assert len(measure.take_turns({"a": lambda: step("a")}, 2, budget=1e-9)["a"]) == 2


def row(case, **metrics):
    config = {**asdict(case), "channels": list(case.channels)}
    ms = {"gconv_ms": 1.0, "peer_ms": 4.0, "faster": 4.0, "faster_low": 3.5, "faster_high": 4.5, "peer": "PyG"}
    metrics = {**ms, "goal": "3", "verdict": measure.verdict(4.0, case.goal), "kernels": "torch", **metrics}
    return {"experiment": "speed", "key": case.case, "config": config, "metrics": metrics, "hardware": {},
            "data": {"label": "random", "hash": "generated"}}  # fmt: skip


def test_exponents_and_means_of_known_rows():
    grown = [
        row(replace(of("edges")[0], case=f"{e}", edges=e), gconv_ms=e**1.2 / 1e4, peer_ms=e * 2.0)
        for e in (1000, 10_000, 1_000_000, 10_000_000)
    ]
    layers = [row(case, faster=f) for case, f in zip(of("layer"), (2, 8, 4, 4, 4, 4), strict=True)]
    said = "\n".join(speed_summary.remarks(grown + layers))
    assert "Geometric mean of the layers: 4.00 times faster; goal 6.5, missed." in said
    assert (
        "Time grows with edges^1.20 from 1000 to 10000000 edges; the peer's with edges^1.00; goal 1.05, missed" in said
    )
    assert "training" not in said and "memory" not in said
    assert speed_summary.remarks([]) == [] == speed_summary.memory_remarks([])


def test_goals_out_of_reach_are_named():
    shares = dict.fromkeys(("memory_share", "usual_share", "floor_share", "results_share"), 0.1)
    gcn, cheb, sage, *rest = of("layer")
    rows = [
        row(gcn, **shares | {"floor_share": 0.31, "results_share": 0.28}),
        row(cheb, **shares | {"floor_share": 0.21}),
    ]
    rows += [row(case, **shares) for case in (sage, *rest)]
    said = speed_summary.memory_remarks(rows)
    assert "Geometric mean of the layers' share of the fastest form's peak memory: 0.100." in said
    assert "Out of reach by the results alone, as a share of the fastest form: gcn (0.28)." in said
    assert "Out of reach with an own form of the graph, as a share of the fastest form: cheb (0.21)." in said
    assert not [line for line in speed_summary.memory_remarks(rows[2:]) if "Out of reach" in line]


def test_the_floor_is_below_what_a_step_holds():
    case = Case("layer", "layer", op="gcn", nodes=300, edges=1200, channels=(16, 8), threads=1)
    weights = 16 * 8 + 8
    results = 4 * (300 * 8 + 300 * 16 + 2 * weights)
    found = speed_memory.floor(case)
    assert found["results"] * speed_memory.MIB == results
    assert found["structure"] * speed_memory.MIB == 4 * (301 + 1200 + 300)
    y, grads = speed_sides.sides(case)["gconv"]().step()
    assert results == sum(t.nbytes for t in (y, *grads)) + 4 * weights
    forward = speed_memory.floor(replace(case, backward=False))["results"] * speed_memory.MIB
    assert forward == 4 * (300 * 8 + weights)


def test_tables_and_figures_are_made_of_rows(tmp_path):
    weighed = {"gconv_mb": 1.0, "peer_mb": 9.0, "usual_mb": 20.0, "gconv_step_mb": 0.5, "floor_mb": 0.4}
    weighed |= {"memory_share": 0.1, "usual_share": 0.05, "floor_share": 0.04, "results_share": 0.03}
    weighed |= {"memory_goal": "0.2", "memory_verdict": "met"}
    compared = [case for case in cases(QUICK) if case.compared]
    rows = [row(case, flops=1e6, bytes=1e5, gconv_forward_ms=0.5, **weighed) for case in compared]
    limits = next(case for case in cases(QUICK) if not case.compared)
    rows.append(row(limits) | {"metrics": {"copy_gb_s": 10.0, "mm_gflop_s": 100.0}})
    found = {table.name: table for table in tables.TABLES}
    text = render.render(found["speed"], rows)
    (line,) = [line for line in text.splitlines() if line.startswith("| gcn training step, 60 -> 8 -> 7, Cora's size")]
    assert [cell.strip() for cell in line.strip("|").split("|")][3:] == [
        "4.000",
        "3.500",
        "4.500",
        "-",
        "-",
        "PyG",
        "3",
        "met",
    ]
    assert "limits" not in text and "Geometric mean of the training: 4.00" in text
    assert "| 0.100" in render.render(found["speed_memory"], rows[:-1])
    for figure in tables.FIGURES:
        if figure.experiment in ("speed", "speed_memory"):
            render.paint(figure, rows, tmp_path / f"{figure.name}.png")
    assert len(list(tmp_path.iterdir())) == 6


def test_a_compiled_peer_counts_and_one_that_does_not_compile_is_named(monkeypatch):
    def refuse(mode, module):
        def fail(*arguments):
            raise IndexError("no such\nthing")

        return fail if mode == "max-autotune-no-cudagraphs" else module

    monkeypatch.setattr(speed_sides, "under", refuse)
    m = speed.run(next(case for case in of("layer") if case.op == "sage")).metrics
    assert m["refused"] == dict.fromkeys(
        [f"{form}, compiled max-autotune-no-cudagraphs" for form in FORMS["sage"]], "IndexError: no such"
    )
    assert m["compiled"] in [f"{form}, compiled default" for form in FORMS["sage"]]
    assert m["faster_than_compiled"] > 0 and m["over_floor_low"] <= m["over_floor"] and m["peer"] != "floor"
    times = {
        "gconv": np.ones(3),
        "floor": np.ones(3) / 2,
        "PyG": np.ones(3) * 3,
        "PyG, compiled default": np.ones(3) * 2,
    }
    found = speed.compared(times)
    assert (found["peer"], found["faster_than_compiled"], found["over_floor"]) == ("PyG, compiled default", 2.0, 2.0)


def test_the_floor_is_what_a_layer_multiplies(monkeypatch):
    """Matrix products are counted by torch's flop counter, sparse and sampled ones by their calls."""
    from torch.utils.flop_counter import FlopCounterMode

    from experiments.speed import floor

    calls = []
    for name in ("spmm_rows", "sddmm"):
        monkeypatch.setattr(floor, name, lambda *given, name=name, **named: calls.append(name))
    assert set(floor.PRODUCTS) == set(LAYERS)
    for case in of("layer"):
        n, i, o, need = case.nodes, case.channels[0], case.channels[-1], floor.PRODUCTS[case.op]
        step = floor.floor(case)
        calls.clear()
        with FlopCounterMode(display=False) as counter:
            step()
        assert counter.get_total_flops() == 3 * 2 * n * i * o * need.terms
        assert (calls.count("spmm_rows"), calls.count("sddmm")) == (need.sparse, need.sampled)


@pytest.mark.slow
def test_compiled_sides_agree():
    case = next(case for case in of("call") if case.op == "gcn" and case.backward)
    made, refused = speed.ready(case)
    assert {"PyG edge_index, compiled default", "PyG edge_index cached, compiled default"} <= set(made)
    assert all("CSR" in name for name in refused) and speed.control(case, made) <= 1e-4


def test_a_run_leaves_rows_and_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(speed, "MODES", ())
    arguments = ["--quick", "--only", "limits|one call, gcn", "--results", str(tmp_path / "rows.jsonl")]
    speed.main(arguments)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and "copy_gb_s" in rows[0]["metrics"]
    m = rows[1]["metrics"]
    assert set(m["ms"]) == {"gconv", "gconv on edge_index", *FORMS["gcn"]} and m["peer"] in FORMS["gcn"]
    assert m["faster_low"] <= m["faster"] <= m["faster_high"] and m["gap"] <= 1e-4 and m["threads"] == 1
    assert "times faster than PyG" in capsys.readouterr().out
    speed.main(arguments)
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 3
    stale = [json.dumps(row | {"code": "another"} if n < 2 else row) + "\n" for n, row in enumerate(rows)]
    (tmp_path / "rows.jsonl").write_text("".join(stale))
    speed.main([*arguments, "--rerun"])
    again = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert {row["key"] for row in again} == {row["key"] for row in rows} and len(again) == 3
    assert all(row["code"] == rows[0]["code"] for row in again)
    with pytest.raises(SystemExit, match="no case's name"):
        speed.main(["--quick", "--only", "nonsense"])


def test_the_remaining_time_counts_the_case_and_those_after_it(capsys):
    """Also if the sweep skips cases, or runs cases again that have rows."""
    todo = [Case(str(n), "spmm", budget=60) for n in range(4)]
    call = speed.announced(lambda case: case.case, todo)
    assert [call(todo[n]) for n in (1, 3)] == ["1", "3"]
    assert "1: about 6 minutes left" in capsys.readouterr().err
    assert [call(case) for case in todo] == ["0", "1", "2", "3"]


def test_official_timings_are_refused_on_a_busy_machine(monkeypatch):
    from experiments.harness.options import Options

    monkeypatch.setattr(measure, "in_use", lambda: 1.5)
    with pytest.raises(SystemExit, match=r"other processes use 1\.5 processors"):
        measure.timings(Options(official=True), "speed")
    assert measure.timings(Options(), "speed").path.parent.name == "runs"
    monkeypatch.setattr(measure, "in_use", lambda: 0.1)
    assert measure.timings(Options(official=True), "speed").path.parent.name == "results"


def test_processors_in_use_are_those_of_others():
    """A process that spins is seen from outside."""
    spinning = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        assert measure.in_use(0.5) > 0.05
    finally:
        spinning.kill()
        spinning.wait(timeout=60)


@pytest.mark.slow
def test_peak_memory_of_a_side():
    case = Case("layer", "layer", op="gcn", nodes=300, edges=1200, channels=(16, 16), threads=1)
    assert {"peak_mb", "step_peak_mb"} == set(speed_memory.peak("PyG edge_index", case))


def test_every_form_is_weighed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure, "peak_of_a_process", lambda module, side, given: {
        "peak_mb": 2.0 if side == "gconv" else 8.0 + 2 * ("edge_index" in side), "step_peak_mb": 1.0})  # fmt: skip
    path = tmp_path / "rows.jsonl"
    speed_memory.main(["--quick", "--only", "^(sage|appnp) layer", "--results", str(path)])
    sage, appnp = (json.loads(line)["metrics"] for line in path.read_text().splitlines())
    assert set(sage["mb"]) == {"gconv", *FORMS["sage"]} and sage["usual"] == "PyG edge_index"
    assert appnp["usual"] == "PyG edge_index cached" and appnp["usual_share"] == 0.2
    assert sage["memory_share"] == 2.0 / sage["mb"][sage["peer"]] and sage["memory_goal"] == "0.2"
    assert "floor" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no such case"):
        speed_memory.main(["--quick", "--only", "nonsense"])
    for wrong in (["--only", "("], ["--threads", "-1"], ["--jobs", "2"]):
        with pytest.raises(SystemExit) as stopped:
            speed_memory.main(["--quick", *wrong])
        assert stopped.value.code not in (0, None)


def test_the_peer_in_memory_is_the_fastest_that_is_weighed(tmp_path, monkeypatch):
    """A compiled variant may be the fastest of all, but is not weighed."""
    case = next(case for case in cases(QUICK) if case.op == "sage" and case.memory)
    names = [*speed_sides.sides(case)]
    ms = {"gconv": 1.0, "PyG edge_index": 5.0, "PyG CSR": 3.0, f"PyG CSR{COMPILED}default": 2.0}
    key = common.run_key(case, "speed", speed.data(case))
    line = {"key": key, "config": {}, "metrics": {"ms": {name: {"ms": t} for name, t in ms.items()}}}
    (tmp_path / "speed.jsonl").write_text(json.dumps(line) + "\n")
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    assert speed_memory.counts(case, names) == "PyG CSR"
    assert speed_memory.counts(replace(case, against="PyG edge_index"), names) == "PyG edge_index"


@pytest.mark.parametrize("model", [*whole_models.GRAPHS, "ConvNeXt"])
def test_converted_models_have_the_same_losses(model):
    case = whole_models.Case("m", model, "random graph", 60, 240, (12, 16, 3))
    if model == "ConvNeXt":
        case = replace(case, data="random images", channels=(3, 4, 5), images=(2, 16))
    made = whole_models.sides(case)
    assert len(made["after"].model.report().converted) >= 2
    losses, gap = whole_models.agreed(case, made["before"], made["after"])
    assert len(losses) == whole_models.STEPS and losses[-1] < losses[0] and gap <= whole_models.TOL


def test_models_that_differ_are_not_timed():
    """Negative control."""
    case = whole_models.Case("m", "GCN", "random graph", 60, 240, (12, 8, 3))
    made = whole_models.sides(case)
    with torch.no_grad():
        made["after"].model.conv1.lin.weight.mul_(1.05)
    with pytest.raises(ValueError, match="differs by"):
        whole_models.agreed(case, made["before"], made["after"])


def test_profiles_say_where_the_time_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(profiles, "LASTS", 0.05)
    path = tmp_path / "rows.jsonl"
    profiles.main(["--quick", "--only", "^gcn layer", "--results", str(path)])
    ours, peer = (json.loads(line)["metrics"] for line in path.read_text().splitlines())
    assert ours["side"] == "gconv" and peer["side"].startswith("PyG")
    for found in (ours, peer):
        shares = list(found["shares"].values())
        assert shares == sorted(shares, reverse=True) and 0.2 < sum(shares) <= 1
    with pytest.raises(SystemExit, match="no case has that name"):
        profiles.main(["--quick", "--only", "nothing of the kind", "--results", str(path)])
