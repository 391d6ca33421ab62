"""Networks of images on sites with places.

pixels    Pixels: which site is which pixel, or how sites and pixels read each other
surface   Surface: triangle meshes, spheres
taps      the taps of a grid operator between sites
layers    one layer with its weights
network   transfer: whole networks, followed by torch.fx
"""

from gconv.transfer.network import OnDomain, Transferred, TransferReport, transfer
from gconv.transfer.pixels import Pixels
from gconv.transfer.surface import Surface

__all__ = ["OnDomain", "Pixels", "Surface", "TransferReport", "Transferred", "transfer"]
