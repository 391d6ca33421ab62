import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import gconv
from experiments.detection import bccd, predict
from experiments.detection.bccd import Config, changed, fit, photos, precision, ready
from experiments.detection.detector import Detector, Found, apart, loss_of, overlaps, target
from experiments.harness import render
from experiments.harness.common import Results
from experiments.harness.experiment import Place

SMALL = Config(**{**bccd.EXPERIMENT.smoke, "model": "grid"})


def test_smoke_makes_a_row_for_every_network_a_file_and_a_figure(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    bccd.main(["--smoke", "--results", str(path)])
    rows = Results(path).rows()
    assert [row["config"]["model"] for row in rows] == list(bccd.MODELS) and "AP50" in capsys.readouterr().out
    assert rows[0]["metrics"]["twin_gap"] < 1e-12
    assert "gcn" in render.render(bccd.TABLE, rows)
    render.paint(bccd.FIGURE, rows, tmp_path / "detection.png")
    assert render.drawn_from(tmp_path / "detection.png") == render.fingerprint(rows)
    for row in rows:
        kept = tmp_path / ".checkpoints" / f"rows-{row['key']}.safetensors"
        gconv.load(kept, into=Detector(3, SMALL.width, row["config"]["model"]).half())


@pytest.mark.slow
@pytest.mark.parametrize("model", bccd.MODELS)
def test_networks_learn(model):
    config = replace(SMALL, model=model, epochs=400, width=6, lr=0.01)
    metrics = bccd.run(config, Place()).metrics
    assert metrics["ap50"] > 0.6


def test_training_reads_no_test_photo_and_goes_on_after_a_kill(tmp_path):
    data, config = photos("random"), replace(SMALL, epochs=2)

    def trained(data, path=None):
        torch.manual_seed(0)
        model, _ = fit(data, config, Place(checkpoint=path))
        return torch.cat([p.flatten() for p in model.parameters()])

    first, kinds = trained(data), list(data.kinds)
    for part, same in (("test", True), ("val", True), ("train", False)):
        images, changed_kinds = data.images.clone(), kinds.copy()
        for i in data.parts[part]:
            images[i], changed_kinds[i] = 255 - images[i], 2 - kinds[i]
        assert torch.equal(trained(replace(data, images=images, kinds=tuple(changed_kinds))), first) == same

    def stop(done, text):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        save = bccd.Checkpoint.save
        patch.setattr(bccd.Checkpoint, "save", lambda self, *a: (save(self, *a), stop(*a)))
        with pytest.raises(KeyboardInterrupt):
            trained(data, tmp_path / "run.pt")
    assert torch.equal(trained(data, tmp_path / "run.pt"), first)


def test_the_head_on_the_graph_is_the_grid_head_and_others_are_not():
    torch.manual_seed(0)
    model, x = Detector(3, 4).eval(), torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            norm.running_mean.normal_()
    assert bccd.twin_gap(model, x) < 1e-12
    other, wrong = copy.deepcopy(model), model.state_dict()
    other.load_state_dict(wrong | {"head.1.weight": wrong["head.1.weight"].flip(0)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "state_dict", other.state_dict)
        assert bccd.twin_gap(model, x) > 1e-6


def found(boxes, scores, kinds):
    return Found(torch.tensor(boxes).float().reshape(-1, 4), torch.tensor(scores), torch.tensor(kinds).long())


def test_average_precision_by_hand():
    boxes, kinds = [torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]])], [torch.tensor([0, 0])]
    whole = precision([found(boxes[0].tolist(), [0.9, 0.8], [0, 0])], boxes, kinds)
    assert whole["ap50"] == whole["ap"] == whole["ap50_RBC"] == 1.0 and whole["ap50_WBC"] == 0.0
    # A box wrong above a right one: precision 1/2 up to recall 1/2, at 51 of 101 recalls.
    half = precision([found([[50, 50, 60, 60], [0, 0, 10, 10]], [0.9, 0.8], [0, 0])], boxes, kinds)
    assert half["ap50"] == pytest.approx(51 / 101 / 2)
    # IoU 0.6: right at 0.5, 0.55 and 0.6, which are three of ten.
    shifted = precision([found([[0, 0, 10, 6.01], [20, 0, 30, 6.01]], [0.9, 0.8], [0, 0])], boxes, kinds)
    assert shifted["ap50"] == 1.0 and shifted["ap"] == pytest.approx(0.3)
    # The right box of another class, the same box twice, nothing found, nothing to find.
    assert precision([found([[0, 0, 10, 10]], [0.9], [1])], boxes, kinds)["ap50"] == 0.0
    twice = precision([found([[0, 0, 10, 10]] * 2 + [[20, 0, 30, 10]], [0.9, 0.8, 0.7], [0, 0, 0])], boxes, kinds)
    assert twice["ap50"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    nothing = found([], [], [])
    assert precision([nothing], boxes, kinds)["ap50"] == 0.0
    assert precision([nothing], [torch.zeros(0, 4)], [torch.zeros(0).long()])["ap50"] == 0.0


def test_targets_losses_and_boxes_agree():
    boxes, kinds = [torch.tensor([[8.0, 4, 40, 36], [44, 40, 60, 60]])], [torch.tensor([0, 2])]
    goal = target(boxes, kinds, 3, 16, 16)
    assert (goal.heat == 1).nonzero()[:, 1:].tolist() == [[0, 5, 6], [2, 12, 13]] and goal.heat[0, 1].max() == 0
    logits = torch.where(goal.heat == 1, 20.0, -20.0)
    y, x = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    centre = (goal.boxes[:, :2] + goal.boxes[:, 2:]) / 2 - torch.stack([x, y]) - 0.5
    shape = torch.cat([centre, ((goal.boxes[:, 2:] - goal.boxes[:, :2]).clamp(min=1) / 8).log()], 1)
    assert loss_of(logits, shape, goal) < 1e-4 < loss_of(logits, shape + 0.1, goal) < loss_of(-logits, shape, goal)
    model = Detector(3, 4)
    model.forward = lambda x: (logits, shape)
    (one,) = model.eval().find(torch.zeros(1, 3, 64, 64), 0.5)
    order = one.kinds.argsort()
    assert torch.allclose(one.boxes[order], boxes[0], atol=1e-3) and one.kinds[order].tolist() == [0, 2]
    empty = target([torch.zeros(0, 4)], [torch.zeros(0).long()], 3, 16, 16)
    assert loss_of(torch.full_like(logits, -20.0), torch.zeros_like(shape), empty) < 1e-4
    assert loss_of(logits.requires_grad_(), shape, empty).isfinite()


def test_overlaps_and_suppression():
    a = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4], [10, 10, 14, 14]])
    b = torch.tensor([[0.0, 0, 4, 4], [2, 0, 6, 4], [0, 0, 4, 4]])
    iou, giou = overlaps(a, b)
    assert torch.allclose(iou, torch.tensor([1, 1 / 3, 0])) and torch.allclose(giou[2], torch.tensor(-164 / 196))
    same = [[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 8], [20, 20, 30, 30]]
    assert apart(found(same, [0.9, 0.8, 0.7, 0.6], [0, 0, 1, 0]), 0.6).tolist() == [0, 2, 3]


def test_boxes_move_with_their_photos():
    data, generator = photos("random"), torch.Generator().manual_seed(3)
    x, boxes, kinds = changed(ready(data.images), data.boxes, data.kinds, generator)
    hit = total = 0
    for image, box, kind in zip(x, boxes, kinds, strict=True):
        assert len(box) == len(kind) and (box >= 0).all() and (box <= torch.tensor([96, 64, 96, 64])).all()
        for left, top, right, bottom in box.round().int().tolist():
            inside = image[:, (top + bottom) // 2 : (top + bottom) // 2 + 1, (left + right) // 2]
            total, hit = total + 1, hit + int(inside.min() < -2)
    assert total > 20 and hit / total > 0.9  # the discs are darker in one channel than anything else


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small network whose file the command reads."""
    path = tmp_path_factory.mktemp("net") / "net.safetensors"
    torch.manual_seed(0)
    gconv.save(Detector(3, Config().width).half(), path)
    return path


def test_predict_reads_photos_of_any_size_and_writes_a_picture(tmp_path, trained, capsys):
    for size in ((640, 480), (37, 61), (1000, 90)):
        Image.new("L", size, 200).save(tmp_path / "photo.png")
        predict.main([str(tmp_path / "photo.png"), "--checkpoint", str(trained), "--out", str(tmp_path / "out.png")])
        out, err = capsys.readouterr()
        assert out == "" and "no cells found" in err
        with Image.open(tmp_path / "out.png") as picture:
            assert picture.size == size


def test_predict_returns_boxes_in_the_photos_own_pixels(trained):
    model = predict.restored(trained)
    model.find = lambda x, least: [found([[10, 20, 90, 80], [-9, -9, 900, 900]], [0.9, 0.8], [1, 0])]
    boxes = predict.predict(model, torch.zeros(3, 960, 1280, dtype=torch.uint8))
    assert boxes[0][0] == [40, 80, 360, 320] and boxes[0][1] == "WBC" and boxes[1][0] == [0, 0, 1280, 960]


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda path: None, "cannot be read"),
        (lambda path: path.write_bytes(b"text"), "is no photo"),
        (lambda path: Image.new("RGB", (9, 9)).save(path), "too small"),
        (lambda path: Image.new("RGB", (2000, 20)).save(path), "too narrow"),
    ],
)
def test_predict_on_no_photo_is_one_sentence(tmp_path, trained, make, says):
    make(tmp_path / "photo.png")
    with pytest.raises(SystemExit, match=f"error: .*{says}") as caught:
        predict.main([str(tmp_path / "photo.png"), "--checkpoint", str(trained), "--out", str(tmp_path / "out.png")])
    assert "\n" not in str(caught.value) and not (tmp_path / "out.png").exists()


def test_predict_with_another_file_or_no_place_to_write_is_one_sentence(tmp_path, trained, capsys):
    photo = tmp_path / "photo.png"
    Image.fromarray(np.full((48, 64, 3), 200, np.uint8)).save(photo)
    gconv.save(Detector(3, 4).half(), tmp_path / "narrow.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(trained.read_bytes()[:5000])
    for name in ("narrow", "broken", "none"):
        with pytest.raises(SystemExit, match=r"^error: "):
            predict.main([str(photo), "--checkpoint", str(tmp_path / f"{name}.safetensors")])
    with pytest.raises(SystemExit, match=r"^error: "):
        predict.main([str(photo), "--checkpoint", str(trained), "--out", str(tmp_path / "none" / "out.png")])
    before = photo.read_bytes()
    with pytest.raises(SystemExit, match=r"would replace .*photo.png"):
        predict.main([str(photo), "--checkpoint", str(trained), "--out", str(photo)])
    assert photo.read_bytes() == before
    for wrong in (["--score", "2"], ["--out", "boxes.txt"]):
        with pytest.raises(SystemExit):
            predict.main([str(photo), *wrong])
    assert "must end in .png or .jpg" in "".join(capsys.readouterr())


def test_bad_settings_are_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit, match=r"blood cells .* are not there"):
        bccd.main(["--data-root", str(tmp_path), "--results", str(tmp_path / "r.jsonl")])
    for wrong, says in ((["--epochs", "0"], "at least 1"), (["--lr", "nan"], "lr must be positive")):
        with pytest.raises(SystemExit):
            bccd.main(wrong)
        assert says in "".join(capsys.readouterr())
