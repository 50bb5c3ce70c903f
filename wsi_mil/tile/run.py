"""Walk the slides and write RUN/patches: the stage with its files."""

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_mil import config as configs
from wsi_mil import manifest, parallel, store, tissue
from wsi_mil.config import TileConfig
from wsi_mil.errors import ConfigError, SlideError
from wsi_mil.geometry import is_enlarged
from wsi_mil.manifest import Fault, Found, SlideEntry
from wsi_mil.memory import keep_memory
from wsi_mil.parallel import Outcome, StageResult, console
from wsi_mil.slide import SUFFIXES, bytes_on_disk, detect, dicom_series, fingerprint, open_slide
from wsi_mil.tile import quality
from wsi_mil.tile.grid import Tiling, annotations_path, tile_slide
from wsi_mil.tile.pixels import archive_path, write_pixels
from wsi_mil.tile.preview import draw_preview
from wsi_mil.tile.sheet import card_of, write_sheet

_COLUMNS = (
    "slide_id", "status", "seconds", "patches", "tissue", "tissue_fraction", "tissue_mm2",
    *(f"removed_{reason}" for reason in quality.REASONS), "not_sampled", "mpp_l0", "mpp_source", "reason",
)  # fmt: skip


def run(config: TileConfig) -> StageResult:
    """Tile every slide and write RUN/patches; one bad slide does not end the run.

    Raises:
        ConfigError, LabelError: no slides, ids used twice, or a manifest that is wrong.
        StaleOutputError: RUN/patches holds outputs of other settings, and ``overwrite`` is off.
    """
    _check_places(config)
    found = _found(config)
    all_entries = found.entries
    entries = configs.share_of(all_entries, config.share)
    folder = config.run / "patches"
    runs = {config.run: config} | {
        store.context_run(config.run, mpp): dataclasses.replace(config, mpp=mpp, context_mpp=())
        for mpp in config.context_mpp
    }
    with contextlib.ExitStack() as stack:
        for each in runs:
            store.sweep(each / "patches")
        for each in runs:
            totals = functools.partial(_totals, each)
            stack.enter_context(store.stage_record(each, "tile", runs[each], totals))
        _refuse_stale(entries, config)
        _name_others(all_entries, config)
        tasks = {entry.slide_id: (entry, config) for entry in entries}
        try:
            place = parallel.Place(workers=config.workers, cluster=config, shared=config.run, limits=_limits)
            outcomes = parallel.map_slides(_tile_one, tasks, title="tile", place=place, cost=_cost)
            outcomes += [_failed(fault) for fault in found.faults]
        finally:
            for each in runs:
                store.sweep(each / "patches")
        slide_ids = [entry.slide_id for entry in all_entries] + [fault.slide_id for fault in found.faults]
        for each in runs:
            store.write_rows(_table(each), _COLUMNS, (outcome.row() for outcome in outcomes), slide_ids)
        cards = {each.slide_id: each.facts["card"] for each in outcomes if "card" in each.facts}
        write_sheet(folder, _table(config.run), cards)
    return StageResult(stage="tile", output=folder, outcomes=outcomes)


def _table(run: Path) -> Path:
    return run / "tile" / "slides.csv"


def _totals(run: Path) -> dict[str, int]:
    """Return what the stage's record says of all slides, those of other shares too."""
    rows = store.read_csv(_table(run))
    return {"slides": len(rows), "patches": sum(int(row["patches"] or 0) for row in rows)}


def _failed(fault: Fault) -> Outcome:
    return Outcome(slide_id=fault.slide_id, status="failed", reason=f"{fault.path}: {fault.reason}.")


def _found(config: TileConfig) -> Found:
    limits = parallel.limits_of(config.slide_timeout, config.slide_memory_mib, 1)
    found = manifest.list_slides(
        config.slides,
        pattern=config.pattern,
        suffixes=SUFFIXES,
        detect=parallel.guarded(detect, limits, "unknown"),  # it fails by itself, as a slide
        dicom_series=parallel.guarded(dicom_series, limits, None),
    )
    if found.others:
        names = ", ".join(path.name for path in found.others[:5]) + (", ..." if len(found.others) > 5 else "")
        console.print(f"{len(found.others)} files in {config.slides} are not slides: {names}", markup=False)
    for note in found.notes:
        console.print(note, markup=False, soft_wrap=True)
    return found


def _for_slide(entry: SlideEntry, config: TileConfig) -> TileConfig:
    """Return the config as it holds for one slide: the manifest's mpp wins over --slide-mpp."""
    return config if entry.mpp is None else dataclasses.replace(config, slide_mpp=entry.mpp)


def _record(config: TileConfig, entry: SlideEntry, slide_fingerprint: str) -> dict[str, Any]:
    """Return what a slide's patches depend on: settings, the slide's bytes, and what was brought along.

    Of annotations and segmenters the content counts, and not where they lie.
    """
    kind, _, place = config.tissue.partition(":")
    brought = {}
    if kind == "geojson":
        brought = {"tissue": kind, "annotations": _digest_of(annotations_path(config, entry.slide_id))}
    elif kind == "onnx":
        model = Path(place)
        files = [model, *(each for each in (model.with_suffix(".json"),) if each.is_file())]
        brought = {"tissue": kind, "segmenter": _digest_of(*files)}
    return configs.record(config, slide_fingerprint=slide_fingerprint, **brought)


def _digest_of(*paths: Path) -> str:
    total = hashlib.blake2b(digest_size=8)
    for path in paths:
        facts = path.stat()
        total.update(_content_of(path, facts.st_size, facts.st_mtime_ns))
    return total.hexdigest()


@functools.lru_cache(maxsize=64)
def _content_of(path: Path, _size: int, _time: int) -> bytes:
    """Return the digest of a file, which is read once however many slides there are."""
    return hashlib.blake2b(path.read_bytes()).digest()


def _check_places(config: TileConfig) -> None:
    """Raise ConfigError before any work where what --tissue names is not there, or is no segmenter."""
    kind, _, place = config.tissue.partition(":")
    if kind == "geojson" and not Path(place).is_dir():
        raise ConfigError(f"--tissue {config.tissue}: no such folder; wanted one of SLIDE_ID.geojson.")
    if kind == "onnx":
        tissue.load_segmenter(Path(place))


def _refuse_stale(entries: list[SlideEntry], config: TileConfig) -> None:
    """Raise before any work when an output of other settings is in the way."""
    limits = parallel.limits_of(config.slide_timeout, config.slide_memory_mib, 1)
    look = parallel.guarded(fingerprint, limits, "")
    for entry in entries:
        path = store.patches_path(config.run, entry.slide_id)
        if path.exists():
            found = look(entry.path)
            if not found:  # a slide that is gone, or cannot be read, fails by itself
                continue
            with contextlib.suppress(SlideError):  # and so does one without annotations
                record = _record(_for_slide(entry, config), entry, found)
                store.is_done(path, record, "patches", config.overwrite)


def _name_others(entries: list[SlideEntry], config: TileConfig) -> None:
    """Say which slides the run holds besides."""
    known = {entry.slide_id for entry in entries}
    others = [p.stem for p in sorted((config.run / "patches").glob("*.h5")) if p.stem not in known]
    if others:
        console.print(
            f"{config.run / 'patches'} also holds {len(others)} slides that are not in --slides; they stay "
            f"part of the run: {', '.join(others[:5])}{', ...' if len(others) > 5 else ''}",
            markup=False,
        )


def _limits(task: tuple[SlideEntry, TileConfig], processes: int) -> parallel.Limits:
    entry, config = task
    return parallel.limits_of(
        config.slide_timeout, config.slide_memory_mib, processes, size=bytes_on_disk(entry.path)
    )


def _cost(task: tuple[SlideEntry, TileConfig]) -> float:
    return float(bytes_on_disk(task[0].path))


def _tile_one(task: tuple[SlideEntry, TileConfig]) -> Mapping[str, Any] | Outcome:
    entry, config = task
    config = _for_slide(entry, config)
    path = store.patches_path(config.run, entry.slide_id)
    record = _record(config, entry, fingerprint(entry.path))
    done = store.is_done(path, record, "patches", config.overwrite)
    context = [
        store.patches_path(store.context_run(config.run, m), entry.slide_id) for m in config.context_mpp
    ]
    moved = ""
    if done:
        moved, *_ = [_note_place(each, entry) for each in (path, *context) if each.exists()]
    wanted = config.save_patches != "none" and not _archive(config, entry).exists()
    if done and not wanted and all(each.exists() for each in context):
        facts = _facts(store.read_patches(path), moved)
        return Outcome(slide_id=entry.slide_id, status="skipped", facts=facts)
    cv2.setNumThreads(1)  # slides are what runs side by side
    keep_memory()
    with open_slide(entry.path, config.reader, config.slide_mpp, config.icc) as slide:
        enlarged = is_enlarged(config.mpp, slide.mpp_l0)
        note = f"enlarged from {slide.mpp_l0:g} um per pixel, which adds no detail" if enlarged else ""
        note = "; ".join(filter(None, [slide.note, note, moved]))
        picture = None
        if done and not context:
            patches = store.read_patches(path)
        else:
            tiling = tile_slide(slide, config, entry.slide_id)
            picture = draw_preview(tiling)
            patches = _write_one(path, tiling, picture, config, record)
        if config.save_patches != "none":
            _, missing = write_pixels(_archive(config, entry), slide, patches, config.save_patches)
            if missing:
                note = "; ".join(filter(None, [note, f"{missing} patches cannot be read and were not saved"]))
    facts = _facts(patches, note)
    return facts if picture is None else facts | {"card": card_of(patches, picture)}


def _note_place(path: Path, entry: SlideEntry) -> str:
    """Write into the patches at ``path`` where their slide lies now; return words where it was elsewhere."""
    patches = store.read_patches(path)
    old, new = patches.slide_path, entry.path
    if isinstance(new, Path):
        new = new.absolute()
        if old == new or (isinstance(old, Path) and old.exists() and old.samefile(new)):
            return ""
    elif old == new:
        return ""
    store.write_patches(path, dataclasses.replace(patches, slide_path=new))
    return f"the slide was at {old} and is at {new}: noted"


def _archive(config: TileConfig, entry: SlideEntry) -> Path:
    return archive_path(config.run, entry.slide_id, config.save_patches)


def _write_one(
    path: Path, tiling: Tiling, picture: NDArray[np.uint8], config: TileConfig, record: dict[str, Any]
) -> store.Patches:
    """Write what was found on a slide; the patches last, because their presence says that it is done."""
    preview = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    with store.atomic_file(path.with_suffix(".jpg")) as temporary:
        temporary.write_bytes(cv2.imencode(".jpg", preview, [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes())
    plan = tiling.patches.geometry
    outlines = tissue.outlines_l0(tiling.tissue.mask, plan.width_l0, plan.height_l0)
    store.write_text(path.with_suffix(".geojson"), tissue.to_geojson(outlines))
    known = {"slide_fingerprint": record["slide_fingerprint"]}
    for mpp, each in tiling.context.items():
        around = record | {"mpp": mpp, "around": plan.mpp}
        where = store.patches_path(store.context_run(config.run, mpp), each.slide_id)
        store.write_patches(where, dataclasses.replace(each, record=around, **known))
    patches = dataclasses.replace(tiling.patches, record=record, **known)
    if config.save_patches == "none":  # pixels of patches as they were before are no longer these
        for kind in ("zip", "webdataset"):
            archive_path(config.run, patches.slide_id, kind).unlink(missing_ok=True)
    store.write_patches(path, patches)
    return patches


def _facts(patches: store.Patches, note: str) -> dict[str, Any]:
    """Return a slide's row of the table."""
    notes, removed = patches.notes, patches.notes["removed"]
    lost = {name: removed[name] for name in ("pen", "focus") if removed[name]}
    if not len(patches.coords):
        why = "; ".join(f"{count} patches removed by {name}" for name, count in lost.items())
        note = "; ".join(filter(None, [note, why or "no tissue found: 0 patches (see the preview)"]))
    unread = int(np.count_nonzero(patches.quality.get("focus", np.zeros(1)) == quality.UNKNOWN))
    if unread:
        note = "; ".join(filter(None, [note, f"{unread} patches cannot be read; their focus is not known"]))
    return {
        "patches": len(patches.coords),
        "tissue": notes["tissue"],
        "tissue_fraction": notes["tissue_fraction"],
        "tissue_mm2": notes["tissue_mm2"],
        **{f"removed_{name}": removed[name] for name in quality.REASONS},
        "not_sampled": removed["sample"],
        "mpp_l0": round(patches.geometry.mpp_l0, 6),
        "mpp_source": patches.mpp_source,
        "reason": "; ".join(filter(None, [note, notes.get("note", "")])),
    }
