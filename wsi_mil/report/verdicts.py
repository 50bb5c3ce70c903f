"""What models say of each slide, and how wrong that is: from tables of predictions to ``Verdict``.

Comes in: the rows of a predictions.csv. Goes out: a verdict per slide. It opens no file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from wsi_mil import manifest

CLASSES = ("classification", "multilabel", "ordinal")
"""The tasks whose predictions are probabilities."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What one model says of a slide that it never saw, or (``learnt``) one that it was trained on.

    ``probabilities`` are in the order of the model's names, and empty where the task has none; ``value`` is a
    predicted number or a risk. Of several repeats they are the means. ``label`` is empty where it is unknown.
    ``error`` is from 0 (right and certain) to 1: 1 - probability of the label; of several labels its mean; of
    a number the error as a part of the model's largest. None where there is no such thing.
    """

    model: str
    task: str
    folds: str
    label: str
    patient_id: str
    predicted: str
    probabilities: Mapping[str, float] = field(default_factory=dict)
    value: float | None = None
    error: float | None = None
    learnt: bool = False

    @property
    def wrong(self) -> bool:
        """Tell whether another class, or other classes, were predicted than the label says."""
        if not self.label or self.task not in CLASSES:
            return False
        return set(self.predicted.split(";")) != set(self.label.split(";"))


def verdicts_of(
    model: str, task: str, names: Sequence[str], rows: Sequence[Mapping[str, str]]
) -> dict[str, Verdict]:
    """Return the verdict on each slide, from a table of predictions with a row per repeat and slide."""
    of_slide: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        of_slide.setdefault(row["slide_id"], []).append(row)
    columns = [f"probability_{name}" for name in names] if task in CLASSES else list(names)
    found = {}
    for slide_id, each in of_slide.items():
        means = [sum(float(row[column]) for row in each) / len(each) for column in columns]
        first = each[0]
        fold = ", ".join(row["fold"] for row in each) if "fold" in first else f"mean of {first['folds']}"
        found[slide_id] = Verdict(
            model=model,
            task=task,
            folds=fold,
            label=first.get("label", ""),
            patient_id=first.get("patient_id", ""),
            predicted=first["predicted"] if len(each) == 1 else manifest.in_words(task, names, means),
            probabilities=dict(zip(names, means, strict=True)) if task in CLASSES else {},
            value=None if task in CLASSES else means[0],
            learnt=first.get("trained_on") == "yes",
        )
    return _with_errors(task, found)


def _with_errors(task: str, verdicts: Mapping[str, Verdict]) -> dict[str, Verdict]:
    """Return the verdicts with how wrong they are, where the label is known."""
    errors = {}
    for slide_id, each in verdicts.items():
        if each.label and task == "multilabel":
            held = set(each.label.split(";"))
            apart = [abs((name in held) - p) for name, p in each.probabilities.items()]
            errors[slide_id] = sum(apart) / len(apart)
        elif each.label and task in CLASSES:
            errors[slide_id] = 1 - each.probabilities.get(each.label, 0.0)
        elif each.label and task == "regression" and each.value is not None:
            errors[slide_id] = abs(each.value - float(each.label))
    largest = max(errors.values(), default=0.0) if task == "regression" else 1.0
    return {
        slide_id: replace(each, error=errors[slide_id] / largest if largest else 0.0)
        if slide_id in errors
        else each
        for slide_id, each in verdicts.items()
    }
