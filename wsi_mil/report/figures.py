"""What the page shows besides words: confusion counts, figures, and pictures small enough to embed.

Comes in: predictions and picture files. Goes out: numbers and data URIs. It writes no HTML.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
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
class Confusion:
    """How many of ``unit`` have each label (row) and each predicted class (column)."""

    counts: Sequence[Sequence[int]]
    unit: str


def confusion(model: Model) -> Confusion | None:
    """Return the counts of a model's predictions, None where a unit is not of one class.

    They are over the unit that the scores are over: patients (the mean of their slides) or slides; of several
    repeats, over the means.
    """
    classes = [str(name) for name in model.scores.get("names", [])]
    rows = [each for each in model.verdicts.values() if each.label in classes]
    if not rows or model.scores["task"] not in ("classification", "ordinal"):
        return None
    codes = np.array([classes.index(row.label) for row in rows], np.int64)
    probability = np.array([[row.probabilities[name] for name in classes] for row in rows])
    unit = str(model.scores["unit"])
    if unit == "patient":
        codes, probability, _ = metrics.by_patient(codes, probability, [row.patient_id for row in rows])
    counts = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(counts, (codes, probability.argmax(axis=1)), 1)
    return Confusion(counts=counts.tolist(), unit=unit)


def embed(path: Path, caption: str) -> Picture:
    """Return a figure (PNG) as it is.

    Raises:
        OSError: it cannot be read as a picture.
    """
    data = path.read_bytes()
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        width, height = image.size
        image.load()
    uri = "data:image/png;base64," + base64.b64encode(data).decode("ascii")
    return Picture(uri=uri, width=width, height=height, caption=caption, source=path)


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
