"""Thumbnail in, tissue mask and outlines out.

Works in microns, so that the result does not depend on the slide's levels. H&E and other coloured stains on
bright glass; it knows nothing of slides, patches or files.
"""

import json
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray

# Chroma is max(R, G, B) - min(R, G, B): 0 for every grey, so glass, black padding and shadows are out.
# Otsu's threshold is trusted between these bounds: below, a blank slide would be cut in its noise; above, a
# dark stain would hide pale tissue.
CHROMA_MIN, CHROMA_MAX = 12, 20
_BLUR_UM = 12.0
_CLOSE_UM = 24.0


@dataclass(frozen=True)
class Tissue:
    """``mask`` (height, width) uint8, 255 where there is tissue, on the raster of the thumbnail.

    ``threshold`` is the chroma above which a pixel counted as tissue.
    """

    mask: NDArray[np.uint8]
    threshold: int

    @property
    def fraction(self) -> float:
        """Part of the slide's area that is tissue."""
        return float(np.mean(self.mask > 0))


def find_tissue(
    thumbnail: NDArray[np.uint8], mpp: float, *, min_area_um2: float, max_hole_um2: float
) -> Tissue:
    """Return the tissue in a thumbnail (height, width, 3) of ``mpp`` microns per pixel.

    Chroma, a light blur, Otsu's threshold (Otsu 1979) kept within bounds, closing; then pieces below
    ``min_area_um2`` are dropped and holes below ``max_hole_um2`` are filled.
    """
    # Blur colours, not chroma: the noise of grey pixels is colourless on average, and its chroma is not.
    blurred = np.asarray(cv2.GaussianBlur(thumbnail, (0, 0), sigmaX=max(_BLUR_UM / mpp / 2, 0.5)))
    chroma = (blurred.max(axis=2) - blurred.min(axis=2)).astype(np.uint8)
    otsu, _ = cv2.threshold(chroma, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    threshold = int(np.clip(otsu, CHROMA_MIN, CHROMA_MAX))
    mask = np.where(chroma > threshold, 255, 0).astype(np.uint8)
    side = 2 * round(_CLOSE_UM / mpp / 2) + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    closed = np.asarray(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, disc), dtype=np.uint8)
    mask = _drop_small(closed, min_area_um2 / mpp**2)
    mask = 255 - _drop_small(255 - mask, max_hole_um2 / mpp**2, connectivity=4, keep_at_border=True)
    return Tissue(mask=mask, threshold=threshold)


def outlines_l0(mask: NDArray[np.uint8], width_l0: int, height_l0: int) -> shapely.MultiPolygon:
    """Return the mask's outlines, holes cut out, as polygons in level-0 (x, y)."""
    # One pixel of margin, so that tissue at the border closes; contours run through pixel centres.
    padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    contours, hierarchy = cv2.findContours(padded, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    scale = np.array([width_l0 / mask.shape[1], height_l0 / mask.shape[0]])

    def ring(contour: NDArray[Any]) -> NDArray[np.float64]:
        points: NDArray[np.float64] = (contour[:, 0].astype(np.float64) - 0.5) * scale
        return points

    polygons = []
    for index, contour in enumerate(contours):
        if hierarchy[0][index][3] >= 0 or len(contour) < 3:
            continue  # a hole (taken up with its outline), or a speck with no area
        holes, child = [], hierarchy[0][index][2]
        while child >= 0:
            if len(contours[child]) >= 3:
                holes.append(ring(contours[child]))
            child = hierarchy[0][child][0]
        # Contours touch themselves where tissue is one pixel wide; "structure" keeps areas and drops lines.
        polygon = shapely.make_valid(
            shapely.Polygon(ring(contour), holes), method="structure", keep_collapsed=False
        )
        polygons += [part for part in shapely.get_parts(polygon) if not part.is_empty]
    return shapely.MultiPolygon(polygons)


def to_geojson(outlines: shapely.MultiPolygon) -> str:
    """Return the outlines as a GeoJSON FeatureCollection that QuPath opens as annotations."""
    features = [
        {
            "type": "Feature",
            "geometry": json.loads(shapely.to_geojson(shapely.set_precision(polygon, 1))),
            "properties": {"objectType": "annotation", "classification": {"name": "Tissue"}},
        }
        for polygon in outlines.geoms
    ]
    return json.dumps({"type": "FeatureCollection", "features": features})


def _drop_small(
    mask: NDArray[np.uint8], min_pixels: float, connectivity: int = 8, keep_at_border: bool = False
) -> NDArray[np.uint8]:
    """Return the mask without its connected pieces of fewer than ``min_pixels`` pixels."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=connectivity)
    keep = stats[:, cv2.CC_STAT_AREA] >= min_pixels
    if keep_at_border:  # a bay that opens to the slide's border is background, however small
        border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
        keep[np.unique(border)] = True
    keep[0] = False
    return np.where(keep[labels], np.uint8(255), np.uint8(0))
