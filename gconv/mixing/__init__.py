"""W: what happens to the channels on the way through each tap.

    Dense      every output channel sees every input channel
    Grouped    channels in groups that do not meet (depthwise: as many groups as channels)
    Heads      each tap writes its own block of the output
    Separable  a filter a channel, then one matrix
    AveragedHeads  the mean over heads plus the node itself
    Fixed      channels pass as they are
    Patches    the taps of each channel side by side; and its adjoint
    Beside     the taps block after block; and its adjoint
    Shuffled   channels change places
    Blocks     matrices with some blocks learned and the others zero
    Symmetric  one kernel in all its poses, turned and mirrored
    Parametrised   made from any of these by a rule: tied, rotated, ...

Each mixing is a description without numbers; the weight travels beside it.
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
