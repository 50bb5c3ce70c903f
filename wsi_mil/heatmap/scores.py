"""What a heatmap shows: the attention of a model over the stored features of one slide.

Comes in: features and a model. Goes out: numbers per patch. Nothing is embedded and nothing is drawn here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.stats
import torch
from numpy.typing import NDArray

from wsi_mil.errors import FormatError
from wsi_mil.models import MilModel


@dataclass(frozen=True)
class SlideScore:
    """``attention`` (N,) sums to 1 over the slide's patches; ``probabilities`` (C,) sum to 1."""

    attention: NDArray[np.float32]
    probabilities: NDArray[np.float32]


@torch.inference_mode()
def score_slide(features: NDArray[np.float16], models: MilModel | Sequence[MilModel]) -> SlideScore:
    """Return the attention and the class probabilities of one slide; of several models, their mean.

    ``features`` is (N, D), as stored.

    Raises:
        FormatError: the slide has no patches.
    """
    if not len(features):
        raise FormatError("the slide has 0 patches: there is nothing to attend to.")
    x_BND = torch.from_numpy(features.astype(np.float32))[None]
    mask_BN = torch.ones(x_BND.shape[:2], dtype=torch.bool)
    each = [model(x_BND, mask_BN) for model in ([models] if isinstance(models, MilModel) else models)]
    attention_N = torch.stack([one.attention_BN[0] for one in each]).mean(dim=0)
    probability_C = torch.stack([one.logits_BC[0].softmax(dim=0) for one in each]).mean(dim=0)
    return SlideScore(attention_N.numpy(), probability_C.numpy())


def scale(values: NDArray[np.float32], normalize: Literal["minmax", "percentile"]) -> NDArray[np.float32]:
    """Return the values on 0..1 for colouring.

    minmax: a'_k = (a_k - min a) / (max a - min a), as in Ilse, Tomczak & Welling 2018, figure 5. percentile:
    the share of the slide's other patches with a lower value, ties counted half. Where all values are equal
    every patch is 0.5: none stands out.
    """
    n, low, high = len(values), float(values.min()), float(values.max())
    if n == 1 or high == low:
        return np.full(n, 0.5, dtype=np.float32)
    if normalize == "minmax":
        return ((values.astype(np.float64) - low) / (high - low)).astype(np.float32)
    ranks: NDArray[np.float64] = scipy.stats.rankdata(values)
    return ((ranks - 1) / (n - 1)).astype(np.float32)
