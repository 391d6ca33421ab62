import inspect
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.by_hand import graph as by_hand_graph
from experiments.by_hand import loops as by_hand_loops
from experiments.by_hand import walk as by_hand
from experiments.by_hand.loops import as_matrix, convolve_1d, convolve_2d, correlate_1d, flip, forward, gap, laplace
from experiments.by_hand.walk import STEPS, Gap, main
from experiments.harness.machine import ROOT


def take(step, seed=1):
    return {g.what: g for g in step(np.random.default_rng(seed))}


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_every_difference_of_a_step_is_within_its_bounds(step):
    gaps = take(step)
    assert all(g.ok for g in gaps.values()), [g for g in gaps.values() if not g.ok]
    assert len(gaps) == len(list(step(np.random.default_rng(1))))  # no two of one name
    for g in gaps.values():
        single, slope = "float32" in g.what, "finite difference" in g.what
        high = math.inf if "must differ" in g.what else 1e-5 if single else 1e-6 if slope else 1e-12
        assert g.high == high, g.what
    if step is not by_hand.step_library:  # its law is that there is nothing to tell apart
        assert step is by_hand.step_chapter or any("must differ" in what for what in gaps)


def test_a_bound_is_a_bound():
    assert Gap("x", 1e-12).ok and not Gap("x", 2e-12).ok and not Gap("x", math.nan).ok
    assert gap("equal", [1.0], [1.0]).ok and not gap("off", [1.0], [1.0 + 1e-11]).ok
    assert not gap("shapes", np.zeros((2, 1)), np.zeros(2)).ok
    assert not gap("nan", [math.nan], [math.nan]).ok
    assert not gap("equal, but to differ", [1.0], [1.0], differ=True).ok
    assert not gap("nan, but to differ", [math.nan], [0.0], differ=True).ok
    assert gap("apart", [1.0], [2.0], differ=True).ok


def test_the_numbers_that_the_text_names():
    f, g = np.array([1.0, 2, 3, 4]), np.array([3.0, 2, 1])
    assert convolve_1d(f, g).tolist() == [3, 8, 14, 20, 11, 4]
    assert correlate_1d(f, g).tolist() == [10, 16] and correlate_1d(f, flip(g)).tolist() == [14, 20]
    f, g = np.arange(1.0, 10).reshape(3, 3), np.array([[1.0, 2], [3, 4]])
    assert convolve_2d(f, g)[1, 1] == 23 and forward(f[..., None], g[..., None, None])[0, 0, 0] == 37
    assert as_matrix((3, 3, 1), g[..., None, None])[3].tolist() == [0, 0, 0, 0, 1, 2, 0, 3, 4]


def unscaled(x, edges, lmax):
    return lmax / 2 * (laplace(x, edges, lmax) + x)  # L x in place of (2 L / lmax - I) x


@pytest.mark.parametrize(
    ("module", "name", "broken", "step", "caught"),
    [
        (by_hand, "flip", lambda g: g, by_hand.step_sum, "correlation with g flipped - convolution"),
        (by_hand, "flip", lambda g: np.flip(g, 0).copy(), by_hand.step_plane,
         "torch conv2d with g flipped - convolution"),
        (by_hand, "as_matrix", lambda x, w, **k: as_matrix(x, w.swapaxes(0, 1), **k), by_hand.step_matrix,
         "matrix @ x - loops"),
        (by_hand, "as_matrix", lambda x, w, **k: as_matrix(x, np.flip(w, (0, 1)), **k), by_hand.step_transposed,
         "torch conv_transpose2d, the same weight - matrix^T @ y"),
        (by_hand, "backward", lambda S, mixing, W, x, dy: by_hand_graph.backward(S, mixing, W.flip(0), x, dy),
         by_hand.step_backward, "dX: loops - gconv.plan.backward, the engine's rule"),
        (by_hand_loops, "laplace", unscaled, by_hand.step_cheb, "y: loops - PyG ChebConv"),
    ],
    ids=["kernel not flipped", "flipped along one axis", "kernel transposed", "kernel flipped", "taps", "not rescaled"],
)  # fmt: skip
def test_a_wrong_definition_is_rejected(monkeypatch, module, name, broken, step, caught):
    monkeypatch.setattr(module, name, broken)
    assert not take(step)[caught].ok


def test_the_script_fails_where_a_difference_is_out_of_bounds(monkeypatch, capsys):
    monkeypatch.setattr(by_hand, "STEPS", (by_hand.step_sum,))
    monkeypatch.setattr(by_hand, "convolve_1d", lambda f, g: convolve_1d(f, flip(g)))
    with pytest.raises(SystemExit, match=r"error: 1 of 4 differences are out of bounds: loops - numpy\.convolve"):
        main(["--no-figures"])
    assert "WRONG" in capsys.readouterr().out


def test_a_folder_that_cannot_be_made_is_refused_before_the_walk(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=r"error: no pictures can be kept in .*file"):
        main(["--figures", str(tmp_path / "file")])
    with pytest.raises(SystemExit, match="--seed must be at least 0"):
        main(["--no-figures", "--seed", "-1"])
    assert not capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_script_walks_all_steps_and_draws(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.by_hand", "--figures", str(tmp_path / "new")],
        cwd=ROOT, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for number, step in enumerate(STEPS, 1):
        assert f"\n{number}. {inspect.getdoc(step)}\n" in done.stdout
    for said in ("-> ", "[16, 3, 32, 32] -> [16, 64, 32, 32]", "NotLinear:", "Y = sum_k S_k X W_k"):
        assert said in done.stdout
    assert "WRONG" not in done.stdout and str(ROOT) not in done.stdout
    drawn = sorted((tmp_path / "new").iterdir())
    assert [p.name for p in drawn] == [f"by_hand_{name}.png" for name in ("cheb", "idea", "matrix", "shifts", "sum")]
    assert all(p.stat().st_size < 100_000 for p in drawn)
    for path in drawn:
        committed = Path(ROOT, "experiments", "figures", path.name)
        with Image.open(path) as new, Image.open(committed) as kept:
            assert new.size == kept.size and len(new.convert("RGB").getcolors(256) or []) > 4
