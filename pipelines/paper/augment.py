"""Augmentation of H&E patches as in the paper: amounts of the stains, rotation and mirroring.

Comes in: patches (T, 3, side, side) of 0 to 255. Goes out: the same, changed at random, each patch by itself.
Colour normalisation is no augmentation: it stands at the front of the network (``networks``), in training and
afterwards.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
"""Optical density in red, green and blue of haematoxylin, eosin and DAB, which stands for the rest.

Source: Ruifrok & Johnston, "Quantification of histochemical staining by color deconvolution", Anal. Quant.
Cytol. Histol. 23 (2001).
"""


def restain(x_T3HW: Tensor, magnitude_T2: Tensor) -> Tensor:
    """Multiply the haematoxylin and the eosin of each patch by its two magnitudes; float of 0 to 255.

    Density is log(256 / (value + 1)), so that black is finite; it is unmixed into the three stains (scaled to
    unit length), the first two are multiplied, and all are mixed again.
    """
    mix_33 = torch.tensor(STAINS, device=x_T3HW.device)
    mix_33 = (mix_33 / mix_33.norm(dim=1, keepdim=True)).T
    ones = torch.ones_like(magnitude_T2[:, :1])
    amount_T31 = torch.cat((magnitude_T2, ones), dim=1)[..., None]
    change_T33 = mix_33 @ (amount_T31 * torch.linalg.inv(mix_33))
    density_T3P = -torch.log((x_T3HW.float().flatten(2) + 1) / 256)
    changed_T3P = 256 * torch.exp(-torch.bmm(change_T33, density_T3P)) - 1
    return changed_T3P.clamp(0, 255).view(x_T3HW.shape)


def turn(x_TCHW: Tensor, which_T: Tensor) -> Tensor:
    """Turn and mirror each square patch in one of the eight ways, 0 to 7: 0 leaves it as it is.

    A bit each for the exchange of rows and columns, for the order of the rows and for that of the columns.
    """
    bits = [((which_T >> bit) & 1).bool()[:, None, None, None] for bit in range(3)]
    x_TCHW = torch.where(bits[0], x_TCHW.transpose(2, 3), x_TCHW)
    x_TCHW = torch.where(bits[1], x_TCHW.flip(2), x_TCHW)
    return torch.where(bits[2], x_TCHW.flip(3), x_TCHW)


@dataclass(frozen=True)
class Augment:
    """The paper's augmentation: magnitudes from a Gaussian of mean 1, one of eight ways to lie.

    The paper does not give the ``deviation`` of the Gaussian; 0.02 is that of public re-implementations.
    """

    deviation: float = 0.02

    def __call__(self, x_T3HW: Tensor, generator: torch.Generator) -> Tensor:
        """Return the patches, changed."""
        count, device = len(x_T3HW), x_T3HW.device
        which_T = torch.randint(8, (count,), generator=generator, device=device)
        magnitude_T2 = 1 + self.deviation * torch.randn((count, 2), generator=generator, device=device)
        return restain(turn(x_T3HW, which_T), magnitude_T2)
