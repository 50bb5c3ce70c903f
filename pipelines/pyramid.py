"""Write an RGB array as a tiled, pyramidal TIFF that slide readers open like a scanner's file.

Comes in: an image in memory and its microns per pixel. Goes out: one file, either in Aperio's style
(``.svs``: a description that carries the mpp, a stripped thumbnail as second page) or a generic pyramidal
TIFF (``.tiff``: the mpp in the resolution tags). It knows nothing of ``wsi_mil``.
"""

from pathlib import Path

import cv2
import numpy as np
import tifffile

MICRONS_PER_CM = 10_000


def write_pyramid(
    path: Path,
    image: np.ndarray,
    mpp: float | None,
    *,
    block: int = 256,
    factor: int = 4,
    min_side: int = 256,
    quality: int = 85,
    compression: str = "jpeg",
) -> None:
    """Write ``image`` (height, width, 3) uint8 to ``path``; the suffix (.svs or .tif, .tiff) picks the style.

    Levels shrink by ``factor`` (area averaging) until the next one would have a side below ``min_side``.
    ``mpp`` None writes a file that does not say its resolution. ``compression``: jpeg (4:2:0 for .tiff,
    4:2:2 for .svs, as scanners do), lzw, deflate, none or webp.
    """
    aperio = path.suffix == ".svs"
    options: dict[str, object] = {
        "photometric": "rgb",  # tifffile stores JPEG as YCbCr
        "tile": (block, block),
        "compression": None if compression == "none" else compression,
        "metadata": None,
        "software": "wsi-mil synthetic",
    }
    if compression == "jpeg":
        options |= {"compressionargs": {"level": quality}, "subsampling": (2, 1) if aperio else (2, 2)}

    levels = [image]
    while min(levels[-1].shape[:2]) // factor >= min_side:
        height, width = (side // factor for side in levels[-1].shape[:2])
        levels.append(cv2.resize(levels[-1], (width, height), interpolation=cv2.INTER_AREA))

    with tifffile.TiffWriter(path, bigtiff=False) as tiff:
        for index, level in enumerate(levels):
            height, width = level.shape[:2]
            extra: dict[str, object] = {}
            if aperio:
                extra["description"] = _aperio_description(level, image, mpp, block, index)
            elif mpp is not None:
                per_cm = MICRONS_PER_CM / (mpp * image.shape[1] / width)
                extra |= {"resolution": (per_cm, per_cm), "resolutionunit": "CENTIMETER"}
            tiff.write(level, subfiletype=int(index > 0 and not aperio), **options, **extra)  # type: ignore[arg-type]
            if aperio and index == 0:
                scale = 512 / max(image.shape[:2])
                thumbnail = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
                tiff.write(
                    thumbnail, photometric="rgb", compression="jpeg", rowsperstrip=16, metadata=None,
                    description=f"Aperio Image Library v12.0.0\r\n{width}x{height} -> thumbnail",
                )  # fmt: skip


def _aperio_description(
    level: np.ndarray, image: np.ndarray, mpp: float | None, block: int, index: int
) -> str:
    height, width = level.shape[:2]
    full = f"{image.shape[1]}x{image.shape[0]}"
    size = f"{full} [0,0 {full}] ({block}x{block})" + (f" -> {width}x{height}" if index else "")
    resolution = "" if mpp is None else f"|AppMag = {round(10 / mpp)}|MPP = {mpp:g}"
    return f"Aperio Image Library v12.0.0\r\n{size} JPEG/RGB Q=85{resolution}"
