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
from wsi_mil.models import MilModel, Task


@dataclass(frozen=True)
class SlideScore:
    """What a model says of a slide: ``prediction`` (P,) as its task has it, and the attention behind it.

    ``attention_CN`` has a row for each output; ``attention`` (N,) is the row that is drawn: that of the
    positive of two classes, of the most probable of more. It sums to 1 over the slide's patches, but for
    instance-based models, whose scores of the patches it holds.
    """

    prediction: NDArray[np.float64]
    attention_CN: NDArray[np.float32]
    drawn: int

    @property
    def attention(self) -> NDArray[np.float32]:
        """The attention (N,) of the output that is drawn."""
        attention: NDArray[np.float32] = self.attention_CN[self.drawn]
        return attention


@torch.inference_mode()
def score_slide(features: NDArray[np.float16], models: MilModel | Sequence[MilModel]) -> SlideScore:
    """Return the attention and the prediction of one slide; of several models, their mean.

    ``features`` is (N, D), as stored, and may be a memory map.

    Raises:
        FormatError: the slide has no patches.
    """
    if not len(features):
        raise FormatError("the slide has 0 patches: there is nothing to attend to.")
    several = [models] if isinstance(models, MilModel) else models
    each = [model.bag(features) for model in several]
    attention_CN = torch.stack([one.attention_BCN[0] for one in each]).mean(dim=0).numpy()
    prediction = np.mean(
        [model.task.predict(one.logits_BC)[0] for model, one in zip(several, each, strict=True)], axis=0
    )
    return SlideScore(prediction, attention_CN, _drawn(several[0].task, prediction))


def _drawn(task: Task, prediction: NDArray[np.float64]) -> int:
    """Return which output's attention is drawn."""
    if task.kind == "classification":
        return 1 if len(prediction) == 2 else int(prediction.argmax())
    return int(prediction.argmax()) if task.kind == "multilabel" else 0


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
