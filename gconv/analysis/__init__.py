"""Analysis of layers and networks, one function per question: exact where the structure allows it, else iterative.

    matrix                     the explicit matrix, dense or sparse
    singular_values, norm      from Fourier blocks of grids and graphs, else from the matrix or by Lanczos
    norm_bound                 a certified upper bound of the norm
    lipschitz_bound            of a whole network
    affine                     a piecewise linear network at one input: a linear map and an offset
    frequency_response         of a trained filter
    receptive_field            the inputs that can influence an output; effective_receptive_field: how much they do
    equivariance_error         of a layer under a shift, rotation, reflection or permutation (Shift, Rot90, ...)
    dirichlet_energy           oversmoothing; energy_by_depth, mean_average_distance
    total_influence            over-squashing; effective_resistance
    cost, parameter_count      the cost of a call
    adjoint_gap                whether A.T is the adjoint of A
    clip_singular_values       layers with a modified spectrum; spectral_normalise, SpectralNorm
    plot_matrix, ...           figures: plot_response, plot_spectrum, plot_receptive_field, plot_energy

Most functions take a `LinearMap` (`layer.at(domain)`), a sum or product of maps, or a layer of gconv, torch.nn or PyG
with `domain=`. Adaptive layers are frozen at a signal `x=`; layers that take a maximum are not linear and raise
NotLinear. Maps are converted to double precision first and scaled so that squares neither overflow nor underflow.
Modules are classified in one place (`gconv.interop.layers`), by the forward that runs, not by class name.
"""

from gconv.analysis.adjoint import adjoint_gap
from gconv.analysis.affine import Affine, affine
from gconv.analysis.costs import cost, parameter_count
from gconv.analysis.equivariance import Flip, Permutation, Rot90, Shift, equivariance_error
from gconv.analysis.explicit import matrix
from gconv.analysis.lipschitz import lipschitz_bound
from gconv.analysis.norms import norm, norm_bound
from gconv.analysis.plots import plot_energy, plot_matrix, plot_receptive_field, plot_response, plot_spectrum
from gconv.analysis.receptive import effective_receptive_field, receptive_field
from gconv.analysis.response import Response, frequency_response
from gconv.analysis.smoothing import dirichlet_energy, energy_by_depth, mean_average_distance
from gconv.analysis.spectrum import singular_values
from gconv.analysis.squashing import effective_resistance, total_influence
from gconv.analysis.transform import SpectralNorm, clip_singular_values, spectral_normalise

__all__ = [
    "Affine",
    "Flip",
    "Permutation",
    "Response",
    "Rot90",
    "Shift",
    "SpectralNorm",
    "adjoint_gap",
    "affine",
    "clip_singular_values",
    "cost",
    "dirichlet_energy",
    "effective_receptive_field",
    "effective_resistance",
    "energy_by_depth",
    "equivariance_error",
    "frequency_response",
    "lipschitz_bound",
    "matrix",
    "mean_average_distance",
    "norm",
    "norm_bound",
    "parameter_count",
    "plot_energy",
    "plot_matrix",
    "plot_receptive_field",
    "plot_response",
    "plot_spectrum",
    "receptive_field",
    "singular_values",
    "spectral_normalise",
    "total_influence",
]


def __dir__() -> list[str]:
    return __all__
