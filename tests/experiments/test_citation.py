"""Citation graphs on embedded data: every network learns, the rule never sees the test set, bad input is named."""

import math
import os
import re
import statistics
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from datasets import load_citation_like
from experiments.citation import compare, published, reasons, responses, search, splits, tuned
from experiments.citation import networks as citation
from experiments.citation.networks import MODELS, Config, expand, prepare, resolve, train
from experiments.citation.recipes import RECIPES
from experiments.harness import common
from experiments.harness.experiment import Place
from experiments.harness.options import fields_of
from gconv import GConv
from gconv.operators import cheb, gpr, jacobi, sgc
from gconv.operators.shapes import ring

SMALL = load_citation_like(nodes=700, classes=4, words=300, validation=200, test=400)


@pytest.fixture(scope="module")
def task():
    return prepare(SMALL)


@pytest.fixture
def embedded(monkeypatch):
    """The command line, with the embedded graph in place of Cora."""
    citation.load.cache_clear()
    monkeypatch.setattr(citation, "load_planetoid", lambda name, root: SMALL)
    yield
    citation.load.cache_clear()


def config(model, **changes):
    return resolve(Config(dataset="Cora", model=model, **changes))


@pytest.mark.sampled(6)
@pytest.mark.parametrize("model", MODELS)
def test_every_model_learns(task, model):
    epochs = 60 if model == "gat" else 40
    few = {"layers": 4} if model == "gcn2" else {}
    metrics, lowering = train(task, config(model, epochs=epochs, **few))
    chance = 0.25
    assert metrics["test_accuracy"] > (chance + 0.1 if model == "mlp" else chance + 0.25)
    assert 1 <= metrics["epoch"] <= epochs
    assert len(lowering) == len(citation.layers(config(model, **few), 2, 2))
    assert lowering[0].endswith(":transform")


@pytest.mark.parametrize("model", ["gcn", "gat"])
def test_a_seed_repeats_exactly_and_another_differs(task, model):
    one, same, other = (train(task, config(model, epochs=4, seed=s)).metrics["val_loss"] for s in (3, 3, 4))
    assert one == same != other


@pytest.mark.parametrize("model", ["gcn", "cheb", "gat", "monet", "sage", "tag", "sgc", "mlp", "appnp"])
def test_sparse_features_give_what_dense_ones_give(task, model):
    torch.manual_seed(0)
    network = citation.Network(config(model), task.x.shape[1], task.classes).eval()
    grads = []
    for x in (task.x, task.x.to_dense()):
        network.zero_grad()
        y = network(x, task.graph)
        y.square().sum().backward()
        grads.append([y.detach(), *(p.grad.clone() for p in network.parameters())])
    for sparse, dense in zip(*grads, strict=True):
        torch.testing.assert_close(sparse, dense, rtol=1e-4, atol=1e-5)


def test_dropout_of_sparse_features_keeps_zeros_and_the_mean(task):
    x = citation.drop(task.x, 0.5, training=True).to_dense()
    kept = task.x.to_dense() != 0
    assert (x[~kept] == 0).all()
    assert set(torch.unique((x[kept] / task.x.to_dense()[kept]).round(decimals=4)).tolist()) == {0.0, 2.0}
    assert abs(x.sum() / task.x.to_dense().sum() - 1) < 0.05
    assert citation.drop(task.x, 0.5, training=False) is task.x


def test_the_chosen_epoch_does_not_depend_on_test_labels(task):
    shuffled = task.y.clone()
    shuffled[task.test] = shuffled[task.test].flip(0).roll(1)
    blind = task._replace(y=shuffled)
    right, wrong = (train(t, config("gcn", epochs=30)).metrics for t in (task, blind))
    assert right["test_accuracy"] > wrong["test_accuracy"] + 0.2
    for name in ("epoch", "val_accuracy", "val_loss"):
        assert right[name] == wrong[name]


def test_negative_control_validation_labels_do_decide(task):
    shuffled = task.y.clone()
    shuffled[task.val] = shuffled[task.val].roll(7)
    right, wrong = (train(t, config("gcn", epochs=30)).metrics for t in (task, task._replace(y=shuffled)))
    assert right["val_loss"] != wrong["val_loss"] and right["val_accuracy"] > wrong["val_accuracy"]


@pytest.mark.parametrize(
    ("model", "decays"),
    [
        ("gcn", [5e-4, 0.0]),
        ("gat", [5e-4, 5e-4]),
        ("sgc", [5e-5]),
        ("gpr", [5e-4, 5e-4, 0.0]),
        ("jacobi", [5e-4, 5e-4, 0.0]),
        ("gcn2", [5e-4, 0.01, 0.01, 5e-4]),
    ],
)
def test_weight_decay_is_on_the_layers_that_the_paper_names(model, decays):
    few = {"layers": 2} if model == "gcn2" else {}
    network = citation.Network(config(model, **few), 9, 3)
    groups = citation.optimiser(network, config(model, **few)).param_groups
    of = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert [{of[id(p)] for p in layer.parameters()} for layer in network.layers] == [{decay} for decay in decays]


@pytest.mark.parametrize("model", ["appnp", "gpr", "jacobi", "agnn"])
def test_filters_have_neither_dropout_nor_activation(task, model, monkeypatch):
    network, calls = citation.Network(config(model), task.x.shape[1], task.classes), []
    monkeypatch.setattr(citation, "drop", lambda x, p, training: calls.append("drop") or x)
    network.activation = lambda x: calls.append("activation") or x.relu()
    for layer in network.layers:
        layer.register_forward_hook(lambda layer, *_: calls.append(layer.spec.name))
    network(task.x, task.graph)
    first, filters, last = ["drop", "cheb", "activation"], [model], ["drop", "cheb"]
    assert calls == ([*first, *2 * filters, *last] if model == "agnn" else [*first, *last, *filters])


def test_monet_sees_the_degrees_of_both_ends(task):
    degree = SMALL.data.edge_index[1].bincount(minlength=task.graph.size)
    j, i = SMALL.data.edge_index
    wanted = torch.stack([degree[i], degree[j]], 1).float().rsqrt()
    torch.testing.assert_close(task.graph.edge_attr, wanted)


def test_a_diverging_run_is_an_error_that_says_what_to_do(task):
    with pytest.raises(ArithmeticError, match=r"loss became (nan|inf) in epoch \d+: lower the learning rate"):
        train(task, config("gcn", lr=1e30, epochs=20))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--model", "gnc"], "there is no model 'gnc'; there are mlp"),
        (["--dataset", "Coral"], "Coral"),
        (["--hiden", "3"], "hiden"),
        (["--model", "gcn", "--alpha", "0.1"], "gcn has no alpha; it has hidden, dropout"),
        (["--model", "gcn", "--dropout", "1.5"], r"dropout is a probability in \[0, 1\), not 1.5"),
        (["--model", "gcn", "--epochs", "0"], "epochs must be at least 1"),
    ],
)
def test_bad_command_lines_end_in_one_clear_error(embedded, capsys, tmp_path, argv, message):
    with pytest.raises((SystemExit, ValueError)) as error:
        citation.main([*argv, "--results", str(tmp_path / "r.jsonl")])
    said = capsys.readouterr()
    assert re.search(message, f"{error.value} {said.err} {said.out}")
    assert not (tmp_path / "r.jsonl").exists()


def test_unknown_names_in_code_are_named():
    with pytest.raises(ValueError, match="there is no model 'gnc'; there are mlp, gcn, cheb"):
        resolve(replace(Config(), model="gnc"))


def test_an_option_for_all_models_goes_to_those_that_have_it():
    runs = expand(Config(hidden=5, k=2), 2)
    assert len(runs) == 2 * len(MODELS) * 2
    assert {(c.model, c.hidden) for c in runs if c.model in ("sgc", "gcn")} == {("sgc", None), ("gcn", 5)}
    assert {c.k for c in runs if c.model in ("cheb", "tag")} == {2} and {c.k for c in runs if c.model == "gcn"} == {
        None
    }


def test_a_run_has_every_value_of_its_recipe_unless_another_is_given():
    for config in expand(Config(), 1):
        recipe = RECIPES.get((config.model, config.dataset), RECIPES[config.model])
        assert {name: getattr(config, name) for name in fields_of(recipe)} == fields_of(recipe), config.model
        assert expand(Config(dataset=config.dataset, model=config.model, epochs=7), 1)[0].epochs == 7


def test_rows_hold_the_whole_recipe_and_are_not_repeated(embedded, monkeypatch, tmp_path, capsys):
    runs = []
    monkeypatch.setattr(citation, "train", lambda task, c: runs.append(c) or train(task, c))
    path = tmp_path / "r.jsonl"
    argv = ["--dataset", "Cora", "--model", "sgc", "--epochs", "3", "--results", str(path), "--seeds"]
    citation.main([*argv, "2"])
    citation.main([*argv, "3"])
    assert [c.seed for c in runs] == [0, 1, 2]
    rows = common.Results(path).rows()
    assert [r["seed"] for r in rows] == [0, 1, 2] and rows[0]["config"]["lr"] == resolve(Config(model="sgc")).lr
    assert rows[0]["data"]["hash"] == SMALL.content_hash and rows[0]["lowering"]
    assert "sgc    Cora" in capsys.readouterr().out


def test_an_operator_in_a_file_of_ones_own_stands_in_a_table_with_gcn(tmp_path, capsys):
    (tmp_path / "mine.py").write_text("from helper import filter\n")
    (tmp_path / "helper.py").write_text("from gconv.operators import cheb as filter\n")
    spec = f"{tmp_path}/mine.py:filter(k=2)"
    argv = ["--smoke", "--seeds", "2", "--results", str(tmp_path / "r.jsonl"), "--spec", spec, "--compare"]
    citation.main([*argv, "gcn", "mlp"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    names = [line.split("|")[1].strip() for line in lines]
    assert names[0] == "operator" and names[2:] == ["gcn", "mlp", "mine.py:filter(k=2)"]
    assert all(re.search(r"\d\d\.\d \+- \d+\.\d \(2\)", line) for line in lines[2:])
    with pytest.raises(SystemExit, match="error: there is no model 'gnc'; there are mlp"):
        citation.main([*argv, "gnc"])


def test_committed_rows_are_of_these_recipes_and_every_miss_has_its_cause():
    """The table is what this code gives: rows of older recipes must be deleted, a miss must be explained."""
    rows = common.Results(common.RESULTS / "citation.jsonl").rows()
    cells = {}
    for row in rows:
        wanted = resolve(Config(dataset=row["config"]["dataset"], model=row["config"]["model"]))
        assert row["config"] == {**fields_of(wanted), "seed": row["seed"]}
        cells.setdefault((row["config"]["model"], row["config"]["dataset"]), []).append(row["metrics"]["test_accuracy"])
    for p in published.CITATION:
        values = cells.get((p.row, p.column))
        if values:
            missed = citation.missed(values, p.value, p.std)
            assert missed == ((p.row, p.column) in published.CITATION_MISSES), (
                f"{p.row} on {p.column}: {statistics.fmean(values):.3f}"
            )


@pytest.mark.data
def test_cora_is_reached_by_gcn(data_root):
    task = prepare(citation.load_planetoid("Cora", data_root))
    metrics = train(task, config("gcn", epochs=60)).metrics
    assert metrics["test_accuracy"] > 0.77 and metrics["val_accuracy"] > 0.75


@pytest.mark.slow
@pytest.mark.data
def test_two_jobs_give_what_one_gives(data_root, tmp_path):
    """As a user runs it: what workers run must be importable, and one seed's number does not depend on the others."""
    losses = []
    for jobs in ("1", "2"):
        path = tmp_path / f"{jobs}.jsonl"
        argv = ["--dataset", "Cora", "--model", "sgc", "--epochs", "2", "--seeds", "2", "--jobs", jobs]
        command = [sys.executable, "-m", "experiments.citation", *argv, "--results", str(path)]
        env = {**os.environ, "OMP_NUM_THREADS": jobs}
        subprocess.run(command, cwd=common.ROOT, env=env, check=True, capture_output=True, timeout=500)
        losses.append(sorted((r["seed"], r["metrics"]["val_loss"]) for r in common.Results(path).rows()))
    assert losses[0] == losses[1] and len(losses[0]) == 2


# -- the search, tuned settings, random splits


def test_a_search_begins_with_the_published_settings_and_changes_the_same_in_all_models():
    assert all(search.setting(model, data, 0) == RECIPES.get((model, data), RECIPES[model])
               for model in MODELS for data in citation.DATASETS)  # fmt: skip
    for trial in range(1, search.TRIALS):
        drawn = {model: search.setting(model, "Cora", trial) for model in ("gcn", "gat", "sgc", "appnp")}
        assert len({round(drawn[m].lr / RECIPES[m].lr, 3) for m in drawn}) == 1
        assert len({drawn[m].dropout for m in drawn}) == 1
        assert drawn["gcn"].hidden // 16 == drawn["gat"].hidden // 8
        assert drawn["gcn"].alpha is None and drawn["sgc"].hidden is None, "a model keeps the parameters that it has"
    assert len({search.setting("gcn", "Cora", trial) for trial in range(search.TRIALS)}) > search.TRIALS // 2


def test_a_search_sees_no_test_label(monkeypatch):
    d = SMALL.data.clone()
    d.y[d.test_mask] = d.y[d.test_mask].flip(0).roll(1)
    e = SMALL.data.clone()
    e.y[e.val_mask] = e.y[e.val_mask].roll(7)
    (one,) = search.expand(search.Config(dataset="Cora", model="gcn", trial=1, epochs=8), 1)
    found = []
    for data in (SMALL.data, d, e):
        seen = prepare(replace(SMALL, data=data))
        monkeypatch.setattr(search, "load", lambda name, root, seen=seen: (seen, None))
        metrics = search.run(one, Place()).metrics
        found.append({k: v for k, v in metrics.items() if "seconds" not in k})
    assert found[0] == found[1] != found[2], "test labels change nothing, validation labels do"
    assert "test_accuracy" not in found[0]


def trial_row(trial, accuracy, loss, seed, model="gcn"):
    config = search.expand(search.Config(dataset="Cora", model=model, trial=trial), 1)[0]
    return {"config": {**fields_of(config), "seed": seed}, "metrics": {"val_accuracy": accuracy, "val_loss": loss}}


def test_the_best_trial_has_the_highest_mean_accuracy_then_the_lowest_loss():
    rows = [trial_row(t, 0.7, 1.0, s) for t in range(search.TRIALS) for s in (0, 1) if t not in (4, 6)]
    rows += [trial_row(t, 0.8 + gap, loss, s) for t, loss in ((4, 0.9), (6, 0.8)) for s, gap in ((0, 0.01), (1, -0.01))]
    (recipe, accuracy) = search.best(rows)["gcn", "Cora"]
    assert recipe == search.setting("gcn", "Cora", 6) and accuracy == pytest.approx(0.8)
    assert not search.best(rows[:-1]), "an incomplete trial"
    lucky = [r | {"metrics": {"val_accuracy": 0.99, "val_loss": 1.0}} if r is rows[0] else r for r in rows]
    assert search.best(lucky)["gcn", "Cora"][0] == search.setting("gcn", "Cora", 0), "0.845 on average"


def test_tuned_runs_have_the_settings_of_the_search_and_seeds_of_their_own(monkeypatch):
    settings = {(m, "Cora"): (search.setting(m, "Cora", 2), 0.7 + (m == "appnp") / 10) for m in MODELS}
    monkeypatch.setattr(tuned, "chosen", lambda: settings)
    runs = tuned.expand(Config(dataset="Cora", model="cheb"), 3)
    assert [c.seed for c in runs] == [100, 101, 102] and {c.hidden for c in runs} == {
        settings["cheb", "Cora"][0].hidden
    }
    assert {c.model for c in tuned.expand(Config(dataset="Cora", model="best"), 2)} == {"appnp"}
    assert {c.model for c in tuned.expand(Config(dataset="Cora"), 1)} == {*MODELS} - {"gcn2"}, "it has one setting"
    assert len(tuned.expand(Config(dataset="Cora", model="gcn2"), 2)) == 2
    for wrong, says in (
        ({"model": "gnc"}, "there is no model 'gnc'; there are best, mlp"),
        ({"model": "gcn", "lr": 0.1}, "the search chose lr"),
        ({"model": "gcn", "dataset": "CiteSeer"}, "not complete for gcn: run"),
        ({"model": "best"}, "on CiteSeer is not complete for 22 models"),
    ):
        with pytest.raises(ValueError, match=says):
            tuned.expand(Config(**wrong), 1)


def test_a_random_split_takes_its_papers_apart(task):
    one, same, other = (splits.split(task, seed, validation=200, test=300) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one[4:], same[4:], strict=True))
    assert not torch.equal(one.train, other.train) and not torch.equal(one.test, other.test)
    assert (task.y[one.train].bincount() == 20).all() and (len(one.val), len(one.test)) == (200, 300)
    assert len(torch.cat(one[4:]).unique()) == 80 + 200 + 300, "no paper is in two parts"
    empty = task.x.to_dense()
    empty[:300] = 0
    taken = torch.cat(splits.split(task._replace(x=empty), 1, validation=100, test=100)[4:])
    assert (taken >= 300).all(), "papers without text are in no part"
    with pytest.raises(ValueError, match="500 \\+ 1000 others; there are 700 papers with text"):
        splits.split(task, 0)


def test_a_comparison_finds_a_difference_that_is_there_and_none_that_is_not():
    noise = torch.rand(20, generator=torch.Generator().manual_seed(0)).tolist()

    def row(model, seed, accuracy):
        return {"config": {"model": model, "dataset": "Cora", "seed": seed}, "metrics": {"test_accuracy": accuracy}}

    rows = [row("gcn", s, 0.8 + e / 50) for s, e in enumerate(noise)]
    rows += [row("better", s, 0.81 + e / 50) for s, e in enumerate(noise)]
    rows += [row("same", s, 0.8 + e / 50 + (-1) ** s * 0.01) for s, e in enumerate(noise)]
    rows += [row("tenth", s, 0.801 + e / 50) for s, e in enumerate(noise)]
    rows += [row("few", s, 0.9) for s in range(3)]
    gaps = compare.differences(rows, "Cora", "gcn")
    assert gaps["better"][0] == pytest.approx(1) and gaps["better"][1] < 1e-4 and gaps["same"][1] > 0.5
    assert gaps["tenth"][0] == 0.1, "on every Python: before 3.12 a plain sum of twenty is off by 1e-17"
    assert "few" not in gaps
    (said,) = compare.sentences(rows)
    assert "better: better +1.0, tenth +0.1; no difference found: same +0.0" in said and "at least 20" in said


# -- frequency responses


@pytest.mark.parametrize(
    ("spec", "channels", "loops"),
    [(sgc(3, 2, k=2), 3, True), (gpr(5, 0.2), 1, True), (cheb(2, 3, k=3), 2, False), (jacobi(2, k=4), 2, False)],
    ids=["sgc", "gpr", "cheb", "jacobi"],
)
def test_a_response_is_the_gain_of_an_eigenvector(task, spec, channels, loops):
    """Cosines are eigenvectors on a ring: of 1 - cos(t) for the Laplacian, (2/3) (1 - cos(t)) with self-loops."""
    layer, graph = GConv(spec, dtype=torch.float64), ring(10)
    frequency, gain = responses.response(layer, task._replace(graph=graph))
    assert (min(frequency), max(frequency), max(gain)) == (0, 2, 1) and frequency == sorted(frequency)
    there, wanted = [], []
    for turns in range(6):
        angle = 2 * math.pi * turns / 10
        wave = torch.cos(angle * torch.arange(10.0, dtype=torch.float64))[:, None]
        outputs = [layer(wave * torch.eye(channels, dtype=torch.float64)[c], graph) for c in range(channels)]
        outputs = [y - (0 if layer.bias is None else layer.bias) for y in outputs]
        there.append((2 / 3 if loops else 1) * (1 - math.cos(angle)))
        wanted.append((torch.stack(outputs).norm() / wave.norm()).item())
    wanted, got = np.array(wanted), np.interp(there, frequency, gain)
    scale = (wanted @ got) / (got @ got)  # the response is relative to its largest value
    np.testing.assert_allclose(got * scale, wanted, atol=0.01 * wanted.max())
    wrong = np.interp(there, frequency, np.roll(gain, 8))
    assert abs(wrong * ((wanted @ wrong) / (wrong @ wrong)) - wanted).max() > 0.05 * wanted.max(), "negative control"


def test_responses_are_those_of_filters_only():
    assert {c.model for c in responses.expand(Config(), 1)} == set(responses.FILTERS)
    with pytest.raises(ValueError, match="there is no response of gat; there are sgc"):
        responses.expand(Config(model="gat"), 1)


def test_reasons_change_the_epochs_alone():
    found = reasons.expand(citation.Config(), 2)
    assert {(c.model, c.dataset, c.epochs, c.seed) for c in found} == {
        (model, dataset, epochs, seed)
        for model, epochs in reasons.EPOCHS.items()
        for dataset in citation.DATASETS
        for seed in (0, 1)
    }
    usual = citation.resolve(citation.Config(model="arma", dataset="Cora"))
    assert replace(found[0], epochs=usual.epochs) == replace(usual, seed=0) and usual.epochs == 200
    for config, words in (({"epochs": 9}, "--epochs is set"), ({"model": "gcn"}, "--model gcn is not tested here")):
        with pytest.raises(ValueError, match=words):
            reasons.expand(citation.Config(**config), 1)
