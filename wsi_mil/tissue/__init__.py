"""Thumbnail in, tissue mask and outlines out.

Works in microns, so that the result does not depend on the slide's levels. It knows nothing of slides,
patches or runs. ``otsu`` finds tissue in coloured stains on bright glass; ``mask`` is what all share;
``outlines`` makes polygons of a mask.
"""

from wsi_mil.tissue.mask import Tissue
from wsi_mil.tissue.otsu import find_tissue
from wsi_mil.tissue.outlines import outlines_l0, to_geojson

__all__ = ["Tissue", "find_tissue", "outlines_l0", "to_geojson"]
