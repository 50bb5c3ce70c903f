"""Colour normalisation of patches, once, before anything is learnt from them.

Comes in: patches as they were cut. Goes out: the same in the colours of a reference. The paper says that
every patch is normalised and not how; this is Reinhard's way, by the project's own normaliser: each patch by
its own mean and deviation in l-alpha-beta.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from wsi_mil.encoders.stain import stain_normalizer

_CHUNK = 4096


def reinhard(patches: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return patches (N, 3, side, side) in the reference's colours; without stain they stay as they are."""
    normalise = stain_normalizer("reinhard")
    assert normalise is not None
    parts = torch.from_numpy(patches).split(_CHUNK)
    with torch.inference_mode():
        return torch.cat([normalise(part).round().to(torch.uint8) for part in parts]).numpy()
