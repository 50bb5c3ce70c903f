"""What the train stage leaves: RUN/models/<name> with its models, predictions, splits and scores.

Comes in: the trained folds of a cohort. Goes out: one folder that appears whole. It trains nothing.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_mil import config as configs
from wsi_mil import manifest, metrics, models, store
from wsi_mil.config import TrainConfig
from wsi_mil.parallel import console
from wsi_mil.train import figures, tensorboard
from wsi_mil.train.bags import Cohort
from wsi_mil.train.crossval import FoldResult, Plan

FORMAT_VERSION = 2

_SPLITS = ("repeat", "fold", "member", "slide_id", "role")
_PREDICTIONS = ("repeat", "fold", "slide_id", "patient_id", "label", "predicted")
_HISTORY = ("fold", "member", "epoch", "train_loss", "val_loss")


@dataclass(frozen=True, kw_only=True)
class Null:
    """The leading score of cross-validations with shuffled labels."""

    values: list[float]


def write_model(
    output: Path,
    config: TrainConfig,
    cohort: Cohort,
    record: dict[str, Any],
    plan: Plan,
    results: Sequence[FoldResult],
    null: Null | None = None,
) -> None:
    """Write the model's folder, in place of an older one."""
    names = cohort.targets.names
    values = [f"probability_{name}" for name in names] if _has_classes(cohort) else list(names)
    with store.atomic_folder(output) as folder:
        (folder / "config.toml").write_text(configs.to_toml(config), encoding="utf-8")
        for number, each in enumerate(results):
            store.write_fold(
                folder / f"fold_{number}.safetensors", models.tensors(each.fitted.model), each.fitted.head
            )
        store.write_csv(folder / "splits.csv", _SPLITS, _split_rows(cohort, results))
        rows = _prediction_rows(cohort, results, values)
        store.write_csv(folder / "predictions.csv", (*_PREDICTIONS, *values), rows)
        store.write_csv(folder / "history.csv", _HISTORY, _history_rows(results))
        content = _content(config, cohort, record, plan, results, null)
        (folder / "metrics.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        _draw(folder, config, cohort, results, content)


def _draw(
    folder: Path,
    config: TrainConfig,
    cohort: Cohort,
    results: Sequence[FoldResult],
    content: dict[str, Any],
) -> None:
    """Write figures and TensorBoard logs, after all else; one that cannot be drawn costs no model.

    What the disk refuses is an error as ever: it would refuse the model, too.
    """
    members = [each.fitted.members for each in results]
    drawings: dict[str, Callable[[], bytes]] = {}
    with _spared("the figures"):
        trained = [each for fold in members for each in fold]
        drawings = figures.drawings(_shown(config, cohort, results), trained, _drawn_null(content))
    for name, paint in drawings.items():
        with _spared(name):
            (folder / name).write_bytes(paint())
    with _spared("the TensorBoard logs"):
        tensorboard.write_logs(folder / "tensorboard", members, content, configs.to_toml(config))


@contextmanager
def _spared(what: str) -> Iterator[None]:
    """Say what could not be drawn, and go on."""
    try:
        yield
    except figures.FAULTS as error:
        console.print(
            f"{what} could not be drawn ({type(error).__name__}: {error}); the model and its tables are "
            "whole.",
            markup=False,
            soft_wrap=True,
        )


def leading_score(config: TrainConfig, cohort: Cohort, results: Sequence[FoldResult]) -> float:
    """Return the task's main score over the tested bags of all folds."""
    targets, prediction, _ = _units(config, cohort, results)
    value = metrics.score(_task(cohort), metrics.LEADING[_task(cohort)], targets, prediction)
    if value is None:
        raise ValueError("the tested bags hold one class only: nothing can be scored")
    return value


def _shown(config: TrainConfig, cohort: Cohort, results: Sequence[FoldResult]) -> figures.Shown:
    """Return what the figures are of: the units that the scores are of."""
    targets, prediction, patients = _units(config, cohort, results)
    calibrated = None
    if _task(cohort) == "classification" and len(results) > 1:
        calibrated = _units(config, cohort, _at_temperature(cohort, results))[1]
    return figures.Shown(
        task=_task(cohort),
        names=cohort.targets.names,
        targets=targets,
        prediction_NP=prediction,
        calibrated_NP=calibrated,
        patients=patients,
        unit=config.label_level,
        seed=config.seed,
    )


def _drawn_null(content: dict[str, Any]) -> tuple[str, float, list[float], float] | None:
    if "null" not in content:
        return None
    name, null = content["leading"], content["null"]
    return name, content["scores"][name]["value"], null["values"], null["p"]


def _task(cohort: Cohort) -> metrics.Task:
    return cohort.targets.task  # type: ignore[return-value]


def _has_classes(cohort: Cohort) -> bool:
    return cohort.targets.task in ("classification", "multilabel", "ordinal")


def _split_rows(cohort: Cohort, results: Sequence[FoldResult]) -> list[dict[str, object]]:
    """Return one row per fold, member and slide: what the slide was to that member."""
    return [
        {"repeat": each.fold.repeat, "fold": number, "member": member, "slide_id": slide_id, "role": role}
        for number, each in enumerate(results)
        for member, val in enumerate(each.vals)
        for role, bags in (
            ("train", np.setdiff1d(each.fold.train, val)),
            ("val", val),
            ("test", each.fold.test),
        )
        for b in bags
        for slide_id in cohort.bags[b].slide_ids
    ]


def _prediction_rows(
    cohort: Cohort, results: Sequence[FoldResult], values: Sequence[str]
) -> list[dict[str, object]]:
    """Return one row per repeat and tested slide, by the model that never saw it, in the order of the ids."""
    rows: dict[tuple[int, str], dict[str, object]] = {}
    for number, each in enumerate(results):
        for b, prediction_P in zip(each.fold.test.tolist(), each.prediction_TP, strict=True):
            said = {name: f"{value:.6f}" for name, value in zip(values, prediction_P, strict=True)}
            for slide_id in cohort.bags[b].slide_ids:
                rows[each.fold.repeat, slide_id] = {
                    "repeat": each.fold.repeat,
                    "fold": number,
                    "slide_id": slide_id,
                    "patient_id": cohort.labels.patient_ids[b],
                    "label": cohort.labels.labels[b],
                    "predicted": manifest.in_words(_task(cohort), cohort.targets.names, prediction_P),
                } | said
    return [rows[key] for key in sorted(rows)]


def _history_rows(results: Sequence[FoldResult]) -> list[dict[str, object]]:
    return [
        {
            "fold": number,
            "member": member,
            "epoch": epoch + 1,
            "train_loss": _round(loss),
            "val_loss": _round(each.val_losses[epoch]) if epoch < len(each.val_losses) else "",
        }
        for number, result in enumerate(results)
        for member, each in enumerate(result.fitted.members)
        for epoch, loss in enumerate(each.train_losses)
    ]


def _content(
    config: TrainConfig,
    cohort: Cohort,
    record: dict[str, Any],
    plan: Plan,
    results: Sequence[FoldResult],
    null: Null | None,
) -> dict[str, Any]:
    """Return the content of metrics.json: nothing in it depends on when, where or how fast it was made."""
    task, names = _task(cohort), cohort.targets.names
    targets, prediction, patients = _units(config, cohort, results)
    scores = metrics.with_intervals(
        task, targets, prediction, patients, names=names, samples=config.bootstrap, seed=config.seed
    )
    tested = sorted({int(b) for each in results for b in each.fold.test})
    return (
        {
            "format": "wsi-mil metrics",
            "format_version": FORMAT_VERSION,
            "task": task,
            "model": config.model,
            "names": list(names),
            "positive": names[1] if task == "classification" and len(names) == 2 else None,
            "unit": config.label_level,
            "n_slides": _slides(cohort, tested),
            "n_patients": len({cohort.labels.patient_ids[b] for b in tested}),
        }
        | _counts(config, cohort, tested)
        | {
            "leading": metrics.LEADING[task],
            "scores": {name: _interval(each, config.bootstrap) for name, each in scores.items()},
            "interval": "95 % over patients, each by its method",
            "bootstrap": config.bootstrap,
            "split": plan.kind,
            "repeats": config.repeats,
            "spread": _spread(config, cohort, results),
        }
        | _calibration(cohort, results)
        | _null(null, scores[metrics.LEADING[task]].value)
        | {
            "folds": [_fold_scores(config, cohort, number, each) for number, each in enumerate(results)],
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


def _counts(config: TrainConfig, cohort: Cohort, tested: Sequence[int]) -> dict[str, Any]:
    """Return how many scored units each class has; of survival how many events."""
    values, names = cohort.targets.values, cohort.targets.names
    firsts: dict[object, int] = {}
    for b in tested:
        firsts.setdefault(cohort.labels.patient_ids[b] if config.label_level == "patient" else b, b)
    of_units = values[list(firsts.values())]
    if cohort.targets.task == "multilabel":
        return {"n_per_class": dict(zip(names, of_units.sum(axis=0).astype(int).tolist(), strict=True))}
    if _has_classes(cohort):
        counts = np.bincount(of_units.astype(np.int64), minlength=len(names)).tolist()
        return {"n_per_class": dict(zip(names, counts, strict=True))}
    return {"n_events": int(of_units[:, 1].sum())} if cohort.targets.task == "survival" else {}


def _spread(config: TrainConfig, cohort: Cohort, results: Sequence[FoldResult]) -> dict[str, list[Any]]:
    """Return the leading score of each repeat: how much the draw of the folds and weights matters."""
    name = metrics.LEADING[_task(cohort)]
    repeats = sorted({each.fold.repeat for each in results})
    values = []
    for repeat in repeats:
        units = _units(config, cohort, [each for each in results if each.fold.repeat == repeat])
        values.append(_round(metrics.score(_task(cohort), name, *units[:2])))
    return {name: values}


def _calibration(cohort: Cohort, results: Sequence[FoldResult]) -> dict[str, Any]:
    """Return the temperature for new slides, and how calibrated it makes slides it was not fitted on."""
    if cohort.targets.task != "classification":
        return {}
    logits = np.concatenate([each.logits_TC for each in results])
    codes = np.concatenate([cohort.targets.values[each.fold.test] for each in results])
    folds = np.concatenate([np.full(len(each.fold.test), k) for k, each in enumerate(results)])
    found = {"temperature": _round(metrics.fit_temperature(logits, codes))}
    if len(results) == 1:
        return found  # no other fold to fit a temperature on
    patients = [cohort.labels.patient_ids[b] for each in results for b in each.fold.test]
    calibrated = metrics.crossfitted_temperature(logits, codes, folds, patients_N=patients)
    return found | {
        "calibrated": {
            "ece": _round(metrics.ece(codes, calibrated)),
            "brier": _round(metrics.brier(codes, calibrated)),
        },
    }


def _at_temperature(cohort: Cohort, results: Sequence[FoldResult]) -> list[FoldResult]:
    """Return the folds with the probabilities that they have at the temperature of the other folds."""
    logits = np.concatenate([each.logits_TC for each in results])
    tested = np.concatenate([each.fold.test for each in results])
    sizes = [len(each.fold.test) for each in results]
    calibrated = metrics.crossfitted_temperature(
        logits,
        cohort.targets.values[tested],
        np.repeat(np.arange(len(results)), sizes),
        patients_N=[cohort.labels.patient_ids[b] for b in tested],
    )
    parts = np.split(calibrated, np.cumsum(sizes)[:-1])
    return [dataclasses.replace(r, prediction_TP=p) for r, p in zip(results, parts, strict=True)]


def _null(null: Null | None, value: float | None) -> dict[str, Any]:
    if null is None or value is None:
        return {}
    p = metrics.permutation_p(value, np.array(null.values))
    return {
        "null": {
            "permutations": len(null.values),
            "values": [_round(each) for each in null.values],
            "p": _round(p),
        }
    }


def _fold_scores(config: TrainConfig, cohort: Cohort, number: int, each: FoldResult) -> dict[str, Any]:
    targets, prediction, _ = _units(config, cohort, [each])
    name = metrics.LEADING[_task(cohort)]
    return {
        "fold": number,
        "repeat": each.fold.repeat,
        "n_train_slides": _slides(cohort, each.fold.train),
        "n_test_slides": _slides(cohort, each.fold.test),
        "n_test_patients": len({cohort.labels.patient_ids[b] for b in each.fold.test}),
        # None where it is not defined, as for a fold that tests one class only; the pooled score still is.
        name: _round(metrics.score(_task(cohort), name, targets, prediction)),
        "epochs": each.fitted.epochs,
        "val_losses": [_round(loss) for loss in each.fitted.val_losses],
        "chosen": each.chosen,
    }


def _slides(cohort: Cohort, bags: Iterable[int]) -> int:
    return sum(len(cohort.bags[b].slide_ids) for b in bags)


def _units(
    config: TrainConfig, cohort: Cohort, results: Sequence[FoldResult]
) -> tuple[NDArray[Any], NDArray[np.float64], list[str]]:
    """Return targets, predictions and patients of the scored units of all folds.

    Units are slides, or patients with the mean of their slides; each repeat has its own.
    """
    parts = []
    for repeat in sorted({each.fold.repeat for each in results}):
        some = [each for each in results if each.fold.repeat == repeat]
        at = np.concatenate([each.fold.test for each in some])
        unit = (
            cohort.targets.values[at],
            np.concatenate([each.prediction_TP for each in some]),
            [cohort.labels.patient_ids[b] for b in at],
        )
        parts.append(unit if config.label_level == "slide" else metrics.by_patient(*unit))
    targets, predictions, patients = zip(*parts, strict=True)
    return np.concatenate(targets), np.concatenate(predictions), [p for each in patients for p in each]


def _interval(each: metrics.Interval, samples: int) -> dict[str, float | int | str | None]:
    """Return value, bounds and method; and how many resamples they stand on where some do not define it."""
    found: dict[str, float | int | str | None] = {
        "value": _round(each.value), "low": _round(each.low), "high": _round(each.high),
        "method": each.method,
    }  # fmt: skip
    return found if each.samples in (0, samples) else found | {"samples": each.samples}


def _round(value: float | None) -> float | None:
    return None if value is None else round(float(value), 6)
