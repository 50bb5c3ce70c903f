"""The train stage: cross-validate a model on a run's features and write RUN/models/<name>, whole.

Comes in: a ``TrainConfig``. Goes out: one model per fold, out-of-fold predictions, scores and the record of
who was where. It puts the parts together; what a fold computes is ``crossval``'s.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wsi_mil import config as configs
from wsi_mil import manifest, models, parallel, store
from wsi_mil.config import TrainConfig
from wsi_mil.device import pick_device
from wsi_mil.errors import FormatError
from wsi_mil.parallel import Outcome, StageResult, console
from wsi_mil.train.bags import Cohort, read_cohort
from wsi_mil.train.cluster import Cluster
from wsi_mil.train.crossval import FoldResult, Grid, Plan, cross_validate
from wsi_mil.train.memory import Work
from wsi_mil.train.packed import tensor_of
from wsi_mil.train.patches import Patches
from wsi_mil.train.plan import make_plan, saved_rows, shuffled, with_values
from wsi_mil.train.results import Null, leading_score, write_model

_COLUMNS = ("slide_id", "status", "seconds", "patient_id", "label", "fold", "patches", "reason")


def run(config: TrainConfig) -> StageResult:
    """Cross-validate a model on RUN/features/ENCODER and write RUN/models/NAME.

    An output of the same settings, features and labels is left as it is. A labelled slide that cannot be
    used is a failed outcome, features without a label a skipped one; the others are trained on. A run that
    was interrupted goes on where it was.

    Raises:
        ConfigError: a setting does not fit what is there. LabelError: the labels do not. FormatError: the
        features are not of one kind. StaleOutputError: RUN/models/NAME was made with other settings.
        TrainingError: the loss became no number.
    """
    name = config.name or config.model.replace(":", "-")
    output = store.model_folder(config.run, name)
    with store.stage_record(config.run, "train", config) as notes:
        device = pick_device(config.device)
        store.sweep(output.parent)
        grid = configs.read_grid(config)
        cohort = read_cohort(config)
        record = configs.record(
            config,
            encoder=cohort.identity["encoder"],
            slides=sum(len(bag.slide_ids) for bag in cohort.bags),
            features=cohort.features_digest,
            labels=cohort.labels_digest,
            # What the files say counts, and not where they lie.
            grid=grid if config.grid else None,
            splits=configs.digest({"rows": saved_rows(config)}) if config.splits else None,
        )
        notes |= {"model": name, "device_used": str(device), "identity": cohort.identity}
        if _is_done(output, record, config.overwrite):
            outcomes = [
                Outcome(slide_id=slide_id, status="skipped", reason=f"already trained on: {output}")
                for bag in cohort.bags
                for slide_id in bag.slide_ids
            ]
        else:
            work = Work(config.run / "train" / "states" / name, record)
            plan = make_plan(config, cohort)
            results, null = _train(config, cohort, record, plan, grid, device, work)
            write_model(output, config, cohort, record, plan, results, null)
            work.remove()
            outcomes = _done(cohort, results)
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


def _train(
    config: TrainConfig,
    cohort: Cohort,
    record: dict[str, Any],
    plan: Plan,
    grid: Grid,
    device: torch.device,
    work: Work,
) -> tuple[list[FoldResult], Null | None]:
    """Cross-validate on the labels as they are, and on shuffled ones where a null is asked for."""
    task = models.make_task(
        config.task, cohort.targets.names, survival_loss=config.survival_loss, time_bins=config.time_bins
    )
    head = {
        "model": config.model,
        "task": task.to_head(),
        "identity": cohort.identity,
        "hidden_dim": config.hidden_dim,
        "attention_dim": config.attention_dim,
        "branches": config.branches,
        "dropout": config.dropout,
        "members": config.members,
        "initial_weights": config.initial_weights,
        "seed": config.seed,
        "config": record,
        "config_digest": configs.digest(record),
    }
    patches = Patches(tensor_of(cohort.packed), [bag.ranges for bag in cohort.bags])
    networks = sum(len(vals) for vals in plan.vals) * len(grid)
    total = networks * config.epochs * (1 + config.permutations)
    with parallel.progress(f"train {config.model}", total, unit="epochs") as report:

        def trained(targets: NDArray[Any], part: Work) -> list[FoldResult]:
            return cross_validate(
                config, patches, targets, plan, head=head, grid=grid, device=device, work=part, report=report,
                elsewhere=Cluster(cohort, patches, device, report) if config.on_cluster else None,
            )  # fmt: skip

        results = trained(cohort.targets.values, work)
        values = []
        for number in range(config.permutations):
            rng = np.random.default_rng([config.seed, number, 7])
            targets = shuffled(cohort, plan, rng, by_slide=config.label_level == "slide")
            again = trained(targets, work.part(f"permutation-{number}"))
            values.append(leading_score(config, with_values(cohort, targets), again))
    _say(config, results)
    return results, Null(values=values) if values else None


def _say(config: TrainConfig, results: Sequence[FoldResult]) -> None:
    alone = [str(number) for number, each in enumerate(results) if None in each.fitted.val_losses]
    if alone and config.val_fraction:
        console.print(
            f"folds {manifest.some(alone)}: too few training patients to set a validation part aside; "
            f"the last of {config.epochs} epochs was taken.",
            markup=False,
            soft_wrap=True,
        )


def _done(cohort: Cohort, results: Sequence[FoldResult]) -> list[Outcome]:
    fold_of: dict[int, list[str]] = {}
    for number, each in enumerate(results):
        for b in each.fold.test.tolist():
            fold_of.setdefault(b, []).append(str(number))
    return [
        Outcome(
            slide_id=slide_id,
            status="done",
            facts={
                "patient_id": cohort.labels.patient_ids[b],
                "label": cohort.labels.labels[b],
                "fold": " ".join(fold_of.get(b, [])),
                "patches": stop - start,
            },
        )
        for b, bag in enumerate(cohort.bags)
        for slide_id, (start, stop) in zip(bag.slide_ids, bag.ranges, strict=True)
    ]
