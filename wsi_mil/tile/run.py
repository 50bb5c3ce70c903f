"""Walk the slides and write RUN/patches: the stage with its files."""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import cv2

from wsi_mil import config as configs
from wsi_mil import manifest, parallel, store, tissue
from wsi_mil.config import TileConfig
from wsi_mil.errors import ConfigError, SlideError
from wsi_mil.geometry import is_enlarged
from wsi_mil.manifest import SlideEntry
from wsi_mil.parallel import StageResult, console
from wsi_mil.slide import SUFFIXES, detect, dicom_series, fingerprint, open_slide
from wsi_mil.tile.grid import tile_slide
from wsi_mil.tile.preview import draw_preview


def run(config: TileConfig) -> StageResult:
    """Tile every slide and write RUN/patches; one bad slide does not end the run.

    Raises:
        ConfigError, LabelError: no slides, ids used twice, or a manifest that is wrong.
        StaleOutputError: RUN/patches holds outputs of other settings, and ``overwrite`` is off.
    """
    entries = _entries(config)
    folder = config.run / "patches"
    store.sweep(folder)
    with store.stage_record(config.run, "tile", config) as record:
        _refuse_stale(entries, config)
        tasks = {entry.slide_id: (entry, config) for entry in entries}
        try:
            outcomes = parallel.map_slides(_tile_one, tasks, title="tile", workers=config.workers)
        finally:
            store.sweep(folder)
        record["slides"] = len(outcomes)
        record["patches"] = sum(int(each.facts.get("patches", 0)) for each in outcomes)
        columns = (
            "slide_id",
            "status",
            "seconds",
            "patches",
            "tissue_fraction",
            "mpp_l0",
            "mpp_source",
            "reason",
        )
        store.write_csv(config.run / "tile" / "slides.csv", columns, (each.row() for each in outcomes))
    return StageResult(stage="tile", output=folder, outcomes=outcomes)


def _entries(config: TileConfig) -> list[SlideEntry]:
    if isinstance(config.slides, str):
        return manifest.find_remote_slides(config.slides, pattern=config.pattern, suffixes=SUFFIXES)
    if config.slides.suffix.lower() == ".csv":
        if not config.slides.is_file():
            raise ConfigError(f"--slides {config.slides}: no such manifest.")
        return manifest.read_manifest(config.slides)
    found = manifest.find_slides(
        config.slides, pattern=config.pattern, suffixes=SUFFIXES, detect=detect, dicom_series=dicom_series
    )
    if found.others:
        names = ", ".join(path.name for path in found.others[:5]) + (", ..." if len(found.others) > 5 else "")
        console.print(f"{len(found.others)} files in {config.slides} are not slides: {names}", markup=False)
    return found.entries


def _for_slide(entry: SlideEntry, config: TileConfig) -> TileConfig:
    """Return the config as it holds for one slide: the manifest's mpp wins over --slide-mpp."""
    return config if entry.mpp is None else dataclasses.replace(config, slide_mpp=entry.mpp)


def _record(config: TileConfig, slide_fingerprint: str) -> dict[str, Any]:
    """Return what a slide's patches depend on: the settings, and which bytes the slide has."""
    return configs.record(config, slide_fingerprint=slide_fingerprint)


def _refuse_stale(entries: list[SlideEntry], config: TileConfig) -> None:
    """Raise before any work when an output of other settings is in the way, and name what else is there."""
    for entry in entries:
        path = store.patches_path(config.run, entry.slide_id)
        if path.exists():
            with contextlib.suppress(SlideError):  # a slide that is gone fails by itself
                record = _record(_for_slide(entry, config), fingerprint(entry.path))
                store.is_done(path, record, "patches", config.overwrite)
    known = {entry.slide_id for entry in entries}
    others = [p.stem for p in sorted((config.run / "patches").glob("*.h5")) if p.stem not in known]
    if others:
        console.print(
            f"{config.run / 'patches'} also holds {len(others)} slides that are not in --slides; they stay "
            f"part of the run: {', '.join(others[:5])}{', ...' if len(others) > 5 else ''}",
            markup=False,
        )


def _tile_one(task: tuple[SlideEntry, TileConfig]) -> Mapping[str, Any] | None:
    entry, config = task
    config = _for_slide(entry, config)
    path = store.patches_path(config.run, entry.slide_id)
    bytes_now = fingerprint(entry.path)
    if store.is_done(path, _record(config, bytes_now), "patches", config.overwrite):
        return None
    cv2.setNumThreads(1)  # slides are what runs side by side
    with open_slide(entry.path, config.reader, config.slide_mpp, config.icc) as slide:
        tiling = tile_slide(slide, config, entry.slide_id)
        enlarged = is_enlarged(config.mpp, slide.mpp_l0)
        note = f"enlarged from {slide.mpp_l0:g} um per pixel, which adds no detail" if enlarged else ""
        note = "; ".join(filter(None, [slide.note, note]))
    preview = cv2.cvtColor(draw_preview(tiling), cv2.COLOR_RGB2BGR)
    with store.atomic_file(path.with_suffix(".jpg")) as temporary:
        temporary.write_bytes(cv2.imencode(".jpg", preview, [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes())
    plan = tiling.patches.geometry
    outlines = tissue.outlines_l0(tiling.tissue.mask, plan.width_l0, plan.height_l0)
    store.write_text(path.with_suffix(".geojson"), tissue.to_geojson(outlines))
    patches = dataclasses.replace(
        tiling.patches, slide_fingerprint=bytes_now, record=_record(config, bytes_now)
    )
    store.write_patches(path, patches)  # last: its presence says that the slide is done
    if not len(tiling.patches.coords):
        note = "; ".join(filter(None, [note, "no tissue found: 0 patches (see the preview)"]))
    return {
        "patches": len(tiling.patches.coords),
        "tissue_fraction": round(tiling.tissue.fraction, 4),
        "mpp_l0": round(plan.mpp_l0, 6),
        "mpp_source": tiling.patches.mpp_source,
        "reason": note,
    }
