"""Blocks against the same built from torch.nn, with the weights carried over: value and every gradient."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gconv import GConv
from gconv.blocks import Shortcut, inverted_residual, low_rank_conv2d, mobilenet_unit, shufflenet_unit
from gconv.testing import assert_close

TOL = 1e-10


def conv(i, o, kernel, stride=1, padding=0, groups=1, bias=False):
    return nn.Conv2d(i, o, kernel, stride, padding, groups=groups, bias=bias)


def mobilenet(i, o, s):
    return nn.Sequential(
        conv(i, i, 3, s, 1, i), nn.BatchNorm2d(i), nn.ReLU(), conv(i, o, 1), nn.BatchNorm2d(o), nn.ReLU()
    )


class Inverted(nn.Module):
    def __init__(self, i, o, s, t):
        super().__init__()
        w = i * t
        first = [conv(i, w, 1), nn.BatchNorm2d(w), nn.ReLU6()] if t > 1 else []
        rest = [conv(w, w, 3, s, 1, w), nn.BatchNorm2d(w), nn.ReLU6(), conv(w, o, 1), nn.BatchNorm2d(o)]
        self.f, self.add = nn.Sequential(*first, *rest), s == 1 and i == o

    def forward(self, x):
        return x + self.f(x) if self.add else self.f(x)


class Shuffled(nn.Module):
    def __init__(self, i, o, g, s, grouped=True):
        super().__init__()
        m, last = o // 4, o if s == 1 else o - i
        self.a, self.na = conv(i, m, 1, groups=g if grouped else 1), nn.BatchNorm2d(m)
        self.shuffle = nn.ChannelShuffle(g)
        self.b, self.nb = conv(m, m, 3, s, 1, m), nn.BatchNorm2d(m)
        self.c, self.nc, self.s = conv(m, last, 1, groups=g), nn.BatchNorm2d(last), s

    def forward(self, x):
        y = self.nc(self.c(self.nb(self.b(self.shuffle(F.relu(self.na(self.a(x))))))))
        return F.relu(x + y if self.s == 1 else torch.cat([F.avg_pool2d(x, 3, 2, 1), y], 1))


def low_rank(i, o, k, r, s, p):
    return nn.Sequential(conv(i, r, (k, 1), (s, 1), (p, 0)), conv(r, o, (1, k), (1, s), (0, p), bias=True))


def as_torch(W, kernel):
    """(k, i, o) or (k, g, i / g, o / g) as torch's (o, i / g, *kernel)."""
    blocks = W.unsqueeze(1) if W.ndim == 3 else W
    return blocks.permute(1, 3, 2, 0).flatten(0, 1).unflatten(-1, kernel)


def pairs(ours, theirs):
    """What is learned: (name, ours seen as torch's, theirs)."""
    mine = [
        m for m in ours.modules() if isinstance(m, nn.BatchNorm2d) or (isinstance(m, GConv) and m.weight is not None)
    ]
    yours = [m for m in theirs.modules() if isinstance(m, nn.BatchNorm2d | nn.Conv2d)]
    assert len(mine) == len(yours)
    for at, (a, b) in enumerate(zip(mine, yours, strict=True)):
        weight = (lambda w, b=b: as_torch(w, b.kernel_size)) if isinstance(a, GConv) else (lambda w: w)
        yield f"{at}.weight", a.weight, b.weight, weight
        if b.bias is not None:
            yield f"{at}.bias", a.bias, b.bias, lambda w: w


CASES = {
    "mobilenet": (lambda: mobilenet_unit(4, 6), lambda: mobilenet(4, 6, 1), 4),
    "mobilenet, stride 2": (lambda: mobilenet_unit(4, 6, 2), lambda: mobilenet(4, 6, 2), 4),
    "inverted": (lambda: inverted_residual(4, 4, expansion=3), lambda: Inverted(4, 4, 1, 3), 4),
    "inverted, stride 2": (lambda: inverted_residual(3, 5, 2), lambda: Inverted(3, 5, 2, 6), 3),
    "inverted, no expansion": (lambda: inverted_residual(4, 4, expansion=1), lambda: Inverted(4, 4, 1, 1), 4),
    "shuffle": (lambda: shufflenet_unit(24, 24), lambda: Shuffled(24, 24, 3, 1), 24),
    "shuffle, stride 2": (lambda: shufflenet_unit(8, 24, 2, 2), lambda: Shuffled(8, 24, 2, 2), 8),
    "shuffle, first": (lambda: shufflenet_unit(3, 15 + 9, 3, 2, False), lambda: Shuffled(3, 24, 3, 2, False), 3),
    "low rank": (lambda: low_rank_conv2d(3, 4, 5, 2, padding=2), lambda: low_rank(3, 4, 5, 2, 1, 2), 3),
    "low rank, stride 2": (lambda: low_rank_conv2d(3, 4, 3, 2, 2, 1), lambda: low_rank(3, 4, 3, 2, 2, 1), 3),
}


@pytest.mark.parametrize("name", CASES)
def test_block_equals_torch(name):
    make, twin, channels = CASES[name]
    ours, theirs = make().double(), twin().double()
    with torch.no_grad():
        for _, mine, yours, seen in pairs(ours, theirs):
            if mine.ndim == 1:
                mine.uniform_(0.5, 1.5)
            yours.copy_(seen(mine))
    x = torch.randn(3, channels, 7, 6, dtype=torch.float64)
    xs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    for mode in (True, False):  # batch statistics, then the running ones these left
        ys = [block.train(mode)(leaf) for block, leaf in zip((ours, theirs), xs, strict=True)]
        assert_close("value", *ys, TOL)
    for block, leaf in zip((ours, theirs), xs, strict=True):
        (block.train()(leaf) * torch.cos(9 * ys[1].detach())).sum().backward()
    assert_close("gradient in x", xs[0].grad, xs[1].grad, TOL)
    for what, mine, yours, seen in pairs(ours, theirs):
        assert_close(f"gradient in {what}", seen(mine.grad), yours.grad, TOL)


def test_low_rank_is_the_convolution_of_its_product():
    block, x = low_rank_conv2d(3, 4, 3, rank=2, padding=1).double(), torch.randn(1, 3, 6, 5, dtype=torch.float64)
    V, H = block[0].weight, block[1].weight
    W = torch.einsum("air,bro->oiab", V, H)
    assert_close("one kernel", block(x), F.conv2d(x, W, block[1].bias, padding=1), TOL)


def test_without_the_shuffle_the_groups_stay_separate():
    """The negative control: what the first group puts out depends on the last group by the shuffle alone."""
    unit, x = shufflenet_unit(36, 36, 3).eval(), torch.randn(1, 36, 4, 4)
    moved = x.clone()
    moved[:, -12:] += 1
    assert not torch.allclose(unit(x)[:, :12], unit(moved)[:, :12])
    unit[0].body[3] = nn.Identity()
    assert torch.allclose(unit(x)[:, :12], unit(moved)[:, :12])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: mobilenet_unit(4, 4, kernel_size=2), "must be an odd positive integer"),
        (lambda: inverted_residual(4, 4, expansion=0), "expansion must be at least 1"),
        (lambda: shufflenet_unit(12, 24, 3), "as many channels out as in"),
        (lambda: shufflenet_unit(24, 24, 3, 2), "more channels out than in"),
        (lambda: shufflenet_unit(12, 22, 3, 2), "must be a multiple of 4, but it is 22"),
        (lambda: shufflenet_unit(8, 24, 3, 2), "groups must divide the channels"),
        (lambda: shufflenet_unit(12, 12, 3, 3), "stride must be 1 or 2"),
        (lambda: low_rank_conv2d(3, 4, 3, 0), "rank must be at least 1"),
        (lambda: Shortcut(nn.Identity(), join="multiply"), "join must be 'add' or 'cat'"),
    ],
)
def test_what_does_not_fit_is_refused(make, reason):
    with pytest.raises(ValueError, match=reason):
        make()


def test_numbers_of_numpy_are_numbers_and_all_else_is_refused():
    two, three = np.int64(2), torch.tensor(3)
    for unit, i in (
        (mobilenet_unit(two, three, kernel_size=three), 2),
        (inverted_residual(two, two, expansion=two, kernel_size=three), 2),
        (shufflenet_unit(np.int64(12), np.int64(24), three, two), 12),
        (low_rank_conv2d(two, three, three, two), 2),
    ):
        assert unit(torch.zeros(2, i, 6, 6)).ndim == 4
    for make in (
        lambda: mobilenet_unit("a", 2),
        lambda: mobilenet_unit(2, 2, kernel_size=2.5),
        lambda: inverted_residual(2.0, 2),
        lambda: shufflenet_unit(12, 12, groups=None),
        lambda: low_rank_conv2d(2, 2, 3, "x"),
        lambda: Shortcut(3),
        lambda: Shortcut(nn.Identity(), 3),
    ):
        with pytest.raises((TypeError, ValueError), match=r"must be an? "):
            make()
