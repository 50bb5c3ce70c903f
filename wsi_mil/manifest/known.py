"""Labels and predictions: as the numbers of a model's own task and names, and back in words.

Comes in: labels, or predictions. Goes out: targets to score predictions by, or words. Here the model says
which classes there are, so that labels of one class only, or without an event, are as good as others.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_mil.errors import LabelError
from wsi_mil.manifest import values
from wsi_mil.manifest.labels import Labels
from wsi_mil.manifest.table import some


def known_targets(labels: Labels, names: Sequence[str]) -> NDArray[Any]:
    """Return the labels as numbers, as ``Targets.values`` has them, for a model that predicts ``names``.

    Raises:
        LabelError: labels that the model does not know; names the slides.
    """
    if labels.task == "survival":
        return np.array([values.survival(label) for label in labels.labels], np.float64).reshape(-1, 2)
    if labels.task == "regression":
        return np.array([float(label) for label in labels.labels], np.float64)
    parts_N = [values.parts(each) if labels.task == "multilabel" else (each,) for each in labels.labels]
    unknown = [
        f"{slide} ({part!r})"
        for slide, parts in zip(labels.slide_ids, parts_N, strict=True)
        for part in parts
        if part not in names
    ]
    if unknown:
        raise LabelError(
            f"{labels.path}: {len(unknown)} labels are none that the model knows: {some(unknown)}; it knows "
            f"{', '.join(names)}. Write them as the model does, or remove the rows."
        )
    if labels.task == "multilabel":
        return np.array([[float(name in parts) for name in names] for parts in parts_N]).reshape(
            -1, len(names)
        )
    code_of = {name: code for code, name in enumerate(names)}
    return np.array([code_of[label] for label in labels.labels], np.int64)


def in_words(task: str, names: Sequence[str], prediction_P: Sequence[float] | NDArray[np.float64]) -> str:
    """Return a prediction as its label would say it: a class, labels joined by ';' or 'none', a number.

    A risk has no such words: ''.
    """
    if task == "multilabel":
        held = [name for name, p in zip(names, prediction_P, strict=True) if p > 0.5]
        return ";".join(held) or values.NO_LABEL
    if task == "regression":
        return f"{prediction_P[0]:.6g}"
    return "" if task == "survival" else names[int(np.argmax(prediction_P))]
