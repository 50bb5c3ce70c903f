"""What a model is to learn: labels of any task as one array, and everything about them that cannot be right.

Comes in: the labels of the slides (or patients) to train on. Goes out: ``Targets``. All problems of a kind
are said at once, by slide; a label that may be meant or not is refused until --classes names it.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_mil.config import TrainConfig
from wsi_mil.errors import LabelError
from wsi_mil.manifest import values
from wsi_mil.manifest.labels import Labels
from wsi_mil.manifest.table import some

_MOST_NUMBERS = 20
"""More different numbers than this are a quantity, not classes."""


@dataclass(frozen=True, eq=False)
class Targets:
    """The labels of a task as numbers, a row per slide or patient.

    ============== =================== ========================================================
    task           names               values
    ============== =================== ========================================================
    classification the classes         (N,) int64: positions in names; of two, 1 is positive
    multilabel     the labels          (N, L) float64: 1 where the slide has the label, else 0
    ordinal        the grades, rising  (N,) int64: positions in names
    regression     ("value",)          (N,) float64
    survival       ("risk",)           (N, 2) float64: time > 0; 1 for a seen event, 0 for none
    ============== =================== ========================================================

    ``remarks`` are sentences about what is allowed and should be known.
    """

    task: str
    names: tuple[str, ...]
    values: NDArray[Any]
    remarks: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return N."""
        return len(self.values)

    def take(self, rows: NDArray[np.int64] | Sequence[int]) -> "Targets":
        """Return the targets of some rows, in the order asked for."""
        return Targets(self.task, self.names, self.values[np.asarray(rows, np.int64)])


def make_targets(labels: Labels, config: TrainConfig) -> Targets:
    """Return the labels as the numbers that ``config.task`` learns; see ``Targets``.

    Classes without --classes are sorted (numbers by value); of two, --positive comes last.

    Raises:
        LabelError: a label is a word for a missing value, is not one of --classes or looks like another one;
            there is one class only, nothing but one value, or no event; and what else cannot be learnt from.
        ValueError: ``labels`` were read for another task.
    """
    if labels.task != config.task:
        raise ValueError(f"the labels were read for {labels.task}, and the task is {config.task}")
    return _MAKERS[config.task](labels, config)


def _classification(labels: Labels, config: TrainConfig) -> Targets:
    counts = Counter(labels.labels)
    if config.classes:
        _refuse_unknown(labels, labels.labels, config.classes)
        _refuse_unused(labels, config.classes, counts)
    else:
        _refuse_missing(labels, [(label,) for label in labels.labels])
        _refuse_doubles(labels, counts)
        _refuse_mixed(labels, counts)
        _refuse_quantity(labels, counts)
    classes = list(config.classes) or _in_order(counts)
    found = _counted(classes, counts)
    if len(classes) < 2:
        raise LabelError(
            f"{labels.path}: only one label among the slides to train on, {found}; wanted two or more."
        )
    positive = config.positive
    if positive is not None and positive not in counts:
        raise LabelError(f"--positive {positive!r}: not a label of {labels.path}; found {found}.")
    if positive is not None and len(classes) > 2:
        raise LabelError(
            f"--positive {positive!r}: only two labels have a positive one; {labels.path} holds "
            f"{len(classes)}: {found}. Leave --positive out: each label is scored against the rest."
        )
    if positive is not None:
        classes.sort(key=lambda name: name == positive)
    return Targets("classification", tuple(classes), _codes(labels.labels, classes))


def _ordinal(labels: Labels, config: TrainConfig) -> Targets:
    grades = config.classes
    _refuse_unknown(labels, labels.labels, grades)
    counts = Counter(labels.labels)
    if len(counts) < 2:
        raise LabelError(
            f"{labels.path}: only one grade among the slides to train on, {_counted(grades, counts)}; wanted "
            "two or more."
        )
    unused = [grade for grade in grades if not counts[grade]]
    remark = f"{labels.path}: grades that no slide has: {some(unused)}; the model keeps a place for each."
    return Targets("ordinal", grades, _codes(labels.labels, grades), (remark,) if unused else ())


def _multilabel(labels: Labels, config: TrainConfig) -> Targets:
    parts_N = [values.parts(label) for label in labels.labels]
    _refuse_parts(labels, parts_N)
    flat = [part for parts in parts_N for part in parts]
    counts = Counter(flat)
    if config.classes:
        slides = [slide for slide, parts in zip(labels.slide_ids, parts_N, strict=True) for _ in parts]
        _refuse_unknown(labels, flat, config.classes, slides)
        _refuse_unused(labels, config.classes, counts)
    else:
        _refuse_missing(labels, parts_N)
        with_none = Counter(counts)  # what looks like it, such as None, is not taken for a label
        with_none[values.NO_LABEL] = sum(not parts for parts in parts_N)
        _refuse_doubles(labels, with_none)
    names = config.classes or tuple(_in_order(counts))
    held_NL = np.array([[float(name in parts) for name in names] for parts in parts_N], np.float64)
    constant = [name for name, held in zip(names, held_NL.T, strict=True) if held.all()]
    if len(constant) == len(names):
        found = _counted(names, counts) or f"all of them say '{values.NO_LABEL}'"
        raise LabelError(
            f"{labels.path}: every one of the {len(labels.labels)} slides to train on has the same labels, "
            f"{found}; wanted some that differ."
        )
    remark = f"{labels.path}: every slide has {some(constant)}: nothing can be learnt about that."
    return Targets("multilabel", names, held_NL, (remark,) if constant else ())


def _regression(labels: Labels, _config: TrainConfig) -> Targets:
    value_N = np.array([float(label) for label in labels.labels], np.float64)
    if len(np.unique(value_N)) < 2:
        raise LabelError(
            f"{labels.path}: every one of the {len(value_N)} slides to train on has the value "
            f"{labels.labels[0]}; wanted values that differ."
        )
    return Targets("regression", ("value",), value_N)


def _survival(labels: Labels, _config: TrainConfig) -> Targets:
    value_N2 = np.array([values.survival(label) for label in labels.labels], np.float64)
    time_N, event_N = value_N2.T
    if not event_N.any():
        raise LabelError(
            f"{labels.path}: all {len(time_N)} slides to train on are censored (event 0): without an event "
            "there is nothing to learn. Is 1 the event in that column?"
        )
    if time_N[event_N == 1].min() >= time_N.max():
        raise LabelError(
            f"{labels.path}: no event comes before the end of another slide's time, so no two slides can be "
            "ranked; wanted events at different times."
        )
    return Targets("survival", ("risk",), value_N2)


_MAKERS: dict[str, Callable[[Labels, TrainConfig], Targets]] = {
    "classification": _classification,
    "multilabel": _multilabel,
    "ordinal": _ordinal,
    "regression": _regression,
    "survival": _survival,
}


def _refuse_unknown(
    labels: Labels, found: Sequence[str], classes: Sequence[str], slides: Sequence[str] | None = None
) -> None:
    """Refuse labels that --classes does not name; ``slides`` are those that hold them."""
    held = zip(slides or labels.slide_ids, found, strict=True)
    unknown = [(slide, label) for slide, label in held if label not in classes]
    if not unknown:
        return
    looks = {values.look(name): name for name in classes}
    alike = sorted(
        {(label, looks[values.look(label)]) for _, label in unknown if values.look(label) in looks}
    )
    hint = "".join(f" Is '{label}' meant to be '{name}'?" for label, name in alike)
    raise LabelError(
        f"{labels.path}: {len(unknown)} slides have labels that --classes does not name: "
        f"{some([f'{slide} ({label!r})' for slide, label in unknown])}; it names {', '.join(classes)}. "
        f"Correct them, name them, or remove the rows.{hint}"
    )


def _refuse_unused(labels: Labels, classes: Sequence[str], counts: Counter[str]) -> None:
    unused = [name for name in classes if not counts[name]]
    if unused:
        raise LabelError(
            f"--classes: none of the slides to train on has {some([repr(name) for name in unused])} "
            f"({labels.path} holds {_counted(_in_order(counts), counts) or 'no label'}), so nothing can be "
            "learnt about it. Leave it out, or correct the labels."
        )


def _refuse_missing(labels: Labels, parts_N: Iterable[Sequence[str]]) -> None:
    """Refuse words for a missing value among the labels of each slide."""
    missing = [
        f"{slide} ({part!r})"
        for slide, parts in zip(labels.slide_ids, parts_N, strict=True)
        for part in parts
        if values.is_missing(part)
    ]
    if missing:
        raise LabelError(
            f"{labels.path}: {len(missing)} slides have as label a word for a missing value: "
            f"{some(missing)}. Fill the labels in or remove the rows; if it is the name of a class, name all "
            "classes with --classes."
        )


def _refuse_doubles(labels: Labels, counts: Counter[str]) -> None:
    """Refuse classes that differ in case, blanks or the form of a number only."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in sorted(counts):
        alike[values.look(name)].append(name)
    doubles = [
        " and ".join(f"{name!r} ({counts[name]})" for name in each)
        for each in alike.values()
        if len(each) > 1
    ]
    if doubles:
        raise LabelError(
            f"{labels.path}: labels that are probably the same: {some(doubles)}. Write them alike; if they "
            "are different classes, name all classes with --classes."
        )


def _refuse_mixed(labels: Labels, counts: Counter[str]) -> None:
    numbers = [name for name in counts if values.number(name) is not None]
    words = [name for name in counts if values.number(name) is None]
    if numbers and words:
        raise LabelError(
            f"{labels.path}: some labels are numbers and some are words: "
            f"{_counted(_in_order(counts), counts)}. Write one kind; if all of them are "
            "classes, name them with --classes."
        )


def _refuse_quantity(labels: Labels, counts: Counter[str]) -> None:
    if len(counts) > _MOST_NUMBERS and all(values.number(name) is not None for name in counts):
        raise LabelError(
            f"{labels.path}: {len(counts)} different numbers as labels ({some(_in_order(counts))}): as "
            "classes they would have nothing to do with each other. Use --task regression; if they are "
            "classes, name all of them with --classes."
        )


def _refuse_parts(labels: Labels, parts_N: Sequence[Sequence[str]]) -> None:
    """Refuse multilabels with an empty place, a label twice, or 'none' beside others."""
    faults: dict[str, list[str]] = defaultdict(list)
    for slide, label, parts in zip(labels.slide_ids, labels.labels, parts_N, strict=True):
        kinds = {
            "with nothing before or after a ';'": "" in parts,
            "that name a label twice": len(set(parts)) < len(parts),
            f"with '{values.NO_LABEL}' beside a label": values.NO_LABEL in parts,
        }
        for kind in (kind for kind, wrong in kinds.items() if wrong):
            faults[kind].append(f"{slide} ({label!r})")
    if faults:
        listed = "; ".join(f"{len(each)} slides {kind}: {some(each)}" for kind, each in faults.items())
        raise LabelError(
            f"{labels.path}: {listed}. Labels are joined by ';', each once; a slide with none of them says "
            f"'{values.NO_LABEL}'."
        )


def _in_order(names: Iterable[str]) -> list[str]:
    """Return classes as they are listed: numbers by value before words by the alphabet."""

    def key(name: str) -> tuple[bool, float, str]:
        value = values.number(name)
        return value is None, value or 0.0, name

    return sorted(names, key=key)


def _counted(names: Iterable[str], counts: Counter[str]) -> str:
    return some([f"'{name}' ({counts[name]})" for name in names if counts[name]])


def _codes(found: Sequence[str], names: Sequence[str]) -> NDArray[np.int64]:
    code_of = {name: code for code, name in enumerate(names)}
    return np.array([code_of[label] for label in found], np.int64)
