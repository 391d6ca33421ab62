"""The package: one version, extras that are pinned, and a check of wheels that finds what is wrong."""

import re
import tomllib
import zipfile

import gconv
from experiments.harness.machine import ROOT
from tests import package

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_version_is_stated_once():
    assert package.version() == gconv.__version__
    assert "version" in PROJECT["dynamic"] and "version" not in PROJECT
    assert f"\nversion: {gconv.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_what_an_extra_names_is_pinned_in_the_constraints():
    pinned = {
        re.sub(r"[-_.]+", "-", line.split("==")[0]).lower()
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    }
    for extra, requirements in PROJECT["optional-dependencies"].items():
        names = {re.sub(r"[-_.]+", "-", re.split(r"[\[<>=;~! ]", r)[0]).lower() for r in requirements} - {"gconv"}
        assert names <= pinned, (extra, names - pinned)
        inner = {e for r in requirements if r.startswith("gconv[") for e in re.findall(r"\[(.*)\]", r)[0].split(",")}
        assert inner <= set(PROJECT["optional-dependencies"]), extra


def test_the_documentation_s_own_packages_are_pinned_and_do_not_move_others():
    ours = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    lines = [x for x in (ROOT / "docs" / "requirements.txt").read_text().splitlines() if x and not x.startswith("#")]
    assert all("==" in line for line in lines)
    assert not {line.split("==")[0].lower() for line in lines} & {name.lower() for name in ours}


def wheel(path, without=(), extra=(), version=gconv.__version__):
    """A wheel of the source as it should be, but for these."""
    files = {p for p in (ROOT / "gconv").rglob("*") if p.suffix in (".py", ".c", ".h", ".json") or p.name == "py.typed"}
    with zipfile.ZipFile(path, "w") as archive:
        for name in {*(str(p.relative_to(ROOT)) for p in files), "gconv_command.py", *extra} - set(without):
            archive.writestr(name, "")
        archive.writestr("gconv-0.dist-info/METADATA", f"Name: gconv\nVersion: {version}\n\n# gconv: a convolution\n")
        archive.writestr("gconv-0.dist-info/licenses/LICENSE", "")
    return path


def test_the_check_of_wheels_finds_what_is_wrong(tmp_path):
    assert package.contents(wheel(tmp_path / "a.whl")) == []
    broken = wheel(tmp_path / "b.whl", without=["gconv/py.typed"], extra=["tests/conftest.py"], version="9.9")
    assert package.contents(broken) == [
        "tests/conftest.py is in the wheel",
        "gconv/py.typed is missing",
        f"the version is 9.9, not {gconv.__version__}",
    ]
