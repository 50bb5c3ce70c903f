import dataclasses
import io
import json
import re
import shutil

import numpy as np
import pytest
import zarr
from PIL import Image

from wsi_mil import heatmap, models, parallel, store
from wsi_mil.config import HeatmapConfig
from wsi_mil.errors import ConfigError, FormatError
from wsi_mil.geometry import PatchGeometry, grid_l0
from wsi_mil.heatmap import export, render

DIM, CLASSES = 6, ["normal", "tumor"]


def plan(**changes):
    values = {"width_l0": 2048, "height_l0": 1536, "mpp_l0": 0.5, "mpp": 0.5, "patch_px": 256}
    return PatchGeometry.plan(**(values | changes))


def head(**changes):
    identity = {"encoder": "net", "weights_digest": "f00d", "dim": DIM, "mpp": 0.5, "patch_px": 256}
    return {
        "model": "gated-attention", "identity": identity, "hidden_dim": 8, "attention_dim": 4, "dropout": 0.0,
        "task": {"task": "classification", "names": CLASSES}, "members": 1, "branches": "shared", "fold": 0,
    } | changes  # fmt: skip


def random_model(seed, the_head=None):
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = models.build(the_head or head())
        for member in model.members:  # attention starts at zero: the mean
            torch.nn.init.normal_(member.pool.w.weight)
    return model.eval()


def features_of(path, slide_id, n=12, seed=0, **changes):
    geometry = plan()
    values = np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float16)
    item = store.Features(
        slide_id=slide_id, slide_path=path, reader="openslide", geometry=geometry,
        coords=grid_l0(geometry)[:n], features=values, encoder="net", weights_digest="f00d",
        patches_digest="p", record={},
    )  # fmt: skip
    return dataclasses.replace(item, **changes)


@pytest.fixture
def run(make_slide, tmp_path):
    """A run with features of three slides, two of them cross-validated by a model of two folds."""
    folder = tmp_path / "run"
    for index, name in enumerate(("a", "b", "c")):
        features = features_of(make_slide(f"{name}.tiff"), name, seed=index)
        store.write_features(store.features_path(folder, "net", name), features)
    model = store.model_folder(folder, "m")
    model.mkdir(parents=True)
    for fold in (0, 1):
        store.write_fold(
            model / f"fold_{fold}.safetensors", models.tensors(random_model(fold)), head(fold=fold)
        )
    columns = ("slide_id", "patient_id", "label", "fold", "predicted")
    rows = [
        dict(zip(columns, row, strict=True))
        for row in (("a", "1", "tumor", 1, "tumor"), ("b", "2", "normal", 0, "x"))
    ]
    store.write_csv(model / "predictions.csv", columns, rows)
    digests = {"config_digest": "c", "features_digest": "f", "labels_digest": "l"}
    store.write_text(model / "metrics.json", json.dumps(digests))
    return folder


def draw(run, **changes):
    return heatmap.run(HeatmapConfig(**({"run": run, "overlay_px": 400} | changes)))


def test_minmax_and_percentile_are_the_formulas():
    values = np.array([0.1, 0.4, 0.2, 0.2], np.float32)
    assert heatmap.scale(values, "minmax") == pytest.approx([0, 1, 1 / 3, 1 / 3], abs=1e-6)
    assert heatmap.scale(values, "percentile") == pytest.approx([0, 1, 0.5, 0.5])
    for equal in ([0.5], [0.2, 0.2, 0.2]):
        for how in ("minmax", "percentile"):
            assert (heatmap.scale(np.array(equal, np.float32), how) == 0.5).all()


def test_the_slide_is_scored_by_the_fold_that_never_saw_it(run):
    assert not draw(run).failed
    for name, folds in (("a", [1]), ("b", [0]), ("c", [0, 1])):
        stored = store.read_heatmap(store.heatmap_folder(run, "m", name) / "heatmap.zarr")
        features = store.read_features(store.features_path(run, "net", name))
        expected = heatmap.score_slide(features.features, [random_model(fold) for fold in folds])
        assert stored.attention == pytest.approx(expected.attention, abs=1e-7)
        assert stored.attention.sum() == pytest.approx(1, abs=1e-5)
        assert list(stored.facts["prediction"].values()) == pytest.approx(expected.prediction, abs=1e-5)
    assert "mean of 2 folds" in stored.facts["drawn_by"]


def test_a_model_of_an_earlier_version_is_to_be_trained_again(run, monkeypatch):
    folder = store.model_folder(run, "m")
    tensors, the_head = store.read_fold(folder / "fold_0.safetensors")
    monkeypatch.setattr("wsi_mil.store.models.FORMAT_VERSION", 1)
    store.write_fold(folder / "fold_0.safetensors", tensors, the_head)
    monkeypatch.undo()
    with pytest.raises(FormatError, match=r"fold_0.*made by an earlier version.*Train the model again"):
        draw(run)


def test_a_slide_that_the_model_was_trained_on_is_said_to_be_one(run):
    """With one split into train and test, whoever is not tested was learnt from: not unseen evidence."""
    model = store.model_folder(run, "m")
    (model / "fold_1.safetensors").unlink()
    (model / "predictions.csv").write_text("slide_id,patient_id,label,fold,predicted\na,1,tumor,0,tumor\n")
    (model / "splits.csv").write_text("fold,member,slide_id,role\n0,0,a,test\n0,0,b,train\n")
    said = {each.slide_id: each.facts["drawn_by"] for each in draw(run).outcomes}
    assert said == {
        "a": "fold 0, which never saw this slide",
        "b": "the only fold, trained on this slide",
        "c": "the only fold",
    }


def test_raw_values_lie_on_the_grid_and_nowhere_else(run):
    draw(run, only=("a",))
    folder = store.heatmap_folder(run, "m", "a")
    assert {p.name for p in folder.iterdir()} == {
        "heatmap.zarr", "heatmap.ome.tiff", "heatmap.geojson", "patches.csv",
        "overlay.jpg", "top_patches.jpg", "bottom_patches.jpg",
    }  # fmt: skip
    group = zarr.open_group(folder / "heatmap.zarr", mode="r")
    grid = np.asarray(group["grid/attention"])[1]
    assert grid.shape == (6, 8)
    assert grid.ravel()[:12] == pytest.approx(np.asarray(group["values/attention"])[1])
    assert np.isnan(grid.ravel()[12:]).all()
    shapes = json.loads((folder / "heatmap.geojson").read_text())["features"]
    shapes = [each for each in shapes if each["properties"]["objectType"] == "cell"]
    assert shapes[9]["geometry"]["coordinates"][0][:3] == [[256, 256], [512, 256], [512, 512]]
    measured = [shape["properties"]["measurements"]["attention"] for shape in shapes]
    assert measured == pytest.approx(np.asarray(group["values/attention"])[1].tolist())


@pytest.mark.parametrize("mpp_l0", [0.5, 0.2527, 0.1238])
def test_a_value_lands_on_its_patch(mpp_l0):
    """A slide that is not square, downsamples that are not whole: every patch to half an overlay pixel."""
    geometry = plan(width_l0=5003, height_l0=3001, mpp_l0=mpp_l0)
    coords = grid_l0(geometry)
    values = np.arange(len(coords), dtype=np.float32)
    shape = (301, 503)
    raster = render.spread(values, coords, geometry, shape)
    for k, (x, y) in enumerate(coords.tolist()):
        centre = np.array([y, x]) + geometry.patch_size_l0 / 2
        row, column = (centre * np.array(shape) / (3001, 5003)).astype(int)
        assert raster[row, column] == k
    right = (coords[:, 0].max() + geometry.patch_size_l0) * 503 / 5003
    covered = np.flatnonzero(~np.isnan(raster).all(axis=0))
    assert abs(covered.max() + 1 - right) <= 0.5


def test_strips_of_a_raster_are_the_raster():
    """Of overlapping patches, some cut by a strip's edge, some smaller than a pixel."""
    geometry = plan(overlap_px=100, mpp_l0=0.3)
    coords = grid_l0(geometry)
    values = np.random.default_rng(0).normal(size=len(coords)).astype(np.float32)
    for shape in ((153, 204), (3, 4)):
        whole = render.spread(values, coords, geometry, shape)
        parts = list(render.strips(values, coords, geometry, shape, 10))
        assert [len(each) for each in parts] == [10] * (shape[0] // 10) + [3]
        assert np.concatenate(parts) == pytest.approx(whole, abs=1e-6, nan_ok=True)


def test_overlapping_patches_are_averaged():
    geometry = plan(overlap_px=128)
    coords = grid_l0(geometry)[:2]
    raster = render.spread(np.array([1, 3], np.float32), coords, geometry, (1536, 2048))
    assert (raster[0, 0], raster[0, 200], raster[0, 300]) == (1, 2, 3)
    assert np.isnan(raster[0, 500])
    assert np.isnan(raster[300, 0])


def test_only_patches_are_coloured():
    picture = np.full((10, 10, 3), 200, np.uint8)
    raster = np.full((10, 10), np.nan, np.float32)
    raster[2:4, 2:4] = 1.0
    mixed = render.blend(picture, raster, 0.5)
    expected = 0.5 * 200 + 0.5 * 255 * np.array(render.COLOURS(1.0)[:3])
    assert np.abs(mixed[3, 3] - expected).max() <= 1
    raster[2:4, 2:4] = 0.0  # the lowest value: a third of the opacity
    faint = 5 / 6 * 200 + 1 / 6 * 255 * np.array(render.COLOURS(0.0)[:3])
    assert np.abs(render.blend(picture, raster, 0.5)[3, 3] - faint).max() <= 1
    untouched = np.ones((10, 10), bool)
    untouched[2:4, 2:4] = False
    assert (mixed[untouched] == 200).all()


@pytest.mark.parametrize("width", [500, 605])  # 803 pixels in all: 8.03 x 100 is less than that
@pytest.mark.parametrize("height", [300, 505, 30])
def test_the_overlay_shows_the_slide_pixel_for_pixel(width, height):
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    png = render.overlay(picture, 4.0, "a $title$", render.Legend("attention"), 0.5, "png")
    figure = np.asarray(Image.open(io.BytesIO(png)))
    assert figure.shape[1] == width + 2 * 24 + 150
    top = figure.shape[0] - 24 - max(height, 300)
    shown = figure[top : top + height, 24 : 24 + width]
    beside = np.ones((height, width), bool)
    beside[-60:, :200] = False  # the scale bar
    assert (shown[beside] == picture[beside]).all()
    assert height < 60 or not (shown == picture).all(), "the scale bar is there"


def test_a_slide_that_is_gone_is_drawn_without_its_picture(run, tmp_path):
    (tmp_path / "slides" / "a.tiff").unlink()
    result = draw(run, only=("a",))
    assert not result.failed
    assert "drawn without the slide" in result.outcomes[0].facts["reason"]
    folder = store.heatmap_folder(run, "m", "a")
    assert (folder / "overlay.jpg").exists()
    assert not (folder / "top_patches.jpg").exists()


def test_run_twice_does_nothing_and_other_settings_are_refused(run):
    assert draw(run).count("done") == 3
    assert draw(run).count("skipped") == 3
    result = draw(run, normalize="percentile")
    assert "normalize was 'minmax' and is now 'percentile'" in result.failed[0].reason
    assert draw(run, normalize="percentile", overwrite=True).count("done") == 3


def test_features_of_another_encoder_are_refused(run, make_slide):
    other = features_of(make_slide("a.tiff"), "a", weights_digest="beef")
    store.write_features(store.features_path(run, "net", "a"), other)
    result = draw(run)
    assert [each.slide_id for each in result.failed] == ["a"]
    assert "weights_digest 'f00d', these are of weights_digest 'beef'" in result.failed[0].reason


def test_a_slide_without_patches_fails_alone(run, make_slide):
    store.write_features(store.features_path(run, "net", "a"), features_of(make_slide("a.tiff"), "a", n=0))
    result = draw(run)
    assert [(each.slide_id, "0 patches" in each.reason) for each in result.failed] == [("a", True)]
    assert result.count("done") == 2


def test_unknown_slides_and_models_are_named(run):
    with pytest.raises(ConfigError, match=r"--only zz: no features of net in .*; there are a, b, c"):
        draw(run, only=("zz",))
    with pytest.raises(FormatError, match=r"no such model; run `wsi-mil train` first"):
        draw(run, name="none")


def test_a_slide_with_an_odd_name(run, make_slide):
    name = "ä b <i>$x_1$ 😀 病理"
    store.write_features(store.features_path(run, "net", name), features_of(make_slide("a.tiff"), name))
    assert not draw(run, only=(name,)).failed


def test_a_long_title_is_wrapped_and_not_cut():
    picture = np.zeros((100, 100, 3), np.uint8)
    short, long = (
        np.asarray(Image.open(io.BytesIO(render.overlay(picture, 4.0, title, render.Legend("x"), 0.5))))
        for title in ("TCGA-AA", "TCGA-AA-3510-01Z-00-DX1 " * 6)
    )
    assert long.shape[0] > short.shape[0]
    assert (long[:, -10:] > 200).all(), "no ink in the right margin"


def test_what_a_killed_process_leaves_is_no_heatmap(run, monkeypatch):
    def killed(*_args):
        raise KeyboardInterrupt

    def here(function, tasks, *_others):
        for slide_id, task in tasks.items():
            yield parallel.attempt(slide_id, function, task)

    with monkeypatch.context() as patched:
        patched.setattr(parallel.places, "in_processes", here)
        patched.setattr(export, "write_geojson", killed)
        with pytest.raises(KeyboardInterrupt):
            draw(run, only=("a",))
    output = store.heatmap_folder(run, "m", "a")
    assert list(output.parent.iterdir()) == []
    assert draw(run, only=("a",)).count("done") == 1
    assert output.is_dir()


def test_heatmaps_of_zarr_are_those_of_hdf5(run, tmp_path):
    assert not heatmap.run(HeatmapConfig(run=run)).failed
    hdf5 = store.open_features(run, "net")
    other = tmp_path / "other"
    zarr_features = store.open_features(other, "net", "zarr")
    for slide_id in hdf5.slide_ids():
        zarr_features.write(hdf5.read(slide_id))
    shutil.copytree(run / "models", other / "models")
    assert not heatmap.run(HeatmapConfig(run=other)).failed
    for slide_id in ("a", "b", "c"):
        one, two = (
            store.read_heatmap(store.heatmap_folder(each, "m", slide_id) / "heatmap.zarr")
            for each in (run, other)
        )
        assert (one.attention == two.attention).all()
        assert (one.coords == two.coords).all()


def test_patches_that_are_not_on_one_grid_are_drawn_where_they_lie(run, wsi):
    """Imported from a tool that lays a grid into every piece of tissue; the slide is not known."""
    coords = np.array([[40, 30], [296, 30], [1500, 1100]])
    item = features_of("", "a", n=3, coords=coords)
    store.write_features(store.features_path(run, "net", "a"), item)
    code, out, err = wsi("heatmap", "--run", run, "--only", "a", "--workers", 1)
    assert (code, "drawn without the slide: slide a is not found: no file of the run says" in out) == (
        0,
        True,
    ), err
    folder = next((run / "heatmaps").glob("*/a"))
    group = zarr.open_group(folder / "heatmap.zarr", mode="r")
    assert group.attrs["grid"] == "area-weighted means of the patches in a cell"
    grid, attention = np.asarray(group["grid/attention"])[1], np.asarray(group["values/attention"])[1]
    assert grid.shape == (6, 8)
    first, second, third = attention.tolist()
    assert grid[0, 0] == pytest.approx(first)
    assert grid[0, 1] == pytest.approx((40 * first + 216 * second) / 256)  # 40 columns of the first reach in
    assert grid[4, 5] == pytest.approx(third)
    assert np.isnan(grid).sum() == 48 - 6 - 4
    boxes = [
        each["geometry"]["coordinates"][0][0]
        for each in json.loads((folder / "heatmap.geojson").read_text())["features"]
        if each["properties"]["objectType"] == "cell"
    ]
    assert boxes == coords.tolist()


def test_patches_may_reach_over_the_edges(run, wsi):
    """As those of TRIDENT do; they have a cell too."""
    coords = np.array([[0, 0], [256 * 7, 256 * 6], [256 * 8, 0]])
    geometry = plan(width_l0=2100)
    item = features_of("", "a", n=3, coords=coords, geometry=geometry)
    assert geometry.grid_shape_rc == (6, 8)
    heatmap_ = store.Heatmap(
        slide_id="a", geometry=geometry, coords=item.coords, facts={}, record={},
        values={"attention": np.array([[1, 2, 3]], np.float32)}, outputs=("x",),
        shown={"quantity": "attention", "output": "x"},
    )  # fmt: skip
    grid = heatmap_.grid()
    assert grid.shape == (7, 9)
    assert (grid[0, 0], grid[6, 7], grid[0, 8]) == (1, 2, 3)
    assert np.isnan(grid).sum() == 60


def test_a_heatmap_comes_back_as_it_was_written(tmp_path):
    """Every value of every quantity and output, also of patches between those of the grid."""
    geometry, rng = plan(), np.random.default_rng(0)
    coords = grid_l0(geometry)[[0, 3, 9, 40]]
    written = store.Heatmap(
        slide_id="a", geometry=geometry, coords=coords, outputs=("normal", "tumor", "other"),
        values={name: rng.normal(size=(3, 4)).astype(np.float32) for name in store.QUANTITIES},
        shown={"quantity": "evidence", "output": "tumor"}, facts={"model": "m"}, record={"seed": 1},
        dense_coords=coords[:2] + 128,
        dense_values={name: np.ones((3, 2), np.float32) for name in store.QUANTITIES},
    )  # fmt: skip
    path = tmp_path / "heatmap.zarr"
    store.write_heatmap(path, written)
    read = store.read_heatmap(path)
    for field in ("slide_id", "geometry", "outputs", "shown", "facts", "record"):
        assert getattr(read, field) == getattr(written, field)
    assert (read.coords == coords).all()
    assert (read.dense_coords == coords[:2] + 128).all()
    for name, values in written.values.items():
        assert (read.values[name] == values).all()
        assert (read.dense_values[name] == written.dense_values[name]).all()
    assert (read.drawn == written.values["evidence"][1]).all()
    assert (read.attention == written.values["attention"][1]).all()
    grid = np.asarray(zarr.open_group(path, mode="r")["grid/probability"])
    assert grid.shape == (3, 6, 8)
    assert (grid[2].ravel()[[0, 3, 9, 40]] == written.values["probability"][2]).all()
    assert np.isnan(grid).sum() == 3 * (48 - 4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format_version": 1}, "made by an earlier version.*Draw it again"),
        ({"format_version": 3}, "made by a newer version"),
        ({"format": "another"}, "says it is 'another'"),
    ],
)
def test_a_heatmap_of_another_version_is_refused(run, change, words):
    draw(run, only=("a",))
    path = store.heatmap_folder(run, "m", "a") / "heatmap.zarr"
    zarr.open_group(path, mode="a").attrs.update(change)
    with pytest.raises(FormatError, match=words):
        store.read_heatmap(path)
    assert re.search(words, draw(run, only=("a",)).failed[0].reason)
    assert not draw(run, only=("a",), overwrite=True).failed
    assert store.read_heatmap(path).outputs == tuple(CLASSES)


def test_damaged_values_are_noticed(run):
    draw(run, only=("a",))
    path = store.heatmap_folder(run, "m", "a") / "heatmap.zarr"
    zarr.open_group(path, mode="a")["values/attention"][1, 3] = 0.7
    with pytest.raises(FormatError, match="values/attention has other values than were written"):
        store.read_heatmap(path)
