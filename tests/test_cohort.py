import csv
import json
from collections import Counter

import cv2
import numpy as np
import openslide
import pytest
from shapely.geometry import Polygon, shape

from pipelines.demo.cohort import make_cohort, plan_cohort
from pipelines.demo.histology import Stain, draw_slide
from pipelines.demo.layout import MAP_UM, lay_out

SIDE_UM = 320.0


def draw(seed, *, mpp=0.5, tumor=True):
    rng = np.random.default_rng(seed)
    return draw_slide(rng, side_um=SIDE_UM, mpp=mpp, tissue_fraction=0.58, stain=Stain(), tumor=tumor)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return make_cohort(tmp_path_factory.mktemp("cohort"), slides=4, seed=3, side_um=SIDE_UM, workers=1)


def by_label(plans, value):
    return [Counter(value(p) for p in plans if p.label == label) for label in ("normal", "tumor")]


@pytest.mark.parametrize(
    "value",
    [
        lambda p: (p.suffix, p.block, p.mpp),
        lambda p: (p.side_um, p.tissue_fraction),
        lambda p: p.stain,
    ],
    ids=["format and mpp", "size", "stain"],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_nothing_but_tissue_tells_the_label(value, seed):
    normal, tumor = by_label(plan_cohort(slides=24, seed=seed), value)
    assert normal == tumor


def test_plan_of_24_slides():
    plans = plan_cohort(slides=24, seed=0)
    assert [p.slide_id for p in plans] == [f"slide_{i:02d}" for i in range(1, 25)]
    assert Counter(p.label for p in plans) == {"normal": 12, "tumor": 12}
    assert len({p.patient_id for p in plans}) == 20
    labels = {(p.patient_id, p.label) for p in plans}
    assert len(labels) == 20, "the slides of a patient have one label"
    assert set(Counter((p.suffix, p.block, p.mpp) for p in plans).values()) == {6}
    assert len({p.seed for p in plans}) == 24
    # neither the order of slide_id nor that of patient_id sorts the labels
    for key in (lambda p: p.slide_id, lambda p: p.patient_id):
        ordered = [p.label for p in sorted(plans, key=key)]
        assert 2 <= Counter(ordered[:12])["tumor"] <= 10


def test_plan_depends_on_the_seed_alone():
    assert plan_cohort(slides=6, seed=5) == plan_cohort(slides=6, seed=5)
    assert plan_cohort(slides=6, seed=5) != plan_cohort(slides=6, seed=6)


@pytest.mark.parametrize("slides", [1, 2, 5])
def test_plan_of_few_slides(slides):
    plans = plan_cohort(slides=slides, seed=0)
    assert len(plans) == slides
    assert Counter(p.label for p in plans)["normal"] == (slides + 1) // 2


def test_same_seed_draws_the_same_pixels():
    first, outlines = draw(7)
    again, outlines_again = draw(7)
    other, _ = draw(8)
    assert first.dtype == np.uint8
    assert first.shape == (640, 640, 3)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(outlines, outlines_again)
    assert (first != other).any()


@pytest.mark.parametrize("tumor", [True, False])
def test_saturation_finds_the_tissue(tumor):
    image, _ = draw(11, tumor=tumor)
    saturation = cv2.GaussianBlur(np.ptp(image.astype(np.int16), axis=2).astype(np.uint8), (0, 0), 4)
    threshold, mask = cv2.threshold(saturation, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    assert 15 < threshold < 90
    assert mask.mean() == pytest.approx(0.58, abs=0.12)  # lumens and tears are glass
    glass = image[:12].reshape(-1, 3)  # tissue keeps off the edge
    assert glass.min() > 225
    assert 0.5 < glass.std(axis=0).mean() < 3


@pytest.mark.parametrize("seed", range(6))
def test_planted_regions_lie_in_tissue_and_are_their_share_of_it(seed):
    layout = lay_out(np.random.default_rng(seed), side_um=1100, tissue_fraction=0.58, tumor=True)
    regions = [Polygon(outline) for outline in layout.planted]
    assert 1 <= len(regions) <= 3
    assert all(r.is_valid and r.minimum_rotated_rectangle.length / 4 > 200 for r in regions)
    tissue = layout.depth_um > 0
    share = sum(r.area for r in regions) / (tissue.sum() * MAP_UM**2)
    assert 0.05 < share < 0.21
    for outline in layout.planted:
        mask = np.zeros(tissue.shape, np.uint8)
        cv2.fillPoly(mask, [np.round(outline / MAP_UM).astype(np.int32)], 1)
        assert tissue[mask > 0].all()
    assert layout.glands
    assert layout.nests
    assert layout.aggregates


def test_normal_slides_hold_benign_structures_alone():
    layout = lay_out(np.random.default_rng(0), side_um=1100, tissue_fraction=0.58, tumor=False)
    assert not layout.planted
    assert layout.glands
    assert layout.nests
    assert layout.aggregates


def test_slides_open_as_planned(cohort):
    plans = plan_cohort(slides=4, seed=3, side_um=SIDE_UM)
    assert {p.name for p in cohort.slides.iterdir()} == {p.slide_id + p.suffix for p in plans}
    for plan in plans:
        with openslide.OpenSlide(cohort.slides / (plan.slide_id + plan.suffix)) as slide:
            properties = slide.properties
            assert properties["openslide.vendor"] == ("aperio" if plan.suffix == ".svs" else "generic-tiff")
            assert float(properties["openslide.mpp-x"]) == pytest.approx(plan.mpp, rel=1e-4)
            assert slide.dimensions == (plan.side_um / plan.mpp,) * 2
            assert properties["openslide.level[0].tile-width"] == str(plan.block)
            assert np.asarray(slide.read_region((0, 0), 0, (8, 8)))[..., :3].min() > 215


def test_labels_and_truth_agree(cohort):
    plans = {p.slide_id: p for p in plan_cohort(slides=4, seed=3, side_um=SIDE_UM)}
    with cohort.labels.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["slide_id"] for r in rows] == sorted(plans)
    assert {p.name for p in cohort.truth.iterdir()} == {f"{i}.geojson" for i in plans}
    for row in rows:
        plan = plans[row["slide_id"]]
        assert (row["patient_id"], row["label"]) == (plan.patient_id, plan.label)
        truth = json.loads((cohort.truth / f"{plan.slide_id}.geojson").read_text())
        assert truth["type"] == "FeatureCollection"
        assert bool(truth["features"]) == (plan.label == "tumor")
        side_l0 = plan.side_um / plan.mpp
        for feature in truth["features"]:
            region = shape(feature["geometry"])
            assert region.is_valid
            assert region.area * plan.mpp**2 > 1000
            x0, y0, x1, y1 = region.bounds
            assert min(x0, y0) >= 0
            assert max(x1, y1) <= side_l0
            assert feature["properties"]["objectType"] == "annotation"
            assert feature["properties"]["classification"]["name"] == "tumor"


def test_a_second_call_changes_nothing_and_other_settings_start_anew(tmp_path):
    settings = {"slides": 2, "seed": 1, "side_um": 200.0, "workers": 1}
    cohort = make_cohort(tmp_path, **settings)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    assert not [p for p in before if "unfinished" in p.name]
    assert make_cohort(tmp_path, **settings) == cohort
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before
    make_cohort(tmp_path, **settings | {"slides": 1})
    assert len(list(cohort.slides.iterdir())) == len(list(cohort.truth.iterdir())) == 1
