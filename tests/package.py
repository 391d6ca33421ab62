"""Build sdist and wheel, and try the wheel where the repository is not: `make package`.

The wheel is built from the unpacked sdist, so that the sdist is known to be complete. It is installed into a fresh
environment that sees the dependencies of this one and no other gconv.
"""

import argparse
import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILD = "import sys; from setuptools import build_meta; build_meta.build_{}(sys.argv[1])"
SMOKE = """
import sys, torch, gconv
from gconv.operators import cheb, conv2d, gat
assert not gconv.__file__.startswith(sys.argv[1]), gconv.__file__
edges = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
for spec in (cheb(3, 2, k=3), gat(3, 2)):
    layer, x = gconv.GConv(spec), torch.randn(3, 3, requires_grad=True)
    layer(x, edges).sum().backward()
    assert torch.allclose(layer(x, edges), layer(x, edges, lowering="dense"), atol=1e-5) and x.grad is not None
assert gconv.GConv(conv2d(3, 8, 3))(torch.randn(1, 3, 8, 8)).shape == (1, 8, 6, 6)
print(gconv.__version__, gconv.backend())
"""


def run(*command: object, cwd: Path) -> str:
    """The output of a command. Raises: SystemExit with what it printed, where it fails."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, timeout=1800
    )
    if done.returncode:
        sys.exit(f"error: {' '.join(map(str, command))[:200]} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout.strip()


def version() -> str:
    """The version that the source states."""
    line = next(line for line in (ROOT / "gconv" / "__init__.py").read_text().splitlines() if "__version__ =" in line)
    return line.split('"')[1]


def contents(wheel: Path) -> list[str]:
    """What is wrong with the files and the metadata of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        meta = Parser().parsestr(archive.read(next(n for n in names if n.endswith("/METADATA"))).decode())
    wrong = [
        f"{name} is in the wheel"
        for name in names
        if name.split("/")[0].split("-")[0] not in ("gconv", "gconv_command.py")
    ]
    source = [
        p for p in (ROOT / "gconv").rglob("*") if p.suffix in (".py", ".c", ".h", ".json") or p.name == "py.typed"
    ]
    wanted = {str(p.relative_to(ROOT)) for p in source} | {"gconv_command.py"}
    wrong += [f"{name} is missing" for name in sorted(wanted - set(names))]
    wrong += [] if any(n.endswith("LICENSE") for n in names) else ["LICENSE is missing"]
    wrong += [] if meta["Version"] == version() else [f"the version is {meta['Version']}, not {version()}"]
    wrong += [] if str(meta.get_payload()).startswith("# gconv") else ["the description is not README.md"]
    return wrong


def main() -> None:
    """Build, check, try."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="where wheel and sdist are written (dist)")
    dist = parser.parse_args().dist.resolve()
    dist.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        run(sys.executable, "-c", BUILD.format("sdist"), dist, cwd=ROOT)
        sdist = dist / f"gconv-{version()}.tar.gz"
        with tarfile.open(sdist) as archive:
            archive.extractall(place, filter="data")
        print("the wheel is built from the sdist: a few minutes where the kernels are compiled", flush=True)
        run(sys.executable, "-c", BUILD.format("wheel"), place, cwd=place / f"gconv-{version()}")
        (built,) = place.glob("*.whl")
        if wrong := contents(built):
            sys.exit(f"error: {built.name}: {'; '.join(wrong)}")
        venv.create(place / "fresh", with_pip=True)
        python = place / "fresh" / "bin" / "python"
        run(python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", built, cwd=place)
        packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=place)
        # A plain path: the dependencies, without the .pth files through which they know this repository.
        (Path(packages) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        print("smoke:", run(python, "-c", SMOKE, ROOT, cwd=place))
        said = run(python.parent / "gconv", "--help", cwd=place)
        if "explain" not in said or run(python, "-m", "gconv", "--version", cwd=place) != version():
            sys.exit("error: the command gconv does not answer")
        built.replace(dist / built.name)
    print(f"built and tried: {sdist}, {dist / built.name}")


if __name__ == "__main__":
    main()
