"""UCSB Bio-Segmentation Benchmark, breast: 58 H&E fields -> pyramidal TIFFs and labels.csv.

Comes in: a folder with ``*.png`` (896 x 768) and ``labels.csv`` (slide_id, patient_id, label), where
patient_id is the tissue microarray. Goes out: OUT/slides/<slide_id>.tiff, lossless, at a nominal 0.5 um per
pixel (the benchmark does not record it), and OUT/labels.csv with a split column that names the microarray,
so that training leaves one microarray out at a time.
"""

import argparse
import csv
import sys
from pathlib import Path

import cv2

from pipelines.pyramid import write_pyramid

MPP = 0.5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="folder with the 58 .png fields and labels.csv")
    parser.add_argument("out", type=Path, help="folder to write slides/ and labels.csv to")
    arguments = parser.parse_args()
    try:
        count = prepare(arguments.source, arguments.out)
    except FileNotFoundError as error:
        print(f"prepare.py: {error}", file=sys.stderr)
        return 1
    print(f"{count} fields in {arguments.out / 'slides'}, labels in {arguments.out / 'labels.csv'}")
    return 0


def prepare(source: Path, out: Path) -> int:
    """Write every labelled field as a TIFF, and the labels; return how many. Raises FileNotFoundError."""
    table = source / "labels.csv"
    if not table.is_file():
        raise FileNotFoundError(f"{table}: no such file; wanted the folder with the fields and labels.csv")
    with table.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    missing = [row["slide_id"] for row in rows if not (source / f"{row['slide_id']}.png").is_file()]
    if missing:
        raise FileNotFoundError(f"{source}: no .png for {len(missing)} labels, the first is {missing[0]}")
    (out / "slides").mkdir(parents=True, exist_ok=True)
    for row in rows:
        image = cv2.cvtColor(cv2.imread(str(source / f"{row['slide_id']}.png")), cv2.COLOR_BGR2RGB)
        path = out / "slides" / f"{row['slide_id']}.tiff"
        write_pyramid(path, image, MPP, block=256, min_side=128, compression="deflate")
    with (out / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["slide_id", "patient_id", "label", "split"])
        for row in rows:
            writer.writerow([row["slide_id"], row["patient_id"], row["label"], row["patient_id"]])
    return len(rows)


if __name__ == "__main__":
    raise SystemExit(main())
