"""One slide's heatmap folder: everything that one call writes.

Comes in: a slide's features, the models that draw it, the settings. Goes out: RUN/heatmaps/<name>/<slide_id>,
whole or not at all. The slide itself is read for the pictures only, and checked against the map.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_mil import blocks, models, store
from wsi_mil import config as configs
from wsi_mil.config import HeatmapConfig, Location
from wsi_mil.encoders import Encoder, load_encoder
from wsi_mil.errors import FormatError, SlideMissingError
from wsi_mil.geometry import PatchGeometry
from wsi_mil.heatmap import check, dense, export, render
from wsi_mil.heatmap.scores import SlideScore, choose, ends, scale, score_slide
from wsi_mil.locate import SlideFinder
from wsi_mil.models import MilModel
from wsi_mil.parallel import Outcome
from wsi_mil.slide import Slide, open_slide

_GREY = 200  # the picture of a slide that is not there any more
_LARGEST_PATCH_PX = 1024
_SHEET_PX = 3200

_NORMALIZED = {
    "minmax": "min-max within the slide",
    "percentile": "percentile within the slide",
    "none": "raw values",
}


@dataclass(frozen=True)
class Task:
    """What a process needs to know to draw a slide.

    ``prediction`` is its row of the cross-validation; ``learnt``: not tested, and among those that the model
    was trained on. ``finder`` finds the slide.
    """

    slide_id: str
    config: HeatmapConfig
    name: str
    encoder: str
    prediction: dict[str, str] | None
    learnt: bool
    model_digest: str
    finder: SlideFinder = SlideFinder()


@dataclass(frozen=True)
class _Pictures:
    """What was read of the slide at ``slide_path``: its thumbnail, patches with captions.

    Where there is no slide the path is "", the thumbnail is grey and ``note`` says why.
    """

    thumbnail: NDArray[np.uint8]
    sheets: Mapping[str, tuple[list[NDArray[np.uint8]], list[str]]]
    note: str = ""
    slide_path: str = ""
    alignment: Mapping[str, float] = dataclasses.field(default_factory=dict)
    dense_coords: NDArray[np.int64] = dataclasses.field(default_factory=lambda: np.zeros((0, 2), np.int64))
    dense_features: NDArray[np.float16] | None = None


_Looking = Future[tuple[Slide, NDArray[np.uint8]]]


@functools.lru_cache(maxsize=32)
def _read_model(path: Path, _modified_ns: int) -> tuple[MilModel, dict[str, Any]]:
    tensors, head = store.read_fold(path)
    return models.restore(tensors, head), head


@functools.lru_cache(maxsize=1)
def _encoder(name: str, weights: Path | None, weights_dir: Path | None, stain: str) -> Encoder:
    return load_encoder(name, weights, weights_dir=weights_dir, stain=stain)


def models_of(task: Task) -> tuple[list[MilModel], dict[str, Any], str]:
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


def draw(task: Task) -> Mapping[str, Any] | Outcome | None:
    """Draw one slide; return facts for the stage's table, None where it is there already.

    One that was drawn without its slide is drawn again once the slide is found; until then it is skipped.

    Raises:
        FormatError: features of another kind than the model's, or of no patches; an output of other settings.
        SlideError: the map does not lie over the slide, or the slide is there and cannot be read.
    """
    config = task.config
    if task.slide_id in {"", ".", ".."} or Path(task.slide_id).name != task.slide_id:
        raise FormatError(f"{task.slide_id!r}: cannot be a folder's name; rename the slide and its files.")
    stored = store.open_features(config.run, task.encoder)
    known = stored.summary(task.slide_id)
    record = configs.record(
        config,
        model=task.name,
        model_digest=task.model_digest,
        patches_digest=known.head.patches_digest,
        weights_digest=known.head.weights_digest,
    )
    output = store.heatmap_folder(config.run, task.name, task.slide_id)
    if not config.overwrite and store.heatmap_is_done(output, record):
        if store.heatmap_has_picture(output):
            return None
        if away := _away(task, known.head):
            return Outcome(slide_id=task.slide_id, status="skipped", facts={"reason": away})
    chosen, head, words = models_of(task)
    models.check_identity(head, known.head.identity, task.slide_id)
    if not known.patches:
        raise FormatError(f"{task.slide_id}: 0 patches (no tissue was found); there is nothing to draw.")
    with _looking_meanwhile(task, known.head) as (beside, looking):
        features = stored.read(task.slide_id)
        checking = beside.submit(_check, looking, features)
        score = score_slide(features.features, chosen)
        quantity, of = choose(score, config.show, config.output_class)
        values = score.values[quantity][score.outputs.index(of)]
        pictures = _read_pictures(features, values, config, looking, checking)
    count, dense_values = len(features.coords), {}
    if pictures.dense_features is not None:
        everything = score_slide(features.features, chosen, pictures.dense_features)
        dense_values = {name: values[:, count:] for name, values in everything.values.items()}
    heatmap = store.Heatmap(
        slide_id=task.slide_id,
        geometry=features.geometry,
        coords=features.coords,
        values=score.values,
        outputs=score.outputs,
        shown={"quantity": quantity, "output": of},
        facts=_facts(task, head, words, score, pictures),
        record=record,
        dense_coords=pictures.dense_coords,
        dense_values=dense_values,
    )
    _write(output, task, heatmap, pictures)
    return {"patches": count, "drawn_by": words, "reason": pictures.note}


def _facts(
    task: Task, head: Mapping[str, Any], words: str, score: SlideScore, pictures: _Pictures
) -> dict[str, Any]:
    return {
        "model": task.name,
        "kind": head["model"],
        "drawn_by": words,
        "task": head["task"]["task"],
        "prediction": dict(zip(head["task"]["names"], np.round(score.prediction, 6).tolist(), strict=True)),
        "label": task.prediction and task.prediction["label"],
        "bias": dict(zip(score.outputs, score.bias.tolist(), strict=False)),
        "logit": dict(zip(score.outputs, score.logit.tolist(), strict=False)),
        "not_available": score.missing,
        "alignment": dict(pictures.alignment),
        "note": pictures.note,
        "slide_path": pictures.slide_path,
    }


def _find(task: Task, head: store.FeaturesHead) -> Location:
    """Return where the slide lies; `tile` may have noted a newer place than the features have."""
    stored = [head.slide_path]
    patches = store.patches_path(task.config.run, task.slide_id)
    if patches.exists():
        with contextlib.suppress(FormatError):  # the features suffice
            stored.insert(0, store.read_patches(patches).slide_path)
    return task.finder.find(task.slide_id, stored, head.slide_fingerprint)


def _away(task: Task, head: store.FeaturesHead) -> str:
    """Return in words that the slide is nowhere, or "" where it is found."""
    try:
        _find(task, head)
    except SlideMissingError as error:
        return _without(error)
    return ""


def _without(error: SlideMissingError) -> str:
    return f"drawn without the slide: {error}"


@contextlib.contextmanager
def _looking_meanwhile(task: Task, head: store.FeaturesHead) -> Iterator[tuple[ThreadPoolExecutor, _Looking]]:
    """Open the slide and read its thumbnail beside what the block does.

    What the block gives the thread to do after that is waited for; then the slide is closed.
    """

    def look() -> tuple[Slide, NDArray[np.uint8]]:
        slide = open_slide(
            _find(task, head),
            head.reader,  # type: ignore[arg-type]
            head.geometry.mpp_l0,
            head.icc,
        )
        try:
            return slide, blocks.thumbnail(slide, um_per_pixel(head.geometry, task.config))
        except BaseException:
            slide.close()
            raise

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        try:
            yield pool, looking
        finally:
            pool.shutdown()
            if looking.exception() is None:
                looking.result()[0].close()


def _check(looking: _Looking, features: store.Features) -> check.Alignment:
    slide, picture = looking.result()
    return check.check_alignment(slide, picture, features.coords, features.geometry)


def _read_pictures(
    features: store.Features,
    values: NDArray[np.float32],
    config: HeatmapConfig,
    looking: _Looking,
    checking: Future[check.Alignment],
) -> _Pictures:
    """Read what is shown of the slide; grey where it is away, an error where the map is elsewhere."""
    geometry = features.geometry
    try:
        slide, picture = looking.result()
    except SlideMissingError as error:
        return _grey(geometry, um_per_pixel(geometry, config), error)
    order = np.argsort(-values, kind="stable")
    sheets = {
        "top": _patches(slide, features, values, order[: config.top_patches], 1),
        "bottom": _patches(slide, features, values, order[::-1][: config.top_patches], -1),
    }
    alignment = checking.result()
    more, embedded = np.zeros((0, 2), np.int64), None
    if config.overlap:
        stain = features.identity.get("stain", "none")
        encoder = _encoder(features.encoder, config.weights, config.weights_dir, stain)
        wanted = dense.finer(features.coords, geometry, values, config.top_part, config.overlap)
        more, embedded = dense.embed_finer(slide, features, wanted, encoder)
    return _Pictures(picture, sheets, "", str(slide.path), alignment.facts(), more, embedded)


def um_per_pixel(geometry: PatchGeometry, config: HeatmapConfig) -> float:
    """Return the microns of a pixel of the overlay."""
    return max(geometry.width_l0, geometry.height_l0) * geometry.mpp_l0 / config.overlay_px


def _grey(geometry: PatchGeometry, um: float, error: SlideMissingError) -> _Pictures:
    shape = (
        max(1, round(geometry.height_l0 * geometry.mpp_l0 / um)),
        max(1, round(geometry.width_l0 * geometry.mpp_l0 / um)),
        3,
    )
    return _Pictures(np.full(shape, _GREY, np.uint8), {}, _without(error))


def _patches(
    slide: Slide, features: store.Features, values: NDArray[np.float32], rows: NDArray[np.int64], first: int
) -> tuple[list[NDArray[np.uint8]], list[str]]:
    """Return patches in level-0 pixels (1024 a side at most), and captions with rank, value and place."""
    geometry, n = features.geometry, len(values)
    side = min(_LARGEST_PATCH_PX, max(1, round(geometry.patch_size_l0)))
    mpp = geometry.patch_size_l0 * geometry.mpp_l0 / side
    pixels, captions = [], []
    for place, row in enumerate(rows.tolist()):
        x, y = features.coords[row].tolist()
        pixels.append(slide.read(x, y, side, mpp))
        rank = place + 1 if first > 0 else n - place
        captions.append(f"{rank}. {values[row]:.3g}\nx {x}, y {y}")
    return pixels, captions


def _write(output: Path, task: Task, heatmap: store.Heatmap, pictures: _Pictures) -> None:
    """Write the slide's folder, whole."""
    config, geometry = task.config, heatmap.geometry
    quantity, values = heatmap.shown["quantity"], heatmap.drawn
    signed = quantity == "evidence"
    count = len(values)
    coords, drawn = heatmap.coords, values
    if len(heatmap.dense_coords):
        coords = np.concatenate([coords, heatmap.dense_coords])
        drawn = np.concatenate([values, heatmap.dense_values[quantity][heatmap.row()]])
    layer = export.Layer(
        coords=coords,
        values=drawn,
        scaled=scale(drawn, config.normalize, signed=signed),
        geometry=geometry,
        signed=signed,
    )
    legend = _legend(config, heatmap, layer)
    columns = {_column(name, heatmap): rows[heatmap.row()] for name, rows in heatmap.values.items()}
    measured = dict(columns)
    measured[f"{_column(quantity, heatmap)} percentile"] = export.percentiles(values).astype(np.float32) / 100
    with store.atomic_folder(output) as folder, ThreadPoolExecutor(1) as pool:
        words = f"{legend.words}. {legend.note}".strip()
        name = f"{task.slide_id}: {quantity}"
        tiff = pool.submit(export.write_ome_tiff, folder / "heatmap.ome.tiff", layer, name, words)
        store.write_heatmap(folder / "heatmap.zarr", heatmap)
        picture = _overlay(task, heatmap, pictures, layer, legend)
        (folder / f"overlay.{config.format}").write_bytes(picture)
        regions = export.top_regions(coords[:count], geometry, values, config.top_part)
        key = f"{task.name}/{task.slide_id}/{quantity}/{heatmap.shown['output']}"
        export.write_geojson(folder / "heatmap.geojson", heatmap.coords, geometry, measured, regions, key)
        export.write_table(folder / "patches.csv", heatmap.coords, columns)
        for name, (patches, captions) in pictures.sheets.items():
            if patches:
                across = max(1, min(6, _SHEET_PX // patches[0].shape[0]))
                page = render.sheet(patches, captions, patches[0].shape[0], across)
                (folder / f"{name}_patches.{config.format}").write_bytes(render.encoded(page, config.format))
        tiff.result()


def _column(name: str, heatmap: store.Heatmap) -> str:
    """Return what a quantity's column is called; that of an attention without classes needs no class."""
    rows = heatmap.values[name]
    if name == "attention" and (rows == rows[0]).all():
        return name
    return f"{name} {heatmap.shown['output']}"


def _legend(config: HeatmapConfig, heatmap: store.Heatmap, layer: export.Layer) -> render.Legend:
    quantity, output = heatmap.shown["quantity"], heatmap.shown["output"]
    words = {
        "attention": "attention, the same for all classes"
        if len(heatmap.outputs) > 1 and _column("attention", heatmap) == "attention"
        else f"attention for {output}",
        "evidence": f"evidence for {output} (+) and against it (-)",
        "probability": f"probability of {output}, each patch as a bag of one",
    }[quantity]
    if config.normalize == "none":
        bounds = ends(layer.values, signed=layer.signed)
    else:
        bounds = (-1.0, 1.0) if layer.signed else (0.0, 1.0)
    notes = []
    if config.smooth:
        notes.append(f"smoothed over {config.smooth:g} patches: cosmetic")
    if len(heatmap.dense_coords):
        notes.append(f"top regions finer: {len(heatmap.dense_coords)} patches of {config.overlap:g} overlap")
    full = f"{words}; {_NORMALIZED[config.normalize]}; model {heatmap.facts['model']}"
    return render.Legend(full, bounds, layer.signed, "; ".join(notes))


def _overlay(
    task: Task, heatmap: store.Heatmap, pictures: _Pictures, layer: export.Layer, legend: render.Legend
) -> bytes:
    config, geometry = task.config, layer.geometry
    shape = pictures.thumbnail.shape[0], pictures.thumbnail.shape[1]
    raster = render.spread(layer.scaled, layer.coords, geometry, shape)
    if config.smooth:
        raster = render.smoothed(raster, config.smooth * geometry.stride_l0 * shape[1] / geometry.width_l0)
    blended = render.blend(pictures.thumbnail, raster, config.opacity, signed=layer.signed)
    title = _title(task, heatmap, pictures.note)
    um = um_per_pixel(geometry, config)
    return render.overlay(blended, um, title, legend, config.opacity, config.format)


def _title(task: Task, heatmap: store.Heatmap, note: str) -> str:
    facts, shown = heatmap.facts, heatmap.shown
    prediction: dict[str, float] = facts["prediction"]
    highest = max(prediction, key=lambda name: prediction[name])
    value = f"{prediction[highest]:.2f}"
    label = f"label {task.prediction['label']}, " if task.prediction else ""
    lines = [
        f"{task.slide_id}: {label}predicted "
        + (value if facts["task"] in ("regression", "cox", "discrete") else f"{highest} ({value})"),
        f"{shown['quantity']} ({shown['output']}) of {task.name}, {facts['drawn_by']}",
    ]
    if note:
        lines.append("the slide was not found: shown without its picture")
    return "\n".join(lines)


def names(shown: Sequence[str], most: int = 5) -> str:
    """Return the first names of a list, and dots where there are more."""
    return f"{', '.join(shown[:most])}{', ...' if len(shown) > most else ''}"
