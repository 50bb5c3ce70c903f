"""labels.csv: which label each slide has, whose slide it is, and which fold tests it.

Comes in: a CSV ``slide_id,label[,patient_id][,split]`` (columns in any order, others ignored) and the ids of
the slides that have features. Goes out: checked columns. Nothing is dropped silently and nothing is guessed;
all problems of a kind are said at once.
"""

import csv
import io
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from wsi_mil.errors import LabelError

_SHOWN = 10
_WANTED = "wanted a header slide_id,label and, if you have them, patient_id and split"


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The rows of a labels file as columns of equal length.

    ``patient_ids`` are the slide ids where the file has no patient_id column (``has_patients`` is False
    then); ``splits`` is None where it has no split column, and may hold empty strings.
    """

    path: Path
    slide_ids: tuple[str, ...]
    labels: tuple[str, ...]
    patient_ids: tuple[str, ...]
    splits: tuple[str, ...] | None
    has_patients: bool

    def take(self, rows: Iterable[int]) -> "Labels":
        """Return the labels of some rows, in the order asked for."""
        rows = list(rows)
        return Labels(
            path=self.path,
            slide_ids=tuple(self.slide_ids[i] for i in rows),
            labels=tuple(self.labels[i] for i in rows),
            patient_ids=tuple(self.patient_ids[i] for i in rows),
            splits=None if self.splits is None else tuple(self.splits[i] for i in rows),
            has_patients=self.has_patients,
        )


@dataclass(frozen=True, kw_only=True)
class Match:
    """Labels against features: what fits, sorted by slide id, and what does not, by name."""

    labels: Labels
    without_features: tuple[str, ...]
    without_label: tuple[str, ...]
    hint: str


def read_labels(path: Path) -> Labels:
    """Read a labels file: UTF-8 (with or without a byte order mark), fields separated by commas.

    Raises:
        LabelError: no such file, no CSV, a column missing, an empty field, or a slide id twice; names them.
    """
    header, rows = _rows(path)
    missing = [name for name in ("slide_id", "label") if name not in header]
    if missing:
        hint = (
            " The fields seem to be separated by ';' or tabs; use commas." if _other_delimiter(header) else ""
        )
        raise LabelError(
            f"{path}: no column {' and no column '.join(missing)}; "
            f"found {', '.join(repr(h) for h in header) or 'an empty file'}; {_WANTED}.{hint}"
        )
    for name in ("slide_id", "label", "patient_id"):
        empty = [
            f"line {line} ({row['slide_id'] or '?'})" for line, row in rows if name in row and not row[name]
        ]
        if empty:
            raise LabelError(
                f"{path}: {len(empty)} rows have no {name}: {some(empty)}. Fill them in or remove the rows."
            )
    if not rows:
        raise LabelError(f"{path}: a header and no rows; wanted one row per slide.")
    counts = Counter(row["slide_id"] for _, row in rows)
    twice = [slide_id for slide_id, count in counts.items() if count > 1]
    if twice:
        raise LabelError(
            f"{path}: {len(twice)} slide ids stand there more than once: {some(twice)}. "
            "Wanted one row per slide."
        )
    has_patients = "patient_id" in header
    return Labels(
        path=path,
        slide_ids=tuple(row["slide_id"] for _, row in rows),
        labels=tuple(row["label"] for _, row in rows),
        patient_ids=tuple(row["patient_id" if has_patients else "slide_id"] for _, row in rows),
        splits=tuple(row["split"] for _, row in rows) if "split" in header else None,
        has_patients=has_patients,
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


def classes_of(labels: Labels, positive: str | None) -> tuple[str, ...]:
    """Return the labels in sorted order; of two, the positive one comes last (default: the last as sorted).

    Raises:
        LabelError: one label only, ``positive`` is not among them, or there are more than two for it.
    """
    counts = Counter(labels.labels)
    classes = sorted(counts)
    found = ", ".join(f"'{name}' ({counts[name]})" for name in classes)
    if len(classes) < 2:
        raise LabelError(
            f"{labels.path}: only one label among the slides to train on, {found}; wanted two or more."
        )
    if positive is not None and positive not in counts:
        raise LabelError(f"--positive {positive!r}: not a label of {labels.path}; found {found}.")
    if positive is not None and len(classes) > 2:
        raise LabelError(
            f"--positive {positive!r}: only two labels have a positive one; {labels.path} holds "
            f"{len(classes)}: {found}. Leave --positive out: each label is scored against the rest."
        )
    if positive is not None:
        classes.sort(key=lambda name: name == positive)
    return tuple(classes)


def check_patients(labels: Labels) -> None:
    """Refuse a patient whose slides hold different labels: as labels of patients they contradict each other.

    Raises:
        LabelError: names the patients and their labels, and offers --label-level slide.
    """
    held: dict[str, set[str]] = {}
    for patient, label in zip(labels.patient_ids, labels.labels, strict=True):
        held.setdefault(patient, set()).add(label)
    torn = [
        f"{patient} ({', '.join(sorted(each))})" for patient, each in sorted(held.items()) if len(each) > 1
    ]
    if torn:
        raise LabelError(
            f"{labels.path}: {len(torn)} patients have slides with different labels: {some(torn)}. Correct "
            "them, or say --label-level slide if each slide has its own label (a patient then only keeps its "
            "slides in one fold)."
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


def some(names: Sequence[str]) -> str:
    """Return the first names and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _rows(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Return the header and each row with its line number, all stripped; blank lines are passed over."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise LabelError(f"--labels {path}: cannot be read ({error.strerror}); {_WANTED}.") from error
    except UnicodeDecodeError as error:
        raise LabelError(
            f"--labels {path}: not UTF-8 text ({error.reason}); save it as CSV UTF-8."
        ) from error
    reader = csv.reader(io.StringIO(text, newline=""))
    header = [name.strip() for name in next(reader, [])]
    rows, ragged = [], []
    for fields in reader:
        if not any(field.strip() for field in fields):
            continue
        if len(fields) != len(header):
            ragged.append(f"line {reader.line_num} ({len(fields)})")
        rows.append((reader.line_num, {k: v.strip() for k, v in zip(header, fields, strict=False)}))
    if ragged:
        raise LabelError(
            f"{path}: {len(ragged)} rows do not have the {len(header)} fields of the header: {some(ragged)}."
        )
    return header, rows


def _other_delimiter(header: list[str]) -> bool:
    return len(header) == 1 and any(mark in header[0] for mark in (";", "\t"))


def _extension_hint(without_features: Sequence[str], known: set[str]) -> str:
    """Say so where a label's slide id is that of features with an extension appended."""
    cut = [name for name in without_features if "." in name and name.rpartition(".")[0] in known]
    if not cut:
        return ""
    return (
        f" A slide_id is the file name without its extension: '{cut[0]}' matches the features "
        f"'{cut[0].rpartition('.')[0]}' ({len(cut)} such); remove the extension in the labels."
    )
