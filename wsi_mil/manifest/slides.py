"""Which slides a run works on: found in a folder, or listed in a manifest CSV.

Comes in: a path. Goes out: one ``SlideEntry`` per slide with an id that is unique in the run, and the names
of files that are not slides. What a slide is, a function of the caller's decides; nothing is opened here.
"""

import csv
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import fsspec

from wsi_mil.config import MPP_MAX, MPP_MIN, Location, location
from wsi_mil.errors import ConfigError, LabelError
from wsi_mil.manifest.table import some
from wsi_mil.manifest.walk import Walked, is_text, shown, walk


@dataclass(frozen=True)
class SlideEntry:
    """One slide of a run. ``mpp`` is the level-0 microns per pixel that a manifest gives, or None."""

    slide_id: str
    path: Location
    mpp: float | None = None


@dataclass(frozen=True)
class Fault:
    """What may be a slide, or hold some, and cannot be looked at: an id to name it by, where, and why."""

    slide_id: str
    path: str
    reason: str


@dataclass(frozen=True)
class Found:
    """The slides below a folder, by path, and the files there that are no slides.

    ``faults`` fail as slides do; ``notes`` are sentences about folders that were passed over.
    """

    entries: list[SlideEntry]
    others: list[Path]
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def list_slides(
    where: Location,
    *,
    pattern: str = "",
    suffixes: Sequence[str],
    detect: Callable[[Path], str | None],
    dicom_series: Callable[[Path], str | None],
    unique: bool = True,
) -> Found:
    """Return the slides at ``where``: a folder, a slide, a manifest (.csv), or the URL of a folder or slide.

    With ``unique`` off ids may be used more than once (``used_twice`` names them).

    Raises:
        ConfigError, LabelError: as ``find_slides``, ``find_remote_slides`` and ``read_manifest``.
    """
    if isinstance(where, str):
        return Found(find_remote_slides(where, pattern=pattern, suffixes=suffixes, unique=unique), [])
    if where.suffix.lower() == ".csv":
        if not where.is_file():
            raise ConfigError(f"--slides {where}: no such manifest.")
        return Found(read_manifest(where, unique=unique), [])
    return find_slides(
        where, pattern=pattern, suffixes=suffixes, detect=detect, dicom_series=dicom_series, unique=unique
    )


def find_slides(
    folder: Path,
    *,
    pattern: str = "",
    suffixes: Sequence[str],
    detect: Callable[[Path], str | None],
    dicom_series: Callable[[Path], str | None],
    unique: bool = True,
) -> Found:
    """Return the slides in ``folder`` and below, in order of path.

    A file counts as a slide when ``detect`` knows it or its suffix is one of ``suffixes`` (then it may still
    fail to open, and that is said). The files of a DICOM series are one slide, named after their folder; an
    MRXS and its folder are one slide. Hidden files and run folders of ours are passed over, and a folder that
    links lead to again is walked once. ``pattern`` is a glob on file names.

    Raises:
        ConfigError: no such folder, no slide in it, or two slides with the same id; or its name is no text.
    """
    if not folder.exists():
        raise ConfigError(f"--slides {shown(folder)}: no such folder or file.")
    if not is_text(folder):
        raise ConfigError(f"--slides {shown(folder)}: its name is not UTF-8; rename it.")
    walked = Walked(files=[folder]) if folder.is_file() else walk(folder)
    files = walked.files
    wanted = [path for path in files if not pattern or path.match(pattern)]
    entries, others, dicom = [], [], defaultdict(list)
    for path in wanted:
        # Only what its name does not tell: to look into a file may take long, or worse.
        kind = None if path.suffix.lower() in suffixes else detect(path)
        if kind == "dicom" or path.suffix.lower() == ".dcm":
            dicom[path.parent].append(path)
        elif kind is not None or path.suffix.lower() in suffixes:
            entries.append(SlideEntry(path.stem, path))
        else:
            others.append(path)
    root = folder.parent if folder.is_file() else folder
    for parent, paths in dicom.items():
        # Of the folder itself the name does not depend on how it was typed: '.', '..', a link.
        name = parent.resolve().name if parent == root else parent.name
        entries += _dicom_entries(name, paths, dicom_series)
    faults = _faults(walked, folder, pattern, suffixes, {each.slide_id for each in entries})
    others += [Path(shown(path)) for path in walked.broken if path.suffix.lower() not in suffixes]
    if not entries:
        if faults:
            named = some([f"{each.path}: {each.reason}" for each in faults])
            raise ConfigError(f"--slides {folder}: no slide that can be looked at; {named}.")
        seen = f"{len(files)} files, none of them a slide" if files else "no files"
        narrowed = f" (--pattern {pattern!r} lets {len(wanted)} through)" if pattern and files else ""
        raise ConfigError(f"--slides {folder}: {seen}{narrowed}; wanted slides such as .svs, .tiff, .ndpi.")
    entries.sort(key=lambda entry: str(entry.path))
    if unique:
        _check_unique(entries, f"--slides {folder}")
    return Found(entries, others, faults, walked.notes)


def find_remote_slides(
    url: str, *, pattern: str = "", suffixes: Sequence[str], unique: bool = True
) -> list[SlideEntry]:
    """Return the slide at ``url``, or those below it: files with one of ``suffixes``, in order of their URLs.

    Raises:
        ConfigError: the store cannot be listed, holds no slide there, or two with the same id.
    """
    if PurePosixPath(url).suffix.lower() in suffixes:
        entries = [SlideEntry(PurePosixPath(url).stem, url)]
    else:
        try:
            store, where = fsspec.core.url_to_fs(url)
            found = sorted(store.unstrip_protocol(path) for path in store.find(where))
        except Exception as error:  # every store has errors of its own
            raise ConfigError(
                f"--slides {url}: cannot be listed ({type(error).__name__}: {error})."
            ) from error
        paths = [(PurePosixPath(each), each) for each in found]
        entries = [
            SlideEntry(path.stem, each)
            for path, each in paths
            if path.suffix.lower() in suffixes and (not pattern or path.match(pattern))
        ]
        if not entries:
            raise ConfigError(
                f"--slides {url}: {len(found)} files, none of them a slide; list them in a manifest."
            )
    if unique:
        _check_unique(entries, f"--slides {url}")
    return entries


def read_manifest(path: Path, *, unique: bool = True) -> list[SlideEntry]:
    """Return the slides of a manifest: a CSV with slide_id and path, and optionally mpp; more is ignored.

    A path may be a URL; a relative path starts at the manifest's folder. A listed file that does not exist is
    not an error here: it fails as that slide.

    Raises:
        LabelError: not a CSV, missing columns, empty fields, an mpp that cannot be, ids twice; all named.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LabelError(f"{path}: cannot be read as a CSV file ({error}).") from error
    missing = [name for name in ("slide_id", "path") if name not in columns]
    if missing:
        raise LabelError(
            f"{path}: no column {' and '.join(missing)}; found {', '.join(columns) or 'none'}; "
            "wanted slide_id,path[,mpp]."
        )
    entries, problems = [], []
    for line, row in enumerate(rows, start=2):
        slide_id, where, mpp = ((row.get(name) or "").strip() for name in ("slide_id", "path", "mpp"))
        if not slide_id or not where:
            problems.append(f"line {line}: slide_id or path is empty")
        elif slide_id in {".", ".."} or set(slide_id) & set("/\\"):
            problems.append(f"line {line}: slide_id {slide_id!r} cannot be a file's name")
        elif mpp and not _is_mpp(mpp):
            problems.append(f"line {line}: mpp {mpp!r} is not a number from {MPP_MIN} to {MPP_MAX}")
        else:
            found = location(where)
            found = path.parent / found if isinstance(found, Path) else found
            entries.append(SlideEntry(slide_id, found, float(mpp) if mpp else None))
    if problems:
        raise LabelError(f"{path}: " + "; ".join(problems) + ".")
    if not entries:
        raise LabelError(f"{path}: the manifest lists no slides.")
    if unique:
        _check_unique(entries, str(path))
    return entries


def _faults(
    walked: Walked, folder: Path, pattern: str, suffixes: Sequence[str], known: Collection[str]
) -> list[Fault]:
    """Return what fails as slides do: broken files that claim to be slides, and folders that are closed."""
    files = [
        Fault(shown(path.name if path.stem in known else path.stem), shown(path), reason)
        for path, reason in walked.broken.items()
        if path.suffix.lower() in suffixes and (not pattern or path.match(pattern))
    ]
    return files + [
        Fault(f"{shown(os.path.relpath(path, folder))}/", shown(path), reason)
        for path, reason in walked.closed.items()
    ]


def _dicom_entries(
    folder: str, paths: list[Path], dicom_series: Callable[[Path], str | None]
) -> list[SlideEntry]:
    series: dict[str, Path] = {}
    for path in paths:
        series.setdefault(dicom_series(path) or f"unreadable {path.name}", path)
    if len(series) == 1:
        return [SlideEntry(folder or path.stem, path) for path in series.values()]  # '/' has no name
    # Several series in one folder: the folder's name alone would not tell them apart.
    return [SlideEntry(f"{folder}_{path.stem}", path) for path in series.values()]


def used_twice(entries: Iterable[SlideEntry]) -> dict[str, list[str]]:
    """Return the ids that several slides have, and the paths of these."""
    by_id = defaultdict(list)
    for entry in entries:
        by_id[entry.slide_id].append(str(entry.path))
    return {slide_id: paths for slide_id, paths in by_id.items() if len(paths) > 1}


def _check_unique(entries: list[SlideEntry], where: str) -> None:
    twice = used_twice(entries)
    if twice:
        listed = some([f"{slide_id} ({some(paths)})" for slide_id, paths in twice.items()])
        raise ConfigError(
            f"{where}: {len(twice)} slide ids are used more than once: {listed}. `wsi-mil inspect` lists "
            "all. A slide's id is its file name without extension: rename the files, narrow with "
            "--pattern, or give ids of your own in a manifest (slide_id,path)."
        )


def _is_mpp(text: str) -> bool:
    try:
        return MPP_MIN <= float(text) <= MPP_MAX
    except ValueError:
        return False
