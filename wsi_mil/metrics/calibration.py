"""Whether a probability of 0.8 comes true eight times in ten, and a temperature that brings it there.

Comes in: targets, and probabilities or the logits behind them. Goes out: bins, an error, temperatures. What
is fitted here is never judged on the rows that it was fitted on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit, log_softmax, softmax

from wsi_mil.metrics.arrays import Floats, Indices, Targets, Task

BINS = 10
"""Bins of equal width; cohorts of some hundred patients leave more of them empty."""

TEMPERATURES = (0.05, 20.0)
"""The bounds of a temperature: logits that are all right, or all chance, would have none."""


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Bins of predicted probability, those with rows only: mean prediction, how often it came true, rows."""

    predicted_K: Floats
    observed_K: Floats
    count_K: Indices


def reliability(codes_N: Indices, probability_NC: Floats, *, bins: int = BINS) -> Reliability:
    """Return the reliability bins, of equal width over 0 to 1.

    Two classes: the probability of code 1, against how often it is so. More: the probability of the most
    probable class, against how often it is right.
    """
    predicted_N, true_N = claims(codes_N, probability_NC)
    bin_N = bin_of(predicted_N, bins)
    count_K = np.bincount(bin_N, minlength=bins)
    held = count_K > 0
    return Reliability(
        predicted_K=np.bincount(bin_N, predicted_N, bins)[held] / count_K[held],
        observed_K=np.bincount(bin_N, true_N, bins)[held] / count_K[held],
        count_K=count_K[held],
    )


def ece(codes_N: Indices, probability_NC: Floats, *, bins: int = BINS) -> float:
    """Return the expected calibration error over the ``reliability`` bins, weighted by their rows.

    It is above 0 for a perfect model too, the more the fewer rows there are: compare it at equal numbers.
    Source: Naeini et al., AAAI 2015; Guo et al., ICML 2017.
    """
    found = reliability(codes_N, probability_NC, bins=bins)
    gap_K = np.abs(found.predicted_K - found.observed_K)
    return float((gap_K * found.count_K).sum() / len(codes_N))


def probabilities(task: Task, logits_NC: Floats, temperature: float = 1.0) -> Floats:
    """Return what logits, divided by ``temperature``, mean as probabilities.

    Classification: softmax over (N, C). Multilabel: sigmoid of each. Ordinal: of (N, C - 1) logits of 'above
    grade k', falling with k, the (N, C) probabilities of the grades.
    """
    scaled_NC = np.asarray(logits_NC, np.float64) / temperature
    if task == "multilabel":
        return np.asarray(expit(scaled_NC))
    if task == "ordinal":
        above_NK = np.pad(expit(scaled_NC), ((0, 0), (1, 1)), constant_values=((0, 0), (1, 0)))
        return np.asarray(above_NK[:, :-1] - above_NK[:, 1:])
    return np.asarray(softmax(scaled_NC, axis=1))


def fit_temperature(logits_NC: Floats, targets: Targets, *, task: Task = "classification") -> float:
    """Return the temperature in 0.05 .. 20 at which the negative log-likelihood of the targets is least.

    ``logits_NC`` are those of ``probabilities``; where members are averaged, the log of their mean
    probability serves classification. It never changes which class is the most probable.

    Raises:
        ValueError: no row. Source: Guo et al., ICML 2017.
    """
    if not len(logits_NC):
        raise ValueError("a temperature is fitted on at least one row")
    logits = np.asarray(logits_NC, np.float64)
    low, high = np.log(TEMPERATURES)
    found = minimize_scalar(
        lambda exponent: _nll(task, logits / np.exp(exponent), targets),
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))


def crossfitted_temperature(
    logits_NC: Floats,
    targets: Targets,
    folds_N: Sequence[int] | Indices,
    *,
    task: Task = "classification",
    patients_N: Sequence[str] | None = None,
) -> Floats:
    """Return probabilities, each fold's rows at the temperature that the rows of all other folds ask for.

    ``folds_N`` is the fold that tested each row. No row has a part in its own temperature: scores of the
    result are honest. Of repeated cross-validations give ``patients_N`` too: a patient that a fold tested was
    tested in every repeat, and all its rows stay out of that fold's temperature.

    Raises:
        ValueError: one fold only, so there are no other rows.
    """
    fold_N = np.asarray(folds_N)
    patient_N = np.arange(len(fold_N)) if patients_N is None else np.asarray(patients_N)
    scaled = probabilities(task, logits_NC)
    for fold in np.unique(fold_N):
        own_N = fold_N == fold
        other_N = ~own_N & ~np.isin(patient_N, patient_N[own_N])
        temperature = fit_temperature(logits_NC[other_N], targets[other_N], task=task)
        scaled[own_N] = probabilities(task, logits_NC[own_N], temperature)
    return scaled


def claims(codes_N: Indices, probability_NC: Floats) -> tuple[Floats, Floats]:
    """Return the probability of what is claimed of each row (N,), and 1 where it is true, else 0 (N,)."""
    if probability_NC.shape[1] == 2:
        return probability_NC[:, 1], (codes_N == 1).astype(np.float64)
    return probability_NC.max(axis=1), (probability_NC.argmax(axis=1) == codes_N).astype(np.float64)


def bin_of(predicted_N: Floats, bins: int) -> Indices:
    """Return the bin of each probability: k holds k / bins to, not with, (k + 1) / bins; the last also 1."""
    return np.clip((predicted_N * bins).astype(np.int64), 0, bins - 1)


def _nll(task: Task, logits_NC: Floats, targets: Targets) -> float:
    """Return the mean negative log-likelihood, from logits where that is exact."""
    if task == "multilabel":
        terms = targets * log_expit(logits_NC) + (1 - targets) * log_expit(-logits_NC)
        return float(-terms.sum(axis=1).mean())
    rows_N = np.arange(len(targets))
    if task == "ordinal":
        held_N = probabilities(task, logits_NC)[rows_N, targets]
        return float(-np.log(np.maximum(held_N, np.finfo(np.float64).tiny)).mean())
    logp_NC = log_softmax(logits_NC, axis=1)
    return float(-(_platt(targets, logits_NC.shape[1]) * logp_NC).sum(axis=1).mean())


def _platt(codes_N: Indices, classes: int) -> Floats:
    """Return (N, C) targets that are as sure as so many rows allow.

    Without them the temperature of few rows that a model gets all right would be 0: certainty for ever.
    Source: Platt, Advances in Large Margin Classifiers (1999), section 2.2.
    """
    counts_C = np.bincount(codes_N, minlength=classes)
    rest_N1 = 1 / (counts_C[codes_N, None] + classes)
    held_NC = codes_N[:, None] == np.arange(classes)
    return np.asarray(np.where(held_NC, 1 - (classes - 1) * rest_N1, rest_N1))
