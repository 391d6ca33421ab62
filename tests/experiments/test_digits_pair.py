import json
from dataclasses import replace

import pytest
import torch

from experiments.harness import render
from experiments.harness.common import Data, Results, run_key
from experiments.images import digits_pair
from experiments.images.cifar10_graph import move_weights
from experiments.images.digits_pair import Config, gap, image_network, lowerings, run, runs


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def only(**which):
    (config,) = runs(Config(**which), 1)
    return config


def test_twin_is_the_cnn_before_and_after_training():
    metrics, chosen = run(only(task="images", model="selection", epochs=1, width=4, batch=200))
    assert metrics["logits_gap_start"] < 1e-12 and metrics["logits_gap"] < 1e-10
    assert metrics["test_accuracy"] == metrics["cnn_accuracy"] > 0.15
    cnn, cnn_chosen = run(only(task="images", model="cnn", epochs=1, width=4, batch=200))
    assert cnn["test_accuracy"] == metrics["test_accuracy"] and cnn["parameters"] == metrics["parameters"]
    assert len(chosen) == len(cnn_chosen) == 4 and cnn_chosen[0] == "native"


def test_a_twin_with_its_offsets_mixed_up_is_not_the_cnn():
    """Negative control of the gap."""
    cnn, twin = image_network("cnn", 4, 3), image_network("selection", 4, 3)
    move_weights(cnn, twin)
    x = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    assert gap(twin, cnn, x) < 1e-12
    with torch.no_grad():
        twin[0].conv.weight.copy_(twin[0].conv.weight.flip(0))
    assert gap(twin, cnn, x) > 1e-3


def test_a_twin_that_is_not_the_cnn_is_a_failed_run(monkeypatch):
    monkeypatch.setattr(digits_pair, "move_weights", lambda cnn, twin: torch.nn.init.zeros_(twin[-1].weight))
    with pytest.raises(ArithmeticError, match="the twin is not the cnn"):
        run(only(task="images", model="selection", epochs=1, width=4))


@pytest.mark.parametrize("model", ["gcn", "cheb"])
def test_graph_networks_on_images_learn_and_are_blind_to_direction(model):
    config = only(task="images", model=model, epochs=3, width=8)
    assert run(config).metrics["test_accuracy"] > 0.15
    layer = image_network(model, 4, 3)[0]
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    assert torch.allclose(layer(x.flip(-1)), layer(x).flip(-1))
    assert lowerings(image_network(model, 4, 3), x)[1] == "native"


@pytest.mark.sampled(2)
@pytest.mark.parametrize("model", digits_pair.MODELS["nodes"])
def test_node_networks_run_and_repeat(model):
    config = only(task="nodes", dataset="karate", model=model, epochs=30)
    first, again = run(config), run(config)
    assert first == again and first != run(replace(config, seed=1))
    assert len(first.lowering) == (0 if model == "mlp" else 2)
    assert model == "mlp" or first.metrics["test_accuracy"] > 0.3


def test_graph_helps_where_the_classes_follow_it():
    accuracy = {
        m: run(only(dataset="citation-like", model=m, epochs=40)).metrics["test_accuracy"] for m in ("mlp", "gcn")
    }
    assert accuracy["gcn"] > accuracy["mlp"] + 0.1


def test_every_run_is_listed_once_with_its_recipe():
    everything = runs(Config(), 3)
    assert len(everything) == len(set(everything)) == 3 * (4 + 3 * 4)
    assert {(c.task, c.batch) for c in everything} == {("images", 50), ("nodes", 0)}
    assert {c.seed for c in runs(Config(seed=5), 2)} == {5, 6}
    assert {c.epochs for c in runs(Config(epochs=7), 1)} == {7}
    assert [(c.dataset, c.model) for c in runs(Config(task="nodes", dataset="karate", model="gat"), 1)] == [
        ("karate", "gat")
    ]


def test_what_does_not_exist_is_one_clear_error(capsys):
    with pytest.raises(SystemExit, match="there is no run of task images, dataset karate"):
        runs(Config(task="images", dataset="karate"), 1)
    wrong = {"multiple of 4": ["--width", "6"], "at least 1": ["--epochs", "0"], "--model": ["--modle", "gcn"]}
    for message, argv in wrong.items():
        with pytest.raises(SystemExit) as stop:
            digits_pair.main(argv)
        assert stop.value.code == 2 and message in "".join(capsys.readouterr())


def test_main_writes_rows_table_and_figure_and_goes_on_where_it_was(tmp_path, capsys):
    path = tmp_path / "runs" / "digits_pair.jsonl"
    argv = ["--dataset", "karate", "--epochs", "2", "--seeds", "2", "--jobs", "1", "--results", str(path)]
    digits_pair.main([*argv, "--model", "gcn"])
    out = capsys.readouterr().out
    assert "embedded data" in out and "gcn" in out and "n = 2" in out and str(path) in out
    (first, _) = rows = Results(path).rows()
    assert first["data"]["label"] == "karate, embedded"
    assert first["key"] == run_key(only(dataset="karate", model="gcn", epochs=2), "digits_pair", Data(**first["data"]))
    digits_pair.main(argv)
    again = Results(path).rows()
    assert again[:2] == rows and len(again) == 2 * 4
    assert render.drawn_from(path.with_suffix(".png")) == render.fingerprint(again)
    assert not [p for p in path.parent.iterdir() if p.suffix not in (".png", ".jsonl")]


def test_committed_rows_are_the_defaults():
    path = digits_pair.common.RESULTS / "digits_pair.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert {r["key"] for r in rows} == {run_key(c, "digits_pair", digits_pair.seen(c)) for c in runs(Config(), 3)}
    for row in render.select(rows, [("config.model", "selection")]):
        assert row["metrics"]["logits_gap"] < 1e-10
        assert row["metrics"]["test_accuracy"] == row["metrics"]["cnn_accuracy"]
