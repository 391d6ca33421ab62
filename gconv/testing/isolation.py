"""Laws of isolation: between samples of a batch, between results, and between sites that hold NaN and other sites."""

from __future__ import annotations

import inspect
import math
import pickle
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gconv import analysis
from gconv.analysis import receptive_field
from gconv.arguments import plural
from gconv.basis import Basis, Diagonal, entries
from gconv.domains import Bipartite, Graph, Grid
from gconv.kernels import constant
from gconv.linear import LinearMap
from gconv.module import GConv
from gconv.spec import Domain, OperatorSpec, operator
from gconv.testing.case import Case, a_law, a_linear_law, random_like, shuffled, sites


@a_law
def law_samples_apart(case: Case) -> bool:
    """Output and gradient of a sample do not depend on the other samples of the batch, also if these hold NaN."""
    one = Case.of(case.sample, case.dtype, batch=5)
    x = one.x.clone()
    x[1], x[2], x[3] = 1e3 / torch.finfo(case.dtype).eps * x[1], torch.nan, -torch.inf
    for name in case.lowerings:
        want, slope = _value_and_slope(one, one.x, name)
        got, turned = _value_and_slope(one, x, name)
        for k in (0, 4):
            one.close(f"{name}: sample {k} next to huge numbers and NaN", got[k], want[k])
            one.close(f"{name}: the gradient in sample {k} next to huge numbers and NaN", turned[k], slope[k])
    return True


def _value_and_slope(case: Case, x: Tensor, lowering: str) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = case(x, lowering)
    (slope,) = torch.autograd.grad(y, x, random_like(y), allow_unused=True, materialize_grads=True)
    return y.detach(), slope


@a_law
def law_not_finite_stays_in_its_field(case: Case) -> bool:
    """An output is NaN or infinite only if an input in its receptive field is, for every lowering.

    Fourier transforms, on grids (the lowering "fft") and graphs (`Diagonal`), are exempt, because they compute every
    output of a sample from all inputs.
    """
    if case.dtype != torch.float32:
        return False
    with torch.no_grad():
        for name in case.structure.parameters():  # away from an initialisation for which taps cancel
            parameter = case.layer.get_parameter(name)
            parameter.add_(random_like(parameter).abs())
    A, support = case.map() if case.structure.kind != "adaptive" else None, None
    if A is not None:
        if _in_eigenbasis(A.S):
            return False
        at = entries(A.S, case.dtype, A.device).pattern
        support = receptive_field(A).index_put((at.row, at.col), torch.tensor(True))
    n = case.signal.shape[0]
    for site, value in ((0, torch.nan), (n - 1, torch.inf)) if n else ():
        sees = _moved_by(case, site) if support is None else support[:, site]
        before = case.domain.sizes[0] if isinstance(case.domain, Bipartite) and len(sees) < n else 0
        own = site - before  # a target reads its own signal
        if case.structure.kind == "adaptive" and 0 <= own < len(sees):
            sees[own] = True
        x = case.x[:1].clone()
        _put(x, case.domain, site, value)
        for name in case.lowerings:
            if name == "fft":
                continue
            y = sites(case(x, name), case.structure.target(case.domain))[0]
            wrong = int((~y.isfinite().all(-1) & ~sees).sum())
            if wrong:
                case.fail(f"{name}: {value} at site {site} reaches {plural(wrong, 'output')} that cannot depend on it.")
    return True


def _in_eigenbasis(S: Basis) -> bool:
    return isinstance(S, Diagonal) or any(_in_eigenbasis(part) for part in getattr(S, "parts", ()))


def _put(x: Tensor, domain: Domain, site: int, value: float) -> None:
    flat = x.flatten(2) if isinstance(domain, Grid) else x.mT
    flat[..., site] = value
    x.copy_(flat.reshape(x.shape) if isinstance(domain, Grid) else flat.mT)


def _moved_by(case: Case, site: int) -> Tensor:
    """(m,) whether each output changes if the input at a site does."""
    y, found = case(case.x[:1], "dense"), []
    for value in (-1e3, -0.5, 0.5, 1e3):
        x = case.x[:1].clone()
        _put(x, case.domain, site, value)
        found.append(sites(case(x, "dense") - y, case.structure.target(case.domain))[0].ne(0).any(-1))
    return torch.stack(found).any(0)


@a_law
def law_empty_batches_learn(case: Case) -> bool:
    """The gradients of an empty batch are 0: in x, the weights, the structure's parameters and edge weights."""
    if case.dtype != torch.float64:
        return False
    for name in case.lowerings:
        empty = replace(case, x=case.x[:0])
        for what, value in empty.gradients(name).items():
            if value.numel() and bool(value.detach().ne(0).any()):
                case.fail(f"{name}: an empty batch has the {what} {value.detach().abs().max():.3g}, not 0.")
    return True


@a_law
def law_results_are_their_callers(case: Case) -> bool:
    """In-place changes of an output, with and without gradients, affect neither x nor later results nor gradients."""
    if case.dtype != torch.float64:
        return False
    single = constant(case.x[0]) if isinstance(case.domain, Graph) else case.x[0]
    for name in case.lowerings:
        for x in (case.x, single):
            want, before = case(x, name).detach().clone(), x.detach().clone()
            for call in range(3):
                with torch.set_grad_enabled(call > 0):
                    y = case(x, name)
                    case.close(f"{name}: call {call} after the result was modified", y, want)
                    _modify(case, name, y)
                case.close(f"{name}: x after the result was modified", x, before, 0.0)
        for x in (case.x.clone().requires_grad_(), single):
            for got, want in zip(*(_slopes(case, name, x, in_place) for in_place in (True, False)), strict=True):
                case.close(f"{name}: a gradient through the modified result", got, want)
    return True


def _modify(case: Case, name: str, y: Tensor) -> Tensor:
    try:
        return torch.relu_(y.neg_().mul_(3))
    except RuntimeError as error:
        case.fail(f"{name}: its result cannot be modified in place: {error}")


def _slopes(case: Case, name: str, x: Tensor, in_place: bool) -> Sequence[Tensor]:
    """The gradients of |relu(-3 y)|^2 in x and the parameters, with y modified in place or not."""
    leaves = [t for t in (x, *case.layer.parameters()) if t.requires_grad]
    if not leaves:
        return ()
    y = case(x, name)
    y = _modify(case, name, y) if in_place else torch.relu(-3 * y)
    return torch.autograd.grad(y.square().sum(), leaves, allow_unused=True, materialize_grads=True)


@a_law
def law_domains_in_turn(case: Case) -> bool:
    """A layer that alternates between domains of equal size gives the same outputs as a new layer on each."""
    if case.dtype != torch.float64:
        return False
    others = _of_equal_size(case)
    alone = [_fresh(case, domain, x) for domain, x in others]
    for turn in range(2):
        for (domain, x), want in zip(others, alone, strict=True):
            case.close(f"turn {turn} on {domain!r}", case.layer(x, domain), want)
            if isinstance(domain, Graph) and len(domain.ptr) == 2:
                given = {key: getattr(domain, key) for key in ("edge_weight", "edge_attr", "edge_type")}
                edges = {key: value for key, value in given.items() if value is not None}
                got = case.layer(x, domain.edge_index.clone(), **edges)
                case.close(f"turn {turn} on the edge_index of {domain!r}", got, want)
    return len(others) > 1


def _of_equal_size(case: Case) -> list[tuple[Domain, Tensor]]:
    """Domains that differ only in edges, weights, attributes or labels, or in the shape of the grid."""
    g = case.domain
    if isinstance(g, Grid):
        if len(set(g.shape)) == 1:
            return [(g, case.x)]
        turned = Grid(g.shape[::-1])
        try:
            case.structure.target(turned)
        except ValueError:
            return [(g, case.x)]
        return [(g, case.x), (turned, case.x.transpose(2, -1))]
    if not isinstance(g, Graph):
        return [(g, case.x)]
    found: list[Domain] = [g]
    if not case.one_graph:
        found.append(replace(g.permute(shuffled(g.size)), ptr=g.ptr))
    if g.edge_weight is not None:
        found.append(replace(g, edge_weight=2.5 * g.edge_weight))
    if g.edge_attr is not None:
        found.append(replace(g, edge_attr=g.edge_attr.flip(1)))
    if g.edge_type is not None:
        found.append(replace(g, edge_type=int(g.edge_type.max()) - g.edge_type))
    return [(domain, case.x) for domain in found]


def _fresh(case: Case, domain: Domain, x: Tensor) -> Tensor:
    layer = GConv(case.layer.spec, dtype=case.dtype).eval()
    layer.load_state_dict(case.layer.state_dict())
    found: Tensor = layer(x, pickle.loads(pickle.dumps(domain)), lowering="dense")
    return found


MEASURES = ("norm", "norm_bound", "singular_values")


@a_linear_law
def law_homogeneous(case: Case, A: LinearMap) -> bool:
    """f(c A) = |c| f(A) for norms and singular values, over the range of the dtype."""
    W = A.W
    if W is None:
        return False
    M = analysis.matrix(A)
    if not torch.allclose(analysis.matrix(replace(A, W=2 * W)), 2 * M):  # the map is not linear in W
        return False
    power = 140 if case.dtype == torch.float64 else 25
    for name in MEASURES:
        measure = getattr(analysis, name)
        want = torch.as_tensor(measure(A), dtype=torch.float64)
        for c in (-(10.0**-power), 10.0**power):
            got = torch.as_tensor(measure(replace(A, W=c * W)), dtype=torch.float64) / abs(c)
            case.close(f"{name}({c:g} A) / {abs(c):g}", got, want, 100 * case.tol)
    return True


EXTREMES = (0.0, -0.5, 1e-300, -1e-300, 1e3, 1e300, -1e300, math.inf, math.nan)
CHANNELS = {"in_channels", "out_channels", "channels"}


@a_law
def law_no_coefficient_overflows(case: Case) -> bool:
    """For any number as an option, either an error explains that it is invalid, or the output is finite (float64)."""
    if case.dtype != torch.float64:
        return False
    spec, concerned = case.layer.spec, False
    options = inspect.signature(operator(spec.name).factory).parameters
    for key, value in spec.arguments:
        words = str(options[key].annotation)
        if "float" not in words or isinstance(value, bool | tuple) or key in CHANNELS:
            continue
        concerned = True
        for extreme in EXTREMES:
            try:
                changed = operator(spec.name).factory(**{**dict(spec.arguments), key: extreme})
                y = _with(case, changed)
            except (ValueError, TypeError) as error:
                if not str(error).strip().endswith((".", ")")) or len(str(error)) < 20:
                    case.fail(f"{key}={extreme} raises an error without an explanation: {error!r}")
                continue
            if not bool(y.isfinite().all()):
                case.fail(f"{key}={extreme} gives the output {y[~y.isfinite()][0]}.")
    return concerned


def _with(case: Case, spec: OperatorSpec) -> Tensor:
    other = Case.of(replace(case.sample, spec=spec), case.dtype, case.domain)
    with torch.no_grad():
        return other(other.x)
