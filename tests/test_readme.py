import importlib
import re
import sys

import pytest
import torch

import gconv.spec
from experiments import tables
from experiments.harness.machine import ROOT
from experiments.harness.render import TableError
from experiments.report import operators as operator_table
from gconv.lowering import LOWERINGS
from gconv.operators.outside import OUTSIDE

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
OPERATORS = (ROOT / "docs" / "operators.md").read_text(encoding="utf-8")
PAGES = {page: page.read_text(encoding="utf-8") for page in tables.pages(ROOT)}


@pytest.fixture
def own_registry(monkeypatch):
    """What the page registers stays on the page."""
    monkeypatch.setattr(gconv.spec, "_OPERATORS", dict(gconv.spec._OPERATORS))


def test_commands_have_help(monkeypatch, capsys):
    names = sorted(set(re.findall(r"python -m ((?:experiments|datasets|gconv)[\w.]*)", "".join(PAGES.values()))))
    assert {"experiments.images.digits_pair", "experiments.tables", "datasets"} <= set(names)
    for name in names:
        module = importlib.import_module(name)
        monkeypatch.setattr(sys, "argv", [name, "--help"])
        with pytest.raises(SystemExit) as end:
            (importlib.import_module(f"{name}.__main__") if hasattr(module, "__path__") else module).main()
        assert not end.value.code and "--" in capsys.readouterr().out, name


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    named = {
        target for text in PAGES.values() for target in re.findall(r"(?:`|^    )make ([\w-]+)", text, re.MULTILINE)
    }
    assert {"demo", "test", "tables"} <= named
    assert named <= set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))


GENERATED = {f"{folder}/index.rst" for folder in ("operators", "examples", "reference")}  # by `make docs`


def _anchors(text):
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_anchors_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists() or target in GENERATED, target
        assert not anchor or anchor in _anchors(PAGES[place]), target


def test_the_front_page_is_short():
    assert len(TEXT.encode()) <= 10 * 1024


def test_it_counts_the_operators():
    assert f"There are {len(gconv.list_operators())} operators" in TEXT


def test_lowerings_table_names_them_all():
    plans = (ROOT / "docs" / "plans.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^\| lowering \|.*?\n\n", plans, re.DOTALL | re.MULTILINE)
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == {low.name.split(":")[0] for low in LOWERINGS}
    for low in LOWERINGS:
        assert f"`{low.name}`" in plans


def test_extras_exist():
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"'\.\[(\w+)\]'", TEXT)) == set(extras)


def test_operator_table_is_the_registry():
    assert operator_table.fill(OPERATORS) == OPERATORS
    table = OPERATORS[OPERATORS.index("<!-- operators -->") : OPERATORS.index("<!-- /operators -->")]
    assert [name for name in gconv.list_operators() if f"`{name}`" not in table] == []
    assert [name for name in operator_table.FAMILIES if f"**{name}**" not in table] == []


def test_compared_operators_exist():
    assert set(gconv.list_operators()) >= operator_table.LABELLED


def test_what_is_outside_is_listed():
    block = OPERATORS[OPERATORS.index("<!-- outside -->") : OPERATORS.index("<!-- /outside -->")]
    assert [name for name in (*OUTSIDE, *operator_table.LAYERS) if f"`{name}`" not in block] == []


def test_what_is_inside_cannot_be_listed_as_outside(monkeypatch):
    """Negative control."""
    monkeypatch.setitem(operator_table.LAYERS, "Conv", torch.nn.Conv2d(1, 1, 1))
    with pytest.raises(TableError, match="Conv is listed as outside"):
        operator_table.left_out()


def test_operator_table_follows_the_registry(own_registry):
    """Negative control: an operator that is not on the page is missed."""
    del gconv.spec._OPERATORS["tag"]
    assert operator_table.fill(OPERATORS) != OPERATORS


@pytest.mark.parametrize("text", ["<!-- operators -->", "<!-- /operators -->\n<!-- operators -->"])
def test_operator_markers_must_pair(text):
    with pytest.raises(TableError, match="stand once each"):
        operator_table.fill(text)
