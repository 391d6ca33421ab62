"""Linear maps of signals, and their algebra.

    LinearMap                     an operator on its domain with its weights, Y = sum_k S_k X W_k
    A @ B, A + B, A - B, c * A    evaluated lazily, with transposes
    identity, block, hstack, vstack, block_diag, A.restrict
    A.collapse()                  the same map as a single LinearMap
    ProgramMap                    a linear map as a sequence of torch operators, the result of analysis.affine

Every map has `shape`, `sites` (m, n), `i`, `o`, `apply`, `T`, `dtype` and `device`, which is all that `gconv.analysis`
needs.
"""

from gconv.linear.algebra import Block, Composed, Scaled, Sum, block, block_diag, hstack, vstack
from gconv.linear.base import Map
from gconv.linear.member import LinearMap, identity, select_channels, select_sites
from gconv.linear.program import Program, ProgramMap

__all__ = [
    "Block",
    "Composed",
    "LinearMap",
    "Map",
    "Program",
    "ProgramMap",
    "Scaled",
    "Sum",
    "block",
    "block_diag",
    "hstack",
    "identity",
    "select_channels",
    "select_sites",
    "vstack",
]
