"""What a case has to satisfy: no crash, no error but a sentence, and every lowering as the float64 reference has it."""

from __future__ import annotations

import contextlib
import copy
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NoReturn

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from gconv import GConv, Graph, Inadmissible, portable
from tests.fuzz.cases import DTYPES, FuzzCase, laid_out

# a refusal in words; anything else that is raised is a finding
REFUSALS = (ValueError, TypeError)
SLACK = 16  # times what the reference moves by when each of its operations rounds
LIMITED = {"bfloat16", "float16"}
MAXIMA = {torch.ops.aten.amax.default, torch.ops.aten.scatter_reduce.two, torch.ops.aten.gather.default}


class Finding(AssertionError):
    """The case is wrong; the message says where."""


@dataclass(frozen=True)
class Outcome:
    """How a case ended: how many lowerings were compared, and, if the case was refused, in which words."""

    compared: int
    refusal: str = ""


@dataclass(frozen=True)
class Run:
    layer: GConv
    domain: object
    x: Tensor
    dy: Tensor | None = None

    def results(self, lowering: str | None, needs: tuple[bool, bool, bool], again: bool = False) -> dict[str, Tensor]:
        """The value, and the gradient of <y, dy> in what needs one; `again`: by operators that have derivatives."""
        domain, leaves = self.domain, {}
        x = self.x
        if needs[0]:
            x = leaves["x"] = self.x.detach().requires_grad_()
        if needs[1]:
            leaves |= dict(self.layer.named_parameters())
        if needs[2] and isinstance(domain, Graph) and domain.edge_weight is not None:
            leaves["edge_weight"] = domain.edge_weight.detach().clone().requires_grad_()
            domain = replace(domain, edge_weight=leaves["edge_weight"])
        y = self.layer(x, domain, lowering=lowering) if isinstance(domain, Graph) else self.layer(x, lowering=lowering)
        found = {"value": y.detach()}
        if leaves and y.requires_grad:
            dy = torch.ones_like(y) if self.dy is None else self.dy.to(y.dtype)
            grads = torch.autograd.grad(
                y, list(leaves.values()), dy, create_graph=again, allow_unused=True, materialize_grads=True
            )
            found |= {f"gradient in {name}": g.detach() for name, g in zip(leaves, grads, strict=True)}
        return found


def check(case: FuzzCase) -> Outcome:
    """Hold a case to its reference.

    Raises:
        Finding: if a lowering disagrees, breaks, or is refused by an error that says nothing.
    """
    try:
        layer, domain = case.layer(), case.domain()
    except REFUSALS as error:
        return Outcome(0, sentence(error))
    except Exception as error:
        fail("the layer or its domain", error)
    x = case.signal(getattr(layer.spec.mixing, "i", 0) or case.channels)
    run = Run(layer, domain, x)
    try:
        plan = layer.plan(x, domain) if isinstance(domain, Graph) else layer.plan(x)
    except REFUSALS as error:
        return Outcome(0, sentence(error))
    except Exception as error:
        fail("plan", error)
    names: list[str | None] = [c.name for c in plan.candidates if c.reason is None]
    try:
        reference, rounding = _reference(run, case)
    except REFUSALS as error:
        return Outcome(0, sentence(error))
    except Exception as error:
        fail("the reference, dense in float64", error)
    dy = _direction(reference["value"].shape, case.seed).to(x.dtype)
    run = replace(run, dy=dy)
    if not _settled(run, case):
        reference = {"value": reference["value"]}
    elif _tied(run):
        reference.pop("gradient in edge_weight", None)
    spread = _spread(run)
    compared = _sequence(run, case, reference, rounding)
    for name in [*names, None, None]:  # the last two: as planned, and again from what was kept
        try:
            found = run.results(name, case.needs)
        except (Inadmissible, *REFUSALS) as error:
            fail(f"lowering {name}: refused where the reference was not", error)
        except Exception as error:
            fail(f"lowering {name}", error)
        for what, want in reference.items():
            if what not in found:
                raise Finding(f"lowering {name}: no {what}")
            error = rounding[what] + (spread(what) if (name or plan.chosen.name) == "fft" else 0.0)
            _compare(f"lowering {name}: {what}", found[what], want, error, x.dtype, case)
        compared += 1
    return Outcome(compared)


MODES = ["inference", "no_grad", "train", "eval", "frozen", "thawed", "portable", "again"]
STEPS = [*MODES, "other graph", "weights", "edge weights", "copy"]


def _sequence(run: Run, case: FuzzCase, reference: dict[str, Tensor], rounding: dict[str, float]) -> int:
    """Hold a layer that has been used in several ways to a new one with the same weights, on a new domain.

    Raises:
        Finding: if they disagree.
    """
    draw, used, domain, scale = random.Random(str(case)), copy.deepcopy(run.layer), case.domain(), 1.0
    weighted = isinstance(domain, Graph) and domain.edge_weight is not None
    for step in ("first call", *draw.choices(STEPS, k=3)):
        if step in ("frozen", "thawed"):
            used.requires_grad_(step == "thawed")
        elif step in ("train", "eval"):
            used.train(step == "train")
        elif step == "copy":
            used = copy.deepcopy(used)
        elif step == "edge weights" and weighted:
            domain.edge_weight.mul_(0.5)
            scale *= 0.5
        elif step == "weights":
            with torch.no_grad():
                for p in used.parameters():
                    p.mul_(0.5)
        fresh, anew, at = copy.deepcopy(case.layer()).train(used.training), case.domain(), domain
        fresh.load_state_dict(used.state_dict())
        anew = replace(anew, edge_weight=anew.edge_weight * scale) if weighted else anew
        if step == "other graph" and isinstance(domain, Graph):
            order = torch.randperm(domain.size, generator=torch.Generator().manual_seed(case.seed))
            at, anew = domain.permute(order), anew.permute(order)
        quiet = step in ("inference", "no_grad")
        learned = case.needs[1] and all(p.requires_grad for p in used.parameters())
        needs = (case.needs[0] and not quiet, learned and not quiet, case.needs[2] and not quiet)
        found = []
        for layer, place in ((used, at), (fresh, anew)):
            differs = layer is used and step
            plain = portable() if differs == "portable" else contextlib.nullcontext()
            with plain, torch.random.fork_rng(devices=[]), torch.inference_mode(step == "inference"):
                torch.manual_seed(case.seed)
                with torch.set_grad_enabled(not quiet):
                    try:
                        found.append(replace(run, layer=layer, domain=place).results(None, needs, differs == "again"))
                    except Exception as error:
                        fail(f"after {step}", error)
        for what in reference.keys() & found[0].keys():
            want = found[1][what].double()
            _compare(f"after {step}: {what}", found[0][what], want, rounding[what], run.x.dtype, case)
    return 1


def _settled(run: Run, case: FuzzCase) -> bool:
    """Whether gradients are comparable: of equal numbers a maximum may choose any, and rounding makes numbers equal."""
    if "max" not in repr(run.layer.spec):
        return True
    return case.values != "zeros" and case.dtype not in LIMITED and case.layout != "expanded"


def _tied(run: Run) -> bool:
    """Whether a maximum finds equal terms on several edges: equal double edges, or weights of zero."""
    if "max" not in repr(run.layer.spec) or not isinstance(run.domain, Graph) or run.domain.edge_weight is None:
        return False
    w = run.domain.edge_weight.double()
    terms = torch.cat([run.domain.edge_index.double(), w[None]]).unique(dim=1)
    return bool((w == 0).any()) or terms.shape[1] < len(w)


def sentence(error: Exception) -> str:
    """The words of a refusal.

    Raises:
        Finding: if the error names nothing that a user could act on.
    """
    words = str(error)
    known = type(error) in REFUSALS or type(error).__module__.startswith("gconv")
    if len(words.split()) < 4 or not known:
        fail("an error without a sentence", error)
    return words


def fail(where: str, error: Exception) -> NoReturn:
    import traceback

    at = traceback.extract_tb(error.__traceback__)[-1]
    raise Finding(
        f"{where}: {type(error).__name__}: {str(error)[:300]} ({at.filename.rsplit('/', 1)[-1]}:{at.lineno})"
    ) from error


def _direction(shape: torch.Size, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + 2), dtype=torch.float64)


def _widened(run: Run, x: Tensor) -> Run:
    layer = copy.deepcopy(run.layer).double()
    domain = run.domain
    if isinstance(domain, Graph):
        tensors = {
            name: t.double() for name in ("edge_weight", "edge_attr") if (t := getattr(domain, name)) is not None
        }
        domain = replace(domain, **tensors)
    return Run(layer, domain, x.double())


def _reference(run: Run, case: FuzzCase) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The results of `dense` in float64, and how far they move when every step rounds as the case's dtype does."""
    wide = _widened(run, run.x)
    y = wide.results("dense", (False, False, False))["value"]
    dy = _direction(y.shape, case.seed).to(run.x.dtype).double()  # as the other side sees it
    wide = replace(wide, dy=dy)
    reference = wide.results("dense", case.needs)
    rounding = {what: 0.0 for what in reference}
    for turn in range(3):
        with Rounded(run.x.dtype, case.seed + 10 + turn):
            moved = wide.results("dense", case.needs)
        for what, want in reference.items():
            change = (moved[what] - want)[want.isfinite()].abs().nan_to_num(nan=math.inf)
            rounding[what] = max(rounding[what], float(change.max()) if change.numel() else 0.0)
    if run.layer.spec.structure.kind != "fixed":
        # derivatives of a softmax, s_j (dy . z_j - dy . y), of equal terms cancel without a trace, since these move
        # equally: their rounding is that of dy . y, times the other signal where scores are products of signals
        sizes = _largest(reference["value"]), _largest(dy), max(1.0, _largest(run.x))
        term = 4 * torch.finfo(run.x.dtype).eps * math.prod(sizes)
        term *= max(map(_largest, (run.x, *run.layer.parameters())), default=0.0)
        rounding = {what: error + (term if what != "value" else 0.0) for what, error in rounding.items()}
    return reference, rounding


class Rounded(TorchDispatchMode):
    """Moves the inputs and outputs of every operation by about the rounding of a dtype, equal numbers equally.

    What a result moves by is what rounding explains, in whatever step terms cancel (Monte Carlo arithmetic: Parker,
    UCLA CSD-970002, 1997). Zeros, infinities and the maxima that a derivative compares with their terms stay as they
    are; in float16, sums near the smallest numbers move by these.
    """

    def __init__(self, dtype: torch.dtype, seed: int) -> None:
        super().__init__()
        info = torch.finfo(dtype)
        self.eps, self.least = info.eps, info.smallest_normal * info.eps
        self.made = random.Random(seed)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        rounds = any(isinstance(t, Tensor) and t.dtype == torch.float64 for t in tree_leaves(result))
        if (
            func.is_view or func._schema.is_mutable or func in MAXIMA or not rounds
        ):  # comparisons see what they were given
            return result
        move = partial(self.move, self.made.getrandbits(62))
        args, kwargs = tree_map_only(Tensor, move, (args, kwargs or {}))
        return tree_map_only(Tensor, move, func(*args, **kwargs))

    def move(self, key: int, t: Tensor) -> Tensor:
        if t.dtype != torch.float64:
            return t
        bits = (t.view(torch.int64) ^ key) * 0x2545F4914F6CDD1D  # a hash of the number: a symmetric matrix stays so
        bits = (bits ^ (bits >> 32)) * 0x1B873593CC9E2D51
        noise = (bits ^ (bits >> 29)) / 2**63
        return torch.where((t == 0) | t.isinf(), t, t + noise * (self.eps * t.abs() + self.least))


def _spread(run: Run) -> Callable[[str], float]:
    """The rounding of an FFT's product: that of its largest entry, also where the exact one is zero."""
    sizes = {"x": _largest(run.x), "dy": 0.0 if run.dy is None else _largest(run.dy)}
    sizes["weight"] = max(map(_largest, run.layer.parameters()), default=0.0)
    factors = {"value": ("x", "weight"), "gradient in x": ("dy", "weight")}
    eps = torch.finfo(run.x.dtype).eps
    return lambda what: eps * math.prod(sizes[factor] for factor in factors.get(what, ("x", "dy")))


def _largest(t: Tensor) -> float:
    return float(t.detach().abs().max()) if t.numel() else 0.0


def _compare(what: str, got: Tensor, want: Tensor, rounding: float, dtype: torch.dtype, case: FuzzCase) -> None:
    if got.shape != want.shape:
        raise Finding(f"{what}: shape {tuple(got.shape)}, and {tuple(want.shape)} in the reference")
    if got.dtype != dtype:
        raise Finding(f"{what}: dtype {got.dtype} in a layer of {dtype}")
    if not got.numel():
        return
    largest, info = float(want.abs().max()), torch.finfo(dtype)
    if not largest < info.max / 1e6 or (case.values == "huge" and case.dtype in LIMITED):
        return  # the result, or what leads to it, may not fit the dtype
    error = float((got.double() - want).abs().max())
    allowed = SLACK * (rounding + info.eps * largest) + info.tiny
    if not error <= allowed:  # NaN fails, too
        raise Finding(f"{what}: off by {error:.3g}, largest entry {largest:.3g}, rounding explains {allowed:.3g}")


def again(case: FuzzCase) -> FuzzCase:
    """The same case from its printed line."""
    return FuzzCase.parse(str(case))


__all__ = ["DTYPES", "Finding", "Outcome", "again", "check", "laid_out"]
