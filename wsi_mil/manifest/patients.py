"""Several slides of one patient: contradictions between them, and one row for all of them.

Comes in: labels, a row per slide. Goes out: who contradicts themselves, or labels with a row per patient.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Sequence

from wsi_mil.errors import LabelError
from wsi_mil.manifest import values
from wsi_mil.manifest.labels import Labels
from wsi_mil.manifest.table import some


def check_patients(labels: Labels) -> None:
    """Refuse a patient whose slides hold different labels: as labels of patients they contradict each other.

    Labels that say the same in other words (1 and 1.0, a;b and b;a) do not.

    Raises:
        LabelError: names the patients and their labels, and offers --label-level slide.
    """
    held: dict[str, dict[object, str]] = defaultdict(dict)
    for patient, label in zip(labels.patient_ids, labels.labels, strict=True):
        held[patient].setdefault(values.meaning(label, labels.task), label)
    torn = [
        f"{patient} ({', '.join(sorted(each.values()))})"
        for patient, each in sorted(held.items())
        if len(each) > 1
    ]
    if torn:
        raise LabelError(
            f"{labels.path}: {len(torn)} patients have slides with different labels: {some(torn)}. Correct "
            "them, or say --label-level slide if each slide has its own label (a patient then only keeps its "
            "slides in one fold)."
        )


def group_remark(labels: Labels) -> str:
    """Return a sentence that names the patients with slides of several groups; '' where there are none.

    It is no mistake: groups that share a patient are kept on one side of every split together.
    """
    torn = _torn(labels.patient_ids, labels.groups)
    if not torn:
        return ""
    return (
        f"{labels.path}: {len(torn)} patients have slides in several groups: {some(torn)}. Groups that share "
        "a patient stay together, as one."
    )


def by_patient(labels: Labels) -> tuple[Labels, list[list[int]]]:
    """Return labels with one row per patient (sorted), and which rows of ``labels`` each was made of.

    A row's slide id is then the patient's; its label the first slide's. Groups that share a patient become
    one group, named after all of them (a+b), also in the rows of their other patients.

    Raises:
        LabelError: a patient has slides of several splits; names them.
    """
    torn = _torn(labels.patient_ids, labels.splits)
    if torn:
        raise LabelError(
            f"{labels.path}: {len(torn)} patients, whose slides make one bag, have slides in several splits: "
            f"{some(torn)}. Give all slides of a patient the same split."
        )
    rows: dict[str, list[int]] = defaultdict(list)
    for i, patient in enumerate(labels.patient_ids):
        rows[patient].append(i)
    patients = sorted(rows)
    if labels.groups is not None:
        labels = dataclasses.replace(labels, groups=_joined(labels.patient_ids, labels.groups))
    merged = labels.take(rows[patient][0] for patient in patients)
    return dataclasses.replace(merged, slide_ids=tuple(patients)), [rows[patient] for patient in patients]


def _torn(patients: Sequence[str], column: Sequence[str] | None) -> list[str]:
    """Return, as text, the patients whose rows hold several values of a column."""
    held: dict[str, set[str]] = defaultdict(set)
    for patient, value in zip(patients, column or (), strict=column is not None):
        held[patient].add(value)
    return [
        f"{patient} ({', '.join(sorted(each))})" for patient, each in sorted(held.items()) if len(each) > 1
    ]


def _joined(patients: Sequence[str], groups: Sequence[str]) -> tuple[str, ...]:
    """Return the groups, those that share a patient as one: the components of what patients tie together."""
    members = {group: {group} for group in groups}
    first: dict[str, str] = {}
    for patient, group in zip(patients, groups, strict=True):
        one, other = members[first.setdefault(patient, group)], members[group]
        if one is not other:
            one |= other
            for each in other:
                members[each] = one
    return tuple("+".join(sorted(members[group])) for group in groups)
