"""Frequency responses, receptive fields and equivariance: against what layers do to pure waves and symmetries."""

import math

import numpy as np
import pytest
import torch

from gconv import GConv, Grid, NotLinear, grid_graph
from gconv.analysis import (
    Flip,
    Permutation,
    Rot90,
    Shift,
    effective_receptive_field,
    equivariance_error,
    frequency_response,
    matrix,
    receptive_field,
)
from gconv.laplacian import adjacency, eigenbasis, laplacian
from gconv.operators import cheb, conv1d, conv2d, conv_transpose1d, gat, gcn, graphconv, max_pool2d, sgc, spectral, tag
from gconv.operators.shapes import messy, ring, weighted
from gconv.testing import assert_close

DOUBLE = torch.float64


def layer_of(spec):
    return GConv(spec, dtype=DOUBLE)


# -- frequency response ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [cheb(2, 3, k=4), gcn(2, 3), sgc(2, 3, k=2), tag(2, 3, k=2), graphconv(2, 3)], ids=str)
def test_an_eigenvector_comes_out_times_the_gain(spec):
    layer, graph = layer_of(spec), weighted()
    A, r = layer.at(graph), frequency_response(layer, graph)
    L = {
        "cheb": lambda: laplacian(graph, DOUBLE, lmax="bound"),
        "gcn": lambda: adjacency(graph, DOUBLE, loops="fill", norm="sym"),
        "sgc": lambda: adjacency(graph, DOUBLE, loops="fill", norm="sym"),
        "tag": lambda: adjacency(graph, DOUBLE, norm="sym"),
        "graphconv": lambda: adjacency(graph, DOUBLE),
    }[spec.name]().expand(torch.eye(8, dtype=DOUBLE))[0]
    values, U = torch.linalg.eigh(L)
    assert_close("eigenvalues", r.frequency, values, 1e-12)
    for j in range(8):
        x = torch.outer(U[:, j], torch.tensor([1.0, -2.0], dtype=DOUBLE))
        want = torch.outer(U[:, j], torch.tensor([1.0, -2.0], dtype=DOUBLE) @ r.gain[j])
        assert_close(f"{spec.name} at {float(values[j]):.2f}", A @ x, want, 1e-10)


def test_multipliers_respond_at_their_own_eigenvalues():
    layer, graph = layer_of(spectral(2, 3, k=3)), weighted()
    r, (values, U) = frequency_response(layer, graph), eigenbasis(graph)
    assert_close("eigenvalues", r.frequency, values, 1e-12)
    x = U[:, [2]] * torch.tensor([1.0, 3.0], dtype=DOUBLE)
    assert_close(
        "one of them", layer.at(graph) @ x, U[:, [2]] * (torch.tensor([1.0, 3.0], dtype=DOUBLE) @ r.gain[2]), 1e-10
    )


def test_polynomials_respond_at_any_frequency():
    layer = layer_of(cheb(2, 3, k=4))
    at = torch.linspace(-1, 1, 9, dtype=DOUBLE)
    for graph in (ring(), messy()):  # a polynomial is one on any graph
        r = frequency_response(layer, graph, at)
        assert_close("cos", r.taps, torch.cos(torch.arange(4)[:, None] * torch.arccos(at)), 1e-12)
        assert_close("gain", r.gain, torch.einsum("kf,kio->fio", r.taps, layer.weight.detach()), 1e-12)
    with pytest.raises(ValueError, match="polynomials of one matrix; this structure is a Diagonal"):
        frequency_response(layer_of(spectral(2, 3, k=3)), ring(), at)


def test_sums_and_products_respond():
    A, B, graph = layer_of(cheb(2, 3, k=2)).at(weighted()), layer_of(cheb(2, 3, k=4)).at(weighted()), weighted()
    a, b = (frequency_response(M).gain for M in (A, B))
    assert_close("sum", frequency_response(A + 2 * B).gain, a + 2 * b, 1e-12)
    assert_close("product", frequency_response(A.T @ B).gain, b @ a.mT, 1e-10)
    assert graph.size == len(a)


@pytest.mark.parametrize("dilation", [1, 2])
def test_a_wave_is_scaled_by_the_gain(dilation):
    grid = Grid((6, 5))
    layer = layer_of(conv2d(2, 3, 3, padding=dilation, dilation=dilation, padding_mode="circular"))
    r = frequency_response(layer, grid)
    assert r.grid == (6, 5) and r.frequency.shape == (30, 2) and r.gain.shape == (30, 2, 3)
    site = torch.cartesian_prod(torch.arange(6), torch.arange(5)).double()
    for f in (0, 7, 22):
        wave = torch.exp(2j * math.pi * (site @ r.frequency[f]))
        x = wave[:, None] * torch.tensor([1.0, 2.0], dtype=torch.complex128)
        A = layer.at(grid)
        got = torch.complex(A @ x.real.contiguous(), A @ x.imag.contiguous())
        want = wave[:, None] * (torch.tensor([1.0, 2.0], dtype=torch.complex128) @ r.gain[f])
        assert_close("real part", got.real, want.real, 1e-10)
        assert_close("imaginary part", got.imag, want.imag, 1e-10)


def test_the_response_of_a_kernel_is_its_fourier_transform():
    layer = layer_of(conv1d(1, 1, 3, padding=1))  # zero padding: away from the borders
    at = torch.linspace(-0.5, 0.5, 7, dtype=DOUBLE)[:, None]
    h = layer.weight.detach().flatten().numpy()
    want = sum(h[k] * np.exp(2j * np.pi * at.numpy()[:, 0] * (k - 1)) for k in range(3))
    got = frequency_response(layer, Grid((9,)), at)
    np.testing.assert_allclose(got.gain.flatten().numpy(), want, atol=1e-12)
    back = frequency_response(layer.at(Grid((9,))).T, frequencies=at)
    np.testing.assert_allclose(back.gain.flatten().numpy(), want.conj(), atol=1e-12)
    plain = frequency_response(layer_of(conv_transpose1d(1, 1, 3, padding=1)), Grid((9,)), at)
    assert plain.gain.shape == (7, 1, 1)


def test_the_lowest_frequency_is_the_sum_of_the_taps():
    layer = layer_of(conv2d(2, 3, 3, padding=1, padding_mode="circular"))
    r = frequency_response(layer, Grid((4, 4)), torch.zeros(1, 2))
    assert_close("zero", r.gain[0].real, layer.weight.detach().sum(0), 1e-12)


def test_what_has_no_response_is_refused():
    with pytest.raises(ValueError, match=r"stride \(2, 2\) folds frequencies"):
        frequency_response(layer_of(conv2d(1, 1, 3, stride=2)), Grid((6, 6)))
    with pytest.raises(ValueError, match="share the eigenbasis"):
        frequency_response(layer_of(cheb(2, 2, k=3)), messy())
    with pytest.raises(NotLinear):
        frequency_response(GConv(max_pool2d(2)), Grid((4, 4)))
    with pytest.raises(TypeError, match="map only on a domain"):
        frequency_response(layer_of(gcn(2, 2)))
    with pytest.raises(TypeError, match=r"takes a linear map, .* or a layer with domain=\.\.\., but a str was given"):
        frequency_response("gcn", ring())
    with pytest.raises(TypeError, match="pointwise works on a grid"):
        frequency_response(torch.nn.Linear(2, 2), ring())


# -- receptive fields ------------------------------------------------------------------------------------------------


def test_fields_of_compositions_grow():
    A, B = layer_of(conv1d(1, 2, 3, padding=1)).at(Grid((9,))), layer_of(conv1d(2, 1, 3, padding=1)).at(Grid((9,)))
    assert receptive_field(A)[4].nonzero().flatten().tolist() == [3, 4, 5]
    assert receptive_field(B @ A)[4].nonzero().flatten().tolist() == [2, 3, 4, 5, 6]
    assert not receptive_field(A - A).any()


def test_the_effective_field_of_uniform_layers_is_binomial():
    """Luo et al.: n layers of equal weights give the n-fold convolution of a box, a Gaussian in the limit."""
    layers = [layer_of(conv1d(1, 1, 3, padding=1, bias=False)) for _ in range(4)]
    for layer in layers:
        layer.weight.data.fill_(1.0)
    field = effective_receptive_field(torch.nn.Sequential(*layers), torch.empty(1, 21, dtype=DOUBLE))
    want = np.ones(1)
    for _ in range(4):
        want = np.convolve(want, np.ones(3))
    np.testing.assert_allclose(field[10 - 4 : 10 + 5].numpy(), want, rtol=1e-12)
    assert float(field.sum()) == pytest.approx(81)


def test_the_effective_field_of_a_map_is_its_row():
    A = layer_of(conv2d(2, 3, 3, padding=1)).at(Grid((4, 5)))
    row = matrix(A).detach().unflatten(0, (20, 3))[7].sum(0).unflatten(0, (20, 2)).abs().mean(1)
    assert_close("row", effective_receptive_field(A, (20, 2), site=7), row, 1e-12)


def test_the_effective_field_lies_in_the_theoretical_one():
    net = torch.nn.Sequential(layer_of(gcn(2, 4)), torch.nn.ReLU(), layer_of(gcn(4, 2)))
    field = effective_receptive_field(net, torch.empty(9, 2, dtype=DOUBLE), site=0, domain=ring(9))
    one = layer_of(gcn(2, 2)).at(ring(9))
    assert torch.equal(field > 0, receptive_field(one @ one)[0])
    image = torch.nn.Sequential(layer_of(conv2d(1, 2, 3, padding=1)), torch.nn.Tanh(), layer_of(conv2d(2, 1, 3)))
    seen = effective_receptive_field(image, torch.empty(1, 8, 8, dtype=DOUBLE), site=(0, 5)) > 0
    assert seen.nonzero().amin(0).tolist() == [0, 4] and seen.nonzero().amax(0).tolist() == [3, 7]
    with pytest.raises(ValueError, match=r"sites of shape \(6, 6\), but the requested site is \(6, 0\)"):
        effective_receptive_field(image, torch.empty(1, 8, 8, dtype=DOUBLE), site=(6, 0))


# -- equivariance ----------------------------------------------------------------------------------------------------


def test_shifts_commute_with_circular_convolutions_only():
    x = torch.randn(2, 2, 6, 8, dtype=DOUBLE)
    wraps, padded = (layer_of(conv2d(2, 3, 3, padding=1, padding_mode=mode)) for mode in ("circular", "zeros"))
    net = torch.nn.Sequential(wraps, torch.nn.ReLU(), layer_of(conv2d(3, 2, 3, padding=1, padding_mode="circular")))
    for layer in (wraps, net):
        assert equivariance_error(layer, "shift", x) < 1e-12
        assert equivariance_error(layer, Shift((2, -3)), x) < 1e-12
    assert equivariance_error(padded, "shift", x) > 0.05  # negative control
    strided = layer_of(conv2d(2, 3, 3, stride=2, padding=1, padding_mode="circular"))
    assert equivariance_error(strided, Shift((2, 4), out=(1, 2)), x) < 1e-12
    assert equivariance_error(strided, Shift((1, 0), out=(0, 0)), x) > 0.05


def test_turns_and_flips_commute_with_symmetric_kernels_only():
    layer, x = layer_of(conv2d(1, 1, 3, padding=1)), torch.randn(1, 1, 5, 5, dtype=DOUBLE)
    for action in ("rot90", "flip", Rot90(2), Flip((-2, -1))):
        assert equivariance_error(layer, action, x) > 0.05
    layer.weight.data.copy_(torch.tensor([1.0, 2, 1, 2, 5, 2, 1, 2, 1])[:, None, None])
    for action in ("rot90", "flip", Rot90(3), Flip((-2, -1))):
        assert equivariance_error(layer, action, x) < 1e-12
    assert equivariance_error(layer, "rot90", torch.randn(1, 1, 5, 6, dtype=DOUBLE)) < 1e-12
    with pytest.raises(ValueError, match="use a square grid"):
        equivariance_error(layer_of(conv2d(1, 1, 3, stride=(2, 1))), "rot90", torch.randn(1, 1, 5, 5, dtype=DOUBLE))


def test_graph_layers_do_not_see_names():
    x, graph = torch.randn(6, 3, dtype=DOUBLE), messy()
    net = torch.nn.Sequential(layer_of(gat(3, 2, heads=2)), torch.nn.ELU(), layer_of(gcn(4, 2)))
    for layer in (layer_of(gcn(3, 2)), net):
        assert equivariance_error(layer, "permutation", x, graph) < 1e-12
        assert equivariance_error(layer, Permutation((5, 3, 1, 0, 2, 4)), x, graph) < 1e-12

    def sees_names(signal, place):
        return layer_of(gcn(3, 2))(signal, place) * torch.arange(6)[:, None]

    assert equivariance_error(sees_names, "permutation", x, graph) > 0.05  # negative control
    with pytest.raises(ValueError, match="2 numbers, but the signal has 6 nodes"):
        equivariance_error(layer_of(gcn(3, 2)), Permutation((1, 0)), x, graph)


def test_symmetries_are_those_of_the_domain_of_a_map():
    A = layer_of(gcn(1, 1)).at(ring(7))
    x = torch.randn(7, 1, dtype=DOUBLE)
    assert equivariance_error(A, Permutation(tuple((i + 2) % 7 for i in range(7))), x) < 1e-12  # turns the ring
    assert equivariance_error(A, Permutation((1, 0, 2, 3, 4, 5, 6)), x) > 0.05
    grid = Grid((4, 5))
    B = layer_of(conv2d(1, 2, 3, padding=1, padding_mode="circular")).at(grid)
    assert equivariance_error(B, "shift", torch.randn(20, 1, dtype=DOUBLE), grid) < 1e-12
    twin = layer_of(gcn(1, 1)).at(grid_graph((4, 4), 4, periodic=True))
    assert equivariance_error(twin, "rot90", torch.randn(16, 1, dtype=DOUBLE), Grid((4, 4))) < 1e-12


def test_unknown_actions_are_refused():
    with pytest.raises(ValueError, match="'mirror'; there are shift, flip, rot90, permutation"):
        equivariance_error(layer_of(conv2d(1, 1, 3)), "mirror", torch.zeros(1, 1, 5, 5, dtype=DOUBLE))
