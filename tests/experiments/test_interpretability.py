from dataclasses import replace

import pytest
import torch
from torch import nn

from experiments.harness import render
from experiments.harness.common import Results
from experiments.interpretability import cells, methods
from experiments.interpretability.cells import ASKED, Config, network, pictures, windows
from experiments.interpretability.methods import METHODS

SMALL = Config(**{**cells.EXPERIMENT.smoke, "asked": 1, "windows": 8, "model": "cnn"})


def test_smoke_makes_rows_tables_and_figures(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    cells.main(["--smoke", "--asked", "1", "--windows", "8", "--results", str(path)])
    rows = Results(path).rows()
    assert [row["config"]["model"] for row in rows] == list(cells.MODELS)
    assert "passed all tests" in capsys.readouterr().out
    for row in rows:
        assert row["metrics"]["exact"]["completeness"] < 1e-3
    for table in cells.TABLES:
        assert "graph" in render.render(table, rows)
    for figure in cells.FIGURES:
        render.paint(figure, rows, tmp_path / f"{figure.name}.png")
        assert render.drawn_from(tmp_path / f"{figure.name}.png") == render.fingerprint(rows)


class Linear(nn.Module):
    """Logits are sums over marked pixels: every method's map is known."""

    def __init__(self, mark):
        super().__init__()
        self.mark, self.last = mark, nn.Identity()

    def forward(self, x):
        y = self.last(x)
        return torch.stack([(y * self.mark).sum((1, 2, 3)) - 1.0, (y * 2).sum((1, 2, 3))], 1)


def test_methods_on_a_linear_function_by_hand():
    mark, x = torch.zeros(4, 4), torch.rand(2, 3, 4, 4)
    mark[1, 2] = 1
    model = Linear(mark)
    assert torch.equal(METHODS["saliency"](model, x, 0), mark.expand(2, 4, 4))
    for name in ("integrated", "exact"):
        maps = METHODS[name](model, x, 0)
        assert torch.allclose(maps, (x * mark).sum(1), atol=1e-5)
        assert methods.completeness(model, x, 0, maps, name) < 1e-5 < methods.completeness(model, x, 0, 2 * maps, name)
    assert torch.allclose(METHODS["cam"](model, x, 1), 2 * x.sum(1), atol=1e-4)


def test_deletion_and_insertion_by_hand():
    mark = torch.zeros(4, 4)
    mark[0, 0] = 1
    x, first = torch.full((1, 3, 4, 4), 10.0), mark[None]
    model = Linear(mark)
    deletion, insertion = methods.curves(model, x, 0, first)
    low = torch.sigmoid(torch.tensor(-1.0)).item()
    assert deletion == pytest.approx(low + (1 - low) / 32, abs=1e-4)  # the only pixel that counts goes first
    assert insertion == pytest.approx(1 - (1 - low) / 32, abs=1e-4)
    worse = methods.curves(model, x, 0, -first)
    assert worse[0] > 0.9 and worse[1] < 0.35


def test_verdicts_follow_the_thresholds():
    good = {"weights": 0.3, "labels": 0.1, "deletion": 0.44, "insertion": 0.56, "pointing": 0.61, "completeness": 0.01}
    scores = {name: good for name in METHODS} | {
        "noise": {"deletion": 0.5, "insertion": 0.5, "pointing": 0.1},
        "centre": {"deletion": 0.5, "insertion": 0.5, "pointing": 0.5},
    }
    assert all(all(v.values()) for v in cells.verdicts(scores).values())
    assert "completeness" not in cells.verdicts(scores)["saliency"]
    for test, bad in (("weights", 0.31), ("labels", 0.5), ("deletion", 0.46), ("insertion", 0.54), ("pointing", 0.59),
                      ("completeness", 0.011)):  # fmt: skip
        found = cells.verdicts(scores | {"exact": good | {test: bad}})["exact"]
        assert [t for t, passed in found.items() if not passed] == [test]
    row = {
        "config": {"model": "cnn"},
        "metrics": {"passed": cells.verdicts(scores | {"exact": good | {"labels": 1.0}})},
    }
    assert cells.said([row]) == ["cnn: passed all tests: saliency, integrated, cam. Not all: exact failed labels."]


def test_windows_hold_what_they_say():
    data = pictures("random")
    found = windows(data, "train", 12, 32, 0)
    for y, inside in zip(found.y, found.inside, strict=True):
        assert torch.equal(y > 0, inside.flatten(1).any(1))
    assert windows(data, "train", 12, 32, 0).x.equal(found.x) and not windows(data, "train", 12, 32, 1).x.equal(found.x)
    other = replace(data, images=data.images.clone(), kinds=tuple(2 - k for k in data.kinds))
    other.images[list(data.parts["test"])] = 0
    assert windows(other, "train", 12, 32, 0).x.equal(found.x)  # test photos change no window for training


def test_exact_rows_of_the_graph_network_sum_to_its_logit():
    torch.manual_seed(0)
    model, x = network(replace(SMALL, model="graph")).eval(), torch.randn(1, 3, 32, 32)
    maps = METHODS["exact"](model, x, 1)
    assert methods.completeness(model, x, 1, maps, "exact") < 1e-4
    other = methods.scrambled(network(replace(SMALL, model="graph")), 0)
    assert abs(methods.alike(maps, METHODS["exact"](other, x, 1))) < 1


def test_bad_settings_are_one_sentence(capsys, tmp_path):
    with pytest.raises(SystemExit, match="blood cells"):
        cells.main(["--data-root", str(tmp_path), "--results", str(tmp_path / "r.jsonl")])
    for wrong, says in (
        (["--side", "30"], "multiple of 4"),
        (["--side", "200"], "at most 120"),
        (["--asked", "0"], "1"),
    ):
        with pytest.raises(SystemExit):
            cells.main(wrong)
        assert says in "".join(capsys.readouterr())
    assert set(ASKED) < {"RBC", "WBC", "Platelets"}
