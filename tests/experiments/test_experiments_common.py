import errno
import fcntl
import hashlib
import json
import mmap
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from limits import LIMIT, Fresh, fresh, joined, processes, started

from experiments import verify
from experiments.harness import common, store
from experiments.harness.common import (
    Checkpoint,
    Data,
    Options,
    Outcome,
    Results,
    ResultsError,
    cli,
    grid,
    run_key,
    sweep,
)

ROOT = common.ROOT

# An experiment as a user writes one; each run leaves a line in `started`, so a repeated run shows.
SCRIPT = '''
import os, sys, time
from dataclasses import dataclass
from experiments.harness import common

@dataclass(frozen=True)
class Config:
    """A toy."""
    pause: float = 0.0
    die: int = -1
    fail: int = -1
    seed: int = 0

def run(config):
    with open(os.environ["STARTED"], "a") as file:
        file.write(f"{config.seed}\\n")
    time.sleep(config.pause)
    if config.seed == config.die:
        os.kill(os.getpid(), 9)
    if config.seed == config.fail:
        raise ValueError(f"diverged at seed {config.seed}")
    return common.Outcome({"accuracy": config.seed / 10}, lowering="dense")

if __name__ == "__main__":
    config, options = common.cli(Config, seeds=6)
    rows = common.sweep(common.grid(config, seed=range(options.seeds)), run, options.open("toy"),
                        experiment="toy", jobs=options.jobs)
    print("accuracies", [row["metrics"]["accuracy"] for row in rows])
'''


@dataclass(frozen=True)
class Config:
    hidden: int = 4
    seed: int = 0


@pytest.fixture
def script(tmp_path):
    """Start the toy experiment with these options; its results are in tmp_path/rows.jsonl."""
    (tmp_path / "toy.py").write_text(SCRIPT)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "STARTED": str(tmp_path / "started"), "OMP_NUM_THREADS": "1"}

    started = []

    def start(*options):
        code = "import runpy, sys; sys.argv[:1] = []; runpy.run_path(sys.argv[0], run_name='__main__')"
        arguments = (str(tmp_path / "toy.py"), "--results", str(tmp_path / "rows.jsonl"), *options)
        started.append(Fresh(code, *arguments, env=env))
        return started[-1]

    yield start
    for process in started:
        process.kill()  # workers too
        process.finish()


def finish(process):
    done = process.finish()
    return done.returncode, done.stdout, done.stderr


def seeds_of(path):
    return sorted(row["seed"] for row in Results(path).rows())


def row(key, **more):
    return {"experiment": "toy", "key": key, "config": {}, "metrics": {}, **more}


# ---- the command line and the key


def test_options_and_configuration_share_one_command_line():
    config, options = cli(Config, argv=["--hidden", "8", "--results", "x.jsonl"], seeds=3)
    assert (config, options) == (Config(hidden=8), Options(seeds=3, results=Path("x.jsonl")))


@pytest.mark.parametrize(
    "wrong", [["--hiden", "8"], ["--hidden", "many"], ["extra"], ["--seeds", "0"], ["--jobs", "-1"]]
)
def test_what_the_command_line_does_not_know_ends_it(wrong, capsys):
    with pytest.raises(SystemExit) as stop:
        cli(Config, argv=wrong)
    assert stop.value.code == 2
    assert wrong[0].strip("-") in capsys.readouterr().err


@pytest.mark.slow
def test_unknown_option_produces_nothing(script, tmp_path):
    code, out, err = finish(script("--sedes", "3"))
    assert code == 2 and "--sedes" in err and "--seeds" in err and "Traceback" not in err
    assert not out and not (tmp_path / "rows.jsonl").exists() and not (tmp_path / "started").exists()


def test_key_is_that_of_the_content():
    key = run_key(Config(), "toy", Data("digits", "aa"))
    assert key == run_key(Config(4, 0), "toy", Data("another label", "aa")) and len(key) == 16
    others = [(Config(5), "toy", Data("", "aa")), (Config(seed=1), "toy", Data("", "aa"))]
    others += [(Config(), "tow", Data("", "aa")), (Config(), "toy", Data("", "ab")), (Config(), "toy", None)]
    assert len({key, *(run_key(*other) for other in others)}) == 6


@pytest.mark.slow
def test_key_does_not_depend_on_the_process():
    code = "from experiments.harness.common import *; print(run_key(Options(seeds=3), 'toy'))"
    env = {**os.environ, "PYTHONHASHSEED": "12"}
    seen = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, env=env, text=True, timeout=500)
    assert seen == f"{run_key(Options(seeds=3), 'toy')}\n"


# ---- rows


def test_row_says_what_made_the_number(tmp_path):
    results = Results(tmp_path / "rows.jsonl")
    outcome = Outcome({"acc": np.float32(0.5), "curve": torch.tensor([1.0, 2.0])}, lowering={"conv1": "im2col"})
    (got,) = sweep([Config(seed=3)], lambda _: outcome, results, experiment="toy", data=Data("digits", "d1"))
    assert got == Results(results.path).rows()[0]
    assert got["metrics"] == {"acc": 0.5, "curve": [1.0, 2.0]} and got["lowering"] == {"conv1": "im2col"}
    assert (
        got["config"] == {"hidden": 4, "seed": 3}
        and got["seed"] == 3
        and got["key"] == run_key(Config(seed=3), "toy", Data("digits", "d1"))
    )
    assert got["data"] == {"label": "digits", "hash": "d1"}
    assert got["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert set(got["versions"]) == {"python", "torch", "torch_geometric", "numpy", "gconv"}
    assert got["hardware"]["threads"] == torch.get_num_threads() and got["hardware"]["cores"] >= 1
    assert got["seconds"] >= 0 and got["peak_memory_mb"] > 50 and "commit" in got and got["time"].endswith("+00:00")


def test_peak_memory_is_that_of_the_run():
    for _ in range(5):  # the system may take pages of the process in the meantime
        common.reset_peak_memory()
        before = common.peak_memory_mb()
        block = np.frombuffer(mmap.mmap(-1, 64 << 20), np.uint8)
        block.fill(1)
        held = common.peak_memory_mb()
        del block
        if held - before > 60:
            break
    assert 60 < held - before < 80
    if Path("/proc/self/clear_refs").exists():
        common.reset_peak_memory()
        assert common.peak_memory_mb() < held - 50


@pytest.mark.parametrize("torn", [b'{"key": "c", "metr', b'{"key": "c"', b"\0\0\0", "é".encode()[:1]])
def test_torn_last_line_is_ignored_and_then_repaired(tmp_path, torn):
    results = Results(tmp_path / "rows.jsonl")
    results.append(row("a")), results.append(row("b"))
    whole = results.path.read_bytes()
    results.path.write_bytes(whole + torn)
    assert [r["key"] for r in results.rows()] == ["a", "b"] and not results.done("c")
    results.append(row("c"))
    assert results.path.read_bytes() == whole + json.dumps(row("c")).encode() + b"\n"


def test_last_line_without_its_newline_is_a_row(tmp_path):
    results = Results(tmp_path / "rows.jsonl")
    results.path.write_bytes(json.dumps(row("a")).encode())
    assert results.done("a")
    results.append(row("b"))
    assert [json.loads(line)["key"] for line in results.path.read_text().splitlines()] == ["a", "b"]


@pytest.mark.parametrize("damage", ["{not json}", "[1, 2]", '{"no": "key"}', "<<<<<<< HEAD"])
def test_damage_elsewhere_is_an_error_that_names_the_line(tmp_path, damage):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(row('a'))}\n{damage}\n{json.dumps(row('b'))}\n")
    before = path.read_bytes()
    for attempt in (Results(path).rows, lambda: Results(path).append(row("c"))):
        with pytest.raises(ResultsError, match=r"rows\.jsonl, line 2"):
            attempt()
    assert path.read_bytes() == before


def test_a_key_has_one_row(tmp_path):
    results = Results(tmp_path / "rows.jsonl")
    assert results.append(row("a", n=1)) and not results.append(row("a", n=2))
    assert [r["n"] for r in results.rows()] == [1]


def _append_many(path, names):
    for name in names:
        Results(path).append(row(name, filler="x" * 5000))


def test_two_processes_append_at_once(tmp_path):
    path = tmp_path / "rows.jsonl"
    shared, mine = [f"s{i}" for i in range(20)], [[f"{p}-{i}" for i in range(20)] for p in "ab"]
    assert processes("fork", _append_many, [(path, shared + mine[0]), (path, shared + mine[1])]) == [0, 0]
    assert Counter(r["key"] for r in Results(path).rows()) == Counter([*shared, *mine[0], *mine[1]])


def test_a_row_that_waits_while_the_file_is_replaced_is_in_the_new_file(tmp_path):
    results, other = Results(tmp_path / "rows.jsonl"), Results(tmp_path / "rows.jsonl")
    results.append(row("a", n=1))
    with results._locked() as file:
        waiting = started(other.append, row("b"))
        time.sleep(0.2)
        assert waiting.is_alive(), "the control: it does wait"
        file.seek(0)
        results._replace(row("a", n=2), json.dumps(row("a", n=2)).encode() + b"\n", file.readall())
        fcntl.flock(file, fcntl.LOCK_UN)
        joined([waiting])
    assert results.append(row("a", n=3), replace=True)
    assert [(r["key"], r.get("n")) for r in results.rows()] == [("a", 3), ("b", None)]


@pytest.mark.parametrize("torn", ["", '{"key": "to'])
def test_replacing_keeps_what_the_path_is_and_drops_a_torn_line(tmp_path, torn):
    path, link = tmp_path / "rows.jsonl", tmp_path / "link.jsonl"
    link.symlink_to(path)
    path.write_text(json.dumps(row("a", n=1)) + "\n" + json.dumps(row("b")) + "\n" + torn)
    assert Results(link).append(row("a", n=2), replace=True)
    assert link.is_symlink() and [(r["key"], r.get("n")) for r in Results(path).rows()] == [("a", 2), ("b", None)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.jsonl", "rows.jsonl"]


@pytest.fixture
def full_disk(monkeypatch):
    def write(fd, content):
        if len(content) > 10:
            return os_write(fd, content[:10])  # as a disk does: part of it goes in, then no more
        raise OSError(errno.ENOSPC, "No space left on device")

    os_write = os.write
    monkeypatch.setattr(store.os, "write", write)


def test_full_disk_is_found_before_any_run(tmp_path, full_disk):
    ran = []
    with pytest.raises(SystemExit, match=r"rows\.jsonl: No space left"):
        sweep([Config()], lambda c: ran.append(c), Results(tmp_path / "rows.jsonl"), experiment="toy")
    assert not ran and not list(tmp_path.iterdir())


def test_disk_that_fills_up_leaves_whole_rows(tmp_path, request):
    results = Results(tmp_path / "rows.jsonl")
    results.append(row("a"))
    before = results.path.read_bytes()
    request.getfixturevalue("full_disk")
    with pytest.raises(ResultsError, match="No space left"):
        results.append(row("b"))
    assert results.path.read_bytes() == before


def test_results_that_cannot_be_written_are_found_before_any_run(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "rows.jsonl", tmp_path):
        with pytest.raises(SystemExit, match=r"error: cannot (read|write)"):
            sweep([Config()], lambda c: pytest.fail("it ran"), Results(path), experiment="toy")


# ---- sweeps


@pytest.mark.parametrize("jobs", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_killed_sweep_goes_on_where_it_was(script, tmp_path, jobs):
    rows = tmp_path / "rows.jsonl"
    options = ("--pause", "0.1", "--jobs", jobs)
    process = script(*options)
    deadline = time.monotonic() + LIMIT
    while not (rows.exists() and rows.read_bytes().count(b"\n") >= 2):
        assert time.monotonic() < deadline and process.running()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)  # it alone
    assert finish(process)[0] == -signal.SIGKILL  # returns once its workers have let go of the pipes as well
    finished = seeds_of(rows)
    assert 2 <= len(finished) < 6
    (tmp_path / "started").unlink()
    code, out, _ = finish(script(*options))
    assert code == 0 and "accuracies [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]" in out
    assert seeds_of(rows) == [0, 1, 2, 3, 4, 5]
    assert sorted(map(int, (tmp_path / "started").read_text().split())) == sorted({0, 1, 2, 3, 4, 5} - {*finished})


@pytest.mark.parametrize("jobs", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_failed_run_is_reported_and_loses_no_other(script, tmp_path, jobs):
    code, out, err = finish(script("--fail", "2", "--jobs", jobs))
    assert code == 1 and not out
    assert "fail=2, seed=2" in err and "ValueError: diverged at seed 2" in err and "1 of 6 runs failed" in err
    assert seeds_of(tmp_path / "rows.jsonl") == [0, 1, 3, 4, 5]


def test_metric_that_is_not_finite_is_a_failed_run(tmp_path, capsys):
    results = Results(tmp_path / "rows.jsonl")
    with pytest.raises(SystemExit, match="1 of 2 runs failed"):
        sweep(grid(Config(), seed=[0, 1]), lambda c: Outcome({"loss": 1 / c.seed if c.seed else float("nan")}), results,
              experiment="toy")  # fmt: skip
    assert seeds_of(results.path) == [1] and "Config(hidden=4, seed=0)" in capsys.readouterr().err


@pytest.mark.slow
def test_killed_worker_is_one_clear_error(script, tmp_path):
    code, out, err = finish(script("--die", "0", "--seeds", "2", "--jobs", "2"))
    assert code == 1 and not out and "its process ended with -9" in err and "Traceback" not in err
    assert "1 of 2 runs failed" in err and seeds_of(tmp_path / "rows.jsonl") == [1], "the other has its row"


def test_sweep_runs_each_configuration_once_and_answers_in_order(tmp_path):
    ran, results = [], Results(tmp_path / "rows.jsonl")

    def run(config):
        ran.append(config.seed)
        return Outcome({"acc": config.seed})

    sweep([Config(seed=2)], run, results, experiment="toy")
    rows = sweep([Config(seed=s) for s in (3, 2, 1, 3)], run, results, experiment="toy")
    assert [r["seed"] for r in rows] == [3, 2, 1] and ran == [2, 3, 1]


# ---- checkpoints


def train(path, epochs, stop=None):
    """Adam, dropout and a shuffled loader: every source of state there is."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
    optimizer, shuffle = torch.optim.Adam(model.parameters(), 0.1), torch.Generator().manual_seed(1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    x = torch.arange(32.0).view(8, 4) / 32
    checkpoint = Checkpoint(path, model=model, optimizer=optimizer, schedule=schedule, shuffle=shuffle)
    start, curve = checkpoint.restore(extra=[])
    for epoch in range(start, epochs):
        if epoch == stop:
            raise KeyboardInterrupt
        for i in torch.randperm(8, generator=shuffle):
            optimizer.zero_grad()
            loss = (model(x[i]) - np.random.rand()).square().sum()
            loss.backward()
            optimizer.step()
        schedule.step()
        curve.append(loss.item())
        checkpoint.save(epoch + 1, curve)
    return start, curve


def test_resumed_run_equals_the_uninterrupted_one(tmp_path):
    np.random.seed(5)
    _, whole = train(tmp_path / "a.pt", 5)
    np.random.seed(5)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "b.pt", 5, stop=3)
    np.random.seed(77), torch.manual_seed(77)
    start, resumed = train(tmp_path / "b.pt", 5)
    assert start == 3 and resumed == whole


@pytest.mark.parametrize(
    "damage", ["flipped", "truncated", "empty", "other parts", "other shape", "other code", "hostile"]
)
def test_bad_checkpoint_is_discarded_with_a_warning(tmp_path, monkeypatch, damage):
    path, model = tmp_path / "run.pt", torch.nn.Linear(3, 3)
    monkeypatch.setattr(Checkpoint, "code", {"hash": "a"})
    Checkpoint(path, model=model).save(4, "curve")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "hostile":  # a pickle that would run code, under a checksum that fits
        body = pickle.dumps(Hostile(), protocol=2)
        path.write_bytes(hashlib.sha256(body).digest() + body)
    elif damage == "other code":
        Checkpoint.begin({"hash": "b"})
    elif damage in ("flipped", "truncated", "empty"):
        path.write_bytes({"flipped": content, "truncated": content[:-9], "empty": b""}[damage])
    model = torch.nn.Linear(3, 2 if damage == "other shape" else 3)
    parts = {"model": model} | ({"optimizer": torch.optim.SGD(model.parameters())} if damage == "other parts" else {})
    before = [p.clone() for p in model.parameters()]
    with pytest.warns(UserWarning, match=r"run\.pt discarded, the run starts again"):
        assert Checkpoint(path, **parts).restore("none") == (0, "none")
    assert not path.exists() and all(map(torch.equal, before, model.parameters()))


class Hostile:
    def __reduce__(self):
        return pytest.fail, ("code from a checkpoint was executed",)


def test_failed_save_leaves_the_last_checkpoint(tmp_path, request):
    checkpoint = Checkpoint(tmp_path / "run.pt", every=2, model=torch.nn.Linear(2, 2))
    for epoch in (1, 2, 3):
        checkpoint.save(epoch)
    request.getfixturevalue("full_disk")
    with pytest.raises(ResultsError, match="No space left"):
        checkpoint.save(4)
    assert checkpoint.restore() == (2, None) and [p.name for p in tmp_path.iterdir()] == ["run.pt"]


def test_what_a_killed_process_left_is_removed(tmp_path):
    gone = int(fresh("import os; print(os.getpid())").stdout)
    for name in (f"run.pt.{gone}.tmp", f"run.pt.{os.getppid()}.tmp", f"other.pt.{gone}.tmp"):
        (tmp_path / name).touch()
    Checkpoint(tmp_path / "run.pt").save(1)
    assert {p.name for p in tmp_path.iterdir()} == {
        "run.pt",
        f"run.pt.{os.getppid()}.tmp",
        f"other.pt.{gone}.tmp",
    }, "not those of processes that still write, or of other files"


def test_disk_that_is_full_at_a_checkpoint_ends_the_sweep_in_one_sentence(tmp_path, request, capsys):
    ran = []

    def run(config, path):
        ran.append(config.seed)
        request.getfixturevalue("full_disk")
        Checkpoint(path).save(1)
        return Outcome({"acc": 1.0})

    with pytest.raises(SystemExit, match=r"^error: cannot write checkpoint .*: No space left on device$"):
        sweep([Config(), Config(seed=1)], run, Results(tmp_path / "r.jsonl"), experiment="toy", resumable=True)
    assert ran == [0] and "Traceback" not in capsys.readouterr().err


def test_checkpoint_refuses_what_it_could_not_read_again(tmp_path):
    with pytest.raises(TypeError, match="tensors, numbers"):
        Checkpoint(tmp_path / "run.pt").save(1, extra=Config())
    assert not list(tmp_path.iterdir())


def test_resumable_sweep_hands_out_and_removes_checkpoints(tmp_path, monkeypatch):
    results, starts = Results(tmp_path / "rows.jsonl"), []

    def run(config, path):
        checkpoint = Checkpoint(path)
        starts.append(checkpoint.restore()[0])
        if len(starts) == 1:
            monkeypatch.setattr(time, "perf_counter", lambda now=time.perf_counter: now() + 100)
        checkpoint.save(starts[-1] + 1)
        if len(starts) == 1:
            raise RuntimeError("stopped")
        return Outcome({"acc": 1.0})

    with pytest.raises(SystemExit):
        sweep([Config()], run, results, experiment="toy", resumable=True)
    row, other = sweep([Config(), Config(seed=1)], run, results, experiment="toy", resumable=True)
    assert starts == [0, 1, 0] and not list((tmp_path / ".checkpoints").iterdir())
    assert 100 <= row["seconds"] < 200 and other["seconds"] < 100, "time before the interruption counts, once"


def test_a_row_names_the_machines_of_a_resumed_run(tmp_path, monkeypatch):
    """The numbers of such a run may differ in rounding from those of one machine, so `verify` allows for it."""
    elsewhere = {"cpu": "another", "threads": 7}

    def run(config, path):
        checkpoint = Checkpoint(path)
        done, _ = checkpoint.restore()
        with monkeypatch.context() as other:
            if config.seed == 1:
                other.setattr(store, "hardware", lambda: elsewhere)
            checkpoint.save(done + 1)
        if not done:
            raise RuntimeError("stopped")
        return Outcome({"acc": 1.0})

    results = Results(tmp_path / "rows.jsonl")
    with pytest.raises(SystemExit):
        sweep([Config(), Config(seed=1)], run, results, experiment="toy", resumable=True)
    one, two = sweep([Config(), Config(seed=1)], run, results, experiment="toy", resumable=True)
    assert "earlier_hardware" not in one
    assert two["earlier_hardware"] == [{**elsewhere, "torch": str(torch.__version__)}]
    known = {"cpu": "a", "family": "b", "instructions": "c", "threads": 1}
    one, two = ({**r, "hardware": known} for r in (one, two))
    assert verify.exact(one, one) and not verify.exact(two, one)


# ---- the machine


def test_seeds_repeat():
    def draw():
        return np.random.rand(), torch.rand(3).tolist(), __import__("random").random()

    common.seed_everything(3)
    first = draw()
    assert draw() != first
    common.seed_everything(3)
    assert draw() == first


def test_device_that_is_not_there_is_one_clear_error():
    assert common.device("auto").type in ("cpu", "cuda")
    for name in ("cuda:97", "gpu"):
        with pytest.raises(ValueError, match=f"cannot use device '{name}'"):
            common.device(name)
