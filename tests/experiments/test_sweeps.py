"""Sweeps: rows know their code, exact resume, budgets, tables by name, operators of one's own."""

import dataclasses
import json
import math
import textwrap
from dataclasses import dataclass, replace
from typing import get_args, get_type_hints

import pytest
import torch
from limits import fresh

import gconv
from datasets import DataUnavailable
from experiments import sweep as sweep_command
from experiments import verify
from experiments.citation import networks as citation
from experiments.harness import code as codes
from experiments.harness import fit, options, progress, render
from experiments.harness.code_changes import CHANGES, accept
from experiments.harness.experiment import Place
from experiments.harness.machine import ROOT, hardware
from experiments.harness.options import Launch, Outcome, SweepOptions
from experiments.harness.specs import SpecError, read_spec
from experiments.harness.store import Checkpoint, Results
from experiments.harness.sweeps import sweep
from experiments.images import cifar10_cnn, ladder, superpixels
from experiments.translation import train
from gconv.operators import gcn

SMOKE = {**ladder.EXPERIMENT.smoke, "limit": 16, "batch": 8}


@dataclass(frozen=True)
class Config:
    seed: int = 0


def run(config):
    return Outcome({"value": config.seed})


def slow(config):
    for epoch in range(20):
        progress.report(epoch / 20, f"epoch {epoch}")
        torch.ones(200, 200) @ torch.ones(200, 200)
    raise RuntimeError("after the last epoch")


# -- rows know their code ------------------------------------------------------------------------------------------


def module(tmp_path, monkeypatch, text, name="user_operator"):
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(tmp_path)
    for cached in (codes._closure, codes._tree):
        cached.cache_clear()
    return codes.code(run, [name])["hash"]


def test_docstrings_comments_and_layout_are_no_code(tmp_path, monkeypatch):
    one = module(tmp_path, monkeypatch, "def f(x):\n    return x + 1\n")
    same = '"""A module."""\n\n\ndef f(x):\n    """Adds."""\n    return (x +\n        1)  # one\n'
    assert module(tmp_path, monkeypatch, same) == one
    assert module(tmp_path, monkeypatch, "def f(x):\n    return x + 2\n") != one


def test_the_code_of_a_row_is_that_of_its_operators_and_loops(monkeypatch):
    names = codes._closure("experiments.images.ladder")
    assert {"experiments.harness.fit", "experiments.images.pixels", "gconv.operators.selection"} <= names
    assert not names & {"experiments.harness.sweeps", "experiments.harness.render", "gconv.operators.gat"}
    before = codes.code(run)
    monkeypatch.setattr(gconv, "NUMERICS", gconv.NUMERICS + 1)
    assert codes.code(run) != before


def test_rows_of_other_code_are_reported_and_run_again_on_demand(tmp_path, capfd):
    results = Results(tmp_path / "rows.jsonl")

    def go(**options):
        how = SweepOptions(results=results.path, **options)
        return sweep([Config(0), Config(1)], run, how.open("toy"), experiment="toy"), capfd.readouterr().err

    go()
    assert "--rerun" not in go()[1], "the same code is no news"
    old, first = (json.loads(line) for line in results.path.read_text().splitlines())
    del old["code"]
    first["code"]["numerics"] = 0
    results.path.write_text("".join(json.dumps(row) + "\n" for row in (old, first)))
    rows, said = go()
    assert "1 of them before rows recorded their code and 1 of them with other code; --rerun" in " ".join(said.split())
    assert "code" not in rows[0] and rows[1]["code"]["numerics"] == 0, "kept until asked"
    rows, _ = go(rerun=True)
    assert [row["code"] for row in rows] == [codes.code(run)] * 2
    assert len(results.rows()) == 2, "in place of the old ones"


# -- launching -----------------------------------------------------------------------------------------------------


def test_a_budget_ends_a_sweep_and_the_same_command_goes_on(tmp_path):
    results = Results(tmp_path / "rows.jsonl")
    with pytest.raises(SystemExit, match=r"minutes are over and 1 of 1 runs of toy have no row yet"):
        sweep([Config()], run, results, experiment="toy", launch=Launch(budget=1e-9))
    assert len(sweep([Config()], run, results, experiment="toy", launch=Launch(budget=5.0))) == 1


@pytest.mark.parametrize("budget", [math.inf, 1e9])
def test_a_budget_of_any_length_is_waited_for(budget, tmp_path):
    results = Results(tmp_path / "rows.jsonl")
    rows = sweep([Config(3)], run, results, experiment="e", launch=Launch(isolate=True, budget=budget))
    assert rows[0]["metrics"] == {"value": 3}


def test_only_the_first_part_of_a_row_is_taken_for_a_half_written_one(tmp_path):
    path = tmp_path / "rows.jsonl"
    results = Results(path)
    sweep([Config()], run, results, experiment="e")
    whole = path.read_bytes()
    for rest in (whole[:50], bytes(512)):
        path.write_bytes(whole + rest)
        sweep([Config(), Config(1)], run, results, experiment="e")
        assert path.read_bytes().startswith(whole) and len(results.rows()) == 2
    path.write_text("the last line of a text of the user")
    with pytest.raises(SystemExit, match="line 1: not a result row"):
        sweep([Config()], run, results, experiment="e")
    assert path.read_text() == "the last line of a text of the user"


def test_rows_are_not_written_to_a_device():
    with pytest.raises(SystemExit, match="/dev/null: it is not a regular file"):
        sweep([Config()], run, Results("/dev/null"), experiment="e")


def test_rows_without_a_metric_of_the_report_are_one_sentence(tmp_path):
    path = tmp_path / "rows.jsonl"
    arguments = ["citation", "--smoke", "--model", "gcn", "--dataset", "Cora", "--seeds", "1", "--results", str(path)]
    sweep_command.main(arguments)
    path.write_text(path.read_text().replace('"test_accuracy"', '"accuracy"'))
    with pytest.raises(SystemExit, match="a row of citation has no 'test_accuracy'"):
        sweep_command.main(arguments)


def test_an_interrupt_while_the_processes_start_prints_no_traceback(tmp_path):
    """The server of the processes imports a module that sends the signal of Ctrl-C to all of them."""
    (tmp_path / "loud.py").write_text(
        "import os, signal, time\n"
        "from experiments.harness.options import Outcome\n"
        "if os.environ.get('LOUD') != str(os.getpid()):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "def run(config):\n"
        "    return Outcome({'value': 1})\n"
    )
    code = """
import os, sys
os.environ["LOUD"] = str(os.getpid())
sys.path.insert(0, sys.argv[1])
os.environ["PYTHONPATH"] = os.pathsep.join([sys.argv[1], os.environ.get("PYTHONPATH", "")])
from dataclasses import dataclass
from experiments.harness.options import Launch, Outcome, Options
from experiments.harness.store import Results
from experiments.harness.sweeps import sweep
import loud
rows = sweep([Options()], loud.run, Results(sys.argv[1] + "/rows.jsonl"), experiment="e", launch=Launch(isolate=True))
print(rows[0]["metrics"])
"""
    done = fresh(code, str(tmp_path))
    assert done.returncode == 0 and done.stdout == "{'value': 1}\n" and "Traceback" not in done.stderr, done.stderr


def test_progress_of_a_run_reaches_the_caller_from_another_process(tmp_path, capfd):
    with pytest.raises(SystemExit, match="1 of 1 runs failed"):
        sweep([Config()], slow, Results(tmp_path / "r.jsonl"), experiment="toy", launch=Launch(isolate=True, threads=1))
    said = capfd.readouterr().err
    assert "epoch 19" in said and "after the last epoch" in said


def test_options_that_exclude_each_other_are_refused():
    with pytest.raises(ValueError, match="no official rows"):
        SweepOptions(official=True, smoke=True)
    with pytest.raises(ValueError, match="--budget must be positive"):
        SweepOptions(budget=0.0)


def test_a_device_that_is_absent_is_refused_before_anything_runs(tmp_path):
    rows = ["--results", str(tmp_path / "rows.jsonl")]
    for command, argv in ((ladder.main, ["--smoke", *rows]), (cifar10_cnn.main, rows), (verify.main, [])):
        with pytest.raises(SystemExit, match=r"error: --device: torch .* cannot use device 'cuda:97'"):
            command([*argv, "--device", "cuda:97"])
    assert not list(tmp_path.iterdir())


def test_an_unknown_table_names_the_nearest(capsys):
    with pytest.raises(SystemExit, match="no table 'lader'; did you mean ladder"):
        sweep_command.main(["lader"])
    with pytest.raises(SystemExit, match="name a table first"):
        sweep_command.main(["--jobs", "2"])


@pytest.mark.sampled(4)
@pytest.mark.parametrize("table", sweep_command.TABLES)
def test_every_table_runs_on_toy_sizes(table, tmp_path):
    """In a process of its own: `external` measures the peak memory of its children, which begins with its own."""
    found = sweep_command.experiment(table)
    code = "import sys; from experiments import sweep; sweep.experiment(sys.argv[1]).main(sys.argv[2:])"
    options = ("--smoke", "--seeds", "1", "--device", "cpu", "--results", str(tmp_path / "rows.jsonl"))
    done = fresh(code, table, *options)
    assert done.returncode == 0, done.stderr
    rows = Results(tmp_path / "rows.jsonl").rows()
    wanted = found.expand(replace(found.config(), **found.smoke), 1)
    assert [found.read(row) for row in rows] == wanted
    assert done.stdout.strip() and all(row["code"]["hash"] for row in rows)
    assert set(found.measured) | set(found.tolerance) <= set().union(*(row["metrics"] for row in rows))


# -- operators of one's own ----------------------------------------------------------------------------------------


def test_a_spec_is_read_without_running_its_text():
    assert read_spec("gconv.operators:gcn")(2, 3) == gcn(2, 3)
    for text, says in {
        "cheb(k=3)": 'expected "module:factory',
        "gconv.operators:cheb(k=": 'expected "module:factory',
        "gconv.operators:cheb(k=3).x": 'expected "module:factory',
        "gconv.operators:cheb(k=len('x'))": "is not a literal",
        "gconv.operators:cheb(**{})": r"\*\* is not possible",
        "gconv.operators:chev(k=3)": "has no chev; did you mean cheb",
        "no.such.module:cheb": "there is no module no",
        "os:getcwd": "did you mean|takes",
        "gconv.operators:cheb": "k",
        "gconv.operators:cheb(2, 3, k=3)": "is given twice.*; leave out the channels, which the experiment supplies",
        "gconv.operators:cheb(k=3, k=4)": "'k' is given twice",
        "torch:empty": "returns Tensor, not an OperatorSpec",
        "no/such/file.py:cheb": "there is no file no/such/file.py",
    }.items():
        with pytest.raises(ValueError, match=says) as caught:
            read_spec(text)(2, 3)
        assert str(caught.value).startswith("--spec ") and "\n" not in str(caught.value), text


OWN = """
import sys
from gconv.operators import gcn, gat
def key(i, o): return {}["k"]
def zero(i, o): return i / 0
def deep(i, o): return deep(i, o)
def attribute(i, o): return None.x
def lines(i, o): raise ValueError("one" + chr(10) + "two")
def ends(i, o): sys.exit(3)
def wide(i, o): return gat(i, o, heads=4)
def swapped(i, o): return gcn(o, i)
def late(i, o): return gcn(i, o) if i == 1 else 1 / 0
"""


def test_whatever_a_factory_does_wrong_is_one_sentence(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)")
    for name, says in {
        "own.py:key": r"key raises KeyError: 'k'",
        "own.py:zero": "zero raises ZeroDivisionError: division by zero",
        "own.py:deep": "deep raises RecursionError",
        "own.py:attribute": "attribute raises AttributeError",
        "own.py:lines": ": one$",
        "own.py:ends": "ends raises SystemExit: 3",
        "own.py:wide": r"wide\(2, 3\) maps 2 channels to 12; expected 2 to 3",
        "own.py:swapped": r"swapped\(2, 3\) maps 3 channels to 2; expected 2 to 3",
        "leaves.py:any": "importing .* failed: SystemExit: 3",
    }.items():
        with pytest.raises(SpecError, match=says) as caught:
            read_spec(f"{tmp_path}/{name}")(2, 3)
        assert "\n" not in str(caught.value)


def test_an_operator_that_fails_in_a_run_ends_the_sweep_with_its_sentence(tmp_path, capsys):
    (tmp_path / "own.py").write_text(OWN)
    argv = ["--smoke", "--seeds", "3", "--results", str(tmp_path / "rows.jsonl"), "--spec", f"{tmp_path}/own.py:late"]
    with pytest.raises(SystemExit, match=r"^error: --spec .*late raises ZeroDivisionError: division by zero$"):
        ladder.main(argv)
    assert "Traceback" not in capsys.readouterr().err


def test_an_operator_of_ones_own_stands_in_the_table(tmp_path, capsys):
    argv = ["--smoke", "--seeds", "1", "--results", str(tmp_path / "rows.jsonl"), "--spec"]
    ladder.main([*argv, "gconv.operators:cheb(k=2)"])
    ladder.main([*argv, "gconv.operators:conv2d(3, padding=1)"])
    out = capsys.readouterr().out
    assert "cheb(k=2), width 8" in out and "conv2d(3, padding=1), width 8" in out
    with pytest.raises(SystemExit, match=r"error: --spec gconv\.operators:chebb: .* did you mean cheb"):
        ladder.main([*argv, "gconv.operators:chebb"])
    with pytest.raises(SystemExit, match="error: --compare 5: there is no such rung; there are all, 9, 6"):
        ladder.main([*argv, "gconv.operators:cheb(k=2)", "--compare", "5"])
    with pytest.raises(SystemExit, match="error: --compare goes with an operator of your own, --spec"):
        ladder.main([*argv[:-1], "--compare", "9"])


# -- the ladder ----------------------------------------------------------------------------------------------------


def small(**changes):
    return ladder.Config(**{**SMOKE, "rung": "3", **changes})


class Kill(Exception):
    pass


@pytest.mark.parametrize("table", ["superpixels", "translation", "detection", "studies", "pixel_operators", "anchor"])
def test_a_run_killed_after_any_checkpoint_goes_on_with_the_same_numbers(table, tmp_path, monkeypatch):
    found = sweep_command.experiment(table)
    config, *_ = found.expand(replace(found.config(), **{**found.smoke, "epochs": 2}), 1)
    whole = found.run(config, Place(device="cpu")).metrics
    save, kills = Checkpoint.save, 0

    def killing(self, *state):
        save(self, *state)
        raise Kill

    monkeypatch.setattr(Checkpoint, "save", killing)
    for module in (fit, superpixels, train):
        monkeypatch.setattr(module, "SAVED_EVERY", -1.0)
    while True:
        torch.manual_seed(kills)  # as in a new process
        try:
            resumed = found.run(config, Place(device="cpu", checkpoint=tmp_path / "run.pt")).metrics
            break
        except Kill:
            kills += 1
    assert kills >= 2
    assert {k: v for k, v in resumed.items() if k not in found.measured} == {
        k: v for k, v in whole.items() if k not in found.measured
    }


def test_every_experiment_with_checkpoints_is_killed_above_or_in_a_test_of_its_own():
    texts = {path.name: path.read_text() for path in (ROOT / "experiments").rglob("*.py") if path.name != "store.py"}
    assert {name for name, text in texts.items() if "Checkpoint(" in text} == {
        *("fit.py", "superpixels.py", "train.py", "bccd.py"),
        *("training.py", "data_parallel.py"),  # test_cifar10_networks, test_data_parallel
    }


def test_a_run_killed_anywhere_goes_on_with_the_same_numbers(tmp_path, monkeypatch):
    config = small(epochs=2)
    whole = ladder.run(config, Place()).metrics
    monkeypatch.setattr(fit, "SAVED_EVERY", 0.0)
    place, report, steps = Place(checkpoint=tmp_path / "run.pt"), fit.report, []

    def killing(done, text, whole):
        steps.append(done)
        if steps.count(done) == 1 and len(steps) % 2 == 0:
            raise Kill  # before this step is saved

    monkeypatch.setattr(fit, "report", killing)
    kills = 0
    while True:
        try:
            resumed = ladder.run(config, place).metrics
            break
        except Kill:
            kills += 1
    assert kills >= 2
    for name in set(whole) - {"seconds_per_epoch"}:
        assert resumed[name] == whole[name], name
    monkeypatch.setattr(fit, "report", report)


def test_a_rung_is_the_cnn_with_tied_kernels():
    for rung, labels in ladder.LABELS.items():
        tied, cnn = (ladder.network(small(rung=r)).double().eval() for r in (rung, "9"))
        state = {
            name: value[list(labels)] if value.ndim == 3 else value
            for (name, value) in zip(cnn.state_dict(), tied.state_dict().values(), strict=True)
        }
        cnn.load_state_dict(state)
        x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
        torch.testing.assert_close(tied(x), cnn(x))


def test_permuted_pixels_change_the_cnn_and_not_the_graph_network():
    orders = [torch.randperm(n) for n in (1024, 256, 64)]
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    shuffled = ladder.permuted(x, orders[0])
    graph, cnn = (ladder.network(small(rung=rung)).double().eval() for rung in ("3", "9"))
    torch.testing.assert_close(ladder.Relabelled(graph, orders).eval()(shuffled), graph(x))
    assert (cnn(shuffled) - cnn(x)).abs().max() > 1e-5
    assert (graph(shuffled) - graph(x)).abs().max() > 1e-5, "only with its graph renumbered"
    with pytest.raises(ValueError, match="no permuted twin"):
        ladder.Relabelled(cnn, orders)


@pytest.mark.parametrize("rung", ["p4", "p4m", "3", "9"])
def test_turned_images_have_the_same_logits_above_and_on_rings(rung):
    model = ladder.network(small(rung=rung)).double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    gap = (model(x.rot90(1, (2, 3))) - model(x)).abs().max()
    assert gap < 1e-10 if rung != "9" else gap > 1e-5


def test_the_plan_starts_with_seed_0_and_the_extremes():
    plan = ladder.expand(ladder.Config(), 3)
    third = len(plan) // 3
    assert [c.seed for c in plan] == [0] * third + [1] * third + [2] * third
    assert [c.rung for c in plan[:3]] == ["9", "1", "pointwise"]
    assert {ladder.name(c.__dict__) for c in plan} >= {"3, first", "3, not last", "p4m", "9, width 11"}
    narrow, box = (
        sum(p.numel() for p in ladder.network(c).parameters())
        for c in (ladder.Config(rung="9", width=11), ladder.Config(rung="1"))
    )
    assert abs(narrow / box - 1) < 0.05


def test_recipes_that_cannot_run_are_refused():
    for wrong in ({"epochs": 0}, {"lr": 0.0}, {"dataset": "mnist"}, {"width": 6, "rung": "p4"}, {"shift": -1}):
        with pytest.raises(ValueError):
            ladder.Config(**wrong)
    with pytest.raises(ValueError, match="goes without"):
        ladder.Config(spec="a:b", rung="3")


@pytest.mark.parametrize("table", sweep_command.TABLES)
def test_numbers_that_no_run_can_use_are_refused_before_the_data_are_loaded(table):
    """Negative counts, and rates that are negative or not finite, in every option of every experiment."""
    found = sweep_command.experiment(table)
    hints = get_type_hints(found.config)
    options.check(found.config(), 1)  # the control
    for field in dataclasses.fields(found.config):
        kinds = {hints[field.name], *get_args(hints[field.name])}
        wrong = [-1, -7] if int in kinds else [-1.0, math.nan, math.inf] if float in kinds else []
        wrong += [2**32] if field.name == "seed" else []
        for value in wrong[1:] if field.name == "trial" else wrong:  # -1: all trials
            with pytest.raises(ValueError):
                config = replace(found.config(), **{field.name: value})
                options.check(config, 1)
                found.expand(config, 1)


@pytest.mark.parametrize("table", ["finetune", "pretrained"])
def test_more_images_than_there_are_are_refused_before_training(table, tmp_path):
    found = sweep_command.experiment(table)
    with pytest.raises(SystemExit, match=r"^error: there are not 999 images of each class, only \d+$"):
        config = replace(found.config(), **{**found.smoke, "shots": 999})
        found.rows(config, SweepOptions(results=tmp_path / "rows.jsonl"))
    assert not list(tmp_path.iterdir())


def test_images_are_moved_whole():
    images = torch.arange(2 * 16, dtype=torch.uint8).view(2, 1, 4, 4)
    assert (fit.moved(images, torch.full((2, 2), 2), 2) == images).all()
    out = fit.moved(images, torch.tensor([[2, 2], [3, 2]]), 2)
    assert (out[0] == images[0]).all() and (out[1, :, :3] == images[1, :, 1:]).all()


# -- verify --------------------------------------------------------------------------------------------------------


EMBEDDED = ["--dataset", "embedded", "--model", "gcn", "--epochs", "2", "--seeds", "2"]
TABLE = render.Table("trial", "citation", "config.model", lambda row: {"accuracy": 1.0}, str, "A caption.", "a command")


@pytest.fixture
def committed(tmp_path):
    """Rows of one network, as if they were committed."""
    citation.main([*EMBEDDED, "--results", str(tmp_path / "citation.jsonl")])
    return tmp_path


def again(found, row, config):
    """In this process."""
    outcome = found.run(found.read(row), Place(device="cpu"))
    return {**row, "metrics": json.loads(json.dumps(outcome.metrics)), "hardware": hardware()}


@pytest.mark.parametrize("field", ["seconds", "hardware", "versions", "metrics", "config"])
def test_rows_that_cannot_be_repeated_are_one_sentence(field, committed, monkeypatch):
    monkeypatch.setattr(verify, "again", again)
    path = committed / "citation.jsonl"
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(first) | {field: "x"}), *rest]) + "\n")
    with pytest.raises(SystemExit, match=rf"citation.jsonl: the row with the key .* has no {field}; mend or delete"):
        verify.main(["--results", str(committed), "--table", "citation", "--rows", "1"])


def test_rows_are_run_again_and_are_the_same(committed, monkeypatch, capsys):
    monkeypatch.setattr(verify, "again", again)
    capsys.readouterr()
    verify.main(["--rows", "2", "--table", "citation", "--results", str(committed)])
    assert capsys.readouterr().out.count(": the same") == 2


def edited(committed, **changes):
    """Rows with other entries, "hardware.cpu" and the like; None: without this entry."""
    path = committed / "citation.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        for name, value in changes.items():
            section, _, field = name.partition("__")
            row[section][field] = row[section].get(field, 0) + value if section == "metrics" else value
            if value is None:
                del row[section][field]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--rows", "1", "--table", "citation", "--results", str(committed)]


ELSEWHERE = [
    {"hardware__cpu": "another"},
    {"hardware__family": "another"},
    {"hardware__instructions": "another"},
    {"hardware__family": None, "hardware__instructions": None},  # rows of earlier versions
]


@pytest.mark.parametrize(
    "changes",
    [{"metrics__val_loss": 1e-9}, {"config__width": 3}, *({**e, "metrics__val_loss": 0.1} for e in ELSEWHERE)],
)
def test_an_edited_row_is_found(changes, committed, monkeypatch):
    monkeypatch.setattr(verify, "again", again)
    with pytest.raises(SystemExit, match="1 of 1 rows differ"):
        verify.main(edited(committed, **changes))


@pytest.mark.parametrize("changes", ELSEWHERE)
def test_rows_of_another_processor_agree_within_the_tolerance(changes, committed, monkeypatch):
    monkeypatch.setattr(verify, "again", again)
    verify.main(edited(committed, metrics__val_loss=0.01, **changes))


def test_every_metric_that_may_differ_elsewhere_has_a_tolerance():
    """The others in the committed rows are integers, or exact by construction."""
    exact = {"network", "multiply_adds", "parameters", "frequency", "case", "least", "most", "uneven", "stays", "cut"}
    exact |= {f"{part}_signature{case}" for part in ("val", "test") for case in ("", "_lower")}
    for table in verify.TABLES:
        found = verify.experiment(table)
        for row in Results(verify.RESULTS / f"{found.name}.jsonl").rows():
            metrics = row["metrics"].keys() - set(found.measured) - found.tolerance.keys() - exact
            for name in metrics - verify.FURTHER.get(found.name, {}).keys():
                assert isinstance(row["metrics"][name], int | None), (table, name)


def test_rows_whose_data_are_not_there_are_passed_over(committed, monkeypatch, capsys):
    """Also if only the run finds it; any other failure counts as a difference."""

    def missing(config, place):
        raise DataUnavailable(f"The weights of seed {config.seed} are not there.\n  folder: none")

    def broken(config, place):
        raise RuntimeError("no reason")

    argv = ["--rows", "2", "--table", "citation", "--results", str(committed)]
    found = verify.experiment("citation")
    for run, says in ((missing, "error: no row was run again"), (broken, "error: 2 of 2 rows differ")):
        monkeypatch.setattr(verify, "experiment", lambda table, run=run: replace(found, run=run))
        monkeypatch.setattr(verify, "Launch", lambda threads, isolate: Launch(threads=threads))
        with pytest.raises(SystemExit, match=says):
            verify.main(argv)
        out = capsys.readouterr().out
        assert (out.count("passed over, The weights of seed") == 2) == (run is missing)


def test_rows_of_code_with_the_same_numbers_count_as_current(committed, monkeypatch, capfd):
    """Also across several changes, and in tables; rows of any other code do not."""
    found, path = verify.experiment("citation"), committed / "citation.jsonl"
    now = codes.code(found.run)
    of = {name: {"hash": name, "numerics": now["numerics"]} for name in "abcd"}
    argv = ["--rows", "2", "--table", "citation", "--results", str(committed), "--accept"]
    monkeypatch.setattr(verify, "again", lambda *given: {**again(*given), "code": now})

    def told(first, second):
        """What the sweep says about rows of these codes."""
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows = [row | {"code": code} for row, code in zip(rows, (first, second), strict=True)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        capfd.readouterr()
        citation.main([*EMBEDDED, "--results", str(path)])
        return " ".join(capfd.readouterr().err.split())

    with pytest.raises(SystemExit, match="--accept: every row was recorded with the present code"):
        verify.main(argv)
    assert "2 of them with other code" in told(of["a"], of["b"])
    verify.main(argv)
    assert "other code" not in told(of["a"], of["b"]) and "1 of them with other code" in told(now, of["c"])
    accept(committed, "citation", of["c"], of["a"], [])
    assert "other code" not in told(of["c"], of["b"]) and "1 of them with other code" in told(of["b"], of["d"])
    assert "2 of them with other code" in told(*2 * [{**of["a"], "numerics": 0}])
    told(of["b"], of["d"])
    rows = render.load(committed, "citation")
    assert rows[0]["recorded_with"] == of["b"] and rows[0]["code"] != rows[1]["code"] == of["d"]
    told(of["b"], of["c"])
    rows = render.load(committed, "citation")
    assert rows[0]["code"] == rows[1]["code"] and "several versions" in render.render(TABLE, rows)


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"hardware__family": "another"}, "within a tolerance only"), ({"metrics__val_loss": 1e-9}, "1 of 1 rows differ")],
)
def test_code_is_not_accepted_by_numbers_that_are_not_equal(changes, says, committed, monkeypatch):
    monkeypatch.setattr(verify, "again", lambda *given: {**again(*given), "code": {"hash": "new", "numerics": 0}})
    argv = edited(committed, code__hash="old", **changes)
    with pytest.raises(SystemExit, match=says):
        verify.main([*argv, "--accept"])
    assert not (committed / CHANGES).exists()


def test_verify_names_what_it_cannot_do(tmp_path):
    with pytest.raises(SystemExit, match=r"no row was run again: .* has none of any table"):
        verify.main(["--results", str(tmp_path)])
    with pytest.raises(SystemExit, match="no row was run again: none takes less than --budget"):
        verify.main(["--table", "ladder", "--budget", "0.0001"])
    (tmp_path / "file").write_text("")
    for name in ("absent", "file"):
        with pytest.raises(SystemExit, match=f"--results .*{name} must be a folder with rows"):
            verify.main(["--results", str(tmp_path / name)])
    with pytest.raises(SystemExit, match="no table 'citations'; did you mean citation"):
        verify.main(["--table", "citations"])
