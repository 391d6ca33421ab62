"""Conv, ConvTranspose, AveragePool and MaxPool as ONNX writes them, site by site in numpy loops, in one to three axes.

    explicit pads      out = floor((n + before + after - span) / stride) + 1, ceil with ceil_mode, less one where the
                       last window would start behind the grid and the padding before it
    SAME_*             out = ceil(n / stride); what is missing is split, an odd site behind (UPPER) or before (LOWER)
    count_include_pad  given padding counts, what ceil_mode alone adds does not
    ConvTranspose      out = stride (n - 1) + output_padding + span - pads, or pads from output_shape: the total split
                       as in SAME_*, also where it is less than nothing and adds sites

span = dilation (kernel - 1) + 1. ONNX's kernels are (o, i / groups, *kernel), transposed (i, o / groups, *kernel).
"""

import itertools
import math

import numpy as np
import pytest
import torch

from gconv import GConv, operators
from gconv.testing import assert_close

TOL = 1e-10


# -- the formulas --------------------------------------------------------------------------------------------------


def spans(kernel, dilation):
    return [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]


def split(total, auto_pad):
    small = total // 2
    return (small, total - small) if auto_pad == "SAME_UPPER" else (total - small, small)


def resolve(size, kernel, stride, dilation, pads, auto_pad, ceil_mode=False):
    """(pads, out) along each axis."""
    pairs, outs = [], []
    for n, w, s, (before, after) in zip(size, spans(kernel, dilation), stride, pads, strict=True):
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            out = math.ceil(n / s)
            before, after = split(max(0, (out - 1) * s + w - n), auto_pad)
        elif ceil_mode:
            out = math.ceil((n + before + after - w) / s) + 1
            if (out - 1) * s >= n + before:
                out -= 1
        else:
            out = math.floor((n + before + after - w) / s) + 1
        pairs.append((before, after))
        outs.append(out)
    return pairs, outs


def conv(x, W, bias, stride, dilation, groups, pads, auto_pad):
    b, i, *size = x.shape
    o, _, *kernel = W.shape
    pairs, outs = resolve(size, kernel, stride, dilation, pads, auto_pad)
    y = np.zeros((b, o, *outs))
    for to in range(o):
        first = (to // (o // groups)) * (i // groups)
        for m in np.ndindex(*outs):
            y[:, to, *m] += 0 if bias is None else bias[to]
            for k in np.ndindex(*kernel):
                at = [m[a] * stride[a] + k[a] * dilation[a] - pairs[a][0] for a in range(len(size))]
                if all(0 <= p < n for p, n in zip(at, size, strict=True)):
                    for c in range(i // groups):
                        y[:, to, *m] += W[to, c, *k] * x[:, first + c, *at]
    return y


def conv_transpose(x, W, bias, stride, dilation, groups, pads, auto_pad, output_padding, output_shape):
    b, i, *size = x.shape
    _, per, *kernel = W.shape
    if auto_pad in ("SAME_UPPER", "SAME_LOWER") and output_shape is None:
        output_shape = [n * s for n, s in zip(size, stride, strict=True)]
    full = [
        s * (n - 1) + e + w for n, s, e, w in zip(size, stride, output_padding, spans(kernel, dilation), strict=True)
    ]
    if output_shape is not None:
        pads = [split(f - o, auto_pad) for f, o in zip(full, output_shape, strict=True)]
    outs = [f - before - after for f, (before, after) in zip(full, pads, strict=True)]
    y = np.zeros((b, per * groups, *outs))
    for c in range(i):
        first = (c // (i // groups)) * per
        for n in np.ndindex(*size):
            for k in np.ndindex(*kernel):
                at = [n[a] * stride[a] + k[a] * dilation[a] - pads[a][0] for a in range(len(size))]
                if all(0 <= p < m for p, m in zip(at, outs, strict=True)):
                    for to in range(per):
                        y[:, first + to, *at] += W[c, to, *k] * x[:, c, *n]
    return y if bias is None else y + bias.reshape(-1, *[1] * len(size))


def pool(x, kernel, stride, dilation, pads, auto_pad, ceil_mode, kind, count_include_pad=False):
    """The output, and for the gradient which input sites each output reads, with their weights."""
    b, c, *size = x.shape
    pairs, outs = resolve(size, kernel, stride, dilation, pads, auto_pad, ceil_mode)
    y, dy, dx = (
        np.zeros((b, c, *outs)),
        np.cos(np.arange(b * c * math.prod(outs))).reshape(b, c, *outs),
        np.zeros_like(x),
    )
    for m in np.ndindex(*outs):
        read, counted = [], 0
        for k in np.ndindex(*kernel):
            at = [m[a] * stride[a] + k[a] * dilation[a] - pairs[a][0] for a in range(len(size))]
            inside = all(0 <= p < n for p, n in zip(at, size, strict=True))
            padded = all(-q[0] <= p < n + q[1] for p, n, q in zip(at, size, pairs, strict=True))
            counted += padded if count_include_pad else inside
            if inside:
                read.append(at)
        for one in itertools.product(range(b), range(c)):
            values = [x[*one, *at] for at in read]
            if kind == "max":
                y[*one, *m] = max(values)
                dx[*one, *read[int(np.argmax(values))]] += dy[*one, *m]
            else:
                y[*one, *m] = sum(values) / counted
                for at in read:
                    dx[*one, *at] += dy[*one, *m] / counted
    return y, dy, dx


# -- how they are said here ----------------------------------------------------------------------------------------


def padding(pads, auto_pad):
    return {"SAME_UPPER": "same_upper", "SAME_LOWER": "same_lower", "VALID": "valid"}.get(auto_pad, tuple(pads))


def ours(W, groups, transposed):
    """ONNX's kernel as (k, i, o), or (k, g, i / g, o / g)."""
    blocks = torch.as_tensor(W).flatten(2).unflatten(0, (groups, -1))  # (g, a, b, k)
    blocks = blocks.permute(3, 0, 1, 2) if transposed else blocks.permute(3, 0, 2, 1)
    return blocks.squeeze(1) if groups == 1 else blocks


def loaded(spec, W, bias, transposed=False):
    layer = GConv(spec, dtype=torch.float64)
    groups = dict(spec.arguments)["groups"]
    layer.load_state_dict(
        {"weight": ours(W, groups, transposed)} | ({} if bias is None else {"bias": torch.as_tensor(bias)})
    )
    return layer


def held(layer, x, W, bias, reference, transposed=False):
    """Value and all gradients; the reference is linear in x, W and bias apart, so its own values give its gradients."""
    want = reference(x, W, bias)
    leaf = torch.as_tensor(x).requires_grad_()
    got = layer(leaf)
    assert_close("value", got, torch.as_tensor(want), TOL)
    for name in ("dense", "im2col", "native", "sparse"):
        assert_close(name, layer(leaf, lowering=name), torch.as_tensor(want), TOL)
    dy = np.cos(np.arange(want.size)).reshape(want.shape)
    (got * torch.as_tensor(dy)).sum().backward()
    for what, value, grad in (("x", x, leaf.grad), ("weight", W, None), ("bias", bias, None)):
        if value is None:
            continue
        dv = np.sin(1.0 + np.arange(value.size)).reshape(value.shape)  # along one direction
        parts = {"x": x, "weight": W, "bias": bias, what: dv}
        rest = None if what != "bias" and bias is not None else parts["bias"]
        zero = {"x": np.zeros_like(x), "weight": W} if what == "bias" else {"x": parts["x"], "weight": parts["weight"]}
        slope = (dy * reference(zero["x"], zero["weight"], rest)).sum()
        if what == "weight":
            grad, dv = layer.weight.grad, ours(dv, dict(layer.spec.arguments)["groups"], transposed)
        elif what == "bias":
            grad = layer.bias.grad
        assert_close(f"gradient in {what}", (grad * torch.as_tensor(dv)).sum(), torch.tensor(slope), TOL)


def numbers(*shape):
    return np.random.default_rng(math.prod(shape)).standard_normal(shape)


# size, kernel, stride, dilation, pads, auto_pad
GEOMETRIES = [
    ((7,), (3,), (1,), (1,), ((1, 1),), "NOTSET"),
    ((8,), (3,), (2,), (2,), ((3, 0),), "NOTSET"),
    ((5,), (4,), (3,), (1,), ((0, 0),), "SAME_UPPER"),
    ((5,), (4,), (3,), (1,), ((0, 0),), "SAME_LOWER"),
    ((6,), (1,), (3,), (1,), ((0, 0),), "SAME_LOWER"),
    ((9,), (2,), (2,), (3,), ((0, 0),), "VALID"),
    ((5, 6), (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)), "NOTSET"),
    ((5, 4), (3, 2), (2, 1), (1, 2), ((0, 2), (2, 1)), "NOTSET"),
    ((5, 6), (3, 2), (2, 2), (1, 1), ((0, 0), (0, 0)), "SAME_UPPER"),
    ((5, 6), (2, 3), (1, 2), (2, 1), ((0, 0), (0, 0)), "SAME_LOWER"),
    ((7, 5), (3, 3), (2, 2), (1, 1), ((0, 0), (0, 0)), "VALID"),
    ((3, 4, 3), (2, 3, 2), (1, 2, 1), (1, 1, 2), ((1, 0), (2, 1), (0, 1)), "NOTSET"),
    ((3, 4, 5), (2, 2, 3), (2, 1, 2), (1, 1, 1), ((0, 0), (0, 0), (0, 0)), "SAME_LOWER"),
    ((3, 3, 4), (2, 3, 2), (2, 2, 2), (1, 1, 1), ((0, 0), (0, 0), (0, 0)), "SAME_UPPER"),
]  # fmt: skip


@pytest.mark.sampled(2)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_conv(geometry, groups):
    size, kernel, stride, dilation, pads, auto_pad = geometry
    i, o, bias = 2, 4, numbers(4) if groups == 1 else None
    x, W = numbers(1, i, *size), numbers(o, i // groups, *kernel)
    make = getattr(operators, f"conv{len(size)}d")
    spec = make(i, o, kernel, stride, padding(pads, auto_pad), dilation, groups, bias is not None)
    held(loaded(spec, W, bias), x, W, bias, lambda x, W, b: conv(x, W, b, stride, dilation, groups, pads, auto_pad))


# size, kernel, stride, dilation, pads, auto_pad, output_padding, output_shape
TRANSPOSED = [
    ((3,), (3,), (1,), (1,), ((0, 0),), "NOTSET", (0,), None),
    ((3,), (3,), (2,), (2,), ((2, 1),), "NOTSET", (1,), None),
    ((3,), (3,), (2,), (1,), ((0, 0),), "SAME_UPPER", (0,), None),
    ((3,), (4,), (1,), (1,), ((0, 0),), "SAME_LOWER", (0,), None),
    ((3,), (1,), (3,), (1,), ((0, 0),), "SAME_UPPER", (0,), None),
    ((4,), (3,), (1,), (3,), ((1, 1),), "NOTSET", (2,), None),
    ((3, 3), (3, 3), (3, 2), (1, 1), ((0, 0), (0, 0)), "NOTSET", (0, 0), (10, 8)),
    ((3, 3), (3, 3), (3, 2), (1, 1), ((0, 0), (0, 0)), "NOTSET", (1, 1), None),
    ((3, 3), (3, 3), (3, 2), (1, 1), ((1, 1), (2, 2)), "NOTSET", (0, 0), None),
    ((3, 2), (2, 3), (2, 1), (1, 2), ((1, 0), (0, 3)), "NOTSET", (1, 0), None),
    ((3, 3), (3, 2), (2, 2), (1, 2), ((0, 0), (0, 0)), "SAME_LOWER", (0, 0), None),
    ((2, 3), (3, 4), (2, 2), (1, 1), ((0, 0), (0, 0)), "SAME_UPPER", (0, 0), (3, 5)),
    ((2, 3), (3, 4), (2, 2), (1, 1), ((0, 0), (0, 0)), "SAME_LOWER", (0, 0), (4, 7)),
    ((2, 3, 2), (2, 3, 2), (2, 1, 1), (1, 1, 2), ((1, 0), (1, 1), (0, 1)), "NOTSET", (0, 0, 0), None),
    ((2, 2, 3), (3, 2, 3), (2, 2, 1), (1, 1, 1), ((0, 0), (0, 0), (0, 0)), "SAME_UPPER", (0, 0, 0), None),
]  # fmt: skip


@pytest.mark.sampled(2)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("geometry", TRANSPOSED, ids=str)
def test_conv_transpose(geometry, groups):
    size, kernel, stride, dilation, pads, auto_pad, extra, output_shape = geometry
    i, o, bias = 4, 2, numbers(2) if groups == 1 else None
    x, W = numbers(1, i, *size), numbers(i, o // groups, *kernel)
    said = padding(pads, auto_pad)
    if output_shape is not None:  # on a known grid an output shape is a padding
        width = spans(kernel, dilation)
        total = [
            s * (n - 1) + e + w - m for n, s, e, w, m in zip(size, stride, extra, width, output_shape, strict=True)
        ]
        said = tuple(split(t, auto_pad) for t in total)
    make = getattr(operators, f"conv_transpose{len(size)}d")
    spec = make(i, o, kernel, stride, said, extra, groups, bias is not None, dilation)

    def reference(x, W, b):
        return conv_transpose(x, W, b, stride, dilation, groups, pads, auto_pad, extra, output_shape)

    held(loaded(spec, W, bias, True), x, W, bias, reference, True)


WINDOWS = [
    *((*g, False) for g in GEOMETRIES),
    ((5,), (2,), (2,), (1,), ((0, 0),), "NOTSET", True),
    ((6,), (3,), (4,), (1,), ((1, 1),), "NOTSET", True),
    ((2,), (1,), (3,), (1,), ((0, 2),), "NOTSET", True),
    ((7,), (3,), (2,), (2,), ((2, 1),), "NOTSET", True),
    ((4, 4), (3, 3), (2, 2), (1, 1), ((0, 0), (0, 0)), "NOTSET", True),
    ((2, 5), (1, 3), (3, 2), (1, 1), ((0, 2), (2, 0)), "NOTSET", True),
    ((4, 3), (4, 5), (1, 3), (1, 1), ((3, 3), (4, 3)), "NOTSET", False),
    ((8, 9), (5, 5), (3, 3), (2, 2), ((2, 2), (1, 0)), "NOTSET", True),
    ((6, 5, 4), (2, 2, 2), (3, 2, 2), (2, 2, 1), ((0, 1), (1, 0), (1, 1)), "NOTSET", True),
]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kind", ["avg", "avg, padding counts", "max"])
@pytest.mark.parametrize("geometry", WINDOWS, ids=str)
def test_pool(geometry, kind):
    size, kernel, stride, dilation, pads, auto_pad, ceil_mode = geometry
    x, counts = numbers(2, 1, *size), kind == "avg, padding counts"
    want, dy, dx = pool(x, kernel, stride, dilation, pads, auto_pad, ceil_mode, kind[:3], counts)
    rest = {"stride": stride, "padding": padding(pads, auto_pad), "dilation": dilation, "ceil_mode": ceil_mode}
    if kind != "max":
        rest["count_include_pad"] = counts
    layer, leaf = GConv(getattr(operators, f"{kind[:3]}_pool{len(size)}d")(kernel, **rest)), torch.as_tensor(x)
    got = layer(leaf.requires_grad_())
    assert_close("value", got, torch.as_tensor(want), TOL)
    (got * torch.as_tensor(dy)).sum().backward()
    assert_close("gradient", leaf.grad, torch.as_tensor(dx), TOL)
    for name in ("dense", "im2col", "sparse"):
        assert_close(name, layer(leaf, lowering=name), torch.as_tensor(want), TOL)


def test_the_two_sames_differ():
    """The negative control: what UPPER puts behind, LOWER puts before."""
    x, layers = torch.randn(1, 1, 5), [GConv(operators.avg_pool1d(2, 2, p)) for p in ("same_upper", "same_lower")]
    assert not torch.allclose(layers[0](x), layers[1](x))


def test_the_mean_and_maximum_of_an_empty_window():
    largest = GConv(operators.max_pool1d(2, 1, ((2, 0),)))(torch.zeros(1, 1, 4))
    assert largest.flatten().tolist() == [-torch.inf, 0, 0, 0, 0]  # as torch's pools pad
    with pytest.raises(ValueError, match="lies wholly in the padding"):
        GConv(operators.avg_pool1d(2, 1, ((2, 0),), count_include_pad=False))(torch.zeros(1, 1, 4))
    assert GConv(operators.avg_pool1d(2, 1, ((2, 0),)))(torch.ones(1, 1, 4)).flatten().tolist() == [0, 0.5, 1, 1, 1]
