"""Thumbnail in, tissue mask and outlines out.

Works in microns, so that the result does not depend on the slide's levels. It knows nothing of slides,
patches or runs. ``find`` chooses between one module per kind of tissue: ``otsu`` (coloured stains), ``hed``
(faint ones), ``fluorescence``; ``pen`` finds ink. ``annotations`` reads what a person drew, ``segmenter``
runs a model that the user brings. ``mask`` is what all share; ``outlines`` makes polygons.
"""

from wsi_mil.tissue.annotations import Annotations, drawn_mask, read_annotations
from wsi_mil.tissue.find import Kind, find_tissue
from wsi_mil.tissue.mask import Mask, Tissue, clean
from wsi_mil.tissue.outlines import outlines_l0, to_geojson
from wsi_mil.tissue.pen import find_ink
from wsi_mil.tissue.segmenter import Segmenter, load_segmenter

__all__ = [
    "Annotations",
    "Kind",
    "Mask",
    "Segmenter",
    "Tissue",
    "clean",
    "drawn_mask",
    "find_ink",
    "find_tissue",
    "load_segmenter",
    "outlines_l0",
    "read_annotations",
    "to_geojson",
]
