"""Bands of curves over patients besides the ROC's, and survival curves, as points to be drawn elsewhere.

Comes in: targets, predictions and patients of rows. Goes out: arrays. It draws nothing.
"""

from collections.abc import Sequence

import numpy as np

from wsi_mil.metrics.arrays import Bools, Floats, Indices
from wsi_mil.metrics.bootstrap import resampler
from wsi_mil.metrics.calibration import BINS, bin_of, claims


def pr_band(
    positive_N: Bools,
    score_N: Floats,
    patients_N: Sequence[str],
    *,
    samples: int,
    seed: int,
    points: int = 101,
) -> tuple[Floats, Floats, Floats]:
    """Return recalls (G,) and the lower and upper end (G,) of the precision there, as ``roc_band`` draws.

    Pointwise 95 % percentile bootstrap over patients. The precision at a recall is that of the highest
    threshold that reaches it. Resamples without a positive row are passed over.

    Raises:
        ValueError: no resample has a positive row.
    """
    order = np.argsort(-score_N, kind="stable")
    last_T = np.flatnonzero(np.r_[np.diff(score_N[order]) != 0, True])
    is_positive = positive_N[order]
    recall_G = np.linspace(0, 1, points)
    drawn: list[Floats] = []
    draw, missing = resampler(patients_N, seed), samples
    while missing > 0:
        weights_NS = draw(missing)
        missing -= weights_NS.shape[1]
        all_ST = np.cumsum(weights_NS[order], axis=0)[last_T].T
        true_ST = np.cumsum(weights_NS[order] * is_positive[:, None], axis=0)[last_T].T
        for true_T, all_T in zip(true_ST, all_ST, strict=True):
            if true_T[-1]:
                # A share of whole weights may miss its recall by a rounding: look a little below it.
                at_G = np.searchsorted(true_T / true_T[-1], np.maximum(recall_G - 1e-12, 1e-12))
                drawn.append(true_T[at_G] / all_T[at_G])
    if not drawn:
        raise ValueError("no resample of the patients holds a positive row")
    low_G, high_G = np.percentile(drawn, [2.5, 97.5], axis=0)
    return recall_G, low_G, high_G


def reliability_band(
    codes_N: Indices,
    probability_NC: Floats,
    patients_N: Sequence[str],
    *,
    samples: int,
    seed: int,
    bins: int = BINS,
) -> tuple[Floats, Floats]:
    """Return the lower and upper end (K,) of how often each bin of ``reliability`` came true.

    95 % percentile bootstrap over patients; a bin stands on the resamples that have rows in it.
    """
    predicted_N, true_N = claims(codes_N, probability_NC)
    bin_N = bin_of(predicted_N, bins)
    held = np.unique(bin_N)
    inside_KN = (bin_N[None] == held[:, None]).astype(np.float64)
    parts: list[Floats] = []
    draw, missing = resampler(patients_N, seed), samples
    while missing > 0:
        weights_NS = draw(missing)
        missing -= weights_NS.shape[1]
        rows_KS = inside_KN @ weights_NS
        true_KS = (inside_KN * true_N) @ weights_NS
        parts.append(np.where(rows_KS > 0, true_KS / np.maximum(rows_KS, 1), np.nan))
    low_K, high_K = np.nanpercentile(np.concatenate(parts, axis=1), [2.5, 97.5], axis=1)
    return low_K, high_K


def kaplan_meier(targets_N2: Floats) -> Floats:
    """Return (P, 2) times and the share that survived beyond them, from (0, 1), a row per time of an event.

    ``targets_N2`` are times and events (1: seen, 0: censored). A patient who is censored at the time of an
    event is at risk then. Source: Kaplan & Meier, J. Am. Stat. Assoc. 53 (1958).
    """
    times, events = targets_N2[:, 0], targets_N2[:, 1] > 0
    when_P, died_P = np.unique(times[events], return_counts=True)
    at_risk_P = (times[None] >= when_P[:, None]).sum(axis=1)
    alive_P = np.cumprod(1 - died_P / at_risk_P)
    return np.vstack([[0.0, 1.0], np.column_stack([when_P, alive_P])])
