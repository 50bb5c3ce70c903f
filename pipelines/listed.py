"""What recipes of public cohorts share: official lists of files, held against what was downloaded.

Comes in: lists as their publishers hand them out, and a folder. Goes out: manifest.csv and labels.csv, as
`wsi-mil tile --slides` and `wsi-mil train --labels` read them. Nothing is dropped without being named.
"""

import csv
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


def files_below(folder: Path, suffix: str) -> dict[str, Path]:
    """Return the files with a suffix in a folder and below, by name.

    Raises:
        FileNotFoundError: no such folder. ValueError: a name is there twice (all are named).
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; wanted the downloaded slides")
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob(f"*{suffix}")):
        if path.is_file():
            found.setdefault(path.name, []).append(path)
    twice = [f"{name} ({', '.join(map(str, paths))})" for name, paths in found.items() if len(paths) > 1]
    if twice:
        raise ValueError(
            f"{folder}: {len(twice)} files are there twice: {'; '.join(twice)}; keep one of each"
        )
    return {name: paths[0] for name, paths in found.items()}


def check_there(wanted: Iterable[str], found: Mapping[str, Path], folder: Path, partly: bool) -> list[str]:
    """Return which wanted names are not among the found; where not ``partly`` that is an error.

    Raises:
        FileNotFoundError: some are missing, and ``partly`` is off.
    """
    missing = [name for name in wanted if name not in found]
    if missing and not partly:
        some = ", ".join(missing[:8]) + (", ..." if len(missing) > 8 else "")
        raise FileNotFoundError(
            f"{folder}: {len(missing)} files of the list are not there: {some}; download them, or use "
            "--partly to go on with what is there"
        )
    return missing


def md5(path: Path) -> str:
    """Return a file's MD5 as the lists have it, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def damaged(sums: Mapping[str, str], found: Mapping[str, Path]) -> list[str]:
    """Return the names of files whose bytes are not those of the list; a slide takes seconds to read."""
    return [name for name, wanted in sums.items() if name in found and md5(found[name]) != wanted]


def as_seen(path: Path, below: Path, seen_as: Path | None) -> str:
    """Return a slide's path for the manifest: absolute, or as a container sees it."""
    return str(path.absolute() if seen_as is None else seen_as / path.relative_to(below))


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a CSV file with these columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
