"""Blood cells as areas: masks drawn from boxes, two networks by one loop, test photos read at the end alone."""

from dataclasses import replace

import pytest
import torch

from experiments.harness import render
from experiments.harness.common import Results
from experiments.harness.experiment import Place
from experiments.segmentation import cells

SMOKE = replace(cells.Config(), **cells.EXPERIMENT.smoke)


def test_smoke_makes_a_row_for_every_network_a_table_and_a_figure(tmp_path, capsys):
    cells.main(["--smoke", "--results", str(tmp_path / "rows.jsonl")])
    rows = Results(tmp_path / "rows.jsonl").rows()
    assert [row["config"]["model"] for row in rows] == list(cells.MODELS)
    for row in rows:
        scores = row["metrics"]
        assert 0 <= scores["mean_iou"] <= 1 and len(scores["pictures"]) == 2
        assert scores["mean_iou"] == pytest.approx(sum(scores[f"iou_{name}"] for name in cells.NAMES) / 4)
    assert all(row["metrics"]["best_possible_mean_iou"] >= row["metrics"]["mean_iou"] for row in rows[1:])
    assert "drawn from boxes" in render.render(cells.TABLE, rows) and "unet" in capsys.readouterr().out
    render.paint(cells.FIGURE, rows, tmp_path / "figure.png")
    assert render.drawn_from(tmp_path / "figure.png") == render.fingerprint(rows)


@pytest.mark.parametrize("model", ["unet", "sage"])
def test_networks_learn(model):
    steps = [cells.run(replace(SMOKE, model=model, steps=n, lr=0.02), Place()).metrics for n in (1, 40)]
    assert steps[1]["train_loss"] < 0.6 * steps[0]["train_loss"]


def test_masks_are_ellipses_with_small_cells_on_top():
    boxes = torch.tensor([[8.0, 8.0, 12.0, 12.0], [0.0, 0.0, 20.0, 20.0], [0.0, 5.0, 20.0, 15.0]])
    found = cells.mask(boxes, torch.tensor([2, 0, 1]), 20, 24)
    area = {c: int((found == c).sum()) for c in range(4)}
    assert area[3] == 12 and found[10, 10] == 3 and found[6, 10] == 2 and found[2, 10] == 1 and found[0, 0] == 0
    assert abs(area[2] + area[3] - 3.1416 * 10 * 5) < 8 and abs(area[1] + area[2] + area[3] - 3.1416 * 100) < 12
    assert not found[:, 20:].any()


def test_pixels_as_superpixels_of_one_pixel_have_the_same_loss():
    data = cells.photos("random")
    truth = cells.masks(data)[0, :4, :6]
    image = data.images[0, :, :4, :6]
    parts = torch.arange(24).reshape(4, 6).numpy()
    step = cells.superpixels(image.permute(1, 2, 0).numpy() / 255, truth.numpy(), parts)
    flat = cells.Step(image[None].float(), None, torch.nn.functional.one_hot(truth, 4).movedim(-1, 0)[None].float(),
                      torch.full((1, 1, 4, 6), 1 / 24))  # fmt: skip
    logits, weights = torch.randn(24, 4), torch.tensor([1.0, 2.0, 3.0, 4.0])
    there = cells.loss_of(lambda x, graph: logits, step, weights)
    here = cells.loss_of(lambda x: logits.mT.reshape(1, 4, 4, 6), flat, weights)
    torch.testing.assert_close(there, here)
    assert step.graph.edge_index.shape[1] == 2 * (3 * 6 + 4 * 5)


def test_bad_settings_are_one_sentence():
    for fields, message in (({"steps": 0}, "steps must be at least 1"), ({"lr": 0.0}, "lr must be positive")):
        with pytest.raises(ValueError, match=message):
            cells.Config(**fields)
