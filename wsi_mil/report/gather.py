"""What a run folder says about itself, as plain values for the page.

Comes in: a run folder in any state. Goes out: stages, models and slides; what cannot be read becomes a remark
and never an exception, because the report is what one opens when something went wrong. It draws nothing and
runs no model.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsi_mil import store
from wsi_mil.errors import FormatError

STAGES = ("tile", "embed", "train", "heatmap")

_STAGE_KEYS = ("status", "started", "seconds", "config_digest")
_SCORE_KEYS = (
    "auroc", "balanced_accuracy", "positive", "unit", "n_slides", "n_patients", "interval", "bootstrap",
    "split", "folds", "left_out", "identity",
)  # fmt: skip
_FOLD_KEYS = ("fold", "n_test_patients", "n_test_slides", "auroc", "balanced_accuracy")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage: its stage.json (``record``, empty where it has not run), the rows of its slides.csv, or the
    ``problem`` in reading either."""

    name: str
    record: Mapping[str, Any] = field(default_factory=dict)
    rows: Sequence[Mapping[str, str]] = ()
    problem: str = ""

    @property
    def status(self) -> str:
        """How it ended: done, interrupted or failed; or 'not run', or 'unreadable'."""
        return str(self.record.get("status", "unreadable" if self.problem else "not run"))

    def count(self, status: str) -> int:
        """Return how many slides of its last run ended as ``status``."""
        return sum(row.get("status") == status for row in self.rows)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A slide that a stage failed on (``failed``), or left out or has a remark about.

    Where ``slide_id`` is empty it is the stage as a whole that failed.
    """

    stage: str
    slide_id: str
    failed: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What one model says of a slide that it never saw. ``probabilities`` are in the model's class order."""

    model: str
    fold: str
    label: str
    patient_id: str
    predicted: str
    probabilities: Mapping[str, float]

    @property
    def error(self) -> float:
        """Return 1 - probability of the true label: 0 is right and certain, 1 wrong and certain."""
        return 1 - self.probabilities.get(self.label, 0.0)


@dataclass(frozen=True, kw_only=True)
class Model:
    """One model: its metrics.json (``scores``) and out-of-fold verdicts, or the ``problem`` in reading."""

    name: str
    scores: Mapping[str, Any] = field(default_factory=dict)
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    settings: str = ""
    digest: str = ""
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Slide:
    """One slide: its patches, its verdicts, the pictures that lie in the run (caption, path), and remarks."""

    slide_id: str
    patches: int | None
    verdicts: Sequence[Verdict]
    pictures: Sequence[tuple[str, Path]]
    remarks: Sequence[str]

    @property
    def error(self) -> float | None:
        """Return the mean error over the models, None where no model was tested on the slide."""
        return sum(each.error for each in self.verdicts) / len(self.verdicts) if self.verdicts else None

    @property
    def wrong(self) -> bool:
        """Tell whether some model predicted another class than the label."""
        return any(each.predicted != each.label for each in self.verdicts)


def read_stages(run: Path) -> list[Stage]:
    """Return every stage in order, also those that have not run."""
    return [_read_stage(run, name) for name in STAGES]


def read_models(run: Path) -> list[Model]:
    """Return the models of the run, by name."""
    return [_read_model(folder) for folder in _folders(run / "models")]


def read_slides(run: Path, stages: Sequence[Stage], models: Sequence[Model]) -> list[Slide]:
    """Return every slide that any stage knows, most wrong first, then those without a prediction by id."""
    ids = {path.stem for path in (run / "patches").glob("*.h5") if path.name[0] != "."}
    ids |= {row["slide_id"] for stage in stages for row in stage.rows if "slide_id" in row}
    ids |= {slide_id for model in models for slide_id in model.verdicts}
    slides = [_read_slide(run, slide_id, models) for slide_id in sorted(ids)]
    return sorted(slides, key=lambda each: (each.error is None, -(each.error or 0.0), each.slide_id))


def problems(stages: Sequence[Stage], models: Sequence[Model]) -> list[Problem]:
    """Return every stage and slide that failed, then the slides left out or remarked upon."""
    found = []
    for stage in stages:
        if reason := _halted(stage):
            found.append(Problem(stage=stage.name, slide_id="", failed=True, reason=reason))
        if stage.name == "train" and any(model.scores for model in models):
            continue  # metrics.json keeps who was left out, also when a later run had nothing to do
        for row in stage.rows:
            failed = row.get("status") == "failed"
            if failed or row.get("reason"):  # what was there already is skipped without a reason
                reason = row.get("reason") or "no reason given"
                found.append(
                    Problem(stage=stage.name, slide_id=row["slide_id"], failed=failed, reason=reason)
                )
    for model in models:
        for each in model.scores.get("left_out", []):
            found.append(
                Problem(
                    stage=f"train ({model.name})",
                    slide_id=str(each["slide_id"]),
                    failed=each.get("status") == "failed",
                    reason=str(each["reason"]),
                )
            )
    return sorted(found, key=lambda each: not each.failed)


def _read_stage(run: Path, name: str) -> Stage:
    record: Mapping[str, Any] = {}
    rows: Sequence[Mapping[str, str]] = ()
    faults = []
    try:
        if (found := store.read_stage(run, name)) is not None:
            _require_keys(found, _STAGE_KEYS)
            record = found
    except (OSError, ValueError, TypeError) as error:
        faults.append(f"{run / name / 'stage.json'}: cannot be read ({error})")
    try:
        table = store.read_csv(run / name / "slides.csv")
        for row in table[:1]:
            _require_keys(row, ("slide_id", "status"))
        rows = table
    except (OSError, ValueError) as error:
        faults.append(f"{run / name / 'slides.csv'}: cannot be read ({error})")
    return Stage(name=name, record=record, rows=rows, problem="; ".join(faults))


def _halted(stage: Stage) -> str:
    """Return why a stage as a whole is not done, '' where it is or has not run."""
    if stage.problem:
        return stage.problem
    if stage.status in {"done", "not run"}:
        return ""
    if stage.status == "interrupted":
        return "interrupted; give the same command again to go on"
    return f"ended as '{stage.status}'; give the same command again and it says why"


def _require_keys(found: Iterable[str], keys: Iterable[str], where: str = "") -> None:
    if missing := [key for key in keys if key not in found]:
        raise FormatError(f"{where or 'it'} lacks {', '.join(missing)}")


def _check_scores(scores: Mapping[str, Any]) -> None:
    """Raise FormatError where metrics.json lacks something that the page shows."""
    _require_keys(scores, _SCORE_KEYS)
    _require_keys(scores["identity"], ("encoder", "mpp"), "identity")
    for each in scores["folds"]:
        _require_keys(each, _FOLD_KEYS, "folds")
    for each in scores["left_out"]:
        _require_keys(each, ("slide_id", "reason"), "left_out")


def _read_model(folder: Path) -> Model:
    try:
        scores = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        if scores["format"] != "wsi-mil metrics" or scores["format_version"] != 1:
            raise FormatError(f"says it is {scores['format']!r} version {scores['format_version']}")
        classes = [str(name) for name in scores["classes"]]
        _check_scores(scores)
        verdicts = {
            row["slide_id"]: Verdict(
                model=folder.name,
                fold=row["fold"],
                label=row["label"],
                patient_id=row["patient_id"],
                predicted=row["predicted"],
                probabilities={name: float(row[f"probability_{name}"]) for name in classes},
            )
            for row in store.read_csv(folder / "predictions.csv")
        }
        settings = (folder / "config.toml").read_text(encoding="utf-8")
        digest = store.model_digest(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        return Model(name=folder.name, problem=f"{folder}: cannot be read as a model ({reason})")
    return Model(name=folder.name, scores=scores, verdicts=verdicts, settings=settings, digest=digest)


def _read_slide(run: Path, slide_id: str, models: Sequence[Model]) -> Slide:
    verdicts = [model.verdicts[slide_id] for model in models if slide_id in model.verdicts]
    if Path(slide_id).name != slide_id:  # a path in the labels, say: no file of the run can bear it
        return Slide(slide_id=slide_id, patches=None, verdicts=verdicts, pictures=[], remarks=[])
    remarks: list[str] = []
    patches = None
    path = store.patches_path(run, slide_id)
    if path.exists():
        try:
            patches = len(store.read_patches(path).coords)
        except (FormatError, OSError, KeyError) as error:
            remarks.append(f"its patches cannot be read: {error}")
    pictures = [("tissue and patches", path.with_name(f"{slide_id}.jpg"))]
    digests = {model.name: model.digest for model in models}
    for folder in _folders(run / "heatmaps"):
        overlay = store.heatmap_folder(run, folder.name, slide_id) / "overlay.jpg"
        pictures.append((f"attention of {folder.name}, brighter is higher", overlay))
        if overlay.exists() and (remark := _stale(overlay.parent, digests.get(folder.name, ""))):
            remarks.append(f"heatmap of {folder.name}: {remark}")
    return Slide(
        slide_id=slide_id,
        patches=patches,
        verdicts=verdicts,
        pictures=[each for each in pictures if each[1].exists()],
        remarks=remarks,
    )


def _stale(heatmap: Path, digest: str) -> str:
    """Return a remark where a heatmap is not one of the model that is there now."""
    try:
        drawn_by = store.read_heatmap(heatmap / "heatmap.zarr").record.get("model_digest")
    except (FormatError, OSError, KeyError) as error:
        return f"its values cannot be read: {error}"
    if not digest or drawn_by == digest:
        return ""
    return "drawn by an earlier model of that name; draw it again with `wsi-mil heatmap --overwrite`"


def _folders(parent: Path) -> list[Path]:
    return sorted(p for p in parent.iterdir() if p.is_dir() and p.name[0] != ".") if parent.is_dir() else []
