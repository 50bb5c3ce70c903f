"""Bags of patches, and how patches are cut from a field.

Comes in: a field (height, width, 3) uint8 and where its patches lie. Goes out: ``Bag``. It knows no data set.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WHITE = 0.9
"""Lightness (mean of the channels, 1 is white) from which a pixel is white. The paper gives no threshold;
this one is ours."""


@dataclass(frozen=True, kw_only=True)
class Bag:
    """One bag.

    ``patches`` is (N, channels, side, side) uint8. ``key_N`` says which patches make a bag positive; None
    where nobody knows. ``corner_N2`` holds the patches' top-left (x, y) in the field; None where
    there is none.
    """

    name: str
    patches: NDArray[np.uint8]
    positive: bool
    key_N: NDArray[np.bool_] | None = None
    corner_N2: NDArray[np.int64] | None = None


def codes(bags: Sequence[Bag]) -> NDArray[np.int64]:
    """Return the class of each bag: 0 negative, 1 positive."""
    return np.array([bag.positive for bag in bags], np.int64)


def digest(bags: Sequence[Bag]) -> str:
    """Return a short digest of names, labels and pixels: other data have another."""
    total = hashlib.sha256()
    for bag in bags:
        total.update(f"{bag.name} {bag.positive} {bag.patches.shape}".encode())
        total.update(np.ascontiguousarray(bag.patches).data)
    return total.hexdigest()[:16]


def cut(field: NDArray[np.uint8], corner_N2: NDArray[np.int64], side: int) -> NDArray[np.uint8]:
    """Return the patches (N, 3, side, side) whose top-left corners are (x, y).

    Where a patch reaches over the edge, the field is mirrored there (the edge's own pixels are not repeated).

    Raises:
        ValueError: a patch lies further outside than a mirror image can fill.
    """
    height, width = field.shape[:2]
    if len(corner_N2) and (corner_N2.min() <= -side or (corner_N2 >= (width, height)).any()):
        raise ValueError(f"a patch of {side} pixels lies wholly outside a field of {width} x {height}")
    padded = np.pad(field, ((side, side), (side, side), (0, 0)), mode="reflect")
    patches = [padded[y + side : y + 2 * side, x + side : x + 2 * side] for x, y in corner_N2.tolist()]
    stacked = np.stack(patches) if patches else np.empty((0, side, side, 3), np.uint8)
    return np.ascontiguousarray(stacked.transpose(0, 3, 1, 2))


def around(centre_N2: NDArray[np.float64], side: int) -> NDArray[np.int64]:
    """Return the corners of patches of an odd ``side``, the pixel nearest to each (x, y) in the middle."""
    return np.floor(centre_N2 + 0.5).astype(np.int64) - side // 2


def grid(shape_rc: tuple[int, int], side: int) -> NDArray[np.int64]:
    """Return the corners of all whole patches side by side, row by row."""
    y, x = np.mgrid[0 : shape_rc[0] // side, 0 : shape_rc[1] // side] * side
    return np.stack([x.ravel(), y.ravel()], axis=1).astype(np.int64)


def white_share(patches: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return which part of each patch's pixels is white: (N,)."""
    light = patches.mean(axis=1, dtype=np.float32)
    share: NDArray[np.float64] = (light >= WHITE * 255).mean(axis=(1, 2))
    return share
