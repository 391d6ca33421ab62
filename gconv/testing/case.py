"""Case: an instantiated sample; and the decorators that register laws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor

from gconv.domains import Bipartite, Edges, Graph, Grid
from gconv.linear import LinearMap
from gconv.module import GConv
from gconv.spec import Domain, NotLinear, Sample, Structure

Law = Callable[[Sample, torch.dtype], bool]
LAWS: dict[str, Law] = {}
TOL = {torch.float64: 1e-10, torch.float32: 1e-5}  # of the largest entry


def assert_close(what: str, got: Tensor, want: Tensor, tol: float) -> None:
    """Raises: AssertionError unless the maximum error is at most `tol` * max(1, largest entry)."""
    if got.shape != want.shape:
        raise AssertionError(f"{what}: the shape is {tuple(got.shape)}, but it should be {tuple(want.shape)}.")
    if got.numel() == 0:
        return
    got, want = got.detach().double(), want.detach().double()
    error, scale = float((got - want).abs().max()), max(1.0, float(want.abs().max()))
    if not error <= tol * scale:  # NaN fails too
        raise AssertionError(
            f"{what}: off by {error:.3g}, but at most {tol:g} of the largest entry, {scale:.3g}, is allowed."
        )


@dataclass(frozen=True)
class Case:
    """An instantiated sample: a layer with random weights and bias, its domain, and random signals in its layout."""

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
            layer = GConv(sample.spec, dtype=dtype).eval()  # without dropout
            if layer.bias is not None:
                torch.nn.init.uniform_(layer.bias, -1, 1)
            domain = sample.domain() if domain is None else domain
            if isinstance(domain, Grid):
                size: tuple[int, ...] = (sample.channels, *domain.shape)
            elif isinstance(domain, Bipartite):  # one signal: the sources, followed by the targets if they are read
                both = sample.spec.structure.reads == "both"
                size = (domain.with_targets if both else domain).sites[1], sample.channels
            else:
                size = domain.size, sample.channels
            x = torch.randn(batch, *size, dtype=torch.float64).to(dtype)
            if isinstance(domain, Bipartite) and sample.spec.sides is not None:
                parts = zip(domain.split(x), sample.spec.sides, strict=True)
                x = domain.stack(*(part[..., :c] for part, c in parts))
            return cls(sample, layer, domain, x)

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
        """Whether the parameters belong to the nodes of one graph, so that other graphs cannot be used."""
        return self.structure.nodes is not None

    @property
    def signal(self) -> Tensor:
        """The first signal as (n, i)."""
        return sites(self.x[0], self.domain)

    @property
    def lowerings(self) -> list[str]:
        return [c.name for c in self.layer.plan(self.x, self.domain).candidates if c.reason is None]

    def map(self) -> LinearMap | None:
        """The layer as a map, frozen at the first signal; None if a tap reduces with max."""
        try:
            with torch.no_grad():
                return self.layer.at(self.domain, x=self.signal)
        except NotLinear:
            return None

    def gradients(self, lowering: str | None, edges: bool = True) -> dict[str, Tensor]:
        """The output, and the gradients of a random linear functional of it in x, parameters and edge weights."""
        x, domain = self.x.clone().requires_grad_(), self.domain
        leaves = {"x": x, **dict(self.layer.named_parameters())}
        if edges and isinstance(domain, Edges) and domain.edge_weight is not None:
            leaves["edge_weight"] = domain.edge_weight.detach().clone().requires_grad_()
            domain = replace(domain, edge_weight=leaves["edge_weight"])
        y = self(x, lowering, domain)
        loss = (y * random_like(y)).sum()
        grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
        return {"value": y, **{f"gradient in {name}": g for name, g in zip(leaves, grads, strict=True)}}


def random_like(like: Tensor, seed: int = 1) -> Tensor:
    """Random numbers with a fixed seed, with the shape, dtype and device of `like`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.device, like.dtype)


def sites(x: Tensor, domain: Domain) -> Tensor:
    """Images or a signal as (*b, n, c)."""
    return x.flatten(-domain.ndim).mT if isinstance(domain, Grid) else x


def a_law(check: Callable[[Case], bool]) -> Law:
    """Registers a function of a `Case` as a law."""

    def law(sample: Sample, dtype: torch.dtype) -> bool:
        return check(Case.of(sample, dtype))

    law.__name__, law.__doc__ = check.__name__, check.__doc__
    LAWS[check.__name__] = law
    return law


def a_linear_law(check: Callable[[Case, LinearMap], bool]) -> Law:
    """Registers a function of a `Case` and its linear map as a law; it does not apply to a maximum."""

    def applied(case: Case) -> bool:
        A = case.map()
        return A is not None and check(case, A)

    applied.__name__, applied.__doc__ = check.__name__, check.__doc__
    return a_law(applied)


def union(domains: Sequence[Graph | Bipartite]) -> Graph | Bipartite:
    """The disjoint union."""
    kind: Any = type(domains[0])
    made: Graph | Bipartite = kind.union(domains)
    return made


def renamed(domain: Graph | Bipartite, x: Tensor, ptr: bool = False) -> tuple[Graph | Bipartite, Tensor, Tensor]:
    """The domain with permuted nodes, the permuted signal, and the permutation of the outputs.

    Nodes that are both source and target (index i of both sets) stay so. With `ptr` the parts of a union are kept.
    """
    if isinstance(domain, Graph):
        order = shuffled(domain.size)
        moved = torch.empty_like(x).index_copy(-2, order, x)
        return replace(domain.permute(order), ptr=domain.ptr) if ptr else domain.permute(order), moved, order
    n, m = domain.sizes
    both = min(n, m)
    source, target = (torch.cat([shuffled(both), both + shuffled(size - both)]) for size in (n, m))
    made = domain.permute(source, target)
    order = torch.cat([source, n + target])[: x.shape[-2]]
    return replace(made, ptr=domain.ptr) if ptr else made, torch.empty_like(x).index_copy(-2, order, x), target


def shuffled(n: int) -> Tensor:
    """A random permutation of n numbers with a fixed seed."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(3))
