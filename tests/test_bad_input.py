"""What users really give us: every bad input's message and exit code, as the command line shows them."""

import dataclasses
import re
import shutil

import numpy as np
import pytest

from tests.conftest import break_blocks
from wsi_mil import store
from wsi_mil.geometry import PatchGeometry, grid_l0


@pytest.fixture
def run(tmp_path):
    """A run with features of 12 slides: a separable cohort, no pixels needed."""
    rng = np.random.default_rng(0)
    geometry = PatchGeometry.plan(width_l0=2048, height_l0=1024, mpp_l0=0.5, mpp=0.5, patch_px=256)
    coords = grid_l0(geometry)
    for i in range(12):
        values = rng.normal(size=(len(coords), 16)) + (i % 2)
        features = store.Features(
            slide_id=f"s{i}", slide_path=tmp_path / f"s{i}.svs", reader="openslide", geometry=geometry,
            coords=coords, features=values.astype(np.float16), encoder="net", weights_digest="f00d",
            patches_digest=f"p{i}", record={},
        )  # fmt: skip
        store.write_features(store.features_path(tmp_path / "run", "net", f"s{i}"), features)
    return tmp_path / "run"


HEADER = "slide_id,patient_id,label"


def labels(run, rows, header=HEADER):
    path = run.parent / "labels.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


GOOD = [f"s{i},p{i},{'ab'[i % 2]}" for i in range(12)]


def train(wsi, run, rows, *flags, header=HEADER):
    path = labels(run, rows, header)
    return wsi("train", "--run", run, "--labels", path, "--epochs", 2, "--members", 1, "--folds", 3, *flags)


@pytest.mark.parametrize(
    ("rows", "header", "words"),
    [
        (["s0,a"], "slide,class", r"no column slide_id and no column label; found 'slide', 'class'; wanted"),
        ([*GOOD, "s0,p0,a"], HEADER, r"1 slide ids stand there more than once: s0. Wanted one row"),
        ([f"s{i},p{i},a" for i in range(12)], HEADER, r"only one label .*'a' \(12\); wanted two or more"),
        (
            GOOD[:4],
            HEADER,
            r"--folds 3: more than the patients of .*'a': 2.*Use --folds 2 or fewer",
        ),
        ([*GOOD[:11], "s11,p0,b"], HEADER, r"different labels: p0 \(a, b\).*--label-level slide"),
        (["x1,p,a", "x2,q,b"], HEADER, r"none of its 2 slides has features .*Labels: x1, x2; features: s0"),
        ([*GOOD[:11], "s11,p11,"], HEADER, r"1 rows have no label: line 13 \(s11\)"),
    ],
    ids=["columns", "twice", "one class", "few patients", "both labels", "no overlap", "empty label"],
)
def test_labels_that_cannot_work_stop_with_a_message(wsi, run, rows, header, words):
    got, out, err = train(wsi, run, rows, header=header)
    assert got == 1
    assert re.search(words, err), err
    assert "Traceback" not in out + err
    assert not (run / "models").exists() or not list((run / "models").iterdir())


def test_unknown_slides_are_a_table_and_unlabelled_ones_are_named(wsi, run):
    code, out, err = train(wsi, run, [*GOOD[:11], "ghost,p99,a"])
    assert code == 1, "a labelled slide that is not there is a failure"
    assert re.search(r"1 failed.*ghost.*no features", out)
    assert "11 done, 1 skipped, 1 failed" in out
    assert "s11" in err, "and the slide without a label is said"
    assert (run / "models" / "gated-attention" / "metrics.json").exists(), "the others are trained on"


def test_fewer_patients_than_folds_names_both_numbers(wsi, run):
    rows = [f"s{i},p{i % 2},{'ab'[i % 2]}" for i in range(12)]
    code, _, err = train(wsi, run, rows)
    assert code == 1
    assert re.search(r"--folds 3: more than the patients of label .*'a': 1, 'b': 1; 2 in all", err)
    assert "at least 2 patients of each label" in err


def test_features_of_another_encoder_among_the_others(wsi, run):
    path = store.features_path(run, "net", "s3")
    store.write_features(path, dataclasses.replace(store.read_features(path), weights_digest="beef"))
    code, out, err = train(wsi, run, GOOD)
    assert code == 1
    assert re.search(r"weights_digest", out + err)
    assert re.search(r"beef", out + err)


def test_a_model_refuses_features_of_another_encoder(wsi, run):
    assert train(wsi, run, GOOD)[0] == 0
    path = store.features_path(run, "net", "s3")
    store.write_features(path, dataclasses.replace(store.read_features(path), weights_digest="beef"))
    code, out, _ = wsi("heatmap", "--run", run, "--overlay-px", 300)
    assert code == 1
    assert re.search(r"s3.*trained on features of weights_digest 'f00d', these are of.*'beef'", out)
    assert "11 done, 0 skipped, 1 failed" in out


def test_two_encoders_in_a_run_must_be_told_apart(wsi, run):
    shutil.copytree(run / "features" / "net", run / "features" / "other")
    code, _, err = train(wsi, run, GOOD)
    assert code == 2
    assert "holds several: net, other; say which with --encoder" in err


def test_slides_that_fail_each_say_why(wsi, tmp_path, make_slide):
    make_slide("no_mpp.svs", mpp=None)
    make_slide("far.tiff", mpp=264.58)
    make_slide("near.tiff", mpp=0.00499)
    make_slide("coarse.svs", mpp=1.0)
    make_slide("good.svs")
    make_slide("blank.svs", tissue=())
    slides = tmp_path / "slides"
    break_blocks(make_slide("unreadable.svs"))
    (slides / "text.svs").write_text("no slide")
    code, out, _ = wsi("tile", "--slides", slides, "--run", tmp_path / "run", "--workers", 1)
    assert code == 1
    for words in (
        r"no_mpp .*does not say its microns per pixel.*--slide-mpp",
        r"far .*264.58 microns per pixel, which no scanner has.*--slide-mpp",
        r"near .*0.00499 microns per pixel, which no scanner has",
        r"coarse .*--mpp 0.5 is finer than the slide's own 1 um per pixel.*Use --mpp 1",
        r"unreadable .*level 0 cannot be read",
        r"text .*cannot be opened as a slide",
        r"note: blank: no tissue found: 0 patches",
        r"tile: 2 done, 0 skipped, 6 failed",
    ):
        assert re.search(words, out), words
    code, out, _ = wsi(
        "tile", "--slides", slides / "far.tiff", "--run", tmp_path / "run", "--slide-mpp", 0.5, "--workers", 1
    )
    assert (code, "1 done" in out) == (0, True), "and what the message offers works"


def test_the_broken_fixtures_of_openslide(wsi, tmp_path, real_slides):
    slides = tmp_path / "slides"
    slides.mkdir()
    for name in ("unreadable.svs", "unopenable.tiff", "small.svs"):
        shutil.copyfile(real_slides / "openslide_fixtures" / name, slides / name)
    code, out, _ = wsi("tile", "--slides", slides, "--run", tmp_path / "run", "--workers", 1)
    assert code == 1
    assert re.search(r"unreadable .*level 0 cannot be read", out)
    assert re.search(r"unopenable .*microns per pixel", out)
    assert "tile: 1 done, 0 skipped, 2 failed" in out
