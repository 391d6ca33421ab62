"""The convolutions, one family a file.

Each is a description: structure, mixing, samples, source; none has a forward pass.

On grids: conv1d, conv2d, conv3d, their transposes, depthwise, pointwise, separable (convolution.py), avg_pool, max_pool
and global_pool (pooling.py), unfold, fold, pixel_shuffle, pixel_unshuffle, pad and, anywhere, channel_shuffle
(patches.py), upsample, adaptive_avg_pool, adaptive_max_pool (resampling.py), and turned with the image
p4_lift, p4_conv (symmetry.py).

On graphs: gcn, graphconv, sage (neighbourhood.py), cheb, sgc, tag, appnp (polynomial.py),
spectral (spectral.py), selection, the labelled twin of a grid convolution (selection.py), monet; by attention, gat,
gatv2 (gat.py), agnn, supergat, transformer, and with signs fagcn.
Labelled, directed, relational: cluster_gcn, le, gin, simple, directed, signed, relational, hypergraph, mf, gcn2,
wl_continuous, rgat, resgated, egc.
Learned: spline, nnconv, feast, pdn, pan.
Filters: lightgcn, ssg, gpr, heat, ppr (propagation.py), bernstein, chebnetii, jacobi (bases.py), arma, cayley
(rational.py), wavelet, gwnn (wavelet.py), mixhop, diffusion, lanczos.
"""

from gconv.operators.agnn import agnn
from gconv.operators.bases import bernstein, chebnetii, jacobi
from gconv.operators.cluster_gcn import cluster_gcn
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
from gconv.operators.diffusion import diffusion
from gconv.operators.directed import directed
from gconv.operators.egc import egc
from gconv.operators.fagcn import fagcn
from gconv.operators.feast import feast
from gconv.operators.gat import gat, gatv2
from gconv.operators.gcn2 import gcn2
from gconv.operators.gin import gin
from gconv.operators.hypergraph import hypergraph
from gconv.operators.lanczos import lanczos
from gconv.operators.le import le
from gconv.operators.mf import mf
from gconv.operators.mixhop import mixhop
from gconv.operators.monet import monet
from gconv.operators.neighbourhood import gcn, graphconv, sage
from gconv.operators.nnconv import nnconv
from gconv.operators.pan import pan
from gconv.operators.patches import channel_shuffle, fold, pad, pixel_shuffle, pixel_unshuffle, unfold
from gconv.operators.pdn import pdn
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
from gconv.operators.propagation import gpr, heat, lightgcn, ppr, ssg
from gconv.operators.rational import arma, cayley
from gconv.operators.relational import relational
from gconv.operators.resampling import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
    adaptive_max_pool1d,
    adaptive_max_pool2d,
    adaptive_max_pool3d,
    upsample,
)
from gconv.operators.resgated import resgated
from gconv.operators.rgat import rgat
from gconv.operators.selection import selection
from gconv.operators.signed import signed
from gconv.operators.simple import simple
from gconv.operators.spectral import spectral
from gconv.operators.spline import spline
from gconv.operators.supergat import supergat
from gconv.operators.symmetry import p4_conv, p4_lift
from gconv.operators.transformer import transformer
from gconv.operators.wavelet import gwnn, wavelet
from gconv.operators.wl import wl_continuous

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "agnn",
    "appnp",
    "arma",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "bernstein",
    "cayley",
    "channel_shuffle",
    "cheb",
    "chebnetii",
    "cluster_gcn",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "depthwise",
    "diffusion",
    "directed",
    "egc",
    "fagcn",
    "feast",
    "fold",
    "gat",
    "gatv2",
    "gcn",
    "gcn2",
    "gin",
    "global_pool",
    "gpr",
    "graphconv",
    "gwnn",
    "heat",
    "hypergraph",
    "jacobi",
    "lanczos",
    "le",
    "lightgcn",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "mf",
    "mixhop",
    "monet",
    "nnconv",
    "p4_conv",
    "p4_lift",
    "pad",
    "pan",
    "pdn",
    "pixel_shuffle",
    "pixel_unshuffle",
    "pointwise",
    "ppr",
    "relational",
    "resgated",
    "rgat",
    "sage",
    "selection",
    "separable",
    "sgc",
    "signed",
    "simple",
    "spectral",
    "spline",
    "ssg",
    "supergat",
    "tag",
    "transformer",
    "unfold",
    "upsample",
    "wavelet",
    "wl_continuous",
]
