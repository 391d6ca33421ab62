"""transfer: a trained image network on irregular sites."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx, nn

from gconv.arguments import checked, shown
from gconv.errors import InputError
from gconv.interop.convert import copied
from gconv.interop.layers import Layer, identify
from gconv.transfer.layers import Missing
from gconv.transfer.pixels import Assign, Pixels, read_places
from gconv.transfer.report import TransferReport
from gconv.transfer.rewriting import Rewriting
from gconv.transfer.surface import Surface, link
from gconv.transfer.taps import Place


class OnDomain(nn.Module):
    """A network on sites, returned by `transfer`.

    Args:
        network: the traced network, on signals (b, c, n).
        domain: of the input.
        target: the domain of the output; None if the output has no site axis.
        report: the report, layer by layer.

    Shapes: x (b, n, c) or (n, c) -> (b, m, o) or (m, o) on sites, otherwise the shape that the model returns.

    >>> import torch
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

    >>> import torch, gconv
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
    2: AdaptiveAvgPool2d -> simple(), 9 -> 1 site: exact
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
        return _on_domain(twin, link(domain, coarser), (), missing)
    place = read_places(domain, ndim, assign)
    levels = tuple(read_places(level, ndim, assign) for level in coarser)
    return _on_domain(twin, place, levels, missing)


def _axes_of(model: nn.Module) -> int:
    """The number of axes of the images of a model. Raises: InputError."""
    for module in model.modules():
        found = identify(module)
        if not isinstance(found, Layer):
            continue
        if found.spec.structure.domain == "graph":
            raise InputError(f"transfer takes a network on images, but its layer {found.spec.name} works on graphs.")
        axes = getattr(found.spec.structure, "ndim", None)
        if isinstance(axes, int) and not isinstance(module, nn.Linear):
            return axes
    raise InputError("The model has no layer that reads pixels, so there is nothing to transfer.")


def _on_domain(model: nn.Module, domain: Place, coarser: tuple[Pixels, ...], missing: Missing) -> OnDomain:
    rewriting = Rewriting(model, domain, coarser, missing)
    network = rewriting.run()
    report = TransferReport(tuple(rewriting.entries))
    return OnDomain(network, domain, rewriting.target, report).train(model.training)
