"""Scores, their bootstrap intervals, calibration, curves, and folds that never part a patient.

Comes in: arrays over rows (targets, predictions, ids of patients and groups). Goes out: numbers, and arrays
of row indices. It knows no file and no model.
"""

from wsi_mil.metrics.arrays import Floats, Indices, Task
from wsi_mil.metrics.balance import kinds, strata
from wsi_mil.metrics.bands import kaplan_meier, pr_band, reliability_band
from wsi_mil.metrics.bootstrap import Interval, by_patient, permutation_p, resampler, with_intervals
from wsi_mil.metrics.calibration import (
    Reliability,
    crossfitted_temperature,
    ece,
    fit_temperature,
    probabilities,
    reliability,
)
from wsi_mil.metrics.curves import Band, pr_points, roc_band, roc_points
from wsi_mil.metrics.folds import Fold, column_folds, inner_parts, leave_one_out, patient_folds
from wsi_mil.metrics.saved import saved_folds
from wsi_mil.metrics.scores import (
    LEADING,
    accuracy,
    auprc,
    auroc,
    balanced_accuracy,
    brier,
    c_index,
    f1,
    grade_error,
    grade_spearman,
    kappa,
    label_aurocs,
    log_loss,
    mae,
    multilabel_auprc,
    multilabel_auroc,
    multilabel_f1,
    pearson,
    precision,
    r2,
    recall,
    rmse,
    score,
    scores_of,
    spearman,
)
from wsi_mil.metrics.weighted import ranking

__all__ = [
    "LEADING",
    "Band",
    "Floats",
    "Fold",
    "Indices",
    "Interval",
    "Reliability",
    "Task",
    "accuracy",
    "auprc",
    "auroc",
    "balanced_accuracy",
    "brier",
    "by_patient",
    "c_index",
    "column_folds",
    "crossfitted_temperature",
    "ece",
    "f1",
    "fit_temperature",
    "grade_error",
    "grade_spearman",
    "inner_parts",
    "kaplan_meier",
    "kappa",
    "kinds",
    "label_aurocs",
    "leave_one_out",
    "log_loss",
    "mae",
    "multilabel_auprc",
    "multilabel_auroc",
    "multilabel_f1",
    "patient_folds",
    "pearson",
    "permutation_p",
    "pr_band",
    "pr_points",
    "precision",
    "probabilities",
    "r2",
    "ranking",
    "recall",
    "reliability",
    "reliability_band",
    "resampler",
    "rmse",
    "roc_band",
    "roc_points",
    "saved_folds",
    "score",
    "scores_of",
    "spearman",
    "strata",
    "with_intervals",
]
