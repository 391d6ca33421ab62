"""The studies of a CNN's parts: counted costs, matrices read, and nothing selected by test images."""

import pytest
import torch

from experiments.harness import fit
from experiments.harness.experiment import Place
from experiments.images import anchor, checkerboard, jpeg, ladder, light, overfitting, pixel_operators, studies


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "products", "count"), [("MobileNetV2 x1.0", 88.0, 2.24), ("ShuffleNetV2 x1.0", 45.0, 1.26)]
)
def test_light_networks_cost_what_is_published(name, products, count):
    model = light.NETWORKS[name]()
    assert abs(light.multiply_adds(model) / 1e6 - products) < 0.06
    assert abs(parameters(model) / 1e6 - count) < 0.01


def test_every_network_gives_ten_scores_and_differs_from_the_base():
    costs = {}
    for name, net in studies.NETWORKS.items():
        model = studies.network(net, 4)
        costs[name] = light.multiply_adds(model), parameters(model)
        assert model[-1].out_features == 10
    assert costs["kernel 5x5"] > costs["base"] > costs["kernel 1x1"]
    assert costs["stride: none"][0] > 4 * costs["base"][0] and costs["stride: none"][1] == costs["base"][1]


def test_networks_of_equal_parameters_have_as_many():
    base = parameters(studies.network(studies.NETWORKS["base"], 16))
    for name in ("kernel 1x1=", "kernel 5x5=", "kernel 7x7=", "one 5x5", "padding circular", "gelu"):
        assert abs(parameters(studies.network(studies.NETWORKS[name], 16)) / base - 1) < 0.12, name


def test_checkerboards_are_where_the_stride_does_not_divide_the_kernel():
    plan = checkerboard.expand(checkerboard.Config(side=5), 1)
    for config in [c for c in plan if (c.kernel, c.stride) in ((3, 2), (4, 2))]:
        found = checkerboard.run(config, Place()).metrics
        divides = config.way == "resized" or config.kernel % config.stride == 0
        assert (found["uneven"] < 1e-12) == divides, found["case"]
        assert (found["uneven_at_start"] < 1e-9) == (config.way == "resized"), found["case"]


def test_a_displaced_compression_is_a_second_one_and_a_repeated_one_is_not():
    few = torch.randn(1, 3, 9, 8, generator=torch.Generator().manual_seed(0)) * 40 + 128
    image = torch.nn.functional.interpolate(few.clamp(0, 255), (32, 48), mode="bicubic")[0].clamp(0, 255)
    once = jpeg.compressed(image.to(torch.uint8), 0)
    change = {d: (jpeg.compressed(once, d).float() - once.float()).square().mean().sqrt() for d in (0, 5)}
    assert once.shape == image.shape and change[0] < change[5] / 3, change


def test_without_another_compression_the_run_is_that_of_the_ladder():
    small = {"dataset": "random", "limit": 16, "epochs": 1, "batch": 8, "width": 4}
    cnn = ladder.run(ladder.Config(rung="9", **small), Place()).metrics
    plain, again = (jpeg.run(jpeg.Config(times=times, **small), Place()).metrics for times in (0, 1))
    assert plain["train_loss"] == cnn["train_loss"] != again["train_loss"]


def overfit(monkeypatch, **labels):
    """The metrics of a run with early stopping; the labels of a split are replaced."""
    data = fit.task("random", None)
    poisoned = data._replace(**{split: fit.Split(getattr(data, split).images, y) for split, y in labels.items()})
    monkeypatch.setattr(overfitting, "task", lambda *args: poisoned)
    (config,) = overfitting.expand(
        overfitting.Config(dataset="random", remedy="early stopping", images=32, epochs=4, batch=8, width=4), 1
    )
    return overfitting.run(config, Place()).metrics


def test_early_stopping_sees_validation_labels_and_no_test_labels(monkeypatch):
    train, test = fit.task("random", None)[:2]
    clean = overfit(monkeypatch)
    blind = overfit(monkeypatch, test=test.labels + 10)
    assert blind.pop("test_accuracy") == 0
    assert {k: v for k, v in clean.items() if k != "test_accuracy"} == blind
    wrong = train.labels.clone()
    wrong[-32:] = wrong[-32:].roll(3)
    assert overfit(monkeypatch, train=wrong)["val_accuracy"] != clean["val_accuracy"]


def test_unknown_networks_are_named():
    for module, field in ((studies, "network"), (light, "network"), (overfitting, "remedy")):
        with pytest.raises(ValueError, match=r"there is no .* 'x'; there are"):
            module.expand(module.Config(**{field: "x"}), 1)
    with pytest.raises(ValueError, match="no such case"):
        checkerboard.expand(checkerboard.Config(kernel=9), 1)


def test_images_moved_to_the_border_keep_what_is_left():
    x = torch.rand(1, 1, 5, 5) + 1
    up, down, left, right = studies.to_border(x, 2)
    assert (up[..., :3, :] == x[..., 2:, :]).all() and (down[..., 2:, :] == x[..., :3, :]).all()
    assert (left[..., :3] == x[..., 2:]).all() and (right[..., 2:] == x[..., :3]).all()
    assert all((moved == 0).sum() == 10 for moved in (up, down, left, right))


def test_the_anchor_starts_from_whitened_patches_and_identities():
    images = torch.nn.functional.avg_pool2d(torch.randn(64, 3, 32, 32), 3, 1, 1)
    model = anchor.network(64, images).eval()
    assert abs(light.multiply_adds(model) / 1e6 - 54.2) < 0.1 and parameters(model) == 569_016
    y = model[0](images)
    correlation = torch.cov(y.transpose(0, 1).flatten(1))[:12, :12]
    torch.testing.assert_close(correlation, torch.eye(12), atol=0.06, rtol=0)
    plain = torch.cov(torch.nn.functional.unfold(images, 2).transpose(0, 1).flatten(1))
    assert (torch.corrcoef(plain) - torch.eye(12)).abs().max() > 0.3, "negative control: patches are correlated"
    torch.testing.assert_close(y[:, 12:], -y[:, :12])
    z = model[1](y)
    torch.testing.assert_close(model[2](z)[:, :24], z)
    assert not model[0].weight.requires_grad and model[0].bias.requires_grad


def test_six_views_of_a_network_that_sees_the_mean_colour_are_one():
    data = fit.task("random", None)
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 10))
    split = fit.Split(data.test.images[:, :, :1, :1].expand(-1, -1, 32, 32), data.test.labels)
    where = torch.device("cpu")
    assert anchor.accuracy_of_views(model, data, split, where) == fit.accuracy(model, data, split, where)
    column = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))
    with torch.no_grad():
        column[1].weight.zero_(), column[1].bias.zero_()
        column[1].weight[0, 0], column[1].weight[1, 31] = 1.0, 1.0  # the class is the brighter of two corners
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    images[0, 0, :2, :2], images[1, 0, :2, 30:] = 255, 255
    corners = fit.Split(images, torch.tensor([0, 1]))
    assert (
        fit.accuracy(column, data, corners, where) == 1 and anchor.accuracy_of_views(column, data, corners, where) < 1
    )


@pytest.mark.parametrize("name", pixel_operators.NETWORKS)
def test_every_operator_on_pixels_trains_all_its_parameters(name):
    (config,) = pixel_operators.expand(pixel_operators.Config(network=name, width=2, dataset="random"), 1)
    model = ladder.network(config)
    torch.nn.functional.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.arange(4)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    still = {n for n, p in model.named_parameters() if p.numel() > 1 and not p.grad.any()}
    assert not still, "every parameter has an effect"


def test_operators_on_pixels_are_chosen_by_name():
    runs = pixel_operators.expand(pixel_operators.Config(), 3)
    assert len(runs) == 3 * len(pixel_operators.NETWORKS) and {(c.width, c.limit) for c in runs} == {(16, 10_000)}
    with pytest.raises(ValueError, match="there is no network 'gta'; there are 9, 1"):
        pixel_operators.expand(pixel_operators.Config(network="gta"), 1)
    with pytest.raises(ValueError, match="--network chooses the operator"):
        pixel_operators.expand(pixel_operators.Config(rung="3"), 1)
