"""Curves as points, to be drawn elsewhere: ROC with a band, precision and recall (``calibration`` has bins).

Comes in: which rows are positive and their scores. Goes out: arrays. It draws nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import precision_recall_curve, roc_curve

from wsi_mil.metrics.arrays import Bools, Floats
from wsi_mil.metrics.bootstrap import resampler

_GRID = 101


@dataclass(frozen=True, kw_only=True)
class Band:
    """A pointwise 95 % band of the true positive rate, low to high, at false positive rates ``false_G``."""

    false_G: Floats
    low_G: Floats
    high_G: Floats


def roc_points(positive_N: Bools, score_N: Floats) -> Floats:
    """Return (P, 2) (false, true) positive rates from (0, 0) to (1, 1), corners only.

    Rows of equal score cross the threshold together. Both kinds of rows must be there.

    Raises:
        ValueError: they are not.
    """
    _check(positive_N)
    false_P, true_P, _ = roc_curve(positive_N, score_N)
    return np.column_stack([false_P, true_P])


def pr_points(positive_N: Bools, score_N: Floats) -> Floats:
    """Return (P, 2) (recall, precision) as recall rises from 0, where precision counts as 1, to 1.

    Average precision is the area under its steps, not under straight lines between them (Davis & Goadrich,
    ICML 2006).

    Raises:
        ValueError: no positive or no negative row.
    """
    _check(positive_N)
    precision_P, recall_P, _ = precision_recall_curve(positive_N, score_N)
    return np.column_stack([recall_P, precision_P])[::-1]


def roc_band(
    positive_N: Bools,
    score_N: Floats,
    patients_N: Sequence[str],
    *,
    samples: int,
    seed: int,
    points: int = _GRID,
) -> Band:
    """Return the 95 % percentile bootstrap band of the ROC curve over patients, as ``with_intervals`` draws.

    Pointwise: a curve leaves it somewhere more often than one time in twenty. Resamples that lack positive or
    negative rows have no curve and are passed over.

    Raises:
        ValueError: no positive or no negative row, or no resample has both.
    """
    _check(positive_N)
    order = np.argsort(-score_N, kind="stable")
    last_T = np.flatnonzero(np.r_[np.diff(score_N[order]) != 0, True])
    is_positive = positive_N[order]
    false_G = np.linspace(0, 1, points)
    drawn: list[Floats] = []
    draw, missing = resampler(patients_N, seed), samples
    while missing:
        weights_NS = draw(missing)
        missing -= weights_NS.shape[1]
        true_ST = np.cumsum(weights_NS[order] * is_positive[:, None], axis=0)[last_T].T
        false_ST = np.cumsum(weights_NS[order] * ~is_positive[:, None], axis=0)[last_T].T
        for true_T, wrong_T in zip(true_ST, false_ST, strict=True):
            if true_T[-1] and wrong_T[-1]:
                drawn.append(_at(false_G, wrong_T / wrong_T[-1], true_T / true_T[-1]))
    if not drawn:
        raise ValueError("no resample of the patients holds positive and negative rows")
    low_G, high_G = np.percentile(drawn, [2.5, 97.5], axis=0)
    return Band(false_G=false_G, low_G=low_G, high_G=high_G)


def _at(false_G: Floats, false_T: Floats, true_T: Floats) -> Floats:
    """Return the curve's height at each false positive rate; where it rises upright, its top."""
    return np.interp(false_G, np.r_[0.0, false_T], np.r_[0.0, true_T])


def _check(positive_N: Bools) -> None:
    if positive_N.all() or not positive_N.any():
        raise ValueError("a curve wants positive and negative rows")
