"""GConv: a spec with weights, as a torch module. It has the only forward pass of the library."""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable, Hashable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from gconv.arguments import checked, integer, kind_of, plural, shown, unknown_argument
from gconv.basis import Basis, entries
from gconv.binding import bind, dropped, has_open_sizes, output_domain
from gconv.caches import Holders, Own, OwnWeak
from gconv.call import Call
from gconv.domains import Bipartite, Edges, Grid, read_graph
from gconv.domains.reading import recall
from gconv.errors import InputError, InputTypeError, first_line, ran_out_of_memory
from gconv.inputs import check_domain, read_input, read_pair, view_for
from gconv.kernels import (
    CallKind,
    Constant,
    call_kind,
    constant_of,
    eagerly,
    is_jit_tracing,
    is_plain_eager,
    may_interrupt,
    tracing,
)
from gconv.kernels.transforms import PLAIN
from gconv.linear import LinearMap
from gconv.lowering import on_images
from gconv.lowering.base import Run
from gconv.mixing import Dense, Parametrised, initial_weight, plain, spread_bias
from gconv.plan import Plan, measured, node_order, plan
from gconv.spec import Domain, NotLinear, OperatorSpec, list_operators

Pair = tuple[Tensor, Tensor | None]  # signals of the sources and of the targets
NOT_SCRIPTABLE = (
    "torch.jit.script cannot compile {}, whose forward is selected in each call: use torch.jit.trace, torch.export or "
    "torch.compile. A converted model can be converted back before scripting: gconv.interop.restore(model)."
)
Decisions = dict[Hashable, tuple[Basis | None, Run]]  # S if it is fixed, and the lowering, by what a call depends on
EdgeData = dict[str, Tensor | None]


class _OnGraph(dict[Hashable, tuple[Basis | None, Run]]):
    """The decisions for a graph, and the version of its tensors for which they were made."""

    version: tuple[int | None, ...] = ()


CALL_ARGUMENTS = ("x", "domain", "edge_weight", "edge_attr", "edge_type", "lowering")
OTHER_NAMES = {"edge_index": "domain", "graph": "domain", "adj": "domain", "adj_t": "domain", "input": "x"}
NOT_DECIDED = None, None
THREADS: Callable[[], int] = getattr(_thread, "_count", threading.active_count)  # in C, because every call uses it
AT_IMPORT = THREADS()
"""The number of Python threads now, and when gconv was imported (threads of servers, notebooks and test runners)."""
MAX_SHAPES = 64  # number of signal shapes for which a layer caches its decisions


def _unshared(p: Tensor | None) -> Tensor | None:
    """p or, beside other threads, a view of it: see `GConv._keep_accumulators`; for devices with streams."""
    if p is None or THREADS() <= AT_IMPORT or not torch.is_grad_enabled():
        return p
    return p.view_as(p)


def _check_spec(spec: Any, arguments: tuple[Any, ...]) -> None:
    """Whether GConv was given one spec. Raises: TypeError."""
    if isinstance(spec, OperatorSpec):
        if not arguments:
            return
        raise TypeError(f"GConv takes one spec, but it was given {spec} and {plural(len(arguments), 'more argument')}.")
    name = getattr(spec, "__name__", "")
    if name in list_operators():
        call = f"{name}({', '.join(map(repr, arguments)) or '...'})"
        raise TypeError(f"GConv takes an operator spec, not the function that makes one: write GConv({call}).")
    raise TypeError(f"GConv takes an operator spec such as cheb(16, 32, k=3), not {kind_of(spec)}.")


def _read_sides(S: Basis, W: Tensor, domain: Bipartite, sides: tuple[int, int]) -> tuple[Dense, Tensor]:
    """W (k, i, o) with zeros in the rows that multiply the zero padding of the signal with fewer channels."""
    found = entries(S, W.dtype, W.device).pattern
    ends = found.col < domain.sizes[0], found.col >= domain.sizes[0]
    channel = torch.arange(W.shape[1], device=W.device)
    read = torch.ones(W.shape[:2], dtype=torch.bool, device=W.device)
    for end, c in zip(ends, sides, strict=True):
        taps = torch.zeros(len(W), dtype=torch.bool, device=W.device).index_fill(0, found.tap[end], True)
        read = read & ((channel < c) | ~taps.unsqueeze(1))
    return Dense(*W.shape), W * read.unsqueeze(-1)


_LAYERS: Holders[GConv] = Holders("decisions of layers", "layers", lambda layer: [layer._images, layer._graphs])


class GConv(nn.Module):
    """A convolution layer from its spec.

    Equation: Y = sum_k S_k X W_k + b.

    Operators on grids take images as in torch, `layer(x)` with x (b, c, *grid) or (c, *grid). Operators on graphs take
    `layer(x, graph)` with x (*b, n, c): any number of signals on one graph in one call. The graph may be a `Graph`, an
    `edge_index` (with `edge_weight=`, ...), a torch sparse adjacency, a PyG `Data` or `Batch`, a networkx graph, a
    scipy sparse matrix or a PyGSP graph.
    Between two sets of nodes x is a pair: `layer((x_source, x_target), bipartite)`, or with an `edge_index`. If the
    operator does not read the targets' features, x_source alone is accepted; an x_target of None stands for zeros.

    Traps: `torch.compile(layer, fullgraph=True)` needs no call beforehand: S is computed from a `Graph` during tracing
    and becomes a constant. Create the `Graph` outside of the compiled function. torch.jit.trace, torch.export and the
    ONNX exporters record torch operators only (`gconv.portable` requests them in other calls); torch.jit.script is not
    supported. torch.fx.symbolic_trace records a layer within a model as one call.

    Weights on grids are stored with the taps innermost, as torch's kernels read them. Tools that flatten parameters by
    `view(-1)` (torch.optim.LBFGS, parameters_to_vector, unstructured pruning) therefore need
    `layer.weight.data = layer.weight.data.contiguous()`, after which each call copies the weight. Tools that rely on
    torch's layout (o, i, *kernel), such as fuse_conv_bn_eval or the parametrizations spectral_norm and orthogonal, do
    not notice that the weight here is (k, i, o), and change it along other axes: use them on layers of torch.nn, which
    `gconv.convert` then runs.

    torch.func transforms (grad, vjp, jvp, jacrev, jacfwd, hessian, vmap, functional_call) and forward-mode
    differentiation on graphs use torch's own operators, which store a row of x for each edge. Under vmap over edge
    weights the values cannot be read: checks of them are skipped, and operators that need an eigenvalue raise an error.

    Args:
        spec: the result of a factory in `gconv.operators`.
        device, dtype: of the parameters.

    Raises:
        TypeError, ValueError: if x, the graph and the spec do not fit each other; before anything is computed.
        Inadmissible: if `lowering=` cannot run this structure.

    >>> from gconv import Graph
    >>> from gconv.operators import cheb, conv2d
    >>> GConv(conv2d(3, 8, 3, padding=1))(torch.zeros(2, 3, 6, 6)).shape
    torch.Size([2, 8, 6, 6])
    >>> path = Graph(torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]))
    >>> GConv(cheb(4, 5, k=3))(torch.zeros(3, 4), path).shape
    torch.Size([3, 5])
    """

    @checked
    def __init__(
        self,
        spec: OperatorSpec,
        *arguments: Any,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_spec(spec, arguments)
        if dtype is not None and not (dtype.is_floating_point or dtype.is_complex):
            raise TypeError(f"GConv: dtype must be a floating point type, such as torch.float32, but it is {dtype}.")
        self.spec = spec
        self._like = torch.empty(0, dtype=dtype, device=device)  # dtype and device of a layer without parameters
        self._images: Decisions = Own()
        self._graphs: OwnWeak[Edges, _OnGraph] = OwnWeak()
        self._accumulators: Own[str, tuple[Tensor, Tensor]] = Own()  # see `_keep_accumulators`
        _LAYERS.add(self)
        weight = initial_weight(spec.mixing, spec.init, dtype, device)
        if weight is not None and spec.structure.domain == "graph":
            weight = weight.contiguous()  # the layout with taps innermost is only for torch's kernels on grids
        self.weight = None if weight is None else nn.Parameter(weight)
        self._structure = tuple(spec.structure.parameters())
        for name, p in spec.structure.parameters().items():
            self.register_parameter(name, nn.Parameter(p.start(dtype, device)))
        if spec.bias:
            mixing = spec.mixing
            o = mixing.channels(getattr(mixing, "i"))  # noqa: B009
            o //= mixing.tied if isinstance(mixing, Parametrised) else 1
            bound = 0.0 if spec.init == "glorot" else max(1, mixing.fan_in) ** -0.5
            self.bias = nn.Parameter(torch.empty(o, dtype=dtype, device=device).uniform_(-bound, bound))
        else:
            self.register_parameter("bias", None)
        self._shapes = {name: p.shape for name, p in self.named_parameters(recurse=False)}

    # -- forward -----------------------------------------------------------------------------------------------

    def forward(
        self,
        x: Tensor | Pair,
        domain: Any = None,
        *more: Any,
        edge_weight: Tensor | None = None,
        edge_attr: Tensor | None = None,
        edge_type: Tensor | None = None,
        lowering: str | None = None,
        **unknown: Any,
    ) -> Tensor:
        """Y = sum_k S_k X W_k + b.

        Args:
            x: images (b, c, *grid), a signal (*b, n, i), or a pair (x_source, x_target).
            domain: not needed for images; otherwise any graph, an edge_index or a `Bipartite`.
            edge_weight, edge_attr, edge_type: data of the edges, if the graph is an edge_index.
            lowering: the name of the algorithm to run; by default the planner chooses.
        """
        if isinstance(x, Proxy):
            return self._recorded(  # type: ignore[unreachable]
                x, domain, edge_weight=edge_weight, edge_attr=edge_attr, edge_type=edge_type, lowering=lowering
            )
        if unknown:
            raise unknown_argument(f"{self.spec.name} layer", next(iter(unknown)), CALL_ARGUMENTS, OTHER_NAMES)
        if more and any(value is not None for value in more):
            raise TypeError("Data of the edges is given by keyword: layer(x, graph, edge_weight=w).")
        if lowering is not None and not isinstance(lowering, str):
            raise TypeError(f"lowering must be a name, such as 'dense', but it is {shown(lowering)}.")
        carried = not (edge_weight is edge_attr is edge_type is None)
        edges = {"edge_weight": edge_weight, "edge_attr": edge_attr, "edge_type": edge_type} if carried else {}
        if isinstance(x, tuple) or type(domain) is Bipartite:
            if any(isinstance(part, Proxy) for part in (domain, *x)):
                return self._recorded(x, domain, **edges, lowering=lowering)
            (x, domain), edges = read_pair(self.spec, x, domain, **edges), {}
        if not is_plain_eager() or type(x) not in PLAIN:
            return self._traced(x, domain, edges, lowering)
        try:
            if (
                type(domain) is Tensor
                and x.ndim > 1
                and x.is_floating_point()
                and self.spec.structure.domain == "graph"
            ):
                n = x.shape[-2]
                domain, edges = (None if edges else recall(domain, n)) or read_graph(domain, n, **edges), {}
            decided = None if edges else self._images if domain is None else self._decisions_for(domain)
            if decided is None:
                return self._run(x, domain, edges, lowering)
            records = torch.is_grad_enabled()
            layout = x.stride() if x.layout is torch.strided else x.layout
            constant = constant_of(x)
            key = x.shape, x.dtype, x.device, lowering, records, x.requires_grad, layout, constant is None
            S, run = decided.get(key, NOT_DECIDED)
            if run is None or not self._fits(x, records and x.is_cpu):
                return self._run(x, domain, edges, lowering, decided, key)
            call = self._call(x, "eager", constant)
            y = run(self._basis(domain, call, True) if S is None else S, call)
            return self._cast(y) if not y.is_meta and torch.is_autocast_enabled(y.device.type) else y
        except (RuntimeError, TypeError) as error:
            if ran_out_of_memory(error):
                raise self._without_memory(error, x, domain, edges, lowering) from error
            if type(error) in (RuntimeError, TypeError, NotImplementedError):
                self._explain(error, x)
            raise

    def _explain(self, error: Exception, x: Any) -> None:
        """Raises an InputTypeError if torch has no operator for the layout or dtype of x."""
        if not isinstance(x, Tensor):
            return
        said = first_line(error)
        if x.layout is not torch.strided or x.is_nested:
            kind = "nested" if x.is_nested else str(x.layout).removeprefix("torch.").lstrip("_")
            how = "one signal at a time" if x.is_nested else "x.to_dense(), or gconv.constant(x.to_dense())"
            raise InputTypeError(
                f"{self.spec.name} cannot run on a {kind} signal here (torch: {said}); give {how}."
            ) from error
        if isinstance(error, NotImplementedError):
            raise InputTypeError(
                f"{self.spec.name} cannot run on x of {x.dtype} on {x.device} (torch: {said})."
            ) from error

    def _without_memory(
        self, error: Exception, x: Tensor, domain: Any, edges: EdgeData, lowering: str | None
    ) -> Exception:
        """The allocator's error, with the sizes of the layer's arrays and how to use less memory."""
        text = f"{self.spec.name} ran out of memory on {x.device}: x {tuple(x.shape)} has {x.nbytes / 1e6:.4g} MB"
        advice = ["pass fewer signals or smaller images at a time", "use torch.no_grad() if no gradient is needed"]
        if self.spec.structure.domain == "graph":
            advice[0] = "process a part of the graph at a time (graph.sample, gconv.parallel)"
        try:
            carried: dict[str, Any] = {name: value for name, value in edges.items() if value is not None}
            made = self.plan(x, domain, lowering=lowering, **carried)
            peaks = {c.name: c.cost.peak for c in made.candidates if c.cost}
            least = min(peaks, key=lambda name: peaks[name])
            largest = peaks[made.chosen.name]
            text += f", and the lowering {made.chosen.name!r} makes arrays of up to {largest / 1e6:.4g} MB"
            if peaks[least] < largest:
                advice.insert(0, f"use lowering={least!r}, whose arrays have up to {peaks[least] / 1e6:.4g} MB")
        except (RuntimeError, ValueError, TypeError):  # the structure ran out of memory, or planning does
            text += ", not counting what S needs on this domain"
        return type(error)(f"{text}. {first_line(error)}. To use less memory: {'; '.join(advice)}.")

    def _traced(self, x: Any, domain: Any, edges: EdgeData, lowering: str | None) -> Tensor:
        """A call that is not plain eager, or with a tensor subclass: no decision is cached."""
        if not is_jit_tracing():
            learned = self.spec.structure.kind != "fixed"
            if may_interrupt() and (isinstance(domain, Tensor) or (learned and has_open_sizes(domain))):
                # S is then cached, as in eager calls
                return eagerly(GConv.forward, self, x, domain, lowering=lowering, **edges)
            return self._run(x, domain, edges, lowering)
        with tracing():
            return self._run(x, domain, edges, lowering)

    def _recorded(self, x: Any, domain: Any, **options: Any) -> Any:
        """A call under torch.fx.symbolic_trace: one node that calls this layer, as for the layers of torch.nn."""
        parts = (domain, *x) if isinstance(x, tuple) else (x,)
        tracer: Any = next(part.tracer for part in parts if isinstance(part, Proxy))
        path = tracer.path_of_module(self)
        if not path:
            raise TypeError(
                "torch.fx records a GConv as one call, so it traces models that contain one, but not a GConv alone: "
                "use symbolic_trace(torch.nn.Sequential(layer))."
            )
        given = {key: value for key, value in options.items() if value is not None}
        return tracer.create_proxy("call_module", path, (x,) if domain is None else (x, domain), given)

    def _run(
        self,
        x: Tensor,
        domain: Any,
        edges: EdgeData,
        lowering: str | None = None,
        decided: Decisions | None = None,
        key: Hashable = None,
    ) -> Tensor:
        """Check the arguments, plan and run; S and the lowering are cached in `decided` under `key`."""
        self._check_signal(x)
        structure = self.spec.structure
        signal, place = self._enter(x, domain, **edges)
        alone = structure.kind == "adaptive" and not structure.many  # its basis takes one signal
        if x.ndim > 2 and (alone or (structure.many and not x.numel())):
            signals = x.flatten(0, -3)
            some = signals if len(signals) else signals.sum(0, keepdim=True)  # zeros that depend on x, for gradients
            each = torch.stack([self._run(one, place, {}, lowering) for one in some])
            return each[: len(signals)].unflatten(0, x.shape[:-2])
        call = self._call(signal)
        S = self._basis(place, call)
        chosen = plan(S, call, lowering).chosen
        target = output_domain(structure, place)
        images = isinstance(target, Grid)
        call = call.at(x) if images else call
        run = on_images(chosen, S, call, target.shape) if isinstance(target, Grid) else chosen.run
        same = structure.kind == "fixed" and not structure.dropout  # whether S is the same in the next call
        if decided is not None and (place is domain or (images and same)):
            later = chosen.prepare(S, call) if same and not images and chosen.prepare is not None else None
            if len(decided) >= MAX_SHAPES:
                decided.clear()
            decided[key] = S if same else None, later or run
        return self._cast(run(S, call))

    def _call(self, x: Tensor, kind: CallKind | None = None, constant: Constant | None = None) -> Call:
        """The `Call` for a signal."""
        mixing = self.spec.mixing
        weight: Tensor | None
        bias: Tensor | None
        if kind is None:
            kind = call_kind()
            constant = constant_of(x) if kind == "eager" else None
            if kind == "eager" and torch.is_grad_enabled():
                self._keep_accumulators()
            weight, bias = self.weight, self.bias
        else:
            direct = self._parameters  # because torch's __getattr__ is slow
            weight = direct["weight"] if "weight" in direct else self.weight  # noqa: SIM401
            bias = direct["bias"] if "bias" in direct else self.bias  # noqa: SIM401
        if not x.is_cpu and kind == "eager":
            weight, bias = _unshared(weight), _unshared(bias)
        if isinstance(mixing, Parametrised):
            assert weight is not None
            own, W = mixing.plain(weight)
            return Call(x, own, W, spread_bias(mixing, bias), weight, kind, constant)
        return Call(x, mixing, weight, bias, weight, kind, constant)

    def _fits(self, x: Tensor, keep: bool) -> bool:
        """Whether the parameters have their original shapes, and the weight has the dtype and device of x.

        With `keep`, the gradient accumulators of the parameters are kept, see `_keep_accumulators`.
        """
        own, accumulators, new = self._parameters, self._accumulators, False
        for name, shape in self._shapes.items():
            p = own[name] if name in own else getattr(self, name)
            if p is None:
                if name == "weight":
                    return False
                continue
            if p.shape != shape:
                return False
            if name in ("weight", "bias") and (p.dtype != x.dtype or p.device != x.device):
                return False
            if keep and p.requires_grad and p.is_leaf:
                kept = accumulators.get(name)
                new = new or kept is None or kept[0] is not p
        if new:
            self._keep_accumulators()
        return True

    def _keep_accumulators(self) -> None:
        """Keep the gradient accumulators of the parameters alive, which avoids a deadlock in torch 2.13.

        torch creates the accumulator of a leaf while holding a mutex of that leaf, and creating it waits for the GIL.
        An autograd function in Python holds the GIL and waits for the mutex. If two threads share a layer, they can
        therefore block each other, unless the accumulator exists already. The operations here release the GIL before
        they wait for the mutex. Their results are empty, but their autograd nodes refer to the accumulator; a reference
        from Python to the accumulator itself would not do, because torch then waits for the GIL to find it.

        Not for parameters on other devices, because accumulators belong to the stream of their creation.
        """
        for name in self._shapes:
            p = getattr(self, name)
            if p is None or not (p.requires_grad and p.is_leaf and p.is_cpu):
                self._accumulators.pop(name, None)
                continue
            with torch.enable_grad():
                self._accumulators[name] = p, (p.narrow(0, 0, 0) if p.ndim else p).clone()

    def _cast(self, y: Tensor) -> Tensor:
        """y in the dtype that torch's layers return under autocast, for any lowering."""
        kind = y.device.type
        if y.is_meta or not torch.is_autocast_enabled(kind) or self.weight is None or y.dtype != torch.float32:
            return y
        return y.to(torch.get_autocast_dtype(kind))

    def _decisions_for(self, domain: Any) -> Decisions | None:
        """The cached decisions for this domain; None if nothing may be cached."""
        if not isinstance(domain, Edges):
            return None
        version = domain.version
        if None in version:
            return None
        decided = self._graphs.get(domain)
        if decided is None or decided.version != version:
            decided = self._graphs[domain] = _OnGraph()
            decided.version = version
        return decided

    @checked
    def plan(
        self,
        x: Tensor | Pair,
        domain: Any = None,
        *,
        lowering: str | None = None,
        measure: bool | int = False,
        edge_weight: Tensor | None = None,
        edge_attr: Tensor | None = None,
        edge_type: Tensor | None = None,
    ) -> Plan:
        """How `layer(x, domain)` will run. Printed, it lists all candidates with their cost or why they were rejected.

        With gradients enabled the plan is for training: it includes the backward pass for the weight, and for x if x
        requires a gradient. `measure` times every admitted candidate in 5 rounds, or in as many as given, except those
        that are predicted to be much slower than the best.
        """
        edges = {"edge_weight": edge_weight, "edge_attr": edge_attr, "edge_type": edge_type}
        edges = {name: value for name, value in edges.items() if value is not None}
        if isinstance(x, tuple) or type(domain) is Bipartite:
            (x, domain), edges = read_pair(self.spec, x, domain, **edges), {}
        self._check_signal(x)
        signal, place = self._enter(x, domain, **edges)
        if self.spec.structure.kind == "adaptive" and x.ndim > 2 and not self.spec.structure.many:
            signal = signal.new_zeros(signal.shape[-2:]).requires_grad_(x.requires_grad)  # a plan reads no values
        call = self._call(signal)
        S = self._basis(place, call)
        made = replace(plan(S, call, lowering), rows=node_order(S))
        if measure is False or (isinstance(measure, int) and measure == 0):
            return made
        axes = place.ndim if isinstance(place, Grid) and x.ndim == place.ndim + 2 else 0
        rounds = 5 if measure is True else integer(measure, "measure", 1)
        return measured(made, S, call.at(x) if axes else call, rounds, axes)

    @checked
    def at(self, domain: Any, x: Tensor | Pair | None = None) -> LinearMap:
        """The layer on a domain as a `LinearMap`, without its bias.

        Args:
            domain: a Grid, any graph, or a Bipartite. On a Bipartite the map takes the sources' signal, or if the
                operator reads the targets, too, the stacked signal (`Bipartite.stack`).
            x: (*b, n, i); required if the structure is adaptive, which is frozen at this x, then (n, i).

        Raises:
            NotLinear: if a tap reduces with max.
            ValueError: if the structure is adaptive and no x is given.
        """
        structure, mixing = self.spec.structure, self.spec.mixing
        if structure.domain == "grid" and not isinstance(domain, Grid | Edges):
            raise TypeError(
                f"{self.spec.name} works on a grid, such as Grid((32, 32)), but {kind_of(domain)} was given."
            )
        if isinstance(x, tuple) or (type(domain) is Bipartite and x is not None):
            x, domain = read_pair(self.spec, x, domain)
        elif type(domain) is Bipartite:
            domain = view_for(self.spec, domain)
        if x is not None:
            self._check_signal(x)
        ready = isinstance(domain, Grid | Bipartite)
        place = domain if ready else read_graph(domain, x.shape[-2] if x is not None and x.ndim > 1 else -1)
        check_domain(self.spec, place)
        n = place.size if isinstance(place, Grid) else place.sites[1]
        if x is not None:
            if x.ndim < 2 or x.shape[-2] != n or (structure.kind == "adaptive" and x.ndim > 2):
                raise ValueError(
                    f"x must be a signal ({plural(n, 'site')}, channels) on {place!r}, but it has shape "
                    f"{tuple(x.shape)}."
                )
            mixing.channels(x.shape[-1])
        like = next((p for p in self.parameters()), self._like)
        i = x.shape[-1] if x is not None else getattr(mixing, "i", 1)
        if structure.kind == "adaptive" and x is None:
            raise ValueError(
                f"{self.spec.name} adapts its structure to the signal: "
                "give the x to freeze it at, as in layer.at(graph, x=x0)."
            )
        signal = like.new_zeros(n, i) if x is None else x
        S = self._basis(place, self._call(signal))
        if not S.linear:
            raise NotLinear(f"{self.spec} takes a maximum over its window, so it has no matrix, adjoint or spectrum.")
        own, W = plain(mixing, self.weight)
        if isinstance(place, Bipartite) and self.spec.sides is not None and W is not None:
            own, W = _read_sides(S, own.dense(W, i), place, self.spec.sides)
        return LinearMap(S, own, W, i, signal.dtype, signal.device, self.spec.name)

    def _basis(self, domain: Domain, call: Call, checked: bool = False) -> Basis:
        """S for a call. With `checked`, the structure's result was validated in an earlier call."""
        structure = self.spec.structure
        theta: dict[str, Any] = {}
        direct = self._parameters if checked else {}
        for name in self._structure:
            theta[name] = direct[name] if name in direct else getattr(self, name)
        if theta and call.kind == "eager" and not call.x.is_cpu:
            theta = {name: _unshared(p) for name, p in theta.items()}
        S = (structure.basis if checked else partial(bind, structure))(domain, theta, call)
        drop = structure.dropout
        return dropped(S, drop) if drop and self.training else S

    def _enter(self, x: Tensor, domain: Any, **edges: Tensor | None) -> tuple[Tensor, Domain]:
        """x as (*b, n, c) and its domain; on grids a view of x."""
        return read_input(self.spec, x, domain, **edges)

    def _check_signal(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a torch tensor, not {kind_of(x)}.")
        if not (x.dtype.is_floating_point or x.dtype.is_complex):
            raise InputTypeError(f"x must hold floating point numbers, but its dtype is {x.dtype}; x.float() converts.")
        for name, shape in self._shapes.items():
            p = getattr(self, name, None)
            if p is not None and p.shape != shape:
                raise InputError(f"{self.spec.name} has a {name} of shape {tuple(shape)}, not {tuple(p.shape)}.")
        weight, bias = self.weight, self.bias
        if weight is None:
            if "weight" in self._shapes:
                raise InputError(
                    f"{self.spec.name} needs its weight, of shape {tuple(self._shapes['weight'])}, but it was set to "
                    "None."
                )
            return
        exact = x.is_meta or not torch.is_autocast_enabled(x.device.type)
        if x.dtype != weight.dtype and exact:
            raise InputTypeError(f"x is {x.dtype}, but the layer's weights are {weight.dtype}; convert one of them.")
        if bias is not None and bias.dtype != weight.dtype and exact:
            raise InputTypeError(
                f"The layer's bias is {bias.dtype}, but its weights are {weight.dtype}; layer.to(dtype) converts both."
            )
        if x.device != weight.device:
            raise InputError(f"x is on {x.device}, but the layer is on {weight.device}; move one of them.")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GConv:
        """Apply `model.to(memory_format=torch.channels_last)` to the weight: it is then stored as (o, k, i)."""
        super()._apply(fn, recurse)
        self._like = fn(self._like)
        self._images.clear()  # the memory format of the weight affects that of the result
        self._accumulators.clear()  # a new dtype or device makes torch create others
        if isinstance(self.spec.mixing, Dense) and self.spec.structure.domain == "grid" and self.weight is not None:
            first = torch.empty(1, 2, 2, 2, device=self.weight.device)
            formats = [fn(first), fn(first.contiguous(memory_format=torch.channels_last))]
            last = [t.is_contiguous(memory_format=torch.channels_last) for t in formats]
            if last[0] == last[1]:  # fn sets the memory format
                order, back = ((2, 0, 1), (1, 2, 0)) if last[0] else ((2, 1, 0), (2, 1, 0))
                self.weight.data = self.weight.data.permute(order).contiguous().permute(back)
        return self

    def __prepare_scriptable__(self) -> GConv:
        """Called first by torch.jit.script. Raises: TypeError."""
        raise TypeError(NOT_SCRIPTABLE.format("a GConv"))

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        del state["_images"], state["_graphs"], state["_accumulators"]  # caches
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({"_like": torch.empty(0), **state})  # layers pickled by older versions have no _like
        self._images, self._graphs, self._accumulators = Own(), OwnWeak(), Own()
        _LAYERS.add(self)

    def extra_repr(self) -> str:
        return repr(self.spec)

    @classmethod
    def from_torch(cls, layer: nn.Module) -> GConv:
        """A GConv with the operator and a copy of the weights of a layer of torch.nn or PyG, converted or not.

        Equation: the same Y = sum_k S_k X W_k + b; the layer's weight, rearranged, is W (k, i, o).

        Traps: the result is called as a GConv: layers on graphs take (x, graph); nn.Linear, which mixes the last axis,
        becomes `pointwise`, which takes images (b, c, n) or a signal with a graph. Where PyG's convention depends on
        the graph (loops of weight 1 in an improved GCN on a graph without weights), the operator's convention is used.
        `gconv.convert` keeps both the call and the conventions.

        Args:
            layer: it is not changed.

        Raises:
            TypeError: if it is not a module.
            OutsideFamily: if the layer is not of this form, or does more than this equation; the message says what.

        >>> torch_layer = nn.Conv2d(3, 8, 3, padding=1)
        >>> layer, x = GConv.from_torch(torch_layer), torch.rand(1, 3, 6, 6)
        >>> layer.spec, torch.allclose(layer(x), torch_layer(x), atol=1e-6)
        (conv2d(3, 8, 3, padding=1), True)
        """
        from gconv.interop.from_torch import from_torch

        return from_torch(layer)
