"""The convolutions, one family a file.

Each is a description: structure, mixing, samples, source; none has a forward pass.

On grids: conv1d, conv2d, conv3d, their transposes, depthwise, pointwise, separable (convolution.py), avg_pool, max_pool
and global_pool (pooling.py). On graphs: gcn, graphconv, sage (neighbourhood.py), cheb, sgc, tag, appnp (polynomial.py),
spectral (spectral.py), selection, the labelled twin of a grid convolution (selection.py), monet and gat.
"""

from gconv.operators.convolution import (
    conv1d,
    conv2d,
    conv3d,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
    depthwise,
    pointwise,
    separable,
)
from gconv.operators.gat import gat
from gconv.operators.monet import monet
from gconv.operators.neighbourhood import gcn, graphconv, sage
from gconv.operators.polynomial import appnp, cheb, sgc, tag
from gconv.operators.pooling import (
    avg_pool1d,
    avg_pool2d,
    avg_pool3d,
    global_pool,
    max_pool1d,
    max_pool2d,
    max_pool3d,
)
from gconv.operators.selection import selection
from gconv.operators.spectral import spectral

__all__ = [
    "appnp",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "cheb",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "depthwise",
    "gat",
    "gcn",
    "global_pool",
    "graphconv",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "monet",
    "pointwise",
    "sage",
    "selection",
    "separable",
    "sgc",
    "spectral",
    "tag",
]
