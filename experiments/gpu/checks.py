"""Compares the device with the CPU in float64: values and gradients of all operators, analysis, converted layers."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from experiments.gpu import kernels
from experiments.gpu.units import Mismatch, Options, Unit
from gconv import GConv, Graph, Grid, analysis, convert, list_operators
from gconv.kernels import cuda
from gconv.operators import cheb, conv2d, gat, max_pool2d
from gconv.operators.shapes import weighted
from gconv.spec import Sample, operator
from gconv.testing import Case

TOL = {torch.float64: 1e-9, torch.float32: 3e-4}  # relative to the largest entry; float32 is also compared with float64


def units(options: Options) -> Iterator[Unit]:
    """All checks: float32's kernels, the first sample of every operator, analysis, converted layers, and then the rest.

    The kernels are compiled again for each dtype and width, which may take a large part of the time; so those of the
    other dtypes, and without split rows, come after what uses them.
    """
    torch.backends.cudnn.allow_tf32 = False
    first, *rest = [(dtype, long) for long in (kernels.SPLIT, cuda.LONG) for dtype in kernels.TOL]
    yield from _triton(options.device, [first])
    names = list_operators()[:: 12 if options.tiny else 1]
    for name in names:
        yield Unit(name, partial(operators, operator(name).samples()[:1], options.device))
    for name, question in QUESTIONS.items():
        yield Unit(f"analysis.{name}", partial(analysed, question, options.device))
    for name in CONVERTED:
        yield Unit(f"converted {name}", partial(converted, name, options.device))
    yield from _triton(options.device, rest)
    for name in () if options.tiny else names:
        if others := operator(name).samples()[1:]:
            yield Unit(f"{name}, other samples", partial(operators, others, options.device))


def _triton(device: torch.device, cases: list[tuple[torch.dtype, int]]) -> Iterator[Unit]:
    """The Triton kernels, by dtype and the number of entries above which rows are split; none where there are none."""
    if device.type == "cuda" and cuda.code() is not None:
        for dtype, long in cases:
            told = f"Triton kernels, {str(dtype)[6:]}, rows split above {long}"
            yield Unit(told, partial(kernels.checked, device, dtype, long))


def gap(what: str, got: Tensor, want: Tensor, tol: float) -> float:
    """The largest difference, relative to the largest number or 1. Raises: Mismatch."""
    wide = torch.complex128 if want.is_complex() else torch.float64
    got, want = got.detach().cpu().to(wide), want.detach().cpu().to(wide)
    if got.shape != want.shape:
        raise Mismatch(f"{what}: shape {tuple(got.shape)}, not {tuple(want.shape)}")
    if not want.numel():
        return 0.0
    found = float((got - want).abs().max()) / max(1.0, float(want.abs().max()))
    if not found <= tol:
        raise Mismatch(f"{what}: off by {found:.2g} of the largest number, allowed is {tol:g}")
    return found


# -- operators -----------------------------------------------------------------------------------------------------


def moved(case: Case, device: torch.device, dtype: torch.dtype) -> Case:
    """Copy layer, domain and signal to a device."""
    domain = case.domain if isinstance(case.domain, Grid) else case.domain.to(device)
    return replace(case, layer=case.layer.to(device, dtype), domain=domain, x=case.x.to(device, dtype))


def operators(samples: list[Sample], device: torch.device) -> dict[str, Any]:
    """Compare values and gradients of samples, in float64 by each lowering and in float32, with the CPU in float64."""
    worst, runs = {"float64": 0.0, "float32": 0.0}, 0
    for sample in samples:
        want = Case.of(sample, torch.float64).gradients(None)
        for dtype, tol in TOL.items():
            case = moved(Case.of(sample, torch.float64), device, dtype)
            for lowering in case.lowerings if dtype == torch.float64 else [None]:
                got = case.gradients(lowering)
                for what, numbers in got.items():
                    if numbers.device.type != device.type:
                        raise Mismatch(f"{sample.name}: {what} is on {numbers.device}")
                    told = f"{sample.name}, {dtype}, {lowering or 'as planned'}: {what}"
                    kind = str(dtype).removeprefix("torch.")
                    worst[kind] = max(worst[kind], gap(told, numbers, want[what], tol))
                runs += 1
    return {**worst, "samples": len(samples), "runs": runs}


# -- analysis ------------------------------------------------------------------------------------------------------

GRID = Grid((6, 6))


def _network(device: torch.device) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [GConv(conv2d(2, 3, 3, padding=1)), nn.ReLU(), GConv(max_pool2d(2)), GConv(conv2d(3, 2, 3, padding=1))]
    return nn.Sequential(*layers).double().to(device)


def _map(kind: str, device: torch.device) -> Any:
    torch.manual_seed(0)
    if kind == "grid":
        return GConv(conv2d(2, 3, 3, padding=1, padding_mode="circular"), dtype=torch.float64).to(device).at(GRID)
    graph = weighted().to(device)
    if kind == "gat":
        x = torch.randn(graph.size, 2, dtype=torch.float64).to(device)
        return GConv(gat(2, 2, heads=2), dtype=torch.float64).to(device).at(graph, x=x)
    return GConv(cheb(2, 3, k=3), dtype=torch.float64).to(device).at(graph)


def _image(device: torch.device) -> Tensor:
    return torch.randn(1, 2, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(device)


def _on_maps(ask: Callable[[Any], Any], kinds: tuple[str, ...] = ("grid", "graph", "gat")) -> Callable[..., list[Any]]:
    return lambda device: [ask(_map(kind, device)) for kind in kinds]


QUESTIONS: dict[str, Callable[[torch.device], Any]] = {
    "matrix": _on_maps(analysis.matrix),
    "norm": _on_maps(analysis.norm),
    "norm_bound": _on_maps(analysis.norm_bound),
    "singular_values": _on_maps(lambda A: analysis.singular_values(A, 5)),
    "receptive_field": _on_maps(analysis.receptive_field),
    "adjoint_gap": _on_maps(analysis.adjoint_gap),
    "frequency_response": _on_maps(lambda A: analysis.frequency_response(A).gain, ("grid", "graph")),
    "lipschitz_bound": lambda device: analysis.lipschitz_bound(_network(device), _image(device)[0]),
    "affine": lambda device: (lambda at: [at.row(0, 1, 2, 0), at.offset])(
        analysis.affine(_network(device), _image(device))
    ),
    "effective_receptive_field": lambda device: analysis.effective_receptive_field(_network(device), _image(device)[0]),
    "dirichlet_energy": lambda device: analysis.dirichlet_energy(
        torch.arange(weighted().size, dtype=torch.float64, device=device).unsqueeze(-1), weighted().to(device)
    ),
}


def _tensors(found: Any) -> Iterator[Tensor]:
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, list | tuple):
        for part in found:
            yield from _tensors(part)
    else:
        yield torch.tensor(float(found))


def analysed(question: Callable[[torch.device], Any], device: torch.device) -> dict[str, Any]:
    """Compare the result of a function on the device with that on the CPU."""
    pairs = zip(_tensors(question(device)), _tensors(question(torch.device("cpu"))), strict=True)
    return {"float64": max(gap("answer", got, want, 1e-6) for got, want in pairs)}


# -- converted layers ------------------------------------------------------------------------------------------------


def _pyg(name: str, *arguments: Any, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import torch_geometric.nn

        made: nn.Module = getattr(torch_geometric.nn, name)(*arguments, **options)
        return made

    return make


CONVERTED: dict[str, Callable[[], nn.Module]] = {
    "CNN": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, groups=4, padding=1),
        nn.ConvTranspose2d(4, 2, 2, stride=2), nn.AvgPool2d(2), nn.Conv2d(2, 3, 2, dilation=2),
    ),
    "GCNConv": _pyg("GCNConv", 4, 3),
    "ChebConv": _pyg("ChebConv", 4, 3, K=3),
    "SAGEConv": _pyg("SAGEConv", 4, 3),
    "GATConv": _pyg("GATConv", 4, 3, heads=2),
    "GATv2Conv": _pyg("GATv2Conv", 4, 3, heads=2),
    "TransformerConv": _pyg("TransformerConv", 4, 3, heads=2),
    "TAGConv": _pyg("TAGConv", 4, 3),
}  # fmt: skip


def converted(name: str, device: torch.device) -> dict[str, Any]:
    """Compare a converted model on the device with the original on the CPU, in value and gradients."""
    torch.manual_seed(0)
    model = CONVERTED[name]().double()
    graph: Graph = weighted()
    inputs = (
        (torch.randn(2, 2, 8, 8).double(),)
        if name == "CNN"
        else (torch.randn(graph.size, 4).double(), graph.edge_index)
    )
    names, want = _outcome(model, inputs)
    made = convert(model).to(device)
    _, got = _outcome(made, tuple(t.to(device) for t in inputs))
    told = ("value", "gradient in x", *(f"gradient in {n}" for n in names))
    return {"float64": max(gap(what, g, w, 1e-9) for what, g, w in zip(told, got, want, strict=True))}


def _outcome(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[list[str], list[Tensor]]:
    x = inputs[0].clone().requires_grad_()
    y = model(x, *inputs[1:])
    parameters = dict(model.named_parameters())
    return list(parameters), [y, *torch.autograd.grad(y.square().sum(), [x, *parameters.values()])]
