"""The picture of a slide with its tissue and patches."""

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray

from wsi_mil import geometry, tissue
from wsi_mil.tile.grid import Tiling

_OUTLINE_RGB, _PATCH_RGB = (0, 110, 60), (20, 60, 200)


def draw_preview(tiling: Tiling) -> NDArray[np.uint8]:
    """Return the picture of the whole slide with the tissue outlined and the patches framed."""
    height, width = tiling.picture.shape[:2]
    canvas = tiling.picture.copy()
    plan = tiling.patches.geometry
    boxes = geometry.boxes_rc(tiling.patches.coords, plan, (height, width))
    shade = canvas.copy()
    for top, left, bottom, right in np.rint(boxes).astype(int).tolist():
        cv2.rectangle(shade, (left, top), (right - 1, bottom - 1), _PATCH_RGB, thickness=1)
    canvas = np.asarray(cv2.addWeighted(shade, 0.6, canvas, 0.4, 0), dtype=np.uint8)
    outlines = tissue.outlines_l0(tiling.tissue.mask, width, height)
    for polygon in outlines.geoms:
        for ring in (polygon.exterior, *polygon.interiors):
            points = np.rint(shapely.get_coordinates(ring)).astype(np.int32)
            cv2.polylines(canvas, [points], isClosed=True, color=_OUTLINE_RGB, thickness=2)
    return canvas
