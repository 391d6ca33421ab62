"""Whole convolutional networks, converted: ten steps of training go as the original's do."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gconv.interop import convert

LAYERS = nn.Conv2d, nn.ConvTranspose2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Upsample, nn.Linear


def small():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


class LeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.pool = nn.Conv2d(1, 6, 5, padding=2), nn.Conv2d(6, 16, 5), nn.AvgPool2d(2)
        self.full1, self.full2 = nn.Linear(16 * 2 * 2, 12), nn.Linear(12, 4)

    def forward(self, x):
        x = self.pool(torch.tanh(self.conv1(x)))
        x = self.pool(torch.tanh(self.conv2(x)))
        return self.full2(torch.tanh(self.full1(x.view(-1, 16 * 2 * 2))))


class VGG(nn.Module):
    def __init__(self):
        super().__init__()
        layers, i = [], 1
        for o in (6, 8, "pool", 8, "pool"):
            if o == "pool":
                layers.append(nn.MaxPool2d(2, 2))
                continue
            layers += [nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(inplace=True)]
            i = o
        self.features, self.pool = nn.Sequential(*layers), nn.AdaptiveAvgPool2d(3)
        self.classifier = nn.Sequential(nn.Linear(i * 9, 16), nn.ReLU(True), nn.Dropout(0.0), nn.Linear(16, 4))

    def forward(self, x):
        return self.classifier(torch.flatten(self.pool(self.features(x)), 1))


class Block(nn.Module):
    def __init__(self, i, o, stride):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o)
        self.conv2, self.norm2 = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
        self.relu = nn.ReLU(inplace=True)
        self.down = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o)) if stride > 1 else None

    def forward(self, x):
        y = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        y += x if self.down is None else self.down(x)
        return self.relu(y)


def resnet():
    stem = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
    head = nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Linear(8, 4)
    return nn.Sequential(*stem, Block(6, 6, 1), Block(6, 8, 2), *head)


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = self.twice(1, 6), self.twice(6, 8)
        self.down, self.up = nn.MaxPool2d(2), nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.wide = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.last, self.out = self.twice(12, 6), nn.Conv2d(14, 4, 1)

    @staticmethod
    def twice(i, o):
        first = nn.Conv2d(i, o, 3, padding=1, padding_mode="reflect"), nn.ReLU(inplace=True)
        return nn.Sequential(*first, nn.Conv2d(o, o, 3, padding=1), nn.ReLU(inplace=True))

    def forward(self, x):
        a = self.one(x)
        b = self.two(self.down(a))
        y = self.last(torch.cat([a, self.up(b)], 1))
        return self.out(torch.cat([y, self.wide(b)], 1)).permute(0, 2, 3, 1).reshape(-1, 4)


def trained(model, x, target, steps=10):
    """The loss before each step of training, and the parameters after the last."""
    optimiser = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = F.cross_entropy(model(x), target)
        loss.backward()
        optimiser.step()
        losses.append(loss.detach())
    return [torch.stack(losses), *(p.detach() for p in model.parameters())]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("make", [small, LeNet, VGG, resnet, UNet])
def test_training_goes_as_before(make, channels_last):
    torch.manual_seed(0)
    model = make().double()
    x = torch.randn(4, 1, 16, 16, dtype=torch.float64)
    if channels_last:
        if make is LeNet:
            pytest.skip("its .view wants images in torch's default format, converted or not")
        model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    twin = convert(model)
    with torch.no_grad():
        theirs, ours = copy.deepcopy(model).eval()(x), copy.deepcopy(twin).eval()(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert ours.stride() == theirs.stride()
    target = torch.arange(len(theirs)) % 4
    for a, b in zip(trained(twin, x, target), trained(model, x, target), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("make", [small, LeNet, VGG, resnet, UNet])
def test_autocast_gives_the_same_types(make):
    torch.manual_seed(0)
    model = make().eval()
    x, twin, types = torch.randn(2, 1, 16, 16), convert(model), []
    for network in (model, twin):
        found = []
        for module in network.modules():
            if isinstance(module, (*LAYERS, nn.ReLU)):
                module.register_forward_hook(lambda m, args, y, found=found: found.append(y.dtype))
        with torch.autocast("cpu", torch.bfloat16):
            y = network(x)
        types.append((found, y))
    assert types[0][0] == types[1][0]
    torch.testing.assert_close(types[0][1], types[1][1], rtol=0.1, atol=0.05)
