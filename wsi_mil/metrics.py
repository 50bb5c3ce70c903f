"""Scores, their bootstrap intervals, and folds that never part a patient.

Comes in: arrays over slides (class codes, probabilities, patient ids). Goes out: numbers, and arrays of row
indices. It knows no file and no model. Codes are 0 .. C-1; of two classes, code 1 is the positive one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from wsi_mil.errors import LabelError

Indices = NDArray[np.int64]
Floats = NDArray[np.float64]

_DRAWS = 20
_CHUNK = 8_000_000
"""Weights held at once while bootstrapping (64 MB as float64)."""


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Row indices of one fold, each sorted: ``test`` is scored once, ``train`` is all to learn from.

    ``val`` is a part of ``train`` that the labels set apart to choose the epoch; empty: it is still to be
    drawn from ``train`` (``inner_parts``).
    """

    train: Indices
    test: Indices
    val: Indices


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A score with its 95 % percentile bootstrap interval."""

    value: float
    low: float
    high: float


def patient_folds(
    codes_N: Indices, patients_N: Sequence[str], folds: int, *, seed: int, names: Sequence[str]
) -> list[Fold]:
    """Return ``folds`` folds, stratified by label and grouped by patient (StratifiedGroupKFold).

    Every row is tested once, all rows of a patient in the same fold; no fold is empty, and every class is in
    every training part. ``names`` are the classes, for messages.

    Raises:
        LabelError: a class has fewer patients than there are folds, or no draw gives such folds.
    """
    held = _patients_of(codes_N, patients_N, len(names))
    total = len(set(patients_N))
    least = min(range(len(names)), key=lambda code: len(held[code]))
    if total < folds or len(held[least]) < folds:
        counts = ", ".join(f"'{name}': {len(held[code])}" for code, name in enumerate(names))
        few = len(held[least])
        advice = (
            f"Use --folds {few} or fewer, or --split leave-one-out."
            if few >= 2
            else "Cross-validation needs at least 2 patients of each label: one to train on, one to test."
        )
        raise LabelError(
            f"--folds {folds}: more than the patients of label '{names[least]}' "
            f"(patients per label: {counts}; {total} in all). {advice}"
        )
    for draw in range(_DRAWS):
        tests = _grouped(codes_N, patients_N, folds, seed + draw * 1_000_003)
        made = [_fold(codes_N, test) for test in tests]
        if all(len(each.test) and _all_classes(codes_N[each.train], len(names)) for each in made):
            return made
    raise LabelError(
        f"--folds {folds}: {_DRAWS} draws gave no folds in which every training part holds every label; "
        "use fewer folds, or name the folds in a split column."
    )


def leave_one_out(codes_N: Indices, patients_N: Sequence[str], *, names: Sequence[str]) -> list[Fold]:
    """Return one fold per patient, in sorted order of the patients; each tests all rows of that patient.

    Raises:
        LabelError: a class has one patient only: without that patient nothing of the class could be learnt.
    """
    return _named_folds(codes_N, patients_N, names, "--split leave-one-out")


def column_folds(
    splits_N: Sequence[str], codes_N: Indices, patients_N: Sequence[str], *, names: Sequence[str]
) -> list[Fold]:
    """Return the folds that a split column names.

    Only 'train', 'val' and 'test' in it: one fold, with that validation part where there is one. Else every
    distinct value is a fold that tests the rows which hold it, in sorted order.

    Raises:
        LabelError: one value only, a patient in two parts (names it), or a part that lacks a class.
    """
    parts: dict[str, set[str]] = {}
    for patient, split in zip(patients_N, splits_N, strict=True):
        parts.setdefault(patient, set()).add(split)
    torn = sorted(patient for patient, values in parts.items() if len(values) > 1)
    if torn:
        raise LabelError(
            f"split column: {len(torn)} patients are in more than one part ("
            + "; ".join(f"{p}: {', '.join(sorted(parts[p]))}" for p in torn[:10])
            + "). A patient's slides belong on one side, or the test scores are too good."
        )
    values = set(splits_N)
    if not values <= {"train", "val", "test"}:
        return _named_folds(codes_N, splits_N, names, "split column")
    if not {"train", "test"} <= values:
        raise LabelError(
            f"split column: holds only {', '.join(sorted(values))}; wanted 'train' and 'test' (and, if you "
            "like, 'val'), or the name of the fold that tests each slide (at least two)."
        )
    at = {value: np.flatnonzero([each == value for each in splits_N]) for value in ("train", "val", "test")}
    for value in ("train", "test"):
        _require_classes(codes_N[at[value]], names, f"split column: part '{value}'")
    return [Fold(train=np.union1d(at["train"], at["val"]), test=at["test"], val=at["val"])]


def inner_parts(
    codes_N: Indices, patients_N: Sequence[str], train: Indices, parts: int, *, seed: int, classes: int
) -> list[Indices]:
    """Return up to ``parts`` disjoint parts of ``train`` (row indices), to be set apart one at a time.

    Grouped by patient and stratified by label; with each part set apart, every class stays in the rest.
    Fewer parts where a class has fewer patients; none where a class has one patient only.
    """
    codes, patients = codes_N[train], [patients_N[i] for i in train]
    held = _patients_of(codes, patients, classes)
    parts = min(parts, *(len(each) for each in held))
    while parts >= 2:
        for draw in range(_DRAWS):
            drawn = _grouped(codes, patients, parts, seed + draw * 1_000_003)
            rests = [np.setdiff1d(np.arange(len(train)), each) for each in drawn]
            if all(len(each) for each in drawn) and all(_all_classes(codes[r], classes) for r in rests):
                return [train[each] for each in drawn]
        parts -= 1
    return []


def auroc(codes_N: Indices, probability_NC: Floats) -> float | None:
    """Return the area under the ROC curve; None where a class has no row.

    Two classes: that of code 1. More: the mean over classes of each against the rest (macro one-vs-rest).
    """
    classes = probability_NC.shape[1]
    if not _all_classes(codes_N, classes):
        return None
    if classes == 2:
        return float(roc_auc_score(codes_N, probability_NC[:, 1]))
    return float(np.mean([roc_auc_score(codes_N == c, probability_NC[:, c]) for c in range(classes)]))


def balanced_accuracy(codes_N: Indices, probability_NC: Floats) -> float | None:
    """Return the mean over classes of the recall of the most probable class; None if one has no row."""
    if not _all_classes(codes_N, probability_NC.shape[1]):
        return None
    return float(balanced_accuracy_score(codes_N, probability_NC.argmax(axis=1)))


def with_intervals(
    codes_N: Indices, probability_NC: Floats, patients_N: Sequence[str], *, samples: int, seed: int
) -> dict[str, Interval]:
    """Return 'auroc' and 'balanced_accuracy', each with a 95 % percentile bootstrap interval over patients.

    A cluster bootstrap: patients are drawn with replacement, each with all its rows, because rows of one
    patient are not independent. A resample that lacks a class is drawn again (not stratified: patients may
    hold rows of several classes). All classes must be among the rows.

    Source: Field & Welsh, J. R. Stat. Soc. B 69 (2007), cluster bootstrap; Efron's percentile interval.
    """
    classes = probability_NC.shape[1]
    values = auroc(codes_N, probability_NC), balanced_accuracy(codes_N, probability_NC)
    if None in values:
        raise ValueError("a class has no row: no score to put an interval on")
    _, patient_of_N = np.unique(np.asarray(patients_N), return_inverse=True)
    rng = np.random.default_rng(seed)
    drawn: list[tuple[Floats, Floats]] = []
    missing = samples
    while missing > 0:
        count = min(missing, max(1, _CHUNK // len(codes_N)))
        weights_SN = _resample(patient_of_N, count, rng)
        held_SC = np.stack([weights_SN[:, codes_N == c].sum(axis=1) for c in range(classes)], axis=1)
        weights_SN = weights_SN[(held_SC > 0).all(axis=1)]
        missing -= len(weights_SN)
        drawn.append(
            (
                _weighted_auroc(codes_N, probability_NC, weights_SN),
                _weighted_balanced_accuracy(codes_N, probability_NC.argmax(axis=1), classes, weights_SN),
            )
        )
    scores = {}
    for at, name in enumerate(("auroc", "balanced_accuracy")):
        low, high = np.percentile(np.concatenate([each[at] for each in drawn]), [2.5, 97.5])
        scores[name] = Interval(value=float(values[at] or 0.0), low=float(low), high=float(high))
    return scores


def by_patient(
    codes_N: Indices, probability_NC: Floats, patients_N: Sequence[str]
) -> tuple[Indices, Floats, list[str]]:
    """Return codes, mean probabilities and ids of the patients, sorted by id; a patient has one code."""
    names, first, patient_of_N = np.unique(np.asarray(patients_N), return_index=True, return_inverse=True)
    sums = np.zeros((len(names), probability_NC.shape[1]))
    np.add.at(sums, patient_of_N, probability_NC)
    means = sums / np.bincount(patient_of_N)[:, None]
    return codes_N[first], means, [str(name) for name in names]


def _resample(patient_of_N: Indices, count: int, rng: np.random.Generator) -> Floats:
    """Return (count, N) weights: how often each row's patient was drawn."""
    patients = int(patient_of_N.max()) + 1
    times_SP = rng.multinomial(patients, np.full(patients, 1 / patients), size=count)
    weights: Floats = times_SP[:, patient_of_N].astype(np.float64)
    return weights


def _weighted_auroc(codes_N: Indices, probability_NC: Floats, weights_SN: Floats) -> Floats:
    """Return (S,) AUROC under each row of weights: the weighted share of (positive, negative) pairs in order.

    Ties count half. One sort serves all samples.
    """
    classes = probability_NC.shape[1]
    scores = []
    for positive in [1] if classes == 2 else range(classes):
        order = np.argsort(probability_NC[:, positive], kind="stable")
        sorted_N = probability_NC[order, positive]
        starts = np.flatnonzero(np.r_[True, sorted_N[1:] != sorted_N[:-1]])
        is_positive = codes_N[order] == positive
        ordered_SN = weights_SN[:, order]
        up = np.add.reduceat(ordered_SN * is_positive, starts, axis=1)
        down = np.add.reduceat(ordered_SN * ~is_positive, starts, axis=1)
        below = np.cumsum(down, axis=1) - down
        scores.append((up * (below + down / 2)).sum(axis=1) / (up.sum(axis=1) * down.sum(axis=1)))
    mean: Floats = np.mean(scores, axis=0)
    return mean


def _weighted_balanced_accuracy(
    codes_N: Indices, predicted_N: Indices, classes: int, weights_SN: Floats
) -> Floats:
    right_N = codes_N == predicted_N
    recalls = [
        weights_SN[:, (codes_N == c) & right_N].sum(axis=1) / weights_SN[:, codes_N == c].sum(axis=1)
        for c in range(classes)
    ]
    mean: Floats = np.mean(recalls, axis=0)
    return mean


def _grouped(codes_N: Indices, patients_N: Sequence[str], folds: int, seed: int) -> list[Indices]:
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed % 2**32)
    return [np.asarray(test) for _, test in splitter.split(codes_N, codes_N, np.asarray(patients_N))]


def _named_folds(codes_N: Indices, names_N: Sequence[str], names: Sequence[str], where: str) -> list[Fold]:
    values = sorted(set(names_N))
    if len(values) < 2:
        raise LabelError(
            f"{where}: one part only ('{values[0]}'); wanted at least two, to test on the other."
        )
    folds = [_fold(codes_N, np.flatnonzero([each == value for each in names_N])) for value in values]
    for value, fold in zip(values, folds, strict=True):
        _require_classes(codes_N[fold.train], names, f"{where}: the training part of fold '{value}'")
    return folds


def _fold(codes_N: Indices, test: Indices) -> Fold:
    train = np.setdiff1d(np.arange(len(codes_N)), test)
    return Fold(train=train, test=np.sort(test), val=np.empty(0, np.int64))


def _patients_of(codes_N: Indices, patients_N: Sequence[str], classes: int) -> list[set[str]]:
    return [{p for p, c in zip(patients_N, codes_N, strict=True) if c == code} for code in range(classes)]


def _all_classes(codes_N: Indices, classes: int) -> bool:
    return bool((np.bincount(codes_N, minlength=classes) > 0).all())


def _require_classes(codes_N: Indices, names: Sequence[str], where: str) -> None:
    absent = [name for code, name in enumerate(names) if not (codes_N == code).any()]
    if absent:
        raise LabelError(
            f"{where} holds no slide of label {', '.join(repr(a) for a in absent)}; wanted each."
        )
