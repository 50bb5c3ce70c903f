"""The train stage: cross-validate a model on a run's features and write RUN/models/<name>, whole.

Comes in: a ``TrainConfig``. Goes out: one model per fold, out-of-fold predictions, scores and the record of
who was where. It walks the folds; what a fold computes is ``fit``'s.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wsi_mil import config as configs
from wsi_mil import manifest, metrics, parallel, store
from wsi_mil.config import TrainConfig
from wsi_mil.device import pick_device
from wsi_mil.errors import FormatError
from wsi_mil.parallel import Outcome, StageResult, console
from wsi_mil.train.bags import Cohort, read_cohort
from wsi_mil.train.fit import fit, predict
from wsi_mil.train.results import TrainedFold, write_model

_COLUMNS = ("slide_id", "status", "seconds", "patient_id", "label", "fold", "patches", "reason")


def run(config: TrainConfig) -> StageResult:
    """Cross-validate a model on RUN/features/ENCODER and write RUN/models/NAME.

    An output of the same settings, features and labels is left as it is. A labelled slide that cannot be
    used is a failed outcome, features without a label a skipped one; the others are trained on.

    Raises:
        ConfigError: a setting does not fit what is there. LabelError: the labels do not. FormatError: the
        features are not of one kind. StaleOutputError: RUN/models/NAME was made with other settings.
    """
    name = config.name or config.model
    output = store.model_folder(config.run, name)
    with store.stage_record(config.run, "train", config) as notes:
        device = pick_device(config.device)
        store.sweep(output.parent)
        cohort = read_cohort(config)
        record = configs.record(
            config,
            encoder=cohort.identity["encoder"],
            slides=len(cohort.bags),
            features=cohort.features_digest,
            labels=cohort.labels_digest,
        )
        notes |= {"model": name, "device_used": str(device), "identity": cohort.identity}
        if _is_done(output, record, config.overwrite):
            outcomes = [
                Outcome(slide_id=bag.slide_id, status="skipped", reason=f"already trained on: {output}")
                for bag in cohort.bags
            ]
        else:
            kind, folds = _folds(config, cohort)
            trained = _cross_validate(config, cohort, record, folds, device)
            write_model(output, config, cohort, record, kind, trained)
            outcomes = _done(cohort, trained)
        outcomes = sorted(outcomes + cohort.left_out, key=lambda each: each.slide_id)
        rows = [each.row() for each in outcomes]
        store.write_csv(config.run / "train" / "slides.csv", _COLUMNS, rows)
    return StageResult(stage="train", output=output, outcomes=outcomes)


def _is_done(output: Path, record: Mapping[str, Any], overwrite: bool) -> bool:
    if not output.exists():
        return False
    try:
        found = json.loads((output / "metrics.json").read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, KeyError) as error:
        if overwrite:
            return False
        raise FormatError(
            f"{output}: there, and not a model that wsi-mil wrote (no metrics.json that says its settings); "
            "move it away, use another --name, or replace it with --overwrite."
        ) from error
    return store.same_record(found, record, output, overwrite)


def _folds(config: TrainConfig, cohort: Cohort) -> tuple[str, list[metrics.Fold]]:
    """Return which way the folds were made (kfold, leave-one-out or column) and the folds."""
    labels, codes, names = cohort.labels, cohort.codes_N, cohort.classes
    kind = config.split if config.split != "auto" else ("kfold" if labels.splits is None else "column")
    if kind == "column":
        splits = manifest.check_splits(labels)
        return kind, metrics.column_folds(splits, codes, labels.patient_ids, names=names)
    if kind == "leave-one-out":
        return kind, metrics.leave_one_out(codes, labels.patient_ids, names=names)
    return kind, metrics.patient_folds(codes, labels.patient_ids, config.folds, seed=config.seed, names=names)


def _cross_validate(
    config: TrainConfig,
    cohort: Cohort,
    record: dict[str, Any],
    folds: Sequence[metrics.Fold],
    device: torch.device,
) -> list[TrainedFold]:
    trained = []
    with parallel.progress(f"train {config.model}", len(folds), unit="folds") as report:
        for number, fold in enumerate(folds):
            trained.append(_train_fold(config, cohort, record, number, fold, device))
            report(1)
    alone = [str(number) for number, each in enumerate(trained) if None in each.fitted.val_losses]
    if alone:
        console.print(
            f"folds {manifest.some(alone)}: too few training patients to set a validation part aside; "
            f"the last of {config.epochs} epochs was taken.",
            markup=False,
            soft_wrap=True,
        )
    return trained


def _train_fold(
    config: TrainConfig,
    cohort: Cohort,
    record: dict[str, Any],
    number: int,
    fold: metrics.Fold,
    device: torch.device,
) -> TrainedFold:
    # One stream of seeds per fold: a fold does not depend on how many draws another took.
    split_seed, fit_seed = (
        int(each) for each in np.random.SeedSequence([config.seed, number]).generate_state(2)
    )
    vals = _vals(config, cohort, fold, split_seed)
    head = {
        "model": config.model,
        "identity": cohort.identity,
        "hidden_dim": config.hidden_dim,
        "attention_dim": config.attention_dim,
        "dropout": config.dropout,
        "classes": list(cohort.classes),
        "members": config.members,
        "fold": number,
        "seed": config.seed,
        "config": record,
        "config_digest": configs.digest(record),
    }
    within = {row: at for at, row in enumerate(fold.train.tolist())}
    fitted = fit(
        [cohort.bags[i].features_ND for i in fold.train],
        cohort.codes_N[fold.train],
        head=head,
        vals=[np.array([within[row] for row in val.tolist()], np.int64) for val in vals],
        config=config,
        seed=fit_seed,
        device=device,
    )
    probability_TC = predict(fitted.model, [cohort.bags[i].features_ND for i in fold.test])
    fitted.model.cpu()
    return TrainedFold(fold=fold, vals=vals, head=head, fitted=fitted, probability_TC=probability_TC)


def _vals(config: TrainConfig, cohort: Cohort, fold: metrics.Fold, seed: int) -> list[NDArray[np.int64]]:
    """Return each member's validation rows: the labels' own, or parts of the training patients in turn."""
    if len(fold.val):
        return [fold.val] * config.members
    parts = metrics.inner_parts(
        cohort.codes_N,
        cohort.labels.patient_ids,
        fold.train,
        round(1 / config.val_fraction),
        seed=seed,
        classes=len(cohort.classes),
    ) or [np.empty(0, np.int64)]
    return [parts[member % len(parts)] for member in range(config.members)]


def _done(cohort: Cohort, trained: list[TrainedFold]) -> list[Outcome]:
    fold_of = {int(i): number for number, each in enumerate(trained) for i in each.fold.test}
    return [
        Outcome(
            slide_id=bag.slide_id,
            status="done",
            facts={
                "patient_id": cohort.labels.patient_ids[i],
                "label": cohort.labels.labels[i],
                "fold": fold_of.get(i, ""),
                "patches": len(bag.features_ND),
            },
        )
        for i, bag in enumerate(cohort.bags)
    ]
