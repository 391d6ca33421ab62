"""The chapter's network, its torch control, its graph twin, and the loop that trains them."""

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from datasets import ImageSet
from experiments.harness import common
from experiments.harness.training import Batches, Recipe, prepare, step, train
from experiments.images import cifar10_cnn, cifar10_graph

RECIPE = Recipe(epochs=2, batch=8, lr=0.01, device="cpu")


def fake_images(n: int = 32, seed: int = 0) -> ImageSet:
    """Random pictures whose brightness gives their label away."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 10
    images = torch.randint(0, 60, (n, 3, 32, 32), generator=generator) + 20 * labels.view(-1, 1, 1, 1)
    images = images.to(torch.uint8)
    names = tuple(f"class {c}" for c in range(10))
    split = {"train_images": images, "train_labels": labels, "test_images": images[:20], "test_labels": labels[:20]}
    return ImageSet(label="fake", classes=names, content_hash="0" * 16, source="made here", **split)


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return fake_images()


def test_the_network_is_the_chapters():
    net = cifar10_cnn.gconv_network()
    assert sum(p.numel() for p in net.parameters()) == 5_096_074
    shapes = [tuple(x.shape[1:]) for x in _trail(net, torch.zeros(2, 3, 32, 32))]
    assert shapes[2] == (64, 16, 16) and shapes[5] == (128, 8, 8) and shapes[8] == (256, 4, 4)
    assert shapes[9:] == [(4096,), (1024,), (1024,), (512,), (512,), (10,)]


def _trail(net, x):
    for layer in net:
        x = layer(x)
        yield x


@pytest.mark.sampled(2)
@pytest.mark.parametrize("channels_last", [False, True])
def test_same_initial_weights_give_the_same_losses_as_torch(images, channels_last):
    config = cifar10_cnn.Config(batch=8, control_steps=3, channels_last=channels_last, device="cpu")
    assert cifar10_cnn.control_gap(images, config) <= 1e-6


@pytest.mark.slow
def test_the_control_notices_another_network(images, monkeypatch):
    honest = cifar10_cnn.torch_network

    def broken(like):
        net = honest(like)
        with torch.no_grad():
            net[3].weight.copy_(net[3].weight.flip(-1))  # a mirrored kernel
        return net

    monkeypatch.setattr(cifar10_cnn, "torch_network", broken)
    config = cifar10_cnn.Config(batch=8, control_steps=3, device="cpu")
    assert cifar10_cnn.control_gap(images, config) > 1e-6


def test_twin_has_the_logits_of_the_cnn(images):
    config = cifar10_graph.Config(device="cpu")
    cnn, twin = cifar10_cnn.gconv_network(), cifar10_graph.graph_network(config, "twin")
    cifar10_graph.move_weights(cnn, twin)
    some = next(iter(Batches(images, RECIPE, 0).test()))[0][:4]
    gaps = cifar10_graph.compare(cnn, twin, some)
    assert gaps["logit_gap_float32"] <= 1e-4 and gaps["logit_gap_float64"] <= 1e-10
    assert gaps["logit_scale_float64"] > 1e-3 and gaps["same_prediction_float64"] == 1


def test_twin_with_two_taps_exchanged_differs(images):
    cnn, twin = cifar10_cnn.gconv_network(), cifar10_graph.graph_network(cifar10_graph.Config(), "twin")
    cifar10_graph.move_weights(cnn, twin)
    with torch.no_grad():
        weight = twin[0].conv.weight
        weight[[0, 8]] = weight[[8, 0]].clone()
    some = next(iter(Batches(images, RECIPE, 0).test()))[0][:4]
    assert cifar10_graph.compare(cnn, twin, some)["logit_gap_float64"] > 1e-6


@pytest.mark.sampled(2)
@pytest.mark.parametrize("model", ["gcn", "cheb"])
def test_isotropic_networks_cannot_tell_a_picture_from_its_mirror(images, model):
    """And the CNN can: this is what the graph networks lose."""
    x = next(iter(Batches(images, RECIPE, 0).test()))[0][:2]
    net, cnn = cifar10_graph.graph_network(cifar10_graph.Config(), model), cifar10_cnn.gconv_network()
    trunk, cnn_trunk = net[:9], cnn[:9]
    with torch.no_grad():
        mirrored = trunk(x.flip(-1)).flip(-1)
        assert torch.allclose(mirrored, trunk(x), atol=1e-5)
        assert not torch.allclose(cnn_trunk(x.flip(-1)).flip(-1), cnn_trunk(x), atol=1e-4)


def test_training_learns_and_a_resumed_run_equals_an_uninterrupted_one(images, tmp_path: Path):
    def run(epochs: int, path: Path) -> dict:
        common.seed_everything(0)
        return train(
            torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10)),
            images,
            replace(RECIPE, epochs=epochs),
            0,
            path,
        )

    whole = run(4, tmp_path / "whole")
    run(2, tmp_path / "cut")  # stops after two epochs, as a kill would
    resumed = run(4, tmp_path / "cut")
    assert resumed["train_loss"] == whole["train_loss"] and resumed["test_accuracy"] == whole["test_accuracy"]
    assert whole["train_loss"][-1] < whole["train_loss"][0]


def test_a_loss_that_is_no_number_stops_the_run(images):
    model, optimiser = prepare(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10)), RECIPE)
    with torch.no_grad():
        model[1].bias[0] = float("nan")
    x, y = next(iter(Batches(images, RECIPE, 0).train()))
    with pytest.raises(ArithmeticError, match="lower the learning rate"):
        step(model, optimiser, x, y)


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"batch": 0}, {"lr": 0.0}, {"momentum": 1.0}])
def test_a_recipe_that_cannot_run_is_refused(wrong):
    with pytest.raises(ValueError):
        Recipe(**wrong)


@pytest.mark.parametrize("module", [cifar10_cnn, cifar10_graph])
def test_unknown_options_and_missing_data_end_before_anything_is_written(module, tmp_path, monkeypatch, capsys):
    rows = tmp_path / "rows.jsonl"
    with pytest.raises(SystemExit) as stop:
        module.main(["--lerning-rate", "1", "--results", str(rows)])
    assert stop.value.code == 2
    monkeypatch.setenv("GCONV_OFFLINE", "1")
    with pytest.raises(SystemExit) as stop, warnings.catch_warnings():
        module.main(["--data-root", str(tmp_path / "nothing"), "--results", str(rows)])
    assert "cifar-10-batches-py" in str(stop.value.code) + capsys.readouterr().err
    assert not rows.exists()
