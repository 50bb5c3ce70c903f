"""Folds that never part a patient, nor a group of patients (a site, say) where one is named.

Comes in: for each row its stratum, its patient and its group; what every training part has to hold. Goes out:
arrays of row indices. It knows no task: ``balance`` makes strata and kinds of targets.

In all ways of splitting, ``names`` are what no training part may lack: without ``kinds_NK`` the strata are
classes and these are their names; with it, row i is of kind k where ``kinds_NK[i, k]``, and ``names`` are
those of the kinds (``balance.kinds``). No names: nothing is required. ``groups_N`` are values that stay whole
on one side, patients too: patients and groups that are linked, however far around, move together. Why a site
should: Howard et al., Nat. Commun. 12:4423 (2021), models read the site off the stain.
"""

import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold

from wsi_mil.errors import LabelError
from wsi_mil.metrics.arrays import Bools, Indices
from wsi_mil.metrics.balance import of_labels

_DRAWS = 20
_SHOWN = 10
_ROLES = ("train", "val", "test")

_Partition = frozenset[tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Row indices of one fold, each sorted: ``test`` is scored once, ``train`` is all to learn from.

    ``val`` is a part of ``train`` that the labels set apart to choose the epoch; empty: it is still to be
    drawn from ``train`` (``inner_parts``). ``repeat`` counts whole cross-validations, each of which tests
    every row at most once.
    """

    train: Indices
    test: Indices
    val: Indices
    repeat: int = 0


def patient_folds(
    strata_N: Indices,
    patients_N: Sequence[str],
    folds: int,
    *,
    seed: int,
    names: Sequence[str] = (),
    kinds_NK: Bools | None = None,
    groups_N: Sequence[str] | None = None,
    repeats: int = 1,
) -> list[Fold]:
    """Return ``folds`` folds per repeat, balanced by stratum and grouped by patient (StratifiedGroupKFold).

    Every row is tested once per repeat, all rows of a patient (and of a group) in the same fold; no fold is
    empty, and every training part holds all that it has to. Each repeat is drawn anew, unlike the others
    where that can be; the first is that of ``repeats=1``. A test part may hold one class only.

    Raises:
        LabelError: more folds than patients (groups), than patients of a class, or no draw gives such folds.
    """
    units_N = units(patients_N, groups_N)
    called, shown_NK = _needs(strata_N, names, kinds_NK)
    _check_enough(units_N, folds, called, shown_NK, groups_N, classes=kinds_NK is None)
    made: list[Fold] = []
    seen: set[_Partition] = set()
    for repeat in range(repeats):
        # The first repeat has the seed itself, so that asking for more leaves it as it was.
        start = seed if repeat == 0 else int(np.random.SeedSequence([seed, repeat]).generate_state(1)[0])
        tests = _draw(strata_N, units_N, folds, start, shown_NK, seen)
        if tests is None:
            held = f" in which every training part holds slides {_listed(called)}" if called else ""
            raise LabelError(
                f"--folds {folds}: {2 * _DRAWS} draws gave no folds{held}; use fewer folds, or name them "
                "in a split column."
            )
        seen.add(_partition(tests))
        made += [_fold(len(strata_N), test, repeat) for test in tests]
    return made


def leave_one_out(
    strata_N: Indices,
    patients_N: Sequence[str],
    *,
    names: Sequence[str] = (),
    kinds_NK: Bools | None = None,
    groups_N: Sequence[str] | None = None,
) -> list[Fold]:
    """Return one fold per patient, or per group where groups are given, sorted; each tests all its rows.

    Groups that share a patient are one: a patient is never on two sides.

    Raises:
        LabelError: one patient (group) only, or a class has one only: without it nothing of the class could
            be learnt.
    """
    units_N = units(patients_N, groups_N)
    held: dict[int, set[str]] = {}
    for unit, name in zip(units_N.tolist(), patients_N if groups_N is None else groups_N, strict=True):
        held.setdefault(unit, set()).add(name)
    called = [" + ".join(sorted(held[unit])) for unit in range(len(held))]
    needs = _needs(strata_N, names, kinds_NK)
    return _folds_of(units_N, called, needs, "--split leave-one-out")


def column_folds(
    splits_N: Sequence[str],
    strata_N: Indices,
    patients_N: Sequence[str],
    *,
    names: Sequence[str] = (),
    kinds_NK: Bools | None = None,
    groups_N: Sequence[str] | None = None,
) -> list[Fold]:
    """Return the folds that a split column names.

    Only 'train', 'val' and 'test' in it: one fold, with that validation part where there is one. Else every
    distinct value is a fold that tests the rows which hold it, in sorted order.

    Raises:
        LabelError: one value only, a patient or group in two parts (names it), or a part that lacks a class.
    """
    check_whole(splits_N, patients_N, "patients", "split column")
    if groups_N is not None:
        check_whole(splits_N, groups_N, "groups", "split column")
    needs = _needs(strata_N, names, kinds_NK)
    values = sorted(set(splits_N))
    at = {value: np.flatnonzero([each == value for each in splits_N]) for value in {*values, *_ROLES}}
    if not set(values) <= set(_ROLES):
        codes_N = np.array([values.index(each) for each in splits_N], np.int64)
        return _folds_of(codes_N, values, needs, "split column")
    if not {"train", "test"} <= set(values):
        raise LabelError(
            f"split column: holds only {', '.join(values)}; wanted 'train' and 'test' (and, if you "
            "like, 'val'), or the name of the fold that tests each slide (at least two)."
        )
    for value in ("train", "test") if kinds_NK is None else ("train",):
        require(needs, at[value], f"split column: part '{value}'")
    return [Fold(train=np.union1d(at["train"], at["val"]), test=at["test"], val=at["val"])]


def inner_parts(
    strata_N: Indices,
    patients_N: Sequence[str],
    train: Indices,
    parts: int,
    *,
    seed: int,
    classes: int = 0,
    kinds_NK: Bools | None = None,
    groups_N: Sequence[str] | None = None,
) -> list[Indices]:
    """Return up to ``parts`` disjoint parts of ``train`` (row indices), to be set apart one at a time.

    Grouped and balanced as the folds are; with each part set apart, every class (strata 0 .. ``classes`` - 1,
    or every kind) stays in the rest. Fewer parts where a class has fewer patients; none where a class, or all
    of ``train``, has one patient (group) only.
    """
    units_N = units(patients_N, groups_N)[train]
    strata = strata_N[train]
    shown_NK = strata[:, None] == np.arange(classes) if kinds_NK is None else kinds_NK[train]
    parts = min(parts, len(set(units_N.tolist())))
    if kinds_NK is None:
        parts = min([parts, *_counts(units_N, shown_NK)])
    while parts >= 2:
        drawn = _draw(strata, units_N, parts, seed, shown_NK)
        if drawn is not None:
            return [train[each] for each in drawn]
        parts -= 1
    return []


def units(patients_N: Sequence[str], groups_N: Sequence[str] | None = None) -> Indices:
    """Return which rows (N,) can only move together, numbered in sorted order of patients, or of groups.

    Without groups: those of a patient. With them: the connected components of the graph in which a row ties
    its patient to its group.
    """
    patient_of_N = np.unique(np.asarray(patients_N), return_inverse=True)[1].reshape(-1)
    if groups_N is None:
        return patient_of_N.astype(np.int64)
    group_of_N = np.unique(np.asarray(groups_N), return_inverse=True)[1].reshape(-1)
    patients, groups = int(patient_of_N.max()) + 1, int(group_of_N.max()) + 1
    edges = (np.ones(len(patient_of_N)), (patient_of_N, patients + group_of_N))
    graph = coo_array(edges, shape=(patients + groups, patients + groups)).tocsr()
    _, component = connected_components(graph, directed=False)
    _, first, unit_of_group = np.unique(component[patients:], return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))
    return rank[unit_of_group.reshape(-1)][group_of_N].astype(np.int64)


def check_whole(parts_N: Sequence[str], ids_N: Sequence[str], what: str, where: str) -> None:
    """Refuse an id (of ``what``, a plural) whose rows are in more than one part.

    Raises:
        LabelError: names the ids and their parts.
    """
    parts: dict[str, set[str]] = {}
    for each, part in zip(ids_N, parts_N, strict=True):
        parts.setdefault(each, set()).add(part)
    torn = sorted(each for each, values in parts.items() if len(values) > 1)
    if torn:
        advice = (
            "A patient's slides belong on one side, or the test scores are too good."
            if what == "patients"
            else "--group-by keeps each whole on one side."
        )
        raise LabelError(
            f"{where}: {len(torn)} {what} are in more than one part ("
            + "; ".join(f"{each}: {', '.join(sorted(parts[each]))}" for each in torn[:_SHOWN])
            + (f"; and {len(torn) - _SHOWN} more" if len(torn) > _SHOWN else "")
            + f"). {advice}"
        )


def require(needs: tuple[tuple[str, ...], Bools], rows: Indices, where: str) -> None:
    """Refuse a part of the rows that lacks one of the kinds.

    Raises:
        LabelError: names the part and what it lacks.
    """
    called, shown_NK = needs
    absent = [name for name, shown_N in zip(called, shown_NK[rows].T, strict=True) if not shown_N.any()]
    if absent:
        raise LabelError(f"{where} holds no slide {_listed(absent, 'or')}; wanted each.")


def _needs(strata_N: Indices, names: Sequence[str], kinds_NK: Bools | None) -> tuple[tuple[str, ...], Bools]:
    if kinds_NK is not None:
        return tuple(names), kinds_NK
    return of_labels(names), strata_N[:, None] == np.arange(len(names))


def _check_enough(
    units_N: Indices,
    folds: int,
    called: Sequence[str],
    shown_NK: Bools,
    groups_N: Sequence[str] | None,
    *,
    classes: bool,
) -> None:
    """Refuse more folds than units, or than patients of a class; of groups and other kinds two will do."""
    word = "patients" if groups_N is None else "groups that share no patient"
    total, counts = int(units_N.max()) + 1, _counts(units_N, shown_NK)
    least = min(range(len(counts)), key=lambda k: counts[k]) if counts else 0
    every_fold = classes and groups_N is None
    if counts and every_fold and counts[least] < folds:
        each = ", ".join(
            f"{name.removeprefix('of label ')}: {n}" for name, n in zip(called, counts, strict=True)
        )
        raise LabelError(
            f"--folds {folds}: more than the patients {called[least]} (patients per label: {each}; {total} "
            f"in all). {_fewer(counts[least])}"
        )
    if total < folds:
        raise LabelError(f"--folds {folds}: more than the {total} {word}. {_fewer(total)}")
    if counts and counts[least] < 2:
        raise LabelError(
            f"--folds {folds}: {counts[least]} of the {total} {word} holds a slide {called[least]}; wanted "
            "two or more: one to train on, one to test."
        )


def _fewer(most: int) -> str:
    if most < 2:
        return "Cross-validation needs at least 2 patients of each label: one to train on, one to test."
    return f"Use --folds {most} or fewer, or --split leave-one-out."


def _counts(units_N: Indices, shown_NK: Bools) -> list[int]:
    """Return in how many units each kind is."""
    return [len(set(units_N[shown_N].tolist())) for shown_N in shown_NK.T]


def _draw(
    strata_N: Indices,
    units_N: Indices,
    folds: int,
    seed: int,
    shown_NK: Bools,
    seen: Collection[_Partition] = (),
) -> list[Indices] | None:
    """Return test parts, none empty and each kind in the rest of each; None where no draw has given such.

    One that is not among those ``seen``, where a draw gives one. Groups of unlike sizes are dealt out by
    size, the same in each draw: what then cannot be had with balance is tried without.
    """
    again = None
    for draw in range(2 * _DRAWS):
        strata = strata_N if draw < _DRAWS else np.zeros_like(strata_N)
        tests = _grouped(strata, units_N, folds, seed + draw * 1_000_003)
        rests = [np.setdiff1d(np.arange(len(strata_N)), test) for test in tests]
        if all(len(test) for test in tests) and all(shown_NK[rest].any(axis=0).all() for rest in rests):
            if _partition(tests) not in seen:
                return tests
            again = again or tests
    return again


def _partition(tests: Sequence[Indices]) -> _Partition:
    return frozenset(tuple(test.tolist()) for test in tests)


def _grouped(strata_N: Indices, units_N: Indices, folds: int, seed: int) -> list[Indices]:
    if np.bincount(strata_N).max() < folds:  # which scikit-learn refuses: nothing there to balance
        strata_N = np.zeros_like(strata_N)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed % 2**32)
    with warnings.catch_warnings():
        # A stratum that cannot reach every fold is spread as far as it goes; who needs it asks by name.
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        return [np.asarray(test) for _, test in splitter.split(strata_N, strata_N, units_N)]


def _folds_of(
    codes_N: Indices, called: Sequence[str], needs: tuple[tuple[str, ...], Bools], where: str
) -> list[Fold]:
    """Return one fold per code, that tests the rows which hold it."""
    if len(called) < 2:
        raise LabelError(
            f"{where}: one part only ('{called[0]}'); wanted at least two, to test on the other."
        )
    folds = [_fold(len(codes_N), np.flatnonzero(codes_N == code), 0) for code in range(len(called))]
    for name, fold in zip(called, folds, strict=True):
        require(needs, fold.train, f"{where}: the training part of fold '{name}'")
    return folds


def _fold(rows: int, test: Indices, repeat: int) -> Fold:
    train = np.setdiff1d(np.arange(rows), test)
    return Fold(train=train, test=np.sort(test), val=np.empty(0, np.int64), repeat=repeat)


def _listed(names: Sequence[str], last: str = "and") -> str:
    """Return 'a, b and c'."""
    return f" {last} ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
