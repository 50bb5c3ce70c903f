"""UCSB Bio-Segmentation Benchmark, breast: 58 H&E fields of 896 x 768 -> bags of patches.

Comes in: a folder with the fields (.tif as they are downloaded, or .png), whose names say benign or
malignant. Goes out: a bag per field: the patches of a grid of 32 x 32 pixels, less those of which 75 % or
more is white; malignant is positive. Which patches are malignant nobody knows.
"""

from pathlib import Path

import cv2
import numpy as np

from pipelines.paper.bags import Bag, cut, grid, white_share
from wsi_mil.errors import FormatError

SIDE = 32
MOST_WHITE = 0.75
_SUFFIXES = (".tif", ".tiff", ".png")


def load(folder: Path) -> list[Bag]:
    """Return the bags, sorted by name.

    Raises:
        FileNotFoundError: the folder holds no field.
        FormatError: a field cannot be read, its name has no label, or all of it is white.
    """
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise FileNotFoundError(
            f"{folder}: holds no .tif or .png; wanted the 58 fields of the UCSB benchmark "
            "(pipelines/breast_cancer/README.md)"
        )
    return [_bag(path) for path in paths]


def _bag(path: Path) -> Bag:
    labels = [label for label in ("benign", "malignant") if label in path.stem.lower()]
    if len(labels) != 1:
        raise FormatError(f"{path}: the name of a field says benign or malignant; this one does not.")
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise FormatError(f"{path}: not an image that can be read; download it again.")
    pixels = cv2.cvtColor(image, cv2.COLOR_BGR2RGB).astype(np.uint8)
    corner_N2 = grid((pixels.shape[0], pixels.shape[1]), SIDE)
    patches = cut(pixels, corner_N2, SIDE)
    stays = white_share(patches) < MOST_WHITE
    if not stays.any():
        raise FormatError(f"{path}: {MOST_WHITE:.0%} or more of every patch is white; a bag needs one patch.")
    return Bag(
        name=path.stem, patches=patches[stays], positive=labels == ["malignant"], corner_N2=corner_N2[stays]
    )
