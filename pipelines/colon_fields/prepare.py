"""CRCHistoPhenotypes, classification: 100 H&E fields of colon -> pyramidal TIFFs, labels and nuclei.

Comes in: a folder with a folder per field, as the data set is unpacked: ``imgK/imgK.bmp`` (or ``.png``) and
four ``imgK/imgK_<kind>.mat``, whose ``detection`` (N, 2) holds the (x, y) of every nucleus of that kind. Goes
out: OUT/slides/<slide_id>.tiff, lossless, at 0.55 um per pixel; OUT/labels.csv, where a field is
``epithelial`` if it holds an epithelial nucleus and else ``none``, as in Ilse, Tomczak & Welling 2018; and
OUT/nuclei.csv, which no stage reads: it is for ``key_instances.py``.
"""

import argparse
import csv
import re
import sys
from pathlib import Path

import cv2
import numpy as np
import scipy.io

from pipelines.pyramid import write_pyramid

MPP = 0.55
KINDS = ("epithelial", "fibroblast", "inflammatory", "others")
SUFFIXES = (".png", ".bmp")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="folder with img1, img2, ...")
    parser.add_argument("out", type=Path, help="folder to write slides/, labels.csv and nuclei.csv to")
    arguments = parser.parse_args()
    try:
        count, positive = prepare(arguments.source, arguments.out)
    except (FileNotFoundError, ValueError) as error:
        print(f"prepare.py: {error}", file=sys.stderr)
        return 1
    print(f"{count} fields ({positive} epithelial) in {arguments.out / 'slides'}, labels in {arguments.out}")
    return 0


def prepare(source: Path, out: Path) -> tuple[int, int]:
    """Write every field, its label and its nuclei; return how many fields, and how many are epithelial.

    Everything that is wanted is looked for before anything is written.

    Raises:
        FileNotFoundError: no fields there, or a field without its picture or one of its four tables.
        ValueError: a table without ``detection``, or a picture that cannot be read.
    """
    fields = sorted(
        (each for each in source.glob("img*") if each.is_dir()), key=lambda each: _number(each.name)
    )
    if not fields:
        raise FileNotFoundError(f"{source}: no folder img1, img2, ... in it; wanted the unpacked data set")
    pictures = {field.name: _picture(field) for field in fields}
    nuclei = {field.name: _nuclei(field) for field in fields}
    (out / "slides").mkdir(parents=True, exist_ok=True)
    for name, path in pictures.items():
        image = cv2.imread(str(path))
        if image is None:
            raise ValueError(f"{path}: not readable as a picture")
        slide = out / "slides" / f"{name}.tiff"
        rgb = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        write_pyramid(slide, rgb, MPP, block=256, factor=2, min_side=125, compression="deflate")
    labels = {name: "epithelial" if len(each["epithelial"]) else "none" for name, each in nuclei.items()}
    _write(out / "labels.csv", ("slide_id", "label"), labels.items())
    _write(
        out / "nuclei.csv",
        ("slide_id", "kind", "x_l0", "y_l0"),
        (
            (name, kind, f"{x:.1f}", f"{y:.1f}")
            for name, each in nuclei.items()
            for kind, xy_N2 in each.items()
            for x, y in xy_N2
        ),
    )
    return len(labels), sum(label == "epithelial" for label in labels.values())


def _number(name: str) -> int:
    digits = re.sub(r"\D", "", name)
    return int(digits) if digits else 0


def _picture(field: Path) -> Path:
    for suffix in SUFFIXES:
        path = field / f"{field.name}{suffix}"
        if path.is_file():
            return path
    raise FileNotFoundError(f"{field}: no {field.name}.bmp and no {field.name}.png in it")


def _nuclei(field: Path) -> dict[str, np.ndarray]:
    """Return the (x, y) of the nuclei of each kind, (N, 2); MATLAB counts pixels from 1, we from 0."""
    found = {}
    for kind in KINDS:
        path = field / f"{field.name}_{kind}.mat"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; without it nobody knows the field's label")
        table = scipy.io.loadmat(path)
        if "detection" not in table:
            raise ValueError(f"{path}: holds no 'detection', the table of (x, y) of nuclei")
        found[kind] = np.asarray(table["detection"], np.float64).reshape(-1, 2) - 1
    return found


def _write(path: Path, columns: tuple[str, ...], rows: object) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)  # type: ignore[arg-type]


if __name__ == "__main__":
    raise SystemExit(main())
