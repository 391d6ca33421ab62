"""Where rows go, what of a results file is believed, and what an experiment says where it cannot run."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from experiments.citation import networks as citation
from experiments.conformance import libraries as conformance
from experiments.harness import common, machine, options
from experiments.harness.common import Options, Outcome, Results, ResultsError, sweep

ROOT = machine.ROOT


@dataclass(frozen=True)
class Config:
    """A toy."""

    seed: int = 0


def run(config):
    if config.seed == 13:
        raise ArithmeticError("unlucky")
    return Outcome({"value": config.seed})


@pytest.fixture
def places(monkeypatch, tmp_path):
    """The folders of the committed rows and of a user's own."""
    for name in ("RESULTS", "RUNS"):
        monkeypatch.setattr(options, name, tmp_path / name.lower())
    return options.RESULTS, options.RUNS


def toy(options, seeds=(0, 1)):
    return sweep([Config(s) for s in seeds], run, options.open("toy"), experiment="toy")


def test_committed_rows_change_only_with_official(places, capfd):
    results, runs = places
    toy(Options(official=True))
    committed = (results / "toy.jsonl").read_bytes()
    assert committed.count(b"\n") == 2 and not runs.exists()
    assert [row["metrics"]["value"] for row in toy(Options(), (0, 1, 2))] == [0, 1, 2]
    assert (results / "toy.jsonl").read_bytes() == committed
    assert [row["config"]["seed"] for row in Results(runs / "toy.jsonl").rows()] == [2], "only what is new is run"
    assert f"2 of 3 runs are in {results / 'toy.jsonl'} already" in capfd.readouterr().err
    toy(Options(results=runs / "other.jsonl"))
    assert len(Results(runs / "other.jsonl").rows()) == 2, "a file of one's own is on its own"


@pytest.mark.parametrize("order", [("new", "old"), ("old", "new")])
def test_rows_of_the_present_code_come_first_wherever_they_are(places, capfd, order):
    """A row of earlier code in one file does not hide that of the present code in the other."""
    (made,) = toy(Options(official=True), (0,))
    for folder, value in zip(places, order, strict=True):
        code = made["code"] if value == "new" else {**made["code"], "hash": "0"}
        folder.mkdir(exist_ok=True)
        (folder / "toy.jsonl").write_text(json.dumps({**made, "code": code, "metrics": {"value": value}}) + "\n")
    for rerun in (False, True):
        assert [row["metrics"]["value"] for row in toy(Options(rerun=rerun), (0,))] == ["new"]
        assert "other code" not in capfd.readouterr().err
    (places[order.index("new")] / "toy.jsonl").unlink()
    assert [row["metrics"]["value"] for row in toy(Options(), (0,))] == ["old"], "the control"
    assert "1 of them with other code" in " ".join(capfd.readouterr().err.split())


def test_every_experiment_opens_its_rows_through_the_options():
    """No experiment names the file of the committed rows for writing."""
    for path in (ROOT / "experiments").rglob("*.py"):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            appends = "Results(" in line and "RESULTS" in line and ".rows()" not in line
            assert not appends or path.name == "options.py", f"{path.name}:{number}: {line}"


def test_official_and_results_exclude_each_other():
    with pytest.raises(ValueError, match="goes without --results"):
        Options(official=True, results=Path("x.jsonl"))


@pytest.mark.parametrize(
    "line", ['{"key": []}', '{"key": null}', '{"key": {}}', '{"metrics": {}}', "[1]", "[" * 100_000]
)
def test_a_line_that_is_no_row_is_one_sentence(places, line):
    path = places[1] / "toy.jsonl"
    path.parent.mkdir()
    path.write_text(line + "\n")
    with pytest.raises(SystemExit, match=r"error: .*toy.jsonl, line 1: not a result row; mend or delete the line$"):
        toy(Options())
    with pytest.raises(ResultsError, match="line 1: not a result row"):
        Results(path).append({"key": "a"})
    assert path.read_text() == line + "\n"


def test_a_row_of_another_version_is_one_sentence(places):
    path = places[1] / "toy.jsonl"
    rows = toy(Options())
    del rows[0]["metrics"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SystemExit, match=r"has no metrics, so another version wrote it; delete the line"):
        toy(Options())


def test_appending_reads_only_what_is_new(tmp_path, monkeypatch):
    path, read = tmp_path / "rows.jsonl", []
    results = Results(path)
    parse = Results._parse
    monkeypatch.setattr(Results, "_parse", lambda self, text: (read.append(len(text)), parse(self, text))[1])
    for k in range(200):
        assert results.append({"key": str(k), "filling": "x" * 100})
    size = path.stat().st_size
    assert sum(read) < size / 10 and len(Results(path).rows()) == 200
    assert not results.append({"key": "7"}), "what this writer wrote is known"
    Results(path).append({"key": "by another"})
    assert not results.append({"key": "by another"}) and not Results(path).append({"key": "7"})
    with open(path, "ab") as file:
        file.write(b'{"key": "torn')
    assert results.append({"key": "next"}) and [row["key"] for row in Results(path).rows()][-2:] == [
        "by another",
        "next",
    ]
    path.write_text("")
    assert results.append({"key": "7"}), "a file that was cut is read anew"
    path.write_text(json.dumps({"key": "z" * 10_000}) + "\n")
    assert results.append({"key": "7"}) and not results.append({"key": "z" * 10_000}), "and so is another file"


def test_a_failed_sweep_names_a_file_only_where_it_is(places):
    with pytest.raises(SystemExit, match=r"^error: 1 of 1 runs failed$"):
        toy(Options(), (13,))
    with pytest.raises(SystemExit, match=r"1 of 2 runs failed; the others are in .*toy.jsonl$"):
        toy(Options(), (13, 1))


def test_a_stopped_sweep_names_a_file_only_where_it_is(places, capsys):
    def stop(config):
        if config.seed == 1:
            raise KeyboardInterrupt
        return run(config)

    for seeds, says in (((1,), "stopped: no run had finished"), ((0, 1), "stopped: finished runs are in")):
        with pytest.raises(SystemExit):
            sweep([Config(s) for s in seeds], stop, Options().open("toy"), experiment="toy")
        assert says in capsys.readouterr().err


def test_without_data_citation_says_so_in_one_message(places, monkeypatch, tmp_path):
    monkeypatch.setenv("GCONV_OFFLINE", "1")
    citation.load.cache_clear()
    with pytest.raises(SystemExit, match=r"^error: Cora is not there and could not be downloaded") as caught:
        citation.main(["--dataset", "Cora", "--data-root", str(tmp_path)])
    assert caught.value.__cause__ is None and not places[1].exists()


def test_the_figure_of_conformance_is_beside_its_rows(places, monkeypatch, tmp_path):
    from experiments.conformance import picture as conformance_picture

    drawn = []
    monkeypatch.setattr(conformance_picture, "draw", lambda rows, folder: drawn.append(folder) or folder)
    monkeypatch.setattr(conformance, "report", lambda rows: None)
    rows = [{"metrics": {"gap_to_rule": 0.0, "gap_to_gconv": 0.0}}]
    monkeypatch.setattr(common, "sweep", lambda *args, **kwargs: rows)
    for argv in (["--results", str(tmp_path / "else" / "rows.jsonl")], [], ["--official"], ["--figures", "here"]):
        conformance.main(argv)
    assert drawn == [tmp_path / "else", places[1], ROOT / "experiments" / "figures", Path("here")]


def test_the_commit_is_that_of_this_repository_whatever_the_environment_says(monkeypatch):
    machine.commit.cache_clear()
    want = machine.commit()
    machine.commit.cache_clear()
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.setenv(name, "/no/such/place")
    assert machine.commit() == want
    machine.commit.cache_clear()


@pytest.mark.slow
def test_titles_without_docstrings():
    """python -OO drops docstrings."""
    command = [sys.executable, "-OO", "-m", "experiments.by_hand", "--no-figures"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0 and "None" not in done.stdout, done.stderr[-2000:]
