"""Lipschitz bounds of modules that torch.fx traces: several names of one tensor, conversions, activations."""

import pytest
import torch
from torch import nn

from gconv import GConv, Grid
from gconv.analysis import affine, effective_receptive_field, lipschitz_bound
from gconv.operators import conv2d


def test_sizes_of_a_shape_are_not_rounded():
    model = nn.Sequential(GConv(conv2d(3, 4, 3, padding=1)))
    with pytest.raises(TypeError, match=r"such as \(3, 32, 32\), but \(3, 8.7, 8\)"):
        lipschitz_bound(model, (3, 8.7, 8))
    assert lipschitz_bound(model, torch.Size((3, 8, 8))) > 0 and GConv(conv2d(3, 4, 3)).at(Grid((8, 8)))


def test_networks_built_in_inference_mode_are_analysed():
    with torch.inference_mode():
        model = nn.Sequential(GConv(conv2d(3, 4, 3, padding=1)), nn.BatchNorm2d(4), nn.ReLU()).eval()
    layer = GConv(conv2d(3, 4, 3, padding=1))
    with torch.inference_mode():
        seen = effective_receptive_field(layer, (3, 8, 8))
    assert int((seen > 0).sum()) == 9
    assert affine(model, torch.rand(1, 3, 8, 8)).map.shape == (256, 192)
    assert lipschitz_bound(model, (3, 8, 8)) > 0
