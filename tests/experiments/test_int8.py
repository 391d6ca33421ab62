"""The detector as an ONNX program, in float32 and in int8."""

import pytest
import torch

from experiments.detection import int8
from experiments.detection.bccd import photos, ready
from experiments.detection.int8 import Config
from experiments.harness.common import Results
from experiments.harness.render import render

QUIET = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


def test_what_cannot_be_run_is_refused():
    for name in ("calibration", "calls"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
            Config(**{name: 0})


@QUIET
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_smoke_makes_a_row_for_every_form(tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    path = tmp_path / "rows.jsonl"
    int8.main(["--smoke", "--results", str(path)])
    rows = {row["config"]["model"]: row["metrics"] for row in Results(path).rows()}
    assert list(rows) == list(int8.MODELS) and "kB" in capsys.readouterr().out
    assert rows["eager"]["gap"] == 0 and rows["float32"]["gap"] < 1e-4 < rows["int8"]["gap"] < 1
    assert max(rows[form]["bytes"] for form in ("int8", "int8 body")) < rows["float32"]["bytes"]
    assert "int8 body" in render(int8.TABLE, Results(path).rows())


@QUIET
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_programs_take_any_number_of_photos_and_are_calibrated_on_photos_for_training_alone(tmp_path):
    pytest.importorskip("onnxruntime")
    data, config = photos("random"), Config(model="int8", dataset="random", calibration=3)
    x, outputs = ready(data.images[:3]), []
    for part in (None, "test", "train"):
        images = data.images.clone()
        for i in data.parts[part] if part else ():
            images[i] = 255 - images[i]
        given = type(data)(**{**vars(data), "images": images})
        call, _ = int8.form(config, given, None, tmp_path)
        outputs.append(torch.cat(call(x), 1))
        assert torch.allclose(torch.cat(call(x[:1]), 1), outputs[-1][:1], atol=1e-5)
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])


def test_seen_is_what_the_detector_was_trained_on():
    assert int8.seen(Config(dataset="random"), None).label == "random discs"
    assert int8.expand(Config(), 1) == [Config(model=model) for model in int8.MODELS]
