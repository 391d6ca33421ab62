"""The gallery's scripts run without a warning, each draws at least one picture, and each says what it shows."""

import ast
import runpy

import pytest

from experiments.harness.machine import ROOT

SCRIPTS = sorted((ROOT / "docs" / "gallery").glob("plot_*.py"))
FIRST = SCRIPTS[0]

pytestmark = [
    # imshow asks torch's tensors for numpy arrays in a way that they do not know yet
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]


@pytest.mark.parametrize(
    "script", [pytest.param(s, marks=() if s == FIRST else pytest.mark.slow, id=s.stem) for s in SCRIPTS]
)
def test_a_script_runs_and_draws(script):
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    plt.close("all")
    try:
        runpy.run_path(str(script))
        figures = [plt.figure(number) for number in plt.get_fignums()]
        assert figures and all(axes.has_data() for figure in figures for axes in figure.axes)
    finally:
        plt.close("all")


def test_scripts_are_short_and_say_what_they_show():
    assert len(SCRIPTS) >= 20
    for script in SCRIPTS:
        text = script.read_text(encoding="utf-8")
        title, line, *rest = (ast.get_docstring(ast.parse(text)) or "").splitlines()
        assert title and set(line) == {"="} and len(line) == len(title) and any(rest), script.name
        assert len(text.splitlines()) <= 80, script.name
