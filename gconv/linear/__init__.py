"""An operator as the linear map that it is, and the algebra of such maps.

    LinearMap                     a member of the family, Y = sum_k S_k X W_k on its domain
    A @ B, A + B, A - B, c * A    lazily; the transpose distributes
    identity, block, hstack, vstack, block_diag, A.restrict
    A.collapse()                  the same map as one member of the family
    ProgramMap                    a linear map as torch operators in a row, as analysis.affine makes them

Every map has `shape`, `sites` (m, n), `i`, `o`, `apply`, `T`, `dtype` and `device`; what `gconv.analysis` asks, it asks
through those.
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
