"""The convolutions, one family a file.

Each operator is a description (structure, mixing, samples, citation); none has a forward pass of its own.

On grids (2d stands for 1d, 2d, 3d):
    convolution.py   conv2d, conv_transpose2d, depthwise, pointwise, separable
    pooling.py       avg_pool2d, max_pool2d, global_pool
    resampling.py    upsample, adaptive_avg_pool2d, adaptive_max_pool2d
    patches.py       unfold, fold, pixel_shuffle, pixel_unshuffle, pad; channel_shuffle (on graphs, too)
    symmetry.py      p4_lift, p4_conv: equivariant to rotations by 90 degrees and to reflections

On graphs, one step:
    neighbourhood.py gcn, graphconv, sage
    a file each      cluster_gcn, gcn2, gin, le, simple, wl_continuous (wl.py); lightgcn (propagation.py)

On graphs, polynomials and spectra:
    polynomial.py    cheb, sgc, tag, appnp
    propagation.py   ssg, gpr, heat, ppr
    bases.py         bernstein, chebnetii, jacobi
    rational.py      arma, cayley
    wavelet.py       wavelet, gwnn
    a file each      spectral, mixhop, diffusion, lanczos, pan

On graphs, edges distinguished by label, position, features, degree or direction:
    a file each      selection (a grid convolution as a graph operator), relational, directed, signed, hypergraph, mf,
                     monet, spline, nnconv, pdn

On graphs, S computed from x (attention and gates):
    gat.py           gat, gatv2
    a file each      agnn, supergat, transformer, fagcn (with signs), feast, rgat, resgated, egc

`outside.OUTSIDE` lists the convolutions of PyG that are outside the family, each with the assumption that fails.
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


def __dir__() -> list[str]:
    return __all__
