"""Open a slide and read its pixels at a resolution, whatever the scanner: OpenSlide, else tiffslide.

``opening`` opens a file. ``reading`` is the ``Slide``: its size, its microns per pixel and RGB pixels at any
mpp. ``resolution`` states which source of the microns per pixel counts, ``colour`` brings colours to sRGB,
``vendors`` knows what single vendors write. ``fingerprint`` tells whether a file is still the one that was
tiled.
"""

from wsi_mil.slide.fingerprint import bytes_on_disk, fingerprint, has_fingerprint
from wsi_mil.slide.opening import SUFFIXES, detect, dicom_series, open_slide
from wsi_mil.slide.reading import Reader, ReadLevel, Slide
from wsi_mil.slide.resolution import Resolution, Statement, decide

__all__ = [
    "SUFFIXES",
    "ReadLevel",
    "Reader",
    "Resolution",
    "Slide",
    "Statement",
    "bytes_on_disk",
    "decide",
    "detect",
    "dicom_series",
    "fingerprint",
    "has_fingerprint",
    "open_slide",
]
