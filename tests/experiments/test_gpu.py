"""Everything of `make gpu` but the device: parts, budgets, failures, and the packed data."""

import json
import os
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
import torch
from limits import fresh

from datasets import load_cifar10
from experiments.gpu import checks, pack, rungs
from experiments.gpu.run import main, perform
from experiments.gpu.units import PARTS, Mismatch, Options, Unit
from experiments.harness.machine import ROOT
from gconv.spec import operator

CPU = torch.device("cpu")
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
# not networkx, which torch itself needs
ABSENT = ("tyro", "pooch", "pygsp", "rich", "tabulate", "pandas", "skimage", "sklearn", "joblib")


@pytest.fixture
def options(tmp_path):
    return Options("tests", tmp_path / "out", CPU, seconds=500.0, tiny=True)


def rows(options):
    with open(options.out / f"{options.part}.jsonl") as file:
        return {row["name"]: row for row in map(json.loads, file)}


SOME = """
import sys
from functools import partial
from pathlib import Path
import torch
from experiments.gpu import checks, speed
from experiments.gpu.run import perform
from experiments.gpu.units import Options, Unit
from gconv.spec import operator

options = Options("tests", Path(sys.argv[1]), torch.device("cpu"), seconds=500.0, tiny=True)
units = [*checks.units(options), *speed.units(options)]
chosen = [Unit("gat", partial(checks.operators, operator("gat").samples()[:1], torch.device("cpu")))]
chosen += [next(u for u in units if u.name.startswith(name)) for name in sys.argv[2:]]
assert perform(chosen, options)
"""


@pytest.mark.slow
def test_checks_and_timings_make_rows(options):
    """In a process of its own: it sets flags of torch.backends, which torch's testing package makes read-only."""
    wanted = ("analysis.norm", "gcn layer", "S X", "convolution 1x1, bfloat16", "gcn training step, 120")
    done = fresh(SOME, str(options.out), *wanted)
    assert done.returncode == 0, done.stderr
    machine, gat, norm, layer, product, convolution, training, missed = rows(options).values()
    assert machine["device"] == "cpu" and missed["units"] == [] and gat["metrics"]["samples"] == 1
    assert 0 < gat["metrics"]["float32"] < checks.TOL[torch.float32] and norm["metrics"]["float64"] == 0
    assert {"gconv: ms", "PyG edge_index: ms", "PyG CSR cached: MiB"} <= layer["metrics"].keys()
    assert all(side["metrics"]["gap"] <= 3e-2 for side in (layer, product, convolution, training))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", PARTS)
def test_a_rehearsal_needs_no_package_that_a_bare_machine_lacks(part, tmp_path):
    lacking = f"import sys; sys.modules |= dict.fromkeys({ABSENT}); from experiments.gpu.run import main; main()"
    command = [sys.executable, "-c", lacking, "--part", part, "--out", str(tmp_path), "--device", "cpu", "--tiny"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env, timeout=500)
    assert done.returncode == 0, done.stderr
    assert "0 failed; not reached in 225 s: nothing" in done.stdout and len(list(tmp_path.iterdir())) == 1


def test_no_package_that_a_bare_machine_lacks_is_imported():
    lacking = (
        f"import sys; sys.modules |= dict.fromkeys({ABSENT}); import experiments.gpu.checks, experiments.gpu.speed"
    )
    done = fresh(lacking + ", experiments.gpu.rungs")
    assert done.returncode == 0, done.stderr


def test_rungs_train(options):
    first = next(iter(rungs.units(options)))
    assert perform([first], options)
    row = rows(options)[first.name]["metrics"]
    assert row["config"]["rung"] == "9" and 0 <= row["test_accuracy"] <= 1 and row["data"]["label"] == "random images"


def test_what_differs_or_breaks_is_told_and_the_rest_still_runs(options, capsys):
    def differs():
        checks.gap("value", torch.ones(2), torch.tensor([1.0, 1.1]), 1e-3)

    units = [Unit("differs", differs), Unit("breaks", lambda: 1 / 0), Unit("works", lambda: {"value": 1.0})]
    assert not perform(units, options)
    found = rows(options)
    assert found["differs"]["failed"] == "value: off by 0.091 of the largest number, allowed is 0.001"
    assert "ZeroDivisionError" in found["breaks"]["failed"] and found["works"]["metrics"] == {"value": 1.0}
    assert "2 failed" in capsys.readouterr().out


def test_a_wrong_operator_is_a_mismatch(monkeypatch):
    moved = checks.moved

    def wrong(case, device, dtype):
        case = moved(case, device, dtype)
        with torch.no_grad():
            case.layer.weight[0] += 0.01
        return case

    monkeypatch.setattr(checks, "moved", wrong)
    with pytest.raises(Mismatch, match=r"gcn.*value: off by"):
        checks.operators(operator("gcn").samples()[:1], CPU)


def test_time_that_runs_out_stops_the_unit_under_way(tmp_path, capsys):
    options = Options("speed", tmp_path, CPU, seconds=0.3)

    def swallowing():
        try:
            time.sleep(60)
        except BaseException as error:  # as a compiler does
            raise RuntimeError("within a compiler") from error

    units = [Unit("slow", swallowing, 0.0), Unit("late", lambda: {}, 0.1)]
    assert perform(units, options) and rows(options)["not reached"]["units"] == ["slow", "late"]
    assert "not reached in 0 s: slow, late" in capsys.readouterr().out


@pytest.mark.parametrize(
    "given, said",
    [
        (["--device", "nowhere"], "cannot use device 'nowhere'"),
        (["--device", "cpu", "--data", "none.npz"], "there is no file none.npz"),
        (["--device", "cpu", "--seconds", "0"], "--seconds must be positive"),
        pytest.param(
            [], "cannot use device 'cuda'", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA")
        ),
    ],
)
def test_a_wrong_command_line_is_one_sentence(given, said, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--part", "tests", "--out", str(tmp_path / "out"), *given])
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_outputs_that_cannot_be_written_are_named_before_the_work(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(pack, "pack", lambda *_: pytest.fail("the work began"))
    for call, said in (
        (partial(main, ["--part", "tests", "--device", "cpu", "--out", str(tmp_path / "file")]), "--out"),
        (partial(pack.main, [str(tmp_path / "file" / "x.npz")]), "file is not a folder"),
        (partial(pack.main, [str(tmp_path)]), "is a folder; give the name of a file"),
    ):
        with pytest.raises(SystemExit, match="2"):
            call()
        assert said in capsys.readouterr().err.splitlines()[-1]


def test_packed_images_are_the_same_to_the_bit():
    images = np.random.default_rng(0).integers(0, 256, (200, 3, 32, 32), dtype=np.uint8)
    assert np.array_equal(pack.decode(*pack.encode(images)), images)


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_packed_data_set_is_small_and_the_same(tmp_path):
    assert pack.pack(tmp_path / "cifar10.npz") < 50 << 20
    assert load_cifar10(pack.unpack(tmp_path / "cifar10.npz", tmp_path)).content_hash == load_cifar10().content_hash
    damaged = dict(np.load(tmp_path / "cifar10.npz")) | {"hash": np.array("0")}
    np.savez(tmp_path / "other.npz", **damaged)
    with pytest.raises(ValueError, match="unpacks to other images"):
        pack.unpack(tmp_path / "other.npz", tmp_path / "other")
