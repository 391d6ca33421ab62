"""Directed edges with weights, attributes and labels: the base class of `Graph` and `Bipartite`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor

from gconv.arguments import kind_of
from gconv.caches import Holders
from gconv.domains.foreign import as_tensor, instance
from gconv.kernels import at_trace_time, is_batched, lasting, leave, outside_transforms, readable

if TYPE_CHECKING:
    from gconv.domains.sampling import Whole

T = TypeVar("T")
_MISSING: Any = object()


def check_edge_index(edge_index: Any, name: str = "edge_index") -> Tensor:
    """An edge_index, a tensor of any class or an array, as a plain tensor. Raises: TypeError, ValueError."""
    if not isinstance(edge_index, Tensor) and not instance(edge_index, "numpy", "ndarray"):
        raise TypeError(
            f"{name} must be a torch tensor of shape (2, e), but {kind_of(edge_index)} was given; "
            "torch.as_tensor converts lists; Graph.from_edge_list, from_networkx, from_pyg and from_scipy read others."
        )
    edge_index = as_tensor(name, edge_index)
    if edge_index.layout != torch.strided:
        raise TypeError(
            f"{name} must be a dense tensor of node indices, but a sparse tensor was given; Graph.from_sparse reads "
            "an adjacency matrix."
        )
    if edge_index.dtype.is_floating_point or edge_index.dtype.is_complex or edge_index.dtype == torch.bool:
        raise TypeError(
            f"{name} contains node indices and must be an integer tensor, but its dtype is {edge_index.dtype}."
        )
    if edge_index.ndim != 2 or edge_index.shape[0] != 2:
        raise ValueError(
            f"{name} must have shape (2, e), row 0 the sources and row 1 the targets, but its shape is "
            f"{tuple(edge_index.shape)}."
        )
    return edge_index


def joined(parts: Sequence[Any], names: Iterable[str]) -> dict[str, Any]:
    """These tensors of all domains, concatenated. Raises: ValueError if only some domains have one of them."""
    found = {}
    for name in names:
        have = [value for part in parts if (value := getattr(part, name)) is not None]
        if have and len(have) < len(parts):
            kind = "graphs" if parts[0].square else "domains"
            raise ValueError(f"Only {len(have)} of the {len(parts)} {kind} have {name}; give it to all or to none.")
        if have:
            found[name] = torch.cat(have)
    return found


def read_permutation(name: str, order: Any, size: int, device: torch.device) -> Tensor:
    """The new index of each of `size` nodes, as an int64 tensor. Raises: TypeError, ValueError."""
    order = as_tensor(name, order)
    if order.is_floating_point() or order.is_complex() or order.dtype == torch.bool or order.ndim != 1:
        raise TypeError(
            f"{name} must be a vector of node indices, but it is {order.dtype} of shape {tuple(order.shape)}."
        )
    order = order.to(device=device, dtype=torch.int64)
    if not torch.equal(order.sort().values, torch.arange(size, device=device)):
        raise ValueError(f"{name} must contain each of the node indices 0 to {size - 1} once.")
    return order


def counted() -> AbstractContextManager[object]:
    """A context for copying tensors outside of inference mode, in which torch does not count their changes in place."""
    if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
        return nullcontext()
    stack = ExitStack()
    stack.enter_context(torch.inference_mode(False))  # which turns gradients on
    stack.enter_context(torch.no_grad())
    return stack


@at_trace_time
def _from_outside(edges: Edges) -> str | None:
    """Whether a graph was created outside the trace and has cached values."""
    if edges.__dict__.get("_memo") and edges.version != edges.__dict__.get("_derived_from", edges.version):
        edges._memo.clear()
    return "yes" if edges.__dict__.get("_memo") else None


@at_trace_time
def _recall(edges: Edges, key: Hashable) -> str | None:
    """The attribute name under which a value cached outside the trace is available to it; None if there is none."""
    memo = edges._memo
    return leave(edges, str(list(memo).index(key)), memo[key]) if key in memo else None


class Edges:
    """The edges of a `Graph` or a `Bipartite`, and a cache for quantities derived from them.

    >>> from gconv import Graph
    >>> isinstance(Graph(torch.tensor([[0, 1], [1, 0]])), Edges)
    True
    """

    edge_index: Tensor
    edge_weight: Tensor | None
    edge_attr: Tensor | None
    edge_type: Tensor | None
    _memo: dict[Hashable, Any]

    square: ClassVar[bool]  # whether sources and targets are the same nodes
    pos: Tensor | None = None
    whole: Whole | None = None  # of a sampled block: degrees and indices in the graph it was sampled from

    @property
    def learned(self) -> bool:
        """Whether edge or node tensors require gradients, so that nothing derived from them may be cached."""
        raise NotImplementedError

    @property
    def sites(self) -> tuple[int, int]:
        """(m, n): the numbers of output and input sites."""
        raise NotImplementedError

    def at_targets(self, x: Tensor, axis: int = -2) -> Tensor:
        """The part of a signal, with n sites on this axis, that belongs to the m targets of the edges."""
        raise NotImplementedError

    def _copy_edge_index(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Store a copy of edge_index. Returns the smallest and largest index of the sources, then of the targets."""
        given = check_edge_index(self.edge_index)
        if is_batched(given):
            raise TypeError(
                "edge_index is batched by torch.vmap, but the edges must be the same for all signals of a batch: call "
                "the layer once for each edge_index, or on the union of the graphs, Graph.union."
            )
        with outside_transforms(given), counted():
            copied = given.detach().to(torch.int64, copy=True).contiguous()
        object.__setattr__(self, "edge_index", copied)
        if not readable(copied):  # during tracing indices cannot be checked
            return (0, -1), (0, -1)
        source, target = ((int(end.min()), int(end.max())) if len(end) else (0, -1) for end in copied)
        return source, target

    def _copy_edge_tensors(self) -> None:
        """Store copies of edge_weight, edge_attr and edge_type."""
        for name, ndims in (("edge_weight", (1,)), ("edge_attr", (1, 2)), ("edge_type", (1,))):
            value = getattr(self, name)
            if value is not None:
                with outside_transforms(value if isinstance(value, Tensor) else None), counted():
                    object.__setattr__(self, name, self._check_edge_tensor(name, value, ndims))

    def _check_edge_tensor(self, name: str, value: Any, ndims: tuple[int, ...]) -> Tensor:
        e = self.edge_index.shape[1]
        value = as_tensor(name, value)
        if value.layout != torch.strided:
            raise TypeError(f"{name} must be a dense tensor, but a sparse one was given; to_dense() converts it.")
        if value.ndim == 2 and value.shape[1] == 1 and ndims == (1,):
            value = value[:, 0]
        if value.ndim not in ndims or value.shape[0] != e:
            raise ValueError(
                f"{name} must have one {'number' if ndims == (1,) else 'row'} per edge, {e} in all, "
                f"but its shape is {tuple(value.shape)}."
            )
        if value.device != self.edge_index.device:
            raise ValueError(f"{name} is on {value.device}, but edge_index is on {self.edge_index.device}.")
        if name == "edge_type":
            if value.dtype.is_floating_point or value.dtype.is_complex or value.dtype == torch.bool:
                raise TypeError(
                    f"edge_type contains labels and must be an integer tensor, but its dtype is {value.dtype}."
                )
            value = value.detach().to(torch.int64, copy=True)
            if readable(value) and e and int(value.min()) < 0:
                raise ValueError(f"edge_type must not be negative, but it contains the label {int(value.min())}.")
            return value
        if value.dtype.is_complex:
            raise TypeError(f"{name} must be real, but its dtype is {value.dtype}.")
        if not value.dtype.is_floating_point:
            value = value.to(torch.get_default_dtype())
        if readable(value) and not bool(torch.isfinite(value.detach()).all()):
            raise ValueError(f"{name} must be finite, but it contains NaN or infinity.")
        return value[:, None].clone() if name == "edge_attr" and value.ndim == 1 else value.clone()

    @property
    def num_edges(self) -> int:
        return self.edge_index.shape[1]

    @property
    def device(self) -> torch.device:
        return self.edge_index.device

    @property
    def readable(self) -> bool:
        """Whether tensor values can be read: not in a trace in which the graph was created, and not under vmap."""
        given = (self.edge_index, self.edge_weight, self.edge_attr, self.edge_type)
        return all(readable(t) for t in given if t is not None)

    @property
    def source(self) -> Tensor:
        return self.edge_index[0]

    @property
    def target(self) -> Tensor:
        return self.edge_index[1]

    @property
    def version(self) -> tuple[int | None, ...]:
        """How often each tensor was modified in place; None for one that requires a gradient, which is not cached."""
        found: list[int | None] = []
        try:
            for t in (self.edge_index, self.edge_weight, self.edge_attr, self.edge_type, self.pos):
                found.append(-1 if t is None else None if t.requires_grad else t._version)
        except RuntimeError:  # torch does not count the changes of tensors that were created in inference mode
            return ()
        return tuple(found)

    def memo(self, key: Hashable, make: Callable[[], T], *, of_weights: bool = False) -> T:
        """The result of `make`, cached for this key until a tensor is modified in place.

        Args:
            key, make: the result and its key.
            of_weights: whether it is also computed again after edge weights that require a gradient were modified in
                place, as by an optimiser; what depends on the edges alone is kept then.
        """
        if torch.compiler.is_dynamo_compiling():
            found = _recall(self, key) if _from_outside(self) else None
            return make() if found is None else getattr(self, found)
        if type(self.edge_index) is Tensor:  # fake tensors count anew
            version = self.version
            if self.__dict__.setdefault("_derived_from", version) != version:
                self._memo.clear()
                self.__dict__["_derived_from"] = version
        if of_weights and self.edge_weight is not None and self.edge_weight.requires_grad:
            self._forget_unless_same(key, self.edge_weight)
        known = self._memo.get(key, _MISSING)  # a single look-up: another thread may clear the cache at any time
        if known is not _MISSING:
            return known
        DERIVED.add(self)
        with lasting(self.edge_index):
            made = self._memo[key] = make()
        return made

    def _forget_unless_same(self, key: Hashable, weight: Tensor) -> None:
        """Drop a cached result if the edge weights, which require a gradient, were modified in place since."""
        if type(weight) is not Tensor or weight.is_inference():  # whose changes are not counted
            return
        made, version = self.__dict__.setdefault("_made_from", {}), weight._version
        if made.get(key, version) != version:
            self._memo.pop(key, None)
        made[key] = version

    def __deepcopy__(self, memo: dict[int, Any]) -> Edges:
        """A copy. Raises: RuntimeError if tensors of it are computed from others, which the copy could not follow."""
        for name in ("edge_weight", "edge_attr", "pos"):
            value = getattr(self, name, None)
            if value is not None and not value.is_leaf:
                raise RuntimeError(
                    f"A {type(self).__name__} whose {name} requires gradients cannot be copied, since gradients of the "
                    f"copy would reach the original tensors: detach {name}, or create the {type(self).__name__} from "
                    "the parameters in each forward pass."
                )
        reduced: Any = self.__reduce__()
        make, arguments = reduced
        made: Edges = make(*copy.deepcopy(arguments, memo))
        return made

    def weights(self, dtype: torch.dtype | None = None) -> Tensor:
        """(e,) the edge weights, or ones."""
        dtype = dtype or torch.get_default_dtype()
        if self.edge_weight is None:
            return torch.ones(self.num_edges, dtype=dtype, device=self.device)
        return self.edge_weight.to(dtype)

    def _sums(self, ends: Tensor, nodes: int, dtype: torch.dtype | None) -> Tensor:
        """(nodes,) the sums of the weights of the edges with each end, in double precision until they are complete."""
        w = self.weights(torch.float64)
        return w.new_zeros(nodes).index_add(0, ends, w).to(dtype or torch.get_default_dtype())


def _given(edges: Edges) -> list[Tensor | None]:
    return [edges.edge_index, edges.edge_weight, edges.edge_attr, edges.edge_type]


DERIVED: Holders[Edges] = Holders("derived from graphs", "graphs", lambda edges: [edges._memo], _given)
