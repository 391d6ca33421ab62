"""What the oracles of the grid operators do not ask: equivariance, adjoints that undo, compiling, refusals."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gconv import GConv, Grid, analysis
from gconv.operators import (
    adaptive_avg_pool2d,
    adaptive_max_pool2d,
    avg_pool2d,
    channel_shuffle,
    conv2d,
    conv_transpose1d,
    conv_transpose2d,
    depthwise,
    fold,
    p4_conv,
    p4_lift,
    pad,
    pixel_shuffle,
    pixel_unshuffle,
    unfold,
    upsample,
)
from gconv.testing import assert_close

ORDER = {"p4": 4, "p4m": 8}
EXACT = 1e-12


def act(x, element):
    """Element 4 m + r on images: mirrored left to right if m, then turned r times."""
    return torch.rot90(x.flip(-1) if element >= 4 else x, element % 4, (-2, -1))


def act_on_poses(y, element, order):
    """(g y)(m, h) = y(g^-1 m, g^-1 h): the images move, and pose h of the result is what pose g^-1 h was."""
    marker = torch.arange(9.0).reshape(3, 3)
    poses = [act(marker, h) for h in range(order)]
    was = [next(j for j in range(order) if torch.equal(act(poses[j], element), poses[h])) for h in range(order)]
    return act(y, element).unflatten(1, (-1, order))[:, :, was].flatten(1, 2)


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
@pytest.mark.parametrize("group", ORDER)
def test_p4_layers_turn_with_the_image(group, mode):
    order = ORDER[group]
    lift = GConv(p4_lift(2, 3, 3, padding=1, padding_mode=mode, group=group), dtype=torch.float64)
    deep = GConv(p4_conv(3, 2, 3, stride=2, padding=1, padding_mode=mode, group=group), dtype=torch.float64)
    for layer in (lift, deep):
        nn.init.uniform_(layer.bias, -1, 1)
    assert lift.bias.shape == (3,) and deep.bias.shape == (2,)
    x = torch.randn(2, 2, 7, 7, dtype=torch.float64)
    hidden, y = lift(x), deep(lift(x).relu())
    for g in range(order):
        assert_close(f"lifted, {g}", lift(act(x, g)), act_on_poses(hidden, g, order), EXACT)
        assert_close(f"two layers, {g}", deep(lift(act(x, g)).relu()), act_on_poses(y, g, order), EXACT)


def test_a_plain_convolution_does_not_turn_with_the_image():
    """The negative control; nor does p4 follow a mirror, nor a p4 layer whose bias is not shared by the poses."""
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    plain = GConv(conv2d(2, 12, 3, padding=1), dtype=torch.float64)
    with pytest.raises(AssertionError):
        assert_close("plain", plain(act(x, 1)), act_on_poses(plain(x), 1, 4), EXACT)
    p4 = GConv(p4_lift(2, 3, 3, padding=1), dtype=torch.float64)
    y = p4(x)
    assert all(not torch.allclose(p4(x.flip(-1)), act(y, g).roll(s, 1)) for g in range(8) for s in range(12))
    apart = torch.arange(12.0, dtype=torch.float64).reshape(-1, 1, 1)
    with pytest.raises(AssertionError):
        assert_close("bias apart", p4(act(x, 1)) + apart, act_on_poses(y + apart, 1, 4), EXACT)


def test_a_stride_that_does_not_divide_breaks_the_symmetry():
    lift, x = GConv(p4_lift(1, 1, 3, stride=2), dtype=torch.float64), torch.randn(1, 1, 6, 6, dtype=torch.float64)
    assert not torch.allclose(lift(act(x, 1)), act_on_poses(lift(x), 1, 4))


def test_shuffles_are_orthogonal_and_undo_each_other():
    x = torch.randn(2, 4, 6, 4)
    assert torch.equal(GConv(pixel_shuffle(2))(GConv(pixel_unshuffle(2))(x)), x)
    for spec in (pixel_unshuffle(2), pixel_shuffle(2), channel_shuffle(4, 2)):
        M = analysis.matrix(GConv(spec).at(Grid((4, 2)), x=torch.zeros(8, 4)))
        assert torch.equal(M @ M.mT, torch.eye(len(M)))


def test_fold_is_the_adjoint_of_unfold():
    A = GConv(unfold((3, 2), padding=1, stride=2)).at(Grid((5, 6)), x=torch.zeros(30, 2))
    B = GConv(fold((5, 6), (3, 2), padding=1, stride=2)).at(Grid((3, 4)), x=torch.zeros(12, 12))
    assert torch.equal(analysis.matrix(A).mT, analysis.matrix(B))


def test_padding_with_a_sum_of_zero_shifts():
    """One site before and one less behind: once taken for no padding at all."""
    layer, x = GConv(conv_transpose1d(1, 1, 3, padding=1, output_padding=2, dilation=3)), torch.randn(1, 1, 6)
    want = F.conv_transpose1d(x, layer.weight.permute(1, 2, 0), layer.bias, 1, 1, 2, 1, 3)
    for name in ("native", "im2col", "dense", "fft"):
        assert_close(name, layer(x, lowering=name), want, 1e-5)
    assert torch.equal(GConv(pad(((1, -1),), ndim=1))(torch.tensor([[[1.0, 2.0]]])), torch.tensor([[[0.0, 1.0]]]))


@pytest.mark.sampled(11)
@pytest.mark.parametrize(
    "spec",
    [
        upsample(scale_factor=2, mode="bilinear"),
        upsample(5),
        adaptive_avg_pool2d(3),
        adaptive_max_pool2d(3),
        unfold(2),
        fold((7, 7), 2),
        pixel_shuffle(2),
        channel_shuffle(4, 2),
        pad(1, "reflect"),
        p4_lift(4, 1, 3),
        p4_conv(1, 1, 3),
    ],
    ids=lambda spec: spec.name,
)
def test_compiled_equals_eager(spec):
    layer, x = GConv(spec), torch.randn(2, 4, 6, 6, requires_grad=True)
    want = layer(x)
    got = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    assert_close("value", got, want, 1e-5)
    for a, b in zip(torch.autograd.grad(got.sum(), x), torch.autograd.grad(want.sum(), x), strict=True):
        assert_close("gradient", a, b, 1e-5)


def test_large_depthwise_kernels_never_unfold():
    layer = GConv(depthwise(64, 31, padding=15))
    for batch, side in ((1, 56), (8, 56), (32, 28), (2, 224)):
        assert layer.plan(torch.zeros(batch, 64, side, side)).chosen.name in ("native", "fft")


IMAGE = torch.zeros(1, 4, 6, 6)


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (lambda: upsample(), "either a size or a scale_factor"),
        (lambda: upsample(2, 2), "either a size or a scale_factor"),
        (lambda: upsample(2, mode="cubic"), "mode must be one of nearest"),
        (lambda: upsample(2, mode="linear", ndim=2), "is for 1 axes, but ndim is 2"),
        (lambda: upsample(2, align_corners=True), "align_corners is for the linear and cubic modes"),
        (lambda: upsample(2, mode="trilinear", antialias=True), "antialias is for 'bilinear' and 'bicubic'"),
        (lambda: upsample(2, recompute_scale_factor=True), "takes a scale_factor, but a size was given"),
        (lambda: upsample(scale_factor=-1), "scale_factor must be a positive number"),
        (lambda: upsample((2, 0)), "size must be an integer >= 1, or 2 of them"),
        (lambda: GConv(upsample(scale_factor=0.1))(IMAGE), "leaves nothing of a grid"),
        (lambda: adaptive_avg_pool2d(0), "output_size must be an integer >= 1 or None"),
        (lambda: unfold(2, padding="same_upper"), "Patches take padding as numbers"),
        (lambda: GConv(fold((4, 4), 2))(IMAGE), r"from a grid \(3, 3\)"),
        (lambda: GConv(fold((7, 7), 3, padding=1))(IMAGE), "multiple of 9 channels, but the signal has 4"),
        (lambda: GConv(pixel_unshuffle(4))(IMAGE), "do not tile a grid"),
        (lambda: pixel_shuffle(0), "upscale_factor must be an integer >= 1"),
        (lambda: channel_shuffle(4, 3), "groups must divide the channels"),
        (lambda: pad(1, "constant"), "mode must be 'zeros'"),
        (lambda: pad("same"), "pad takes numbers or pairs"),
        (lambda: GConv(pad(6, "reflect"))(IMAGE), "reflect padding can reach at most 5 sites"),
        (lambda: p4_lift(1, 1, (3, 3)), "kernel_size must be an integer >= 1"),
        (lambda: p4_lift(1, 1, 3, group="p6"), "group must be 'p4' or 'p4m'"),
        (lambda: GConv(p4_conv(2, 1, 3))(IMAGE), "takes 8 channels in, but the signal has 4"),
        (lambda: avg_pool2d(2, padding="same"), "takes padding='same_upper' or 'same_lower'"),
        (lambda: avg_pool2d(2, padding=2), r"pairs \(before, after\) may"),
        (lambda: conv2d(1, 1, 3, padding=((1, -1), (0, 0))), "padding must be an integer >= 0"),
        (lambda: conv_transpose2d(1, 1, 3, padding=-1), "padding must be an integer >= 0"),
    ],
)
def test_what_does_not_fit_is_refused(run, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        run()
    assert str(caught.value).endswith(".")
