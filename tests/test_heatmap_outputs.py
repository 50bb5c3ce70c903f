"""What one call of heatmap writes: every file opened by a program that knows its format."""

import csv
import dataclasses
import json
import shutil
import uuid
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import shapely
import tifffile
import tiffslide
import torch
from PIL import Image

from tests.test_heatmap import DIM, draw, features_of, head, plan, random_model, run
from tests.tiffs import texture, write_tiff
from wsi_mil import embed, encoders, models, store
from wsi_mil.config import HeatmapConfig
from wsi_mil.errors import ConfigError, FormatError, SlideError
from wsi_mil.geometry import boxes_rc, grid_l0
from wsi_mil.heatmap import check, dense, export, faithfulness, render, scale
from wsi_mil.heatmap import draw as drawing
from wsi_mil.heatmap.draw import Task
from wsi_mil.slide import open_slide
from wsi_mil.store.verify_outputs import check_heatmap

__all__ = ["run"]  # a fixture


def folder_of(run, slide_id="a"):
    return store.heatmap_folder(run, "m", slide_id)


def stored(run, slide_id="a"):
    return store.read_heatmap(folder_of(run, slide_id) / "heatmap.zarr")


def test_evidence_in_the_file_sums_with_the_bias_to_the_logit(run):
    draw(run, only=("a", "c"), show="evidence")
    for slide_id, folds in (("a", [1]), ("c", [0, 1])):
        heatmap_ = stored(run, slide_id)
        assert heatmap_.shown == {"quantity": "evidence", "output": "tumor"}
        assert set(heatmap_.values) == {"attention", "evidence", "probability"}
        features = store.read_features(store.features_path(run, "net", slide_id)).features
        log_odds = np.mean(
            [np.diff(random_model(fold).bag(features).logits_BC.detach().numpy()[0])[0] for fold in folds]
        )
        total = heatmap_.values["evidence"].sum(axis=1, dtype=np.float64)
        for name, sign in (("tumor", 1), ("normal", -1)):
            row = heatmap_.row(name)
            assert total[row] + heatmap_.facts["bias"][name] == pytest.approx(sign * log_odds, abs=1e-5)
            assert heatmap_.facts["logit"][name] == pytest.approx(sign * log_odds, abs=1e-5)


def test_the_class_shown_can_be_chosen_and_an_unknown_one_is_named(run):
    draw(run, only=("a",), output_class="normal", show="probability")
    assert stored(run).shown == {"quantity": "probability", "output": "normal"}
    with pytest.raises(
        ConfigError, match=r"--output-class tumour: the model has no such output.*normal, tumor"
    ):
        draw(run, output_class="tumour")


def test_what_a_model_lacks_is_said(run):
    the_head = head(model="instance-noisy-or")
    for fold in (0, 1):
        model = models.build(the_head)
        path = store.model_folder(run, "m") / f"fold_{fold}.safetensors"
        store.write_fold(path, models.tensors(model), the_head | {"fold": fold})
    with pytest.raises(
        ConfigError, match=r"--show evidence: not with this model: .*noisy-or.*It has attention, prob"
    ):
        draw(run, show="evidence")
    assert not draw(run, only=("a",)).failed
    assert "noisy-or" in stored(run).facts["not_available"]["evidence"]


def test_the_ome_tiff_lies_over_the_slide(run):
    draw(run, only=("a",))
    path, heatmap_ = folder_of(run) / "heatmap.ome.tiff", stored(run)
    geometry = heatmap_.geometry
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_ome
        levels = [level.shape for level in tiff.series[0].levels]
        assert levels == [(768, 1024, 3), (384, 512, 3)]
        pixels = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]["Pixels"]
        image = tiff.asarray()
        small = tiff.series[0].levels[1].asarray()
    assert pixels["PhysicalSizeXUnit"] == "µm"
    assert pixels["PhysicalSizeX"] * pixels["SizeX"] == pytest.approx(geometry.width_l0 * geometry.mpp_l0)
    assert pixels["PhysicalSizeY"] * pixels["SizeY"] == pytest.approx(geometry.height_l0 * geometry.mpp_l0)
    with tiffslide.TiffSlide(path) as slide:
        assert slide.properties["tiffslide.mpp-x"] == pytest.approx(pixels["PhysicalSizeX"], rel=1e-4)
        assert slide.level_dimensions == ((1024, 768), (512, 384))
        assert (np.asarray(slide.read_region((0, 0), 0, (1024, 768)).convert("RGB")) == image).all()
    colours = render.colours_of(scale(heatmap_.attention, "minmax"))
    for shown in (image, small):
        boxes = boxes_rc(heatmap_.coords, geometry, shown.shape[:2])
        for (top, left, bottom, right), colour in zip(boxes, colours, strict=True):
            assert (shown[int((top + bottom) / 2), int((left + right) / 2)] == colour).all()
        assert (shown[-1, -1] == 255).all(), "white where there is no patch"


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_drawn_twice_it_is_the_same_bytes(run, kind):
    """Every file; and another map has another identity."""

    def contents():
        files = sorted(path for path in folder_of(run).rglob("*") if path.is_file())
        return {str(path.relative_to(folder_of(run))): path.read_bytes() for path in files}

    def identity():
        with tifffile.TiffFile(folder_of(run) / "heatmap.ome.tiff") as tiff:
            return uuid.UUID(tifffile.xml2dict(tiff.ome_metadata)["OME"]["UUID"].removeprefix("urn:uuid:"))

    draw(run, only=("a",), format=kind)
    first, known = contents(), identity()
    assert {f"overlay.{kind}", "heatmap.ome.tiff", "heatmap.geojson", "patches.csv"} <= first.keys()
    shutil.rmtree(folder_of(run))
    draw(run, only=("a",), format=kind)
    again = contents()
    assert [name for name in first if first[name] != again[name]] == []
    draw(run, only=("a",), format=kind, normalize="percentile", overwrite=True)
    assert identity() != known


def test_qupath_can_open_the_geojson(run):
    """Its conventions: a FeatureCollection; UUIDs, each once; closed rings; objectType; numbers measured."""
    draw(run, only=("a",), top_part=0.25)
    text = (folder_of(run) / "heatmap.geojson").read_text(encoding="utf-8")
    shapes = shapely.get_parts(shapely.from_geojson(text))
    found, heatmap_ = json.loads(text), stored(run)
    assert found["type"] == "FeatureCollection"
    assert shapely.is_valid(shapes).all()
    assert {each.geom_type for each in shapes} == {"Polygon"}
    ids = [uuid.UUID(each["id"]) for each in found["features"]]
    assert len(set(ids)) == len(ids)
    cells = [each for each in found["features"] if each["properties"]["objectType"] == "cell"]
    assert len(cells) == len(heatmap_.coords)
    for each, (x, y), value in zip(cells, heatmap_.coords, heatmap_.attention, strict=True):
        ring = each["geometry"]["coordinates"][0]
        assert ring[0] == ring[-1] == [x, y]
        assert each["properties"]["measurements"]["attention"] == pytest.approx(value, rel=1e-6)
        assert all(isinstance(number, float | int) for number in each["properties"]["measurements"].values())
    regions = [each for each in found["features"] if each["properties"]["objectType"] == "annotation"]
    top = np.argsort(-heatmap_.attention)[:3]  # a quarter of 12
    outlined = shapely.union_all(shapes[len(cells) :])
    size = heatmap_.geometry.patch_size_l0
    x, y = heatmap_.coords[top].T
    assert outlined.equals(shapely.union_all(shapely.box(x, y, x + size, y + size)))
    assert sum(each["properties"]["measurements"]["patches"] for each in regions) == 3
    assert all(set(each["properties"]["classification"]) == {"name", "color"} for each in regions)


def test_top_regions_of_overlapping_patches_are_joined():
    geometry = plan(overlap_px=128)
    coords = grid_l0(geometry)[[0, 1, 40]]
    regions = export.top_regions(coords, geometry, np.array([1, 3, 2], np.float32), 1.0)
    assert [(name, each["patches"], each["mean"]) for name, _, each in regions] == [
        ("top region 1", 2, 2.0), ("top region 2", 1, 2.0),
    ]  # fmt: skip
    assert regions[0][1].area == 256 * 384


def test_the_table_has_value_percentile_and_rank(run):
    draw(run, only=("a",))
    with (folder_of(run) / "patches.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    heatmap_ = stored(run)
    assert [(int(row["x_l0"]), int(row["y_l0"])) for row in rows] == [tuple(each) for each in heatmap_.coords]
    for column, values in (
        ("attention", heatmap_.attention),
        ("evidence tumor", heatmap_.values["evidence"][1]),
    ):
        assert [float(row[column]) for row in rows] == pytest.approx(values.tolist(), rel=1e-6)
        ranks = scipy.stats.rankdata(-values, method="min")
        assert [int(row[f"{column}_rank"]) for row in rows] == ranks.tolist()
        lower = [(values < each).sum() / 11 * 100 for each in values]  # there are no ties
        assert [float(row[f"{column}_percentile"]) for row in rows] == pytest.approx(lower, abs=1e-3)


def test_top_and_bottom_patches_are_shown_pixel_for_pixel(run):
    draw(run, only=("a",), format="png", top_patches=2)
    heatmap_ = stored(run)
    order = np.argsort(-heatmap_.attention, kind="stable")
    with open_slide(features_path(run)) as slide:
        for name, rows in (("top", order[:2]), ("bottom", order[::-1][:2])):
            page = np.asarray(Image.open(folder_of(run) / f"{name}_patches.png"))
            for place, row in enumerate(rows):
                left = 8 + place * (256 + 8)
                expected = slide.read_level(0, *heatmap_.coords[row].tolist(), 256, 256)
                assert (page[8 : 8 + 256, left : left + 256] == expected).all()
    assert (folder_of(run) / "overlay.png").exists()
    assert not (folder_of(run) / "overlay.jpg").exists()
    assert check_heatmap(folder_of(run)) == []
    (folder_of(run) / "overlay.png").write_bytes((folder_of(run) / "overlay.png").read_bytes()[:-9])
    assert [Path(each.file).name for each in check_heatmap(folder_of(run))] == ["overlay.png"]


def features_path(run):
    return store.read_features(store.features_path(run, "net", "a")).slide_path


def test_signed_values_keep_0_in_the_middle():
    values = np.array([-1, 0, 0.5, 4], np.float32)
    for how in ("minmax", "none"):
        assert scale(values, how, signed=True) == pytest.approx([0.375, 0.5, 0.5625, 1])
    ranked = scale(values, "percentile", signed=True)
    assert ranked[1] == 0.5
    assert ranked[0] < 0.5 < ranked[2] < ranked[3]
    assert scale(np.array([0.2, 0.6], np.float32), "none") == pytest.approx([0.2, 0.6])
    middle = render.colours_of(np.array([0.5], np.float32), signed=True)[0]
    assert middle.min() > 240
    against, for_ = render.colours_of(np.array([0, 1], np.float32), signed=True).astype(int)
    assert against[2] > against[0]
    assert for_[0] > for_[2]


def test_smoothing_changes_the_picture_and_says_so(run):
    draw(run, only=("a",), format="png")
    plain, values = np.asarray(Image.open(folder_of(run) / "overlay.png")), stored(run).values
    draw(run, only=("a",), format="png", smooth=1.0, overwrite=True)
    smooth = np.asarray(Image.open(folder_of(run) / "overlay.png"))
    assert smooth.shape[0] > plain.shape[0], "a line more in the title"
    assert (stored(run).values["attention"] == values["attention"]).all()
    raster = np.full((40, 40), np.nan, np.float32)
    raster[10:20, 10:30] = 1
    raster[10:20, 20:30] = 3
    blurred = render.smoothed(raster, 3)
    assert (np.isnan(blurred) == np.isnan(raster)).all()
    assert 1.5 < blurred[15, 20] < 2.5
    assert np.nanmin(blurred) >= 1
    assert np.nanmax(blurred) <= 3


def test_the_picture_of_a_slide_that_lies_elsewhere_is_an_error(run, make_slide):
    """The slide was replaced by one of other tissue, or one of another size, under the same name."""
    draw(run, only=("a",))
    assert stored(run).facts["alignment"]["largest_off_px"] <= 0.5
    make_slide("a.tiff", width=2304)
    result = draw(run, only=("a",), overwrite=True, opacity=0.5)
    assert "2304 x 1536 pixels, and its patches are of a slide of 2048 x 1536" in result.failed[0].reason


@pytest.mark.parametrize("shift", [0, 0.25, 0.75, 2, 30])
def test_a_crooked_picture_is_noticed(tmp_path, shift):
    path = write_tiff(tmp_path / "a.tiff", texture(2048, 1536), kind="deflate")
    geometry = plan()
    with open_slide(path) as slide:
        picture = slide.thumbnail(2048 * 0.5 / 700)
        rows = np.clip(np.arange(picture.shape[0]) + shift, 0, picture.shape[0] - 1)
        low, part = rows.astype(int), (rows % 1)[:, None, None]
        moved = picture[low] * (1 - part) + picture[np.minimum(low + 1, len(picture) - 1)] * part
        moved = np.rint(moved).astype(np.uint8)
        if shift <= 0.5:
            assert check.check_alignment(slide, moved, grid_l0(geometry), geometry).judged > 3
            return
        with pytest.raises(SlideError, match="does not lie over the slide"):
            check.check_alignment(slide, moved, grid_l0(geometry), geometry)


def test_finer_patches_lie_in_the_top_region_only():
    geometry = plan()
    coords = grid_l0(geometry)
    values = np.zeros(len(coords), np.float32)
    values[9] = 1  # row 1, column 1
    found = dense.finer(coords, geometry, values, 0.01, 0.5)
    expected = {(x, y) for x in (128, 256, 384) for y in (128, 256, 384)} - {(256, 256)}
    assert {tuple(each) for each in found.tolist()} == expected
    corner = np.zeros(len(coords), np.float32)
    corner[0] = 1
    assert {tuple(each) for each in dense.finer(coords, geometry, corner, 0.01, 0.5).tolist()} == {
        (0, 128), (128, 0), (128, 128),
    }  # fmt: skip


class Means(torch.nn.Module):
    """Six means of each patch: all it takes to see which patch was embedded."""

    def forward(self, x):
        return torch.cat([x.mean(dim=(2, 3)), x[:, :, :32].mean(dim=(2, 3))], dim=1)


def test_the_top_regions_are_embedded_again_where_asked(run, tmp_path):
    """Through embed's own functions; the bag, its prediction and its values stay as they are."""
    encoders.register("net", Means, input_px=64, mean=(0.5,) * 3, std=(0.25,) * 3)
    encoder = encoders.load_encoder("net")
    path = write_tiff(tmp_path / "a.tiff", texture(2048, 1536), kind="deflate")
    geometry = plan()
    patches = store.Patches(
        slide_id="a", slide_path=path, reader="auto", mpp_source="", geometry=geometry, record={},
        coords=grid_l0(geometry)[:12], tissue_fraction=np.ones(12, np.float32),
    )  # fmt: skip
    with open_slide(path) as slide:
        made = embed.embed_slide(slide, patches, encoder)
    item = features_of(path, "a", features=made.features, weights_digest=encoder.weights_digest)
    store.write_features(store.features_path(run, "net", "a"), item)
    for fold in (0, 1):
        the_head = head(fold=fold)
        the_head["identity"] = the_head["identity"] | {"weights_digest": encoder.weights_digest}
        path_ = store.model_folder(run, "m") / f"fold_{fold}.safetensors"
        store.write_fold(path_, models.tensors(random_model(fold)), the_head)
    draw(run, only=("a",))
    plain = stored(run)
    result = draw(run, only=("a",), overlap=0.5, top_part=0.2, overwrite=True)
    assert not result.failed, result.failed
    found = stored(run)
    assert (found.attention == plain.attention).all()
    assert found.facts["prediction"] == plain.facts["prediction"]
    expected = dense.finer(found.coords, geometry, found.attention, 0.2, 0.5)
    assert (found.dense_coords == expected).all()
    with open_slide(path) as slide:
        finer = embed.embed_slide(slide, dataclasses.replace(patches, coords=expected), encoder).features
    both = models.explain(random_model(1), made.features, finer)
    for name, values in found.dense_values.items():
        assert values == pytest.approx(both.values[name][:, 12:].numpy(), abs=1e-6)


def test_weights_of_another_kind_do_not_make_a_map_finer(run):
    features = store.read_features(store.features_path(run, "net", "a"))
    with (
        open_slide(features.slide_path) as slide,
        pytest.raises(FormatError, match="--overlap: e has weights 1 here"),
    ):
        dense.embed_finer(slide, features, features.coords, SimpleNamespace(name="e", weights_digest="1"))


def test_deletion_and_insertion_are_predictions_of_what_is_left(run):
    model = random_model(0)
    x = np.random.default_rng(3).normal(size=(40, DIM)).astype(np.float16)
    values = np.random.default_rng(4).normal(size=40).astype(np.float32)
    found = faithfulness.curves([model], x, values, "tumor", draws=3, seed=0)
    order = np.argsort(-values)
    for step, fraction in enumerate(faithfulness.FRACTIONS):
        gone = round(fraction * 40)
        for kept, curve in ((order[gone:], found.deletion), (order[: 40 - gone], found.insertion)):
            p = model.task.predict(model.bag(x[kept]).logits_BC)[0, 1]
            assert curve[step] == pytest.approx(p, abs=1e-5)
    again = faithfulness.curves([model], x, values, "tumor", draws=3, seed=0)
    assert (again.random == found.random).all()
    figures = found.figures()
    expected = np.trapezoid(found.random.mean(0) - found.deletion, faithfulness.FRACTIONS)
    assert figures["deletion_area"] == pytest.approx(expected)


def test_a_map_of_the_true_contributions_beats_random_and_its_opposite_does_not():
    """By construction: only some patches speak for the class."""
    the_head = head(model="mean", hidden_dim=0)
    model = models.build(the_head)
    with torch.no_grad():
        model.members[0].classify.weight.copy_(torch.tensor([[0.0] * DIM, [1.0] + [0.0] * (DIM - 1)]))
        model.members[0].classify.bias.zero_()
    x = np.random.default_rng(5).normal(size=(60, DIM)).astype(np.float16)
    for sign in (1, -1):
        figures = faithfulness.curves(
            [model.eval()], x, sign * x[:, 0].astype(np.float32), "tumor", draws=20, seed=0
        )
        for name, value in figures.figures().items():
            if "area" in name:
                assert sign * value > 0
            else:
                assert value == (sign > 0)


def test_faithfulness_and_annotations_of_a_cohort(run, tmp_path):
    """Also of maps that are there already: both leave them as they are."""
    draw(run)
    outlines = tmp_path / "outlines"
    outlines.mkdir()
    ring = [[0, 0], [600, 0], [600, 600], [0, 600], [0, 0]]
    feature = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    (outlines / "a.geojson").write_text(json.dumps([feature]), encoding="utf-8")
    (outlines / "b.geojson").write_text("no json", encoding="utf-8")
    result = draw(run, faithfulness=True, annotations=outlines, draws=5)
    assert [each.slide_id for each in result.failed] == ["b"]
    assert "b.geojson: cannot be read as GeoJSON outlines" in result.failed[0].reason
    parent = folder_of(run).parent
    rows = {row["slide_id"]: row for row in store.read_csv(parent / "faithfulness.csv")}
    assert set(rows) == {"a", "c"}
    features = store.read_features(store.features_path(run, "net", "a")).features
    expected = faithfulness.curves([random_model(1)], features, stored(run).drawn, "tumor", draws=5, seed=0)
    for name, value in expected.figures().items():
        assert float(rows["a"][name]) == pytest.approx(value, abs=1e-6)
    assert (
        json.loads((parent / "faithfulness.json").read_text())["cohort"]["all"]["deletion_area"]["slides"]
        == 2
    )
    (row,) = store.read_csv(parent / "annotations.csv")
    values = stored(run).drawn.astype(np.float64)
    inside = np.zeros(12, bool)
    inside[[0, 1, 8, 9]] = True  # 88 / 256 of the next ones
    pairs = [(high > low) + (high == low) / 2 for high in values[inside] for low in values[~inside]]
    assert float(row["auroc"]) == pytest.approx(np.mean(pairs))
    above = values > values.mean()
    assert float(row["dice"]) == pytest.approx(2 * (above & inside).sum() / (above.sum() + 4))


def test_no_features_of_the_models_encoder(run):
    (run / "features" / "net").rename(run / "features" / "other")
    with pytest.raises(
        ConfigError, match=r"no features of net \(there are: other\); run `wsi-mil embed` with that encoder"
    ):
        draw(run)


def test_a_model_of_a_newer_version_is_refused(run, monkeypatch):
    path = store.model_folder(run, "m") / "fold_0.safetensors"
    tensors, the_head = store.read_fold(path)
    monkeypatch.setattr("wsi_mil.store.models.FORMAT_VERSION", 99)
    store.write_fold(path, tensors, the_head)
    monkeypatch.undo()
    with pytest.raises(FormatError, match=r"fold_0.*format version 99, this program knows 2; update wsi-mil"):
        draw(run)


@pytest.mark.parametrize("name", ["..", ".", "../x", "a/b", "/tmp/x", "../../../x", "", "a/"])
def test_a_slide_named_like_a_folder_above_is_refused(run, make_slide, name):
    """Though its features are where such a name leads: asked for by name, and where it comes to drawing."""
    path = Path(f"{store.features_path(run, 'net', 'x').parent}/{name}.h5")
    if path.parent.is_relative_to(run.parent):
        store.write_features(path, features_of(make_slide("a.tiff"), name))
    before = sorted(run.parent.rglob("*"))
    with pytest.raises(ConfigError, match=r"no features of net in .*; there are a, b, c"):
        draw(run, only=(name,))
    config = HeatmapConfig(run=run, overlay_px=400)
    task = Task(name, config, "m", "net", prediction=None, learnt=False, model_digest="d")
    with pytest.raises(FormatError, match=r"cannot be a folder's name; rename the slide"):
        drawing.draw(task)
    assert sorted(run.parent.rglob("*")) == before, "nothing was written anywhere"


def test_a_store_whose_names_lead_elsewhere_is_not_drawn_there(run):
    """Also where the features themselves say that they are of such a slide."""
    path = store.features_path(run, "net", "a")
    store.write_features(path, dataclasses.replace(store.read_features(path), slide_id="../x"))
    result = draw(run)
    assert not (run / "heatmaps" / "m" / "x").exists()
    assert not (run / "heatmaps" / "x").exists()
    assert [each.slide_id for each in result.outcomes] == ["a", "b", "c"]


def test_annotations_want_a_folder(run, tmp_path):
    with pytest.raises(ConfigError, match=r"--annotations .*: no such folder"):
        HeatmapConfig(run=run, annotations=tmp_path / "none")
