"""`python -m experiments... --help`: at once, without torch, and what the real parser prints."""

import json
import re
import subprocess
import sys

import pytest
from limits import COMMANDS, ROOT, fresh

MODULES = [module.removesuffix(".__main__") for module in COMMANDS]
WORDS = [*([module] for module in MODULES), ["experiments.sweep", "ladder"]]
INSIDE = {"torch._C", "numpy._core", "gconv.module", "scipy._lib", "sklearn._config", "matplotlib.cm"}
"""Modules that nothing but their own packages import, which are there where a package is no placeholder."""
REAL = """
import contextlib, io, json, runpy, sys
found = {}
for words in json.loads(sys.argv[1]):
    sys.argv, out = ["-m", *words[1:], "--help"], io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    found[" ".join(words)] = out.buffer.getvalue().decode()
print(json.dumps(found))
"""


def helped(words):
    """What is printed, and which modules were imported on the way, placeholders included."""
    command = [sys.executable, "-X", "importtime", "-m", *words, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    return done.stdout, {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}


def from_the_parser(commands):
    done = fresh(REAL, json.dumps(commands))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_help_needs_no_torch():
    out, imported = helped(["experiments.images.ladder"])
    assert out.startswith("usage: ") and "--rung" in out and "--budget" in out and "tiny sizes" in out
    assert "tyro" in imported and not INSIDE & imported


@pytest.mark.slow
def test_every_command_helps_as_its_parser_does_without_torch():
    assert len(MODULES) > 40
    want, wrong = from_the_parser(WORDS), []
    for words in WORDS:
        out, imported = helped(words)
        other_name = out.startswith("usage:") and not out.startswith("usage: python -m experiments.")
        if INSIDE & imported or out != want[" ".join(words)] or not re.search(r"--\w", out) or other_name:
            wrong.append((words, sorted(INSIDE & imported), out))
    assert not wrong


def test_what_asks_more_of_a_package_than_a_placeholder_has_runs_with_the_package(tmp_path):
    (tmp_path / "counts.py").write_text("from absent_package import numbers\nTWICE = 2 * numbers.FIRST\n")
    code = """
import sys, experiments
from experiments.help_first import Finder, print_help

experiments.__path__.append(sys.argv[1])
print_help(["python", "-m", "experiments.counts", "--help"])
assert not {"absent_package", "experiments.counts"} & set(sys.modules)
assert not any(isinstance(finder, Finder) for finder in sys.meta_path)
print_help(["python", "-m", "json.tool", "--help"])
print("goes on")
"""
    done = fresh(code, str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "goes on\n"), done.stderr
