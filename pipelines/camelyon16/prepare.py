"""CAMELYON16: the official list of files and the downloaded slides -> manifest.csv and labels.csv.

Comes in: the data set's folder as GigaDB and the AWS registry of open data have it: ``checksums.md5``, slides
``normal_NNN.tif``, ``tumor_NNN.tif`` and ``test_NNN.tif`` in whatever folders below, and for the test slides
``reference.csv`` (no header; name, Normal or Tumor, more) or a folder ``annotations`` with an XML file for
each slide that has a tumor. Goes out: OUT/manifest.csv and OUT/labels.csv with the official split.

    python -m pipelines.camelyon16.prepare CAMELYON16 OUT
"""

import argparse
import csv
import re
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from pipelines.listed import as_seen, check_there, damaged, files_below, write_table

LEFT_OUT = {
    "normal_086": "was called normal by mistake, and became tumor_111",
    "test_049": "a duplicate of another test slide",
}
"""Slides that are in some copies of the data set and belong to none of its parts."""
EXPECTED = {
    ("train", "normal"): 159, ("train", "tumor"): 111, ("test", "normal"): 80, ("test", "tumor"): 49,
}  # fmt: skip
_SLIDE = re.compile(r"(normal|tumor|test)_\d{3}\.tif")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="folder with checksums.md5 and the slides")
    parser.add_argument("out", type=Path, help="folder to write manifest.csv and labels.csv to")
    parser.add_argument("--partly", action="store_true", help="go on without slides that are not there")
    parser.add_argument(
        "--md5", action="store_true", help="read all slides and hold them against checksums.md5"
    )
    parser.add_argument("--seen-as", type=Path, help="where the folder lies for a container, such as /slides")
    given = parser.parse_args()
    try:
        counts = prepare(given.source, given.out, partly=given.partly, md5=given.md5, seen_as=given.seen_as)
    except (FileNotFoundError, ValueError) as error:
        print(f"prepare.py: {error}", file=sys.stderr)
        return 1
    for (part, label), expected in EXPECTED.items():
        found = counts[part, label]
        print(
            f"{part:5} {label:6} {found:4} slides" + ("" if found == expected else f" (the list: {expected})")
        )
    return 0


def prepare(
    source: Path, out: Path, *, partly: bool = False, md5: bool = False, seen_as: Path | None = None
) -> Counter[tuple[str, str]]:
    """Write both tables; return how many slides each part has of each label.

    Raises:
        FileNotFoundError: a list, or slides of it, are not there.
        ValueError: a list does not read, a test slide has no label, or (``md5``) slides are damaged.
    """
    sums = {name: each for name, each in read_sums(source / "checksums.md5").items() if _kept(name)}
    found = files_below(source, ".tif")
    check_there(sums, found, source, partly)
    present = sorted(name for name in sums if name in found)
    reference = _test_labels(source, [name for name in present if name.startswith("test_")])
    labels = {}
    for name in present:
        kind = name.split("_")[0]
        labels[name] = ("test", reference[name]) if kind == "test" else ("train", kind)
    if md5 and (wrong := damaged(sums, found)):
        raise ValueError(f"{source}: not the bytes of checksums.md5: {', '.join(wrong)}; download them again")
    paths = ((name[:-4], as_seen(found[name], source, seen_as)) for name in present)
    write_table(out / "manifest.csv", ("slide_id", "path"), paths)
    rows = ((name[:-4], label, part) for name, (part, label) in labels.items())
    write_table(out / "labels.csv", ("slide_id", "label", "split"), rows)
    return Counter(labels.values())


def read_sums(path: Path) -> dict[str, str]:
    """Return the MD5 of each slide that checksums.md5 lists, by file name; masks and others are passed over.

    Raises:
        FileNotFoundError: no such file. ValueError: it lists no slide.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; it is the data set's own list of its files")
    sums = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        digest, _, where = line.strip().partition(" ")
        name = where.strip().lstrip("*").replace("\\", "/").rpartition("/")[2].lower()
        if _SLIDE.fullmatch(name):
            sums[name] = digest
    if not sums:
        raise ValueError(
            f"{path}: lists no slide such as images/normal_001.tif; wanted CAMELYON16's checksums.md5"
        )
    return sums


def _kept(name: str) -> bool:
    reason = LEFT_OUT.get(name.removesuffix(".tif"))
    if reason:
        print(f"left out: {name} ({reason})", file=sys.stderr)
    return reason is None


def _test_labels(source: Path, names: list[str]) -> Mapping[str, str]:
    """Return normal or tumor for each test slide."""
    if not names:
        return {}
    tables = sorted(source.rglob("reference.csv"))
    if tables:
        with tables[0].open(newline="", encoding="utf-8-sig") as file:
            rows = {
                row[0].strip().lower(): row[1].strip().lower() for row in csv.reader(file) if len(row) > 1
            }
        wrong = [name for name in names if rows.get(name[:-4]) not in ("normal", "tumor")]
        if wrong:
            raise ValueError(f"{tables[0]}: neither Normal nor Tumor for {', '.join(wrong)}")
        return {name: rows[name[:-4]] for name in names}
    outlined = {path.stem.lower() for path in source.rglob("annotations/test_*.xml")}
    if not outlined:
        raise FileNotFoundError(
            f"{source}: neither reference.csv nor annotations/test_*.xml; without them nobody knows the "
            "labels of the test slides"
        )
    return {name: "tumor" if name[:-4] in outlined else "normal" for name in names}


if __name__ == "__main__":
    raise SystemExit(main())
