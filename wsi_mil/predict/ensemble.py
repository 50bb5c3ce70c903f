"""A model's folder as one predictor: the mean of its folds, calibrated where it was classified.

Comes in: RUN/models/<name>, and the features of a slide. Goes out: a prediction, and how far the folds are
apart. It knows no cohort and writes nothing.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wsi_mil import manifest, models, store
from wsi_mil.errors import ConfigError, FormatError
from wsi_mil.models import MilModel

CLASSES = ("classification", "multilabel", "ordinal")
"""The tasks whose prediction is a probability for each name."""


@dataclass(frozen=True, kw_only=True)
class SlidePrediction:
    """What the folds say of a slide: the mean of their predictions (P,), as the model's task has them.

    ``calibrated_P`` is the mean at the model's temperature, None where it has none. ``std`` is the standard
    deviation over the folds (n - 1) of the predicted class's probability, of the label on which they are
    furthest apart (multilabel), of the value or of the risk; None of a single fold.
    """

    prediction_P: NDArray[np.float64]
    calibrated_P: NDArray[np.float64] | None
    std: float | None


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """The folds of a model and what is known of it.

    ``task`` is that of its metrics.json, ``unit`` what its scores are over. ``learnt`` are the slides that
    some fold was trained or validated on, ``patients`` whose they are, where that is known. ``record`` tells
    it from any other model.
    """

    folder: Path
    task: str
    unit: str
    head: dict[str, Any]
    folds: list[MilModel]
    temperature: float | None
    learnt: frozenset[str]
    patients: frozenset[str]
    merged: bool
    record: dict[str, Any]

    @property
    def name(self) -> str:
        """Return the name of the model: that of its folder."""
        return self.folder.resolve().name

    @property
    def encoder(self) -> str:
        """Return whose features it takes."""
        return str(self.head["identity"]["encoder"])

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the prediction's P values: classes, labels, 'value' or 'risk'."""
        return self.folds[0].task.names

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the columns of a table of predictions, in their order."""
        values = self.names
        if self.task in CLASSES:
            values = tuple(f"probability_{name}" for name in self.names)
        if self.temperature is not None:
            values += tuple(f"calibrated_{name}" for name in self.names)
        return ("slide_id", "predicted", *values, "std", "folds", "patches", "trained_on")

    def row(self, slide_id: str, patches: int, said: SlidePrediction) -> dict[str, str]:
        """Return a slide's row of that table."""
        calibrated = () if said.calibrated_P is None else said.calibrated_P
        fields = (
            slide_id,
            manifest.in_words(self.task, self.names, said.prediction_P),
            *(number(value) for value in (*said.prediction_P, *calibrated)),
            "" if said.std is None else number(said.std),
            str(len(self.folds)),
            str(patches),
            "yes" if slide_id in self.learnt else "no",
        )
        return dict(zip(self.columns, fields, strict=True))


def read_ensemble(folder: Path, device: torch.device | str = "cpu") -> Ensemble:
    """Read a model's folder, its folds onto ``device``.

    Raises:
        ConfigError: there is no such folder, or no model in it.
        FormatError: a file is missing, damaged, of another model or of an earlier version.
    """
    if not (folder / "metrics.json").is_file():
        found = "has no metrics.json" if folder.is_dir() else "no such folder"
        raise ConfigError(f"--model {folder}: {found}; wanted a model's folder, RUN/models/NAME.")
    metrics = store.read_metrics(folder)
    paths = _fold_paths(folder, metrics)
    read = [store.read_fold(path) for path in paths]
    for path, (_, head) in zip(paths, read, strict=True):
        if head.get("config_digest") != metrics.get("config_digest"):
            raise FormatError(
                f"{path}: of another training than {folder / 'metrics.json'} (config_digest differs); copy "
                "the folder again, whole, or train again."
            )
    head = read[0][1]
    learnt = {r["slide_id"] for r in store.read_csv(folder / "splits.csv") if r["role"] != "test"}
    tested = store.read_csv(folder / "predictions.csv")
    temperature = metrics.get("temperature")
    return Ensemble(
        folder=folder,
        task=str(metrics["task"]),
        unit=str(metrics["unit"]),
        head=head,
        folds=[models.restore(*each).to(device) for each in read],
        temperature=None if temperature is None else float(temperature),
        learnt=frozenset(learnt),
        patients=frozenset(r["patient_id"] for r in tested if r["slide_id"] in learnt),
        merged=metrics.get("config", {}).get("patient_bags") == "merge",
        record={
            "model": folder.resolve().name,
            "model_digest": store.model_digest(folder),
            "folds": len(paths),
            "folds_digest": _digest(paths),
            "temperature": temperature,
            "identity": head["identity"],
        },
    )


@torch.inference_mode()
def predict_slide(features_ND: NDArray[Any], ensemble: Ensemble) -> SlidePrediction:
    """Return what the folds say of one slide, from all of its features (N, D), which may be a memory map.

    The temperature divides each fold's logits, before the mean: on single folds it was fitted.

    Raises:
        FormatError: the slide has no patches, or the prediction is not a number.
    """
    if not len(features_ND):
        raise FormatError("0 patches (no tissue was found): there is nothing to predict from.")
    logits = [fold.bag(features_ND).logits_BC.float().cpu() for fold in ensemble.folds]
    if not all(bool(torch.isfinite(each).all()) for each in logits):
        raise FormatError("the model's answer is not a number; check its files with `wsi-mil verify`.")
    prediction_KP = _predictions(ensemble, logits)
    prediction_P = prediction_KP.mean(axis=0)
    calibrated_P = None
    if ensemble.temperature is not None:
        calibrated_P = _predictions(ensemble, [each / ensemble.temperature for each in logits]).mean(axis=0)
    return SlidePrediction(
        prediction_P=prediction_P, calibrated_P=calibrated_P, std=_std(ensemble.task, prediction_KP)
    )


def number(value: float) -> str:
    """Return a number as tables have it: nine digits, whatever its size."""
    return f"{value:.9g}"


def _fold_paths(folder: Path, metrics: Mapping[str, Any]) -> list[Path]:
    """Return the models of all folds; an ensemble that lacks one is another one."""
    paths = [folder / f"fold_{each['fold']}.safetensors" for each in metrics["folds"]]
    missing = [path.name for path in paths if not path.is_file()]
    if missing or not paths:
        raise FormatError(
            f"{folder}: {', '.join(missing) or 'every fold'} of {len(paths)} folds is missing; the mean of "
            "the others is another model. Copy the folder again, whole, or train again."
        )
    return paths


def _predictions(ensemble: Ensemble, logits: Sequence[torch.Tensor]) -> NDArray[np.float64]:
    """Return each fold's prediction (K, P) of one slide, from its logits (1, C); C is the fold's own."""
    pairs = zip(ensemble.folds, logits, strict=True)
    return np.concatenate([fold.task.predict(logits_BC) for fold, logits_BC in pairs])


def _std(task: str, prediction_KP: NDArray[np.float64]) -> float | None:
    if len(prediction_KP) < 2:
        return None
    std_P = prediction_KP.std(axis=0, ddof=1)
    if task == "multilabel":
        return float(std_P.max())
    return float(std_P[int(prediction_KP.mean(axis=0).argmax())])


def _digest(paths: list[Path]) -> str:
    """Return a digest of the bytes of the folds' models: other weights have another one."""
    whole = hashlib.blake2b(digest_size=8)
    for path in paths:
        whole.update(hashlib.blake2b(path.read_bytes(), digest_size=16).digest())
    return whole.hexdigest()
