"""The table of features: what it says of gconv is shown by something that exists."""

import ast
import importlib

import pytest

from experiments.harness.machine import ROOT
from experiments.report import features
from experiments.report.features import FEATURES, PEERS, Feature


def exists(shown):
    node = shown.split()[0]
    if not node.startswith("tests/"):
        module = importlib.import_module(node)
        return hasattr(importlib.import_module(f"{node}.__main__") if hasattr(module, "__path__") else module, "main")
    path, _, name = node.partition("::")
    tree = ast.parse((ROOT / path).read_text()) if (ROOT / path).exists() else ast.Module([], [])
    return any(
        isinstance(n, ast.FunctionDef) and n.name.startswith("test_") and name in ("", n.name) for n in tree.body
    )


@pytest.mark.parametrize("feature", FEATURES, ids=lambda f: f.what)
def test_every_command_exists(feature):
    assert all(map(exists, feature.shown)), feature.shown
    assert bool(feature.shown) == (feature.gconv != "no")


@pytest.mark.parametrize(
    "shown", ["tests/test_laws.py::test_nothing", "tests/absent.py::test_x", "tests/oracles/common.py"]
)
def test_a_command_that_does_not_exist_is_noticed(shown):
    """Negative control."""
    assert not exists(shown)


def test_options_select_a_law():
    from gconv.testing import LAWS

    options = [s.split(" -k ")[1] for f in FEATURES for s in f.shown if " -k " in s]
    assert options and set(options) <= set(LAWS)


def test_no_feature_without_a_command_and_no_command_without_a_feature():
    with pytest.raises(ValueError, match="needs something that shows it"):
        Feature("x", "yes", (), "no " * len(PEERS))
    with pytest.raises(ValueError, match="needs something that shows it"):
        Feature("x", "no", ("tests/test_laws.py::test_law_holds",), "no " * len(PEERS))
    with pytest.raises(ValueError, match="marks"):
        Feature("x", "no", (), "no no maybe")


def test_the_page_shows_the_table():
    text = (ROOT / "docs" / "libraries.md").read_text(encoding="utf-8")
    assert features.fill(text) == text
    assert all(f"| {f.what} |" in text for f in FEATURES)
    assert len({f.what for f in FEATURES}) == len(FEATURES)


def test_what_is_said_of_pyg_s_size():
    conv = pytest.importorskip("torch_geometric.nn.conv")
    (note,) = [f.note for f in FEATURES if f.what == "graph convolutions"]
    assert f"{len(conv.__all__)} names" in note
