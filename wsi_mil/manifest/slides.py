"""Which slides a run works on: found in a folder, or listed in a manifest CSV.

Comes in: a path. Goes out: one ``SlideEntry`` per slide with an id that is unique in the run, and the names
of files that are not slides. What a slide is, a function of the caller's decides; nothing is opened here.
"""

import csv
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import fsspec

from wsi_mil.config import MPP_MAX, MPP_MIN, Location, location
from wsi_mil.errors import ConfigError, LabelError
from wsi_mil.manifest.table import some


@dataclass(frozen=True)
class SlideEntry:
    """One slide of a run. ``mpp`` is the level-0 microns per pixel that a manifest gives, or None."""

    slide_id: str
    path: Location
    mpp: float | None = None


@dataclass(frozen=True)
class Found:
    """The slides below a folder, by path, and the files there that are no slides."""

    entries: list[SlideEntry]
    others: list[Path]


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
    MRXS and its folder are one slide. Hidden files are passed over. ``pattern`` is a glob on file names.

    Raises:
        ConfigError: no such folder, no slide in it, or two slides with the same id.
    """
    if not folder.exists():
        raise ConfigError(f"--slides {folder}: no such folder or file.")
    files = [folder] if folder.is_file() else list(_walk(folder))
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
    for parent, paths in dicom.items():
        entries += _dicom_entries(parent, paths, dicom_series)
    if not entries:
        seen = f"{len(files)} files, none of them a slide" if files else "no files"
        narrowed = f" (--pattern {pattern!r} lets {len(wanted)} through)" if pattern and files else ""
        raise ConfigError(f"--slides {folder}: {seen}{narrowed}; wanted slides such as .svs, .tiff, .ndpi.")
    entries.sort(key=lambda entry: str(entry.path))
    if unique:
        _check_unique(entries, f"--slides {folder}")
    return Found(entries, others)


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


def _walk(folder: Path) -> Iterable[Path]:
    """Yield the files below ``folder``, without hidden ones and the folders that belong to an MRXS."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_file():
            yield path
        elif path.is_dir() and not path.with_name(path.name + ".mrxs").exists():
            yield from _walk(path)


def _dicom_entries(
    parent: Path, paths: list[Path], dicom_series: Callable[[Path], str | None]
) -> list[SlideEntry]:
    series: dict[str, Path] = {}
    for path in paths:
        series.setdefault(dicom_series(path) or f"unreadable {path.name}", path)
    if len(series) == 1:
        return [SlideEntry(parent.name, path) for path in series.values()]
    # Several series in one folder: the folder's name alone would not tell them apart.
    return [SlideEntry(f"{parent.name}_{path.stem}", path) for path in series.values()]


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
