"""Some of many patches, evenly over the tissue: a walk that passes every place, and a stop at equal steps."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

_ORDER = 16  # bits of a coordinate on the curve


def sample(
    cells: NDArray[np.int64], count: int, how: Literal["spatial", "random"], seed: int
) -> NDArray[np.int64]:
    """Return the rows (sorted) of at most ``count`` of the patches at (row, column) ``cells`` (N, 2).

    ``spatial`` walks along Hilbert's curve, on which neighbours stay together, and takes one patch at random
    from each of ``count`` equal stretches. The same seed takes the same patches.
    """
    if len(cells) <= count:
        return np.arange(len(cells))
    rng = np.random.default_rng(seed)
    if how == "random":
        return np.sort(rng.choice(len(cells), count, replace=False))
    walk = np.argsort(hilbert(cells), kind="stable")
    edges = np.linspace(0, len(cells), count + 1)
    stops = np.floor(edges[:-1] + rng.random(count) * np.diff(edges)).astype(np.int64)
    # A stretch is at least one patch long, so that no patch is taken twice, but for rounding at its ends.
    stops = np.maximum.accumulate(np.maximum(stops, np.arange(count)))
    stops = np.minimum(_distinct(stops), len(cells) - count + np.arange(count))
    return np.sort(walk[stops])


def hilbert(cells: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how far along Hilbert's curve (1891) each (row, column) lies; 0 to 65,535 either way."""
    y, x = cells[:, 0].copy(), cells[:, 1].copy()
    distance = np.zeros(len(cells), np.int64)
    for bit in range(_ORDER - 1, -1, -1):
        side = 1 << bit
        right, lower = (x & side) > 0, (y & side) > 0
        distance += side * side * ((3 * right) ^ lower)
        flip = right & ~lower
        turn = ~lower
        x = np.where(flip, side - 1 - (x & (side - 1)), x & (side - 1))
        y = np.where(flip, side - 1 - (y & (side - 1)), y & (side - 1))
        x, y = np.where(turn, y, x), np.where(turn, x, y)
    return distance


def _distinct(stops: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return sorted whole numbers, raised where one stands there twice."""
    steps = np.arange(len(stops))
    return np.asarray(np.maximum.accumulate(stops - steps) + steps)
