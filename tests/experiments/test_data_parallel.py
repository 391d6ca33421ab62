"""Data-parallel training: one process is the plain loop, several take the same steps, mistakes are said in words."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from limits import LIMIT, ROOT
from torch import nn

from experiments.harness import fit
from experiments.harness.experiment import Place
from experiments.harness.store import Checkpoint
from experiments.images import data_parallel, ladder

pytest.importorskip("lightning_fabric", reason="needs lightning-fabric, of the extra experiments")
quiet = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # of lightning_fabric's import

SMALL = {"dataset": "random", "limit": 17, "epochs": 2, "batch": 7, "width": 2, "shift": 1, "processes": 1}


def saved(fabric, config, place, threads):
    """Train, and save weights, buffers and the gradients of the last step."""
    torch.set_num_threads(1)
    net, metrics = data_parallel.fitted(fabric, config, place._replace(checkpoint=None))
    state = dict(net.state_dict()) | {f"gradient of {name}": p.grad for name, p in net.named_parameters()}
    torch.save((state, metrics), place.checkpoint / f"{config.processes}-{fabric.global_rank}.pt")


def together(folder, **options):
    """What one process saves, and each of two: they hold 3 and 4 images of a batch, and 1 and 2 of the last one."""
    for processes in (1, 2):
        config = data_parallel.Config(**SMALL | {"double": True, "rung": "9", "processes": processes} | options)
        data_parallel.launched(saved, config, Place(device="cpu", checkpoint=folder), "ddp_fork")
    return [torch.load(folder / name) for name in ("1-0.pt", "2-0.pt", "2-1.pt")]


def apart(one, other):
    assert one.keys() == other.keys()
    return max(float((t - other[name]).abs().max() / t.abs().max().clamp(min=1)) for name, t in one.items())


@quiet
def test_two_processes_take_the_steps_of_one(tmp_path):
    (one, alone), (first, all_), (second, _) = together(tmp_path)
    assert len(one) > 20 and apart(one, first) < 1e-12 and apart(first, second) == 0
    assert all_["train_loss"] == pytest.approx(alone["train_loss"], abs=1e-6)
    assert all_["test_accuracy"] == alone["test_accuracy"]


@quiet
@pytest.mark.slow
def test_local_statistics_change_the_result(tmp_path):
    """Negative control."""
    (one, _), (first, _), (second, _) = together(tmp_path, norm="local")
    assert apart(one, first) > 1e-4
    weights = [{name: t for name, t in state.items() if "running" not in name} for state in (first, second)]
    assert apart(*weights) == 0


@quiet
@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"rung": "3"}, {"rung": "p4", "width": 4}, {"rung": "all", "study": "padding circular"}]
)
def test_other_networks(tmp_path, options):
    (one, _), (first, _), _ = together(tmp_path, **options)
    assert apart(one, first) < 1e-12


@quiet
def test_one_process_is_the_plain_loop():
    config = data_parallel.Config(**SMALL, rung="3")
    (config,) = data_parallel.expand(config, 1)
    plain = ladder.run(ladder.Config(**{k: v for k, v in SMALL.items() if k != "processes"}, rung="3"), Place()).metrics
    found = data_parallel.run(config, Place(device="cpu")).metrics
    assert all(found[name] == plain[name] for name in ("train_loss", "test_accuracy", "parameters"))
    assert "MASTER_PORT" not in os.environ


def test_shares_cover_a_batch():
    split = fit.Split(torch.arange(10).view(10, 1), torch.arange(10))
    shares = [data_parallel.own(split, rank, 4) for rank in range(4)]
    assert torch.cat([share.labels for share in shares]).equal(split.labels)
    assert {len(share.images) for share in shares} == {2, 3}


def test_mistakes_are_said_in_words(monkeypatch):
    with pytest.raises(ValueError, match="a batch of 7 images cannot be divided among 8 processes"):
        data_parallel.Config(**SMALL | {"processes": 8})
    with pytest.raises(ValueError, match="--study goes without"):
        data_parallel.Config(study="base", rung="3")
    with pytest.raises(ValueError, match="no network 'bas'"):
        data_parallel.expand(data_parallel.Config(study="bas"), 1)
    assert [c.processes for c in data_parallel.expand(data_parallel.Config(), 1)] == [1, 2]
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    with pytest.raises(SystemExit, match=r"pip install -c constraints\.txt lightning-fabric"):
        data_parallel.run(data_parallel.Config(**SMALL), Place(device="cpu"))


@quiet
def test_a_last_batch_that_is_too_small_is_refused():
    class Four:
        global_rank, world_size, device = 0, 4, torch.device("cpu")

    config = replace(data_parallel.Config(**SMALL), processes=4)
    with pytest.raises(ValueError, match="the last batch of an epoch has 3 images, fewer than the 4 processes"):
        data_parallel.fitted(Four(), config, Place(device="cpu"))


@quiet
@pytest.mark.slow
def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    config = data_parallel.Config(**SMALL | {"rung": "9"})
    whole = data_parallel.run(config, Place(device="cpu")).metrics
    place, seen = Place(device="cpu", checkpoint=tmp_path / "c"), []

    def stop(*_):
        seen.append(1)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(data_parallel, "progress", stop)
        data_parallel.run(config, place)
    assert data_parallel.run(config, place).metrics["train_loss"] == whole["train_loss"]


def known_code(fabric, config, place, threads):
    return Checkpoint.code


@quiet
@pytest.mark.slow
def test_new_processes_know_the_code_of_the_run(monkeypatch):
    """By which a checkpoint of other code is recognised."""
    monkeypatch.setattr(Checkpoint, "code", {"hash": "a"})
    config = data_parallel.Config(**SMALL | {"processes": 2})
    assert data_parallel.launched(known_code, config, Place(device="cpu")) == {"hash": "a"}


@pytest.mark.slow
def test_both_ways_to_start(tmp_path):
    options = ["--smoke", "--rung", "3", "--device", "cpu"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    said = []
    module, results = ["-m", "experiments.images.data_parallel"], ["--results", str(tmp_path / "r.jsonl")]
    for command in (
        [*module, "--processes", "2", *results],
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *module],
    ):
        done = subprocess.run(
            [sys.executable, *command, *options], cwd=ROOT, env=env, capture_output=True, text=True, timeout=LIMIT
        )
        assert done.returncode == 0, done.stderr[-3000:]
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("3, width 8, 2 processes")]
        said.append(line.rsplit(",", 1)[0])
    assert said[0] == said[1]


def test_no_network_changes_by_being_wrapped():
    net = data_parallel.Network(*data_parallel.layers(data_parallel.Config(**SMALL, rung="9")))
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(nn.Sequential(*net)(x), net(x)) and net.double()(x).dtype == torch.float64
