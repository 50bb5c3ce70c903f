"""One function per score: targets and predictions in, a number out, None where the rows do not define it.

Scores of classes take ``codes_N`` and probabilities (N, C); of two classes, code 1 is the positive one, and
the predicted class is the most probable. Scores of labels take 0/1 (N, L) and probabilities (N, L). Scores of
numbers take both as (N,). They come from scikit-learn where it has them.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as sk

from wsi_mil.metrics.arrays import Floats, Indices, Targets, Task
from wsi_mil.metrics.calibration import ece

LEADING: dict[Task, str] = {
    "classification": "auroc",
    "multilabel": "auroc",
    "ordinal": "kappa",
    "regression": "r2",
    "survival": "c_index",
}
"""The score that speaks for a task, higher is better: what a null distribution is of."""


def score(task: Task, name: str, targets: Targets, prediction_NP: Floats) -> float | None:
    """Return one score of a task; None where the rows do not define it (a fold of one class)."""
    return _FUNCTIONS[task][name](targets, prediction_NP)


def scores_of(
    task: Task, targets: Targets, prediction_NP: Floats, *, names: Sequence[str] = ()
) -> dict[str, float | None]:
    """Return all scores of a task by name, None where the rows do not define one.

    Multilabel has 'auroc:LABEL' for each of ``names`` (default: the labels' numbers) besides the means.
    """
    found = {name: function(targets, prediction_NP) for name, function in _FUNCTIONS[task].items()}
    if task != "multilabel":
        return found
    each = label_aurocs(targets, prediction_NP)
    return found | dict(zip(label_names(names, len(each)), each, strict=True))


def label_names(names: Sequence[str], labels: int) -> list[str]:
    """Return the names of the scores of single labels."""
    return [f"auroc:{name}" for name in (names or range(labels))]


def auroc(codes_N: Indices, probability_NC: Floats) -> float | None:
    """Return the area under the ROC curve; None where a class has no row.

    Two classes: that of code 1. More: the mean over classes of each against the rest (macro one-vs-rest).
    """
    return _over_classes(sk.roc_auc_score, codes_N, probability_NC)


def auprc(codes_N: Indices, probability_NC: Floats) -> float | None:
    """Return the area under the precision-recall curve, as average precision; None where a class has no row.

    Two classes: that of code 1. More: the mean over classes of each against the rest. A coin flip has the
    share of positive rows.
    """
    return _over_classes(sk.average_precision_score, codes_N, probability_NC)


def accuracy(codes_N: Indices, probability_NC: Floats) -> float:
    """Return the share of rows whose most probable class is theirs."""
    return float(sk.accuracy_score(codes_N, probability_NC.argmax(axis=1)))


def balanced_accuracy(codes_N: Indices, probability_NC: Floats) -> float | None:
    """Return the mean over classes of the recall of the most probable class; None if one has no row."""
    if not all_classes(codes_N, probability_NC):
        return None
    return float(sk.balanced_accuracy_score(codes_N, probability_NC.argmax(axis=1)))


def f1(codes_N: Indices, probability_NC: Floats) -> float | None:
    """Return F1 of code 1 of two classes, of more the mean over classes; None if one has no row."""
    return _of_counts(sk.f1_score, codes_N, probability_NC)


def precision(codes_N: Indices, probability_NC: Floats) -> float | None:
    """Return precision as ``f1`` does; that of a class which is never predicted counts 0."""
    return _of_counts(sk.precision_score, codes_N, probability_NC)


def recall(codes_N: Indices, probability_NC: Floats) -> float | None:
    """Return recall (of two classes, the sensitivity) as ``f1`` does."""
    return _of_counts(sk.recall_score, codes_N, probability_NC)


def kappa(codes_N: Indices, probability_NC: Floats, *, quadratic: bool = False) -> float | None:
    """Return Cohen's kappa; ``quadratic`` weighs a confusion by the square of the grades between.

    None where truth and prediction are one and the same class throughout. Source: Cohen, Psychol. Bull. 70
    (1968).
    """
    predicted_N = probability_NC.argmax(axis=1)
    if len(np.unique(np.concatenate([codes_N, predicted_N]))) < 2:
        return None
    labels = range(probability_NC.shape[1])
    weights = "quadratic" if quadratic else None
    return float(sk.cohen_kappa_score(codes_N, predicted_N, labels=list(labels), weights=weights))


def brier(codes_N: Indices, probability_NC: Floats) -> float:
    """Return the Brier score: the mean squared distance of probability and outcome, 0 is best.

    Two classes: of the positive one, 0 to 1. More: summed over the classes, 0 to 2. Source: Brier, Mon.
    Weather Rev. 78 (1950).
    """
    return float(brier_terms(codes_N, probability_NC).mean())


def log_loss(codes_N: Indices, probability_NC: Floats) -> float:
    """Return the mean negative log-probability (nats) of the right class."""
    return float(log_terms(codes_N, probability_NC).mean())


def grade_error(codes_N: Indices, probability_NC: Floats) -> float:
    """Return the mean distance, in grades, of the most probable grade from the true one."""
    return float(np.abs(probability_NC.argmax(axis=1) - codes_N).mean())


def grade_spearman(codes_N: Indices, probability_NC: Floats) -> float | None:
    """Return the rank correlation of the expected grade with the true one; None where either is constant."""
    return spearman(codes_N.astype(np.float64), expected_grade(probability_NC))


def label_aurocs(targets_NL: Floats, probability_NL: Floats) -> list[float | None]:
    """Return the AUROC of each label; None where all rows have it or none has."""
    return [_of_label(sk.roc_auc_score, *each) for each in zip(targets_NL.T, probability_NL.T, strict=True)]


def multilabel_auroc(targets_NL: Floats, probability_NL: Floats) -> float | None:
    """Return the mean AUROC over the labels that have one; None where none has."""
    return _mean(label_aurocs(targets_NL, probability_NL))


def multilabel_auprc(targets_NL: Floats, probability_NL: Floats) -> float | None:
    """Return the mean average precision over the labels that have an AUROC; None where none has."""
    columns = zip(targets_NL.T, probability_NL.T, strict=True)
    return _mean([_of_label(sk.average_precision_score, *each) for each in columns])


def multilabel_f1(targets_NL: Floats, probability_NL: Floats) -> float | None:
    """Return the mean F1 at probability 0.5 over the labels that have an AUROC; None where none has."""
    columns = zip(targets_NL.T, probability_NL.T >= 0.5, strict=True)
    return _mean([_of_label(_f1, *each) for each in columns])


def mae(targets_N: Floats, value_N: Floats) -> float:
    """Return the mean absolute error, in the unit of the targets."""
    return float(sk.mean_absolute_error(targets_N, value_N))


def rmse(targets_N: Floats, value_N: Floats) -> float:
    """Return the root of the mean squared error, in the unit of the targets."""
    return float(np.sqrt(sk.mean_squared_error(targets_N, value_N)))


def r2(targets_N: Floats, value_N: Floats) -> float | None:
    """Return the share of the targets' variance that is explained; None where they are constant.

    Of these rows' own mean: below 0 is worse than predicting it.
    """
    return None if _constant(targets_N) else float(sk.r2_score(targets_N, value_N))


def pearson(targets_N: Floats, value_N: Floats) -> float | None:
    """Return the linear correlation; None where either is constant."""
    if _constant(targets_N) or _constant(value_N):
        return None
    return float(np.corrcoef(targets_N, value_N)[0, 1])


def spearman(targets_N: Floats, value_N: Floats) -> float | None:
    """Return the correlation of the ranks, ties sharing their mean rank; None where either is constant."""
    return pearson(_ranks(targets_N), _ranks(value_N))


def c_index(targets_N2: Floats, risk_N1: Floats) -> float | None:
    """Return Harrell's C: of the pairs whose order is known, the share where the higher risk fails first.

    ``targets_N2`` are times and events (1: seen, 0: censored). A pair is comparable where the row of the
    shorter time had its event; at equal times, an event counts as before a censoring, and two events are not
    comparable. Equal risks count half. None where no pair is comparable. Source: Harrell, Lee & Mark, Stat.
    Med. 15 (1996).
    """
    concordant = comparable = 0.0
    for _, ahead_EN, known_EN in comparisons(targets_N2, risk_N1[:, 0]):
        concordant += float(ahead_EN.sum(dtype=np.float64))
        comparable += float(known_EN.sum(dtype=np.float64))
    return concordant / comparable if comparable else None


def comparisons(
    targets_N2: Floats, risk_N: Floats, block: int = 512
) -> Iterator[tuple[Indices, NDArray[np.float32], NDArray[np.float32]]]:
    """Yield, for blocks of rows with an event, what is known of their pairs with all rows.

    Each is the block's rows (E,), 1, 0.5 or 0 for a pair in the right order, undecided or wrong (E, N), and
    1 where the pair is comparable (E, N); 0 for pairs that are not.
    """
    time_N, event_N = targets_N2[:, 0], targets_N2[:, 1] > 0
    events = np.flatnonzero(event_N)
    for start in range(0, len(events), block):
        rows = events[start : start + block]
        later_EN = time_N > time_N[rows, None]
        known_EN = (later_EN | ((time_N == time_N[rows, None]) & ~event_N)).astype(np.float32)
        risk_E1 = risk_N[rows, None]
        ahead_EN = (risk_E1 > risk_N).astype(np.float32) + np.float32(0.5) * (risk_E1 == risk_N)
        yield rows, known_EN * ahead_EN, known_EN


def all_classes(codes_N: Indices, probability_NC: Floats) -> bool:
    """Return whether each class has a row."""
    return bool((np.bincount(codes_N, minlength=probability_NC.shape[1]) > 0).all())


def brier_terms(codes_N: Indices, probability_NC: Floats) -> Floats:
    """Return each row's part of the Brier score."""
    apart_NC = probability_NC - np.eye(probability_NC.shape[1])[codes_N]
    terms_N: Floats = apart_NC[:, 1] ** 2 if probability_NC.shape[1] == 2 else (apart_NC**2).sum(axis=1)
    return terms_N


def log_terms(codes_N: Indices, probability_NC: Floats) -> Floats:
    """Return each row's negative log-probability of its class; 0 counts as the least step above it."""
    right_N = probability_NC[np.arange(len(codes_N)), codes_N]
    terms_N: Floats = -np.log(np.clip(right_N, np.finfo(np.float64).eps, 1.0))
    return terms_N


def expected_grade(probability_NC: Floats) -> Floats:
    """Return the mean grade (N,) under each row's probabilities."""
    grades_N: Floats = probability_NC @ np.arange(probability_NC.shape[1], dtype=np.float64)
    return grades_N


def columns(classes: int) -> Sequence[int]:
    """Return the classes that are scored against the rest: of two, the positive one."""
    return [1] if classes == 2 else range(classes)


def _over_classes(function: Callable[..., Any], codes_N: Indices, probability_NC: Floats) -> float | None:
    if not all_classes(codes_N, probability_NC):
        return None
    scored = columns(probability_NC.shape[1])
    return float(np.mean([function(codes_N == c, probability_NC[:, c]) for c in scored]))


def _of_counts(function: Callable[..., Any], codes_N: Indices, probability_NC: Floats) -> float | None:
    if not all_classes(codes_N, probability_NC):
        return None
    average = "binary" if probability_NC.shape[1] == 2 else "macro"
    return float(function(codes_N, probability_NC.argmax(axis=1), average=average, zero_division=0))


def _of_label(function: Callable[..., Any], targets_N: Floats, predicted_N: Floats) -> float | None:
    return None if _constant(targets_N) else float(function(targets_N > 0, predicted_N))


def _f1(truth_N: Indices, predicted_N: Indices) -> float:
    return float(sk.f1_score(truth_N, predicted_N, zero_division=0))


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def _constant(values_N: Floats) -> bool:
    return bool((values_N == values_N[0]).all())


def _ranks(values_N: Floats) -> Floats:
    _, group_N, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    ranks_N: Floats = (np.cumsum(counts) - counts / 2)[group_N]
    return ranks_N


def _column(function: Callable[[Floats, Floats], float | None]) -> Callable[[Floats, Floats], float | None]:
    """Return a score of numbers (N,) as one of predictions (N, 1)."""
    return lambda targets_N, value_N1: function(targets_N, value_N1[:, 0])


_FUNCTIONS: dict[Task, dict[str, Callable[[Targets, Floats], float | None]]] = {
    "classification": {
        "auroc": auroc,
        "auprc": auprc,
        "balanced_accuracy": balanced_accuracy,
        "accuracy": accuracy,
        "f1": f1,
        "precision": precision,
        "recall": recall,
        "kappa": kappa,
        "brier": brier,
        "ece": ece,
        "log_loss": log_loss,
    },
    "multilabel": {"auroc": multilabel_auroc, "auprc": multilabel_auprc, "f1": multilabel_f1},
    "ordinal": {
        "kappa": partial(kappa, quadratic=True),
        "mae": grade_error,
        "balanced_accuracy": balanced_accuracy,
        "spearman": grade_spearman,
    },
    "regression": {
        "mae": _column(mae),
        "rmse": _column(rmse),
        "r2": _column(r2),
        "pearson": _column(pearson),
        "spearman": _column(spearman),
    },
    "survival": {"c_index": c_index},
}
