"""The laws that every convolution obeys, as functions anyone can hold an operator to.

A law takes a `Sample` (a spec, a domain, a number of channels) and a dtype. It returns True if the sample obeys it,
False if the law does not concern the sample (a maximum has no adjoint), and raises AssertionError, with numbers, if the
sample breaks it. `LAWS` lists them all; `check_operator` runs them.

>>> from gconv.operators import cheb
>>> from gconv.operators.shapes import ring
>>> applied = check_operator(cheb(3, 4, k=3), ring, 3)
>>> applied["law_adjoint"], applied["law_translation"]
(True, False)
"""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NoReturn

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError

from gconv.analysis import adjoint_gap, matrix, norm, receptive_field, singular_values
from gconv.basis import Shifts
from gconv.domains import Graph, Grid
from gconv.linear import LinearMap
from gconv.lowering import dense
from gconv.mixing import Dense, spread_bias
from gconv.module import GConv
from gconv.plan import admitted, backward
from gconv.spec import Domain, NotLinear, OperatorSpec, Sample, Structure

Law = Callable[[Sample, torch.dtype], bool]
LAWS: dict[str, Law] = {}
TOL = {torch.float64: 1e-10, torch.float32: 1e-5}  # of the largest entry


def check_operator(
    operator: Sample | OperatorSpec,
    domain: Callable[[], Domain] | Domain | None = None,
    channels: int | None = None,
    *,
    dtypes: Iterable[torch.dtype] = tuple(TOL),
    laws: Iterable[Law] | None = None,
) -> dict[str, bool]:
    """Hold an operator to the laws.

    Args:
        operator: a sample, or a spec with
        domain: (a maker of) a domain that fits it, and
        channels: the channels in.
        dtypes: to run in.
        laws: default all of `LAWS`; `law_compile`, which takes seconds, is apart.

    Returns:
        for each law whether it concerned the operator.

    Raises:
        AssertionError: at the first law that is broken; the message says which, where and by how much.
    """
    if isinstance(operator, OperatorSpec):
        if domain is None or channels is None:
            raise TypeError("A spec is checked on a domain and a number of channels: give all three.")
        place = domain
        operator = Sample(operator, place if callable(place) else lambda: place, channels)
    return {
        law.__name__: any([law(operator, dtype) for dtype in dtypes])
        for law in (LAWS.values() if laws is None else laws)
    }


def assert_close(what: str, got: Tensor, want: Tensor, tol: float) -> None:
    """Equal up to `tol` of the largest entry (of 1, where all are smaller)."""
    if got.shape != want.shape:
        raise AssertionError(f"{what}: the shape is {tuple(got.shape)}, but it should be {tuple(want.shape)}.")
    if got.numel() == 0:
        return
    got, want = got.detach().double(), want.detach().double()
    error, scale = float((got - want).abs().max()), max(1.0, float(want.abs().max()))
    if not error <= tol * scale:  # NaN fails too
        raise AssertionError(
            f"{what}: off by {error:.3g} where the largest entry is {scale:.3g}; allowed is {tol:g} of it."
        )


@dataclass(frozen=True)
class Case:
    """A sample come alive: a layer with random weights and bias, its domain, and two random signals in its layout."""

    sample: Sample
    layer: GConv
    domain: Domain
    x: Tensor

    @classmethod
    def of(
        cls, sample: Sample, dtype: torch.dtype, domain: Domain | None = None, batch: int = 2, seed: int = 0
    ) -> Case:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layer = GConv(sample.spec, dtype=dtype)
            if layer.bias is not None:
                torch.nn.init.uniform_(layer.bias, -1, 1)
            domain = sample.domain() if domain is None else domain
            size = (sample.channels, *domain.shape) if isinstance(domain, Grid) else (domain.size, sample.channels)
            return cls(sample, layer, domain, torch.randn(batch, *size, dtype=torch.float64).to(dtype))

    def __call__(self, x: Tensor, lowering: str | None = None, domain: Domain | None = None) -> Tensor:
        return self.layer(x, domain or self.domain, lowering=lowering)

    def close(self, what: str, got: Tensor, want: Tensor, tol: float | None = None) -> None:
        assert_close(f"{self.sample.name}: {what}", got, want, self.tol if tol is None else tol)

    def fail(self, message: str) -> NoReturn:
        raise AssertionError(f"{self.sample.name}: {message}") from None

    @property
    def dtype(self) -> torch.dtype:
        return self.x.dtype

    @property
    def tol(self) -> float:
        return TOL[self.dtype]

    @property
    def structure(self) -> Structure:
        return self.layer.spec.structure

    @property
    def one_graph(self) -> bool:
        """Whether the parameters belong to the nodes of one graph, so that no other graph or order of nodes fits."""
        return getattr(self.structure, "nodes", None) is not None

    @property
    def signal(self) -> Tensor:
        """The first signal as (n, i)."""
        return _sites(self.x[0], self.domain)

    @property
    def lowerings(self) -> list[str]:
        return [c.name for c in self.layer.plan(self.x, self.domain).candidates if c.reason is None]

    def map(self) -> LinearMap | None:
        """The layer as a map, frozen at the first signal; None where a tap reduces with max."""
        try:
            with torch.no_grad():
                return self.layer.at(self.domain, x=self.signal)
        except NotLinear:
            return None

    def gradients(self, lowering: str | None, edges: bool = True) -> dict[str, Tensor]:
        """The value, and a random functional's gradient in x, each parameter and (edges) the edge weights."""
        x, domain = self.x.clone().requires_grad_(), self.domain
        leaves = {"x": x, **dict(self.layer.named_parameters())}
        if edges and isinstance(domain, Graph) and domain.edge_weight is not None:
            leaves["edge_weight"] = domain.edge_weight.detach().clone().requires_grad_()
            domain = replace(domain, edge_weight=leaves["edge_weight"])
        y = self(x, lowering, domain)
        loss = (y * _random(y)).sum()
        grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
        return {"value": y, **{f"gradient in {name}": g for name, g in zip(leaves, grads, strict=True)}}


def _random(like: Tensor, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.dtype)


def _sites(x: Tensor, domain: Domain) -> Tensor:
    """The layer's layout -> (*b, n, c)."""
    return x.flatten(-domain.ndim).mT if isinstance(domain, Grid) else x


# -- the laws ------------------------------------------------------------------------------------------------------


def _law(check: Callable[[Case], bool]) -> Law:
    def law(sample: Sample, dtype: torch.dtype) -> bool:
        return check(Case.of(sample, dtype))

    law.__name__, law.__doc__ = check.__name__, check.__doc__
    LAWS[check.__name__] = law
    return law


def _linear_law(check: Callable[[Case, LinearMap], bool]) -> Law:
    """A law of the layer as a map; it does not concern a maximum."""

    def concerned(case: Case) -> bool:
        A = case.map()
        return A is not None and check(case, A)

    concerned.__name__, concerned.__doc__ = check.__name__, check.__doc__
    return _law(concerned)


@_law
def law_lowerings(case: Case) -> bool:
    """Every admitted lowering equals `dense`: value, and gradients in x, weight, bias, structure and edge weights."""
    want = case.gradients("dense")
    for name in case.lowerings:
        got = case.gradients(name)
        for what in want:
            case.close(f"{what}, {name} against dense", got[what], want[what])
    return len(case.lowerings) > 1


@_linear_law
def law_adjoint(case: Case, A: LinearMap) -> bool:
    """<A x, y> = <x, A^T y>; by every lowering A x is the matrix times x, and A^T y its transpose times y."""
    gap = adjoint_gap(A)
    if not gap <= case.tol:
        case.fail(f"<A x, y> and <x, A^T y> differ by {gap:.3g} of |A x| |y|.")
    for B, M, side in ((A, matrix(A), "A"), (A.T, matrix(A).mT, "A.T")):
        x = _random(M.new_empty(2, B.sites[1], B.i))
        want = (x.flatten(1) @ M.mT).unflatten(-1, (B.sites[0], B.o))
        for name in admitted(B.S, B.mixing):
            case.close(f"{side} by {name} against the matrix", B.apply(x, name), want)
    return True


@_linear_law
def law_hand_rule(case: Case, A: LinearMap) -> bool:
    """dX = sum_k S_k^T dY W_k^T and dW_k = (S_k X)^T dY are what autograd finds of the matrix (dense mixing)."""
    if not isinstance(A.mixing, Dense):
        return False
    assert A.W is not None
    x, W = _random(A.W.new_empty(2, A.sites[1], A.i)).requires_grad_(), A.W.detach().clone().requires_grad_()
    y = replace(A, W=W).apply(x, "dense")  # which takes no transpose from S
    dy = _random(y, 2)
    want = torch.autograd.grad(y, (x, W), dy)
    for what, hand, auto in zip(("dX", "dW"), backward(A.S, A.mixing, W.detach(), x.detach(), dy), want, strict=True):
        case.close(f"{what} by hand against autograd", hand, auto)
    return True


@_linear_law
def law_linearity(case: Case, A: LinearMap) -> bool:
    """The layer is its map plus the bias, and linear in x; adaptive structure: frozen."""
    x, y = _sites(case.x, case.domain)
    spread = spread_bias(case.layer.spec.mixing, case.layer.bias)
    bias = 0 if spread is None else spread
    here, there = _sites(case(case.x), case.structure.target(case.domain))
    case.close("the layer against its map plus bias", here, A @ x + bias)
    if case.structure.kind != "adaptive":
        case.close("the layer at another signal", there, A @ y + bias)
    case.close("A (2 x - 3 y) against 2 A x - 3 A y", A @ (2 * x - 3 * y), 2 * (A @ x) - 3 * (A @ y))
    return True


@_law
def law_permutation(case: Case) -> bool:
    """Graphs: renaming the nodes renames the output; the order in which edges are listed does not matter."""
    g = case.domain
    if isinstance(g, Grid) or len(g.ptr) != 2 or case.one_graph:
        return False
    order, y = _shuffle(g.size), case(case.x)
    renamed = case(torch.empty_like(case.x).index_copy(-2, order, case.x), domain=g.permute(order))
    back = renamed[..., order, :] if y.shape[-2] == g.size else renamed
    case.close("nodes renamed", back, y)
    edges = _shuffle(g.num_edges)
    tensors = {k: v[edges] for k in ("edge_weight", "edge_attr", "edge_type") if (v := getattr(g, k)) is not None}
    listed = replace(g, edge_index=g.edge_index[:, edges], **tensors)
    case.close("edges listed in another order", case(case.x, domain=listed), y)
    return True


def _shuffle(n: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(3))


@_linear_law
def law_translation(case: Case, A: LinearMap) -> bool:
    """Circular grids, stride 1: shifting the input shifts the output."""
    if _circular(A) is None:
        return False
    assert isinstance(case.domain, Grid)
    axes, y = tuple(range(-case.domain.ndim, 0)), case(case.x)
    for steps in ((1,) * len(axes), tuple(range(2, 2 + len(axes)))):
        moved = case(case.x.roll(steps, axes))
        case.close(f"translated by {steps}", moved, y.roll(steps, axes))
    return True


def _circular(A: LinearMap) -> Shifts | None:
    """The structure, if it is a circulant: shifts that lead a grid onto itself and wrap around."""
    S = A.S
    circular = isinstance(S, Shifts) and not S.window and set(S.stride) == {1} and S.grids[0] == S.grids[1]
    return S if circular and isinstance(S, Shifts) and (S.mode == "circular" or not S.is_padded) else None


@_linear_law
def law_receptive_field(case: Case, A: LinearMap) -> bool:
    """What an output site is said to see is the support of the Jacobian (frozen, where adaptive)."""

    def run(x: Tensor) -> Tensor:
        if case.structure.kind == "adaptive":
            return A @ x
        image = x.mT.unflatten(-1, case.domain.shape) if isinstance(case.domain, Grid) else x
        return _sites(case(image.unsqueeze(0))[0], case.structure.target(case.domain))

    size = torch.autograd.functional.jacobian(run, case.signal).abs().amax((1, 3))  # of (m, o, n, i)
    seen = size > 100 * torch.finfo(case.dtype).eps * size.max()
    wrong = int((seen != receptive_field(A)).sum())
    if wrong:
        case.fail(f"{wrong} of {size.numel()} (output, input) pairs are seen but unsaid, or said but unseen.")
    return True


@_linear_law
def law_norm(case: Case, A: LinearMap) -> bool:
    """norm(A) and singular_values(A), by whatever way the form allows, are those of the matrix."""
    if case.dtype != torch.float64:
        return False
    want = torch.linalg.svdvals(matrix(A))
    case.close("norm(A) against the singular values", want.new_tensor(norm(A)), want[0], 10 * case.tol)
    case.close("singular_values(A) against the matrix", singular_values(A), want, 10 * case.tol)
    return True


@_linear_law
def law_row_stochastic(case: Case, A: LinearMap) -> bool:
    """Where the sample declares it: no entry of S is negative and every row sums to 1."""
    if not case.sample.row_stochastic:
        return False
    S = dense.stack(A.S, case.dtype, A.device).detach()
    if float(S.min()) < -case.tol:
        case.fail(f"an entry of S is {float(S.min()):.3g}, but it is declared row-stochastic.")
    case.close("the row sums of S", S.sum(-1), torch.ones_like(S[..., 0]))
    return True


@_law
def law_union(case: Case) -> bool:
    """A disjoint union of graphs acts as the direct sum: each part as if it were alone."""
    g = case.domain
    if isinstance(g, Grid) or case.one_graph:
        return False
    other = replace(g.permute(_shuffle(g.size)), ptr=g.ptr)
    y = case(torch.cat([case.x, 2 * case.x], -2), domain=Graph.union([g, other]))
    alone = torch.cat([case(case.x), case(2 * case.x, domain=other)], -2)
    case.close("on the union against each part alone", y, alone)
    return True


@_law
def law_gradcheck(case: Case) -> bool:
    """Gradients are the limits of difference quotients (float64)."""
    if case.dtype != torch.float64:
        return False
    case = Case.of(case.sample, case.dtype, batch=1)
    theta = dict(case.layer.named_parameters())

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(case.layer, dict(zip(theta, values, strict=True)), (x, case.domain))

    try:
        torch.autograd.gradcheck(run, (case.x.requires_grad_(), *theta.values()), fast_mode=True)
    except GradcheckError as error:
        case.fail(f"{error}")
    return True


@_law
def law_edge_cases(case: Case) -> bool:
    """No edges, one node, self-loops, double edges, isolated nodes, empty batches: finite, and as `dense` has it."""
    if case.one_graph:
        return False
    for what, domain in _edge_cases(case.domain).items():
        case = Case.of(case.sample, case.dtype, domain)
        want = case(case.x, "dense")
        if not bool(want.isfinite().all()):
            case.fail(f"{what}: the output is not finite.")
        for name in case.lowerings:
            case.close(f"{what}: {name} against dense", case(case.x, name), want)
            case.close(f"{what}, empty batch: {name}", case(case.x[:0], name), want[:0])
    return True


def _edge_cases(domain: Domain) -> dict[str, Domain]:
    if isinstance(domain, Grid):
        return {"its own grid": domain}
    edges: dict[str, tuple[int, list[tuple[int, int]]]] = {
        "one node": (1, []),
        "one node with a loop": (1, [(0, 0)]),
        "no edges": (3, []),
        "a loop, a double edge, an isolated node": (4, [(0, 1), (1, 0), (0, 1), (1, 0), (1, 1)]),
    }
    if not domain.is_undirected:
        edges["directed path"] = 3, [(0, 1), (1, 2)]
    return {what: _like(domain, n, torch.tensor(pairs).reshape(-1, 2).t()) for what, (n, pairs) in edges.items()}


def _like(g: Graph, n: int, index: Tensor) -> Graph:
    """A graph with these edges that carries what g carries."""
    index, e = index.long(), torch.arange(index.shape[1])
    weight = None if g.edge_weight is None else 0.5 + 0.25 * index.sum(0).double()
    attr = None
    if g.edge_attr is not None:  # within the range of its own
        low, high = g.edge_attr.amin(0), g.edge_attr.amax(0)
        attr = low + (high - low) * (0.5 + 0.5 * torch.sin(1.0 + e[:, None] + torch.arange(len(low))))
    label = None if g.edge_type is None else e % (int(g.edge_type.max()) + 1)
    return Graph(index, n, edge_weight=weight, edge_attr=attr, edge_type=label)


@_law
def law_batch(case: Case) -> bool:
    """Many signals in one call are what they are one by one; graphs take any batch axes."""
    y = case(case.x)
    case.close("a batch against one by one", y, torch.stack([case(x) for x in case.x]))
    if isinstance(case.domain, Graph):
        deep = torch.stack([case.x, -case.x], 1)
        case.close("two batch axes", case(deep)[:, 0], y)
    return True


@_law
def law_caches(case: Case) -> bool:
    """What is kept is never stale: after other domains and new weights, a layer answers as one made afresh does."""
    case(case.x)
    if isinstance(case.domain, Graph):
        weight = case.domain.edge_weight
        renamed = case.domain.permute(_shuffle(case.domain.size))
        other = replace(renamed, edge_weight=None if weight is None else 2 * weight)
        case.close("on a second graph", case(case.x, domain=other), _afresh(case, other))
    with torch.no_grad():
        for p in case.layer.parameters():
            p.add_(0.5)
    case.close("after the weights changed", case(case.x), _afresh(case, case.domain))
    return True


def _afresh(case: Case, domain: Domain) -> Tensor:
    new = GConv(case.layer.spec, dtype=case.x.dtype)
    new.load_state_dict(case.layer.state_dict())
    return replace(case, layer=new)(case.x, "dense", pickle.loads(pickle.dumps(domain)))


@_law
def law_round_trips(case: Case) -> bool:
    """A spec survives JSON and print; a layer survives state_dict, pickle and deepcopy, and prints its spec."""
    if case.dtype != torch.float64:
        return False
    spec = case.sample.spec
    for how, again in (
        ("to_dict and JSON", OperatorSpec.from_dict(json.loads(json.dumps(spec.to_dict())))),
        ("its repr", OperatorSpec.parse(repr(spec))),
    ):
        same = again == spec and hash(again) == hash(spec)
        if not same or (again.structure, again.mixing) != (spec.structure, spec.mixing):
            case.fail(f"through {how} it became {again!r}.")
    if repr(spec) not in repr(case.layer):
        case.fail(f"the layer prints as {case.layer!r}, without its spec.")
    loaded = GConv(spec, dtype=case.dtype)
    loaded.load_state_dict(case.layer.state_dict())
    y = case(case.x)
    for how, layer in (
        ("state_dict", loaded),
        ("pickle", pickle.loads(pickle.dumps(case.layer))),
        ("deepcopy", copy.deepcopy(case.layer)),
    ):
        case.close(f"after {how}", replace(case, layer=layer)(case.x), y)
    return True


@_law
def law_bfloat16(case: Case) -> bool:
    """In bfloat16 every lowering comes within three per cent of the largest entry of float32."""
    if case.dtype != torch.float32:
        return False
    want, half = case(case.x, "dense"), copy.deepcopy(case.layer).bfloat16()
    for name in case.lowerings:
        got = replace(case, layer=half)(case.x.bfloat16(), name)
        if got.dtype != torch.bfloat16:
            case.fail(f"{name} turns bfloat16 into {got.dtype}.")
        case.close(f"{name} in bfloat16", got, want, 0.03)
    return True


def law_compile(sample: Sample, dtype: torch.dtype, backend: str = "aot_eager") -> bool:
    """torch.compile(fullgraph=True) changes nothing, once the layer has met its domain. Takes seconds."""
    case = Case.of(sample, dtype)
    want = case.gradients(None, edges=False)  # derives what the domain gives, outside the compiled region
    compiled = torch.compile(case.layer, fullgraph=True, backend=backend)
    try:
        found = replace(case, layer=compiled).gradients(None, edges=False)  # type: ignore[arg-type]
    except torch._dynamo.exc.TorchDynamoException as error:
        raise AssertionError(f"{sample.name}: torch.compile(fullgraph=True) cannot trace it: {error}") from None
    got = {what.replace("_orig_mod.", ""): value for what, value in found.items()}
    for what in want:
        case.close(f"{what}, compiled", got[what], want[what], 10 * TOL[dtype])
    return True
