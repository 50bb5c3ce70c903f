"""Open a slide and read its pixels at a resolution, whatever the scanner: OpenSlide, else tiffslide.

``reading`` is the ``Slide``: its size, its microns per pixel and RGB pixels at any mpp. ``fingerprint`` tells
whether a file is still the one that was tiled.
"""

from wsi_mil.slide.fingerprint import bytes_on_disk, fingerprint
from wsi_mil.slide.reading import SUFFIXES, Reader, Slide, detect, dicom_series, open_slide

__all__ = [
    "SUFFIXES",
    "Reader",
    "Slide",
    "bytes_on_disk",
    "detect",
    "dicom_series",
    "fingerprint",
    "open_slide",
]
