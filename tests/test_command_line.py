"""`python -m gconv`: what it prints, what it refuses in one sentence, and its exit status."""

import json
import subprocess
import sys

import pytest
import torch
from limits import ROOT, fresh

import gconv
from gconv import __main__ as command_line
from gconv.__main__ import main
from gconv.kernels import native
from gconv.operators import conv2d


def printed(capsys, *argv):
    main(argv)
    return capsys.readouterr().out


def test_the_summary_of_the_installation(capsys):
    out = printed(capsys)
    assert f"gconv      {gconv.__version__}" in out and torch.__version__ in out and gconv.backend() in out


def test_it_is_a_module_that_can_be_run():
    done = fresh("import runpy; runpy.run_module('gconv', run_name='__main__', alter_sys=True)", "--version")
    assert (done.returncode, done.stdout.strip()) == (0, gconv.__version__), done.stderr


@pytest.mark.parametrize("domain", ["grid", "graph", "all"])
def test_operators_are_listed_by_domain(capsys, domain):
    names = [line.split()[0] for line in printed(capsys, "operators", domain).splitlines()]
    assert ("conv2d" in names, "gcn" in names) == (domain != "graph", domain != "grid")
    assert domain != "all" or names == gconv.list_operators()


def test_every_operator_is_explained():
    for name in gconv.list_operators():
        text = command_line.explain(name)
        assert text.startswith(f"{name}(") and gconv.cite(name) in text and len(text.splitlines()) > 5
    assert command_line.explain("gcn").startswith("gcn(in_channels: int, out_channels: int, ")
    assert "normalization: Literal['sym', 'rw'] | None = 'sym'" in command_line.explain("cheb").splitlines()[0]


def test_a_plan_is_that_of_the_layer(capsys):
    out = printed(capsys, "plan", "conv2d(3, 4, 3, padding=1)", "2", "3", "8", "8")
    want = gconv.GConv(conv2d(3, 4, 3, padding=1)).plan(torch.zeros(2, 3, 8, 8))
    assert out.splitlines()[0] == str(want).splitlines()[0]
    assert "native" in out
    assert "(50 sites, 4 channels)" in printed(capsys, "plan", "gcn(4, 2)", "50", "4", "--edges", "200")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["explain", "chebb"], r"no operator named 'chebb'; did you mean 'cheb'\?"),
        (["plan", "cheb(16, 32, K=3)", "9", "16"], "did you mean 'k'?"),
        (["plan", "__import__('os').getcwd()", "9"], "is not an operator with its arguments, such as"),
        (["plan", "gcn(*[1, 2])", "9", "1"], "is not an operator with its arguments, such as"),
        (["plan", "gcn", "9", "1"], "is not an operator with its arguments, such as"),
        (["plan", "(" * 500, "9"], "is not an operator with its arguments, such as"),
        (["plan", "gcn(4, 2)", "9"], r"takes features of shape \(\*batch, nodes, channels\), but \[9\]"),
        (["plan", "gcn(4, 2)", "9", "5"], "4 channels"),
        (["plan", "spectral(4, 2)", "9", "4"], r"on the random graph of this command, .* layer\.plan\(x, graph\)"),
        (["plan", "selection(4, 2, taps=3)", "9", "4"], "selection cannot run on the random graph of this command"),
        (["plan", "gcn(4, 2)", "-9", "4"], "must be at least 1"),
        (["plan", "gcn(4, 2)", "9", "4", "--edges", "-1"], "must be at least 0"),
    ],
)
def test_mistakes_are_errors_with_a_message(argv, message):
    with pytest.raises(SystemExit, match=message):
        main(argv)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["gcn(4, 2)", str(10**14), "4"], "too large for the memory of this machine"),
        (["gcn(4, 2)", str(10**26), "4"], "more bytes than can be addressed"),
        (["gcn(4, 2)", str(10**14), "4", "--edges", str(10**15)], "too large for the memory of this machine"),
        (["gcn(4, 2)", "9", "4", "--edges", str(10**23)], "more bytes than can be addressed"),
        (["gcn(1000000000, 1000000000)", "9", "4"], "too large for the memory of this machine"),
        (["conv2d(3, 8, 3)", "1", "3", "9", "9", "--edges", "4"], "--edges is for operators on graphs"),
    ],
)
def test_impossible_plans_are_errors_with_a_message(argv, message):
    with pytest.raises(SystemExit, match=message) as caught:
        main(["plan", *argv])
    assert "\n" not in str(caught.value) and "enforce fail" not in str(caught.value)


@pytest.mark.parametrize("spec", ["gcn(16, 7)", "gat(16, 7)", "cheb(16, 7, k=3)", "sage(16, 7)"])
def test_a_plan_for_many_edges_creates_none(capsys, monkeypatch, spec):
    """It is the plan for drawn edges, up to the loops among these; a billion edges are no more work."""
    argv = "plan", spec, "500", "16", "--edges", "4000"
    chosen = [next(line for line in printed(capsys, *argv).splitlines() if line.startswith("->")).split()[:3]]
    monkeypatch.setattr(command_line, "MOST_EDGES", 100)
    monkeypatch.setattr(torch, "randint", None)
    chosen.append(next(line for line in printed(capsys, *argv).splitlines() if line.startswith("->")).split()[:3])
    (name, flops), (other, more) = ((words[1], float(words[2])) for words in chosen)
    assert name == other and flops == pytest.approx(more, rel=0.01)
    assert "predicted" in printed(capsys, "plan", spec, "10000", "16", "--edges", str(10**9))
    monkeypatch.setattr(command_line, "MOST_EDGES", 10_000)
    with pytest.raises(SystemExit, match="not callable"):
        printed(capsys, *argv)  # the control: here edges would be drawn


@pytest.mark.parametrize("device", ["foo", "meta", ""])
def test_rates_are_shown_only_for_devices_that_have_them(capsys, device):
    with pytest.raises(SystemExit):
        main(["calibrate", "--show", "--device", device])
    said = capsys.readouterr()
    assert not said.out and f"Rates are measured for cpu, cuda, xpu, not for {device!r}." in said.err
    assert "cuda:1" in printed(capsys, "calibrate", "--show", "--device", "cuda:1")


def test_the_doctor_gives_advice(capsys, monkeypatch):
    with pytest.raises(SystemExit) as end:
        main(["doctor"])
    assert end.value.code == int(native.LIBRARY is None)
    assert "kernels" in capsys.readouterr().out
    monkeypatch.setattr(native, "load", lambda: None)
    monkeypatch.setattr(command_line, "_installed", lambda package: package != "scipy")
    with pytest.raises(SystemExit) as end:
        main(["doctor"])
    out = capsys.readouterr().out
    assert end.value.code == 1 and "to do  compiled kernels: install a C compiler" in out
    assert "to do  scipy: pip install -c constraints.txt -e '.[graph]'" in out and "ok     networkx" in out


@pytest.mark.filterwarnings("ignore:The calibration .* cannot be used")
def test_an_unusable_calibration_is_not_reported_as_used(capsys, tmp_path, monkeypatch):
    file = tmp_path / "calibration.json"
    monkeypatch.setenv("GCONV_CALIBRATION", str(file))
    content = json.loads((ROOT / "gconv" / "rates.json").read_text())
    for text, used in ((json.dumps(content), True), ("{}", False), ("text", False), (None, False)):
        file.unlink(missing_ok=True) if text is None else file.write_text(text)
        gconv.clear_cache()
        assert (f"measured here: {file}" in printed(capsys)) == used
        assert ("ok     rates of this machine" in command_line.doctor()[0]) == used
    monkeypatch.undo()
    gconv.clear_cache()


def test_calibrate_takes_its_own_arguments(capsys):
    assert printed(capsys, "calibrate", "--show").startswith("rates from")
    with pytest.raises(SystemExit) as end:
        main(["operators", "--show"])
    assert end.value.code == 2


def test_help_needs_no_torch():
    """As the command `gconv` does it."""
    code = """
import runpy, sys
import gconv_command
for words in ([], ["operators"], ["explain"], ["plan"], ["doctor"], ["calibrate"], ["propagate"]):
    sys.argv = ["gconv", *words, "--help"]
    try:
        gconv_command.main()
    except SystemExit as end:
        assert not end.code
assert not {"torch", "numpy", "gconv"} & set(sys.modules), sorted(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: python -m gconv") == 7
    assert "--device" in done.stdout and "--memory MEMORY" in done.stdout


@pytest.mark.parametrize("words", ["gconv", "gconv plan", "gconv propagate", "gconv.calibrate", "datasets"])
def test_help_of_the_module_needs_no_torch(words):
    command = [sys.executable, "-X", "importtime", "-m", *words.split(), "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0 and done.stdout.startswith(f"usage: python -m {words}"), done.stderr
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "runpy" in imported and not {"torch", "numpy", "gconv.module"} & imported


def test_the_command_is_the_module(capsys, monkeypatch):
    import gconv_command

    monkeypatch.setattr(sys, "argv", ["gconv", "--version"])
    gconv_command.main()
    assert capsys.readouterr().out.strip() == gconv.__version__
