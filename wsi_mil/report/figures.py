"""What the page shows besides words: ROC curves, confusion counts, and pictures small enough to embed.

Comes in: predictions and JPEG files. Goes out: numbers and data URIs. It writes no HTML.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsi_mil import metrics
from wsi_mil.report.gather import Model

_QUALITY = 80
_SIDE_MAX, _SIDE_MIN = 1000, 160  # longer side of a picture on the page
_BYTES_MAX = 110_000  # of one picture: what 1000 pixels of H&E usually take


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture as a data URI, its size on the page in pixels, a caption, and the file it was made from."""

    uri: str
    width: int
    height: int
    caption: str
    source: Path


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A ROC curve: ``points`` (P, 2) of (false, true) positive rate from (0, 0) to (1, 1), and its area."""

    name: str
    points: NDArray[np.float64]
    area: float


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """What a model's figures show: curves, and counts ``confusion[label][predicted]`` over ``unit``."""

    curves: Sequence[Curve]
    confusion: Sequence[Sequence[int]]
    unit: str


def roc(positive_N: NDArray[np.bool_], score_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the (false, true) positive rates at every threshold, from (0, 0) to (1, 1).

    Rows of equal score cross the threshold together, so the trapezoidal area counts ties half.
    """
    order = np.argsort(-score_N, kind="stable")
    last_of_tie = np.flatnonzero(np.r_[np.diff(score_N[order]) != 0, True])
    true = np.cumsum(positive_N[order])[last_of_tie] / positive_N.sum()
    false = np.cumsum(~positive_N[order])[last_of_tie] / (~positive_N).sum()
    points: NDArray[np.float64] = np.vstack([[0.0, 0.0], np.column_stack([false, true])])
    return points


def outcomes(model: Model) -> Outcomes | None:
    """Return the curves and counts of a model's out-of-fold predictions, None where there are none.

    They are over the unit that the scores are over: patients (the mean of their slides) or slides. Two
    classes have one curve, of the positive class; more have one each, against the rest.
    """
    classes = [str(name) for name in model.scores.get("classes", [])]
    rows = [each for each in model.verdicts.values() if each.label in classes]
    if not rows:
        return None
    codes = np.array([classes.index(row.label) for row in rows], np.int64)
    probability = np.array([[row.probabilities[name] for name in classes] for row in rows])
    unit = str(model.scores.get("unit", "slide"))
    if unit == "patient":
        codes, probability, _ = metrics.by_patient(codes, probability, [row.patient_id for row in rows])
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(confusion, (codes, probability.argmax(axis=1)), 1)
    curves = []
    for code in [1] if len(classes) == 2 else range(len(classes)):
        positive = codes == code
        if positive.any() and not positive.all():
            points = roc(positive, probability[:, code])
            area = float(np.trapezoid(points[:, 1], points[:, 0]))
            curves.append(Curve(name=classes[code], points=points, area=area))
    return Outcomes(curves=curves, confusion=confusion.tolist(), unit=unit)


def shrink(path: Path, caption: str, budget: int) -> Picture:
    """Return the picture in ``path`` as a JPEG of at most about ``budget`` bytes, as large as that allows.

    No smaller than 160 pixels on its longer side, and no larger than it is.

    Raises:
        OSError: it cannot be read as a picture.
    """
    budget = min(budget, _BYTES_MAX)
    with Image.open(path) as image:
        image.draft("RGB", (_SIDE_MAX, _SIDE_MAX))  # JPEG decodes at half or a quarter for next to nothing
        image.thumbnail((_SIDE_MAX, _SIDE_MAX), Image.Resampling.LANCZOS)
        picture = image.convert("RGB")
    data = _jpeg(picture)
    shown = picture
    while len(data) > budget and max(shown.size) > _SIDE_MIN:
        # Bytes go roughly with the area; a little less, so that one step usually does.
        side = max(_SIDE_MIN, int(max(shown.size) * min(0.95, 0.97 * (budget / len(data)) ** 0.5)))
        shown = picture.copy()
        shown.thumbnail((side, side), Image.Resampling.LANCZOS)
        data = _jpeg(shown)
    uri = "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii")
    return Picture(uri=uri, width=shown.width, height=shown.height, caption=caption, source=path)


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return buffer.getvalue()
