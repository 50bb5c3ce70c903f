"""What a run folder says about itself, as plain values for the page.

Comes in: a run folder in any state. Goes out: stages, models and slides; what cannot be read becomes a remark
and never an exception, because the report is what one opens when something went wrong. It draws nothing and
runs no model.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wsi_mil import store
from wsi_mil.config import Location
from wsi_mil.errors import FormatError
from wsi_mil.geometry import PatchGeometry
from wsi_mil.report.verdicts import Verdict, verdicts_of

STAGES = ("tile", "embed", "train", "heatmap")
"""Those that every run is meant to go through; `predict` is shown where it has run."""

_STAGE_KEYS = ("status", "started", "seconds", "config_digest")
_SCORE_KEYS = (
    "task", "names", "scores", "leading", "positive", "unit", "n_slides", "n_patients", "interval",
    "bootstrap", "left_out",
)  # fmt: skip
_MODEL_KEYS = ("split", "folds", "identity")
_FOLD_KEYS = ("fold", "n_test_patients", "n_test_slides")

_FIGURES = {
    "roc.png": "ROC",
    "pr.png": "precision and recall",
    "calibration.png": "calibration",
    "scatter.png": "predicted over label",
    "km.png": "survival by predicted risk",
    "losses.png": "losses while training",
    "null.png": "scores with shuffled labels",
}


_FILES = {
    f"{name}.{kind}": words
    for name, words in (("overlay", "overlay"), ("top_patches", "top patches"))
    for kind in ("jpg", "png")
}
"""The pictures in the folder of a heatmap that the page leads to; a folder has them in one format."""


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
class Place:
    """Where a slide was when it was tiled (``path`` empty: not known), what reads it, its geometry, and its
    preview; ``fingerprint``: as in ``store.Patches``."""

    path: Location
    reader: str
    geometry: PatchGeometry
    preview: Path
    fingerprint: str = ""


@dataclass(frozen=True, kw_only=True)
class Slide:
    """One slide: its patches, its verdicts, its files in the run (caption, path), and remarks.

    ``heatmaps`` are the folders of its heatmaps, by the model's name; ``place`` where the slide itself lies
    and how large it is; ``statuses`` how each stage's last run ended for it.
    """

    slide_id: str
    patches: int | None
    verdicts: Sequence[Verdict]
    files: Sequence[tuple[str, Path]] = ()
    remarks: Sequence[str] = ()
    heatmaps: Mapping[str, Path] = field(default_factory=dict)
    place: Place | None = None
    statuses: Mapping[str, str] = field(default_factory=dict)

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
    statuses: dict[str, dict[str, str]] = {slide_id: {} for slide_id in ids}
    for stage in stages:
        for row in stage.rows:
            statuses[row["slide_id"]][stage.name] = row.get("status", "")
    slides = [replace(_read_slide(run, each, models), statuses=statuses[each]) for each in sorted(ids)]
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
        verdicts = verdicts_of(folder.name, scores["task"], scores["names"], rows)
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
        verdicts = verdicts_of(name, task, names, list(found.rows.values()))
        scores: Mapping[str, Any] = {}
        if (folder / "metrics.json").exists():
            scores = store.read_metrics(folder)
            _check_scores(scores)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        return Model(name=name, elsewhere=True, problem=f"{folder}: cannot be read as predictions ({reason})")
    return Model(name=name, scores=scores, verdicts=verdicts, elsewhere=True)


def _read_slide(run: Path, slide_id: str, models: Sequence[Model]) -> Slide:
    verdicts = [model.verdicts[slide_id] for model in models if slide_id in model.verdicts]
    if Path(slide_id).name != slide_id:  # a path in the labels, say: no file of the run can bear it
        return Slide(slide_id=slide_id, patches=None, verdicts=verdicts)
    remarks: list[str] = []
    patches, place = None, None
    path = store.patches_path(run, slide_id)
    preview = path.with_name(f"{slide_id}.jpg")
    if path.exists():
        try:
            read = store.read_patches(path)
            patches = len(read.coords)
            place = Place(
                path=read.slide_path, reader=read.reader, geometry=read.geometry, preview=preview,
                fingerprint=read.slide_fingerprint,
            )  # fmt: skip
        except (FormatError, OSError, KeyError) as error:
            remarks.append(f"its patches cannot be read: {error}")
    files = [("tissue and patches", preview)]
    digests = {model.name: model.digest for model in models}
    heatmaps = {}
    for folder in _folders(run / "heatmaps"):
        heatmap = store.heatmap_folder(run, folder.name, slide_id)
        if heatmap.is_dir():
            heatmaps[folder.name] = heatmap
            files += [(f"{words} ({folder.name})", heatmap / name) for name, words in _FILES.items()]
            if remark := _stale(heatmap, digests.get(folder.name, "")):
                remarks.append(f"heatmap of {folder.name}: {remark}")
    return Slide(
        slide_id=slide_id,
        patches=patches,
        verdicts=verdicts,
        files=[each for each in files if each[1].exists()],
        remarks=remarks,
        heatmaps=heatmaps,
        place=place,
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
