"""The examples of README.md and of the pages under docs/ run as printed, each page by itself."""

import doctest
import importlib
import re
import shutil
import sys

import pytest

import gconv.spec
from experiments import tables
from experiments.harness.machine import ROOT

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
TEXTS = {page: page.read_text(encoding="utf-8") for page in tables.pages(ROOT) if page.parent.name != "results"}
PAGES = [page for page, text in TEXTS.items() if ">>> " in text]


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # Keras writes its variables by numpy
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_run_as_printed(page, tmp_path, monkeypatch):
    """A block that starts with `# NAME.py` is a module, which the examples import."""
    monkeypatch.setattr(gconv.spec, "_OPERATORS", dict(gconv.spec._OPERATORS))
    monkeypatch.syspath_prepend(tmp_path)
    code, report, modules = "", [], []
    for block in re.findall(r"^```python\n(.*?)^```$", TEXTS[page], re.DOTALL | re.MULTILINE):
        if file := re.match(r"# (\w+)\.py\n", block):
            (tmp_path / f"{file[1]}.py").write_text(block)
            modules.append(file[1])
        else:
            assert ">>> " in block, block
            code += block
    importlib.invalidate_caches()
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    runner.run(doctest.DocTestParser().get_doctest(code, {}, page.name, page.name, 0), out=report.append)
    for module in modules:
        assert sys.modules.pop(module)
    assert runner.tries and not runner.failures, "".join(report)


def test_a_wrong_example_is_detected():
    """Negative control."""
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "README.md", None, 0)
    assert doctest.DocTestRunner(optionflags=FLAGS).run(test, out=lambda _: None).failed == 1


def test_pages_with_examples_are_found():
    names = {"README.md", "plans.md", "linear-maps.md", "converting.md", "add-a-convolution.md", "adapters.md"}
    assert names <= {page.name for page in PAGES}


def test_every_page_is_listed():
    listed = TEXTS[ROOT / "docs" / "README.md"]
    names = {page.name for page in TEXTS if page.parent.name == "docs"} - {"README.md", "index.md"}
    assert [name for name in sorted(names) if f"]({name})" not in listed] == []


@pytest.mark.parametrize("name", ["docstrings", "operator_pages", "reference_pages"])
def test_examples_of_the_site_s_own_code(name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    module = importlib.import_module(f"ext.{name}")
    found = doctest.testmod(module, optionflags=FLAGS)
    assert found.attempted and not found.failed


def test_the_check_of_the_site_finds_what_is_wrong(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    check = importlib.import_module("ext.check_site")
    (tmp_path / "operators").mkdir()
    (tmp_path / "operators" / "gcn.html").write_text(
        '<p id="a"><a href="../index.html#b">up</a><img src="no.png"><img alt="" src="a_thumb.png">UserWarning: x'
    )
    (tmp_path / "operators" / "a_thumb.png").touch()
    (tmp_path / "index.html").write_text('<a href="operators/gcn.html#a"></a><a href="#here" id="here"></a>')
    (tmp_path / "searchindex.js").write_text('"index"')
    assert check.wrong(tmp_path) == [
        "operators/gcn.html: no.png has no alternative text",
        "operators/gcn.html: a_thumb.png has no alternative text",
        "operators/gcn.html: an example prints 'UserWarning: '",
        "operators/gcn.html: ../index.html#b names a place that is not there",
        "operators/gcn.html: no.png leads nowhere",
        "the search does not know gcn",
    ]


def test_the_check_in_a_browser_finds_what_is_wrong(tmp_path, monkeypatch):
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Chromium is not installed")
    monkeypatch.syspath_prepend(ROOT / "docs")
    check = importlib.import_module("ext.check_browser")
    (tmp_path / "index.html").write_text("<p>right</p><img src='dot.svg'>")
    (tmp_path / "dot.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>")
    (tmp_path / "wide.html").write_text("<div style='width: 600px'>wide</div>")
    (tmp_path / "wrong.html").write_text("<img src='no.png'><script>missing()</script>")
    (tmp_path / "search.html").write_text("<div id=search-results><a href='operators/gcn.html'>gcn</a></div>")
    found = check.wrong(tmp_path, chromium, 60.0)
    assert [re.sub(r" \d+ pixels are used", "", text) for text in found if " at 390 " in text] == [
        "wide.html at 390 pixels: scrolls sideways,",
        "wrong.html at 390 pixels: Uncaught ReferenceError: missing is not defined",
        "wrong.html at 390 pixels: no.png does not load",
    ]
    assert not any("index.html" in text or "wide.html at 1440" in text for text in found)
    assert found[-1] == "the search for cheb finds 1 pages, but not its own"
