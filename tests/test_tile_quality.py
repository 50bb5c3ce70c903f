"""Columns beside the coords, what they leave out, and the other ways to say where tissue is."""

import csv
import io
import json
import tarfile
import zipfile

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from benchmarks.drawn_slides import PENS
from pipelines.pyramid import write_pyramid
from tests.conftest import break_blocks, draw_slide
from wsi_mil import store, tile
from wsi_mil.config import TileConfig
from wsi_mil.errors import ConfigError, FormatError
from wsi_mil.geometry import cells_rc
from wsi_mil.slide import open_slide
from wsi_mil.tile.preview import REASON_RGB
from wsi_mil.tile.quality import focus_of_squares
from wsi_mil.tile.sample import hilbert, sample

LAYOUT = {"patch_px": 128, "tissue_mpp": 4.0, "min_area_um2": 400, "max_hole_um2": 400, "workers": 1}


def table(run):
    with (run / "tile" / "slides.csv").open(newline="") as file:
        return {row["slide_id"]: row for row in csv.DictReader(file)}


def read(run, slide_id="a"):
    return store.read_patches(store.patches_path(run, slide_id))


@pytest.fixture
def blurred_half(tmp_path):
    """A slide that is all tissue: its right half is out of focus, and a pen ran over its lower quarter."""
    image = draw_slide(1536, 1024, ((0, 0, 1536, 1024),))
    speckle = np.random.default_rng(1).normal(0, 40, (256, 384, 1))  # nuclei, 4 pixels wide
    dots = cv2.resize(speckle, (1536, 1024), interpolation=cv2.INTER_NEAREST)[..., None]
    image = np.clip(image + dots, 0, 255).astype(np.uint8)
    image[:, 768:] = cv2.GaussianBlur(image, (0, 0), 6)[:, 768:]
    image[768:] = PENS["blue"]
    path = tmp_path / "slides" / "a.tiff"
    path.parent.mkdir()
    write_pyramid(path, image, 0.5)
    return path


def test_columns_say_what_is_wrong_with_each_patch(blurred_half, tmp_path):
    config = TileConfig(slides=blurred_half, run=tmp_path, qc="pixels", max_pen=1.0, min_tissue=0.0, **LAYOUT)
    with open_slide(blurred_half) as slide:
        patches = tile.tile_slide(slide, config).patches
    assert set(patches.quality) == {
        "pen_fraction",
        "saturation",
        "whiteness",
        "blackness",
        "focus",
        "blur_um",
    }
    x, y = patches.coords.T
    pen, focus = patches.quality["pen_fraction"], patches.quality["focus"]
    assert (pen[y >= 768] > 0.95).all()
    assert (pen[y < 640] == 0).all()
    clear = y < 640
    assert focus[clear & (x < 768)].min() > 10 * focus[clear & (x >= 768)].max()
    blur = patches.quality["blur_um"]  # of dots of one size, which are not softer than they are small
    assert blur[clear & (x < 640)].max() < 1.5
    assert blur[clear & (x >= 768)].min() > 1.5
    assert (patches.quality["whiteness"][clear] == 0).all()
    assert (patches.quality["saturation"][clear] > 0.2).all()


@pytest.mark.parametrize("least", [{"min_focus": 100.0}, {"max_blur_um": 1.5}])
def test_each_reason_counts_what_it_removed_and_the_table_says_it(blurred_half, tmp_path, least):
    run = tmp_path / "run"
    settings = LAYOUT | {"slides": blurred_half, "run": run, "qc": "pixels"} | least
    assert not tile.run(TileConfig(**settings)).failed
    patches, row = read(run), table(run)["a"]
    assert sorted({tuple(each) for each in patches.coords.tolist()}) == sorted(
        (x, y) for x in range(0, 768, 128) for y in range(0, 768, 128)
    )
    removed = patches.notes["removed"]
    assert removed["focus"] == 6 * 6
    assert removed["pen"] == 2 * 12
    assert len(patches.coords) + sum(removed.values()) == 12 * 8
    assert {name: int(row[f"removed_{name}"]) for name in ("tissue", "pen", "focus")} == {
        name: removed[name] for name in ("tissue", "pen", "focus")
    }
    assert (patches.quality["focus"] >= 100).all()
    assert (patches.quality["blur_um"] <= 1.5).all()
    preview = cv2.imread(str(run / "patches" / "a.jpg"))[..., ::-1].astype(int)
    for name in ("pen", "focus"):  # JPEG, and 0.4 of the picture below the frames
        frame = np.abs(preview * 1.0 - REASON_RGB[name]).sum(axis=2)
        assert frame.min() < 260, name


def test_a_patch_is_as_blurred_as_most_of_it():
    rng = np.random.default_rng(0)
    patch = rng.integers(0, 255, (64, 64)).astype(np.uint8)
    patch[:, 24:] = 128
    squares = focus_of_squares(patch).reshape(4, 4)
    assert (squares[:, 2:] == 0).all()
    assert (squares[:, 0] > 1000).all()


def test_a_patch_that_cannot_be_read_has_no_focus_and_is_said(tmp_path):
    path = tmp_path / "slides" / "a.tiff"
    path.parent.mkdir()
    write_pyramid(path, draw_slide(1024, 1024, ((0, 0, 1024, 1024),)), 0.5)
    with open_slide(path) as slide:
        picture = slide.thumbnail(4.0)
    break_blocks(path)
    with open_slide(path) as slide:
        config = TileConfig(slides=path, run=tmp_path, qc="pixels", min_focus=1.0, **LAYOUT)
        plan = tile.grid.plan_of(slide, config, 0.5)
        patches = tile.grid.tile_picture(slide, picture, plan, config, "a").patches
    assert len(patches.coords) == 64
    assert (patches.quality["focus"] == -1).all()
    assert (patches.quality["blur_um"] == -1).all()


def annotate(path, *rings, name="Tumor", kind="Polygon"):
    """Write annotations, as QuPath exports them: each of rings is (outline, *holes) of level-0 (x, y)."""
    features = [
        {
            "type": "Feature",
            "geometry": {"type": kind, "coordinates": [[*ring, ring[0]] for ring in each]},
            "properties": {
                "objectType": "annotation",
                "classification": {"name": name, "color": [200, 0, 0]},
            },
        }
        for each in rings
    ]
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def box(left, top, right, bottom):
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def test_the_outline_gives_the_same_patches_again_and_an_edit_changes_only_its_own(make_slide, tmp_path):
    make_slide(tissue=((256, 256, 1280, 1024), (1500, 300, 1800, 1400)))
    first, second = tmp_path / "first", tmp_path / "second"
    tile.run(TileConfig(slides=tmp_path / "slides", run=first, **LAYOUT))
    settings = LAYOUT | {"slides": tmp_path / "slides", "tissue": f"geojson:{first / 'patches'}"}
    tile.run(TileConfig(run=second, **settings))
    before, again = read(first), read(second)
    assert (before.coords == again.coords).all()
    assert np.abs(before.tissue_fraction - again.tissue_fraction).max() < 1e-6
    # Cut a hole of 2 x 2 patches, and draw 3 patches that were glass.
    edited = tmp_path / "edited"
    content = json.loads((first / "patches" / "a.geojson").read_text())
    outline = max(content["features"], key=lambda each: len(str(each)) and _area(each))
    outline["geometry"]["coordinates"].append([*box(513, 513, 767, 767), [513, 513]])
    more = {"type": "Polygon", "coordinates": [[*box(130, 1156, 510, 1276), [130, 1156]]]}
    content["features"].append(
        {"type": "Feature", "geometry": more, "properties": {"objectType": "annotation"}}
    )
    edited.mkdir()
    (edited / "a.geojson").write_text(json.dumps(content))
    third = tmp_path / "third"
    tile.run(TileConfig(run=third, **settings | {"tissue": f"geojson:{edited}"}))
    kept = {tuple(each) for each in before.coords.tolist()}
    now = {tuple(each) for each in read(third).coords.tolist()}
    assert kept - now == {(x, y) for x in (512, 640) for y in (512, 640)}
    assert now - kept == {(x, 1152) for x in (128, 256, 384)}


def _area(feature):
    ring = np.array(feature["geometry"]["coordinates"][0])
    return np.prod(ring.max(axis=0) - ring.min(axis=0))


def test_edited_annotations_are_other_settings_and_classes_are_chosen(make_slide, tmp_path):
    make_slide(tissue=())
    drawn, run = tmp_path / "drawn", tmp_path / "run"
    annotate(drawn / "a.geojson", [box(0, 0, 512, 512), box(128, 128, 256, 256)])
    settings = LAYOUT | {"slides": tmp_path / "slides", "run": run, "tissue": f"geojson:{drawn}"}
    settings["min_tissue"] = 0.5
    tile.run(TileConfig(**settings))
    assert len(read(run).coords) == 15
    assert tile.run(TileConfig(**settings)).count("skipped") == 1
    annotate(drawn / "a.geojson", [box(0, 0, 512, 512)])
    with pytest.raises(FormatError, match="annotations was"):
        tile.run(TileConfig(**settings))
    tile.run(TileConfig(**settings, overwrite=True))
    assert len(read(run).coords) == 16
    result = tile.run(TileConfig(**settings, tissue_classes=("Stroma",), overwrite=True))
    assert len(read(run).coords) == 0
    assert "there are: Tumor (1)" in result.outcomes[0].facts["reason"]
    annotate(drawn / "a.geojson", [box(0, 0, 512, 512)], kind="LineString")
    failed = tile.run(TileConfig(**settings, overwrite=True)).failed
    assert "a.geojson: annotation 0" in failed[0].reason
    (drawn / "a.geojson").unlink()
    assert "no annotations" in tile.run(TileConfig(**settings, overwrite=True)).failed[0].reason
    with pytest.raises(ConfigError, match="no such folder"):
        tile.run(TileConfig(**settings | {"tissue": "geojson:nowhere"}))


def segmenter(path, weights=(-1.0, -1.0, -1.0), metadata=None, activation="Sigmoid"):
    """Write a model: a 1 x 1 convolution of the three colours."""
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["y"]), helper.make_node(activation, ["y"], ["p"])]
    graph = helper.make_graph(
        nodes, "segmenter",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, "h", "w"])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, [1, 1, "h", "w"])],
        [
            helper.make_tensor("w", TensorProto.FLOAT, [1, 3, 1, 1], [20 * each for each in weights]),
            helper.make_tensor("b", TensorProto.FLOAT, [1], [-2.0]),
        ],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    facts = {"mean": [0.9, 0.9, 0.9], "std": [1, 1, 1], "mpp": 4.0} if metadata is None else metadata
    helper.set_model_props(model, {key: json.dumps(value) for key, value in facts.items()})
    onnx.save(model, path)
    return path


def test_a_segmenter_of_ones_own_finds_the_tissue(make_slide, tmp_path):
    make_slide()
    model, run = segmenter(tmp_path / "dark.onnx"), tmp_path / "run"
    settings = LAYOUT | {"slides": tmp_path / "slides", "run": run, "min_tissue": 0.5}
    tile.run(TileConfig(**settings, tissue=f"onnx:{model}"))
    expected = [[x, y] for y in range(256, 1024, 128) for x in range(256, 1280, 128)]
    assert read(run).coords.tolist() == expected
    assert read(run).notes["tissue"] == "onnx"
    segmenter(model, weights=(-1.0, -1.0, -1.1))
    with pytest.raises(FormatError, match="segmenter was"):
        tile.run(TileConfig(**settings, tissue=f"onnx:{model}"))
    segmenter(model, metadata={})
    with pytest.raises(ConfigError, match="how pixels are wanted is not said"):
        tile.run(TileConfig(**settings, tissue=f"onnx:{model}", overwrite=True))
    segmenter(model, activation="Relu")
    result = tile.run(TileConfig(**settings, tissue=f"onnx:{model}", overwrite=True))
    assert "wanted probabilities" in result.failed[0].reason
    model.write_bytes(b"nonsense")
    with pytest.raises(FormatError, match="damaged"):
        tile.run(TileConfig(**settings, tissue=f"onnx:{model}"))


def test_context_patches_have_the_same_centres_row_by_row(make_slide, tmp_path):
    make_slide("a.tiff", mpp=0.499, width=1999, tissue=((0, 0, 1200, 1024),))
    run = tmp_path / "run"
    tile.run(TileConfig(slides=tmp_path / "slides", run=run, context_mpp=(1.0, 2.0), **LAYOUT))
    fine = read(run)
    for mpp in (1.0, 2.0):
        coarse = read(store.context_run(run, mpp))
        assert coarse.geometry.mpp == mpp
        assert coarse.geometry.patch_size_l0 == pytest.approx(fine.geometry.patch_size_l0 * mpp / 0.5)
        centres = [p.coords + p.geometry.patch_size_l0 / 2 for p in (fine, coarse)]
        assert np.abs(centres[0] - centres[1]).max() <= 1
        with open_slide(tmp_path / "slides" / "a.tiff") as slide:
            (batch,) = tile.grid.quality.blocks.stream(slide, coarse.coords[:4], coarse.geometry)
            for patch, (x, y) in zip(batch.patches, coarse.coords[:4].tolist(), strict=True):
                difference = np.abs(patch.astype(int) - slide.read(x, y, 128, mpp))
                assert difference.mean() < 0.5, "resampled; whole-number ratios are exact"
    assert fine.coords.min() == 0
    assert read(store.context_run(run, 2.0)).coords.min() < 0, "a patch may reach over the edge"
    assert table(store.context_run(run, 1.0))["a"]["patches"] == str(len(fine.coords))


def test_a_sample_is_spread_evenly_and_the_seed_decides_it():
    cells = np.argwhere(np.ones((64, 64), bool))
    curve = cells[np.argsort(hilbert(cells))]
    assert (np.abs(np.diff(curve, axis=0)).sum(axis=1) == 1).all(), "the walk steps to a neighbour"

    def counts(rows):  # in 16 x 16 fields of 4 x 4 cells
        return np.bincount((cells[rows] // 4) @ [16, 1], minlength=256)

    even, random = (sample(cells, 256, how, seed=0) for how in ("spatial", "random"))
    assert len(set(even.tolist())) == len(even) == 256
    assert counts(even).var() < 0.35 * counts(random).var()
    assert (sample(cells, 256, "spatial", 0) == even).all()
    assert (sample(cells, 256, "spatial", 1) != even).any()
    for count in (1, 4095, 4096, 9999):
        rows = sample(cells, count, "spatial", 3)
        assert len(np.unique(rows)) == len(rows) == min(count, 4096)
        assert (np.diff(rows) > 0).all()


def test_max_patches_caps_a_slide_and_says_so(make_slide, tmp_path):
    make_slide()
    run = tmp_path / "run"
    tile.run(TileConfig(slides=tmp_path / "slides", run=run, max_patches=10, **LAYOUT))
    patches = read(run)
    assert len(patches.coords) == 10
    cells = cells_rc(patches.coords, patches.geometry)
    assert (np.diff(cells @ [1000, 1]) > 0).all(), "row-major"
    assert int(table(run)["a"]["not_sampled"]) == patches.notes["removed"]["sample"] > 20


def test_pixels_are_saved_on_request_exactly_and_with_the_same_bytes(make_slide, tmp_path):
    path = make_slide("a.b.tiff", tissue=((256, 256, 512, 512),))
    run = tmp_path / "run"
    settings = LAYOUT | {"slides": tmp_path / "slides", "run": run}
    tile.run(TileConfig(**settings))
    assert tile.run(TileConfig(**settings, save_patches="zip")).count("done") == 1, "they were missing"
    assert tile.run(TileConfig(**settings, save_patches="zip")).count("skipped") == 1
    patches = read(run, "a.b")
    with zipfile.ZipFile(run / "patches" / "a.b.zip") as archive, open_slide(path) as slide:
        names = archive.namelist()
        assert len(names) == len(patches.coords) > 0
        for row, name in enumerate(names):
            x, y = patches.coords[row].tolist()
            assert name.endswith(f"_{x}_{y}.png")
            picture = cv2.imdecode(np.frombuffer(archive.read(name), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
            assert (picture == slide.read(x, y, 128, 0.5)).all()
    tile.run(TileConfig(**settings, save_patches="webdataset"))
    first = (run / "patches" / "a.b.tar").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(first)) as archive:
        names = archive.getnames()
    assert [name.split(".")[-1] for name in names] == ["png", "json"] * len(patches.coords)
    assert all(name.count(".") == 1 for name in names), "a dot would end a sample's key"
    (run / "patches" / "a.b.tar").unlink()
    tile.run(TileConfig(**settings, save_patches="webdataset"))
    assert (run / "patches" / "a.b.tar").read_bytes() == first


def test_the_contact_sheet_shows_every_slide_and_what_is_odd(make_slide, tmp_path):
    make_slide("good.tiff", width=768, height=512, tissue=((128, 128, 500, 400),))
    make_slide("blank<b>.tiff", width=768, height=512, tissue=())
    (tmp_path / "slides" / "text.svs").write_text("not a slide")
    run = tmp_path / "run"
    tile.run(TileConfig(slides=tmp_path / "slides", run=run, **LAYOUT))
    page = (run / "patches" / "contact_sheet.html").read_text()
    assert page.count("<article") == 3
    assert page.count("data:image/jpeg;base64,") == 2
    assert "blank&lt;b&gt;" in page
    assert "blank<b>" not in page
    assert "no patches" in page
    assert ">failed<" in page
    assert "http" not in page, "self-contained"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tissue": "magic"}, "--tissue magic: unknown"),
        ({"tissue": "geojson:"}, "--tissue geojson:: unknown"),
        ({"tissue_classes": ("Tumor",)}, "only with --tissue geojson"),
        ({"min_focus": 5.0}, "add --qc pixels"),
        ({"max_blur_um": 1.5}, "add --qc pixels"),
        ({"max_blur_um": 0.0, "qc": "pixels"}, "--max-blur-um 0.0: must be above 0"),
        ({"max_pen": 2.0}, "--max-pen 2.0: a fraction"),
        ({"max_patches": 0}, "--max-patches 0"),
        ({"context_mpp": (0.5,)}, "stands there twice"),
        ({"qc": "all"}, "--qc all: unknown"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path, settings, words):
    with pytest.raises(ConfigError, match=words.replace("--", "-?-?")):
        TileConfig(slides=tmp_path, run=tmp_path, **settings)


def test_mpp_given_again_means_context(wsi, tmp_path):
    code, out, _ = wsi(
        "tile",
        "--slides",
        tmp_path,
        "--run",
        tmp_path,
        "--mpp",
        "0.5",
        "--mpp",
        "1.0",
        "--mpp=2",
        "--print-config",
    )
    assert code == 0
    assert "mpp = 0.5 context_mpp = [ 1.0, 2.0, ]" in out
