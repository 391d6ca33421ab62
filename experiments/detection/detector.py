"""An anchor-free detector: each object is a peak of the heat map of its class, with an offset and a size at the peak.

A convolutional network halves the resolution of the photo four times; two transposed convolutions with skip connections
restore a quarter of the resolution. The head is a 3x3 convolution on the grid, or a graph convolution on the positions
(cells) of the heat map. In contrast to CenterNet, sizes are trained by the overlap of boxes (GIoU) at the cells around
a centre, not by their difference at the centre.

Source: Zhou, Wang and Kraehenbuehl, Objects as Points, 2019; sizes by overlap: Liu et al., TTFNet, AAAI 2020.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gconv import GConv, Graph, OperatorSpec, grid_graph
from gconv.operators import conv2d, conv_transpose2d, gcn, max_pool2d, pointwise, selection

STRIDE = 4  # pixels per cell of the heat map, along each axis
COARSEST = 16  # pixels per cell of the coarsest layer, along each axis
SIZE = 8.0  # in cells: the size of a box whose size channels are 0
HEADS = ("grid", "gcn", "selection")


class Found(NamedTuple):
    """The objects of one photo. Shapes: boxes (k, 4), left, top, right, bottom in pixels; scores and kinds (k,)."""

    boxes: Tensor
    scores: Tensor
    kinds: Tensor


@lru_cache(maxsize=8)
def cells(height: int, width: int, loops: bool) -> Graph:
    """The cells of a heat map as a graph with 8 neighbours, its edges labelled by offset."""
    return grid_graph((height, width), 8, loops=loops)


class OnCells(nn.Module):
    """A graph convolution on the cells. Shapes: (b, i, h, w) -> (b, o, h, w)."""

    def __init__(self, spec: OperatorSpec, loops: bool = False):
        super().__init__()
        self.conv, self.loops = GConv(spec), loops

    def forward(self, x: Tensor) -> Tensor:
        """The convolution on the graph of the cells."""
        graph = cells(*x.shape[-2:], self.loops).to(x.device)
        y: Tensor = self.conv(x.flatten(2).mT, graph)
        return y.mT.unflatten(-1, x.shape[-2:])


def _normed(layer: nn.Module, channels: int) -> list[nn.Module]:
    return [layer, nn.BatchNorm2d(channels), nn.ReLU()]


def _conv(i: int, o: int, stride: int = 1) -> list[nn.Module]:
    return _normed(GConv(conv2d(i, o, 3, stride=stride, padding=1, bias=False)), o)


def _head(kind: str, w: int) -> nn.Module:
    """The layer with a 3x3 neighbourhood."""
    if kind == "grid":
        return GConv(conv2d(w, w, 3, padding=1, bias=False))
    return OnCells(gcn(w, w)) if kind == "gcn" else OnCells(selection(w, w, 9, bias=False), loops=True)


class Detector(nn.Module):
    """The detection network.

    Shapes: x (b, 3, h, w), h and w multiples of 16 -> (heat logits (b, classes, h / 4, w / 4), offset and logarithm of
    the size (b, 4, h / 4, w / 4)).
    """

    def __init__(self, classes: int, width: int = 16, head: str = "grid"):
        super().__init__()
        self.classes, self.width, w = classes, width, width
        self.fine = nn.Sequential(*_conv(3, w, 2), *_conv(w, 2 * w, 2), *_conv(2 * w, 2 * w))
        self.middle = nn.Sequential(*_conv(2 * w, 4 * w, 2), *_conv(4 * w, 4 * w))
        self.coarse = nn.Sequential(*_conv(4 * w, 6 * w, 2), *_conv(6 * w, 6 * w), *_conv(6 * w, 6 * w))
        self.up_middle = GConv(conv_transpose2d(6 * w, 4 * w, 4, stride=2, padding=1))
        self.up_fine = GConv(conv_transpose2d(4 * w, 2 * w, 4, stride=2, padding=1))
        last = GConv(pointwise(2 * w, classes + 4))
        self.head = nn.Sequential(nn.ReLU(), *_normed(_head(head, 2 * w), 2 * w), last)
        self.peak = GConv(max_pool2d(3, stride=1, padding=1))
        with torch.no_grad():  # initial heat of 0.02, since nearly all cells are empty
            assert last.bias is not None and last.weight is not None
            last.bias[:classes] = -4.0
            last.weight.mul_(0.1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The heat logits, and the offset and logarithm of the size."""
        fine = self.fine(x)
        middle = self.middle(fine)
        y = self.head(fine + self.up_fine(F.relu(middle + self.up_middle(self.coarse(middle)))))
        return y[:, : self.classes], y[:, self.classes :]

    @torch.no_grad()
    def find(self, x: Tensor, least: float = 0.01, most: int = 100, overlap: float = 0.6) -> list[Found]:
        """The objects of each photo, in order of decreasing score.

        Args:
            x: (b, 3, h, w).
            least: minimum score of an object.
            most: maximum number of objects per photo.
            overlap: of two boxes of the same class with a larger IoU, only that with the higher score is kept.
        """
        logits, shape = self(x)
        heat = logits.sigmoid()
        heat = torch.where(self.peak(heat) == heat, heat, 0.0)
        boxes = corners(shape) * STRIDE
        found = []
        for scores, box in zip(heat.flatten(1), boxes.flatten(2), strict=True):
            scores, index = scores.topk(min(most, len(scores)))
            index = index[scores >= least]
            kinds, place = index // box.shape[1], index % box.shape[1]
            one = Found(box[:, place].T, scores[: len(index)], kinds)
            keep = apart(one, overlap)
            found.append(Found(one.boxes[keep], one.scores[keep], one.kinds[keep]))
        return found


def corners(shape: Tensor) -> Tensor:
    """Convert offsets and logarithms of sizes (b, 4, h, w) to boxes (b, 4, h, w), in cells.

    >>> corners(torch.zeros(1, 4, 1, 2))[0, :, 0].T.tolist()
    [[-3.5, -3.5, 4.5, 4.5], [-2.5, -3.5, 5.5, 4.5]]
    """
    h, w = shape.shape[-2:]
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    centre = torch.stack([x, y]).to(shape) + 0.5 + shape[:, :2]
    half = SIZE / 2 * shape[:, 2:].clamp(-4, 4).exp()
    return torch.cat([centre - half, centre + half], 1)


def overlaps(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU of boxes, with corner coordinates along the last axis.

    >>> [v.item() for v in overlaps(torch.tensor([0.0, 0, 2, 1]), torch.tensor([1.0, 0, 3, 1]))]
    [0.3333333432674408, 0.3333333432674408]
    """
    inner = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - inner
    iou = inner / union.clamp(min=1e-9)
    return iou, iou - (hull - union) / hull.clamp(min=1e-9)


def apart(found: Found, overlap: float) -> Tensor:
    """Non-maximum suppression: indices of the objects to keep; scores must be in decreasing order."""
    iou, _ = overlaps(found.boxes[:, None], found.boxes[None])
    rival = (iou > overlap) & (found.kinds[:, None] == found.kinds[None])
    keep = torch.ones(len(iou), dtype=torch.bool)
    for i in range(len(iou)):
        if keep[i]:
            keep[i + 1 :] &= ~rival[i, i + 1 :]
    return keep.nonzero()[:, 0]


class Target(NamedTuple):
    """The training targets. Shapes: heat (b, classes, h, w); boxes (b, 4, h, w) in cells; weight (b, h, w)."""

    heat: Tensor
    boxes: Tensor
    weight: Tensor


def target(boxes: Sequence[Tensor], kinds: Sequence[Tensor], classes: int, height: int, width: int) -> Target:
    """Heat is 1 at the centre of an object and decreases like a Gaussian, a tenth of the box wide; for several objects
    the maximum is used. Cells with heat above 0.3 are trained to predict the box of that object.

    Args:
        boxes: for each photo, (k, 4) in pixels.
        kinds: for each photo, (k,).
        classes: number of classes.
        height: of the heat map.
        width: of the heat map.
    """
    heat, shape = torch.zeros(len(boxes), classes, height, width), torch.zeros(len(boxes), 4, height, width)
    weight = torch.zeros(len(boxes), height, width)
    size = torch.tensor([width, height])
    for b, (box, kind) in enumerate(zip(boxes, kinds, strict=True)):
        if not len(box):
            continue
        box = box / STRIDE
        centre = torch.minimum(((box[:, :2] + box[:, 2:]) / 2).floor(), size - 1)
        sigma = ((box[:, 2:] - box[:, :2]) / 10).clamp(min=0.5)
        dx = (torch.arange(width) - centre[:, :1]) / sigma[:, :1]
        dy = (torch.arange(height) - centre[:, 1:]) / sigma[:, 1:]
        bump = torch.exp(-(dx[:, None] ** 2 + dy[:, :, None] ** 2) / 2)
        for c in kind.unique():
            heat[b, c] = bump[kind == c].amax(0)
        best, owner = bump.max(0)
        shape[b], weight[b] = box[owner].permute(2, 0, 1), best * (best > 0.3)
    return Target(heat, shape, weight)


def loss_of(logits: Tensor, shape: Tensor, goal: Target) -> Tensor:
    """Focal loss of the heat map per object, and the weighted mean of 1 - GIoU of the boxes."""
    p, log, log_not = logits.sigmoid(), F.logsigmoid(logits), F.logsigmoid(-logits)
    peak = goal.heat == 1
    focal = torch.where(peak, (1 - p) ** 2 * log, (1 - goal.heat) ** 4 * p**2 * log_not)
    _, giou = overlaps(corners(shape).movedim(1, -1), goal.boxes.movedim(1, -1))
    sizes = ((1 - giou) * goal.weight).sum() / goal.weight.sum().clamp(min=1)
    return -focal.sum() / peak.sum().clamp(min=1) + 2 * sizes
