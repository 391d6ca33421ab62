"""Every public name stands in an example that is executed: of a docstring, README.md or a page."""

import doctest
import importlib
import inspect
import re
from pathlib import Path

import pytest

from experiments import tables
from experiments.harness.machine import ROOT

PUBLIC = ("gconv", "gconv.operators", "gconv.analysis", "gconv.blocks", "gconv.parallel", "gconv.transfer",
          "gconv.summary", "gconv.interop", "gconv.domains", "gconv.linear", "gconv.basis", "gconv.mixing")  # fmt: skip
OURS = {"lasting", "spread_bias", "initial_weight", "by_heads", "Program"}  # for the library's own modules
PARSER = doctest.DocTestParser()


def examples(texts):
    """All examples of some texts."""
    return [example for text in texts for example in PARSER.get_examples(text)]


def docstrings(text):
    """The docstrings of a file, by its source alone."""
    return re.findall(r'"""(.*?)"""', text, re.DOTALL)


@pytest.fixture(scope="module")
def executed():
    pages = [p.read_text(encoding="utf-8") for p in tables.pages(ROOT) if p.parent.name != "results"]
    blocks = [b for page in pages for b in re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)]
    sources = [p.read_text(encoding="utf-8") for p in Path(ROOT / "gconv").rglob("*.py")]
    return examples(blocks) + examples(d.replace("\\\\", "\\") for text in sources for d in docstrings(text))


def words(some):
    return {word for e in some for word in re.findall(r"\w+", f"{e.source} {e.want} {e.exc_msg or ''}")}


def without_example(module, known):
    listed = {n for n in module.__all__ if not inspect.ismodule(getattr(module, n)) and not n.startswith("law_")}
    return sorted(listed - OURS - known)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_an_example(name, executed):
    assert without_example(importlib.import_module(name), words(executed)) == []


def test_a_name_without_an_example_is_found(executed):
    """Negative control."""
    rest = words([e for e in executed if "bernstein" not in e.source])
    assert without_example(importlib.import_module("gconv.operators"), rest) == ["bernstein"]


def test_there_are_enough_of_them(executed):
    assert len(executed) >= 300
