"""What the train stage leaves: RUN/models/<name> with its models, predictions, splits and scores.

Comes in: the trained folds of a cohort. Goes out: one folder that appears whole. It trains nothing.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_mil import config as configs
from wsi_mil import metrics, models, store
from wsi_mil.config import TrainConfig
from wsi_mil.train.bags import Cohort
from wsi_mil.train.fit import Fitted

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class TrainedFold:
    """One fold: who was where, the model with its head, and the probabilities (T, C) of the test rows."""

    fold: metrics.Fold
    vals: list[NDArray[np.int64]]
    head: dict[str, Any]
    fitted: Fitted
    probability_TC: NDArray[np.float64]


def write_model(
    output: Path,
    config: TrainConfig,
    cohort: Cohort,
    record: dict[str, Any],
    kind: str,
    trained: list[TrainedFold],
) -> None:
    """Write the model's folder, in place of an older one; ``kind`` is how the folds were made."""
    probability = [f"probability_{name}" for name in cohort.classes]
    with store.atomic_folder(output) as folder:
        (folder / "config.toml").write_text(configs.to_toml(config), encoding="utf-8")
        for number, each in enumerate(trained):
            path = folder / f"fold_{number}.safetensors"
            store.write_fold(path, models.tensors(each.fitted.model), each.head)
        store.write_csv(
            folder / "splits.csv", ("fold", "member", "slide_id", "role"), _split_rows(cohort, trained)
        )
        store.write_csv(
            folder / "predictions.csv",
            ("slide_id", "patient_id", "label", "fold", "predicted", *probability),
            _prediction_rows(cohort, trained),
        )
        content = _scores(config, cohort, record, kind, trained)
        (folder / "metrics.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _split_rows(cohort: Cohort, trained: list[TrainedFold]) -> list[dict[str, object]]:
    """Return one row per fold, member and slide: what the slide was to that member."""
    return [
        {"fold": number, "member": member, "slide_id": cohort.bags[i].slide_id, "role": role}
        for number, each in enumerate(trained)
        for member, val in enumerate(each.vals)
        for role, rows in (
            ("train", np.setdiff1d(each.fold.train, val)),
            ("val", val),
            ("test", each.fold.test),
        )
        for i in rows
    ]


def _prediction_rows(cohort: Cohort, trained: list[TrainedFold]) -> list[dict[str, object]]:
    """Return one row per tested slide, in the order of the slide ids, by the model that never saw it."""
    rows: dict[int, dict[str, object]] = {}
    for number, each in enumerate(trained):
        for i, probability_C in zip(each.fold.test.tolist(), each.probability_TC, strict=True):
            rows[i] = {
                "slide_id": cohort.bags[i].slide_id,
                "patient_id": cohort.labels.patient_ids[i],
                "label": cohort.labels.labels[i],
                "fold": number,
                "predicted": cohort.classes[int(probability_C.argmax())],
            } | {
                f"probability_{name}": f"{value:.6f}"
                for name, value in zip(cohort.classes, probability_C, strict=True)
            }
    return [rows[i] for i in sorted(rows)]


def _scores(
    config: TrainConfig, cohort: Cohort, record: dict[str, Any], kind: str, trained: list[TrainedFold]
) -> dict[str, Any]:
    """Return the content of metrics.json: nothing in it depends on when, where or how fast it was made."""
    tested = np.concatenate([each.fold.test for each in trained])
    probability_NC = np.concatenate([each.probability_TC for each in trained])
    codes, probability, patients = _units(config, cohort, tested, probability_NC)
    scores = metrics.with_intervals(codes, probability, patients, samples=config.bootstrap, seed=config.seed)
    return (
        {
            "format": "wsi-mil metrics",
            "format_version": FORMAT_VERSION,
            "model": config.model,
            "classes": list(cohort.classes),
            "positive": cohort.classes[1] if len(cohort.classes) == 2 else None,
            "unit": config.label_level,
            "n_slides": len(tested),
            "n_patients": len({cohort.labels.patient_ids[i] for i in tested}),
            "n_per_class": dict(zip(cohort.classes, np.bincount(codes).tolist(), strict=True)),
        }
        | {name: _rounded(dataclasses.asdict(score)) for name, score in scores.items()}
        | {
            "interval": "95 % percentile bootstrap over patients",
            "bootstrap": config.bootstrap,
            "split": kind,
            "folds": [_fold_scores(config, cohort, number, each) for number, each in enumerate(trained)],
            "left_out": [
                {"slide_id": each.slide_id, "status": each.status, "reason": each.reason}
                for each in cohort.left_out
            ],
            "identity": cohort.identity,
            "config": record,
            "config_digest": configs.digest(record),
            "features_digest": cohort.features_digest,
            "labels_digest": cohort.labels_digest,
        }
    )


def _fold_scores(config: TrainConfig, cohort: Cohort, number: int, each: TrainedFold) -> dict[str, Any]:
    codes, probability, _ = _units(config, cohort, each.fold.test, each.probability_TC)
    return {
        "fold": number,
        "n_train_slides": len(each.fold.train),
        "n_test_slides": len(each.fold.test),
        "n_test_patients": len({cohort.labels.patient_ids[i] for i in each.fold.test}),
        # None where the fold tests one class only; the pooled score above is defined all the same.
        "auroc": _round(metrics.auroc(codes, probability)),
        "balanced_accuracy": _round(metrics.balanced_accuracy(codes, probability)),
        "epochs": each.fitted.epochs,
        "val_losses": [_round(loss) for loss in each.fitted.val_losses],
    }


def _units(
    config: TrainConfig, cohort: Cohort, rows: NDArray[np.int64], probability_NC: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64], list[str]]:
    """Return codes, probabilities and patients of the scored units: slides, or patients by their mean."""
    patients = [cohort.labels.patient_ids[i] for i in rows]
    if config.label_level == "slide":
        return cohort.codes_N[rows], probability_NC, patients
    return metrics.by_patient(cohort.codes_N[rows], probability_NC, patients)


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in values.items()}
