"""Checks of what stages make of features, and of their tables: models, heatmaps, slides.csv, stage.json.

Comes in: a run folder. Goes out: what is wrong with them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wsi_mil import config as configs
from wsi_mil.errors import FormatError
from wsi_mil.store.features import FeatureStore
from wsi_mil.store.heatmaps import FORMAT_VERSION, heatmap_version, read_heatmap
from wsi_mil.store.layout import (
    features_folder,
    features_zarr,
    heatmap_folder,
    patches_path,
    pointer_path,
    predictions_folder,
    same_encoder,
)
from wsi_mil.store.models import model_digest, read_fold
from wsi_mil.store.predictions import read_predictions
from wsi_mil.store.problems import Problem, inside, of_error
from wsi_mil.store.record import read_csv
from wsi_mil.store.verify_files import Checked

_DAMAGE = (FormatError, OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RuntimeError)


def check_model(folder: Path) -> list[Problem]:
    """Return what is wrong with a model's folder; it is repaired by training again."""

    def problem(file: Path, kind: Any, detail: str) -> Problem:
        return Problem(file=str(file), kind=kind, detail=detail, command="train", removable=folder)

    problems = []
    for name in ("config.toml", "splits.csv", "predictions.csv", "metrics.json"):
        if not (folder / name).is_file():
            problems.append(problem(folder / name, "missing", "every model has one"))
    try:
        if (folder / "metrics.json").is_file():
            model_digest(folder)
            content = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
            if configs.digest(content["config"]) != content["config_digest"]:
                problems.append(
                    problem(folder / "metrics.json", "other settings", "its config_digest differs")
                )
    except _DAMAGE as error:
        problems.append(of_error(problem(folder / "metrics.json", "unreadable", str(error)), error))
    folds = {row.get("fold", "") for row in read_csv(folder / "splits.csv")}
    there = {path.stem.removeprefix("fold_"): path for path in sorted(folder.glob("fold_*.safetensors"))}
    for fold in sorted(folds - there.keys()) if folds else [] if there else ["0"]:
        problems.append(problem(folder / f"fold_{fold}.safetensors", "missing", "splits.csv names its fold"))
    for path in there.values():
        try:
            tensors, _ = read_fold(path)
        except _DAMAGE as error:
            words = str(error).removeprefix(f"{path}: ")
            problems.append(of_error(problem(path, "unreadable", words), error))
            continue
        bad = [name for name, value in tensors.items() if not np.isfinite(value).all()]
        if bad:
            problems.append(problem(path, "not a number", f"NaN or infinity in {bad[0]}"))
    return problems


def check_predictions(folder: Path) -> list[Problem]:
    """Return what is wrong with a folder of predictions; it is repaired by predicting again."""
    try:
        found = read_predictions(folder)
    except FormatError as error:
        path = folder / "predict.json"
        found_wrong = Problem(
            file=str(path), kind="unreadable", detail=str(error), command="predict", removable=folder
        )
        return [of_error(found_wrong, error)]
    bad = [slide_id for slide_id, row in found.rows.items() if not _finite(row)]
    path = folder / "predictions.csv"
    problems = []
    if bad:
        detail = f"the row of {bad[0]} lacks a number"
        problems.append(
            Problem(file=str(path), kind="not a number", detail=detail, command="predict", removable=folder)
        )
    path = folder / "metrics.json"
    if path.exists() and not _is_json(path):
        problems.append(
            Problem(file=str(path), kind="unreadable", detail="no JSON", command="predict", removable=folder)
        )
    return problems


def _finite(row: Mapping[str, str]) -> bool:
    """Tell whether the numbers of a row of predictions are numbers; a single fold has no spread."""
    words = ("slide_id", "predicted", "trained_on")
    try:
        return all(
            np.isfinite(float(v)) for name, v in row.items() if name not in words and (name, v) != ("std", "")
        )
    except (TypeError, ValueError):
        return False


def check_heatmap(folder: Path) -> list[Problem]:
    """Return what is wrong with a slide's heatmap folder; it is repaired by drawing again."""

    def problem(file: Path, kind: Any, detail: str) -> Problem:
        return Problem(file=str(file), kind=kind, detail=detail, command="heatmap", removable=folder)

    problems, path = [], folder / "heatmap.zarr"
    version = heatmap_version(path)
    if version is not None and version != FORMAT_VERSION:
        return [_of_other_version(folder, version)]
    try:
        found = read_heatmap(path)
        if found.slide_id != folder.name:
            problems.append(problem(path, "wrong name", f"says that it is of slide {found.slide_id}"))
        for name, values in found.values.items():
            wanted = (len(found.outputs), len(found.coords))
            if values.shape != wanted:
                detail = f"{name} is {values.shape}, wanted {wanted} for its outputs and patches"
                problems.append(problem(path, "counts", detail))
            elif not np.isfinite(values).all():
                problems.append(problem(path, "not a number", f"NaN or infinity in {name}"))
    except _DAMAGE as error:
        words = str(error).removeprefix(f"{path}: ")
        problems.append(of_error(problem(path, "unreadable", words), error))
    overlay = "overlay.png" if (folder / "overlay.png").is_file() else "overlay.jpg"
    for name, whole in ((overlay, _is_picture), ("heatmap.geojson", _is_json)):
        if not (folder / name).is_file():
            problems.append(problem(folder / name, "missing", "every heatmap has one"))
        elif not whole(folder / name):
            problems.append(problem(folder / name, "unreadable", "not whole"))
    return problems


def _of_other_version(folder: Path, version: int) -> Problem:
    """Return what to say of a heatmap folder whose files may have other names and meanings."""
    file, knows = str(folder / "heatmap.zarr"), f"this program knows {FORMAT_VERSION}"
    if version < FORMAT_VERSION:
        detail = f"a heatmap of version {version}; {knows} and draws it anew"
        return Problem(file=file, kind="earlier version", detail=detail, command="heatmap", removable=folder)
    detail = f"a heatmap of version {version}, written by a newer version of this program; {knows}"
    advice = "update wsi-mil, or draw it again with `wsi-mil heatmap --overwrite`."
    return Problem(file=file, kind="wrong format", detail=detail, command="heatmap", advice=advice)


def _is_picture(path: Path) -> bool:
    data = path.read_bytes()
    if path.suffix == ".png":
        return data[:4] == b"\x89PNG" and data[-8:-4] == b"IEND"
    return data[:2] == b"\xff\xd8" and data[-2:] == b"\xff\xd9"


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True


def check_stage(run: Path, stage: str) -> list[Problem]:
    """Return what is wrong with RUN/<stage>/stage.json and slides.csv in themselves."""
    problems = []
    path = run / stage / "stage.json"
    if path.exists() and not _is_json(path):
        problems.append(
            Problem(file=str(path), kind="unreadable", detail="no JSON", command=stage, removable=path)
        )
    path = run / stage / "slides.csv"
    try:
        rows = read_csv(path)
        if rows and not {"slide_id", "status"} <= rows[0].keys():
            raise ValueError("no columns slide_id and status")
    except (OSError, ValueError) as error:
        problem = Problem(file=str(path), kind="unreadable", detail=str(error), command=stage, removable=path)
        problems.append(of_error(problem, error))
    return problems


def check_patches_table(run: Path, checked: Mapping[str, Checked]) -> list[Problem]:
    """Return where RUN/tile/slides.csv and the patches that are there do not agree."""
    problems, table = [], run / "tile" / "slides.csv"
    for row in _finished(run, "tile"):
        path = patches_path(run, row["slide_id"])
        problems += _row_problems(row, str(path), path, checked.get(row["slide_id"]), table)
    return problems


def check_features_table(
    run: Path, stores: Mapping[str, FeatureStore], checked: Mapping[tuple[str, str], Checked]
) -> list[Problem]:
    """Return where RUN/embed/slides.csv and the features of the encoder that it is about do not agree.

    ``checked`` is by encoder and slide.
    """
    problems = []
    for row in _finished(run, "embed"):
        wanted = row.get("encoder") or _encoder_of_stage(run)
        names = [name for name in stores if same_encoder(name, wanted)] or (
            list(stores) if len(stores) == 1 else []
        )
        places = [place(run, wanted) for place in (features_folder, features_zarr, pointer_path)]
        if not names and any(place.exists() for place in places):
            continue  # a link out of the run folder, or a pointer that cannot be read: said already
        slide_id = row["slide_id"]
        where = (
            stores[names[0]].where(slide_id) if names else f"{run / 'features' / (wanted or '?')}/{slide_id}"
        )
        removable = Path(where) if "://" not in where and inside(run, Path(where)) else None
        found = checked.get((names[0], slide_id)) if names else None
        problems += _row_problems(row, where, removable, found, run / "embed" / "slides.csv")
    return problems


def _encoder_of_stage(run: Path) -> str:
    """Return the encoder of RUN/embed/stage.json, for tables that were written before they named it."""
    try:
        content = json.loads((run / "embed" / "stage.json").read_text(encoding="utf-8"))
        return str(content["config"]["encoder"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _row_problems(
    row: Mapping[str, str], where: str, removable: Path | None, found: Checked | None, table: Path
) -> list[Problem]:
    """Return where a row of a stage's table and the file that it is about do not agree."""
    stage = table.parent.name
    if found is None:
        if "://" not in where and Path(where).exists():
            return []  # a link out of the run folder, which was left alone
        detail = f"{stage}/slides.csv says that it is {row['status']}"
        return [Problem(file=where, kind="missing", detail=detail, command=stage)]
    said = any(not each.is_remark for each in found.problems)
    if said or _is_newer(where, table):  # a stage wrote it and was killed before it wrote its table
        return []
    counted, stated = row.get("patches", ""), row.get("checksum", "")
    if counted and found.patches is not None and int(counted) != found.patches:
        detail = f"{found.patches} patches; {stage}/slides.csv says {counted}"
        return [Problem(file=where, kind="counts", detail=detail, command=stage, removable=removable)]
    if stated and found.checksum and stated != found.checksum:
        detail = f"its features are not those of {stage}/slides.csv"
        return [Problem(file=where, kind="checksum", detail=detail, command=stage, removable=removable)]
    return []


def _is_newer(where: str, table: Path) -> bool:
    path = Path(where) / "zarr.json" if Path(where).is_dir() else Path(where)
    return "://" not in where and path.exists() and path.stat().st_mtime > table.stat().st_mtime


def check_heatmaps_table(run: Path) -> list[Problem]:
    """Return which heatmaps RUN/heatmap/slides.csv says are done and are not there."""
    try:
        model = str(json.loads((run / "heatmap" / "stage.json").read_text(encoding="utf-8"))["model"])
    except (OSError, ValueError, KeyError, TypeError):
        return []
    problems = []
    for row in _finished(run, "heatmap"):
        folder = heatmap_folder(run, model, row["slide_id"])
        if not folder.is_dir():
            detail = f"heatmap/slides.csv says that it is {row['status']}"
            problems.append(Problem(file=str(folder), kind="missing", detail=detail, command="heatmap"))
    return problems


def check_predictions_table(run: Path) -> list[Problem]:
    """Return the predictions that RUN/predict/slides.csv says are done and that are not there."""
    try:
        model = str(json.loads((run / "predict" / "stage.json").read_text(encoding="utf-8"))["model"])
    except (OSError, ValueError, KeyError, TypeError):
        return []
    folder, done = predictions_folder(run, model), _finished(run, "predict")
    if not done or folder.is_dir():
        return []
    detail = f"predict/slides.csv says that {len(done)} slides are predicted"
    return [Problem(file=str(folder), kind="missing", detail=detail, command="predict")]


def _finished(run: Path, stage: str) -> list[dict[str, str]]:
    """Return the rows of a stage's table whose output must be there: done, or skipped as done before."""
    try:
        rows = read_csv(run / stage / "slides.csv")
    except (OSError, ValueError):
        return []  # said by check_stage
    return [
        row
        for row in rows
        if row.get("status") == "done"
        or (row.get("status") == "skipped" and (row.get("patches") or not row.get("reason")))
    ]
