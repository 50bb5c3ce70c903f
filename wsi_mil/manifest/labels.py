"""labels.csv: which label each slide has, whose slide it is, and which fold tests it.

Comes in: a CSV ``slide_id,label[,patient_id][,split]`` (survival: ``time,event`` for ``label``; columns in
any order, others ignored) and the ids of the slides that have features. Goes out: checked columns of text.
What the labels are to a model, ``targets`` knows. Nothing is dropped silently and nothing is guessed; all
problems of a kind are said at once.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from wsi_mil.errors import ConfigError, LabelError
from wsi_mil.manifest import values
from wsi_mil.manifest.table import WANTED, Row, other_delimiter, read_table, some

_PATIENTS = frozenset(
    f"{who}{kind}"
    for who in ("patient", "case", "subject", "donor", "participant", "casesubmitter", "submitter", "person")
    for kind in ("", "s", "id", "ids", "uid", "uuid", "no", "nr", "num", "number", "name", "code", "key",
                 "barcode", "identifier", "index")
) | {"pid", "idpatient", "idcase"}  # fmt: skip
"""Names of columns that are of patients in the tables of hospitals, of TCGA and of other tools, without case,
blanks and marks."""


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The rows of a labels file as columns of equal length.

    ``labels`` are texts as they stand there; for survival such as '12.5 event' or '12.5 censored'.
    ``patient_ids`` are the slide ids where the file has no patient_id column (``has_patients`` is False
    then); ``splits`` is None where it has no split column, and may hold empty strings; ``groups`` are of the
    column that was asked for, else None.
    """

    path: Path
    slide_ids: tuple[str, ...]
    labels: tuple[str, ...]
    patient_ids: tuple[str, ...]
    splits: tuple[str, ...] | None
    has_patients: bool
    task: str = "classification"
    groups: tuple[str, ...] | None = None

    def take(self, rows: Iterable[int]) -> "Labels":
        """Return the labels of some rows, in the order asked for."""
        rows = list(rows)
        return dataclasses.replace(
            self,
            slide_ids=tuple(self.slide_ids[i] for i in rows),
            labels=tuple(self.labels[i] for i in rows),
            patient_ids=tuple(self.patient_ids[i] for i in rows),
            splits=None if self.splits is None else tuple(self.splits[i] for i in rows),
            groups=None if self.groups is None else tuple(self.groups[i] for i in rows),
        )


@dataclass(frozen=True, kw_only=True)
class Match:
    """Labels against features: what fits, sorted by slide id, and what does not, by name."""

    labels: Labels
    without_features: tuple[str, ...]
    without_label: tuple[str, ...]
    hint: str


def read_labels(path: Path, task: str = "classification", group_by: str | None = None) -> Labels:
    """Read a labels file: UTF-8 (with or without a byte order mark), fields separated by commas.

    ``task`` is one of ``TrainConfig``'s: survival reads time and event, the others label. ``group_by`` is a
    column whose values become ``groups``.

    Raises:
        LabelError: no such file, no CSV, a column missing or there twice, an empty field, a slide id twice,
            or (regression, survival) what is no number, no time or no event; names them with their lines.
            No patient_id, and a column that seems to be of patients under another name; names it.
        ConfigError: there is no column ``group_by``; names those there are.
    """
    header, rows = read_table(path)
    columns = ("time", "event") if task == "survival" else ("label",)
    _check_header(path, header, ("slide_id", *columns), group_by)
    _refuse_patients_unread(path, header)
    names = [name for name in ("slide_id", *columns, "patient_id") if name in header]
    names += [group_by] if group_by is not None and group_by not in names else []
    _refuse_empty(path, rows, names, group_by)
    if not rows:
        raise LabelError(f"{path}: a header and no rows; wanted one row per slide.")
    counts = Counter(row["slide_id"] for _, row in rows)
    twice = [slide_id for slide_id, count in counts.items() if count > 1]
    if twice:
        raise LabelError(
            f"{path}: {len(twice)} slide ids stand there more than once: {some(twice)}. "
            "Wanted one row per slide."
        )
    _refuse_values(path, rows, task)
    has_patients = "patient_id" in header
    return Labels(
        path=path,
        slide_ids=tuple(row["slide_id"] for _, row in rows),
        labels=tuple(_label(row, task) for _, row in rows),
        patient_ids=tuple(row["patient_id" if has_patients else "slide_id"] for _, row in rows),
        splits=tuple(row["split"] for _, row in rows) if "split" in header else None,
        has_patients=has_patients,
        task=task,
        groups=None if group_by is None else tuple(row[group_by] for _, row in rows),
    )


def match(labels: Labels, feature_ids: Collection[str], where: object) -> Match:
    """Return which labels have features (of the ids found in ``where``), and what is left over on each side.

    Raises:
        LabelError: not one label has features.
    """
    known = set(feature_ids)
    row = {slide_id: i for i, slide_id in enumerate(labels.slide_ids)}
    both = sorted(known & row.keys())
    without_features = tuple(sorted(row.keys() - known))
    hint = _extension_hint(without_features, known)
    if not both:
        raise LabelError(
            f"{labels.path}: none of its {len(row)} slides has features in {where}. Labels: "
            f"{some(sorted(row))}; features: {some(sorted(known)) or 'none'}.{hint}"
        )
    return Match(
        labels=labels.take(row[slide_id] for slide_id in both),
        without_features=without_features,
        without_label=tuple(sorted(known - row.keys())),
        hint=hint,
    )


def check_splits(labels: Labels) -> tuple[str, ...]:
    """Return the split column.

    Raises:
        LabelError: there is none, or it is empty for some slides (names them).
    """
    if labels.splits is None:
        raise LabelError(
            f"--split column: {labels.path} has no column 'split'; add one (the fold that tests the slide, "
            "or train, val, test), or use --split kfold."
        )
    empty = [slide for slide, split in zip(labels.slide_ids, labels.splits, strict=True) if not split]
    if empty:
        raise LabelError(
            f"{labels.path}: {len(empty)} slides have an empty split: {some(empty)}. Fill them in, or use "
            "--split kfold."
        )
    return labels.splits


def _check_header(path: Path, header: Sequence[str], needed: Sequence[str], group_by: str | None) -> None:
    found = ", ".join(repr(name) for name in header) or "an empty file"
    missing = [name for name in needed if name not in header]
    if missing:
        hint = ""
        if other_delimiter(header):
            hint = " The fields seem to be separated by ';' or tabs; use commas."
        elif "label" in missing and {"time", "event"} <= set(header):
            hint = " Times and events are those of --task survival."
        wanted = WANTED.replace("label", "time,event") if "time" in needed else WANTED
        raise LabelError(
            f"{path}: no column {' and no column '.join(missing)}; found {found}; {wanted}.{hint}"
        )
    if group_by is not None and group_by not in header:
        raise ConfigError(f"--group-by {group_by}: {path} has no such column; found {found}.")
    read = {*needed, "patient_id", "split", group_by}
    twice = [name for name, count in Counter(header).items() if count > 1 and name in read]
    if twice:
        raise LabelError(
            f"{path}: several columns are called {', '.join(repr(name) for name in twice)}; wanted one each. "
            "Rename or remove the others."
        )


def _refuse_patients_unread(path: Path, header: Sequence[str]) -> None:
    """Refuse a column of patients that is not called patient_id: it would be passed over, and leak."""
    if "patient_id" in header:
        return
    seen = [repr(name) for name in header if re.sub(r"[\W_]+", "", name).casefold() in _PATIENTS]
    if seen:
        raise LabelError(
            f"{path}: no column 'patient_id', and {' and '.join(seen)} seems to say whose slide it is. Left "
            "unread, each slide would count as its own patient, and slides of one patient would be trained "
            "and tested on. Rename the column to patient_id; where every slide is of another patient, remove "
            "it or give it a name that is not of patients."
        )


def _refuse_empty(path: Path, rows: Sequence[Row], names: Sequence[str], group_by: str | None) -> None:
    """Refuse empty fields, and patients and groups that are called as tables call a missing value."""
    for name in names:
        empty = [f"line {line} ({row['slide_id'] or '?'})" for line, row in rows if not row[name]]
        if empty:
            raise LabelError(
                f"{path}: {len(empty)} rows have no {name}: {some(empty)}. Fill them in or remove the rows."
            )
    for name in names:
        if name not in ("patient_id", group_by):
            continue
        called = [
            f"line {line} ({row['slide_id']}: '{row[name]}')"
            for line, row in rows
            if values.is_missing(row[name], names=True)
        ]
        if called:
            raise LabelError(
                f"{path}: the {name} of {len(called)} rows is a word for a missing value: {some(called)}. "
                "All of them would count as one and the same; fill them in or remove the rows."
            )


def _refuse_values(path: Path, rows: Sequence[Row], task: str) -> None:
    """Refuse what is no number (regression), no time or no event (survival), all of a kind at once."""
    faults: dict[str, list[str]] = {}
    for line, row in rows:
        for name in {"regression": ("label",), "survival": ("time", "event")}.get(task, ()):
            if name == "event":
                fault = (
                    "" if values.event(row[name]) is not None else f"is none of {', '.join(values.EVENTS)}"
                )
                fault = "is missing" if values.is_missing(row[name]) else fault
            else:
                fault = values.number_fault(row[name], above_zero=name == "time")
            if fault:
                where = f"line {line} ({row['slide_id']}: '{row[name]}')"
                faults.setdefault(f"whose {name} {fault}", []).append(where)
    if not faults:
        return
    listed = "; ".join(f"{len(each)} rows {fault}: {some(each)}" for fault, each in faults.items())
    advice = (
        "Wanted a number with a point before its decimals; correct them, or remove the rows. Labels that are "
        "words are those of --task classification."
    )
    if task == "survival":
        advice = (
            "Wanted as time how long a patient was seen (days, say; above 0) and as event 1 where it ended "
            "with the event, 0 where it did not (censored); correct them, or remove the rows."
        )
    raise LabelError(f"{path}: {listed}. {advice}")


def _label(row: dict[str, str], task: str) -> str:
    if task == "survival":
        return values.survival_text(row["time"], bool(values.event(row["event"])))
    return row["label"]


def _extension_hint(without_features: Sequence[str], known: set[str]) -> str:
    """Say so where a label's slide id is that of features with an extension appended."""
    cut = [name for name in without_features if "." in name and name.rpartition(".")[0] in known]
    if not cut:
        return ""
    return (
        f" A slide_id is the file name without its extension: '{cut[0]}' matches the features "
        f"'{cut[0].rpartition('.')[0]}' ({len(cut)} such); remove the extension in the labels."
    )
