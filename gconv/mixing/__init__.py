"""W: the linear map of the channels in each tap.

    Dense          every output channel depends on every input channel
    Grouped        channels in separate groups (depthwise: as many groups as channels)
    Heads          each tap writes its own block of output channels
    Separable      a filter per channel, then one matrix
    AveragedHeads  the mean over heads plus a term for the node itself
    Fixed          W_k = I
    Patches        output channels are (channel, tap) pairs, taps innermost; and its adjoint
    Beside         output channels are (tap, channel) pairs, channels innermost; and its adjoint
    Shuffled       a permutation of the channels
    Blocks         matrices with some blocks learned and the others zero
    Symmetric      a kernel in all its orientations, rotated and mirrored
    Parametrised   base class: W computed from another parameter (tied, rotated, ...)

A mixing is a description without numbers; the weight is passed separately.
"""

from gconv.mixing.averaged import AveragedHeads
from gconv.mixing.base import Mixing, Parametrised, plain, spread_bias
from gconv.mixing.blocks import Beside, Blocks
from gconv.mixing.elementary import Dense, Grouped, Heads, Separable, by_heads
from gconv.mixing.fixed import Fixed, Patches, Shuffled
from gconv.mixing.initial import initial_weight
from gconv.mixing.symmetric import Symmetric

__all__ = [
    "AveragedHeads",
    "Beside",
    "Blocks",
    "Dense",
    "Fixed",
    "Grouped",
    "Heads",
    "Mixing",
    "Parametrised",
    "Patches",
    "Separable",
    "Shuffled",
    "Symmetric",
    "by_heads",
    "initial_weight",
    "plain",
    "spread_bias",
]
