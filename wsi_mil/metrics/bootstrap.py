"""Intervals over patients, scores per patient, and the p-value of a permutation test.

Comes in: targets, predictions and patients of rows. Goes out: intervals. It draws patients, not rows, because
the rows of one patient are not independent.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from wsi_mil.metrics import limits, weighted
from wsi_mil.metrics.arrays import Floats, Targets, Task
from wsi_mil.metrics.scores import scores_of

PERCENTILE = "percentile bootstrap over patients"

_CHUNK = 300_000
"""Weights in work at once (2 MB): what a processor's cache can hold."""

_LEAST = 200
"""Resamples at once where that is more, as what is prepared for each chunk costs the same for few."""

_TRIES = 10
"""Resamples drawn at most, in multiples of those asked for, to replace such as lack something."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A score with its 95 % interval, the method of that, and on how many resamples it stands (0: a formula).

    ``value`` is None where the rows do not define the score; ``low``, ``high`` and ``method`` are None
    where there is no interval: no resample defines the score, or no method holds the true one (ECE).
    """

    value: float | None
    low: float | None
    high: float | None
    samples: int
    method: str | None = None


def with_intervals(
    task: Task,
    targets: Targets,
    prediction_NP: Floats,
    patients_N: Sequence[str],
    *,
    samples: int,
    seed: int,
    names: Sequence[str] = (),
) -> dict[str, Interval]:
    """Return every score of the task (``scores_of``) with a 95 % interval over patients.

    By the formulas of ``limits`` where there is one; ECE has none, as it is biased upwards, and a resample's
    more so. All others by a cluster bootstrap: patients are drawn with replacement, each with all its rows.
    A resample in which one of the scores is not defined though the rows define it (it lacks a class, say) is
    drawn again, so that all intervals stand on the same resamples; where ten times as many draws do not
    give enough, ``samples`` says
    how many there were. Multilabel: none is drawn again, as rare labels would leave few; each score stands on
    the resamples that define it, and a mean is over the labels that the resample defines.

    Source: Field & Welsh, J. R. Stat. Soc. B 69 (2007), cluster bootstrap; Efron's percentile interval.
    """
    values = scores_of(task, targets, prediction_NP, names=names)
    defined = [name for name, value in values.items() if value is not None]
    weigh = weighted.prepare(task, targets, prediction_NP, names=names)
    draw = resampler(patients_N, seed)
    parts = [np.empty((0, len(defined)))]
    missing, left = samples, samples if task == "multilabel" else samples * _TRIES
    while missing and left and defined:
        weights_NS = draw(min(missing, left))
        left -= weights_NS.shape[1]
        drawn = weigh(weights_NS)
        drawn_SK = np.stack([drawn[name] for name in defined], axis=1)
        if task != "multilabel":
            drawn_SK = drawn_SK[np.isfinite(drawn_SK).all(axis=1)]
        missing -= len(drawn_SK)
        parts.append(drawn_SK)
    drawn_SK = np.concatenate(parts)
    found = {
        name: _interval(value, drawn_SK[:, defined.index(name)] if name in defined else np.empty(0))
        for name, value in values.items()
    }
    for name, (low, high, method) in limits.limits_of(
        task, targets, prediction_NP, patients_N, names=names
    ).items():
        found[name] = Interval(value=values[name], low=low, high=high, samples=0, method=method)
    if "ece" in found:
        found["ece"] = Interval(value=values["ece"], low=None, high=None, samples=0)
    return found


def resampler(patients_N: Sequence[str], seed: int) -> Callable[[int], Floats]:
    """Return the function that draws the next resamples: (N, S), how often each row's patient was drawn.

    It gives at most as many as asked for, and fewer where many rows would fill the memory. The stream of
    resamples does not depend on how many are drawn at once.
    """
    names, patient_of_N = np.unique(np.asarray(patients_N), return_inverse=True)
    patient_of_N = patient_of_N.reshape(-1)
    chance_P = np.full(len(names), 1 / len(names))
    rng = np.random.default_rng(seed)

    def draw(most: int) -> Floats:
        count = min(most, max(_LEAST, _CHUNK // len(patient_of_N)))
        times_SP = rng.multinomial(len(names), chance_P, size=count)
        return np.ascontiguousarray(times_SP.T, np.float64)[patient_of_N]

    return draw


def by_patient(
    targets: Targets, prediction_NP: Floats, patients_N: Sequence[str]
) -> tuple[Targets, Floats, list[str]]:
    """Return targets, mean predictions and ids of the patients, sorted by id; a patient has one target."""
    names, first, patient_of_N = np.unique(np.asarray(patients_N), return_index=True, return_inverse=True)
    sums = np.zeros((len(names), prediction_NP.shape[1]))
    np.add.at(sums, patient_of_N.reshape(-1), prediction_NP)
    means = sums / np.bincount(patient_of_N.reshape(-1))[:, None]
    return targets[first], means, [str(name) for name in names]


def permutation_p(value: float, null_values: Sequence[float] | Floats) -> float:
    """Return the one-sided p-value of a score: (1 + null values at least as high) / (n + 1).

    Never 0: the data themselves are one of the permutations. Source: Phipson & Smyth, Stat. Appl. Genet. Mol.
    Biol. 9 (2010).

    Raises:
        ValueError: no null value, or one that is not a number.
    """
    null_N = np.asarray(null_values, np.float64)
    if not len(null_N) or not np.isfinite(null_N).all() or not np.isfinite(value):
        raise ValueError("a permutation test wants a score, and at least one null value, all finite")
    return float((1 + (null_N >= value).sum()) / (len(null_N) + 1))


def _interval(value: float | None, drawn_S: Floats) -> Interval:
    drawn_S = drawn_S[np.isfinite(drawn_S)]
    if not len(drawn_S):
        return Interval(value=value, low=None, high=None, samples=0)
    low, high = np.percentile(drawn_S, [2.5, 97.5])
    return Interval(value=value, low=float(low), high=float(high), samples=len(drawn_S), method=PERCENTILE)
