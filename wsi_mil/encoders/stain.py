"""Stain normalisation of H&E patches, a whole batch at once on whatever device they are.

Each patch is normalised by its own statistics. A patch with too little stain has none, and passes unchanged:
glass stays glass. The references are published constants, pinned here.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

_LIGHT = 240.0  # transmitted light, as in the reference implementation
_BETA = 0.15  # optical density below which a pixel counts as glass
_MIN_STAINED = 0.01
"""Least part of a patch's pixels that must be stained for it to be normalised."""

# Macenko et al., "A method for normalizing histology slides for quantitative analysis", ISBI 2009. Stain
# vectors (haematoxylin, eosin; of RGB optical density) and 99th percentiles of concentration: the reference
# of Veta's implementation (mitkovetta/staining-normalization), which torchstain and others took over.
_MACENKO_STAINS = ((0.5626, 0.2159), (0.7201, 0.8012), (0.4062, 0.5581))
_MACENKO_MAX = (1.9705, 1.0308)

# Reinhard et al., "Color transfer between images", IEEE CG&A 2001, in l-alpha-beta. Mean and standard
# deviation of a region of the TCGA slide TCGA-A2-A3XS-DX1 (Amgad et al., Bioinformatics 2019), the standard
# of HistomicsTK.
_REINHARD_MEAN = (8.74108109, -0.12440419, 0.0444982)
_REINHARD_STD = (0.6135447, 0.10989545, 0.0286032)
_RGB_TO_LMS = ((0.3811, 0.5783, 0.0402), (0.1967, 0.7244, 0.0782), (0.0241, 0.1288, 0.8444))


class Stain(nn.Module, ABC):
    """Base: float32 arithmetic whatever autocast says, and patches without stain passed on unchanged."""

    def forward(self, patches_NCHW: Tensor) -> Tensor:
        """Return (N, 3, height, width) float32 of 0 to 255 for the same in uint8."""
        with torch.autocast(patches_NCHW.device.type, enabled=False):
            rgb_N3P = patches_NCHW.float().flatten(2)
            density_N3P = -torch.log((rgb_N3P + 1) / _LIGHT)
            stained_NP = (density_N3P >= _BETA).all(1)
            enough_N = stained_NP.float().mean(1) >= _MIN_STAINED
            changed_N3P = self.normalize(rgb_N3P, density_N3P, stained_NP)
            usable_N = enough_N & changed_N3P.isfinite().all(2).all(1)
            kept = torch.where(usable_N[:, None, None], changed_N3P.clamp(0, 255), rgb_N3P)
            return kept.view_as(patches_NCHW)

    @abstractmethod
    def normalize(self, rgb_N3P: Tensor, density_N3P: Tensor, stained_NP: Tensor) -> Tensor:
        """Return (N, 3, pixels); what is not finite marks a patch that cannot be normalised."""


class Macenko(Stain):
    """Unmix each patch into haematoxylin and eosin, and mix them again with the reference's vectors."""

    stains: Tensor
    largest: Tensor

    def __init__(self) -> None:
        """Take the reference."""
        super().__init__()
        self.register_buffer("stains", torch.tensor(_MACENKO_STAINS))
        self.register_buffer("largest", torch.tensor(_MACENKO_MAX))

    def normalize(self, rgb_N3P: Tensor, density_N3P: Tensor, stained_NP: Tensor) -> Tensor:
        """Return the patches in the reference's stains."""
        del rgb_N3P
        plane_N32 = _plane(density_N3P, stained_NP)
        along_NP, across_NP = torch.einsum("nck,ncp->knp", plane_N32, density_N3P).unbind(0)
        angle_NP = torch.atan2(across_NP, along_NP)
        low_N, high_N = _percentiles(angle_NP, stained_NP, (0.01, 0.99))
        first, second = (
            torch.einsum("nck,nk->nc", plane_N32, torch.stack([angle.cos(), angle.sin()], 1))
            for angle in (low_N, high_N)
        )
        # Haematoxylin takes more of the red light than eosin does.
        swap = (first[:, 0] > second[:, 0])[:, None]
        own_N32 = torch.stack([torch.where(swap, first, second), torch.where(swap, second, first)], 2)
        own_N23 = own_N32.mT
        gram_N22 = own_N23 @ own_N32
        solvable_N = _determinant(gram_N22) > 1e-4
        identity = torch.eye(2, device=gram_N22.device)
        gram_N22 = torch.where(solvable_N[:, None, None], gram_N22, identity)
        amounts_N2P = _inverse(gram_N22) @ own_N23 @ density_N3P
        everywhere = torch.ones_like(stained_NP)
        top_N2 = torch.stack(
            [_percentiles(each, everywhere, (0.99,))[0] for each in amounts_N2P.unbind(1)], 1
        )
        top_N2 = torch.where(solvable_N[:, None] & (top_N2 > 1e-3), top_N2, torch.nan)
        scaled_N2P = amounts_N2P * (self.largest / top_N2)[:, :, None]
        mixed_N3P: Tensor = _LIGHT * torch.exp(-(self.stains @ scaled_N2P))
        return mixed_N3P


class Reinhard(Stain):
    """Move the mean and spread of each patch's colours, in l-alpha-beta, to the reference's."""

    to_lms: Tensor
    to_lab: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        """Take the reference."""
        super().__init__()
        rotate = torch.tensor([[1.0, 1, 1], [1, 1, -2], [1, -1, 0]])
        self.register_buffer("to_lms", torch.tensor(_RGB_TO_LMS))
        self.register_buffer("to_lab", rotate / rotate.norm(dim=1, keepdim=True))
        self.register_buffer("mean", torch.tensor(_REINHARD_MEAN)[:, None])
        self.register_buffer("std", torch.tensor(_REINHARD_STD)[:, None])

    def normalize(self, rgb_N3P: Tensor, density_N3P: Tensor, stained_NP: Tensor) -> Tensor:
        """Return the patches in the reference's colours."""
        del density_N3P, stained_NP
        lab_N3P = self.to_lab @ torch.log(self.to_lms @ rgb_N3P.clamp(min=1))
        std_N31, mean_N31 = torch.std_mean(lab_N3P, dim=2, keepdim=True)
        std_N31 = torch.where(std_N31 > 1e-4, std_N31, torch.nan)
        moved_N3P = (lab_N3P - mean_N31) / std_N31 * self.std + self.mean
        # The rotation's rows are orthonormal: its transpose undoes it.
        rgb: Tensor = torch.linalg.inv(self.to_lms) @ torch.exp(self.to_lab.mT @ moved_N3P)
        return rgb


def stain_normalizer(name: str) -> Stain | None:
    """Return the normaliser of a name: macenko, reinhard, or None for none."""
    return {"macenko": Macenko, "reinhard": Reinhard}[name]() if name != "none" else None


def _plane(density_N3P: Tensor, stained_NP: Tensor) -> Tensor:
    """Return (N, 3, 2): the directions in which the stained pixels vary most, the second and the first."""
    weight_N1P = stained_NP[:, None].float()
    count_N11 = weight_N1P.sum(2, keepdim=True).clamp(min=2)
    mean_N31 = (density_N3P * weight_N1P).sum(2, keepdim=True) / count_N11
    centred = (density_N3P - mean_N31) * weight_N1P
    covariance_N33 = centred @ centred.mT / (count_N11 - 1)
    # Three by three: the CPU is quicker than a GPU's solver, and not every device has one.
    vectors_N33 = torch.linalg.eigh(covariance_N33.cpu()).eigenvectors.to(density_N3P.device)
    plane_N32 = vectors_N33[:, :, [2, 1]]
    # A solver may turn a vector round; stains are positive, so the first one has to be.
    sign_N12 = torch.where(plane_N32.sum(1, keepdim=True) < 0, -1.0, 1.0)
    oriented_N32: Tensor = plane_N32 * sign_N12
    return oriented_N32


def _percentiles(values_NP: Tensor, counted_NP: Tensor, parts: tuple[float, ...]) -> list[Tensor]:
    """Return for each part the (N,) value below which that part of the counted pixels lies (nearest one)."""
    ordered = values_NP.masked_fill(~counted_NP, torch.inf).sort(1).values
    last_N = (counted_NP.sum(1) - 1).clamp(min=0)
    return [ordered.gather(1, (last_N * part).round().long()[:, None])[:, 0] for part in parts]


def _determinant(m_N22: Tensor) -> Tensor:
    return m_N22[:, 0, 0] * m_N22[:, 1, 1] - m_N22[:, 0, 1] * m_N22[:, 1, 0]


def _inverse(m_N22: Tensor) -> Tensor:
    a, b, c, d = m_N22[:, 0, 0], m_N22[:, 0, 1], m_N22[:, 1, 0], m_N22[:, 1, 1]
    rows = torch.stack([torch.stack([d, -b], 1), torch.stack([-c, a], 1)], 1)
    return rows / _determinant(m_N22)[:, None, None]
