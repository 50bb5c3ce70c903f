"""TCGA-LUAD and TCGA-LUSC: the GDC's sample sheet and the downloaded slides -> manifest.csv and labels.csv.

Comes in: the sample sheet of a cart of the GDC portal (tab-separated; File ID, File Name, Project ID, Case ID
and more) and the folder that ``gdc-client download`` filled (``<File ID>/<File Name>``). Goes out:
OUT/manifest.csv and OUT/labels.csv with the case as patient_id and the site that the tissue came from.

    python -m pipelines.tcga_nsclc.prepare gdc_sample_sheet.tsv SLIDES OUT [--manifest gdc_manifest.txt]
"""

import argparse
import csv
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pipelines.listed import as_seen, check_there, damaged, files_below, write_table

LABELS = {"TCGA-LUAD": "luad", "TCGA-LUSC": "lusc"}
_COLUMNS = ("File ID", "File Name", "Project ID", "Case ID")
_DIAGNOSTIC = re.compile(
    r"TCGA-(?P<site>\w{2})-\w{4}-\w{3}-\w{2}-DX\w+\..+\.svs"
)  # not frozen tissue: -TS1, -BS1


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A diagnostic slide of the sample sheet."""

    name: str
    label: str
    case: str
    site: str


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sheet", type=Path, help="gdc_sample_sheet....tsv")
    parser.add_argument("slides", type=Path, help="folder that gdc-client filled")
    parser.add_argument("out", type=Path, help="folder to write manifest.csv and labels.csv to")
    parser.add_argument("--manifest", type=Path, help="gdc_manifest....txt: hold every slide against its MD5")
    parser.add_argument("--partly", action="store_true", help="go on without slides that are not there")
    parser.add_argument("--seen-as", type=Path, help="where SLIDES lies for a container, such as /slides")
    given = parser.parse_args()
    try:
        slides = prepare(
            given.sheet, given.slides, given.out, given.manifest, partly=given.partly, seen_as=given.seen_as
        )
    except (FileNotFoundError, ValueError) as error:
        print(f"prepare.py: {error}", file=sys.stderr)
        return 1
    for label, count in sorted(Counter(each.label for each in slides).items()):
        cases = len({each.case for each in slides if each.label == label})
        sites = len({each.site for each in slides if each.label == label})
        print(f"{label}: {count} slides of {cases} cases from {sites} sites")
    return 0


def prepare(
    sheet: Path,
    slides: Path,
    out: Path,
    manifest: Path | None = None,
    *,
    partly: bool = False,
    seen_as: Path | None = None,
) -> list[Listed]:
    """Write both tables and return the slides in them.

    Raises:
        FileNotFoundError: a list, or slides of it, are not there.
        ValueError: a list does not read, holds other projects, or slides are damaged (``manifest``).
    """
    listed = {each.name: each for each in read_sheet(sheet)}
    found = files_below(slides, ".svs")
    check_there(listed, found, slides, partly)
    if manifest is not None:
        sums = {name: each for name, each in read_manifest(manifest).items() if name in listed}
        if wrong := damaged(sums, found):
            raise ValueError(
                f"{slides}: not the bytes of {manifest}: {', '.join(wrong)}; download them again"
            )
    present = [listed[name] for name in sorted(listed) if name in found]
    write_table(
        out / "manifest.csv",
        ("slide_id", "path"),
        ((each.name.removesuffix(".svs"), as_seen(found[each.name], slides, seen_as)) for each in present),
    )
    write_table(
        out / "labels.csv",
        ("slide_id", "label", "patient_id", "site"),
        ((each.name.removesuffix(".svs"), each.label, each.case, each.site) for each in present),
    )
    return present


def read_sheet(path: Path) -> list[Listed]:
    """Return the diagnostic slides of a sample sheet; those of frozen tissue are counted on the screen.

    Raises:
        FileNotFoundError: no such file. ValueError: columns are missing, other projects, no diagnostic slide.
    """
    rows = _read_tsv(path, _COLUMNS, "the sample sheet of a cart of the GDC portal")
    others = sorted({row["Project ID"] for row in rows} - LABELS.keys())
    if others:
        raise ValueError(f"{path}: holds {', '.join(others)}; wanted {' and '.join(LABELS)} only")
    listed, frozen = [], 0
    for row in rows:
        match = _DIAGNOSTIC.fullmatch(row["File Name"])
        if match is None:
            frozen += 1
            continue
        case = row["Case ID"].split(",")[0].strip()  # a file of several samples repeats its case
        listed.append(
            Listed(name=row["File Name"], label=LABELS[row["Project ID"]], case=case, site=match["site"])
        )
    if frozen:
        print(f"{frozen} files of {path} are no diagnostic slides (frozen tissue): left out", file=sys.stderr)
    if not listed:
        raise ValueError(
            f"{path}: no diagnostic slide such as TCGA-05-4244-01Z-00-DX1....svs among {len(rows)} files"
        )
    return listed


def read_manifest(path: Path) -> dict[str, str]:
    """Return the MD5 of each file of a GDC manifest, by file name.

    Raises:
        FileNotFoundError: no such file. ValueError: columns are missing.
    """
    rows = _read_tsv(path, ("filename", "md5"), "the manifest of a cart of the GDC portal")
    return {row["filename"]: row["md5"] for row in rows}


def _read_tsv(path: Path, columns: tuple[str, ...], what: str) -> list[dict[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; wanted {what}")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, delimiter="\t")
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            there = ", ".join(reader.fieldnames or ())
            raise ValueError(f"{path}: no column {' and '.join(missing)}; found {there}; wanted {what}")
        return list(reader)


if __name__ == "__main__":
    raise SystemExit(main())
