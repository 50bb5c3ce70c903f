"""Cross-validate: folds of bags -> models that never saw their test rows -> predictions.

Comes in: the patches and targets of a cohort, and a ``Plan`` of who is where. Goes out: a ``FoldResult`` per
fold. All networks of all folds are trained together as far as the device has room. It reads and writes no
file but through the ``Work`` that it is given.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wsi_mil import metrics, models
from wsi_mil.config import TrainConfig
from wsi_mil.errors import LabelError
from wsi_mil.train.fit import Fitted, assemble, fit_jobs, make_jobs, predict_logits
from wsi_mil.train.memory import Work
from wsi_mil.train.networks import Job, Trained
from wsi_mil.train.patches import Indices, Patches

Grid = Sequence[dict[str, Any]]
"""Settings to choose from: values of fields of ``TrainConfig``; one empty dict is no choice."""


Elsewhere = Callable[[TrainConfig, dict[str, Any], NDArray[Any], Sequence[Job], Work, int], None]
"""Trains somewhere else: config, head, targets, jobs, where to leave what comes out, number of setting."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Who is where: the folds, and for each the bags on which each member is validated.

    ``kind`` is how the folds were made (kfold, leave-one-out, column, splits).
    """

    kind: str
    folds: list[metrics.Fold]
    vals: list[list[Indices]]


@dataclass(frozen=True, kw_only=True)
class FoldResult:
    """One fold: who was where, the model, and its logits (T, C) and prediction (T, P) of the test bags.

    ``chosen`` are the grid's values that were best on the validation parts.
    """

    fold: metrics.Fold
    vals: list[Indices]
    fitted: Fitted
    logits_TC: NDArray[np.float64]
    prediction_TP: NDArray[np.float64]
    chosen: dict[str, Any] = field(default_factory=dict)


def cross_validate(
    config: TrainConfig,
    patches: Patches,
    targets: NDArray[Any],
    plan: Plan,
    *,
    head: dict[str, Any],
    grid: Grid = ({},),
    device: torch.device,
    work: Work | None = None,
    report: Callable[[int], None] | None = None,
    elsewhere: Elsewhere | None = None,
) -> list[FoldResult]:
    """Train a committee for every fold, for every setting of the grid, and predict the test bags.

    Of the settings the one is taken, fold by fold, whose members have the lowest mean loss on their
    validation parts; test bags have no say. ``report`` is told of network-epochs. ``elsewhere`` trains the
    networks before, and leaves them in ``work``, from where they are then taken.

    Raises:
        LabelError: there is a grid, and a fold without validation bags to choose by.
    """
    for number, vals in enumerate(plan.vals):
        if len(grid) > 1 and not any(len(val) for val in vals):
            raise LabelError(
                f"--grid: fold {number} has no validation part to choose by (too few training patients of a "
                "class, or splits that name none); use fewer folds, other splits, or no --grid."
            )
    candidates: list[list[Fitted]] = [[] for _ in plan.folds]
    for number, setting in enumerate(grid):
        changed = dataclasses.replace(config, **setting)
        changed_head = head | {name: getattr(changed, name) for name in head if name in setting}
        jobs = _jobs(changed, patches, targets, plan, changed_head)
        flat = [job for each in jobs for job in each]
        if elsewhere is not None and work is not None:
            elsewhere(changed, changed_head, targets, flat, work, number)

        def memory(first: int, number: int = number) -> Any:
            assert work is not None
            return work.memory(f"{number}-{first}")

        trained = iter(
            fit_jobs(
                patches, targets, flat, head=changed_head, config=changed, device=device,
                memory=memory if work is not None else None, report=report,
            )
        )  # fmt: skip
        for fitted, each, fold in zip(candidates, jobs, range(len(plan.folds)), strict=True):
            own: list[Trained] = list(itertools.islice(trained, len(each)))
            made = assemble(changed_head | {"fold": fold}, each, own, device=device)
            made.model.centre(patches.whole(int(b)) for b in plan.folds[fold].train)
            fitted.append(made)
    return [
        _test(patches, fold, vals, fitted, grid)
        for fold, vals, fitted in zip(plan.folds, plan.vals, candidates, strict=True)
    ]


def _jobs(
    config: TrainConfig, patches: Patches, targets: NDArray[Any], plan: Plan, head: dict[str, Any]
) -> list[list[Job]]:
    task = models.task_of(head)
    # One stream of seeds per fold: a fold does not depend on how many draws another took.
    return [
        make_jobs(patches, targets, fold.train, vals, task, fold_seed(config.seed, number, 1))
        for number, (fold, vals) in enumerate(zip(plan.folds, plan.vals, strict=True))
    ]


def fold_seed(seed: int, fold: int, use: int) -> int:
    """Return the seed of one fold for one use (0: its validation parts, 1: its networks)."""
    return int(np.random.SeedSequence([seed, fold]).generate_state(2)[use])


def _test(
    patches: Patches, fold: metrics.Fold, vals: list[Indices], candidates: list[Fitted], grid: Grid
) -> FoldResult:
    best = min(range(len(candidates)), key=lambda i: _val_loss(candidates[i]))
    fitted = candidates[best]
    logits_TC = predict_logits(fitted.model, [patches.whole(int(b)) for b in fold.test])
    fitted.model.cpu()
    return FoldResult(
        fold=fold,
        vals=vals,
        fitted=fitted,
        logits_TC=logits_TC.double().numpy(),
        prediction_TP=fitted.model.task.predict(logits_TC),
        chosen=dict(grid[best]),
    )


def _val_loss(fitted: Fitted) -> float:
    losses = [loss for loss in fitted.val_losses if loss is not None]
    return float(np.mean(losses)) if losses else float("inf")
