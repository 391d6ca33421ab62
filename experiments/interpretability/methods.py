"""Attributions of a logit to the pixels of a photo, for networks on grids and on pixel graphs, and tests of them.

Every method is a function (model, x, class) -> map (b, h, w). `saliency`, `integrated` and `cam` use captum, on pixels
or on the features of the nodes of a pixel graph; on a graph, `cam` weights the channels of a layer by the mean of the
gradient over the nodes, as Grad-CAM does over the pixels. `exact` is the row of `gconv.analysis.affine` times the
photo; with the offset it sums to the logit. `centre` and `noise` are baselines that do not use the network.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gconv.analysis import affine

Method = Callable[[Any, Tensor, int], Tensor]
PATH_STEPS = 32  # steps of integrated gradients
CHANGES = 16  # steps of deletion and insertion


def saliency(model: Any, x: Tensor, c: int) -> Tensor:
    """Absolute gradient, maximum over the channels. Simonyan, Vedaldi and Zisserman 2014."""
    from captum.attr import Saliency

    found: Tensor = Saliency(model).attribute(x.detach().requires_grad_(), target=c)
    return found.amax(1)


def integrated(model: Any, x: Tensor, c: int) -> Tensor:
    """Integrated gradients from the mean colour (zero). Sundararajan, Taly and Yan 2017."""
    from captum.attr import IntegratedGradients

    found: Tensor = IntegratedGradients(model).attribute(
        x, torch.zeros_like(x), target=c, n_steps=PATH_STEPS, internal_batch_size=64
    )
    return found.sum(1).float()


def cam(model: Any, x: Tensor, c: int) -> Tensor:
    """Grad-CAM at the last layer with spatial axes, resized to the photo. Selvaraju et al. 2017."""
    from captum.attr import LayerAttribution, LayerGradCam

    found: Tensor = LayerGradCam(model, model.last).attribute(x, target=c, relu_attributions=True)
    return LayerAttribution.interpolate(found.detach(), x.shape[-2:], "bilinear")[:, 0]


def exact(model: Any, x: Tensor, c: int) -> Tensor:
    """The exact linear part: the row of the linear map for the logit, times the photo."""
    return torch.cat([(affine(model, one).row(0, c) * one).sum(1) for one in x.split(1)]).detach()


def centre(model: Any, x: Tensor, c: int) -> Tensor:
    """A baseline: largest in the centre."""
    y, x_ = (torch.linspace(-1, 1, n) ** 2 for n in x.shape[-2:])
    return (-(y[:, None] + x_)).expand(len(x), *x.shape[-2:])


def noise(model: Any, x: Tensor, c: int) -> Tensor:
    """A baseline: random numbers."""
    return torch.rand(len(x), *x.shape[-2:], generator=torch.Generator().manual_seed(c))


METHODS: dict[str, Method] = {"saliency": saliency, "integrated": integrated, "cam": cam, "exact": exact}
CONTROLS: dict[str, Method] = {"centre": centre, "noise": noise}


# -- tests ---------------------------------------------------------------------------------------------------------


def alike(a: Tensor, b: Tensor) -> float:
    """Mean rank correlation of the absolute values of maps (b, h, w); 0 for constant maps.

    >>> ramp = torch.arange(4.0).reshape(1, 2, 2)
    >>> round(alike(ramp, ramp**3), 6), round(alike(ramp, 5 - ramp), 6), alike(ramp, torch.ones(1, 2, 2))
    (1.0, -1.0, 0.0)
    """
    pairs = [[ranks(m.abs().flatten()) for m in pair] for pair in zip(a, b, strict=True)]
    return float(np.mean([torch.corrcoef(torch.stack(p))[0, 1].item() if all(r.any() for r in p) else 0.0
                          for p in pairs]))  # fmt: skip


def ranks(values: Tensor) -> Tensor:
    """Centred ranks (n,); equal values have their mean rank.

    >>> ranks(torch.tensor([5.0, 1.0, 5.0, 7.0])).tolist()
    [0.0, -1.5, 0.0, 1.5]
    """
    _, which, counts = values.unique(return_inverse=True, return_counts=True)
    middle = counts.cumsum(0) - (counts + 1) / 2
    return (middle[which] - (len(values) - 1) / 2).double()


def pointed(maps: Tensor, inside: Tensor) -> float:
    """Fraction of maps (b, h, w) whose largest value lies inside the mask (b, h, w).

    >>> pointed(torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]]]), torch.tensor([[[False, True]], [[False, True]]]))
    0.5
    """
    return inside.flatten(1).gather(1, maps.flatten(1).argmax(1, keepdim=True)).float().mean().item()


@torch.no_grad()
def curves(model: nn.Module, x: Tensor, c: int, maps: Tensor) -> tuple[float, float]:
    """Areas under the probability of class c while pixels, in order of decreasing value, are replaced by the mean
    colour (deletion), or inserted into a photo of the mean colour (insertion). Petsiuk, Das and Saenko 2018.
    """
    rank = maps.flatten(1).argsort(1, descending=True).argsort(1).reshape(maps.shape)[:, None]
    total = maps[0].numel()
    areas = []
    for keep_first in (False, True):
        found = []
        for step in range(CHANGES + 1):
            first = rank < total * step // CHANGES
            found.append(model(x * (first if keep_first else ~first))[:, c].sigmoid().mean())
        areas.append(float(np.trapezoid([v.item() for v in found], dx=1 / CHANGES)))
    return areas[0], areas[1]


@torch.no_grad()
def completeness(model: Any, x: Tensor, c: int, maps: Tensor, method: str) -> float:
    """Largest difference between the sum of a map and its expected value, relative to the largest logit.

    The expected value is the logit minus that of the mean colour (integrated gradients) or minus the offset (exact).
    """
    logit = model(x)[:, c]
    if method == "integrated":
        missing = model(torch.zeros_like(x[:1]))[:, c].expand(len(x))
    else:
        missing = torch.stack([affine(model, one).offset[0, c] for one in x.split(1)])
    return ((maps.flatten(1).sum(1) + missing - logit).abs().max() / logit.abs().max().clamp(min=1e-9)).item()


def scrambled(model: nn.Module, seed: int) -> nn.Module:
    """The network with new random weights; scales and running means of batch norms are kept."""
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        if p.ndim > 1:
            p.data = torch.randn(p.shape, generator=generator) * p.std()
    return model.eval()


def resized(maps: Tensor, side: int) -> Tensor:
    """Maps (b, h, w) as (b, side, side), scaled to [0, 1] by their largest value; negative values are 0."""
    small = F.adaptive_avg_pool2d(maps[:, None].clamp(min=0), side)[:, 0]
    return small / small.flatten(1).amax(1).clamp(min=1e-9)[:, None, None]
