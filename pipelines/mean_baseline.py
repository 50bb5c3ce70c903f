"""Score mean pooling and logistic regression in the very folds of a trained model, beside that model.

    python -m pipelines.mean_baseline --run RUN --labels labels.csv --name gated-attention

Comes in: a run with features and a model that `wsi-mil train` cross-validated on two classes. Goes out: a
table with the AUROC of both, each with a 95 % interval, and of their difference, paired. The baseline: the
mean of a slide's features, each standardised over the training slides, and a logistic regression whose C is
chosen inside the training part (grouped, stratified 5-fold, lowest log loss). It sees the same training and
test slides as the model, and no test slide but once.

With repeated cross-validation a score is the mean over the repeats. Intervals are percentile bootstraps over
patients, all repeats of a patient drawn together.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from wsi_mil import manifest, metrics, store

STRENGTHS = np.logspace(-4, 2, 13)
"""Values of C (inverse strength of the L2 penalty) to choose from."""

INNER_FOLDS = 5


def choose_and_fit(x_ND: np.ndarray, y_N: np.ndarray, groups_N: np.ndarray) -> tuple[object, float]:
    """Return the logistic regression of the best C on these rows, and that C.

    The best C has the lowest log loss over rows that were set apart, whole groups at a time. Where a class
    has too few groups for that, C is 1.
    """
    groups = min(len(set(groups_N[y_N == label])) for label in (0, 1))
    if groups < 2:
        return _model(1.0).fit(x_ND, y_N), 1.0
    inner = StratifiedGroupKFold(min(INNER_FOLDS, groups), shuffle=True, random_state=0)
    losses = np.zeros(len(STRENGTHS))
    for train, val in inner.split(x_ND, y_N, groups_N):
        if len(set(y_N[train])) < 2:
            continue
        for at, strength in enumerate(STRENGTHS):
            probability_V = _model(strength).fit(x_ND[train], y_N[train]).predict_proba(x_ND[val])
            losses[at] += log_loss(y_N[val], probability_V, labels=[0, 1], normalize=False)
    best = float(STRENGTHS[losses.argmin()])
    return _model(best).fit(x_ND, y_N), best


def _model(strength: float):
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=5000))


def read_tested(folder: Path) -> dict[str, np.ndarray]:
    """Return the rows of predictions.csv as columns: slide, patient, fold, repeat, label (0, 1), probability.

    Raises:
        ValueError: the model does not tell two classes apart.
    """
    scores = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    positive = scores.get("positive")
    if positive is None:
        raise ValueError(f"{folder}: no model of two classes; this baseline is for two")
    rows = store.read_csv(folder / "predictions.csv")
    return {
        "slide": np.array([row["slide_id"] for row in rows]),
        "patient": np.array([row["patient_id"] for row in rows]),
        "fold": np.array([int(row["fold"]) for row in rows]),
        "repeat": np.array([int(row.get("repeat") or 0) for row in rows]),
        "label": np.array([int(row["label"] == positive) for row in rows]),
        "probability": np.array([float(row[f"probability_{positive}"]) for row in rows]),
    }


def read_training(folder: Path) -> dict[int, list[str]]:
    """Return, per fold, the slides that the model was trained or validated on."""
    training: dict[int, set[str]] = defaultdict(set)
    for row in store.read_csv(folder / "splits.csv"):
        if row["role"] != "test":
            training[int(row["fold"])].add(row["slide_id"])
    return {fold: sorted(slides) for fold, slides in training.items()}


def baseline(
    means: dict[str, np.ndarray],
    labels: dict[str, tuple[str, str]],
    tested: dict[str, np.ndarray],
    training: dict[int, list[str]],
    positive: str,
) -> tuple[np.ndarray, list[float]]:
    """Return the baseline's probability for each row of ``tested``, and the C of each fold."""
    probability_N, chosen = np.full(len(tested["slide"]), np.nan), []
    for fold, slides in sorted(training.items()):
        at = tested["fold"] == fold
        if set(slides) & set(tested["slide"][at]):
            raise ValueError(f"fold {fold}: a slide is in the training and in the test part")
        x_ND = np.stack([means[each] for each in slides])
        y_N = np.array([int(labels[each][1] == positive) for each in slides])
        model, strength = choose_and_fit(x_ND, y_N, np.array([labels[each][0] for each in slides]))
        x_TD = np.stack([means[each] for each in tested["slide"][at]])
        probability_N[at] = model.predict_proba(x_TD)[:, 1]  # type: ignore[attr-defined]
        chosen.append(strength)
    return probability_N, chosen


def intervals(
    tested: dict[str, np.ndarray], scores: dict[str, np.ndarray], *, samples: int = 2000, seed: int = 0
) -> dict[str, tuple[float, float, float]]:
    """Return value, low and high per name of ``scores`` (a score for each row), each the mean over repeats.

    The same samples of patients serve all names; the last entry is the first name less the second.
    """
    slides, first = np.unique(tested["slide"], return_index=True)
    positive_N = tested["label"][first] == 1
    weights_NS = np.hstack(
        (np.ones((len(slides), 1)), _resamples(tested["patient"][first], positive_N, samples, seed))
    )  # the first column gives the value
    of_name = {}
    for name, score in scores.items():
        each = []
        for repeat in np.unique(tested["repeat"]):
            at = np.flatnonzero(tested["repeat"] == repeat)
            at = at[np.argsort(tested["slide"][at])]
            if len(at) != len(slides):
                raise ValueError(f"repeat {repeat}: tests {len(at)} slides of {len(slides)}")
            each.append(metrics.ranking(positive_N, score[at])(weights_NS)[0])
        of_name[name] = np.mean(each, axis=0)
    one, other = list(of_name)[:2]
    of_name[f"{one} - {other}"] = of_name[one] - of_name[other]
    return {
        name: (float(each[0]), *(float(end) for end in np.percentile(each[1:], [2.5, 97.5])))
        for name, each in of_name.items()
    }


def _resamples(patients_N: np.ndarray, positive_N: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Return (N, samples): how often each row's patient was drawn; what lacks a class is drawn again."""
    draw, kept = metrics.resampler(patients_N.tolist(), seed), np.empty((len(patients_N), 0))
    while kept.shape[1] < samples:
        weights_NS = draw(samples)
        both_S = weights_NS[positive_N].any(axis=0) & weights_NS[~positive_N].any(axis=0)
        kept = np.hstack((kept, weights_NS[:, both_S]))
    return kept[:, :samples]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True, help="the labels that the model was trained on")
    parser.add_argument("--name", default="gated-attention", help="the model's folder under RUN/models")
    arguments = parser.parse_args()
    folder = store.model_folder(arguments.run, arguments.name)
    tested, training = read_tested(folder), read_training(folder)
    head = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    features = store.open_features(arguments.run, head["identity"]["encoder"])
    slides = {each for some in training.values() for each in some} | set(tested["slide"].tolist())
    means = {each: features.read(each).features.mean(axis=0, dtype=np.float64) for each in sorted(slides)}
    table = manifest.read_labels(arguments.labels)
    labels = dict(zip(table.slide_ids, zip(table.patient_ids, table.labels, strict=True), strict=True))
    probability_N, chosen = baseline(means, labels, tested, training, head["positive"])

    repeats = len(np.unique(tested["repeat"]))
    table = Table(
        title=f"{len(slides)} slides, {repeats} x {len(chosen) // repeats} folds; "
        f"C from {min(chosen):.2g} to {max(chosen):.2g}"
    )
    for column in ("AUROC", "value", "95 % interval"):
        table.add_column(column, justify="left" if column == "AUROC" else "right")
    scores = {arguments.name: tested["probability"], "mean + logistic regression": probability_N}
    for name, (value, low, high) in intervals(tested, scores).items():
        table.add_row(name, f"{value:.4f}", f"{low:.4f} to {high:.4f}")
    Console(highlight=False).print(table)


if __name__ == "__main__":
    main()
