"""What a type checker knows of the library, as a user calls it."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from gconv import OperatorSpec, list_operators, operators

ROOT = Path(__file__).parents[1]
USER = """
import torch
from gconv import GConv, Graph, Grid, LinearMap, analysis, constant, convert
from gconv.operators import cheb, conv2d, gat, gcn, sage

class Net(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = GConv(cheb(width, 16, k=3, bias=False))
        self.last = GConv(gat(16, 7, heads=2, concat=False), dtype=torch.float32)

    def forward(self, x: torch.Tensor, graph: Graph) -> torch.Tensor:
        y: torch.Tensor = self.last(torch.relu(self.first(x, graph)), graph)
        return y

graph = Graph(torch.tensor([[0, 1], [1, 0]]))
y = Net(3)(constant(torch.zeros(2, 3)), graph)
A: LinearMap = GConv(gcn(3, 2)).at(graph)
pairs = sage((3, 4), 2)
largest: float = analysis.norm(A)
model: torch.nn.Module = convert(torch.nn.Conv2d(3, 8, 3))
B = GConv(conv2d(3, 8, 3, padding="same")).at(Grid((8, 8)))
z = (A.T @ A) @ torch.zeros(2, 3)
"""
WRONG = {
    "cheb(16, 32, K=3)": "call-arg",
    "cheb(16, 32)": "call-arg",
    "gcn('16', 32)": "arg-type",
    "gcn((16, 8), 32)": "arg-type",
    "sage(16, 32, aggr='median')": "arg-type",
    "gcn(16, 32).weight": "attr-defined",
}


def mypy(tmp_path, text):
    """What mypy says of a file; gconv itself is read as an installed package is."""
    (tmp_path / "user.py").write_text(text)
    options = ["--strict", "--config-file=", "--follow-imports=silent", "--cache-dir", ROOT / ".mypy_cache" / "user"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "user.py"],
        cwd=tmp_path,
        env={"MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_strict_type_checking_of_a_users_file_passes_and_finds_mistakes(tmp_path):
    assert mypy(tmp_path, USER).startswith("Success")
    reveal = "reveal_type(gcn)\n" + "\n".join(WRONG)
    found = mypy(tmp_path, USER + reveal).splitlines()
    assert "in_channels: int, out_channels: int, improved: bool =" in found[0]
    line = len(USER.splitlines()) + 1
    for number, (call, code) in enumerate(WRONG.items(), line + 1):
        assert any(f"user.py:{number}: error" in text and f"[{code}]" in text for text in found), (call, found)


def test_the_package_is_marked_as_typed():
    assert (ROOT / "gconv" / "py.typed").exists() and "py.typed" in (ROOT / "pyproject.toml").read_text()


def test_factories_keep_their_signatures():
    for name in list_operators():
        signature = inspect.signature(getattr(operators, name))
        assert signature.return_annotation is OperatorSpec
        assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in signature.parameters.values()), name
