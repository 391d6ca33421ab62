import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import DataCorrupt, DataUnavailable
from datasets.membrane import load_membrane
from experiments.harness import render
from experiments.harness.common import Results
from experiments.harness.experiment import Place
from experiments.segmentation import membrane
from experiments.segmentation.membrane import Config, UNet

SMALL = Config(**{**membrane.EXPERIMENT.smoke, "model": "unet"})


def test_smoke_makes_a_row_for_every_network_and_a_figure(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    membrane.main(["--smoke", "--seeds", "1", "--results", str(path)])
    rows = Results(path).rows()
    assert [row["config"]["model"] for row in rows] == list(membrane.MODELS) and "cheb" in capsys.readouterr().out
    (unet,) = (row["metrics"] for row in rows if row["config"]["model"] == "unet")
    assert unet["transfer_gap"] < 1e-12
    assert "mean IoU" in render.render(membrane.TABLE, rows)
    render.paint(membrane.FIGURE, rows, tmp_path / "membrane.png")
    assert render.drawn_from(tmp_path / "membrane.png") == render.fingerprint(rows)


@pytest.mark.slow
@pytest.mark.parametrize("model", membrane.MODELS)
def test_networks_learn(model):
    config = replace(SMALL, model=model, steps=60, lr=0.01)
    metrics = membrane.run(config, Place()).metrics
    if model == "gcn":  # finds no membranes here, with 300 steps neither
        assert metrics["mean_iou"] < 0.5
    else:
        assert metrics["mean_iou"] > 0.6 and metrics["pixel_error"] < 0.25
    assert metrics == {**membrane.run(config, Place()).metrics, "seconds_training": metrics["seconds_training"]}


def test_a_transferred_network_with_other_weights_shows_in_the_gap():
    torch.manual_seed(0)
    net = UNet(4)
    assert membrane.transfer_gap(net) < 1e-12
    real = membrane.transfer

    def broken(model, domain):
        model = copy.deepcopy(model)
        with torch.no_grad():
            model.one[0].weight.copy_(model.one[0].weight.flip(0))
        return real(model, domain)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(membrane, "transfer", broken)
        assert membrane.transfer_gap(net) > 1e-6


def test_scores_of_perfect_merged_and_empty_cells():
    mask = torch.ones(8, 9, dtype=torch.bool)
    mask[:, 4] = False
    assert membrane.scores([mask.float()], mask[None], 0.5) == {
        "mean_iou": 1.0, "pixel_error": 0.0, "rand_error": 0.0, "variation": 0.0,
    }  # fmt: skip
    merged = membrane.cell_scores(torch.ones_like(mask), mask)  # precision 1/2, recall 1; one bit
    assert merged["rand_error"] == pytest.approx(1 / 3, abs=0.01) and merged["variation"] == pytest.approx(1.0, abs=0.2)
    assert membrane.cell_scores(torch.zeros_like(mask), mask) == merged


def put(folder, i=None, picture=None, part="image"):
    for name in ("image", "label"):
        (folder / "membrane" / name).mkdir(parents=True, exist_ok=True)
        for k in range(30):
            Image.fromarray(np.zeros((512, 512), np.uint8)).save(folder / "membrane" / name / f"{k}.png")
    if picture is not None:
        target = folder / "membrane" / part / f"{i}.png"
        target.write_bytes(picture) if isinstance(picture, bytes) else picture.save(target)


@pytest.mark.parametrize(
    "picture, part, says",
    [
        (b"no picture", "image", "not a readable PNG"),
        (Image.new("RGB", (512, 512)), "image", "RGB"),
        (Image.new("L", (512, 40)), "label", "40"),
        (Image.new("L", (512, 512), 7), "label", "is no mask"),
    ],
)
def test_damaged_slices_are_one_sentence(tmp_path, picture, part, says):
    put(tmp_path, 3, picture, part)
    with pytest.raises(DataCorrupt, match=rf"3\.png.*{says}"):
        load_membrane(tmp_path)


def test_absent_slices_and_bad_settings_are_one_sentence(tmp_path, capsys):
    with pytest.raises(DataUnavailable, match=r"60 files, image/0\.png the first"):
        load_membrane(tmp_path)
    with pytest.raises(SystemExit, match="membrane images are not there"):
        membrane.main(["--data-root", str(tmp_path), "--results", str(tmp_path / "r.jsonl")])
    with pytest.raises(SystemExit):
        membrane.main(["--crop", "30"])
    assert "multiple of 4" in "".join(capsys.readouterr())


@pytest.mark.data
def test_real_slices():
    data = load_membrane()
    assert data.images.shape == data.masks.shape == (30, 512, 512) and 0.7 < data.masks.float().mean() < 0.85
