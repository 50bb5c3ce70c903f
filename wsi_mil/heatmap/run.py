"""Walk a run's slides and write RUN/heatmaps/<name>/<slide_id>/ for each.

Comes in: stored features and a trained model. Goes out: heatmap.zarr with raw values, overlay.jpg,
heatmap.geojson and top_patches.jpg. The slide itself is read for the pictures only.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_mil import config as configs
from wsi_mil import models, parallel, store
from wsi_mil.config import HeatmapConfig
from wsi_mil.errors import ConfigError, FormatError, SlideError
from wsi_mil.heatmap import render
from wsi_mil.heatmap.scores import SlideScore, scale, score_slide
from wsi_mil.models import MilModel
from wsi_mil.parallel import StageResult, console
from wsi_mil.slide import open_slide

_GREY = 200  # the picture of a slide that is not there any more
_TOP_PATCH_PX = 224


@dataclass(frozen=True)
class _Task:
    slide_id: str
    config: HeatmapConfig
    name: str
    encoder: str
    prediction: dict[str, str] | None
    learnt: bool
    """Not tested, and among those that the model was trained on."""
    model_digest: str


def run(config: HeatmapConfig) -> StageResult:
    """Draw every slide of the run that has the model's features; one bad slide does not end the run.

    A slide of the cross-validation is drawn by the model of the fold that never saw it; any other slide by
    the mean of all folds' models, and the title says which, and whether they were trained on it.

    Raises:
        ConfigError: no model, or ``slides`` names a slide without features.
        FormatError: the model's files are damaged.
    """
    name = config.name or store.only_folder(config.run / "models", "--name", "train")
    folder = store.model_folder(config.run, name)
    _, head = store.read_fold(folder / "fold_0.safetensors")
    predictions = {row["slide_id"]: row for row in store.read_csv(folder / "predictions.csv")}
    encoder = str(head["identity"]["encoder"])
    all_ids = _slide_ids(config, encoder, predictions)
    slide_ids = configs.share_of(all_ids, config.share)
    output = store.heatmap_folder(config.run, name, "x").parent
    store.sweep(output)
    digest = store.model_digest(folder)
    split = {row["slide_id"] for row in store.read_csv(folder / "splits.csv")}
    tasks = {
        slide_id: _Task(
            slide_id, config, name, encoder, predictions.get(slide_id),
            learnt=slide_id in split and slide_id not in predictions, model_digest=digest,
        )
        for slide_id in slide_ids
    }  # fmt: skip
    with store.stage_record(config.run, "heatmap", config) as record:
        record["model"] = name
        try:
            # alone: the library that draws is not for several threads
            place = parallel.Place(workers=config.workers, cluster=config, shared=config.run, alone=True)
            outcomes = parallel.map_slides(_draw, tasks, title="heatmap", place=place, cost=_cost(config))
        finally:
            store.sweep(output)
        columns = ("slide_id", "status", "seconds", "patches", "drawn_by", "reason")
        table = config.run / "heatmap" / "slides.csv"
        store.write_rows(table, columns, (each.row() for each in outcomes), all_ids)
    return StageResult(stage="heatmap", output=output, outcomes=outcomes)


def _slide_ids(config: HeatmapConfig, encoder: str, predictions: Mapping[str, Any]) -> list[str]:
    present = store.open_features(config.run, encoder).slide_ids()
    unknown = [slide_id for slide_id in config.slides if slide_id not in present]
    if unknown:
        raise ConfigError(
            f"--slides {' '.join(unknown)}: no features of {encoder} in {config.run}; there are "
            f"{', '.join(present[:8]) or 'none'}{', ...' if len(present) > 8 else ''}."
        )
    chosen = list(config.slides) or present
    others = [slide_id for slide_id in chosen if slide_id not in predictions]
    if others:
        console.print(
            f"{len(others)} slides were not tested and are drawn by the mean of all folds: "
            f"{', '.join(others[:5])}{', ...' if len(others) > 5 else ''}",
            markup=False,
        )
    return chosen


def _cost(config: HeatmapConfig) -> Callable[[_Task], float]:
    """Return what says how many patches a slide has, as far as embed's table does."""
    rows = store.read_csv(config.run / "embed" / "slides.csv")
    patches = {row["slide_id"]: float(row.get("patches") or 0) for row in rows}
    return lambda task: patches.get(task.slide_id, 0.0)


@functools.lru_cache(maxsize=32)
def _read_model(path: Path, _modified_ns: int) -> tuple[MilModel, dict[str, Any]]:
    tensors, head = store.read_fold(path)
    return models.restore(tensors, head), head


def _models(task: _Task) -> tuple[list[MilModel], dict[str, Any], str]:
    """Return the models that draw a slide, their head, and words for which they are."""
    folder = store.model_folder(task.config.run, task.name)
    if task.prediction is not None:
        paths = [folder / f"fold_{task.prediction['fold']}.safetensors"]
        words = f"fold {task.prediction['fold']}, which never saw this slide"
    else:
        paths = sorted(folder.glob("fold_*.safetensors"))
        words = f"mean of {len(paths)} folds" if len(paths) > 1 else "the only fold"
        words += ", trained on this slide" if task.learnt else ""
    read = [_read_model(path, path.stat().st_mtime_ns) for path in paths]
    return [model for model, _ in read], read[0][1], words


def _draw(task: _Task) -> Mapping[str, Any] | None:
    config = task.config
    features = store.open_features(config.run, task.encoder).read(task.slide_id)
    record = configs.record(
        config,
        model=task.name,
        model_digest=task.model_digest,
        patches_digest=features.patches_digest,
        weights_digest=features.weights_digest,
    )
    output = store.heatmap_folder(config.run, task.name, task.slide_id)
    if store.heatmap_is_done(output, record, config.overwrite):
        return None
    chosen, head, words = _models(task)
    models.check_identity(head, features.identity, task.slide_id)
    if not len(features.coords):
        raise FormatError(f"{task.slide_id}: 0 patches (no tissue was found); there is nothing to draw.")
    score = score_slide(features.features, chosen)
    facts = {
        "model": task.name,
        "kind": head["model"],
        "drawn_by": words,
        "task": head["task"]["task"],
        "prediction": dict(zip(head["task"]["names"], np.round(score.prediction, 6).tolist(), strict=True)),
    }
    heatmap = store.Heatmap(
        slide_id=task.slide_id,
        geometry=features.geometry,
        coords=features.coords,
        values={"attention": score.attention_CN},
        outputs=chosen[0].task.output_names,
        shown={"quantity": "attention", "output": chosen[0].task.output_names[score.drawn]},
        facts=facts | {"label": task.prediction and task.prediction["label"]},
        record=record,
    )
    note = _write(output, task, features, score, heatmap)
    return {"patches": len(features.coords), "drawn_by": words, "reason": note}


def _write(
    output: Path, task: _Task, features: store.Features, score: SlideScore, heatmap: store.Heatmap
) -> str:
    """Write the slide's folder, whole; return a remark where the slide could not be shown."""
    config, geometry = task.config, features.geometry
    scaled = scale(score.attention, config.normalize)
    um_per_pixel = max(geometry.width_l0, geometry.height_l0) * geometry.mpp_l0 / config.overlay_px
    picture, top, note = _read_pictures(features, score, config, um_per_pixel)
    raster = render.spread(scaled, features.coords, geometry, (picture.shape[0], picture.shape[1]))
    overlay = render.blend(picture, raster, config.opacity)
    title = _title(task, heatmap.facts, note)
    percentile = scale(score.attention, "percentile")
    columns = {"attention": score.attention, "attention percentile": percentile}
    with store.atomic_folder(output) as folder:
        store.write_heatmap(folder / "heatmap.zarr", heatmap)
        legend = render.LEGENDS[config.normalize]
        jpeg = render.overlay_jpeg(overlay, um_per_pixel, title, legend, config.opacity)
        (folder / "overlay.jpg").write_bytes(jpeg)
        geojson = render.to_geojson(features.coords, geometry, columns)
        (folder / "heatmap.geojson").write_text(geojson, encoding="utf-8")
        if top:
            instance = heatmap.facts["kind"].startswith("instance-")
            values = np.sort(score.attention)[::-1][: len(top)] * (1 if instance else len(score.attention))
            unit = "" if instance else " x mean"
            captions = [f"{rank}. {value:.2f}{unit}" for rank, value in enumerate(values.tolist(), 1)]
            (folder / "top_patches.jpg").write_bytes(render.top_patches_jpeg(top, captions))
    return note


def _read_pictures(
    features: store.Features, score: SlideScore, config: HeatmapConfig, um_per_pixel: float
) -> tuple[NDArray[np.uint8], list[NDArray[np.uint8]], str]:
    """Return the thumbnail, the top patches and a remark; grey and none where the slide cannot be read."""
    geometry = features.geometry
    try:
        icc = features.head.icc
        with open_slide(features.slide_path, features.reader, geometry.mpp_l0, icc) as slide:  # type: ignore[arg-type]
            picture = slide.thumbnail(um_per_pixel)
            top = np.argsort(-score.attention, kind="stable")[: config.top_patches]
            patches = [
                slide.read(x, y, geometry.patch_px, geometry.mpp) for x, y in features.coords[top].tolist()
            ]
        return picture, patches, ""
    except SlideError as error:
        shape = (
            round(geometry.height_l0 * geometry.mpp_l0 / um_per_pixel),
            round(geometry.width_l0 * geometry.mpp_l0 / um_per_pixel),
            3,
        )
        return np.full(shape, _GREY, np.uint8), [], f"drawn without the slide: {error}"


def _title(task: _Task, facts: Mapping[str, Any], note: str) -> str:
    prediction: dict[str, float] = facts["prediction"]
    highest = max(prediction, key=lambda name: prediction[name])
    value = f"{prediction[highest]:.2f}"
    label = f"label {task.prediction['label']}, " if task.prediction else ""
    lines = [
        f"{task.slide_id}: {label}predicted "
        + (value if facts["task"] in ("regression", "cox", "discrete") else f"{highest} ({value})"),
        f"attention of {task.name}, {facts['drawn_by']}",
    ]
    if note:
        lines.append("the slide could not be read: shown without its picture")
    return "\n".join(lines)
