"""CRCHistoPhenotypes, "Classification": 100 H&E fields of the colon -> bags of nuclei.

Comes in: FOLDER/img<K>/ with img<K>.bmp (or .png) and img<K>_<type>.mat for four types of nuclei, as it is
downloaded. Goes out: a bag per field: a patch of 27 x 27 pixels around every marked nucleus, positive where
one of them is epithelial; the epithelial ones are its key patches.
"""

import re
from pathlib import Path

import cv2
import numpy as np
import scipy.io
from numpy.typing import NDArray

from pipelines.paper.bags import Bag, around, cut
from wsi_mil.errors import FormatError

SIDE = 27
KEY = "epithelial"
TYPES = (KEY, "fibroblast", "inflammatory", "others")


def load(folder: Path) -> list[Bag]:
    """Return the bags, by the number of their field.

    Raises:
        FileNotFoundError: no fields, or a file of a field is not there.
        FormatError: a file holds something else than it should.
    """
    numbers = {
        int(match[1]): path
        for path in folder.glob("img*/")
        if (match := re.fullmatch(r"img(\d+)", path.name))
    }
    if not numbers:
        raise FileNotFoundError(
            f"{folder}: holds no folder img1, img2, ...; wanted the unpacked 'Classification' folder of "
            "CRCHistoPhenotypes (pipelines/colon_cancer/README.md)"
        )
    return [read_bag(numbers[number]) for number in sorted(numbers)]


def field(folder: Path) -> NDArray[np.uint8]:
    """Return the field (height, width, 3) in RGB of one img<K> folder."""
    for suffix in (".bmp", ".png"):
        path = folder / f"{folder.name}{suffix}"
        if path.is_file():
            image = cv2.imread(str(path), cv2.IMREAD_COLOR)
            if image is None:
                raise FormatError(f"{path}: not an image that can be read; download it again.")
            return cv2.cvtColor(image, cv2.COLOR_BGR2RGB).astype(np.uint8)
    raise FileNotFoundError(f"{folder / folder.name}.bmp: no such file (and no .png)")


def nuclei(folder: Path, kind: str) -> NDArray[np.float64]:
    """Return the (x, y) of the nuclei of a type: (N, 2), pixels, the first of which is 0."""
    path = folder / f"{folder.name}_{kind}.mat"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; each field has one for {', '.join(TYPES)}")
    found = scipy.io.loadmat(path).get("detection")
    if found is None or (found.size and (found.ndim != 2 or found.shape[1] != 2)):
        raise FormatError(f"{path}: wanted a variable 'detection' of (N, 2) x and y.")
    # MATLAB counts pixels from 1.
    centres: NDArray[np.float64] = found.reshape(-1, 2).astype(np.float64) - 1
    return centres


def read_bag(folder: Path) -> Bag:
    """Return the bag of one img<K> folder; raises what ``load`` raises."""
    pixels = field(folder)
    each = {kind: nuclei(folder, kind) for kind in TYPES}
    centre_N2 = np.clip(np.concatenate(list(each.values())), 0, np.array(pixels.shape[1::-1]) - 1)
    if not len(centre_N2):
        raise FormatError(f"{folder}: no nucleus is marked in this field; a bag needs one patch.")
    key_N = np.repeat([kind == KEY for kind in TYPES], [len(found) for found in each.values()])
    corner_N2 = around(centre_N2, SIDE)
    return Bag(
        name=folder.name, patches=cut(pixels, corner_N2, SIDE), positive=bool(key_N.any()), key_N=key_N,
        corner_N2=corner_N2,
    )  # fmt: skip
