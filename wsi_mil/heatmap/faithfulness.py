"""Whether a map is true: what the prediction does without the highest patches, and how annotations agree.

Comes in: a slide's features, values of its patches, models; outlines. Goes out: curves and scores per slide,
and their means over a cohort with intervals. It draws nothing.

Deletion and insertion are those of Petsiuk, Das & Saenko, BMVC 2018 (RISE), with patches in the place of
pixels, and a random order to compare with.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from wsi_mil import models
from wsi_mil.errors import FormatError
from wsi_mil.geometry import PatchGeometry
from wsi_mil.metrics import auroc
from wsi_mil.models import MilModel, Task

FRACTIONS = np.round(np.arange(0, 1, 0.05), 2)
"""Of the patches, those removed (deletion); of insertion 1 - these are not yet put back."""

_RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Curves:
    """What the output becomes as patches go (``deletion``) and come (``insertion``), at ``FRACTIONS``.

    ``random`` (R, 20) are the same for random orders: a random part is left, whichever way it came about.
    """

    deletion: NDArray[np.float64]
    insertion: NDArray[np.float64]
    random: NDArray[np.float64]

    def figures(self) -> dict[str, float]:
        """Return the areas between the curves and the random ones, above 0 where the map is the better guide.

        ``_beats`` is the share of the random orders that it is better than.
        """
        chance = self.random.mean(axis=0)
        areas = np.trapezoid(self.random, FRACTIONS, axis=1)
        deletion, insertion = (np.trapezoid(each, FRACTIONS) for each in (self.deletion, self.insertion))
        return {
            "deletion_area": float(np.trapezoid(chance - self.deletion, FRACTIONS)),
            "insertion_area": float(np.trapezoid(self.insertion - chance, FRACTIONS)),
            "deletion_beats": float((areas > deletion).mean()),
            "insertion_beats": float((areas < insertion).mean()),
        }


def curves(
    chosen: Sequence[MilModel],
    features: NDArray[np.float16],
    values: NDArray[np.float32],
    output: str,
    *,
    draws: int,
    seed: int,
) -> Curves:
    """Return how the mean prediction of ``output`` changes as patches go, the highest values first, and come.

    At least one patch stays. ``draws`` random orders come from ``seed``.
    """
    n = len(features)
    rng = np.random.default_rng(seed)
    highest = np.argsort(-values, kind="stable")
    orders = np.stack([highest[::-1], highest, *(rng.permutation(n) for _ in range(draws))])
    left = np.maximum(1, n - np.rint(FRACTIONS * n).astype(np.int64))
    each = np.mean([models.of_parts(model, features, orders, left) for model in chosen], axis=0)
    found = of_output(chosen[0].task, each, output)
    # The first order is cut from its high end: what is left are the lowest. The second: the highest.
    return Curves(deletion=found[0], insertion=found[1], random=found[2:])


def of_output(task: Task, prediction: NDArray[np.float64], output: str) -> NDArray[np.float64]:
    """Return what predictions (..., P) say of one of the model's outputs: a probability, or the value."""
    row = task.output_names.index(output)
    if task.kind == "ordinal":
        above: NDArray[np.float64] = prediction[..., row + 1 :].sum(axis=-1)
        return above
    return prediction[..., row if prediction.shape[-1] == len(task.output_names) else 0]


def read_annotation(path: Path) -> shapely.Geometry:
    """Return the union of the outlines in a GeoJSON file (level-0 pixels), as QuPath and others write it.

    Raises:
        FormatError: it is no GeoJSON, or holds anything but areas.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, list):  # QuPath's plain export
            content = {"type": "FeatureCollection", "features": content}
        shapes = shapely.get_parts(shapely.get_parts(shapely.from_geojson(json.dumps(content))))
    except (OSError, ValueError, shapely.errors.ShapelyError) as error:
        raise FormatError(f"{path}: cannot be read as GeoJSON outlines ({error}).") from error
    others = {each.geom_type for each in shapes} - {"Polygon", "MultiPolygon"}
    if others:
        raise FormatError(f"{path}: holds {', '.join(sorted(others))}; wanted polygons in level-0 pixels.")
    return shapely.union_all(shapely.make_valid(shapes))


def annotated(
    coords: NDArray[np.int64], geometry: PatchGeometry, outline: shapely.Geometry
) -> NDArray[np.bool_]:
    """Tell which patches have at least half of their area inside of the outline."""
    size = geometry.patch_size_l0
    x, y = coords.T
    shapely.prepare(outline)
    boxes = shapely.box(x, y, x + size, y + size)
    inside: NDArray[np.bool_] = shapely.contains(outline, boxes)
    partly = ~inside & shapely.intersects(outline, boxes)
    inside[partly] = shapely.area(shapely.intersection(boxes[partly], outline)) >= size**2 / 2
    return inside


def agreement(values: NDArray[np.float32], inside: NDArray[np.bool_], cut: float) -> dict[str, float | None]:
    """Return the AUROC of values against annotated patches, and Dice of those above ``cut``.

    ``dice_best`` is the highest that any cut of the values could give. None where all patches or none are
    annotated.
    """
    found: dict[str, float | None] = {"patches": len(values), "annotated": int(inside.sum())}
    if inside.all() or not inside.any():
        return found | {"auroc": None, "dice": None, "dice_best": None}
    above = values > cut
    hits = np.cumsum(inside[np.argsort(-values, kind="stable")])
    best = (2 * hits / (np.arange(1, len(values) + 1) + inside.sum())).max()
    scores = values.astype(np.float64)
    return found | {
        "auroc": auroc(inside.astype(np.int64), np.stack([-scores, scores], axis=1)),
        "dice": float(2 * (above & inside).sum() / (above.sum() + inside.sum())),
        "dice_best": float(best),
    }


def cut_of(quantity: str, values: NDArray[np.float32]) -> float:
    """Return above what a patch counts as shown: 0 of evidence, 0.5 of a probability, the mean attention."""
    return {"evidence": 0.0, "probability": 0.5}.get(quantity, float(values.mean(dtype=np.float64)))


def cohort(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str], seed: int
) -> dict[str, dict[str, float | int | None]]:
    """Return for each figure its mean over slides with a 95 % percentile bootstrap interval over slides.

    ``above_0`` is the share of the slides where it is above 0. None where no slide has it.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, dict[str, float | int | None]] = {}
    for name in names:
        each = np.array([float(row[name]) for row in rows if row.get(name) not in (None, "")])
        if not len(each):
            found[name] = {"slides": 0, "mean": None, "low": None, "high": None, "above_0": None}
            continue
        drawn = each[rng.integers(len(each), size=(_RESAMPLES, len(each)))].mean(axis=1)
        low, high = np.quantile(drawn, [0.025, 0.975])
        found[name] = {
            "slides": len(each),
            "mean": float(each.mean()),
            "low": float(low),
            "high": float(high),
            "lowest": float(each.min()),
            "above_0": float((each > 0).mean()),
        }
    return found
