"""Tissue as a person drew it: GeoJSON of QuPath (or of our own) in, mask out.

Polygons with holes count, wherever they came from; overlapping ones are joined. Points and lines have no area
and are an error; detections, cells and tiles are no annotations and are passed over.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import shapely

from wsi_mil.errors import FormatError
from wsi_mil.tissue.mask import Mask

_ON_EDGE_L0 = 1.0  # coordinates in files are rounded to whole pixels
_NO_ANNOTATIONS = {"detection", "cell", "tile", "cellobject", "tileobject"}


@dataclass(frozen=True)
class Annotations:
    """What a file of annotations holds: ``polygons`` in level-0 (x, y) of the classes asked for.

    ``classes`` are all that the file has, with the number of their annotations; '' is no class.
    """

    polygons: list[shapely.Polygon]
    classes: dict[str, int]


def read_annotations(path: Path, classes: Collection[str] = ()) -> Annotations:
    """Read the polygons of the annotations of ``classes`` (all, where none is named).

    Raises:
        FormatError: no GeoJSON, or an annotation without an area.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise FormatError(f"{path}: not JSON ({error}); export GeoJSON from QuPath again.") from error
    features = content.get("features") if isinstance(content, dict) else content
    if isinstance(content, dict) and content.get("type") == "Feature":
        features = [content]
    if not isinstance(features, list):
        raise FormatError(f"{path}: wanted a GeoJSON FeatureCollection of annotations, as QuPath exports it.")
    polygons: list[shapely.Polygon] = []
    found: dict[str, int] = {}
    for number, feature in enumerate(features):
        try:
            properties = feature.get("properties") or {}
            if str(properties.get("objectType", "annotation")).lower() in _NO_ANNOTATIONS:
                continue
            name = str((properties.get("classification") or {}).get("name", ""))
            found[name] = found.get(name, 0) + 1
            if not classes or name in classes:
                polygons += _polygons(feature["geometry"])
        except (KeyError, TypeError, AttributeError, ValueError, shapely.errors.ShapelyError) as error:
            raise FormatError(f"{path}: annotation {number}: {error}; wanted a polygon.") from error
    return Annotations(polygons, found)


def drawn_mask(polygons: list[shapely.Polygon], shape_rc: tuple[int, int], size_l0: tuple[int, int]) -> Mask:
    """Return the mask of polygons in level-0 (x, y) on a raster of the whole slide.

    ``size_l0`` is the slide's (width, height). A pixel whose centre lies in a polygon or on its edge counts:
    the outlines of a mask (``outlines_l0``) give that mask again.
    """
    mask = np.zeros(shape_rc, np.uint8)
    scale = np.array([shape_rc[1] / size_l0[0], shape_rc[0] / size_l0[1]])
    for polygon in polygons:
        # 1/256 of a pixel, and the half pixel by which a centre lies off its corner.
        rings = [
            np.rint((shapely.get_coordinates(ring) * scale - 0.5) * 256).astype(np.int32)
            for ring in (polygon.exterior, *polygon.interiors)
        ]
        (left, top), (right, bottom) = rings[0].min(axis=0) >> 8, (rings[0].max(axis=0) >> 8) + 2
        left, top = max(int(left), 0), max(int(top), 0)
        right, bottom = min(int(right), shape_rc[1]), min(int(bottom), shape_rc[0])
        if right <= left or bottom <= top:
            continue  # wholly outside of the slide
        part = np.zeros((bottom - top, right - left), np.uint8)
        shifted = [ring - (left * 256, top * 256) for ring in rings]
        cv2.fillPoly(part, shifted, 255, shift=8)
        # OpenCV fills whatever an edge touches; there the centre itself is asked for.
        edge = np.zeros_like(part)
        cv2.polylines(edge, shifted, isClosed=True, color=255, shift=8)
        rows, columns = np.nonzero(edge)
        centres = shapely.points((np.stack([columns + left, rows + top], axis=1) + 0.5) / scale)
        shapely.prepare(polygon)
        part[rows, columns] = np.where(shapely.dwithin(centres, polygon, _ON_EDGE_L0), 255, 0)
        mask[top:bottom, left:right] |= part
    return mask


def _polygons(geometry: dict[str, Any]) -> list[shapely.Polygon]:
    """Return the parts of a geometry that have an area, made valid; raises ValueError where it has none."""
    shape = shapely.from_geojson(json.dumps(geometry))
    if shape.area == 0 and not shape.is_empty:
        raise ValueError(f"a {geometry.get('type')} has no area")
    valid = shapely.make_valid(shape, method="structure", keep_collapsed=False)
    return [part for part in shapely.get_parts(valid) if isinstance(part, shapely.Polygon)]
