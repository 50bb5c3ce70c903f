"""What a heatmap shows: what a model says of the stored features of one slide, patch by patch.

Comes in: features and a model. Goes out: numbers per patch. Nothing is embedded and nothing is drawn here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.stats
import torch
from numpy.typing import NDArray

from wsi_mil import models
from wsi_mil.config.heatmap import Normalize
from wsi_mil.errors import ConfigError, FormatError
from wsi_mil.models import MilModel, Task


@dataclass(frozen=True)
class SlideScore:
    """What a model says of a slide: ``prediction`` (P,) as its task has it, and what is behind it.

    ``values`` has (C, N) float32 for each quantity that the model has, a row for each of ``outputs``;
    ``missing`` says for each other quantity why not. Attention sums to 1 over the slide's patches, but for
    instance-based models, whose scores of the patches it holds. Evidence and ``bias`` (C,) sum to ``logit``
    (C,), the mean of the members' and folds' logits (``models.evidence``); they are empty where there is no
    evidence. ``drawn`` is the row to draw: the positive of two classes, the most probable of more.
    """

    prediction: NDArray[np.float64]
    values: dict[str, NDArray[np.float32]]
    missing: dict[str, str]
    outputs: tuple[str, ...]
    drawn: int
    bias: NDArray[np.float64]
    logit: NDArray[np.float64]

    @property
    def attention(self) -> NDArray[np.float32]:
        """The attention (N,) of the output that is drawn."""
        attention: NDArray[np.float32] = self.values["attention"][self.drawn]
        return attention


def score_slide(
    features: NDArray[np.float16],
    chosen: MilModel | Sequence[MilModel],
    dense: NDArray[np.float16] | None = None,
) -> SlideScore:
    """Return what one model, or the mean of several, says of the patches of one slide.

    ``features`` is (N, D), as stored, and may be a memory map. ``dense`` (M, D) are patches that are in no
    bag: their values follow those of the slide's own, as if these stayed as they are.

    Raises:
        FormatError: the slide has no patches; or dense patches have no values in such a model.
    """
    if not len(features):
        raise FormatError("the slide has 0 patches: there is nothing to attend to.")
    several = [chosen] if isinstance(chosen, MilModel) else chosen
    try:
        each = [models.explain(model, features, dense) for model in several]
    except ValueError as error:
        raise FormatError(f"--overlap: {error}.") from error
    prediction = np.mean(
        [model.task.predict(one.bag_C[None])[0] for model, one in zip(several, each, strict=True)], axis=0
    )
    values = {
        name: models.as_array(torch.stack([one.values[name] for one in each]).mean(dim=0))
        for name in each[0].values
    }
    task = several[0].task
    bias, logit = (
        np.array(torch.stack(rows).mean(dim=0).tolist()) if rows else np.zeros(0)
        for rows in (
            [one.bias_C for one in each if one.bias_C is not None],
            [one.logit_C for one in each if one.logit_C is not None],
        )
    )
    return SlideScore(
        prediction, values, each[0].missing, task.output_names, _drawn(task, prediction), bias, logit
    )


def choose(score: SlideScore, show: str, output: str | None) -> tuple[str, str]:
    """Return the quantity and the output that are drawn.

    Raises:
        ConfigError: the model has no such quantity or output; what it has is listed.
    """
    check(show, output, score.outputs, score.missing)
    return show, score.outputs[score.drawn] if output is None else output


def check(show: str, output: str | None, outputs: Sequence[str], missing: dict[str, str]) -> None:
    """Refuse what a model does not have.

    Raises:
        ConfigError: it has no such quantity or output; what it has is listed.
    """
    if show in missing:
        others = ", ".join(each for each in ("attention", "evidence", "probability") if each not in missing)
        raise ConfigError(f"--show {show}: not with this model: {missing[show]}. It has {others}.")
    if output is not None and output not in outputs:
        raise ConfigError(
            f"--output-class {output}: the model has no such output; it has {', '.join(outputs)}."
        )


def _drawn(task: Task, prediction: NDArray[np.float64]) -> int:
    """Return which output is drawn where none is asked for."""
    if task.kind == "classification":
        return 1 if len(prediction) == 2 else int(prediction.argmax())
    return int(prediction.argmax()) if task.kind == "multilabel" else 0


def scale(values: NDArray[np.float32], normalize: Normalize, *, signed: bool = False) -> NDArray[np.float32]:
    """Return the values on 0..1 for colouring.

    minmax: a'_k = (a_k - min a) / (max a - min a), as in Ilse, Tomczak & Welling 2018, figure 5. percentile:
    the share of the slide's other patches with a lower value, ties counted half. Where all values are equal
    every patch is 0.5: none stands out. none: between the ``ends``. ``signed`` keeps 0 at 0.5, and both signs
    on one scale: the largest magnitude is 0 or 1, or, with percentile, magnitudes are ranked.
    """
    n, low, high = len(values), float(values.min()), float(values.max())
    scaled: NDArray[Any]
    if signed:
        size = np.abs(values.astype(np.float64))
        ranked = (scipy.stats.rankdata(size) - 0.5) / n
        strength = ranked if normalize == "percentile" else size / (size.max() or 1.0)
        scaled = 0.5 + 0.5 * np.sign(values) * strength
    elif normalize == "none":
        floor, top = ends(values)
        scaled = (values.astype(np.float64) - floor) / (top - floor)
    elif n == 1 or high == low:
        scaled = np.full(n, 0.5)
    elif normalize == "minmax":
        scaled = (values.astype(np.float64) - low) / (high - low)
    else:
        scaled = (scipy.stats.rankdata(values) - 1) / (n - 1)
    return scaled.astype(np.float32)


def ends(values: NDArray[np.float32], *, signed: bool = False) -> tuple[float, float]:
    """Return the raw values that the ends of the colours stand for with ``none``.

    0 and 1 of what lies between them and reaches above a half, as probabilities do; else 0 (or the lowest)
    and the highest. ``signed``: the largest magnitude, both ways.
    """
    if signed:
        top = float(np.abs(values).max()) or 1.0
        return -top, top
    low, high = min(0.0, float(values.min())), float(values.max())
    return low, 1.0 if 0.5 < high <= 1 or high <= low else high
