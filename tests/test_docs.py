"""The examples of the pages under docs/ run as printed."""

import doctest
import re

import pytest

from experiments import tables
from experiments.harness.machine import ROOT

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
TEXTS = {page: page.read_text(encoding="utf-8") for page in tables.pages(ROOT) if page.parent.name == "docs"}
PAGES = [page for page, text in TEXTS.items() if ">>> " in text]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_run_as_printed(page):
    text, report = TEXTS[page], []
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    test = doctest.DocTestParser().get_doctest(code, {}, page.name, page.name, 0)
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    runner.run(test, out=report.append)
    assert runner.tries and not runner.failures, "".join(report)


def test_pages_with_examples_are_found():
    assert {"adapters.md", "files.md", "transfer.md"} <= {page.name for page in PAGES}
