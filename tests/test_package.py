"""The package: one version, extras that are pinned, and a check of wheels that finds what is wrong."""

import re
import tomllib
import zipfile

import gconv
from experiments.harness.machine import ROOT
from tests import package

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def name_of(requirement):
    """The normalised name of a package in a requirement."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=;~! ]", requirement)[0]).lower()


def test_the_version_is_stated_once():
    assert package.version() == gconv.__version__
    assert "version" in PROJECT["dynamic"] and "version" not in PROJECT
    assert f"\nversion: {gconv.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_what_a_full_install_names_is_pinned_in_the_constraints():
    """A full install is the extra `test`, with the extras that it names."""
    extras, wanted, names = PROJECT["optional-dependencies"], ["test"], set(PROJECT["dependencies"])
    for extra in wanted:  # which grows
        for requirement in extras[extra]:
            inner = re.match(r"gconv\[(.*)\]", requirement)
            wanted += [e for e in inner[1].split(",") if e not in wanted] if inner else []
            names |= set() if inner else {requirement}
    assert {"applications", "experiments", "graph", "parallel"} <= set(wanted)
    found = {name_of(requirement) for requirement in names}
    pinned = {name_of(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    assert found <= pinned, found - pinned


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
