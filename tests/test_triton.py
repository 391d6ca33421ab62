"""The CUDA bodies of the kernels: Triton's against the CPU's without a GPU, and what runs where Triton is absent."""

import importlib.util
import json
import os
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch

from experiments.gpu import checks, kernels
from experiments.gpu.units import Mismatch
from experiments.harness.machine import ROOT
from gconv.kernels import CSR, cuda
from gconv.spec import list_operators, operator

HAS_TRITON = importlib.util.find_spec("triton") is not None
NEEDS_TRITON = pytest.mark.skipif(not HAS_TRITON, reason="needs Triton: pip install --no-deps triton==3.7.1")
NEEDS_TRITON_3_7 = pytest.mark.skipif(
    not HAS_TRITON or version("triton") < "3.7",
    reason="needs Triton 3.7 (pip install --no-deps triton==3.7.1): the interpreter of 3.6 fails with numpy 2.4, and "
    "its compiler uses more registers",
)
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")
CPU = torch.device("cpu")


def outcome(*arguments, **environment):
    """What `python -m experiments.gpu.kernels` prints."""
    command = [sys.executable, "-W", "error::RuntimeWarning", "-m", "experiments.gpu.kernels", *arguments]
    env = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@NEEDS_TRITON_3_7
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("dtype", "long"), [("float64", "16"), ("float64", "1024"), ("float32", "16"), ("bfloat16", "16")]
)
def test_triton_kernels_are_the_cpus_under_the_interpreter(dtype, long):
    found = outcome("--dtype", dtype, "--long", long, TRITON_INTERPRET="1")
    assert (
        len(found) == (14 if dtype == "bfloat16" else 22) and max(found.values()) < kernels.TOL[getattr(torch, dtype)]
    )


@NEEDS_TRITON_3_7
@pytest.mark.timeout(600)
@pytest.mark.parametrize("capability", ["80", "90", "120"])
def test_triton_kernels_compile_without_a_gpu_and_spill_one_double_at_most(capability):
    found = outcome("--compile", capability, TRITON_INTERPRET="0")
    assert len(found) == 52 and max(made["stack"] + made["local"] for made in found.values()) <= 8
    most = 128 if version("triton").startswith("3.7.") else 144  # registers, with which 16 or 14 warps fit
    assert max(made["reg"] for made in found.values()) <= most


@pytest.mark.parametrize("pattern", kernels.patterns())
def test_bodies_run_in_torch_where_triton_is_absent(pattern, monkeypatch):
    monkeypatch.setattr(cuda, "code", lambda: None)
    for case in kernels.cases(2, 3, kernels.patterns()[pattern]):
        want, got = (body(*case.arguments, *case.structure) for body in (case.kernel.cpu, case.kernel.cuda))
        for one, other in zip(*([t] if isinstance(t, torch.Tensor) else t[:2] for t in (got, want)), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


CASES = [case.name for case in kernels.cases(2, 3, kernels.patterns()["square"])]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("wrong", [1 + 1e-8, float("nan")])
def test_a_wrong_kernel_is_a_mismatch(name, wrong, monkeypatch):
    monkeypatch.setattr(cuda, "code", lambda: "anything")
    (case,) = (c for c in kernels.cases(2, 3, kernels.patterns()["square"]) if c.name == name)
    right = case.kernel.cpu

    def body(*given):
        made = right(*given)
        return made * wrong if isinstance(made, torch.Tensor) else (made[0] * wrong, *made[1:])

    monkeypatch.setattr(case.kernel, "cuda", right)
    assert kernels.gap(case, CPU, torch.float64) == 0
    monkeypatch.setattr(case.kernel, "cuda", body)
    with pytest.raises(Mismatch, match=rf"{name}, torch\.float64: off by"):
        kernels.gap(case, CPU, torch.float64)


@pytest.mark.parametrize("lengths", [(3, 0, 7, 1), (0, 0), (2, 2), (5,), ()])
def test_pieces_are_the_entries_of_their_rows_in_order(lengths, monkeypatch):
    monkeypatch.setattr(cuda, "LONG", 2)
    crow = torch.tensor([0, *torch.tensor(lengths).cumsum(0)]) if lengths else torch.zeros(1, dtype=torch.int64)
    over = cuda.rows_of(crow)
    pieces = [list(range(a, b)) for a, b in zip(over.start.tolist(), over.stop.tolist(), strict=True)]
    assert [entry for piece in pieces for entry in piece] == list(range(sum(lengths))) and over.split == any(
        n > 2 for n in lengths
    )
    if over.split:
        assert all(0 < len(piece) <= 2 for piece in pieces)
        for row, n in enumerate(lengths):
            assert sum(len(pieces[q]) for q in range(over.first[row], over.first[row + 1])) == n
            assert over.rows[over.first[row] : over.first[row + 1]].tolist() == [row] * -(-n // 2)


def test_pieces_go_with_their_pattern(monkeypatch):
    monkeypatch.setattr(cuda, "LONG", 2)
    before = len(cuda._PIECES)
    for rows in ([0, 0, 0, 1], [0, 1, 2, 3]):
        csr = CSR.build(torch.tensor(rows), torch.tensor([0, 1, 2, 3]), 4, 4)
        assert cuda.rows_of(csr.crow).split == (rows[1] == 0) and len(cuda._PIECES) == before + 1
        del csr
        assert len(cuda._PIECES) == before


@NEEDS_GPU
@pytest.mark.parametrize("name", list_operators())
def test_operators_on_a_gpu(name):
    checks.operators(operator(name).samples()[:1], torch.device("cuda"))


@NEEDS_GPU
@NEEDS_TRITON
@pytest.mark.parametrize("dtype", kernels.TOL)
@pytest.mark.parametrize("long", [kernels.SPLIT, 1024])
def test_kernels_on_a_gpu(dtype, long):
    kernels.checked(torch.device("cuda"), dtype, long)
