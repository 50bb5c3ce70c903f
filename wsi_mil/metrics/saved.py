"""Folds read back from the rows of a saved splits.csv, checked against the slides that are there now.

Comes in: rows ``fold, member, slide_id, role`` (and, if they have it, ``repeat``), and the cohort's slides,
patients and groups. Goes out: folds, and the validation part of every member. It opens no file.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from wsi_mil.errors import LabelError
from wsi_mil.metrics.arrays import Indices
from wsi_mil.metrics.folds import Fold, check_whole

_SHOWN = 10
_ROLES = ("train", "val", "test")


@dataclass
class _Saved:
    """Role of each slide for every (fold, member); slides that one names twice; the repeats of a fold."""

    roles: dict[tuple[int, int], dict[str, str]] = field(default_factory=dict)
    twice: dict[tuple[int, int], list[str]] = field(default_factory=dict)
    repeats: dict[int, set[int]] = field(default_factory=dict)


def saved_folds(
    rows: Iterable[Mapping[str, str]],
    slide_ids_N: Sequence[str],
    patients_N: Sequence[str],
    *,
    groups_N: Sequence[str] | None = None,
    where: str = "splits.csv",
) -> tuple[list[Fold], list[list[Indices]]]:
    """Return the folds in their order, and for each the validation rows of every member (empty: it has none).

    Indices are positions in ``slide_ids_N``. Every member of every fold has to name each slide of the cohort
    once and no other, and the members of a fold the same test slides; a patient (or group) has one role.
    Without a column ``repeat``, a fold is of the first repeat in which none of its slides was tested.

    Raises:
        LabelError: it is otherwise; names the fold, the member and the slides.
    """
    saved = _read(rows, where)
    _check_slides(saved, slide_ids_N, where)
    folds: list[Fold] = []
    vals: list[list[Indices]] = []
    tested_N = np.zeros(len(slide_ids_N), np.int64)
    for fold in sorted({fold for fold, _ in saved.roles}):
        roles_MN = [
            [roles[slide] for slide in slide_ids_N]
            for (of, _), roles in sorted(saved.roles.items())
            if of == fold
        ]
        _check_roles(roles_MN, slide_ids_N, patients_N, groups_N, f"{where}: fold {fold}")
        test, train = _rows(roles_MN[0], "test"), _rows(roles_MN[0], "train", "val")
        repeat = max(saved.repeats.get(fold, set()), default=int(tested_N[test].max()))
        tested_N[test] = repeat + 1
        folds.append(Fold(train=train, test=test, val=np.empty(0, np.int64), repeat=repeat))
        vals.append([_rows(roles_N, "val") for roles_N in roles_MN])
    return folds, vals


def _read(rows: Iterable[Mapping[str, str]], where: str) -> _Saved:
    """Return the rows by fold and member.

    Raises:
        LabelError: no row, or rows that are no such rows; names them by their number (1: below the header).
    """
    saved = _Saved()
    wrong = []
    for number, row in enumerate(rows, start=1):
        try:
            at = int(row["fold"]), int(row["member"])
            slide, role = row["slide_id"], row["role"]
            repeat = int(row["repeat"]) if row.get("repeat") else None
        except (KeyError, ValueError) as error:
            wrong.append(f"row {number} ({error})")
            continue
        if role not in _ROLES:
            wrong.append(f"row {number} (role '{role}')")
            continue
        roles = saved.roles.setdefault(at, {})
        if slide in roles:
            saved.twice.setdefault(at, []).append(slide)
        roles[slide] = role
        if repeat is not None:
            saved.repeats.setdefault(at[0], set()).add(repeat)
    wrong += [
        f"fold {fold} (of repeats {sorted(each)})" for fold, each in saved.repeats.items() if len(each) > 1
    ]
    if wrong or not saved.roles:
        raise LabelError(
            f"{where}: {_some(wrong) or 'no row'}; wanted columns fold and member (whole numbers), slide_id, "
            "and role: train, val or test. Only a splits.csv as the train stage writes it can be used again."
        )
    return saved


def _check_slides(saved: _Saved, slide_ids_N: Sequence[str], where: str) -> None:
    """Refuse a member that does not name each slide of the cohort exactly once."""
    wrong: dict[str, list[str]] = {}
    for at, roles in sorted(saved.roles.items()):
        name = f"fold {at[0]}, member {at[1]}"
        for problem, slides in (
            ("not among the slides to train on", sorted(set(roles) - set(slide_ids_N))),
            ("in no part", sorted(set(slide_ids_N) - set(roles))),
            ("in more than one row", sorted(set(saved.twice.get(at, [])))),
        ):
            if slides:
                # The same slides are usually wrong everywhere: said once.
                wrong.setdefault(f"{len(slides)} slides are {problem}: {_some(slides)}", []).append(name)
    if wrong:
        raise LabelError(
            f"{where} does not fit the slides: "
            + "; ".join(f"{problem} ({_some(names, 3)})" for problem, names in wrong.items())
            + ". The folds can be used again for the same slides only."
        )


def _check_roles(
    roles_MN: Sequence[Sequence[str]],
    slide_ids_N: Sequence[str],
    patients_N: Sequence[str],
    groups_N: Sequence[str] | None,
    where: str,
) -> None:
    """Refuse members with other test slides than the first, an empty part, an id in two parts."""
    tests = [
        {slide for slide, role in zip(slide_ids_N, each, strict=True) if role == "test"} for each in roles_MN
    ]
    for member, (roles_N, test) in enumerate(zip(roles_MN, tests, strict=True)):
        if test != tests[0]:
            raise LabelError(
                f"{where}: its members test different slides ({_some(sorted(test ^ tests[0]))}); all members "
                "of a fold are tested on the same."
            )
        for role in ("train", "test"):
            if role not in roles_N:
                raise LabelError(f"{where}, member {member}: no slide has the role '{role}'; wanted some.")
        check_whole(roles_N, patients_N, "patients", f"{where}, member {member}")
        if groups_N is not None:
            check_whole(roles_N, groups_N, "groups", f"{where}, member {member}")


def _rows(roles_N: Sequence[str], *roles: str) -> Indices:
    return np.flatnonzero([each in roles for each in roles_N])


def _some(names: Sequence[str], shown: int = _SHOWN) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
