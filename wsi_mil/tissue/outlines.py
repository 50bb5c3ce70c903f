"""A mask's outlines as polygons on the slide, and as GeoJSON that QuPath opens."""

import json
from typing import Any

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray


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
        polygon = shapely.Polygon(ring(contour), holes)
        if not polygon.is_valid:
            polygon = shapely.make_valid(polygon, method="structure", keep_collapsed=False)
        polygons += [part for part in shapely.get_parts(polygon) if not part.is_empty]
    return shapely.MultiPolygon(polygons)


def to_geojson(outlines: shapely.MultiPolygon) -> str:
    """Return the outlines as a GeoJSON FeatureCollection that QuPath opens as annotations."""
    features = [
        {
            "type": "Feature",
            "geometry": json.loads(shapely.to_geojson(_on_pixels(polygon))),
            "properties": {"objectType": "annotation", "classification": {"name": "Tissue"}},
        }
        for polygon in outlines.geoms
    ]
    return json.dumps({"type": "FeatureCollection", "features": features})


def _on_pixels(polygon: shapely.Polygon) -> shapely.Polygon:
    """Return a polygon with whole numbers for coordinates, and valid with them."""
    rounded = shapely.transform(polygon, np.rint)
    return rounded if rounded.is_valid else shapely.set_precision(polygon, 1)
