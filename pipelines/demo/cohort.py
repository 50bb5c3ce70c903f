"""Make a small cohort of drawn slides with labels and known truth: for the demo, and for tests.

Comes in: a folder, how many slides and a seed. Goes out: ``slides/``, ``labels.csv`` and ``truth/`` in it.
Half of the slides hold planted tumor. What could give the label away by accident (file format, block size,
microns per pixel, stain, size, amount of tissue) is dealt out in pairs, one normal slide and one tumor slide.

    python -m pipelines.demo.cohort demo --slides 24 --seed 0
"""

import argparse
import csv
import io
import json
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from pipelines.demo.histology import Stain, draw_slide, draw_stain
from pipelines.pyramid import write_pyramid

GENERATOR_VERSION = 2  # raise it when the same seed no longer draws the same pixels
# Suffix, block and mpp, dealt out in turn. A cohort of two pairs has both formats and both resolutions.
FILES = ((".svs", 240, 0.25), (".tiff", 256, 0.5), (".svs", 240, 0.5), (".tiff", 256, 0.25))
LABELS = ("normal", "tumor")


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Where the parts of a cohort lie."""

    folder: Path

    @property
    def slides(self) -> Path:
        """Folder of ``<slide_id>.svs`` and ``<slide_id>.tiff``."""
        return self.folder / "slides"

    @property
    def labels(self) -> Path:
        """CSV of slide_id, patient_id, label (normal or tumor)."""
        return self.folder / "labels.csv"

    @property
    def truth(self) -> Path:
        """Folder of ``<slide_id>.geojson``: planted regions as polygons of level-0 (x, y)."""
        return self.folder / "truth"


@dataclass(frozen=True, kw_only=True)
class SlidePlan:
    """Everything that decides one slide's pixels and file."""

    slide_id: str
    patient_id: str
    label: str
    suffix: str
    block: int
    mpp: float
    side_um: float
    tissue_fraction: float
    stain: Stain
    seed: tuple[int, int]


def plan_cohort(*, slides: int = 24, seed: int = 0, side_um: float = 1150.0) -> list[SlidePlan]:
    """Return the plan of every slide, by slide_id, nothing drawn. Sides vary by 8 % about ``side_um``."""
    rng = np.random.default_rng([seed, slides])
    place = rng.permutation(slides)  # which number a slide gets must not tell its label
    patients = _deal_patients(rng, slides)
    plans = []
    for pair in range((slides + 1) // 2):
        suffix, block, mpp = FILES[pair % len(FILES)]
        # a multiple of 4 microns has whole pixels at either resolution
        side = round(side_um * rng.uniform(0.92, 1.08) / 4) * 4
        fraction, stain = rng.uniform(0.5, 0.65), draw_stain(rng)
        for index in range(2 * pair, min(2 * pair + 2, slides)):
            number = int(place[index]) + 1
            plans.append(
                SlidePlan(
                    slide_id=f"slide_{number:02d}", patient_id=patients[index], label=LABELS[index % 2],
                    suffix=suffix, block=block, mpp=mpp, side_um=float(side), tissue_fraction=fraction,
                    stain=stain, seed=(seed, number),
                )
            )  # fmt: skip
    return sorted(plans, key=lambda plan: plan.slide_id)


def make_cohort(
    folder: Path, *, slides: int = 24, seed: int = 0, side_um: float = 1150.0, workers: int = 2
) -> Cohort:
    """Write a cohort into ``folder``, unless the same cohort is complete there, and return where it lies.

    ``cohort.json`` is written last: it says what the cohort is, and that it is whole.
    """
    cohort = Cohort(folder=Path(folder))
    stamp = cohort.folder / "cohort.json"
    plans = plan_cohort(slides=slides, seed=seed, side_um=side_um)
    record = {
        "generator_version": GENERATOR_VERSION,
        "settings": {"slides": slides, "seed": seed, "side_um": side_um},
        "files": [f"slides/{p.slide_id}{p.suffix}" for p in plans]
        + [f"truth/{p.slide_id}.geojson" for p in plans],
    }
    if stamp.exists():
        found = json.loads(stamp.read_text())
        if found == record and all((cohort.folder / name).exists() for name in record["files"]):
            return cohort
        stamp.unlink()
        for name in found["files"]:  # another cohort's slides must not mix with these
            (cohort.folder / name).unlink(missing_ok=True)
    for part in (cohort.slides, cohort.truth):
        part.mkdir(parents=True, exist_ok=True)
    if workers > 1:
        # spawn: a forked child inherits locks of threads that it does not have
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            # the largest first, so that no worker is left with one at the end
            list(pool.map(_make_slide, sorted(plans, key=lambda p: p.mpp), [cohort] * len(plans)))
    else:
        for plan in plans:
            _make_slide(plan, cohort)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["slide_id", "patient_id", "label"])
    writer.writerows([p.slide_id, p.patient_id, p.label] for p in plans)
    _write_text(cohort.labels, table.getvalue())
    _write_text(stamp, json.dumps(record, indent=1) + "\n")
    return cohort


def _deal_patients(rng: np.random.Generator, slides: int) -> list[str]:
    """Return each slide's patient. Slides alternate in label; one patient in five has two, of one label."""
    owner = np.arange(slides)
    for label in range(2):
        own = np.flatnonzero(owner % 2 == label)
        for _ in range(slides // 12):
            first, second = own[:2]
            owner[second], own = first, own[2:]
    names = rng.permutation(slides) + 1
    return [f"patient_{names[who]:02d}" for who in owner]


def _make_slide(plan: SlidePlan, cohort: Cohort) -> None:
    cv2.setNumThreads(1)  # slides run in parallel, not the parts of one slide
    image, planted = draw_slide(
        np.random.default_rng(plan.seed), side_um=plan.side_um, mpp=plan.mpp,
        tissue_fraction=plan.tissue_fraction, stain=plan.stain, tumor=plan.label == "tumor",
    )  # fmt: skip
    # beside slides/, not in it: a list of the folder made meanwhile must not see half a slide
    unfinished = cohort.folder / f"unfinished_{plan.slide_id}{plan.suffix}"
    write_pyramid(unfinished, image, plan.mpp, block=plan.block)
    unfinished.replace(cohort.slides / f"{plan.slide_id}{plan.suffix}")
    _write_text(cohort.truth / f"{plan.slide_id}.geojson", json.dumps(_geojson(planted, plan.mpp)) + "\n")


def _geojson(outlines_um: Sequence[np.ndarray], mpp: float) -> dict[str, object]:
    """Return outlines as QuPath reads them: closed rings of level-0 pixels."""
    features = []
    for shape in outlines_um:
        ring_l0 = np.round(np.concatenate([shape, shape[:1]]) / mpp, 2).tolist()
        features.append(
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [ring_l0]},
                "properties": {"objectType": "annotation", "classification": {"name": "tumor"}},
            }
        )
    return {"type": "FeatureCollection", "features": features}


def _write_text(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def main() -> None:
    """Make a cohort from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.demo.cohort", description=__doc__.split("\n")[0]
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--slides", type=int, default=24, help="how many slides (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed draws the same slides")
    parser.add_argument("--side-um", type=float, default=1150.0, help="side of a slide in microns, about")
    parser.add_argument("--workers", type=int, default=2, help="processes (default %(default)s)")
    options = vars(parser.parse_args())
    cohort = make_cohort(options.pop("folder"), **options)
    print(
        f"{options['slides']} slides in {cohort.slides}, labels in {cohort.labels}, truth in {cohort.truth}"
    )


if __name__ == "__main__":
    main()
