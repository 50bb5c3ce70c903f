"""Scores of runs, and the table beside the paper's.

Comes in: what is stored of the runs of a method. Goes out: scores with their standard errors, and Markdown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.paper.recipe import METHODS
from pipelines.paper.runs import Outcome, auroc

SCORES = ("accuracy", "precision", "recall", "F-score")
Figure = tuple[float, float]
"""A mean and its standard error."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A score of a method: ``error`` is None where there is nothing to take it over."""

    mean: float
    error: float | None

    def __str__(self) -> str:
        """Return it as it stands in a table."""
        return f"{self.mean:.3f}" + ("" if self.error is None else f" ± {self.error:.3f}")


def decisions(code_B: NDArray[np.int64], probability_B: NDArray[np.float64]) -> dict[str, float]:
    """Return accuracy, precision, recall and F-score of the decision at one half; what is 0 / 0 is 0."""
    predicted_B, true_B = probability_B > 0.5, code_B == 1
    hits = int((predicted_B & true_B).sum())
    precision = hits / max(1, int(predicted_B.sum()))
    recall = hits / max(1, int(true_B.sum()))
    return {
        "accuracy": float((predicted_B == true_B).mean()),
        "precision": precision,
        "recall": recall,
        "F-score": 2 * precision * recall / max(precision + recall, 1e-12),
    }


def scores(repetitions: Sequence[Sequence[Outcome]]) -> dict[str, Cell]:
    """Return the scores of a method from the folds of each repetition.

    Accuracy, precision, recall and F-score are of all bags that a repetition tested (a fold alone may have
    none that is called positive); the AUC is the mean over a repetition's folds. Mean over the repetitions;
    standard error over the repetitions where there are two or more, else over the folds (AUC, accuracy).
    "pooled AUC" is of all bags that a repetition tested, though their probabilities are of several networks.
    """
    rows = [_repetition(each) for each in repetitions]
    cells = {name: _cell([row[name] for row in rows]) for name in rows[0]}
    if len(rows) == 1:
        areas = [each.auroc for each in repetitions[0]]
        right = [decisions(each.code_B, each.probability_B)["accuracy"] for each in repetitions[0]]
        for name, values in (("AUC", [a for a in areas if a is not None]), ("accuracy", right)):
            cells[name] = Cell(mean=cells[name].mean, error=_error(values))
    return cells


def table(
    found: Mapping[str, Sequence[Sequence[Outcome]]],
    paper: Mapping[str, Mapping[str, Figure | float]],
    folds: int,
) -> str:
    """Return Markdown: for each method what it reached here and, below it, what the paper has."""
    columns = (*SCORES, "AUC")
    lines = [
        "| method | runs | " + " | ".join(columns) + " | pooled AUC | AUC against the paper's |",
        "|---" * (len(columns) + 4) + "|",
    ]
    for method, title in METHODS.items():
        repetitions = [each for each in found.get(method, ()) if each]
        if repetitions:
            cells = scores(repetitions)
            tested = sum(len(each) for each in repetitions)
            whole = sum(len(each) == folds for each in repetitions)
            runs = (
                f"{tested} folds ({whole} x {folds})"
                if whole * folds == tested
                else f"{tested} folds, not all"
            )
            figures = " | ".join(str(cells[name]) for name in columns)
            lines.append(
                f"| **{title}** | {runs} | {figures} | {cells['pooled AUC']} | "
                f"{verdict(cells['AUC'].mean, paper[method]['AUC'])} |"
            )
        else:
            lines.append(
                f"| **{title}** | not run | " + " | ".join("-" for _ in range(len(columns) + 2)) + " |"
            )
        theirs = " | ".join(_figure(paper[method][name]) for name in columns)
        lines.append(f"| {title}, paper | 5 x 10 | {theirs} | | |")
    return "\n".join(lines)


def verdict(ours: float, paper: Figure | float) -> str:
    """Say how an AUC of ours lies to the paper's, in its standard errors."""
    assert isinstance(paper, tuple)
    mean, error = paper
    steps = (ours - mean) / error
    where = "above" if steps > 0 else "within 2 SE" if steps >= -2 else "BELOW 2 SE"
    return f"{where} ({ours - mean:+.3f}, {steps:+.1f} SE)"


def _repetition(folds: Sequence[Outcome]) -> dict[str, float]:
    code_B = np.concatenate([each.code_B for each in folds])
    probability_B = np.concatenate([each.probability_B for each in folds])
    areas = [each.auroc for each in folds]
    pooled = auroc(code_B, probability_B)
    return decisions(code_B, probability_B) | {
        "AUC": float(np.mean([area for area in areas if area is not None])),
        "pooled AUC": float("nan") if pooled is None else pooled,
    }


def _cell(values: Sequence[float]) -> Cell:
    return Cell(mean=float(np.mean(values)), error=_error(values))


def _error(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def _figure(figure: Figure | float) -> str:
    return f"{figure[0]:.3f} ± {figure[1]:.3f}" if isinstance(figure, tuple) else f"{figure:.3f}"
