"""Transfer of image networks to masked images, panoramas, superpixels, point sets and meshes.

pixels    Pixels: sites in a frame of pixels, exact or by interpolation
surface   Surface: triangle meshes, spheres
taps      the taps of a grid operator between such sites
layers    one layer with its weights
rewriting the graph of a network, traced by torch.fx, with its layers replaced
report    what was replaced, and whether it is exact
network   transfer: whole networks
"""

from gconv.transfer.network import OnDomain, transfer
from gconv.transfer.pixels import Pixels
from gconv.transfer.report import Transferred, TransferReport
from gconv.transfer.surface import Surface

__all__ = ["OnDomain", "Pixels", "Surface", "TransferReport", "Transferred", "transfer"]
