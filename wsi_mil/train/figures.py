"""Pictures of how a training went and how good its predictions are, as PNG.

Comes in: predictions of bags that were held out, losses, a null distribution. Goes out: bytes by file name.
Colours are Okabe and Ito's, which the colour-blind can tell apart, and lines differ in their dashes too.
"""

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from wsi_mil import metrics
from wsi_mil.train.networks import Trained

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe & Ito's colours (jfly.uni-koeln.de/color), but for the yellow, which white swallows."""

_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (5, 1.5, 1.5, 1.5)))
_BANDS = 3
"""Most curves of a figure that are drawn with their bands: more would hide each other."""

_NAME = 40  # characters of a name in a legend
_DPI = 120
FAULTS = (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)
"""What numbers that cannot be drawn end in, in matplotlib, numpy and the metrics."""

_SAMPLES = 500  # bootstrap resamples behind a band


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Predictions of units (patients or slides) that their model has not seen, a row per repeat and unit.

    ``targets`` and ``prediction_NP`` as the metrics take them; ``calibrated_NP``, where there are any, are
    probabilities at a temperature that was fitted on other rows.
    """

    task: metrics.Task
    names: Sequence[str]
    targets: NDArray[Any]
    prediction_NP: NDArray[np.float64]
    patients: Sequence[str]
    unit: str
    seed: int
    calibrated_NP: NDArray[np.float64] | None = None

    @property
    def size(self) -> str:
        """Return how many there are, in words."""
        rows, patients = len(self.targets), len(set(self.patients))
        if self.unit == "patient":
            repeats = f", {rows // patients} repeats" if rows > patients else ""
            return f"{patients} patients{repeats}"
        return f"{rows} slides of {patients} patients"


def draw(
    shown: Shown, trained: Sequence[Trained], null: tuple[str, float, Sequence[float], float] | None = None
) -> dict[str, bytes]:
    """Return the figures that the task has, PNG by file name (``drawings``, all drawn)."""
    return {name: paint() for name, paint in drawings(shown, trained, null).items()}


def drawings(
    shown: Shown, trained: Sequence[Trained], null: tuple[str, float, Sequence[float], float] | None = None
) -> dict[str, Callable[[], bytes]]:
    """Return what draws each of the figures that the task has, by file name.

    ``trained`` are all networks of all folds. ``null`` is the name of the leading score, its value, those
    with shuffled labels, and p.

    losses.png: always. roc.png, pr.png: classification, multilabel, where some class has rows and lacks some.
    calibration.png: classification. scatter.png: regression. km.png: survival. null.png: with ``null``.
    """
    found: dict[str, Callable[[], bytes]] = {"losses.png": partial(losses, trained)}
    curves = _against_the_rest(shown)
    if curves:
        found |= {"roc.png": partial(roc, shown, curves), "pr.png": partial(pr, shown, curves)}
    if shown.task == "classification":
        found["calibration.png"] = partial(calibration, shown)
    if shown.task == "regression":
        found["scatter.png"] = partial(scatter, shown)
    if shown.task == "survival":
        found["km.png"] = partial(survival, shown)
    if null is not None:
        found["null.png"] = partial(null_distribution, *null)
    return found


@dataclass(frozen=True)
class _Curve:
    """One class or label against the rest."""

    name: str
    positive_N: NDArray[np.bool_]
    score_N: NDArray[np.float64]


def _against_the_rest(shown: Shown) -> list[_Curve]:
    """Return the classes that can be ranked; of two the positive one speaks for both."""
    columns: Sequence[int] = range(len(shown.names))
    if shown.task == "multilabel":
        truth_NC = shown.targets > 0
    elif shown.task == "classification":
        truth_NC = shown.targets[:, None] == np.arange(len(shown.names))
        columns = [1] if len(shown.names) == 2 else columns
    else:
        return []
    return [
        _Curve(shown.names[c], truth_NC[:, c], shown.prediction_NP[:, c])
        for c in columns
        if truth_NC[:, c].any() and not truth_NC[:, c].all()
    ]


def roc(shown: Shown, curves: Sequence[_Curve]) -> bytes:
    """Return the ROC curves, with bands over patients where there are few."""

    def paint(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8, linestyle=":")
        for k, each in enumerate(curves):
            points = metrics.roc_points(each.positive_N, each.score_N)
            area = float(np.trapezoid(points[:, 1], points[:, 0]))
            axes.plot(*points.T, label=_label(each.name, f"area {area:.3f}"), **_style(k))
            if len(curves) <= _BANDS:
                band = metrics.roc_band(
                    each.positive_N, each.score_N, shown.patients, samples=_SAMPLES, seed=shown.seed
                )
                _band(axes, k, band.false_G, band.low_G, band.high_G)
        _square(axes, "false positive rate", "true positive rate")
        axes.legend(loc="lower right", fontsize=8, frameon=False)
        axes.set_title(_title("ROC", shown, bands=len(curves) <= _BANDS), fontsize=9)

    return _png(paint)


def pr(shown: Shown, curves: Sequence[_Curve]) -> bytes:
    """Return precision over recall as steps, with bands over patients where there are few."""

    def paint(axes: Axes) -> None:
        for k, each in enumerate(curves):
            points = metrics.pr_points(each.positive_N, each.score_N)
            chance = float(each.positive_N.mean())
            area = float((np.diff(points[:, 0]) * points[1:, 1]).sum())
            text = _label(each.name, f"area {area:.3f}, chance {chance:.2f}")
            axes.plot(*points.T, drawstyle="steps-pre", label=text, **_style(k))
            axes.axhline(chance, color=COLOURS[k % len(COLOURS)], linewidth=0.8, linestyle=":")
            if len(curves) <= _BANDS:
                ends = metrics.pr_band(
                    each.positive_N, each.score_N, shown.patients, samples=_SAMPLES, seed=shown.seed
                )
                _band(axes, k, *ends)
        _square(axes, "recall", "precision")
        axes.legend(loc="lower left", fontsize=8, frameon=False)
        axes.set_title(_title("precision and recall", shown, bands=len(curves) <= _BANDS), fontsize=9)

    return _png(paint)


def calibration(shown: Shown) -> bytes:
    """Return how often probabilities come true, with 95 % bars over patients; sizes are numbers of rows."""
    kinds = [("as predicted", shown.prediction_NP)]
    if shown.calibrated_NP is not None:
        kinds.append(("at the temperature of the other folds", shown.calibrated_NP))

    def paint(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8, linestyle=":")
        for k, (words, probability_NC) in enumerate(kinds):
            found = metrics.reliability(shown.targets, probability_NC)
            low_K, high_K = metrics.reliability_band(
                shown.targets, probability_NC, shown.patients, samples=_SAMPLES, seed=shown.seed
            )
            error = metrics.ece(shown.targets, probability_NC)
            style = _style(k)
            axes.vlines(found.predicted_K, low_K, high_K, color=style["color"], linewidth=1.2, alpha=0.5)
            axes.plot(found.predicted_K, found.observed_K, label=f"{words}: ECE {error:.3f}", **style)
            size = 20 + 140 * found.count_K / found.count_K.max()
            axes.scatter(
                found.predicted_K,
                found.observed_K,
                s=size,
                color=style["color"],
                alpha=0.75,
                zorder=3,
                clip_on=False,
            )
        two = len(shown.names) == 2
        claim = f"probability of {_short(shown.names[1])}" if two else "probability of the predicted class"
        _square(axes, claim, "how often it was so" if two else "how often it was right")
        axes.legend(loc="upper left", fontsize=8, frameon=False)
        axes.set_title(_title("calibration", shown, bands=True), fontsize=9)

    return _png(paint)


def losses(trained: Sequence[Trained]) -> bytes:
    """Return the losses of all networks over the epochs; a dot is the epoch that was kept.

    The thick lines are medians, as far as half of the networks were trained.
    """

    def paint(axes: Axes) -> None:
        kinds: list[tuple[str, list[list[float]]]] = [("training", [each.train_losses for each in trained])]
        validated = [each for each in trained if each.val_losses]  # small folds may have nothing set aside
        if validated:
            kinds.append(("validation", [each.val_losses for each in validated]))
        thin = max(0.12, min(0.6, 4 / len(trained)))
        for k, (words, curves) in enumerate(kinds):
            colour = COLOURS[k]
            for each in curves:
                axes.plot(range(1, len(each) + 1), each, color=colour, linewidth=0.7, alpha=thin)
            axes.plot(*_median(curves), linewidth=2, label=words, color=colour, linestyle=_DASHES[k])
        kept = [(each.epoch, each.val_losses[each.epoch - 1]) for each in validated]
        if kept:
            epochs, values = zip(*kept, strict=True)
            axes.scatter(epochs, values, s=14, color="#000000", zorder=3, label="epoch kept")
        axes.set_xlabel("epoch", fontsize=9)
        axes.set_ylabel("loss", fontsize=9)
        axes.set_ylim(*_limits([loss for _, curves in kinds for each in curves for loss in each]))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(fontsize=8, frameon=False)
        networks = "1 network" if len(trained) == 1 else f"{len(trained)} networks"
        axes.set_title(f"losses of {networks}", fontsize=9)

    return _png(paint, width=6.0)


def scatter(shown: Shown) -> bytes:
    """Return the predicted values over the true ones."""

    def paint(axes: Axes) -> None:
        truth_N, value_N = shown.targets, shown.prediction_NP[:, 0]
        ends = _limits(np.concatenate([truth_N, value_N]), most=100)
        axes.plot(ends, ends, color="#999999", linewidth=0.8, linestyle=":")
        axes.scatter(truth_N, value_N, s=18, color=COLOURS[0], alpha=0.6, linewidths=0)
        axes.set_xlim(*ends)
        axes.set_ylim(*ends)
        axes.set_aspect("equal")
        axes.set_xlabel("label", fontsize=9)
        axes.set_ylabel("predicted", fontsize=9)
        r2 = metrics.r2(truth_N, value_N)
        words = "" if r2 is None else f"R² {r2:.3f}, "
        axes.set_title(f"{words}mean error {metrics.mae(truth_N, value_N):.3g}, {shown.size}", fontsize=9)

    return _png(paint)


def survival(shown: Shown) -> bytes:
    """Return the Kaplan-Meier curves of the halves below and above the median risk; ticks are censored."""

    def paint(axes: Axes) -> None:
        risk_N = shown.prediction_NP[:, 0]
        high_N = risk_N > np.median(risk_N)
        for k, (words, rows) in enumerate((("lower risk", ~high_N), ("higher risk", high_N))):
            part = shown.targets[rows]
            if not len(part):
                continue
            points = metrics.kaplan_meier(part)
            last = float(part[:, 0].max())
            times, alive = np.r_[points[:, 0], last], np.r_[points[:, 1], points[-1, 1]]
            text = f"{words}: {int(part[:, 1].sum())} events of {len(part)}"
            axes.plot(times, alive, drawstyle="steps-post", label=text, **_style(k))
            censored = part[part[:, 1] == 0, 0]
            height = alive[np.searchsorted(points[:, 0], censored, side="right") - 1]
            axes.plot(censored, height, "|", color=COLOURS[k], markersize=7)
        axes.set_ylim(0, 1.03)
        axes.set_xlim(left=0)
        axes.set_xlabel("time", fontsize=9)
        axes.set_ylabel("share without the event", fontsize=9)
        axes.legend(fontsize=8, frameon=False)
        c_index = metrics.c_index(shown.targets, shown.prediction_NP)
        words = "" if c_index is None else f", C-index {c_index:.3f}"
        axes.set_title(f"survival by predicted risk{words}, {shown.size}", fontsize=9)

    return _png(paint, width=6.0)


def null_distribution(name: str, value: float, values: Sequence[float], p: float) -> bytes:
    """Return the histogram of a score with shuffled labels, and where the real one lies."""

    def paint(axes: Axes) -> None:
        words = f"{len(values)} times with shuffled labels"
        axes.hist(values, bins=min(30, max(5, len(values) // 3)), color=COLOURS[5], label=words)
        axes.axvline(value, color=COLOURS[1], linewidth=2, label=f"with the labels: {value:.3f}")
        axes.set_xlabel(name, fontsize=9)
        axes.set_ylabel("trainings", fontsize=9)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(0, 1.3 * axes.get_ylim()[1])  # room for the legend
        axes.legend(fontsize=8, frameon=False)
        axes.set_title(f"what chance would give: p = {p:.3g}", fontsize=9)

    return _png(paint, width=6.0)


def _png(paint: Callable[[Axes], None], width: float = 5.0, height: float = 5.0) -> bytes:
    """Return what ``paint`` draws on one pair of axes; names are never read as mathematics."""
    height = min(height, 4.2) if width > height else height
    with mpl.rc_context({"text.parse_math": False, "font.size": 9}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a name in a script of its own
        figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        paint(axes)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _style(k: int) -> dict[str, Any]:
    return {
        "color": COLOURS[k % len(COLOURS)], "linewidth": 1.8, "linestyle": _DASHES[k % len(_DASHES)],
    }  # fmt: skip


def _band(axes: Axes, k: int, x_G: NDArray[Any], low_G: NDArray[Any], high_G: NDArray[Any]) -> None:
    axes.fill_between(x_G, low_G, high_G, color=COLOURS[k % len(COLOURS)], alpha=0.15, linewidth=0)


def _square(axes: Axes, x: str, y: str) -> None:
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.03)
    axes.set_aspect("equal")
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)


def _title(words: str, shown: Shown, *, bands: bool) -> str:
    return f"{words}, {shown.size}" + ("; 95 % over patients" if bands else "")


def _label(name: str, words: str) -> str:
    text = f"{_short(name)}: {words}"
    return f" {text}" if text.startswith("_") else text  # matplotlib keeps such out of a legend


def _short(name: str) -> str:
    return name if len(name) <= _NAME else f"{name[: _NAME - 1]}…"


def _median(curves: Sequence[Sequence[float]]) -> tuple[list[int], list[float]]:
    epochs, values = [], []
    for epoch in range(max((len(each) for each in curves), default=0)):
        there = [each[epoch] for each in curves if len(each) > epoch]
        if 2 * len(there) >= len(curves):
            epochs.append(epoch + 1)
            values.append(float(np.median(there)))
    return epochs, values


def _limits(values: Sequence[float] | NDArray[Any], most: float = 99.5) -> tuple[float, float]:
    """Return ends a little beyond the values; the few above ``most`` percent do not flatten the others."""
    low, high = float(np.min(values)), float(np.percentile(values, most))
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin
