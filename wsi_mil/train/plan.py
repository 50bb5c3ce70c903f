"""Who is trained on, validated on and tested: the folds of a cohort and its members' validation parts.

Comes in: a cohort and the settings. Goes out: a ``Plan``. Patients, and groups where --group-by names them,
are never parted: not by a fold, and not by a validation part.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_mil import manifest, metrics, store
from wsi_mil.config import TrainConfig
from wsi_mil.errors import ConfigError
from wsi_mil.train.bags import Cohort
from wsi_mil.train.crossval import Plan, fold_seed
from wsi_mil.train.patches import Indices

_NONE = np.empty(0, np.int64)


def make_plan(config: TrainConfig, cohort: Cohort) -> Plan:
    """Return the folds that the settings ask for, and each member's validation bags.

    Raises:
        LabelError: the labels cannot carry such folds, or a saved splits.csv is of other slides.
    """
    labels, targets = cohort.labels, cohort.targets
    names = [bag.name for bag in cohort.bags]
    if config.splits is not None:
        rows = _by_bag(cohort, saved_rows(config))
        where = f"--splits {config.splits}"
        folds, vals = metrics.saved_folds(
            rows, names, labels.patient_ids, groups_N=labels.groups, where=where
        )
        return Plan(kind="saved", folds=folds, vals=vals)
    kind = config.split if config.split != "auto" else ("kfold" if labels.splits is None else "column")
    strata_N = metrics.strata(_task(cohort), targets.values)
    called, kinds_NK = metrics.kinds(_task(cohort), targets.values, targets.names)
    required: dict[str, Any] = {"names": called, "kinds_NK": kinds_NK, "groups_N": labels.groups}
    if kind == "column":
        folds = metrics.column_folds(manifest.check_splits(labels), strata_N, labels.patient_ids, **required)
    elif kind == "leave-one-out":
        folds = metrics.leave_one_out(strata_N, labels.patient_ids, **required)
    else:
        folds = metrics.patient_folds(
            strata_N, labels.patient_ids, config.folds, seed=config.seed, repeats=config.repeats, **required
        )
    vals = [
        _vals(config, cohort, fold, strata_N, required, fold_seed(config.seed, number, 0))
        for number, fold in enumerate(folds)
    ]
    return Plan(kind=kind, folds=folds, vals=vals)


def saved_rows(config: TrainConfig) -> list[dict[str, str]]:
    """Return the rows of --splits.

    Raises:
        ConfigError: no such file.
    """
    if config.splits is None or not config.splits.is_file():
        raise ConfigError(f"--splits {config.splits}: no such file; wanted the splits.csv of a model.")
    return store.read_csv(config.splits)


def shuffled(cohort: Cohort, plan: Plan, rng: np.random.Generator, *, by_slide: bool) -> NDArray[np.float64]:
    """Return the cohort's targets, shuffled among patients, so that every training part still holds each
    class.

    The slides of a patient keep equal targets where they have them: exchangeable are patients and not slides.
    """
    values, patients = cohort.targets.values, np.asarray(cohort.labels.patient_ids)
    held, first, of_N = np.unique(patients, return_index=True, return_inverse=True)
    for _ in range(1000):
        if by_slide:
            mixed = rng.permutation(values)
        else:
            mixed = values[first][rng.permutation(len(held))][of_N.reshape(-1)]
        if all(_learnable(cohort, mixed[np.setdiff1d(fold.train, val)])
               for fold, vals in zip(plan.folds, plan.vals, strict=True) for val in vals):  # fmt: skip
            return mixed
    raise ValueError("no shuffle of the labels leaves every class in every training part")


def _task(cohort: Cohort) -> metrics.Task:
    return cohort.targets.task  # type: ignore[return-value]


def _learnable(cohort: Cohort, targets: NDArray[Any]) -> bool:
    if cohort.targets.task == "survival":
        return bool((targets[:, 1] > 0).any())
    if cohort.targets.task in ("classification", "ordinal"):
        return set(np.unique(cohort.targets.values)) <= set(np.unique(targets))
    return len(np.unique(targets, axis=0)) > 1


def _vals(
    config: TrainConfig,
    cohort: Cohort,
    fold: metrics.Fold,
    strata_N: Indices,
    required: dict[str, Any],
    seed: int,
) -> list[Indices]:
    """Return each member's validation bags: the labels' own, or parts of the training patients in turn."""
    if len(fold.val):
        return [fold.val] * config.members
    if not config.val_fraction:
        return [_NONE] * config.members
    parts = metrics.inner_parts(
        strata_N,
        cohort.labels.patient_ids,
        fold.train,
        round(1 / config.val_fraction),
        seed=seed,
        classes=len(required["names"]) if required["kinds_NK"] is None else 0,
        # A label that one training patient has cannot be in both parts: the validation does without.
        kinds_NK=required["kinds_NK"] if cohort.targets.task == "survival" else None,
        groups_N=required["groups_N"],
    ) or [_NONE]
    return [parts[member % len(parts)] for member in range(config.members)]


def _by_bag(cohort: Cohort, rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Return the rows of a splits.csv with the names of bags: of merged patients, one row for all slides."""
    if all(bag.slide_ids == (bag.name,) for bag in cohort.bags):
        return list(rows)
    bag_of = {slide_id: bag.name for bag in cohort.bags for slide_id in bag.slide_ids}
    renamed = [row | {"slide_id": bag_of.get(row["slide_id"], row["slide_id"])} for row in rows]
    return list({tuple(sorted(row.items())): row for row in renamed}.values())


def with_values(cohort: Cohort, values: NDArray[Any]) -> Cohort:
    """Return the cohort with other targets."""
    return dataclasses.replace(cohort, targets=dataclasses.replace(cohort.targets, values=values))
