"""Compares the Triton kernels with those of the CPU: on a GPU, or without one in Triton's interpreter and compiler.

    TRITON_INTERPRET=1 python -m experiments.gpu.kernels          every kernel on tiny patterns, on the CPU
    python -m experiments.gpu.kernels --compile 80                registers and spilled bytes for sm_80

Both print one JSON object. The interpreter takes about a second per case.
"""

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from experiments.gpu.units import Mismatch
from gconv.kernels import CSR, cuda
from gconv.kernels.attention import ATTENTION, ATTENTION_BACK
from gconv.kernels.dot import DOT, DOT_BACK
from gconv.kernels.heads import HEADS_SDDMM, HEADS_SPMM, ROW_SOFTMAX, ROW_SUMS, SOFTMAX_BACK
from gconv.kernels.joint import JOINT, JOINT_BACK
from gconv.kernels.maximum import SEGMENT_MAX
from gconv.kernels.registry import Kernel
from gconv.kernels.sparse import SDDMM, SPMM

SPLIT = 16  # entries of a row from which on it is split, in tests on tiny patterns
TOL = {torch.float32: 2e-5, torch.float64: 1e-11, torch.bfloat16: 2e-2}  # relative to the largest value
WIDTHS = {  # heads and channels for each pattern; every pair compiles the kernels again
    "square": ((1, 1), (1, 33), (2, 7), (3, 8), (2, 130)),
    "rectangular": ((1, 33), (3, 8)),
    "int64": ((2, 7),),
}


class Case(NamedTuple):
    """A call of a kernel."""

    name: str
    kernel: Kernel
    arguments: tuple[Any, ...]
    structure: tuple[Tensor, ...]


def patterns() -> dict[str, CSR]:
    """Test patterns: rectangular and square, with empty rows and columns, duplicates, long rows and columns, int64."""
    row, col = torch.tensor([2, 0, 2, 0, 2, 4, 2, 2, 2]), torch.tensor([1, 0, 1, 4, 0, 1, 5, 1, 1])
    many = torch.tensor([0, 1, 2, 4]).repeat(10)  # so that all loops over the entries of rows and columns run twice
    row, col = torch.cat((row, torch.full_like(many, 2), many)), torch.cat((col, many, torch.full_like(many, 1)))
    square = CSR.build(row, col, 6, 6)
    crow, of_rows, crow_t, of_columns, to_t, from_t = (t.long() for t in square.tensors)
    wide = CSR(crow, of_rows, crow_t, of_columns, None, to_t, from_t)
    return {"square": square, "int64": wide, "rectangular": CSR.build(row, col, 5, 7)}


def _on(value: Any, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(device, dtype if value.is_floating_point() else None)


def cases(heads: int, c: int, csr: CSR, dtype: torch.dtype = torch.float64) -> Iterator[Case]:
    """Calls of every kernel with these numbers of heads and channels."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    (m, n), e, S = csr.shape, len(csr.col), csr.tensors
    yield Case("sampled product", SDDMM, (random(2, m, c), random(2, n, c)), S)
    for apart in (False, True):
        told = f"sampled product by heads{', signal by signal' * apart}"
        yield Case(told, HEADS_SDDMM, (random(2, m, heads, c), random(2, n, 1, c), heads, apart), S)
    for together, back in ((False, False), (True, True)):
        x = random(2, m if back else n, heads, c)
        told = f"product by heads{', together, transposed' * back}"
        values = random(*(2,) * back, e, heads)
        yield Case(told, HEADS_SPMM, (values, x, together, back), S)
    both = random(2, n, heads, c), random(2, m, heads, c), random(heads, c), 0.2
    yield Case("joint attention", JOINT, both, S)
    passed = *both, JOINT.cpu(*both, *S), random(2, e, heads)
    yield Case("joint attention, backward", JOINT_BACK, passed, S)
    for signals, heads_v, c_v, seed in (((), heads, c, None), ((2,), 1, c + 2, torch.tensor([3]))):
        queries, keys = (random(*signals, size, heads, c) / c**0.5 for size in (m, n))
        dots = queries, keys, random(*signals, n, heads_v, c_v), seed, 0.4
        told = f"dot-product attention{', dropout' * (seed is not None)}"
        yield Case(told, DOT, (*dots, True), S)
        passed = *dots, random(*signals, m, heads, c_v), *DOT.cpu(*dots, True, *S)
        yield Case(f"{told}, backward", DOT_BACK, passed, S)
    first = torch.zeros(1, dtype=torch.int64)  # the entries of this column come first, with logits of minus infinity
    s, t, p, slope = both
    yield Case("joint attention, masked", JOINT, (s.index_fill(-3, first, -torch.inf), t, p.abs(), slope), S)
    masked = random(m, heads, c).abs(), random(n, heads, c).index_fill(-3, first, -torch.inf), random(n, heads, c)
    yield Case("dot-product attention, masked", DOT, (*masked, None, 0.4, True), S)
    if dtype == torch.bfloat16:
        yield Case("product", SPMM, (random(e), random(2, n, c), None), S)
        return
    yield Case("softmax", ROW_SOFTMAX, (random(2, e, heads),), S)
    last = torch.isin(torch.arange(e), csr.crow[1:] - 1)
    masked_logits = random(2, e, heads).masked_fill(~last.unsqueeze(-1), -torch.inf)
    yield Case("softmax, masked", ROW_SOFTMAX, (masked_logits,), S)
    yield Case("softmax, backward", SOFTMAX_BACK, (random(2, e, heads), random(2, e, heads)), S)
    yield Case("sums of columns", ROW_SUMS, (random(2, e, heads), True), S)
    yield Case("maximum", SEGMENT_MAX, (random(e), random(2, n, c)), S)
    if m != n:
        return
    for slope, seed, signals in ((0.2, None, ()), (-0.5, torch.tensor([3]), (2,))):
        given = random(*signals, n, heads, c), random(heads, c), random(heads, c), seed, slope, 0.4
        yield Case(f"attention{', dropout' * (seed is not None)}", ATTENTION, (*given, True), S)
        made = ATTENTION.cpu(*given, True, *S)
        passed = *given, random(*signals, n, heads, c), *made
        yield Case(f"attention{', dropout' * (seed is not None)}, backward", ATTENTION_BACK, passed, S)


def gap(case: Case, device: torch.device, dtype: torch.dtype) -> float:
    """The largest difference of a kernel from the CPU in float64, relative to the largest value. Raises: Mismatch."""
    cpu = torch.device("cpu")
    want = case.kernel.cpu(*(_on(a, cpu, torch.float64) for a in case.arguments), *case.structure)
    arguments, structure = ([_on(a, device) for a in given] for given in (case.arguments, case.structure))
    if cuda.code() is None:
        raise Mismatch("Triton is not installed")
    got = case.kernel.cuda(*arguments, *structure)
    worst = 0.0
    for one, other in zip(*([t] if isinstance(t, Tensor) else t[:2] for t in (got, want)), strict=True):
        one, top = one.cpu().double(), max(1.0, float(other.abs().max()))
        found = float((one - other).abs().max()) / top
        if not found <= TOL[dtype]:  # also if it is NaN
            raise Mismatch(f"{case.name}, {dtype}: off by {found:.2g} of the largest number, allowed is {TOL[dtype]:g}")
        worst = max(worst, found)
    return worst


def checked(device: torch.device, dtype: torch.dtype, long: int) -> dict[str, float]:
    """The largest difference of each kernel; rows with more than `long` entries are split."""
    before = cuda.LONG
    worst: dict[str, float] = {}
    cuda.LONG = long
    try:
        for pattern, csr in patterns().items():
            for heads, c in WIDTHS[pattern]:
                for case in cases(heads, c, csr, dtype):
                    found = gap(case, device, dtype)
                    worst[case.name] = max(worst.get(case.name, 0.0), found)
    finally:
        cuda.LONG = before
    return worst


# -- compiled without a GPU ------------------------------------------------------------------------------------------


def compiled(capability: int) -> dict[str, dict[str, int]]:
    """Registers, and bytes of stack and local memory, of every kernel for a GPU, with 8 heads of 8 channels.

    The kernels with blocks of heads are also compiled for 8 heads of 16 channels, a program's largest block, and those
    that permute entries also without.
    """
    from gconv.kernels import triton_code

    found: dict[str, dict[str, int]] = {}
    for name, kernel in vars(triton_code).items():
        if name.startswith("_") or not hasattr(kernel, "arg_names"):
            continue
        for dtype in (torch.float32, torch.float64):
            for c in (8, 16) if "BH" in kernel.arg_names else (8,):
                for order in (True, False) if "ORDER" in kernel.arg_names else (True,):
                    told = f"{name} {str(dtype)[6:]}, {c} channels{', not permuted' * (not order)}"
                    found[told] = _resources(kernel, capability, dtype, c, order)
    return found


def _resources(kernel: Any, capability: int, dtype: torch.dtype, c: int, order: bool) -> dict[str, int]:
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    floats = "fp64" if dtype == torch.float64 else "fp32"
    given = {"HEADS": 8, "C": c, "CV": c, "HV": 8, "WIDTH": 8 * c, "SLOPE": 0.2, "SCALE": 1.25, "LEAST": 1 << 30}
    given |= {"LEARN": True, "SPLIT": True, "TOGETHER": False, "ORDER": order, "TWO": True, "DROP": True, "BLOCKS": 1}
    given |= {"ACC": tl.float64 if dtype == torch.float64 else tl.float32, **cuda.tile(8 * c)}
    if "BH" in kernel.arg_names:
        given |= cuda.tile_of_heads(dtype, 8, c, c)[1]
    warps = given.pop("num_warps")
    constants = {key: given[key] for key in kernel.arg_names if key in given}
    types = {key: _type(key, floats) for key in kernel.arg_names}
    signature = {key: "constexpr" if key in constants else types[key] for key in kernel.arg_names}
    target, how = GPUTarget("cuda", capability, 32), {"num_warps": warps}
    made = triton.compile(ASTSource(kernel, signature, constexprs=constants), target=target, options=how)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        command = [str(tool), "-res-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    return {key.lower(): int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", said)}


INDICES = ("start", "stop", "rows", "col", "row", "order", "first", "seed")
NUMBERS = ("programs", "pieces", "count", "columns", "entries", "batches", "plane", "plane_out")


def _type(name: str, floats: str) -> str:
    if name in INDICES:
        return "*i64" if name in ("rows", "first", "seed") else "*i32"
    whole = (name in NUMBERS or re.fullmatch(r"[vxlr]_(batch|row|head)", name)) and not name.isupper()
    return "i32" if whole else f"*{floats}"


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m experiments.gpu.kernels", description=__doc__, formatter_class=form
    )
    parser.add_argument("--compile", type=int, choices=(80, 90, 120), help="the compute capability")
    parser.add_argument("--dtype", choices=("float64", "float32", "bfloat16"), default="float64")
    parser.add_argument("--long", type=int, default=SPLIT, help=f"entries of a row from which on it is split ({SPLIT})")
    given = parser.parse_args(argv)
    if given.long < 1:
        parser.error(f"--long must be at least 1, not {given.long}")
    try:
        made = (
            checked(torch.device("cpu"), getattr(torch, given.dtype), given.long)
            if given.compile is None
            else compiled(given.compile)
        )
    except Mismatch as error:
        raise SystemExit(f"error: {error}") from None
    print(json.dumps(made))


if __name__ == "__main__":
    main()
