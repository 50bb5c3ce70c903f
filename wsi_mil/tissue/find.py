"""Thumbnail in, tissue out: which way of finding it, and what is done to every mask."""

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_mil.tissue.fluorescence import by_light, is_dark
from wsi_mil.tissue.hed import by_density
from wsi_mil.tissue.mask import Mask, Tissue, above, clean, disc
from wsi_mil.tissue.otsu import by_otsu
from wsi_mil.tissue.pen import find_ink, without_halo

Kind = Literal["auto", "otsu", "hed", "fluorescence"]
_FAINT, _EDGE_UM = 0.1, 40.0  # auto takes the more sensitive way where it finds a tenth more, off the edges


def find_tissue(
    thumbnail: NDArray[np.uint8],
    mpp: float,
    *,
    min_area_um2: float,
    max_hole_um2: float,
    closing_um: float = 12.0,
    kind: Kind = "auto",
) -> Tissue:
    """Return the tissue in a thumbnail (height, width, 3) of ``mpp`` microns per pixel.

    ``auto`` is fluorescence where a slide is light on black; else otsu, or hed where that finds a tenth more
    (faint counterstain). Gaps below twice ``closing_um`` are closed; then pieces below
    ``min_area_um2`` are dropped and holes below ``max_hole_um2`` are filled. The same picture gives the same
    mask.
    """

    def done(found: tuple[Mask, int], name: str) -> Tissue:
        mask = clean(
            without_halo(found[0], ink, mpp),
            mpp,
            min_area_um2=min_area_um2,
            max_hole_um2=max_hole_um2,
            closing_um=closing_um,
        )
        return Tissue(mask=mask & ~ink, threshold=found[1], kind=name, pen=ink)

    if kind == "fluorescence" or (kind == "auto" and is_dark(thumbnail)):
        ink = np.zeros(thumbnail.shape[:2], np.uint8)
        return done(by_light(thumbnail, mpp), "fluorescence")
    ink = find_ink(thumbnail, mpp)
    if kind == "hed":
        return done(by_density(thumbnail, mpp, ink), "hed")
    tissue = done(by_otsu(thumbnail, mpp, ink), "otsu")
    if kind == "auto":
        # Faint thresholds widen every edge; what lies beyond is tissue that Otsu's threshold passed over.
        most = _FAINT * cv2.countNonZero(tissue.mask)
        small, its_ink, its_mask = (_halved(each) for each in (thumbnail, ink, tissue.mask))
        if 4 * _beyond(small, its_ink, its_mask, 2 * mpp) > most / 4:  # worth a closer look
            faint = done(by_density(thumbnail, mpp, ink), "hed")
            near = np.asarray(cv2.dilate(tissue.mask, disc(_EDGE_UM / mpp)), dtype=np.uint8)
            if cv2.countNonZero(faint.mask & ~near) > most:
                return faint
    return tissue


def _beyond(thumbnail: NDArray[np.uint8], ink: Mask, mask: Mask, mpp: float) -> int:
    """Return how many pixels of stain lie off the edges of a mask, before any gap is closed."""
    near = np.asarray(cv2.dilate(mask, disc(_EDGE_UM / mpp)), dtype=np.uint8)
    return cv2.countNonZero(by_density(thumbnail, mpp, ink)[0] & ~near)


def _halved(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a picture of half the size, colours averaged; a mask is set where any of its pixels is."""
    size = max(1, picture.shape[1] // 2), max(1, picture.shape[0] // 2)
    small = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    return small if picture.ndim == 3 else above(small, 0)
