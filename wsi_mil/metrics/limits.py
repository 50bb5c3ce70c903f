"""95 % limits by formula for AUROC, shares and means of shares: what a bootstrap gets wrong for few patients.

Comes in: outcomes or scores of rows, and their patients. Goes out: the limits. Where a patient has several
rows, the number of rows is divided by the design effect.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import optimize, stats

from wsi_mil.metrics import scores
from wsi_mil.metrics.arrays import Bools, Floats, Indices, Targets, Task

NEWCOMBE = "Newcombe 2006, method 5"
WILSON = "Wilson 1927"
MOVER = "MOVER of Wilson limits"

_Z = float(stats.norm.ppf(0.975))

Limits = tuple[float, float, str]
"""Lower limit, upper limit, method."""


def limits_of(
    task: Task,
    targets: Targets,
    prediction_NP: Floats,
    patients_N: Sequence[str],
    *,
    names: Sequence[str] = (),
) -> dict[str, Limits]:
    """Return the limits of those scores of the task that have a formula and are defined by the rows."""
    patient_of_N = np.unique(np.asarray(patients_N), return_inverse=True)[1].reshape(-1)
    if task == "multilabel":
        labels = scores.label_names(names, targets.shape[1])
        return {
            name: (*auroc(targets[:, at] > 0, prediction_NP[:, at], patient_of_N), NEWCOMBE)
            for at, name in enumerate(labels)
            if 0 < (targets[:, at] > 0).sum() < len(targets)
        }
    if task == "classification":
        return _classification(targets, prediction_NP, patient_of_N)
    if task == "ordinal" and scores.all_classes(targets, prediction_NP):
        return {"balanced_accuracy": (*_recalls(targets, prediction_NP, patient_of_N), MOVER)}
    return {}


def _classification(codes_N: Indices, probability_NC: Floats, patient_of_N: Indices) -> dict[str, Limits]:
    predicted_N = probability_NC.argmax(axis=1)
    right_N = predicted_N == codes_N
    found: dict[str, Limits] = {"accuracy": (*share(right_N, patient_of_N), WILSON)}
    if not scores.all_classes(codes_N, probability_NC):
        return found
    found["balanced_accuracy"] = (*_recalls(codes_N, probability_NC, patient_of_N), MOVER)
    if probability_NC.shape[1] > 2:
        return found | {"recall": found["balanced_accuracy"]}
    true_N, called_N = codes_N == 1, predicted_N == 1
    return found | {
        "auroc": (*auroc(true_N, probability_NC[:, 1], patient_of_N), NEWCOMBE),
        "recall": (*share(right_N[true_N], patient_of_N[true_N]), WILSON),
        "precision": (*share(right_N[called_N], patient_of_N[called_N]), WILSON),
    }


def share(right_N: Bools, patient_of_N: Indices) -> tuple[float, float]:
    """Return Wilson's limits of the share of rows that are right; 0 and 1 where there is no row.

    Source: Wilson, J. Am. Stat. Assoc. 22 (1927); several rows per patient: effective
    sample size as in Korn & Graubard, Surv. Methodol. 24 (1998).
    """
    if not len(right_N):
        return 0.0, 1.0
    value = float(right_N.mean())
    apart_N: Floats = np.subtract(right_N, value, dtype=np.float64)
    effect = _design_effect(apart_N, value * (1 - value) / len(right_N), patient_of_N)
    rows, z2 = len(right_N) / effect, _Z**2
    middle, half = value + z2 / (2 * rows), np.sqrt(z2 * (value * (1 - value) + z2 / (4 * rows)) / rows)
    low, high = (middle - half) / (1 + z2 / rows), (middle + half) / (1 + z2 / rows)
    return (float(low) if value > 0 else 0.0), (float(high) if value < 1 else 1.0)


def mean_of_shares(values_C: Floats, limits_C2: Floats) -> tuple[float, float]:
    """Return the limits of the mean of independent shares, from each share's own.

    Source: Zou & Donner, Stat. Med. 27 (2008): method of variance estimates recovery (MOVER).
    """
    value, count = float(values_C.mean()), len(values_C)
    below, above = np.sqrt(((limits_C2 - values_C[:, None]) ** 2).sum(axis=0)) / count
    return max(0.0, value - float(below)), min(1.0, value + float(above))


def auroc(positive_N: Bools, score_N: Floats, patient_of_N: Indices) -> tuple[float, float]:
    """Return Newcombe's limits of the AUROC; both classes have a row.

    Those AUROC whose own Hanley-McNeil variance, with equal class sizes in its bracket, lies the observed one
    within the quantile. Source: Newcombe, Stat. Med. 25 (2006) 559, method 5; several rows per patient: sizes
    divided by the ratio of the variances of Obuchowski, Biometrics 53 (1997), and DeLong (1988).
    """
    beyond_N = _placements(positive_N, score_N)
    value = float(beyond_N[positive_N].mean())
    sizes = np.array([positive_N.sum(), (~positive_N).sum()], np.float64)
    # Each row's part of the AUROC's error, times N: so that their mean's variance is the AUROC's.
    apart_N = (beyond_N - value) * len(score_N) / np.where(positive_N, sizes[0], sizes[1]).astype(np.float64)
    alone = float((apart_N**2).sum()) / len(score_N) ** 2
    first, second = sizes / _design_effect(apart_N, alone, patient_of_N)
    within = max(0.0, (first + second) / 2 - 1)

    def outside(theta: float) -> float:
        bracket = 1 + within * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return float((value - theta) ** 2 - _Z**2 * theta * (1 - theta) * bracket / (first * second))

    low = 0.0 if value == 0 else _root(outside, 0.0, value - 1e-12)
    high = 1.0 if value == 1 else _root(outside, value + 1e-12, 1.0)
    return low, high


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    return float(optimize.brentq(function, low, high, xtol=1e-12))


def _placements(positive_N: Bools, score_N: Floats) -> Floats:
    """Return of each row the share of the other class on its right side, ties counting half."""
    ranks_N = stats.rankdata(score_N)
    placed_N = np.empty(len(score_N))
    for of_N in (positive_N, ~positive_N):
        placed_N[of_N] = (ranks_N[of_N] - stats.rankdata(score_N[of_N])) / (~of_N).sum()
    return np.where(positive_N, placed_N, 1 - placed_N)


def _recalls(codes_N: Indices, probability_NC: Floats, patient_of_N: Indices) -> tuple[float, float]:
    right_N = probability_NC.argmax(axis=1) == codes_N
    rows_C = [codes_N == c for c in range(probability_NC.shape[1])]
    values_C = np.array([right_N[of_N].mean() for of_N in rows_C])
    return mean_of_shares(values_C, np.array([share(right_N[of_N], patient_of_N[of_N]) for of_N in rows_C]))


def _design_effect(apart_N: Floats, variance: float, patient_of_N: Indices) -> float:
    """Return how much wider patients make a mean's variance than rows alone: from 1 to all rows alike.

    Where the rows show no variance (all right, all wrong), the largest it can be.
    """
    held_P = np.bincount(patient_of_N)
    held_P = held_P[held_P > 0]
    most = float((held_P**2).sum() / held_P.sum())
    if most == 1 or variance <= 0:
        return most
    sums_P = np.bincount(patient_of_N, weights=apart_N)
    patients = len(held_P)
    found = float((sums_P**2).sum()) / len(apart_N) ** 2 * patients / max(patients - 1, 1)
    return float(np.clip(found / variance, 1.0, most))
