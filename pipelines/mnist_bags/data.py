"""MNIST -> bags of digits, positive where a 9 is among them.

Comes in: the four idx files, gzipped or not. Goes out: bags drawn from a seed. Half of them are positive. The
size of a bag is drawn first, so that it says nothing of the label: a positive bag's digits are drawn until a
9 is among them, a negative bag's from all digits but 9. The nines are the key patches.
"""

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.paper.bags import Bag
from wsi_mil.errors import FormatError

TARGET = 9
DEVIATION = {10: 2.0, 50: 10.0, 100: 20.0}
"""Deviation of the size of a bag, by its mean."""

_MAGIC = {1: 0x801, 3: 0x803}  # unsigned bytes, of so many dimensions


@dataclass(frozen=True, kw_only=True)
class Digits:
    """Images (N, 28, 28) uint8 and their digits (N,)."""

    images: NDArray[np.uint8]
    digits: NDArray[np.uint8]


def read(folder: Path, part: Literal["train", "t10k"]) -> Digits:
    """Return the training (train) or the test part (t10k) of MNIST.

    Raises:
        FileNotFoundError: a file is not there.
        FormatError: a file is no idx file, or not whole.
    """
    images = _idx(folder / f"{part}-images-idx3-ubyte", 3)
    digits = _idx(folder / f"{part}-labels-idx1-ubyte", 1)
    if len(images) != len(digits):
        raise FormatError(
            f"{folder}: {len(images)} images of {part} and {len(digits)} labels; download it again."
        )
    return Digits(images=images, digits=digits)


def draw(digits: Digits, count: int, mean: float, deviation: float, seed: list[int], name: str) -> list[Bag]:
    """Return ``count`` bags, by turns positive and negative, named NAME-0, NAME-1, ...

    Sizes are drawn from a normal distribution, rounded, and at least 1; digits with replacement. The first
    bags are the same whatever ``count`` is.
    """
    rng = np.random.default_rng(seed)
    is_target = digits.digits == TARGET
    others = np.flatnonzero(~is_target)
    bags = []
    for number in range(count):
        size = max(1, round(rng.normal(mean, deviation)))
        positive = number % 2 == 0
        if positive:
            drawn = rng.integers(len(is_target), size=size)
            while not is_target[drawn].any():
                drawn = rng.integers(len(is_target), size=size)
        else:
            drawn = rng.choice(others, size=size)
        bags.append(
            Bag(
                name=f"{name}-{number}", patches=digits.images[drawn][:, None], positive=positive,
                key_N=is_target[drawn],
            )
        )  # fmt: skip
    return bags


def _idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    packed = path.with_name(f"{path.name}.gz")
    if packed.is_file():
        content = gzip.decompress(packed.read_bytes())
    elif path.is_file():
        content = path.read_bytes()
    else:
        raise FileNotFoundError(
            f"{packed}: no such file (and none without .gz); wanted MNIST's four idx files"
        )
    start = 4 * (1 + dimensions)
    head = np.frombuffer(content[:start].ljust(start, b"\0"), ">u4")
    if head[0] != _MAGIC[dimensions]:
        raise FormatError(f"{path}: not an idx file of bytes in {dimensions} dimensions; download it again.")
    values = np.frombuffer(content[start:], np.uint8)
    if len(values) != int(np.prod(head[1:], dtype=np.int64)):
        raise FormatError(f"{path}: not whole; download it again.")
    return values.reshape(head[1:].tolist())
