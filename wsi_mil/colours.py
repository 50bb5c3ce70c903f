"""Which colours a heatmap's values have, wherever it is shown: overlay, report, viewer.

Comes in: the name of a quantity. Goes out: a colormap. It knows no picture and no value.
"""

from matplotlib import colormaps
from matplotlib.colors import Colormap, LinearSegmentedColormap

COLOURS = colormaps["viridis"]
"""Perceptually uniform and readable by the colour-blind; its green and yellow are unlike any H&E stain."""

SIGNED_COLOURS = LinearSegmentedColormap.from_list(
    "against-for", ["#08306b", "#2171b5", "#f7f7f7", "#e66101", "#7f2704"]
)
"""Blue against, white at 0 in the middle, orange for: readable by the colour-blind, unlike the stain."""

SIGNED = frozenset({"evidence"})
"""The quantities that have a sign: 0 is in the middle of their colours."""

FAINTEST = 1 / 3
"""Opacity of the lowest value, as a part of that of the highest: the dark violet at the low end of the
colours is close to haematoxylin, and laid on in full it would look like stain."""


def colours_for(quantity: str) -> Colormap:
    """Return the colours of a quantity, from its lowest value to its highest."""
    return SIGNED_COLOURS if quantity in SIGNED else COLOURS
