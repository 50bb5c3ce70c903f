"""All scores of a task under many sets of row weights at once: what makes 2000 resamples quick.

Comes in: targets and predictions, then weights (N, S). Goes out: (S,) per score, NaN where the weights do not
define it. Each agrees with the function of that name in ``scores``. Rows come first in the weights, so that
choosing and summing rows runs along memory; nearly all is a sum over rows, a product with a matrix.
"""

from collections.abc import Callable, Sequence

import numpy as np

from wsi_mil.metrics import calibration, scores
from wsi_mil.metrics.arrays import Bools, Floats, Indices, Targets, Task

Weighted = Callable[[Floats], dict[str, Floats]]
_TINY = 1e-12
"""A variance below this, of values of variance 1, is that of a constant."""


def prepare(task: Task, targets: Targets, prediction_NP: Floats, *, names: Sequence[str] = ()) -> Weighted:
    """Return the function from weights (N, S) to the scores of ``scores.scores_of``, (S,) each."""
    if task == "classification":
        return _classification(targets, prediction_NP)
    if task == "ordinal":
        return _ordinal(targets, prediction_NP)
    if task == "regression":
        return _regression(targets, prediction_NP[:, 0])
    if task == "survival":
        return _survival(targets, prediction_NP[:, 0])
    return _multilabel(targets, prediction_NP, names)


def _classification(codes_N: Indices, probability_NC: Floats) -> Weighted:
    classes = probability_NC.shape[1]
    columns = scores.columns(classes)
    rankings = [ranking(codes_N == c, probability_NC[:, c]) for c in columns]
    confusion = _confusion(codes_N, probability_NC.argmax(axis=1), classes)
    terms_2N = np.stack(
        [scores.brier_terms(codes_N, probability_NC), scores.log_terms(codes_N, probability_NC)]
    )
    gaps_KN = _gaps(codes_N, probability_NC)

    def weigh(weights_NS: Floats) -> dict[str, Floats]:
        total_S = weights_NS.sum(axis=0)
        ranked = np.mean([ranking(weights_NS) for ranking in rankings], axis=0)
        brier_S, log_loss_S = terms_2N @ weights_NS / total_S
        return (
            {"auroc": ranked[0], "auprc": ranked[1]}
            | _counted(confusion(weights_NS), columns)
            | {
                "brier": brier_S,
                "ece": np.abs(gaps_KN @ weights_NS).sum(axis=0) / total_S,
                "log_loss": log_loss_S,
            }
        )

    return weigh


def _ordinal(codes_N: Indices, probability_NC: Floats) -> Weighted:
    classes = probability_NC.shape[1]
    predicted_N = probability_NC.argmax(axis=1)
    confusion = _confusion(codes_N, predicted_N, classes)
    apart_N = np.abs(predicted_N - codes_N).astype(np.float64)
    ranks = _correlation_of_ranks(codes_N.astype(np.float64), scores.expected_grade(probability_NC))

    def weigh(weights_NS: Floats) -> dict[str, Floats]:
        counts_CCS = confusion(weights_NS)
        return {
            "kappa": _kappa(counts_CCS, quadratic=True),
            "mae": apart_N @ weights_NS / weights_NS.sum(axis=0),
            "balanced_accuracy": _recalls(counts_CCS).mean(axis=0),
            "spearman": ranks(weights_NS),
        }

    return weigh


def _multilabel(targets_NL: Floats, probability_NL: Floats, names: Sequence[str]) -> Weighted:
    labels = targets_NL.shape[1]
    with_LN = targets_NL.T > 0
    called_LN = probability_NL.T >= 0.5
    scored = [label for label in range(labels) if with_LN[label].any() and not with_LN[label].all()]
    rankings = [ranking(with_LN[label], probability_NL[:, label]) for label in scored]
    counted_KN = np.concatenate(
        [table[scored].astype(np.float64) for table in (with_LN & called_LN, with_LN, called_LN)]
    )
    each = scores.label_names(names, labels)

    def weigh(weights_NS: Floats) -> dict[str, Floats]:
        nothing_S = np.full(weights_NS.shape[1], np.nan)
        if not scored:
            return dict.fromkeys(("auroc", "auprc", "f1", *each), nothing_S)
        ranked = np.stack([ranking(weights_NS) for ranking in rankings])
        both_LS, with_LS, called_LS = np.split(counted_KN @ weights_NS, 3)
        f1_LS = np.where(np.isfinite(ranked[:, 0]), _ratio(2 * both_LS, with_LS + called_LS, 0.0), np.nan)
        of_label = dict(zip(scored, ranked[:, 0], strict=True))
        return {
            "auroc": _mean_defined(ranked[:, 0]),
            "auprc": _mean_defined(ranked[:, 1]),
            "f1": _mean_defined(f1_LS),
        } | {name: of_label.get(label, nothing_S) for label, name in enumerate(each)}

    return weigh


def _regression(targets_N: Floats, value_N: Floats) -> Weighted:
    # Correlations and R2 do not change with the unit: centred and scaled, sums of squares lose no digits.
    error_N = value_N - targets_N
    y_N, spread = _standard(targets_N)
    v_N, _ = _standard(value_N)
    sums_KN = np.stack([np.abs(error_N), error_N**2, y_N, v_N, y_N**2, v_N**2, y_N * v_N])
    ranks = _correlation_of_ranks(targets_N, value_N)

    def weigh(weights_NS: Floats) -> dict[str, Floats]:
        mae_S, mse_S, y_S, v_S, yy_S, vv_S, yv_S = sums_KN @ weights_NS / weights_NS.sum(axis=0)
        variance_S = yy_S - y_S**2
        explained_S = 1 - mse_S / spread**2 / np.where(variance_S > _TINY, variance_S, np.nan)
        return {
            "mae": mae_S,
            "rmse": np.sqrt(mse_S),
            "r2": explained_S,
            "pearson": _correlation(yv_S - y_S * v_S, variance_S, vv_S - v_S**2),
            "spearman": ranks(weights_NS),
        }

    return weigh


def _survival(targets_N2: Floats, risk_N: Floats) -> Weighted:
    def weigh(weights_NS: Floats) -> dict[str, Floats]:
        # Sums of whole weights and their halves are exact in single precision, and twice as quick.
        single_NS = weights_NS.astype(np.float32)
        concordant_S = np.zeros(weights_NS.shape[1])
        comparable_S = np.zeros(weights_NS.shape[1])
        for rows, ahead_EN, known_EN in scores.comparisons(targets_N2, risk_N):
            concordant_S += np.einsum("es,es->s", ahead_EN @ single_NS, weights_NS[rows])
            comparable_S += np.einsum("es,es->s", known_EN @ single_NS, weights_NS[rows])
        return {"c_index": _ratio(concordant_S, comparable_S, np.nan)}

    return weigh


def ranking(positive_N: Bools, score_N: Floats) -> Callable[[Floats], Floats]:
    """Return the function from weights to (2, S): AUROC and average precision. One sort serves all weights.

    Both are sums over the distinct scores that a positive row has: of its positives times the negatives below
    (those of equal score count half), and of its positives times the precision down to it.
    """
    order = np.argsort(-score_N, kind="stable")
    last_T = np.flatnonzero(np.r_[np.diff(score_N[order]) != 0, True])
    positive_rows = order[positive_N[order]]
    down_to_T = np.cumsum(positive_N[order])[last_T]
    has_positive = np.diff(down_to_T, prepend=0) > 0
    # How many rows, and how many positive ones, there are down to each such score, and before it.
    all_to_G, positive_to_G = last_T[has_positive] + 1, down_to_T[has_positive]
    all_before_G = np.r_[0, last_T[:-1] + 1][has_positive]
    positive_before_G = np.r_[0, down_to_T[:-1]][has_positive]

    def weigh(weights_NS: Floats) -> Floats:
        all_NS = _running(weights_NS[order])
        positive_NS = _running(weights_NS[positive_rows])
        negative_S = all_NS[-1] - positive_NS[-1]
        to_GS, before_GS = positive_NS[positive_to_G], positive_NS[positive_before_G]
        own_GS = to_GS - before_GS
        above_GS = all_NS[all_to_G]
        negatives_GS = (above_GS - to_GS + all_NS[all_before_G] - before_GS) / 2
        pairs_S = np.einsum("gs,gs->s", own_GS, negative_S - negatives_GS)
        precise_S = np.einsum("gs,gs->s", own_GS, _ratio(to_GS, above_GS, 0.0))
        area_S = _ratio(pairs_S, positive_NS[-1] * negative_S, np.nan)
        return np.stack(
            [area_S, np.where(np.isfinite(area_S), _ratio(precise_S, positive_NS[-1], np.nan), np.nan)]
        )

    return weigh


def _running(weights_NS: Floats) -> Floats:
    """Return (N + 1, S) sums of the first 0 .. N rows."""
    sums = np.zeros((len(weights_NS) + 1, weights_NS.shape[1]))
    np.cumsum(weights_NS, axis=0, out=sums[1:])
    return sums


def _confusion(codes_N: Indices, predicted_N: Indices, classes: int) -> Callable[[Floats], Floats]:
    """Return the function from weights to (C, C, S) sums by true and predicted class."""
    cells_KN = (codes_N * classes + predicted_N == np.arange(classes**2)[:, None]).astype(np.float64)
    return lambda weights_NS: (cells_KN @ weights_NS).reshape(classes, classes, -1)


def _counted(counts_CCS: Floats, columns: Sequence[int]) -> dict[str, Floats]:
    """Return the scores of a confusion table; NaN all where a class has no row, as in ``scores``."""
    right_CS = np.einsum("ccs->cs", counts_CCS)
    true_CS, predicted_CS = counts_CCS.sum(axis=1), counts_CCS.sum(axis=0)
    recall_CS = _recalls(counts_CCS)
    missing_CS = np.where(true_CS > 0, 0.0, np.nan).sum(axis=0)  # NaN spreads to what needs every class
    at = list(columns)
    return {
        "balanced_accuracy": recall_CS.mean(axis=0),
        "accuracy": right_CS.sum(axis=0) / true_CS.sum(axis=0),
        "f1": missing_CS + _ratio(2 * right_CS, true_CS + predicted_CS, 0.0)[at].mean(axis=0),
        "precision": missing_CS + _ratio(right_CS, predicted_CS, 0.0)[at].mean(axis=0),
        "recall": missing_CS + recall_CS[at].mean(axis=0),
        "kappa": _kappa(counts_CCS, quadratic=False),
    }


def _recalls(counts_CCS: Floats) -> Floats:
    return _ratio(np.einsum("ccs->cs", counts_CCS), counts_CCS.sum(axis=1), np.nan)


def _kappa(counts_CCS: Floats, *, quadratic: bool) -> Floats:
    true_CS, predicted_CS = counts_CCS.sum(axis=1), counts_CCS.sum(axis=0)
    grade_C = np.arange(len(counts_CCS))
    apart_CC = (grade_C[:, None] - grade_C) ** 2 if quadratic else grade_C[:, None] != grade_C
    seen_S = np.einsum("cd,cds->s", apart_CC.astype(np.float64), counts_CCS)
    expected_S = np.einsum("cd,cs,ds->s", apart_CC.astype(np.float64), true_CS, predicted_CS, optimize=True)
    return 1 - _ratio(seen_S * true_CS.sum(axis=0), expected_S, np.nan)


def _gaps(codes_N: Indices, probability_NC: Floats) -> Floats:
    """Return (K, N): what each row adds to the gap of prediction and truth of its reliability bin."""
    predicted_N, true_N = calibration.claims(codes_N, probability_NC)
    in_bin_KN = calibration.bin_of(predicted_N, calibration.BINS) == np.arange(calibration.BINS)[:, None]
    return np.asarray(in_bin_KN * (predicted_N - true_N))


def _correlation_of_ranks(x_N: Floats, y_N: Floats) -> Callable[[Floats], Floats]:
    """Return the function from weights to (S,) rank correlations: a row of weight 2 stands there twice."""
    groups = [_groups(x_N), _groups(y_N)]

    def weigh(weights_NS: Floats) -> Floats:
        total_S = weights_NS.sum(axis=0)
        # Mean ranks of ties, less half of all rows and over all rows: within -0.5 .. 0.5.
        x_NS, y_NS = (
            _ranks(order, starts, of_N, weights_NS) / total_S - 0.5 for order, starts, of_N in groups
        )
        wx_NS, wy_NS = weights_NS * x_NS, weights_NS * y_NS
        x_S, y_S = wx_NS.sum(axis=0) / total_S, wy_NS.sum(axis=0) / total_S
        return _correlation(
            np.einsum("ns,ns->s", wx_NS, y_NS) / total_S - x_S * y_S,
            np.einsum("ns,ns->s", wx_NS, x_NS) / total_S - x_S**2,
            np.einsum("ns,ns->s", wy_NS, y_NS) / total_S - y_S**2,
        )

    return weigh


def _groups(values_N: Floats) -> tuple[Indices, Indices, Indices]:
    """Return the sorting order, where each distinct value starts in it, and which value each row has."""
    _, of_N, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    order = np.argsort(values_N, kind="stable")
    return order, np.cumsum(counts) - counts, of_N.reshape(-1)


def _ranks(order: Indices, starts: Indices, of_N: Indices, weights_NS: Floats) -> Floats:
    held_GS = np.add.reduceat(weights_NS[order], starts, axis=0)
    ranks_NS: Floats = (np.cumsum(held_GS, axis=0) - held_GS / 2)[of_N]
    return ranks_NS


def _correlation(covariance_S: Floats, variance_S: Floats, other_S: Floats) -> Floats:
    varies = (variance_S > _TINY) & (other_S > _TINY)
    return _ratio(np.where(varies, covariance_S, np.nan), np.sqrt(np.abs(variance_S * other_S)), np.nan)


def _standard(values_N: Floats) -> tuple[Floats, float]:
    """Return the values with mean 0 and deviation 1, and the deviation (1 where they are constant)."""
    spread = float(values_N.std())
    spread = spread if spread > 0 else 1.0
    return (values_N - values_N.mean()) / spread, spread


def _ratio(top: Floats, bottom: Floats, otherwise: float) -> Floats:
    """Return top / bottom, ``otherwise`` where bottom is 0."""
    ratio: Floats = np.divide(top, bottom, out=np.full(np.shape(top), otherwise), where=bottom > 0)
    return ratio


def _mean_defined(values_LS: Floats) -> Floats:
    """Return the mean over the labels that are defined; NaN where none is."""
    defined_LS = np.isfinite(values_LS)
    return _ratio(
        np.where(defined_LS, values_LS, 0.0).sum(axis=0), defined_LS.sum(axis=0).astype(np.float64), np.nan
    )
