"""Questions about a LinearMap, each a free function: matrix, norm, adjoint_gap, receptive_field."""

from gconv.analysis.linear import adjoint_gap, matrix, norm, receptive_field

__all__ = ["adjoint_gap", "matrix", "norm", "receptive_field"]
