"""Images as superpixels: batches are disjoint unions, widths fit the size, and test labels select nothing."""

import pytest
import torch

from experiments.harness import fit, render
from experiments.harness.common import Results
from experiments.harness.experiment import Place
from experiments.images import superpixels
from experiments.images.superpixels import Config, network, patches


def test_smoke_makes_a_row_for_some_networks_and_an_operator_of_ones_own(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    for chosen in (["--model", "gcn"], ["--model", "cnn"], ["--spec", "gconv.operators:cheb(k=2)"]):
        superpixels.main(["--smoke", "--seeds", "1", "--results", str(path), *chosen])
    rows = Results(path).rows()
    assert [row["metrics"]["network"] for row in rows] == ["gcn", "cnn", "gconv.operators:cheb(k=2)"]
    assert "cheb" in capsys.readouterr().out
    render.paint(superpixels.FIGURE, rows[:2], tmp_path / "superpixels.png")


@pytest.mark.parametrize("model", superpixels.MODELS)
def test_networks_take_a_batch_of_images_one_by_one(model):
    data = fit.task("random", None, 16)
    config = Config(**{**superpixels.EXPERIMENT.smoke, "model": model, "size": 20_000})
    source, _ = superpixels.sources(config, data, None)
    torch.manual_seed(0)
    net = network(config).eval()
    with torch.no_grad():
        which = torch.tensor([5, 0, 9])
        alone = torch.cat([net(source.batch(i[None])) for i in which])
        assert torch.allclose(net(source.batch(which)), alone, atol=1e-5)
        assert not torch.allclose(alone[0], alone[1], atol=1e-3)  # the control: images differ


@pytest.mark.parametrize("model", superpixels.MODELS)
def test_networks_are_as_wide_as_the_size_allows(model):
    made = network(Config(model=model))
    assert 93_000 < sum(p.numel() for p in made.parameters()) <= 100_000
    with pytest.raises(ValueError, match="no network has 10 parameters or fewer"):
        network(Config(model=model, size=10))


def test_batches_are_those_of_pyg():
    from torch_geometric.data import Batch

    train, _ = patches("random", None, 16, 12)
    which = torch.tensor([3, 11, 3])
    found, theirs = train.batch(which), Batch.from_data_list([train.data[int(i)] for i in which])
    assert torch.equal(found.graph.edge_index, theirs.edge_index) and torch.equal(found.image, theirs.batch)
    assert torch.equal(found.graph.edge_attr, (theirs.edge_attr / (2 * superpixels.REACH) + 0.5).clamp(0, 1))
    assert torch.equal(found.labels, theirs.y) and train.nodes.min() > 3


def test_test_labels_change_nothing_but_the_accuracy(monkeypatch):
    data = fit.task("random", None, 16)
    config = Config(**{**superpixels.EXPERIMENT.smoke, "model": "cnn", "size": 2000})

    def metrics(**labels):
        parts = {name: fit.Split(getattr(data, name).images, y) for name, y in labels.items()}
        monkeypatch.setattr(superpixels, "task", lambda *args: data._replace(**parts))
        found = superpixels.run(config, Place()).metrics
        return {k: v for k, v in found.items() if k not in ("test_accuracy", "seconds_per_epoch")}, found

    clean, _ = metrics()
    blind, found = metrics(test=data.test.labels + 10)
    assert blind == clean and found["test_accuracy"] == 0
    assert metrics(train=data.train.labels.roll(3))[0] != clean


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": 0}, "size must be at least 1"),
        ({"lr": float("nan")}, "lr must be positive"),
        ({"spec": "a:b", "model": "gcn"}, "--spec goes without --model"),
    ],
)
def test_what_cannot_be_run_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Config(**options)
