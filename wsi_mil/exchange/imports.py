"""Walk another tool's folder and write its patches and features into a run, one slide at a time.

Comes in: files that ``store.foreign`` reads. Goes out: RUN/patches and RUN/features/<encoder>. What the
files do not say is asked for before anything is written, and every file that is not taken over is named.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_mil import manifest, parallel, store
from wsi_mil.config import ImportConfig, Location
from wsi_mil.errors import ConfigError, FormatError
from wsi_mil.exchange.resolve import Resolved, describe, resolve
from wsi_mil.exchange.slides import SlideBook, SlideFacts, read_book
from wsi_mil.geometry import PatchGeometry
from wsi_mil.parallel import Outcome, StageResult, console
from wsi_mil.store import foreign
from wsi_mil.store.foreign import Found, Source


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """One source and all that is known of it."""

    source: Source
    encoder: str | None
    geometry: PatchGeometry
    slide_path: Location
    reader: str
    mpp_source: str
    notes: dict[str, Any]
    kind: str
    """Of the store that the features go to: that of the encoder's features in the run, else hdf5."""
    config: ImportConfig


def import_run(config: ImportConfig) -> StageResult:
    """Take over every slide of another tool's folder; one bad file does not end the run.

    Raises:
        ConfigError: no such folder, no files of that tool in it, no such encoder, or facts that neither the
            files nor the flags give (all are named, with the flags). Nothing is written then.
    """
    found = _find(config)
    book = read_book(config)
    store.check_writable(config.run / "import")  # the plan opens every file
    plans, outcomes = _plan(found, config, book)
    stores = [
        _open(each) for each in {plan.encoder: plan for plan in plans.values() if plan.encoder}.values()
    ]
    _sweep(config, stores)
    with store.stage_record(config.run, "import", config) as record:
        try:
            outcomes += parallel.map_slides(_import_one, plans, title="import", workers=config.workers)
        finally:
            _sweep(config, stores)
        record["slides"] = len(outcomes)
        others = [
            Outcome(slide_id=str(path.relative_to(config.source)), status="skipped", reason=why)
            for path, why in found.others.items()
        ]
        columns = (
            "slide_id",
            "status",
            "seconds",
            "encoder",
            "patches",
            "mpp",
            "mpp_l0",
            "mpp_source",
            "reason",
        )
        store.write_csv(
            config.run / "import" / "slides.csv", columns, (each.row() for each in outcomes + others)
        )
    _say(config, found, plans)
    return StageResult(stage="import", output=config.run, outcomes=outcomes)


def _find(config: ImportConfig) -> Found:
    """Return the tool's files in the folder; the same slide twice is refused, other files are named."""
    tool, folder = foreign.TOOLS[config.tool], config.source
    if not folder.is_dir():
        raise ConfigError(f"--from {tool.name} {folder}: no such folder.")
    if config.run.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(
            f"--run {config.run}: lies in {folder}, where its files would be taken for {tool.name}'s; "
            "use another."
        )
    found = tool.find(folder)
    by_key: dict[tuple[str, str | None], list[Source]] = {}
    for source in found.sources:
        by_key.setdefault((source.slide_id, source.encoder), []).append(source)
    refused = dict(found.refused)
    for same in (several for several in by_key.values() if len(several) > 1):
        names = [str(source.files[0]) for source in same]
        for source in same:
            refused[source.files[0]] = (
                f"the same slide is in {' and '.join(names)}; import one folder at a time"
            )
    sources = [each for each in found.sources if len(by_key[each.slide_id, each.encoder]) == 1]
    if not sources and not refused:
        raise ConfigError(f"--from {tool.name} {folder}: none of its files are there; wanted {tool.wanted}.")
    used = {path for source in found.sources for path in source.files} | set(refused)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path not in used)
    others = {path: found.others.get(path, f"no file of {tool.name}'s patches or features") for path in files}
    return Found(sources=_of_encoder(sources, config), refused=refused, others=others)


def _of_encoder(sources: list[Source], config: ImportConfig) -> list[Source]:
    """Return the sources that --encoder picks, where the files say their encoder."""
    named = {each.encoder for each in sources if each.encoder}
    if config.encoder is None or not named or any(s.features and not s.encoder for s in sources):
        return sources
    if config.encoder not in named:
        raise ConfigError(
            f"--encoder {config.encoder}: the files say {', '.join(sorted(named))}; "
            "leave it out to take over all."
        )
    return [each for each in sources if each.encoder in {None, config.encoder}]


def _plan(
    found: Found, config: ImportConfig, book: SlideBook | None
) -> tuple[dict[str, _Plan], list[Outcome]]:
    """Return what can be imported, and an outcome for each file that cannot be.

    Raises:
        ConfigError: no slide has all facts, or some lack what a flag would give to all.
    """
    outcomes = [
        Outcome(slide_id=str(path.relative_to(config.source)), status="failed", reason=why)
        for path, why in found.refused.items()
    ]
    kinds = {name: store.open_features(config.run, name).kind for name in store.encoders_in(config.run)}
    several = len({each.encoder for each in found.sources if each.encoder}) > 1
    plans: dict[str, _Plan] = {}
    lacking: dict[str, tuple[str, ...]] = {}
    for source in found.sources:
        name = f"{source.slide_id} ({source.encoder})" if several and source.encoder else source.slide_id
        tried = parallel.attempt(name, _plan_one, (source, config, book, kinds))
        if tried.status == "failed":
            outcomes.append(tried)
        elif isinstance(tried.facts["plan"], _Plan):
            plans[name] = tried.facts["plan"]
        else:
            lacking[name] = tried.facts["plan"]
    # A fact that a file of this tool has elsewhere is that file's fault; one that a flag gives to all is not.
    of_all = {name: missing for name, missing in lacking.items() if set(missing) <= {"overlap", "encoder"}}
    lacking = lacking if not plans else of_all or lacking
    if lacking and (of_all or not plans):
        everything = tuple(dict.fromkeys(each for missing in lacking.values() for each in missing))
        raise ConfigError(
            f"--from {config.tool} {config.source}: for {len(lacking)} slides "
            f"({manifest.some(list(lacking))}) the files do not say: {describe(everything)}."
        )
    outcomes += [
        Outcome(slide_id=name, status="failed", reason=f"the files do not say: {describe(missing)}")
        for name, missing in lacking.items()
    ]
    return plans, outcomes


def _plan_one(task: tuple[Source, ImportConfig, SlideBook | None, Mapping[str, str]]) -> Mapping[str, Any]:
    source, config, book, kinds = task
    tool = foreign.TOOLS[config.tool]
    facts = tool.facts(source)
    slide = book.look_up(source.slide_id, facts.mpp_l0 or config.slide_mpp) if book else None
    if book is not None and slide is None:
        raise FormatError(f"no slide {source.slide_id} in --slides {config.slides}.")
    encoder = (source.encoder or config.encoder) if source.features else None
    lacks_name = ("encoder",) if source.features and not encoder else ()
    resolved: Resolved = resolve(
        facts,
        config,
        slide,
        lambda mpp_l0, size_l0: tool.coords(source, mpp_l0, size_l0),
        source.coords or source.files[0],
    )
    if resolved.geometry is None or lacks_name:
        return {"plan": resolved.missing + lacks_name}
    plan = _Plan(
        source=source,
        encoder=encoder,
        geometry=resolved.geometry,
        slide_path=slide.path if slide else facts.slide_path,
        reader=_reader(slide),
        mpp_source=resolved.mpp_source,
        notes=facts.notes | (resolved.notes or {}),
        kind=kinds.get(encoder or "", "hdf5"),
        config=config,
    )
    return {"plan": plan}


def _reader(slide: SlideFacts | None) -> str:
    return slide.reader if slide else "auto"


def _import_one(plan: _Plan) -> Mapping[str, Any] | None:
    """Write one slide's patches and features; None where they are there already, from the same files."""
    source, run, overwrite = plan.source, plan.config.run, plan.config.overwrite
    base = {"imported": plan.config.tool} | dataclasses.asdict(plan.geometry)
    names = sorted(path.name for path in source.files)
    record = base | {
        "encoder": plan.encoder,
        "source": names,
        "source_digest": foreign.digest_of(source.files),
    }
    patches_path = store.patches_path(run, source.slide_id)
    features_store = _open(plan) if plan.encoder else None
    done = features_store is not None and features_store.is_done(source.slide_id, record, overwrite)
    if done and patches_path.exists():
        return None
    patches = _read_patches(plan, base)
    patches_done = store.is_done(patches_path, patches.record, "patches", overwrite)
    if patches_done and (done or features_store is None):
        return None
    features = _read_features(plan, patches, record) if features_store and not done else None
    if not patches_done:
        store.write_patches(patches_path, patches)
    if features_store is not None and features is not None:
        features_store.write(features)
    return {
        "encoder": plan.encoder or "",
        "patches": len(patches.coords),
        "mpp": plan.geometry.mpp,
        "mpp_l0": plan.geometry.mpp_l0,
        "mpp_source": patches.mpp_source,
    }


def _open(plan: _Plan) -> store.FeatureStore:
    return store.open_features(plan.config.run, str(plan.encoder), plan.kind)


def _sweep(config: ImportConfig, stores: list[store.FeatureStore]) -> None:
    store.sweep(config.run / "patches")
    for each in stores:
        each.sweep()


def _read_patches(plan: _Plan, base: dict[str, Any]) -> store.Patches:
    tool, source = foreign.TOOLS[plan.config.tool], plan.source
    coords = tool.coords(source, plan.geometry.mpp_l0, plan.geometry.patch_size_l0)
    return store.Patches(
        slide_id=source.slide_id,
        slide_path=plan.slide_path,
        reader=plan.reader,
        mpp_source=plan.config.tool if plan.mpp_source == "file" else plan.mpp_source,
        geometry=plan.geometry,
        coords=coords,
        tissue_fraction=tool.tissue(source, len(coords)),
        # Not of the files: the features of two encoders belong to the same patches
        record=base | {"coords": _digest(coords)},
    )


def _read_features(plan: _Plan, patches: store.Patches, record: dict[str, Any]) -> store.Features:
    values = foreign.TOOLS[plan.config.tool].features(plan.source)
    if len(values) != len(patches.coords):
        raise FormatError(
            f"{plan.source.features}: features of {len(values)} patches; {plan.source.coords} has coords of "
            f"{len(patches.coords)}."
        )
    return store.Features(
        slide_id=plan.source.slide_id,
        slide_path=plan.slide_path,
        reader=plan.reader,
        mpp_source=patches.mpp_source,
        geometry=plan.geometry,
        coords=patches.coords,
        features=values,
        encoder=str(plan.encoder),
        weights_digest=f"imported:{plan.config.tool}",
        patches_digest=patches.digest,
        record=record,
        notes=plan.notes,
    )


def _digest(coords: NDArray[np.int64]) -> str:
    return hashlib.sha256(np.ascontiguousarray(coords, dtype="<i8").tobytes()).hexdigest()[:16]


def _say(config: ImportConfig, found: Found, plans: dict[str, _Plan]) -> None:
    """Print what a user should know about the whole."""
    lines = []
    # What is in two files is taken over from one of them; that is in the table only.
    others = [path for path, why in found.others.items() if not why.startswith("the same ")]
    if others:
        names = manifest.some([str(path.relative_to(config.source)) for path in others])
        table = config.run / "import" / "slides.csv"
        lines.append(f"{len(others)} files are not taken over ({names}); each with its reason in {table}")
    bare = [name for name, plan in plans.items() if plan.encoder is None]
    if bare:
        lines.append(
            f"{len(bare)} slides ({manifest.some(bare)}) have patches and no features; `embed` makes them"
        )
    loose = [name for name, plan in plans.items() if plan.notes.get("grid") == "none"]
    if loose:
        lines.append(
            f"the patches of {len(loose)} slides ({manifest.some(loose)}) are not on one grid; heatmaps "
            "show them where they lie, and the grid of heatmap.zarr holds means"
        )
    mpps = sorted({plan.geometry.mpp for plan in plans.values()})
    if len(mpps) > 1:
        lines.append(
            f"the patches are at {len(mpps)} resolutions, {mpps[0]:.4g} to {mpps[-1]:.4g} microns per "
            "pixel, and a model takes one: give --mpp to call them by one number that is at most 5 % off"
        )
    for line in lines:
        console.print(f"import: {line}", markup=False, soft_wrap=True)
