"""Transfer of whole networks: torch.fx traces a model, and each layer on pixels is replaced by one on sites."""

from __future__ import annotations

import math
import operator as op
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from gconv import operators
from gconv.arguments import checked, shown
from gconv.domains import Grid
from gconv.errors import InputError
from gconv.interop.convert import copied
from gconv.interop.layers import Layer, identify
from gconv.interop.peer import base_class
from gconv.module import GConv
from gconv.spec import OperatorSpec, OutsideFamily
from gconv.transfer.layers import FrameOrder, Missing, OnSites, layer_on_sites, spec_on_sites
from gconv.transfer.pixels import Assign, Pixels, read_places
from gconv.transfer.surface import Surface, link
from gconv.transfer.taps import Place, placed


@dataclass(frozen=True)
class Transferred:
    """The report of one transferred layer.

    Args:
        path: its qualified name in the model, or the function that the model calls.
        layer: the layer on images.
        spec: the operator on sites; None if it acts on each site separately, or after the site axis is gone.
        sites: the numbers of input and output sites.
        note: "exact", or what is approximated or missing.

    >>> print(Transferred("0", "ReLU", None, (16, 16), "exact"))
    0: ReLU: exact
    """

    path: str
    layer: str
    spec: OperatorSpec | None
    sites: tuple[int, int]
    note: str

    def __str__(self) -> str:
        became = f" -> {self.spec!r}, {self.sites[0]} -> {self.sites[1]} sites" if self.spec is not None else ""
        return f"{self.path}: {self.layer}{became}: {self.note}"


@dataclass(frozen=True)
class TransferReport:
    """The layers of a transferred network, in order of execution; calling a report returns it.

    >>> found = transfer(nn.Sequential(nn.ReLU(), nn.Conv2d(1, 2, 3, padding=1)), torch.ones(4, 4, dtype=torch.bool))
    >>> isinstance(found.report, TransferReport), [entry.note for entry in found.report]
    (True, ['exact', 'exact'])
    """

    entries: tuple[Transferred, ...]

    def __call__(self) -> TransferReport:
        return self

    def __iter__(self) -> Iterator[Transferred]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __str__(self) -> str:
        exact = sum(entry.note == "exact" for entry in self)
        return "\n".join([f"{exact} of {len(self)} layers are exact.", *map(str, self)])


class OnDomain(nn.Module):
    """A network on sites, returned by `transfer`.

    Args:
        network: the traced network, on signals (b, c, n).
        domain: of the input.
        target: the domain of the output; None if the output has no site axis.
        report: the report, layer by layer.

    Shapes: x (b, n, c) or (n, c) -> (b, m, o) or (m, o) on sites, otherwise the shape that the model returns.

    >>> found = transfer(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1)), torch.ones(4, 4, dtype=torch.bool))
    >>> isinstance(found, OnDomain), found(torch.rand(1, 16, 1)).shape
    (True, torch.Size([1, 16, 2]))
    """

    def __init__(self, network: fx.GraphModule, domain: Place, target: Place | None, report: TransferReport) -> None:
        super().__init__()
        self.network, self.domain, self.target, self.report = network, domain, target, report

    def forward(self, x: Tensor) -> Any:
        if not isinstance(x, Tensor) or x.ndim not in (2, 3) or x.shape[-2] != self.domain.size:
            what = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else shown(x)
            raise InputError(
                f"x must have shape (b, {self.domain.size}, channels) on {self.domain!r}, but it is {what}."
            )
        y = self.network(x.mT if x.ndim == 3 else x.mT.unsqueeze(0))
        return y if x.ndim == 3 or not isinstance(y, Tensor) else y.squeeze(0)


@checked
def transfer(
    model: nn.Module,
    domain: Any,
    *,
    coarser: Sequence[Any] = (),
    assign: Assign = "bilinear",
    missing: Missing = "zero",
) -> OnDomain:
    """A copy of a trained image network that runs on irregular sites: a masked image, a panorama, superpixels, a mesh.

    Equation: each layer Y = sum_k S_k X W_k + b keeps its W_k and b; its S_k, shifts on a grid of pixels, become
    G S_k R between the sites, where R maps sites to pixels and G pixels to sites (see `Pixels`).

    Meaning: if the sites are pixels, in any order, the result equals that of the original network: the taps are edges
    labelled by their offset. Strides and pools map to a coarser set of sites, transposed convolutions and upsampling
    back to the finer one, so that branches can be combined. Along a periodic axis (a panorama) zero padding becomes
    circular. `.report` lists for each layer whether it is exact; `.domain` and `.target` are the domains of input and
    output, whose `gather(images)` and `scatter(signal)` convert between images and signals.

    Border and holes: positions outside the frame are read according to the padding mode of the layer. Pixels of the
    frame without a site are holes: sums omit them (missing="zero") or are rescaled to the weight of all taps
    (missing="renormalise", as in partial convolutions); maxima omit them.

    Traps: the model must be traceable by torch.fx. Batch and group norms compute statistics over the sites. An image
    that is flattened before a linear layer has zeros in its holes.

    Args:
        model: a network of torch.nn layers, converted or not, or of gconv's grid operators. It is not changed.
        domain: `gconv.Pixels`, a Grid, a boolean mask of the frame, a Graph with pos in pixels, or a `gconv.Surface`.
        coarser: domains of coarser levels, used instead of derived ones if their frame matches. For a Surface, one pair
            (surface, parent) per level, with parent (n,) the coarser vertex of each vertex.
        assign: the interpolation for a Graph's positions between pixels: "bilinear" or "nearest".
        missing: "zero" or "renormalise".

    Shapes: x (b, n, c) -> (b, m, o) if the output is defined on sites, otherwise the output of the model (logits).

    Raises:
        TypeError: if model is not a module, or domain has no positions.
        InputError: if the domain is empty or does not match, or the geometry of a layer is not defined on it.
        OutsideFamily: if the model contains an operation on pixels that is not defined on sites; the message names it.

    >>> import gconv
    >>> cnn = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> order = torch.randperm(6 * 5)                                     # pixels in any order
    >>> pos = torch.stack(torch.unravel_index(order, (6, 5)), 1)
    >>> net = gconv.transfer(cnn, gconv.Pixels.from_pos(pos))
    >>> image = torch.rand(1, 3, 6, 5)
    >>> torch.allclose(net(net.domain.gather(image)), cnn(image), atol=1e-6)
    True
    >>> print(net.report)
    4 of 4 layers are exact.
    0: Conv2d -> selection(3, 8, taps=9), 30 -> 9 sites: exact
    1: ReLU: exact
    2: AdaptiveAvgPool2d -> simple(), 9 -> 1 sites: exact
    3: Flatten: exact

    Hart, Whitney and Morse, SelectionConv: Convolutional Neural Networks for Non-rectilinear Image Data, ECCV 2022;
    Liu et al., Image Inpainting for Irregular Holes Using Partial Convolutions, ECCV 2018 (renormalise).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"transfer takes a torch module, but {shown(model)} was given.")
    if missing not in ("zero", "renormalise"):
        raise InputError(f"missing must be 'zero' or 'renormalise', but it is {shown(missing)}.")
    twin = copied(model)
    ndim = _axes_of(twin)
    if isinstance(domain, Surface):
        if ndim != 2:
            raise InputError(f"The model works on {ndim}-D images, but a Surface has two axes.")
        return _Transfer(twin, link(domain, coarser), (), missing).run()
    place = read_places(domain, ndim, assign)
    levels = tuple(read_places(level, ndim, assign) for level in coarser)
    return _Transfer(twin, place, levels, missing).run()


def _axes_of(model: nn.Module) -> int:
    """The number of axes of the images of a model. Raises: InputError."""
    for module in model.modules():
        found = identify(module)
        axes = getattr(found.spec.structure, "ndim", None) if isinstance(found, Layer) else None
        if isinstance(axes, int) and not isinstance(module, nn.Linear):
            return axes
    raise InputError("The model has no layer that reads pixels, so there is nothing to transfer.")


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
    *(
        torch.clamp,
        torch.square,
        torch.sqrt,
        torch.maximum,
        torch.minimum,
        F.relu,
        F.relu6,
        F.leaky_relu,
        F.elu,
        F.gelu,
    ),
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


class _Transfer:
    """Rewrites the graph of one network."""

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

    def run(self) -> OnDomain:
        name = type(self.model).__name__
        try:
            if isinstance(identify(self.model), Layer):
                self.model = nn.Sequential(self.model)
            traced = _Tracer(self.model).trace(self.model)
        except (OutsideFamily, InputError):
            raise
        except Exception as error:
            why = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise OutsideFamily(f"{name} cannot be transferred: torch.fx cannot trace its forward ({why}).") from None
        inputs = [node for node in traced.nodes if node.op == "placeholder" and not node.args]
        if len(inputs) != 1:
            raise OutsideFamily(f"{name} cannot be transferred: it takes {len(inputs)} inputs instead of one.")
        for node in traced.nodes:
            self._node(node, node is inputs[0])
        made = fx.GraphModule(self.modules | self._attributes(traced), self.graph, name)
        made.train(self.model.training)
        return OnDomain(made, self.domain, self.target, TransferReport(tuple(self.entries))).train(self.model.training)

    def _attributes(self, traced: fx.Graph) -> dict[str, Any]:
        found = {}
        for node in traced.nodes:
            if node.op == "get_attr":
                value: Any = self.model
                for part in str(node.target).split("."):
                    value = getattr(value, part)
                found[str(node.target)] = value
        return found

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
        note = "exact" if not domain.holes and domain.exact else f"zeros for the {domain.holes} holes"
        self.entries.append(Transferred(path, "Flatten", None, (domain.size, 1), note))

    # -- functions and methods -------------------------------------------------------------------------------------

    def _function(self, node: fx.Node, domain: Place) -> None:
        target, name, args, kwargs = node.target, _function_name(node), node.args, dict(node.kwargs)
        d, path = domain.ndim, self._path(node.name)
        method = node.op == "call_method"
        dims = tuple(range(2, 2 + d))
        if (not method and target in ELEMENTWISE) or (method and name in METHODS):
            self._elementwise(node, domain)
        elif target in CONCATENATES:
            dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
            if dim not in (1, -1 - d):
                raise OutsideFamily(
                    f"{path} cannot be transferred: it concatenates along axis {dim}, not the channels."
                )
            parts: Any = args[0] if args else kwargs["tensors"]
            if len({id(self.where[n]) for n in parts}) > 1:
                a, b = (self.where[n] for n in parts[:2])
                raise InputError(f"{path} concatenates signals on different sites: {a!r} and {b!r}.")
            self.new[node] = self.graph.call_function(torch.cat, ([self.new[n] for n in parts], 1))
            self.where[node] = domain
        elif name in ("softmax", "log_softmax") and (args[1:2] or (kwargs.get("dim"),))[0] in (1, -1 - d):
            self.new[node] = self.graph.call_function(getattr(torch, name), (self.new[args[0]], 1))  # type: ignore[index]
            self.where[node] = domain
        elif name in ("chunk", "split", "getattr", "size", "getitem"):
            self._parts(node, name, domain, path)
        elif name == "flatten":
            self._flatten(node, path, args[0], domain, *_read(args, kwargs, ("start_dim", "end_dim"), (0, -1)))  # type: ignore[arg-type]
        elif name in ("view", "reshape") and not kwargs:
            self._flatten(node, path, args[0], domain)  # type: ignore[arg-type]
            sizes = fx.node.map_arg(args[1:], lambda n: self.new[n])
            self.new[node] = self.graph.call_method("reshape", (self.new[node], *sizes))
        elif name in ("mean", "amax"):
            asked, keep = _read(args, kwargs, ("dim", "keepdim"), (None, False))
            axes = tuple(sorted(a % (d + 2) for a in ([asked] if isinstance(asked, int) else asked or ())))
            if axes != dims:
                raise OutsideFamily(f"{path} cannot be transferred: {name} over axes {asked}, not over all pixels.")
            self._pool(node, path, name, operators.global_pool("mean" if name == "mean" else "max"), domain)
            if not keep:
                self.new[node] = self.graph.call_method("squeeze", (self.new[node], -1))
                self.where[node] = None
        elif name in POOLS:
            rest = {key: value for key, value in kwargs.items() if key not in ("input", "return_indices")}
            known = [value for value in args[1:] if not isinstance(value, fx.Node)]
            if "adaptive" in name and (known + list(rest.values()))[:1] in ([1], [(1,) * d], [[1] * d]):
                spec = operators.global_pool("max" if "max" in name else "mean")
            else:
                spec = POOLS[name](*known, **rest)
            self._pool(node, path, name, spec, domain)
        elif name == "interpolate":
            size, factor, mode, corners = _read(
                args, kwargs, ("size", "scale_factor", "mode", "align_corners"), (None, None, "nearest", None)
            )
            if isinstance(size, fx.Node) or (
                isinstance(size, tuple | list) and any(isinstance(s, fx.Node) for s in size)
            ):
                raise OutsideFamily(
                    f"{path} cannot be transferred: interpolate depends on the size of another image; give numbers."
                )
            self._pool(node, path, name, operators.upsample(size, factor, mode, corners, ndim=d), domain)
        else:
            raise OutsideFamily(
                f"{path} cannot be transferred: {name} on pixels is not defined on sites; use a layer instead."
            )

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
        args, kwargs, d = node.args, dict(node.kwargs), domain.ndim
        if name in ("chunk", "split"):
            dim = args[2] if len(args) > 2 else kwargs.get("dim", 0)
            if dim not in (1, -1 - d):
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


def _read(args: Any, kwargs: dict[str, Any], names: tuple[str, ...], defaults: tuple[Any, ...]) -> list[Any]:
    """The arguments of a function after the first, given by position or name. Raises: OutsideFamily."""
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
