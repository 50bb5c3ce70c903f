"""What files of single vendors say of themselves, and where they are wrong.

Comes in: an open handle of a reader, or the properties that it found. Goes out: facts of a slide. Pixels are
read elsewhere.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import ImageCms

from wsi_mil.config import Location

_TAGS = ("XResolution", "YResolution")
_TRANSFER_SYNTAXES = {
    "1.2.840.10008.1.2": "none",
    "1.2.840.10008.1.2.1": "none",
    "1.2.840.10008.1.2.1.99": "deflate",
    "1.2.840.10008.1.2.4.50": "JPEG",
    "1.2.840.10008.1.2.4.51": "JPEG",
    "1.2.840.10008.1.2.4.57": "JPEG",
    "1.2.840.10008.1.2.4.70": "JPEG",
    "1.2.840.10008.1.2.4.80": "JPEG-LS",
    "1.2.840.10008.1.2.4.81": "JPEG-LS",
    "1.2.840.10008.1.2.4.90": "JPEG 2000",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
    "1.2.840.10008.1.2.4.201": "HTJ2K",
    "1.2.840.10008.1.2.4.202": "HTJ2K",
    "1.2.840.10008.1.2.4.203": "HTJ2K",
    "1.2.840.10008.1.2.5": "RLE",
}


def properties(handle: Any, reader: str) -> dict[str, Any]:
    """Return the properties of a handle.

    Through tiffslide also the resolution tags, which it leaves out where a vendor's key says the same.
    """
    found = dict(handle.properties)
    if reader != "tiffslide" or "tiff.XResolution" in found:
        return found
    tags = getattr(handle.ts_tifffile.pages[0], "tags", {})
    if all(name in tags for name in (*_TAGS, "ResolutionUnit")):
        found["tiff.ResolutionUnit"] = getattr(tags["ResolutionUnit"].value, "name", "")
        for name in _TAGS:
            numerator, denominator = tags[name].value
            found[f"tiff.{name}"] = numerator / denominator if denominator else 0.0
    return found


def profile(handle: Any) -> ImageCms.ImageCmsProfile | None:
    """Return the ICC profile in a slide's file; None where there is none, or it is damaged."""
    try:
        found: ImageCms.ImageCmsProfile | None = handle.color_profile
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    return found


def objective(properties: Mapping[str, Any], reader: str) -> float | None:
    """Return the nominal magnification of the objective, or None where the file does not say it."""
    text = str(properties.get(f"{reader}.objective-power") or "")
    try:
        return float(text)
    except ValueError:
        return None


def bounds(properties: Mapping[str, Any], reader: str) -> tuple[int, int, int, int] | None:
    """Return level-0 (x, y, width, height) of what was scanned, or None where the file does not say it."""
    names = ("x", "y", "width", "height")
    found = [properties.get(f"{reader}.bounds-{name}") for name in names]
    try:
        x, y, width, height = (int(float(str(each))) for each in found)
    except ValueError:
        return None
    return x, y, width, height


def block_sizes(properties: Mapping[str, Any], reader: str, levels: int) -> list[tuple[int, int]]:
    """Return (width, height) of each level's blocks; (0, 0) where the reader does not say it."""
    names = [
        [f"{reader}.level[{level}].tile-{side}" for side in ("width", "height")] for level in range(levels)
    ]
    sizes = [tuple(int(properties.get(name) or 0) for name in pair) for pair in names]
    return [(width, height) for width, height in sizes]


def compression(properties: Mapping[str, Any]) -> str:
    """Return how pixels are compressed where the properties say it (DICOM, MIRAX); else ""."""
    syntax = str(properties.get("dicom.TransferSyntaxUID") or "")
    mirax = str(properties.get("mirax.LAYER_0_LEVEL_0_SECTION.IMAGE_FORMAT") or "")
    return _TRANSFER_SYNTAXES.get(syntax, syntax) or mirax


def is_mislabelled_ycbcr(properties: Mapping[str, Any], path: Location) -> bool:
    """Tell whether a DICOM's JPEG frames are YCbCr although its header says RGB.

    OpenSlide follows the header, so the colours come out wrong. Bio-Formats' converter writes such files
    (libdicom#80). A JFIF marker settles it: the JFIF standard allows YCbCr and grey only.
    """
    jpeg_baseline = "1.2.840.10008.1.2.4.50"
    if (
        properties.get("dicom.PhotometricInterpretation") != "RGB"
        or properties.get("dicom.TransferSyntaxUID") != jpeg_baseline
    ):
        return False
    with Path(path).open("rb") as file:
        head = file.read(4 << 20)
    start = head.find(b"\xff\xd8\xff")
    return (
        start >= 0 and head[start + 2 : start + 4] == b"\xff\xe0" and head[start + 6 : start + 10] == b"JFIF"
    )
