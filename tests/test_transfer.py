"""Networks of images on sites: exact on shuffled pixels and rings; masks, superpixels, bad input."""

import copy

import pytest
import torch
import torch.nn.functional as F
from test_converted_networks import VGG, LeNet, resnet
from torch import nn

import gconv
from gconv import GConv, Graph, Grid, InputError, OutsideFamily, Pixels, convert, transfer
from gconv.blocks import inverted_residual, shufflenet_unit
from gconv.operators import conv2d, gcn, separable

F64 = torch.float64


def randomised(model):
    """In eval mode, with batch norms that do something."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return model.double().eval()


class UNet(nn.Module):
    """Three levels: transposed convolutions and upsampling, two skips, one pool for all levels."""

    def __init__(self, mode="zeros"):
        super().__init__()
        twice = lambda i, o: nn.Sequential(  # noqa: E731
            nn.Conv2d(i, o, 3, padding=1, bias=False, padding_mode=mode), nn.BatchNorm2d(o), nn.ReLU(inplace=True),
            nn.Conv2d(o, o, 3, padding=1, padding_mode=mode), nn.LeakyReLU(0.1),
        )  # fmt: skip
        self.one, self.two, self.three = twice(1, 4), twice(4, 6), twice(6, 8)
        self.pool, self.up = nn.MaxPool2d(2), nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.back, self.last = twice(12, 6), nn.Conv2d(10, 3, 1)

    def forward(self, x):
        a = self.one(x)
        b = self.two(self.pool(a))
        c = self.back(torch.cat([b, self.up(self.three(self.pool(b)))], dim=1))
        return self.last(torch.cat([a, F.interpolate(c, scale_factor=2, mode="nearest")], 1))


def mobilenet():
    stem = nn.Conv2d(1, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.Hardswish()
    units = inverted_residual(6, 6, expansion=2), inverted_residual(6, 8, stride=2, expansion=2), Excited(8)
    return nn.Sequential(*stem, *units, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(8, 4))


class Excited(nn.Module):
    """Squeeze and excitation: one number a channel, from all pixels."""

    def __init__(self, c):
        super().__init__()
        self.squeeze, self.fc1, self.fc2 = nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, 2, 1), nn.Conv2d(2, c, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(self.squeeze(x)))))


def many_layers():
    return nn.Sequential(
        nn.Conv2d(1, 4, (3, 2), padding=(2, 1), dilation=(2, 1)),
        nn.ZeroPad2d((1, 0, 0, 2)),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", groups=2),
        nn.AvgPool2d(3, 2, 1, ceil_mode=True),
        GConv(separable(4, 6, 3, padding=1)),
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
        nn.GroupNorm(2, 6),
        nn.AvgPool2d(2, count_include_pad=False),
        nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1, groups=2),
        nn.AdaptiveMaxPool2d((4, 3)),
        nn.AdaptiveAvgPool2d((3, 2)),
        nn.Softmax(1),
    )


class Functions(nn.Module):
    """Pools and shapes as functions."""

    def __init__(self):
        super().__init__()
        self.conv, self.full = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        a, b = x.chunk(2, dim=1)
        x = F.avg_pool2d(torch.cat((a * b, a + b), -3), kernel_size=2)
        x = x + x.mean((2, 3), keepdim=True)
        return self.full(F.adaptive_avg_pool2d(x, 1).view(x.size(0), -1)) + x.mean([-1, -2])[:, :3]


NETWORKS = {
    "resnet": resnet,
    "mobilenet": mobilenet,
    "unet": UNet,
    "shufflenet": lambda: nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), shufflenet_unit(12, 24, 3, 2)),
    "vgg": VGG,
    "lenet": LeNet,
    "many layers": many_layers,
    "functions": Functions,
    "converted": lambda: convert(resnet()),
    "adapted": lambda: gconv.adapt(nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 8, 3, groups=2)), 1),
}


def shuffled(*shape):
    place = torch.cartesian_prod(*(torch.arange(s) for s in shape)).reshape(-1, len(shape))
    return place[torch.randperm(len(place), generator=torch.Generator().manual_seed(1))]


def close(got, want, tol=1e-10):
    torch.testing.assert_close(got, want, rtol=tol, atol=tol)


def run(net, images):
    """The network on images, and where its output has sites, as images again."""
    y = net(net.domain.gather(images))
    return y if net.target is None else net.target.scatter(y)


@pytest.mark.parametrize("size", [(8, 8), pytest.param((16, 12), marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_shuffled_grid_gives_the_same(name, size):
    size = (16, 16) if name == "lenet" else size  # which its linear layer is made for
    model, x = randomised(NETWORKS[name]()), torch.randn(2, 1, *size, dtype=F64)
    net = transfer(model, Pixels.from_pos(shuffled(*size)))
    close(run(net, x), model(x))
    assert all(entry.note.startswith("exact") for entry in net.report)
    if name == "resnet":
        again = transfer(
            model, Graph(torch.empty(2, 0, dtype=torch.int64), len(shuffled(*size)), pos=shuffled(*size) + 0.25)
        )
        close(run(again, x), model(x))


@pytest.mark.parametrize("size", [(7, 9), (5, 10)])
@pytest.mark.parametrize("name", ["resnet", "mobilenet", "shufflenet"])
def test_odd_sizes(name, size):
    model, x = randomised(NETWORKS[name]()), torch.randn(1, 1, *size, dtype=F64)
    close(run(transfer(model, Grid(size)), x), model(x))


def test_one_and_three_axes():
    for d, make in ((1, nn.Conv1d), (3, nn.Conv3d)):
        model = nn.Sequential(make(1, 3, 3, stride=2, padding=1), nn.ReLU(), make(3, 2, 3)).double()
        x = torch.randn(2, 1, *(9,) * d, dtype=F64)
        close(run(transfer(model, Pixels.from_pos(shuffled(*(9,) * d))), x), model(x))


def test_gradients_and_training():
    model, x = randomised(resnet()), torch.randn(3, 1, 8, 8, dtype=F64)
    net = transfer(model, Pixels.from_pos(shuffled(8, 8)))
    model.train(), net.train()
    model(x).square().sum().backward()
    run(net, x).square().sum().backward()
    ours = sorted(p.grad.square().sum().item() for p in net.parameters())
    theirs = sorted(p.grad.square().sum().item() for p in model.parameters())
    close(torch.tensor(ours), torch.tensor(theirs), 1e-8)


# -- rings ---------------------------------------------------------------------------------------------------------


def with_circular_width(model):
    """The model with zero padding along the height and circular padding along the width."""

    class Ring(nn.Module):
        def __init__(self, conv):
            super().__init__()
            self.conv, (self.h, self.w) = conv, conv.padding
            conv.padding = (0, 0)

        def forward(self, x):
            return self.conv(F.pad(F.pad(x, (self.w, self.w, 0, 0), mode="circular"), (0, 0, self.h, self.h)))

    for name, child in model.named_children():
        if isinstance(child, nn.Conv2d):
            setattr(model, name, Ring(child))
        else:
            with_circular_width(child)
    return model


class Panorama(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 5, padding=2, groups=2),
            nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.AvgPool2d(2), nn.Conv2d(6, 4, 1),
            nn.ConvTranspose2d(4, 4, 2, stride=2), nn.Conv2d(4, 2, 3, padding=1),
        )  # fmt: skip


def test_a_cylinder_has_circular_padding():
    model, x = randomised(Panorama()), torch.randn(2, 1, 8, 16, dtype=F64)
    ring = Pixels.from_pos(shuffled(8, 16), periodic=(False, True))
    y = run(transfer(model, ring), x)
    close(y, with_circular_width(copy.deepcopy(model))(x))
    close(run(transfer(model, ring), x.roll(4, -1)), y.roll(2, -1))  # a turn turns the result
    assert not torch.allclose(y, run(transfer(model, Grid((8, 16))), x))  # negative control


@pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose2d(1, 2, 3, stride=2, padding=1, output_padding=1),
        nn.ConvTranspose2d(1, 2, 4, stride=2, padding=1),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(1, 2, 3, padding="same", dilation=3),
        nn.AvgPool2d(3, 1, 1),
    ],
    ids=repr,
)
def test_layers_turn_on_a_torus(layer):
    """A turn of the input turns the result, and far from the border nothing is new."""
    layer, x = layer.double(), torch.randn(1, 1, 12, 16, dtype=F64)
    net, y = transfer(layer, Pixels.from_mask(torch.ones(12, 16) > 0, periodic=True)), layer(x)
    close(run(net, x)[..., 4:-4, 4:-4] if y.shape[2] > 6 else run(net, x)[..., 1:-1, 1:-1], (
        y[..., 4:-4, 4:-4] if y.shape[2] > 6 else y[..., 1:-1, 1:-1]))  # fmt: skip
    times = y.shape[2] / 12
    close(run(net, x.roll((2, 4), (2, 3))), run(net, x).roll((int(2 * times), int(4 * times)), (2, 3)))


@pytest.mark.parametrize("size", [3, (3, 5)])
def test_a_torus_is_torchs_circular_padding(size):
    layer = nn.Conv2d(2, 3, size, padding="same").double()
    ring = nn.Conv2d(2, 3, size, padding="same", padding_mode="circular").double()
    ring.load_state_dict(layer.state_dict())
    x = torch.randn(1, 2, 6, 7, dtype=F64)
    close(run(transfer(layer, Pixels.from_pos(shuffled(6, 7), periodic=True)), x), ring(x))


# -- holes ---------------------------------------------------------------------------------------------------------


def some_mask(*shape):
    mask = torch.rand(*shape, generator=torch.Generator().manual_seed(2)) > 0.3
    mask[2:5, 3:6] = False
    return mask


def symmetric():
    """A network that turning the image turns, if its kernels are turned."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=2, dilation=2), nn.MaxPool2d(2),
        nn.Conv2d(4, 2, 5, padding=2),
    )  # fmt: skip


@pytest.mark.parametrize("missing", ["zero", "renormalise"])
def test_a_turned_mask_turns_the_result(missing):
    model, mask = symmetric().double(), some_mask(8, 8)
    turned = symmetric().double()
    turned.load_state_dict({k: torch.rot90(v, 1, (2, 3)) if v.ndim == 4 else v for k, v in model.state_dict().items()})
    x = torch.randn(1, 1, 8, 8, dtype=F64)
    y = run(transfer(model, mask, missing=missing), x)
    z = run(transfer(turned, torch.rot90(mask, 1, (0, 1)), missing=missing), torch.rot90(x, 1, (2, 3)))
    close(z, torch.rot90(y, 1, (2, 3)))


@pytest.mark.parametrize("missing", ["zero", "renormalise"])
def test_holes_by_hand(missing):
    """One convolution, its sums written out: zeros, or the rule of partial convolutions with a border that is there."""
    conv, mask = nn.Conv2d(2, 3, 3, padding=1).double(), some_mask(7, 8)
    x = torch.randn(2, 2, 7, 8, dtype=F64)
    here = mask.double()
    y = F.conv2d(x * here, conv.weight, padding=1)
    if missing == "renormalise":
        holes = F.conv2d((1 - here)[None, None], torch.ones(1, 1, 3, 3, dtype=F64), padding=1)
        y = y * torch.where(holes < 9, 9 / (9 - holes).clamp(min=1), 0)
    net = transfer(conv, mask, missing=missing)
    close(run(net, x), (y + conv.bias[:, None, None]) * here)
    assert f"exact except at {int(((F.max_pool2d(1 - here[None, None], 3, 1, 1) > 0) & mask).sum())} of" in str(
        net.report
    )


def test_what_a_hole_holds_is_never_read():
    model, mask = randomised(resnet()), some_mask(8, 8)
    x = torch.randn(1, 1, 8, 8, dtype=F64)
    for missing in ("zero", "renormalise"):
        net = transfer(model, mask, missing=missing)
        close(run(net, x.masked_fill(~mask, float("nan")).nan_to_num(1e9)), run(net, x))


def test_renormalised_means_and_maxima():
    x, mask = torch.rand(1, 1, 4, 4, dtype=F64) - 2, some_mask(4, 4)
    mask[0, 0], mask[:2, 2:] = True, False
    mean = transfer(nn.AvgPool2d(2), mask, missing="renormalise")
    assert mean.target.size == 3 or mean.target.size == 4
    first = x[0, 0, :2, :2][mask[:2, :2]]
    close(mean(mean.domain.gather(x))[0, 0, 0], first.mean())
    close(transfer(nn.AvgPool2d(2), mask)(mean.domain.gather(x))[0, 0, 0], first.sum() / 4)
    close(transfer(nn.MaxPool2d(2), mask)(mean.domain.gather(x))[0, 0, 0], first.max())


def test_coarser_levels_can_be_given():
    model, x = symmetric().double(), torch.randn(1, 1, 8, 8, dtype=F64)
    level = Pixels.from_pos(shuffled(4, 4))
    net = transfer(model, Grid((8, 8)), coarser=[level])
    assert net.target is level
    close(run(net, x), model(x))


# -- assignments ---------------------------------------------------------------------------------------------------


def test_superpixels_of_one_pixel_are_exact():
    model, x = randomised(UNet()), torch.randn(1, 1, 8, 8, dtype=F64)
    labels = torch.randperm(64, generator=torch.Generator().manual_seed(3)).reshape(8, 8)
    net = transfer(model, Pixels.from_labels(labels))
    assert net.domain.exact
    close(run(net, x), model(x))


def test_superpixels():
    """A signal that is constant on superpixels, through one convolution: the mean of the result over each."""
    labels = torch.arange(8).reshape(2, 4).repeat_interleave(3, 0).repeat_interleave(2, 1)
    labels[0, 0] = -1
    conv, domain = nn.Conv2d(1, 2, 3, padding=1).double(), Pixels.from_labels(labels)
    signal = torch.randn(1, 8, 1, dtype=F64)
    net = transfer(conv, domain)
    close(net(signal), domain.gather(conv(domain.scatter(signal))))
    assert "interpolated between sites and pixels" in str(net.report)
    model = randomised(UNet())
    net = transfer(
        model, Pixels.from_labels(torch.arange(16).reshape(4, 4).repeat_interleave(4, 0).repeat_interleave(4, 1))
    )
    y = net(torch.randn(2, 16, 1, dtype=F64))
    assert y.shape == (2, 16, 3) and y.isfinite().all() and net.target is net.domain


@pytest.mark.parametrize("assign", ["bilinear", "nearest"])
def test_points_between_pixels(assign):
    torch.manual_seed(0)
    pos = shuffled(6, 6) * 1.1 + 0.2
    graph = Graph(torch.empty(2, 0, dtype=torch.int64), 36, pos=pos)
    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False).double()
    nn.init.constant_(conv.weight, 1 / 9)
    net = transfer(conv, graph, assign=assign, missing="renormalise")
    ramp = pos.double().sum(1).reshape(1, -1, 1)
    inside = ((pos > 1) & (pos < 4)).all(1)
    assert (net(ramp) - ramp)[0, inside].abs().max() < 1.0  # a mean over the neighbourhood
    close(transfer(nn.Conv2d(1, 1, 1, bias=False).double(), graph, assign=assign)(0 * ramp), 0 * ramp)


# -- what is refused, and how --------------------------------------------------------------------------------------


class Permuted(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.conv, self.how = nn.Conv2d(1, 2, 3, padding=1), how

    def forward(self, x):
        return self.how(self.conv(x))


BAD = [
    (lambda: transfer("net", Grid((4, 4))), TypeError, "takes a torch module"),
    (lambda: transfer(nn.ReLU(), Grid((4, 4))), InputError, "no layer that reads pixels"),
    (lambda: transfer(GConv(gcn(1, 2)), Grid((4, 4))), InputError, "its layer gcn works on graphs"),
    (lambda: transfer(nn.Conv2d(1, 1, 3), "grid"), TypeError, "domain must be Pixels"),
    (lambda: transfer(nn.Conv2d(1, 1, 3), Graph(torch.tensor([[0], [1]]))), TypeError, "has no positions"),
    (lambda: transfer(nn.Conv2d(1, 1, 3), Grid((9,))), InputError, "works on 2-D images"),
    (lambda: transfer(nn.Conv2d(1, 1, 3), torch.zeros(4, 4, dtype=torch.bool)), InputError, "at least one pixel"),
    (lambda: transfer(nn.Conv2d(1, 1, 3), torch.zeros(4, 4)), TypeError, "mask must be a boolean tensor"),
    (lambda: transfer(nn.Conv2d(1, 1, 3), Grid((2, 2))), InputError, "does not fit the grid"),
    (lambda: transfer(nn.Conv2d(1, 1, 3), Grid((4, 4)), missing="mean"), ValueError, "missing must be"),
    (lambda: transfer(nn.Conv2d(1, 1, 3), Grid((4, 4)), coarser=[Grid((2,))]), InputError, "has 1 axis"),
    (lambda: transfer(nn.Conv2d(1, 1, 3), Pixels.from_mask(torch.ones(4, 4) > 0, True)), InputError, "periodic axis 0"),
    (lambda: transfer(nn.PixelShuffle(2), Grid((4, 4))), Exception, "rearranges pixels into channels|no layer that"),
    (lambda: transfer(nn.Sequential(nn.Conv2d(1, 1, 3), nn.Linear(2, 2)), Grid((4, 4))), OutsideFamily, "last axis"),
    (lambda: transfer(Permuted(lambda y: y.permute(0, 2, 3, 1)), Grid((4, 4))), OutsideFamily, "permute"),
    (lambda: transfer(Permuted(lambda y: y[:, :, 1:]), Grid((4, 4))), OutsideFamily, "getitem reads"),
    (lambda: transfer(Permuted(lambda y: y.mean(2)), Grid((4, 4))), OutsideFamily, "mean over axes 2"),
    (lambda: transfer(Permuted(lambda y: y if y.sum() > 0 else -y), Grid((4, 4))), OutsideFamily, "torch.fx"),
    (lambda: transfer(Permuted(lambda y: F.interpolate(y, y.shape[2:])), Grid((4, 4))), OutsideFamily, "the size of"),
    (lambda: transfer(Permuted(lambda y: y + F.max_pool2d(y, 2)), Grid((4, 4))), InputError, "different sites"),
    (lambda: Pixels.from_pos(torch.tensor([[0, 0], [0, 0]])), InputError, "Two sites are on the same pixel"),
    (lambda: Pixels.from_pos(torch.tensor([[0.0, float("nan")]])), InputError, "NaN"),
    (lambda: Pixels.from_pos(torch.tensor([[-1.0, 0.0]])), InputError, "pos must not be negative"),
    (lambda: Pixels.from_pos(torch.tensor([[5, 0]]), (4, 4)), InputError, "does not contain all positions"),
    (lambda: Pixels.from_pos(torch.zeros(0, 2)), InputError, "no sites"),
    (lambda: Pixels.from_labels(torch.tensor([[0, 2]])), InputError, "No pixel has label 1"),
    (lambda: Pixels.from_labels(torch.tensor([[0, 10**15]])), InputError, "No pixel has label 1, but labels go up to"),
    (lambda: Pixels.from_labels(torch.tensor([[0, 1, 3]])), InputError, "No pixel has label 2, but labels go up to 3"),
    (lambda: Pixels.from_labels(torch.tensor([[1, 2]])), InputError, "No pixel has label 0, but labels go up to 2"),
    (lambda: Pixels.from_labels(torch.tensor([[-1]])), InputError, "all are negative"),
    (lambda: Pixels.from_mask(torch.ones(2, 2) > 0, (True,)), InputError, "periodic must be"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "text"), BAD, ids=[text for *_, text in BAD])
def test_bad_input(call, error, text):
    with pytest.raises(error, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_bad_signals():
    net = transfer(nn.Conv2d(1, 2, 3, padding=1), Grid((4, 4)))
    for x in (torch.zeros(1, 15, 1), torch.zeros(1, 1, 4, 4), None):
        with pytest.raises(InputError, match="x must have shape"):
            net(x)
    assert net(torch.zeros(16, 1)).shape == (16, 2)
    with pytest.raises(InputError, match="The frame is"):
        net.domain.gather(torch.zeros(1, 1, 3, 4))


def test_a_wrong_order_is_detected(monkeypatch):
    """Negative control: taps in another order."""
    from gconv.transfer import layers

    old = layers.carry

    def wrong(engine, layer):
        old(engine, layer)
        if layer.weight is not None:
            layer.weight.data = layer.weight.data.flip(0)

    monkeypatch.setattr(layers, "carry", wrong)
    model, x = GConv(conv2d(1, 2, 3, padding=1), dtype=F64), torch.randn(1, 1, 5, 5, dtype=F64)
    with pytest.raises(AssertionError):
        close(run(transfer(model, Grid((5, 5))), x), model(x))


class Scaled(nn.Module):
    """Numbers of channels, as constants or computed by linear layers, that broadcast to images."""

    def __init__(self, how):
        super().__init__()
        self.conv, self.how = nn.Conv2d(2, 4, 3, padding=1), how
        self.gamma = nn.Parameter(torch.rand(4, 1, 1) if how == "parameter" else torch.rand(1, 4, 1, 1))
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        y = self.conv(x)
        if self.how != "excited":
            return self.gamma * y if self.how == "parameter" else y.mul(self.gamma) + self.gamma
        return y * torch.sigmoid(self.fc(y.mean((2, 3))))[:, :, None, None]


@pytest.mark.parametrize("how", ["parameter", "batched", "excited"])
@pytest.mark.parametrize("b", [1, 3, 4])
def test_numbers_of_channels_broadcast_as_they_do_to_images(how, b):
    """(c, 1, 1) beside (b, c, n) would be (c, c, n)."""
    model, x = Scaled(how).double().eval(), torch.randn(b, 2, 4, 5, dtype=F64)
    net = transfer(model, Grid((4, 5)))
    close(run(net, x), model(x))


def test_numbers_of_pixels_are_refused():
    class Embedded(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.place = nn.Conv2d(1, 2, 1), nn.Parameter(torch.rand(1, 2, 4, 4))

        def forward(self, x):
            return self.conv(x) + self.place

    net = transfer(Embedded(), Grid((4, 4)))
    with pytest.raises(InputError, match="varies from pixel to pixel"):
        net(torch.rand(1, 16, 1))
