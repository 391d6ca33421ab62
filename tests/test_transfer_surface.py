"""Networks of images on triangle meshes: exact on flat ones, turning with spheres; meshes that are refused."""

import itertools
import math

import pytest
import torch
from test_transfer import F64, UNet, close, randomised
from torch import nn

from gconv import InputError, OutsideFamily, Surface, transfer
from gconv.operators.shapes import grid


def flat(h, w, step=1.0, **options):
    """The pixels of a grid as vertices, rows going down; cut into triangles along diagonals that alternate."""
    place = torch.cartesian_prod(torch.arange(h), torch.arange(w)).double() * step
    V = torch.stack([place[:, 1], -place[:, 0], torch.zeros(h * w)], 1)
    faces = []
    for r in range(h - 1):
        for c in range(w - 1):
            a, b, d, e = r * w + c, r * w + c + 1, (r + 1) * w + c, (r + 1) * w + c + 1
            faces += [(a, d, b), (b, d, e)] if (r + c) % 2 else [(a, d, e), (a, e, b)]
    right = torch.tensor([[1.0, 0.0, 0.0]]).expand(h * w, 3)
    return Surface(V, torch.tensor(faces), right, **{"spacing": step, "open": True} | options)


def levels(h, w, count):
    found = []
    for _ in range(count):
        r, c = torch.unravel_index(torch.arange(h * w), (h, w))
        h, w = h // 2, w // 2
        found.append((flat(h, w, 2.0 ** (len(found) + 1)), r // 2 * w + c // 2))
    return found


def run(net, x):
    y = net(x.flatten(2).mT)
    return y.mT


@pytest.mark.parametrize("options", [{}, {"kernel_size": 5}, {"dilation": 2}, {"groups": 2}, {"kernel_size": (1, 3)}])
def test_a_flat_mesh_is_the_grid(options):
    """Zero padding included, which is the border of an open mesh."""
    conv = nn.Conv2d(2, 4, **{"kernel_size": 3, "padding": "same"} | options).double()
    x = torch.randn(2, 2, 6, 7, dtype=F64)
    close(run(transfer(conv, flat(6, 7)), x), conv(x).flatten(2))


class UpNet(nn.Module):
    """Strides, pools and upsampling whose windows lie on vertices."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.pool, self.up, self.mean = nn.MaxPool2d(2), nn.Upsample(scale_factor=2), nn.AvgPool2d(2)
        self.c, self.out = nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        a = torch.relu(self.a(x))
        b = torch.relu(self.b(a))
        c = self.up(self.c(self.up(self.pool(b) + self.mean(b))))
        return self.out(torch.cat([a, c], 1))


def test_levels_of_a_flat_mesh_are_those_of_the_grid():
    model, x = randomised(UpNet()), torch.randn(2, 1, 8, 12, dtype=F64)
    net = transfer(model, flat(8, 12), coarser=levels(8, 12, 2))
    close(run(net, x), model(x).flatten(2), 1e-8)
    classify = nn.Sequential(model, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3).double())
    close(transfer(classify, flat(8, 12), coarser=levels(8, 12, 2))(x.flatten(2).mT), classify(x), 1e-8)


def sphere_levels(*numbers):
    spheres = [Surface.sphere(k) for k in numbers]
    return spheres[0], [(b, b.nearest(a.vertices)) for a, b in itertools.pairwise(spheres)]


def turned(surface, angle):
    """Which vertex each vertex becomes by a turn around the axis."""
    c, s = math.cos(angle), math.sin(angle)
    around = torch.tensor([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]], dtype=F64)
    return surface.nearest(surface.vertices @ around)


def test_turning_a_sphere_turns_the_result():
    """By a fifth around the axis, for all vertices but the poles, where no direction is east."""
    sphere, below = sphere_levels(3, 2)
    to = turned(sphere, 2 * math.pi / 5)
    assert len(to.unique()) == sphere.size
    poles = sphere.vertices[:, 2].abs() > 0.999
    x = torch.randn(1, sphere.size, 2, dtype=F64)
    moved = torch.empty_like(x).index_copy(1, to, x)
    net = transfer(nn.Conv2d(2, 3, 3, padding=1).double(), sphere)
    want = torch.empty_like(net(x)).index_copy(1, to, net(x))
    close(net(moved)[:, ~poles], want[:, ~poles], 1e-8)
    assert (net(moved) - net(x)).abs().max() > 0.1  # negative control
    pooled = transfer(nn.Sequential(nn.AvgPool2d(2), nn.Upsample(scale_factor=2)), sphere, coarser=below)
    close(pooled(x).mean(1), x.mean(1))


def test_a_derivative_on_the_sphere():
    """A kernel that takes the difference to the right is the derivative towards the east."""
    sphere, conv = Surface.sphere(3), nn.Conv2d(1, 1, 3, padding=1, bias=False).double()
    nn.init.zeros_(conv.weight)
    conv.weight.data[0, 0, 1] = torch.tensor([-0.5, 0.0, 0.5])
    y = transfer(conv, sphere)(sphere.vertices[None, :, 1:2])[0, :, 0] / sphere.spacing
    far = sphere.vertices[:, 2].abs() < 0.9
    assert (y - sphere.right[:, 1])[far].abs().max() < 0.06
    conv.weight.data = conv.weight.data.mT.contiguous()
    y = transfer(conv, sphere)(sphere.vertices[None, :, 2:])[0, :, 0] / sphere.spacing
    assert (y - sphere.down[:, 2])[far].abs().max() < 0.06


def test_a_network_on_the_sphere():
    sphere, below = sphere_levels(3, 2, 1)
    net = transfer(randomised(UNet()), sphere, coarser=below)
    y = net(torch.randn(2, sphere.size, 1, dtype=F64))
    assert y.shape == (2, sphere.size, 3) and y.isfinite().all()
    assert net.target is net.domain and "interpolated on the mesh" in str(net.report)
    one = nn.ConvTranspose2d(1, 1, 2, stride=2, bias=False).double()
    nn.init.ones_(one.weight)
    up = transfer(nn.Sequential(nn.AvgPool2d(2), one), sphere, coarser=below)
    close(up(torch.ones(1, sphere.size, 1, dtype=F64)), torch.ones(1, sphere.size, 1, dtype=F64))


def broken(change):
    good = Surface.sphere(1)
    V, faces = good.vertices.clone(), good.faces.clone()
    return change(V, faces)


def flipped(V, faces):
    faces[3] = faces[3].flip(0)
    return Surface(V, faces)


def pointed(V, faces):
    V[4] = float("nan")
    return Surface(V, faces)


CONV, STRIDED, SPHERE = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, 2, 1), Surface.sphere(1)
BAD = [
    (lambda: broken(lambda V, faces: Surface(V, faces[1:])), InputError, "border or hole of 3 edges"),
    (lambda: broken(flipped), InputError, "a face is flipped"),
    (lambda: broken(pointed), InputError, "NaN or infinity"),
    (lambda: broken(lambda V, faces: Surface(V, torch.cat([faces, faces[:1]]))), InputError, "twice in the same"),
    (lambda: broken(lambda V, faces: Surface(torch.cat([V, V[:1]]), faces)), InputError, "42 is not part of any"),
    (lambda: Surface(torch.zeros(3, 3), torch.tensor([[0, 1, 2]])), InputError, "Face 0 is degenerate"),
    (lambda: Surface(torch.eye(3), torch.tensor([[0, 1, 3]])), InputError, "of vertices from 0 to 2"),
    (lambda: Surface(torch.eye(3).long(), torch.tensor([[0, 1, 2]])), TypeError, "vertices must be a tensor"),
    (lambda: Surface(torch.eye(3), torch.eye(3)), TypeError, "faces must be an integer"),
    (lambda: Surface(SPHERE.vertices, SPHERE.faces, SPHERE.vertices), InputError, "orthogonal to the tangent plane"),
    (lambda: Surface(SPHERE.vertices, SPHERE.faces, torch.eye(3)), TypeError, "right must be a tensor"),
    (lambda: Surface(SPHERE.vertices, SPHERE.faces, spacing=0.0), InputError, "spacing must be"),
    (lambda: Surface.sphere(20), InputError, "level must be at most 8"),
    (lambda: transfer(STRIDED, SPHERE), InputError, "give coarser="),
    (lambda: transfer(CONV, SPHERE, coarser=[SPHERE]), TypeError, r"a pair \(surface, parent\)"),
    (lambda: transfer(CONV, SPHERE, coarser=[(SPHERE, torch.zeros(3))]), TypeError, "parent must be an integer"),
    (lambda: transfer(CONV, SPHERE, coarser=[(SPHERE, torch.zeros(42).long())]), InputError, "at least one child"),
    (lambda: transfer(nn.Conv1d(1, 1, 3), SPHERE), InputError, "works on 1-D images"),
    (lambda: transfer(nn.Sequential(CONV, nn.Flatten()), SPHERE), OutsideFamily, "no pixel order"),
    (lambda: transfer(nn.ConvTranspose2d(1, 1, 2, 2), SPHERE), InputError, "the finest level"),
    (lambda: transfer(nn.AdaptiveAvgPool2d(3), SPHERE), OutsideFamily, "is not defined on"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "text"), BAD, ids=[text for *_, text in BAD])
def test_bad_input(call, error, text):
    with pytest.raises(error, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_an_open_mesh_may_have_a_hole():
    cut = Surface(SPHERE.vertices, SPHERE.faces[1:], spacing=0.2, open=True)
    y = transfer(CONV, cut)(torch.ones(1, cut.size, 1)).detach()
    assert y.isfinite().all() and float(y.std()) > 1e-3
    with pytest.raises(TypeError):
        transfer(CONV, grid)
