"""What folds are balanced by (``strata``), and what no training part may lack (``kinds``), for each task.

Comes in: targets. Goes out: codes and tables over the rows. Folds themselves know no task.
"""

from collections.abc import Sequence

import numpy as np

from wsi_mil.metrics.arrays import Bools, Floats, Indices, Targets, Task

BINS = 4
"""Quantile bins of numbers and times."""

RARE = 5
"""Combinations of labels with fewer rows than this share one stratum: there are too few to go round."""


def strata(task: Task, targets: Targets, *, bins: int = BINS, rare: int = RARE) -> Indices:
    """Return the stratum (N,) of each row, 0 .. S-1, to balance folds by.

    Classification and ordinal: the class. Regression: the quantile bin of the target. Survival: whether the
    event was seen, times the quantile bin of the time. Multilabel: the combination of labels; combinations of
    fewer than ``rare`` rows are pooled.
    """
    if task in ("classification", "ordinal"):
        return np.asarray(targets, np.int64)
    if task == "regression":
        return _compact(_bins(targets, bins))
    if task == "survival":
        return _compact(targets[:, 1].astype(np.int64) * bins + _bins(targets[:, 0], bins))
    _, found, counts = np.unique(targets, axis=0, return_inverse=True, return_counts=True)
    combination_N = found.reshape(-1)  # numpy 2.0 gave it another shape
    return _compact(np.where(counts[combination_N] < rare, len(counts), combination_N))


def kinds(task: Task, targets: Targets, names: Sequence[str]) -> tuple[tuple[str, ...], Bools | None]:
    """Return what every training part has to hold, as ``names`` and ``kinds_NK`` of the ways to split.

    Classification and ordinal: every class; their names, and None, as the strata say it. Multilabel: a row
    with and one without each label. Survival: an event that was seen. Regression: nothing. ``names`` are
    those of the classes or labels.

    A multilabel label that one training patient has cannot be in both parts of an inner split: leave the
    kinds out of ``inner_parts`` there, and its validation does without.
    """
    if task in ("classification", "ordinal"):
        return tuple(names), None
    if task == "multilabel":
        with_NL = np.asarray(targets) > 0
        called = of_labels(names) + tuple(f"without label '{name}'" for name in names)
        return called, np.concatenate([with_NL, ~with_NL], axis=1)
    if task == "survival":
        return ("with an event that was seen",), np.asarray(targets)[:, 1:2] > 0
    return (), np.zeros((len(targets), 0), bool)


def of_labels(names: Sequence[str]) -> tuple[str, ...]:
    """Return how the rows of each class are called in a message: 'a slide ...'."""
    return tuple(f"of label '{name}'" for name in names)


def _bins(values_N: Floats, bins: int) -> Indices:
    edges = np.quantile(values_N, np.arange(1, bins) / bins)
    return np.searchsorted(edges, values_N, side="right").astype(np.int64)


def _compact(codes_N: Indices) -> Indices:
    return np.unique(codes_N, return_inverse=True)[1].reshape(-1).astype(np.int64)
