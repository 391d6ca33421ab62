"""Transfer of image networks to masked images, panoramas, superpixels, point sets and meshes.

pixels    Pixels: sites in a frame of pixels, exact or by interpolation
surface   Surface: triangle meshes, spheres
taps      the taps of a grid operator between such sites
layers    one layer with its weights
network   transfer: whole networks, traced by torch.fx
"""

from gconv.transfer.network import OnDomain, Transferred, TransferReport, transfer
from gconv.transfer.pixels import Pixels
from gconv.transfer.surface import Surface

__all__ = ["OnDomain", "Pixels", "Surface", "TransferReport", "Transferred", "transfer"]
