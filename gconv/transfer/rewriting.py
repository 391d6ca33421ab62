"""The graph of a network on images, traced by torch.fx, rewritten for sites: each layer on pixels is replaced."""

from __future__ import annotations

import math
import operator as op
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from gconv import operators
from gconv.arguments import plural
from gconv.domains import Grid
from gconv.errors import InputError, first_line
from gconv.interop.layers import Layer, identify
from gconv.interop.peer import base_class
from gconv.module import GConv
from gconv.spec import OperatorSpec, OutsideFamily
from gconv.transfer.layers import FrameOrder, Missing, OnSites, layer_on_sites, spec_on_sites
from gconv.transfer.pixels import Pixels
from gconv.transfer.report import Transferred
from gconv.transfer.surface import Surface
from gconv.transfer.taps import Place, placed


class _Tracer(fx.Tracer):
    """Traces into all modules except layers of the family, also into modules of gconv."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.leaves = {id(m) for m in model.modules() if isinstance(identify(m), Layer)}

    def is_leaf_module(self, m: nn.Module, qualified_name: str) -> bool:
        return id(m) in self.leaves or super().is_leaf_module(m, qualified_name)


SAME = {  # element-wise modules, and modules that act on each site separately
    cls: cls
    for cls in (
        *(nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
        *(nn.Tanh, nn.Sigmoid, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.Softsign, nn.LogSigmoid),
        *(nn.Dropout, nn.GroupNorm, nn.Threshold, nn.Hardshrink, nn.Softshrink, nn.Tanhshrink, nn.AlphaDropout),
    )
} | {
    getattr(nn, f"{kind}{d}d"): getattr(nn, f"{kind}1d")
    for kind in ("BatchNorm", "InstanceNorm", "Dropout")
    for d in (1, 2, 3)
}
ELEMENTWISE: set[Any] = {
    *(op.add, op.iadd, op.sub, op.isub, op.mul, op.imul, op.truediv, op.neg, op.pow),
    *(torch.add, torch.sub, torch.mul, torch.div, torch.relu, torch.sigmoid, torch.tanh, torch.exp, torch.abs),
    *(torch.clamp, torch.square, torch.sqrt, torch.maximum, torch.minimum),
    *(F.relu, F.relu6, F.leaky_relu, F.elu, F.gelu),
    *(F.silu, F.mish, F.hardswish, F.hardsigmoid, F.hardtanh, F.softplus, F.sigmoid, F.tanh, F.dropout),
}
METHODS = {
    *("add", "add_", "sub", "mul", "mul_", "div", "relu", "relu_", "sigmoid", "tanh", "clamp", "abs", "square"),
    *("contiguous", "clone", "detach", "float", "double", "exp", "sqrt", "neg"),
}
CONCATENATES = {torch.cat, torch.concat, torch.concatenate}
POOLS = {
    f"{kind}_pool{d}d": getattr(operators, f"{kind}_pool{d}d")
    for kind in ("max", "avg", "adaptive_avg", "adaptive_max")
    for d in (1, 2, 3)
}


class Rewriting:
    """Rewrites the graph of one network; `entries` reports its layers, and `target` is the domain of its output."""

    def __init__(self, model: nn.Module, domain: Place, coarser: tuple[Pixels, ...], missing: Missing) -> None:
        self.model, self.domain, self.coarser = model, domain, coarser
        self.missing: Missing = missing
        self.where: dict[fx.Node, Place | None] = {}  # the domain of the value of each node of the model
        self.new: dict[fx.Node, fx.Node] = {}
        self.graph = fx.Graph()
        self.modules: dict[str, nn.Module] = {}
        self.layers: dict[Any, GConv] = {}
        self.entries: list[Transferred] = []
        self.target: Place | None = None

    def run(self) -> fx.GraphModule:
        name = type(self.model).__name__
        try:
            if isinstance(identify(self.model), Layer):
                self.model = nn.Sequential(self.model)
            traced = _Tracer(self.model).trace(self.model)
        except (OutsideFamily, InputError):
            raise
        except Exception as error:
            raise OutsideFamily(
                f"{name} cannot be transferred: torch.fx cannot trace its forward ({first_line(error)})."
            ) from None
        inputs = [node for node in traced.nodes if node.op == "placeholder" and not node.args]
        if len(inputs) != 1:
            raise OutsideFamily(f"{name} cannot be transferred: it takes {len(inputs)} inputs instead of one.")
        for node in traced.nodes:
            self._node(node, node is inputs[0])
        made = fx.GraphModule(self.modules | self._attributes(traced), self.graph, name)
        made.train(self.model.training)
        return made

    def _attributes(self, traced: fx.Graph) -> dict[str, Any]:
        names = [str(node.target) for node in traced.nodes if node.op == "get_attr"]
        return {name: op.attrgetter(name)(self.model) for name in names}

    def _lives(self, value: Any) -> Place | None:
        """The domain of an argument; None if it has no site axis. Raises: InputError if there are several domains."""
        found: list[Place] = []
        fx.node.map_arg(value, lambda n: found.append(p) if (p := self.where.get(n)) is not None else None)
        kinds = {id(p): p for p in found if p.size > 1} or {id(p): p for p in found}
        if len(kinds) > 1:
            a, b = list(kinds.values())[:2]
            raise InputError(f"The model combines branches on different sites: {a!r} and {b!r}.")
        return next(iter(kinds.values()), None)

    def _node(self, node: fx.Node, is_input: bool) -> None:
        if node.op == "placeholder":
            self._keep(node, self.domain if is_input else None)
            return
        if node.op == "output":
            self._output(node)
            return
        domain = self._lives((node.args, node.kwargs))
        if node.op == "call_module":
            self._module(node, domain)
        elif domain is None:
            self._keep(node, None)
        else:
            self._function(node, domain)

    def _keep(self, node: fx.Node, domain: Place | None, **changes: Any) -> None:
        """Copy a node unchanged."""
        self.new[node] = made = self.graph.node_copy(node, lambda n: self.new[n])
        for key, value in changes.items():
            setattr(made, key, value)
        self.where[node] = domain

    def _call(self, node: fx.Node, path: str, module: nn.Module, source: fx.Node, target: Place | None) -> None:
        self.modules[path] = module
        self.new[node] = self.graph.call_module(path, (self.new[source],))
        self.where[node] = target

    def _output(self, node: fx.Node) -> None:
        result = node.args[0]
        self.target = self._lives(result)

        def put(n: fx.Node) -> fx.Node:
            new = self.new[n]
            return new if self.where[n] is None else self.graph.call_method("transpose", (new, -1, -2))

        self.graph.output(fx.node.map_arg(result, put))

    # -- modules ---------------------------------------------------------------------------------------------------

    def _path(self, path: str) -> str:
        """A unique name for a layer, numbered if the model calls it several times."""
        taken, k = path, 1
        while taken in self.modules:
            taken, k = f"{path}_{k}", k + 1
        return taken

    def _module(self, node: fx.Node, domain: Place | None) -> None:
        module, path = self.model.get_submodule(str(node.target)), self._path(str(node.target))
        cls, found = base_class(module), identify(module)
        if domain is None:
            self._keep(node, None, target=path)
            self.modules[path] = module
            self.entries.append(Transferred(path, _name(module), None, (0, 0), "exact"))
            return
        source = next(iter(node.all_input_nodes))
        if cls is nn.Flatten:
            flat: Any = module
            self._flatten(node, path, source, domain, flat.start_dim, flat.end_dim)
        elif cls in SAME:
            module.__class__ = SAME[cls]
            self._call(node, path, module, source, domain)
            self._say(path, _name_of(cls), domain)
        elif cls in (nn.Softmax, nn.LogSoftmax, nn.Softmax2d) and getattr(module, "dim", 1) in (1, -3):
            new = nn.LogSoftmax(1) if cls is nn.LogSoftmax else nn.Softmax(1)
            self._call(node, path, new, source, domain)
            self._say(path, _name_of(cls), domain)
        elif isinstance(found, Layer) and cls is not nn.Linear:
            if found.after:
                raise OutsideFamily(f"{path} cannot be transferred: {found.after}.")
            engine, _ = found.settle(Grid((1,) * domain.ndim))
            self._layer(node, path, _name(module), engine, source, domain, key=id(module))
        else:
            why = "it acts on the last axis of images" if cls is nn.Linear else getattr(found, "reason", "")
            raise OutsideFamily(f"{path}, a {_name_of(cls)}, cannot be transferred{f': {why}' if why else ''}.")

    def _layer(
        self, node: fx.Node, path: str, name: str, engine: GConv, source: fx.Node, domain: Place, key: Any
    ) -> None:
        """Replace a layer of the family on images by one on sites."""
        structure = engine.spec.structure
        if structure.domain == "any" and structure.taps == 1 and not hasattr(structure, "reduce"):
            layer = GConv(spec_on_sites(engine.spec, engine.weight, False))
            self._call(node, path, OnSites(layer, None), source, domain)
            self._say(path, name, domain, engine.spec)
            return
        made = placed(structure, domain, self.coarser)
        module = layer_on_sites(engine, made, self.missing, domain.size)
        shared = self.layers.setdefault((key, module.gconv.spec), module.gconv)
        if shared is not module.gconv and module.gconv.weight is not None:  # the same layer is called again
            module.gconv = shared
        self._call(node, path, module, source, made.target)
        notes = []
        if not (domain.exact and made.target.exact):
            how = "on the mesh" if isinstance(domain, Surface) else "between sites and pixels"
            notes.append(f"approximate: interpolated {how}")
        lost = int((made.missing > 1e-12).sum())
        if lost:
            how = "omitted" if made.largest or self.missing == "zero" else "compensated by rescaling"
            notes.append(f"exact except at {lost} of {made.target.size} sites that read holes, which are {how}")
        self.entries.append(
            Transferred(path, name, module.gconv.spec, (domain.size, made.target.size), "; ".join(notes) or "exact")
        )

    def _say(self, path: str, name: str, domain: Place, spec: OperatorSpec | None = None) -> None:
        self.entries.append(Transferred(path, name, spec, (domain.size, domain.size), "exact"))

    def _flatten(self, node: fx.Node, path: str, source: fx.Node, domain: Place, start: int = 1, end: int = -1) -> None:
        if start not in (1, -1 - domain.ndim) or end not in (-1, 1 + domain.ndim):
            raise OutsideFamily(f"{path} cannot be transferred: it does not flatten exactly channels and pixels.")
        if isinstance(domain, Surface):
            raise OutsideFamily(f"{path} cannot be transferred: the vertices of {domain!r} have no pixel order.")
        total = math.prod(domain.shape)
        order = domain.exact and domain.size == total and bool((domain.lift[0] == torch.arange(total)).all())
        if not order:
            inner = f"{path}_order" if path in self.modules else path
            self.modules[inner] = FrameOrder(domain.lift, total)
            made = self.graph.call_module(inner, (self.new[source],))
        else:
            made = self.new[source]
        self.new[node] = self.graph.call_function(torch.flatten, (made, 1))
        self.where[node] = None
        note = "exact" if not domain.holes and domain.exact else f"zeros for the {plural(domain.holes, 'hole')}"
        self.entries.append(Transferred(path, "Flatten", None, (domain.size, 1), note))

    # -- functions and methods -------------------------------------------------------------------------------------

    def _function(self, node: fx.Node, domain: Place) -> None:
        name, args, path = _function_name(node), node.args, self._path(node.name)
        if node.target in (METHODS if node.op == "call_method" else ELEMENTWISE):
            self._elementwise(node, domain)
        elif node.target in CONCATENATES:
            self._concatenate(node, path, domain)
        elif name in ("softmax", "log_softmax") and _axis(node, 1, None) in (1, -1 - domain.ndim):
            self.new[node] = self.graph.call_function(getattr(torch, name), (self.new[args[0]], 1))  # type: ignore[index]
            self.where[node] = domain
        elif name in ("chunk", "split", "getattr", "size", "getitem"):
            self._parts(node, name, domain, path)
        elif name == "flatten":
            axes = _read(node, ("start_dim", "end_dim"), (0, -1))
            self._flatten(node, path, args[0], domain, *axes)  # type: ignore[arg-type]
        elif name in ("view", "reshape") and not node.kwargs:
            self._flatten(node, path, args[0], domain)  # type: ignore[arg-type]
            sizes = fx.node.map_arg(args[1:], lambda n: self.new[n])
            self.new[node] = self.graph.call_method("reshape", (self.new[node], *sizes))
        elif name in ("mean", "amax"):
            self._reduce(node, path, name, domain)
        elif name in POOLS:
            self._pool(node, path, name, _pool_spec(node, name, domain.ndim), domain)
        elif name == "interpolate":
            self._interpolate(node, path, domain)
        else:
            raise OutsideFamily(
                f"{path} cannot be transferred: {name} on pixels is not defined on sites; use a layer instead."
            )

    def _concatenate(self, node: fx.Node, path: str, domain: Place) -> None:
        dim = _axis(node, 1, 0)
        if dim not in (1, -1 - domain.ndim):
            raise OutsideFamily(f"{path} cannot be transferred: it concatenates along axis {dim}, not the channels.")
        parts: Any = node.args[0] if node.args else node.kwargs["tensors"]
        if len({id(self.where[n]) for n in parts}) > 1:
            a, b = (self.where[n] for n in parts[:2])
            raise InputError(f"{path} concatenates signals on different sites: {a!r} and {b!r}.")
        self.new[node] = self.graph.call_function(torch.cat, ([self.new[n] for n in parts], 1))
        self.where[node] = domain

    def _reduce(self, node: fx.Node, path: str, name: str, domain: Place) -> None:
        """The mean or maximum over all pixels."""
        asked, keep = _read(node, ("dim", "keepdim"), (None, False))
        axes = sorted(a % (domain.ndim + 2) for a in ([asked] if isinstance(asked, int) else asked or ()))
        if axes != list(range(2, 2 + domain.ndim)):
            raise OutsideFamily(f"{path} cannot be transferred: {name} over axes {asked}, not over all pixels.")
        self._pool(node, path, name, operators.global_pool("mean" if name == "mean" else "max"), domain)
        if not keep:
            self.new[node] = self.graph.call_method("squeeze", (self.new[node], -1))
            self.where[node] = None

    def _interpolate(self, node: fx.Node, path: str, domain: Place) -> None:
        size, factor, mode, corners = _read(
            node, ("size", "scale_factor", "mode", "align_corners"), (None, None, "nearest", None)
        )
        if any(isinstance(s, fx.Node) for s in (size if isinstance(size, tuple | list) else (size,))):
            raise OutsideFamily(
                f"{path} cannot be transferred: interpolate depends on the size of another image; give numbers."
            )
        self._pool(node, path, "interpolate", operators.upsample(size, factor, mode, corners, ndim=domain.ndim), domain)

    def _elementwise(self, node: fx.Node, domain: Place) -> None:
        """Copy an element-wise function; tensors without a site axis broadcast as they do to images."""

        def argument(n: fx.Node) -> fx.Node:
            if self.where[n] is not None:
                return self.new[n]
            return self.graph.call_function(broadcast_on_sites, (self.new[n], domain.ndim))

        args, kwargs = fx.node.map_arg(node.args, argument), fx.node.map_arg(node.kwargs, argument)
        self.new[node] = self.graph.create_node(node.op, node.target, args, kwargs)
        self.where[node] = domain

    def _pool(self, node: fx.Node, path: str, name: str, spec: OperatorSpec, domain: Place) -> None:
        """Replace a function without weights."""
        like = next(self.model.parameters(), torch.empty(0))
        engine = GConv(spec, dtype=like.dtype, device=like.device)
        self._layer(node, path, name, engine, node.all_input_nodes[0], domain, key=node)

    def _parts(self, node: fx.Node, name: str, domain: Place, path: str) -> None:
        args = node.args
        if name in ("chunk", "split"):
            dim = _axis(node, 2, 0)
            if dim not in (1, -1 - domain.ndim):
                raise OutsideFamily(f"{path} cannot be transferred: {name} along axis {dim}, not along the channels.")
            new = tuple(fx.node.map_arg(args[:2], lambda n: self.new[n]))
            if node.op == "call_method":
                self.new[node] = self.graph.call_method(name, (*new, 1))
            else:
                self.new[node] = self.graph.call_function(getattr(torch, name), (*new, 1))
            self.where[node] = domain
            return
        if name == "size" and len(args) == 2 and args[1] in (0, 1):
            self._keep(node, None)
            return
        source = args[0]
        assert isinstance(source, fx.Node)
        if name == "getitem" and source.op in ("call_function", "call_method") and _function_name(source) in (
            "chunk", "split",
        ):  # fmt: skip
            self._keep(node, domain)
            return
        if name == "getattr" and args[1] == "shape":
            users = [u for u in node.users if not (_function_name(u) == "getitem" and u.args[1] in (0, 1))]
            if not users:
                self._keep(node, None)
                return
        raise OutsideFamily(f"{path} cannot be transferred: {name} reads the size of images or selects pixels.")


def broadcast_on_sites(value: Any, ndim: int) -> Any:
    """A tensor that broadcasts to images (b, c, *grid), as one that broadcasts to signals (b, c, n).

    Raises:
        InputError: if it varies along the grid.
    """
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    grid = value.shape[-ndim:]
    if any(n != 1 for n in grid):
        raise InputError(
            f"A tensor of shape {tuple(value.shape)} that is combined with images varies from pixel to pixel, which is "
            "not defined on sites: its last axes must be 1."
        )
    return value.reshape(*value.shape[:-ndim], 1)


def _pool_spec(node: fx.Node, name: str, ndim: int) -> OperatorSpec:
    """The operator of a pooling function of torch.nn.functional."""
    rest = {key: value for key, value in node.kwargs.items() if key not in ("input", "return_indices")}
    known = [value for value in node.args[1:] if not isinstance(value, fx.Node)]
    if "adaptive" in name and (known + list(rest.values()))[:1] in ([1], [(1,) * ndim], [[1] * ndim]):
        return operators.global_pool("max" if "max" in name else "mean")
    spec: OperatorSpec = POOLS[name](*known, **rest)
    return spec


def _axis(node: fx.Node, position: int, default: int | None) -> Any:
    """The argument `dim` of a call, given by position or name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get("dim", default)


def _read(node: fx.Node, names: tuple[str, ...], defaults: tuple[Any, ...]) -> list[Any]:
    """The arguments of a call after the first, given by position or name. Raises: OutsideFamily."""
    args, kwargs = node.args, node.kwargs
    given = dict(zip(names, args[1:], strict=False))
    if len(args) - 1 > len(names):
        raise OutsideFamily(f"A call with {len(args)} positional arguments cannot be transferred: pass them by name.")
    unknown = [key for key in kwargs if key not in (*names, "input", "recompute_scale_factor", "antialias", "inplace")]
    if unknown or kwargs.get("antialias") or kwargs.get("recompute_scale_factor"):
        raise OutsideFamily(f"A call with {', '.join(kwargs)} cannot be transferred.")
    return [given.get(key, kwargs.get(key, value)) for key, value in zip(names, defaults, strict=True)]


def _function_name(node: fx.Node) -> str:
    if node.op == "call_method":
        return str(node.target)
    target: Callable[..., Any] | str = node.target
    name = getattr(target, "__name__", str(target))
    if name == "fn" or name.startswith("boolean_dispatch"):  # torch's pools, which dispatch on return_indices
        found = [key for key in POOLS if getattr(F, key, None) is target]
        return found[0] if found else name
    return name


def _name(module: nn.Module) -> str:
    return repr(module.spec) if isinstance(module, GConv) else _name_of(base_class(module))


def _name_of(cls: type) -> str:
    return cls.__name__
