"""How good predictions of new slides are, where their labels are known.

Comes in: labels, and the rows of a table of predictions. Goes out: the text of metrics.json and scored.csv.
Slides that the model has learnt from, or whose patient it has, are never scored.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_mil import config as configs
from wsi_mil import manifest, metrics, store
from wsi_mil.config import PredictConfig
from wsi_mil.errors import LabelError
from wsi_mil.predict.ensemble import CLASSES, Ensemble, number

_CALIBRATION = ("brier", "ece", "log_loss")


@dataclass(frozen=True, kw_only=True)
class Known:
    """Labels of slides, as the model's task has them; ``unit`` is what scores are over, patient or slide."""

    labels: manifest.Labels
    targets: NDArray[Any]
    unit: str

    def take(self, rows: Sequence[int]) -> "Known":
        """Return some of the slides."""
        return Known(labels=self.labels.take(rows), targets=self.targets[list(rows)], unit=self.unit)


def read_known(
    config: PredictConfig, ensemble: Ensemble, slide_ids: Sequence[str], where: Path | str
) -> Known:
    """Read the labels of ``config``; whether a slide has features, ``slide_ids`` (in ``where``) say.

    Raises:
        LabelError: the labels are wrong in themselves, are not the model's, or of none of the slides.
    """
    assert config.labels is not None
    labels = manifest.read_labels(config.labels, ensemble.task)
    unit = config.label_level or ensemble.unit
    if unit == "patient":
        manifest.check_patients(labels)
    manifest.match(labels, slide_ids, where)
    return Known(labels=labels, targets=manifest.known_targets(labels, ensemble.names), unit=unit)


def evaluate(
    config: PredictConfig, ensemble: Ensemble, known: Known, rows: Mapping[str, Mapping[str, str]]
) -> dict[str, str]:
    """Return the files that say how good the predictions ``rows`` (by slide) are, by name.

    Raises:
        LabelError: every labelled slide that was predicted is one that the model has learnt from.
    """
    left_out = _left_out(ensemble, known, rows)
    labels = known.labels
    kept = sorted(
        (i for i, each in enumerate(labels.slide_ids) if each not in left_out),
        key=lambda i: labels.slide_ids[i],
    )
    if not kept:
        reasons = "; ".join(f"{slide_id}: {reason}" for slide_id, reason in list(left_out.items())[:3])
        raise LabelError(
            f"{labels.path}: none of its {len(left_out)} slides can be scored ({reasons}). Scores of slides "
            "that a model has learnt from say nothing; rename slides that only share a name."
        )
    part = known.take(kept)
    units = _Units.of(ensemble, part, rows)
    content = _content(config, ensemble, part, units, left_out)
    return {
        "metrics.json": json.dumps(content, indent=2) + "\n",
        "scored.csv": units.table(ensemble, part),
    }


def record(config: PredictConfig, known: Known, table: str) -> dict[str, Any]:
    """Return what makes the scores: settings, labels, and the checksum of the predictions' table."""
    labels = known.labels
    columns = zip(labels.slide_ids, labels.labels, labels.patient_ids, strict=True)
    return configs.record(
        config,
        label_level=known.unit,
        labels=configs.digest({slide: each for slide, *each in columns}),
        predictions=table,
    )


@dataclass(frozen=True, kw_only=True)
class _Units:
    """The scored units, sorted: ``first`` is one of each unit's slides in the labels, ``slides`` how many."""

    targets: NDArray[Any]
    prediction_NP: NDArray[np.float64]
    calibrated_NP: NDArray[np.float64] | None
    patients: list[str]
    ids: list[str]
    first: list[int]
    slides: list[int]

    @classmethod
    def of(cls, ensemble: Ensemble, part: Known, rows: Mapping[str, Mapping[str, str]]) -> "_Units":
        """Return the slides, or the patients with the mean of their slides."""
        labels, names = part.labels, ensemble.names
        columns = [f"probability_{name}" for name in names] if ensemble.task in CLASSES else list(names)
        prediction = _numbers(rows, labels.slide_ids, columns)
        calibrated = None
        if ensemble.temperature is not None:
            calibrated = _numbers(rows, labels.slide_ids, [f"calibrated_{name}" for name in names])
        patients, ids = list(labels.patient_ids), list(labels.slide_ids)
        first, slides, targets = list(range(len(ids))), [1] * len(ids), part.targets
        if part.unit == "patient":
            _, first_P, counts = np.unique(np.asarray(patients), return_index=True, return_counts=True)
            first, slides = first_P.tolist(), counts.tolist()
            if calibrated is not None:
                calibrated = metrics.by_patient(targets, calibrated, patients)[1]
            targets, prediction, patients = metrics.by_patient(targets, prediction, patients)
            ids = patients
        return cls(
            targets=targets, prediction_NP=prediction, calibrated_NP=calibrated, patients=patients, ids=ids,
            first=first, slides=slides,
        )  # fmt: skip

    def table(self, ensemble: Ensemble, part: Known) -> str:
        """Return scored.csv: a row per unit with its label and its prediction."""
        names = ensemble.names
        columns = [f"probability_{name}" for name in names] if ensemble.task in CLASSES else list(names)
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        unit = ("patient_id", "slides") if part.unit == "patient" else ("slide_id", "patient_id")
        writer.writerow([*unit, "label", "predicted", *columns])
        for k, name in enumerate(self.ids):
            said = self.prediction_NP[k]
            more = self.slides[k] if part.unit == "patient" else self.patients[k]
            label = part.labels.labels[self.first[k]]
            writer.writerow(
                [name, more, label, manifest.in_words(ensemble.task, names, said), *map(number, said)]
            )
        return buffer.getvalue()


def _numbers(
    rows: Mapping[str, Mapping[str, str]], slide_ids: Sequence[str], columns: Sequence[str]
) -> NDArray[np.float64]:
    return np.array([[float(rows[slide_id][name]) for name in columns] for slide_id in slide_ids])


def _left_out(ensemble: Ensemble, known: Known, rows: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Return the labelled slides that cannot be scored, with the reason."""
    labels, reasons = known.labels, {}
    for slide_id, patient in zip(labels.slide_ids, labels.patient_ids, strict=True):
        if slide_id not in rows:
            reasons[slide_id] = "no prediction"
        elif rows[slide_id]["trained_on"] == "yes":
            reasons[slide_id] = "the model was trained on it"
        elif labels.has_patients and patient in ensemble.patients:
            reasons[slide_id] = f"the model was trained on another slide of its patient {patient}"
    return reasons


def _content(
    config: PredictConfig, ensemble: Ensemble, part: Known, units: _Units, left_out: Mapping[str, str]
) -> dict[str, Any]:
    """Return the content of metrics.json, in the names of a model's own."""
    task: metrics.Task = ensemble.task  # type: ignore[assignment]
    names = ensemble.names

    def scores(prediction_NP: NDArray[np.float64]) -> dict[str, dict[str, float | str | None]]:
        found = metrics.with_intervals(
            task, units.targets, prediction_NP, units.patients, samples=config.bootstrap, seed=config.seed,
            names=names,
        )  # fmt: skip
        return {
            name: {
                "value": _round(each.value),
                "low": _round(each.low),
                "high": _round(each.high),
                "method": each.method,
            }
            for name, each in found.items()
        }

    content: dict[str, Any] = {
        "format": "wsi-mil metrics",
        "format_version": store.METRICS_VERSION,
        "task": task,
        "model": ensemble.name,
        "names": list(names),
        "positive": names[1] if task == "classification" and len(names) == 2 else None,
        "unit": part.unit,
        "n_slides": len(part.labels.slide_ids),
        "n_patients": len(set(part.labels.patient_ids)),
        **_counts(task, names, units.targets),
        "leading": metrics.LEADING[task],
        "scores": scores(units.prediction_NP),
    }
    if units.calibrated_NP is not None:
        calibrated = scores(units.calibrated_NP)
        content["temperature"] = ensemble.temperature
        content["calibrated"] = {name: calibrated[name] for name in _CALIBRATION}
    return content | {
        "interval": "95 % over patients, each by its method",
        "bootstrap": config.bootstrap,
        "left_out": [{"slide_id": each, "reason": left_out[each]} for each in sorted(left_out)],
    }


def _counts(task: str, names: Sequence[str], targets: NDArray[Any]) -> dict[str, Any]:
    if task == "multilabel":
        return {"n_per_class": dict(zip(names, targets.sum(axis=0).astype(int).tolist(), strict=True))}
    if task in CLASSES:
        counts = np.bincount(targets, minlength=len(names)).tolist()
        return {"n_per_class": dict(zip(names, counts, strict=True))}
    return {"n_events": int(targets[:, 1].sum())} if task == "survival" else {}


def _round(value: float | None) -> float | None:
    return None if value is None else round(float(value), 6)
