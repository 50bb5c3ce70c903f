"""The recipe of the colon fields, and the baseline that is scored in the folds of a trained model."""

import csv
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io
import tifffile
from sklearn.metrics import roc_auc_score

from pipelines import mean_baseline
from pipelines.colon_fields import key_instances
from pipelines.colon_fields.prepare import KINDS, prepare
from wsi_mil import config, manifest, metrics, store, tile
from wsi_mil.geometry import PatchGeometry

ROOT = Path(__file__).parents[1]


def field(source, name, suffix=".png", **nuclei):
    """Write a drawn field and its four tables; nuclei are (x, y) as MATLAB has them, from 1."""
    folder = source / name
    folder.mkdir(parents=True)
    image = np.random.default_rng(len(name)).integers(0, 256, (500, 500, 3), dtype=np.uint8)
    cv2.imwrite(str(folder / f"{name}{suffix}"), image[..., ::-1])
    for kind in KINDS:
        table = np.array(nuclei.get(kind, np.empty((0, 2))), np.float64)
        scipy.io.savemat(folder / f"{name}_{kind}.mat", {"detection": table})
    return image


@pytest.fixture
def drawn(tmp_path):
    images = {
        "img2": field(tmp_path / "in", "img2", ".bmp", fibroblast=[(1, 1)], others=[(100.5, 7)]),
        "img10": field(tmp_path / "in", "img10", epithelial=[(41, 21), (500, 500)], others=[(3, 4)]),
    }
    return tmp_path / "in", tmp_path / "out", images


def test_prepare_writes_what_the_stages_read(drawn):
    source, out, images = drawn
    assert prepare(source, out) == (2, 1)
    labels = manifest.read_labels(out / "labels.csv")
    assert dict(zip(labels.slide_ids, labels.labels, strict=True)) == {"img2": "none", "img10": "epithelial"}
    with (out / "nuclei.csv").open(newline="") as file:
        nuclei = list(csv.reader(file))[1:]
    assert nuclei == [
        ["img2", "fibroblast", "0.0", "0.0"],
        ["img2", "others", "99.5", "6.0"],
        ["img10", "epithelial", "40.0", "20.0"],
        ["img10", "epithelial", "499.0", "499.0"],
        ["img10", "others", "2.0", "3.0"],
    ]
    for name, image in images.items():
        with tifffile.TiffFile(out / "slides" / f"{name}.tiff") as tiff:
            assert [page.shape for page in tiff.pages] == [(500, 500, 3), (250, 250, 3), (125, 125, 3)]
            np.testing.assert_array_equal(tiff.pages[0].asarray(), image)  # lossless


def test_patches_of_the_recipe_cover_the_field(drawn):
    source, out, _ = drawn
    prepare(source, out)
    settings = config.from_toml(
        config.TileConfig,
        ROOT / "pipelines" / "colon_fields" / "pipeline.toml",
        slides=out / "slides",
        run=out / "run",
    )
    assert not tile.run(settings).failed
    patches = store.read_patches(out / "run" / "patches" / "img2.h5")
    side = patches.geometry.patch_size_l0
    assert patches.geometry.mpp_l0 == pytest.approx(0.55, rel=1e-3)
    seen = np.zeros((500, 500), bool)
    for x, y in patches.coords:
        seen[y : y + round(side), x : x + round(side)] = True
    assert seen.all()


def test_prepare_says_what_is_missing(tmp_path):
    command = [sys.executable, "-m", "pipelines.colon_fields.prepare", str(tmp_path), str(tmp_path / "out")]

    def complaint():
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 1
        assert done.stderr.startswith("prepare.py: ")
        assert done.stderr.count("\n") == 1
        assert not (tmp_path / "out").exists()
        return done.stderr

    assert "no folder img1, img2" in complaint()
    field(tmp_path, "img1")
    (tmp_path / "img1" / "img1_epithelial.mat").unlink()
    assert "img1_epithelial.mat: no such file" in complaint()
    scipy.io.savemat(tmp_path / "img1" / "img1_epithelial.mat", {"other": np.zeros(1)})
    assert "holds no 'detection'" in complaint()
    (tmp_path / "img1" / "img1.png").unlink()
    assert "no img1.bmp and no img1.png" in complaint()


def test_real_fields_are_those_of_the_paper(tmp_path, real_data):
    source = real_data / "colon_cancer"
    assert prepare(source, tmp_path) == (100, 51)
    with (source / "labels.csv").open() as file:
        wanted = {row["slide_id"]: row["label"] for row in csv.DictReader(file)}
    labels = manifest.read_labels(tmp_path / "labels.csv")
    assert dict(zip(labels.slide_ids, labels.labels, strict=True)) == wanted
    nuclei = key_instances.read_nuclei(tmp_path / "nuclei.csv")
    assert sum(len(key) for _, key in nuclei.values()) == 22_444
    assert sum(int(key.sum()) for _, key in nuclei.values()) == 7_722
    # Nine were marked up to 0.8 pixels beyond an edge.
    assert all((xy > -1).all() and (xy <= 499).all() for xy, _ in nuclei.values())


def heatmap(attention):
    """A 2 x 2 grid of patches of 10 pixels, step 5, on a slide of 15 pixels."""
    geometry = PatchGeometry(0.5, 10, 10.0, 5.0, 15, 15, 0.5)
    coords = np.array([(0, 0), (5, 0), (0, 5), (5, 5)])
    return store.Heatmap(
        slide_id="a",
        geometry=geometry,
        coords=coords,
        values={"attention": np.array([attention], np.float32)},
        outputs=("positive",),
        shown={"quantity": "attention", "output": "positive"},
        facts={},
        record={},
    )


def test_key_instances_are_scored_by_patch_and_by_nucleus():
    xy = np.array([(1.0, 1.0), (6.0, 1.0), (12.0, 14.0)])
    key = np.array([True, False, False])
    drawn = heatmap([0.4, 0.1, 0.3, 0.2])
    assert key_instances.holds(drawn, xy).tolist() == [
        [True, True, False], [False, True, False], [False, False, False], [False, False, True],
    ]  # fmt: skip
    assert key_instances.patch_score(drawn, xy, key) == 1.0
    # means over the patches that hold each nucleus: 0.4, (0.4 + 0.1) / 2, 0.2
    assert key_instances.nucleus_score(drawn, xy, key) == 1.0
    assert key_instances.nucleus_score(heatmap([0.22, 0.24, 0.1, 0.44]), xy, key) == 0.0
    assert key_instances.nucleus_score(drawn, xy, np.ones(3, bool)) is None
    outside = np.array([(1.0, 1.0), (6.0, 1.0), (99.0, 99.0)])
    assert key_instances.nucleus_score(drawn, outside, key) == 1.0, "a nucleus that no patch holds has no say"


def test_weighted_auroc_is_that_of_repeated_rows():
    rng = np.random.default_rng(0)
    y, score = rng.integers(0, 2, 30), rng.integers(0, 6, 30) / 5
    weights = rng.integers(0, 4, (5, 30))
    wanted = [roc_auc_score(np.repeat(y, each), np.repeat(score, each)) for each in weights]
    np.testing.assert_allclose(metrics.ranking(y == 1, score)(weights.T.astype(float))[0], wanted)


def test_the_baseline_learns_from_the_training_part_alone():
    """Noise stays at chance, a feature that tells the class does not, and a torn fold is refused."""
    rng = np.random.default_rng(0)
    slides = np.array([f"s{i}" for i in range(40)])
    y, fold = np.arange(40) % 2, np.arange(40) // 10
    labels = {each: (each, "np"[code]) for each, code in zip(slides, y, strict=True)}
    tested = {
        "slide": slides, "patient": slides, "fold": fold, "repeat": np.zeros(40, int), "label": y,
        "probability": rng.random(40),
    }  # fmt: skip
    training = {k: slides[fold != k].tolist() for k in range(4)}
    noise = rng.normal(size=(40, 5))
    means = dict(zip(slides, noise, strict=True))
    by_chance, _ = mean_baseline.baseline(means, labels, tested, training, "p")
    assert 0.2 < roc_auc_score(y, by_chance) < 0.8
    noise[:, 0] += 4 * y
    seen, chosen = mean_baseline.baseline(
        dict(zip(slides, noise, strict=True)), labels, tested, training, "p"
    )
    assert roc_auc_score(y, seen) > 0.95
    assert len(chosen) == 4
    rows = mean_baseline.intervals(tested, {"model": tested["probability"], "mean": seen}, samples=200)
    assert rows["mean"][0] == pytest.approx(roc_auc_score(y, seen))
    assert rows["mean"][1] <= rows["mean"][0] <= rows["mean"][2]
    assert rows["model - mean"][0] == pytest.approx(rows["model"][0] - rows["mean"][0])
    leaking = training | {0: slides.tolist()}
    with pytest.raises(ValueError, match="fold 0: a slide is in the training and in the test part"):
        mean_baseline.baseline(means, labels, tested, leaking, "p")


def test_repeats_are_averaged_and_patients_drawn_whole():
    tested = {
        "slide": np.array(["a", "b", "c", "d", "d", "c", "b", "a"]),
        "patient": np.array(["p", "p", "q", "q", "q", "q", "p", "p"]),
        "repeat": np.repeat([0, 1], 4),
        "label": np.array([1, 0, 1, 0, 0, 1, 0, 1]),
    }
    right, wrong = [0.9, 0.1, 0.8, 0.2], [0.8, 0.2, 0.1, 0.9]
    scores = {"one": np.array(right + wrong[::-1]), "two": np.array(right + right[::-1])}
    rows = mean_baseline.intervals(tested, scores, samples=100)
    first = roc_auc_score([1, 0, 1, 0], right)
    second = roc_auc_score([1, 0, 1, 0], [0.9, 0.1, 0.2, 0.8])
    assert rows["two"] == (1.0, 1.0, 1.0)
    assert first == 1
    assert rows["one"][0] == pytest.approx((first + roc_auc_score([0, 1, 0, 1], wrong[::-1])) / 2)
    assert second < first
