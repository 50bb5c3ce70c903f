"""What a run folder says about itself, as plain values for the page.

Comes in: a run folder in any state. Goes out: stages, models and slides; what cannot be read becomes a remark
and never an exception, because the report is what one opens when something went wrong. It draws nothing and
runs no model.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wsi_mil import manifest, store
from wsi_mil.errors import FormatError

STAGES = ("tile", "embed", "train", "heatmap")
"""Those that every run is meant to go through; `predict` is shown where it has run."""

_STAGE_KEYS = ("status", "started", "seconds", "config_digest")
_SCORE_KEYS = (
    "task", "names", "scores", "leading", "positive", "unit", "n_slides", "n_patients", "interval",
    "bootstrap", "left_out",
)  # fmt: skip
_MODEL_KEYS = ("split", "folds", "identity")
_FOLD_KEYS = ("fold", "n_test_patients", "n_test_slides")

CLASSES = ("classification", "multilabel", "ordinal")
"""The tasks whose predictions are probabilities."""

_FIGURES = {
    "roc.png": "ROC",
    "pr.png": "precision and recall",
    "calibration.png": "calibration",
    "scatter.png": "predicted over label",
    "km.png": "survival by predicted risk",
    "losses.png": "losses while training",
    "null.png": "scores with shuffled labels",
}


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
    """What one model says of a slide that it never saw, or (``learnt``) one that it was trained on.

    ``probabilities`` are in the order of the model's names, and empty where the task has none; ``value`` is a
    predicted number or a risk. Of several repeats they are the means. ``label`` is empty where it is unknown.
    ``error`` is from 0 (right and certain) to 1: 1 - probability of the label; of several labels its mean; of
    a number the error as a part of the model's largest. None where there is no such thing.
    """

    model: str
    task: str
    folds: str
    label: str
    patient_id: str
    predicted: str
    probabilities: Mapping[str, float] = field(default_factory=dict)
    value: float | None = None
    error: float | None = None
    learnt: bool = False

    @property
    def wrong(self) -> bool:
        """Tell whether another class, or other classes, were predicted than the label says."""
        if not self.label or self.task not in CLASSES:
            return False
        return set(self.predicted.split(";")) != set(self.label.split(";"))


@dataclass(frozen=True, kw_only=True)
class Model:
    """One model: its metrics.json (``scores``) and verdicts, or the ``problem`` in reading.

    ``figures`` are the pictures in its folder (caption, path). ``elsewhere``: it was trained in another run,
    and these are predictions of this run's slides; ``scores`` are empty where no labels were given.
    """

    name: str
    scores: Mapping[str, Any] = field(default_factory=dict)
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    settings: str = ""
    digest: str = ""
    problem: str = ""
    figures: Sequence[tuple[str, Path]] = ()
    elsewhere: bool = False


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
        """Return the mean error over the models, None where there is none."""
        errors = [each.error for each in self.verdicts if each.error is not None]
        return sum(errors) / len(errors) if errors else None

    @property
    def wrong(self) -> bool:
        """Tell whether some model predicted another class than the label."""
        return any(each.wrong for each in self.verdicts)


def read_stages(run: Path) -> list[Stage]:
    """Return every stage in order, also those that have not run."""
    more = ("predict",) if (run / "predict").is_dir() else ()
    return [_read_stage(run, name) for name in (*STAGES, *more)]


def read_models(run: Path) -> list[Model]:
    """Return the models of the run, then what models of other runs predicted of its slides, by name."""
    own = [_read_model(folder) for folder in _folders(run / "models")]
    return own + [_read_predicted(folder) for folder in _folders(run / "predictions")]


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
        if stage.name == "train" and any(model.scores for model in models if not model.elsewhere):
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
                    stage=f"{'scores of' if model.elsewhere else 'train'} ({model.name})",
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
    _require_keys(scores["scores"], [scores["leading"]], "scores")
    for name, each in scores["scores"].items():
        _require_keys(each, ("value", "low", "high"), f"scores.{name}")
    for each in scores["left_out"]:
        _require_keys(each, ("slide_id", "reason"), "left_out")
    if "null" in scores:
        _require_keys(scores["null"], ("permutations", "p"), "null")


def _read_model(folder: Path) -> Model:
    try:
        scores = store.read_metrics(folder)
        _check_scores(scores)
        _require_keys(scores, _MODEL_KEYS)
        _require_keys(scores["identity"], ("encoder", "mpp"), "identity")
        for each in scores["folds"]:
            _require_keys(each, _FOLD_KEYS, "folds")
        rows = store.read_csv(folder / "predictions.csv")
        verdicts = _verdicts(folder.name, scores["task"], scores["names"], rows)
        settings = (folder / "config.toml").read_text(encoding="utf-8")
        digest = store.model_digest(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        return Model(name=folder.name, problem=f"{folder}: cannot be read as a model ({reason})")
    return Model(
        name=folder.name,
        scores=scores,
        verdicts=verdicts,
        settings=settings,
        digest=digest,
        figures=[(words, folder / name) for name, words in _FIGURES.items() if (folder / name).exists()],
    )


def _read_predicted(folder: Path) -> Model:
    """Return what a model of another run predicted; labels are known where it was scored."""
    name = f"{folder.name}, trained in another run"
    try:
        found = store.read_predictions(folder)
        task, names = found.facts["task"], found.facts["names"]
        verdicts = _verdicts(name, task, names, list(found.rows.values()))
        scores: Mapping[str, Any] = {}
        if (folder / "metrics.json").exists():
            scores = store.read_metrics(folder)
            _check_scores(scores)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        return Model(name=name, elsewhere=True, problem=f"{folder}: cannot be read as predictions ({reason})")
    return Model(name=name, scores=scores, verdicts=verdicts, elsewhere=True)


def _verdicts(
    model: str, task: str, names: Sequence[str], rows: Sequence[Mapping[str, str]]
) -> dict[str, Verdict]:
    """Return the verdict on each slide, from a table of predictions with a row per repeat and slide."""
    of_slide: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        of_slide.setdefault(row["slide_id"], []).append(row)
    columns = [f"probability_{name}" for name in names] if task in CLASSES else list(names)
    found = {}
    for slide_id, each in of_slide.items():
        means = [sum(float(row[column]) for row in each) / len(each) for column in columns]
        first = each[0]
        fold = ", ".join(row["fold"] for row in each) if "fold" in first else f"mean of {first['folds']}"
        found[slide_id] = Verdict(
            model=model,
            task=task,
            folds=fold,
            label=first.get("label", ""),
            patient_id=first.get("patient_id", ""),
            predicted=first["predicted"] if len(each) == 1 else manifest.in_words(task, names, means),
            probabilities=dict(zip(names, means, strict=True)) if task in CLASSES else {},
            value=None if task in CLASSES else means[0],
            learnt=first.get("trained_on") == "yes",
        )
    return _with_errors(task, found)


def _with_errors(task: str, verdicts: Mapping[str, Verdict]) -> dict[str, Verdict]:
    """Return the verdicts with how wrong they are, where the label is known."""
    errors = {}
    for slide_id, each in verdicts.items():
        if each.label and task == "multilabel":
            held = set(each.label.split(";"))
            apart = [abs((name in held) - p) for name, p in each.probabilities.items()]
            errors[slide_id] = sum(apart) / len(apart)
        elif each.label and task in CLASSES:
            errors[slide_id] = 1 - each.probabilities.get(each.label, 0.0)
        elif each.label and task == "regression" and each.value is not None:
            errors[slide_id] = abs(each.value - float(each.label))
    largest = max(errors.values(), default=0.0) if task == "regression" else 1.0
    return {
        slide_id: replace(each, error=errors[slide_id] / largest if largest else 0.0)
        if slide_id in errors
        else each
        for slide_id, each in verdicts.items()
    }


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
