"""Files of other tools become a run, value by value; what they do not say is asked for by name."""

import json
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from tests import foreign
from tests.foreign import make_slides
from wsi_mil import store, verify
from wsi_mil.config import ImportConfig, VerifyConfig
from wsi_mil.errors import ConfigError
from wsi_mil.exchange import import_run
from wsi_mil.geometry import PatchGeometry

GEOMETRY = PatchGeometry(
    mpp=0.5, patch_px=256, patch_size_l0=512, stride_l0=512, width_l0=8000, height_l0=6000, mpp_l0=0.25
)
# tool, how to write its files, what it does not say, the encoder under which the features appear
MATRIX = [
    ("clam", foreign.write_clam, {"slide_mpp": 0.25, "mpp": 0.5, "patch_px": 256, "encoder": "r50"}, "r50"),
    ("trident", foreign.write_trident, {"slide_mpp": 0.25}, "uni_v1"),
    ("stamp", foreign.write_stamp, {"slides": True}, "uni"),
    ("slideflow", foreign.write_slideflow, {"slides": True}, "CTransPathFeatures"),
    ("atlaspatch", foreign.write_atlaspatch, {}, "uni_v1"),
    ("slide2vec", foreign.write_slide2vec, {}, "h0-mini"),
    (
        "torchmil",
        foreign.write_torchmil,
        {"slides": True, "mpp": 0.5, "patch_px": 256, "encoder": "r50"},
        "r50",
    ),
]
TOOLS = [row[0] for row in MATRIX]
ROWS = {row[0]: row for row in MATRIX}


def take_over(tmp_path: Path, tool: str, theirs: foreign.Slides, /, **flags: object):
    """Import tmp_path/theirs into tmp_path/run in this process and return the result."""
    if flags.get("slides") is True:
        flags["slides"] = foreign.write_manifest(tmp_path / "slides.csv", theirs)
    config = {"tool": tool, "source": tmp_path / "theirs", "run": tmp_path / "run", "workers": 1} | flags
    return import_run(ImportConfig(**config))


def statuses(result) -> dict[str, str]:
    return {each.slide_id: each.status for each in result.outcomes if "/" not in each.slide_id}


def first_file(folder: Path, tool: str, name: str = "a") -> Path:
    """The file with the features of a slide."""
    inside = {
        "clam": "h5_files/{}.h5", "trident": "20x_256px_0px_overlap/features_uni_v1/{}.h5",
        "stamp": "uni-1a2b3c4d/{}.h5", "slideflow": "{}.pt", "atlaspatch": "patches/{}.h5",
        "slide2vec": "tile_embeddings/{}.pt", "torchmil": "features/{}.npy",
    }  # fmt: skip
    return folder / inside[tool].format(name)


@pytest.mark.parametrize("tool", TOOLS)
def test_every_value_comes_over(tmp_path, tool):
    _, write, flags, encoder = ROWS[tool]
    slides = make_slides()
    write(tmp_path / "theirs", slides)
    result = take_over(tmp_path, tool, slides, **flags)
    assert not result.failed, [each.reason for each in result.failed]
    for name, slide in slides.items():
        # hs2p's order is column by column, and so it stays
        coords, values = foreign.by_column(*slide) if tool == "slide2vec" else slide
        patches = store.read_patches(store.patches_path(tmp_path / "run", name))
        features = store.read_features(store.features_path(tmp_path / "run", encoder, name))
        assert np.array_equal(patches.coords, coords)
        assert np.array_equal(features.coords, coords)
        assert np.array_equal(features.features, values.astype(np.float16))
        assert patches.geometry == features.geometry == GEOMETRY
        assert features.patches_digest == patches.digest
        assert features.weights_digest == f"imported:{tool}"
        assert features.encoder == encoder
        said = tool == "slide2vec"
        assert ((patches.tissue_fraction >= 0.5) if said else (patches.tissue_fraction == -1)).all()
    assert not verify.run(VerifyConfig(run=tmp_path / "run")).failed
    again = take_over(tmp_path, tool, slides, **flags)
    assert set(statuses(again).values()) == {"skipped"}


@pytest.mark.parametrize(("tool", "words"), [
    ("clam", ["--slide-mpp", "--encoder"]),
    ("trident", ["--slide-mpp N, or --slides"]),
    ("stamp", ["--slide-mpp", "width and height of", "--slides"]),
    ("slideflow", ["--slide-mpp", "--slides"]),
    ("torchmil", ["--slide-mpp", "--slides", "--mpp N", "--patch-px N", "--encoder"]),
])  # fmt: skip
def test_what_is_missing_is_asked_for_before_anything_is_written(tmp_path, tool, words):
    slides = make_slides()
    ROWS[tool][1](tmp_path / "theirs", slides)
    with pytest.raises(ConfigError) as caught:
        take_over(tmp_path, tool, slides)
    assert all(word.replace("width and height of", "width and height") in str(caught.value) for word in words)
    assert "for 2 slides (a, b)" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_each_missing_fact_has_its_words(tmp_path):
    slides = make_slides()
    foreign.write_torchmil(tmp_path / "theirs", slides)
    flags: dict[str, object] = {"slides": True, "mpp": 0.5, "patch_px": 256, "encoder": "x"}
    for name, words in (
        ("slides", "microns per pixel of level 0 (--slide-mpp N, or --slides FOLDER"),
        ("mpp", "do not say: the microns per pixel of the patches (--mpp N)."),
        ("patch_px", "do not say: the side of the patches in pixels (--patch-px N)."),
        ("encoder", "do not say: the name of the encoder (--encoder NAME)."),
    ):
        with pytest.raises(ConfigError) as caught:
            take_over(tmp_path, "torchmil", slides, **{k: v for k, v in flags.items() if k != name})
        assert words in str(caught.value)


@pytest.mark.parametrize("tool", ["clam", "trident", "atlaspatch", "slide2vec", "torchmil"])
def test_a_slide_without_patches_is_an_answer(tmp_path, tool):
    _, write, flags, encoder = ROWS[tool]
    slides = make_slides()
    slides["empty"] = np.zeros((0, 2), np.int64), np.zeros((0, 8), np.float32)
    write(tmp_path / "theirs", slides)
    result = take_over(tmp_path, tool, slides, **flags)
    assert not result.failed, [each.reason for each in result.failed]
    assert len(store.read_features(store.features_path(tmp_path / "run", encoder, "empty")).coords) == 0


def spoil(path: Path, how: str, tool: str) -> None:
    """Damage the file with a slide's features in one of several ways."""
    if how == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        return
    values = make_slides()["a"][1].copy()
    values = {
        "nan": np.where(np.arange(values.size).reshape(values.shape) == 19, np.nan, values),
        "inf": np.where(np.arange(values.size).reshape(values.shape) == 19, np.inf, values),
        "huge": np.where(np.arange(values.size).reshape(values.shape) == 19, 70_000, values),
        "shape": values[:-1],
        "flat": values[:, 0],
        "whole": np.arange(values.size).reshape(values.shape),
    }[how].astype(np.int64 if how == "whole" else np.float32)
    if path.suffix == ".pt":
        torch.save(torch.from_numpy(values), path)
    elif path.suffix == ".npy":
        np.save(path, values)
    else:
        name = {"stamp": "feats", "atlaspatch": "features/uni_v1"}.get(tool, "features")
        with h5py.File(path, "r+") as file:
            del file[name]
            file[name] = values


SPOILT = {
    "truncated": "read", "nan": "patch 2 hold NaN", "inf": "patch 2 hold NaN or infinity", "huge": "float16",
    "shape": "coords of", "flat": "wanted (patches, features)", "whole": "int64",
}  # fmt: skip


@pytest.mark.parametrize(
    ("tool", "how"),
    # STAMP's files are float16: what is too large for that cannot stand in one.
    [(tool, how) for tool in TOOLS for how in SPOILT if (tool, how) != ("stamp", "huge")],
)
def test_a_bad_file_fails_alone(tmp_path, tool, how):
    words = SPOILT[how]
    _, write, flags, encoder = ROWS[tool]
    slides = make_slides()
    write(tmp_path / "theirs", slides)
    spoil(first_file(tmp_path / "theirs", tool), how, tool)
    result = take_over(tmp_path, tool, slides, **flags)
    reasons = [each.reason for each in result.failed]
    assert reasons
    assert all("a" in each.slide_id for each in result.failed)
    assert any(words in reason for reason in reasons), reasons
    assert not store.features_path(tmp_path / "run", encoder, "a").exists()
    assert store.features_path(tmp_path / "run", encoder, "b").exists()


class Code:
    """Pickles into a call."""

    def __reduce__(self):
        return os.system, ("touch /tmp/wsi-mil-ran-code",)


@pytest.mark.parametrize("tool", ["slideflow", "slide2vec", "clam"])
def test_code_in_a_tensor_file_is_not_run(tmp_path, tool):
    _, write, flags, _ = ROWS[tool]
    slides = make_slides()
    write(tmp_path / "theirs", slides)
    if tool == "clam":
        shutil.rmtree(tmp_path / "theirs" / "h5_files")
    path = (
        tmp_path / "theirs" / "pt_files" / "a.pt" if tool == "clam" else first_file(tmp_path / "theirs", tool)
    )
    marker = Path("/tmp/wsi-mil-ran-code")
    for content, words in ((Code(), "not run"), ({"features": torch.ones(3)}, "holds a dict")):
        torch.save(content, path)
        result = take_over(tmp_path, tool, slides, **flags)
        assert [words in each.reason for each in result.failed] == [True], [e.reason for e in result.failed]
        assert not marker.exists()


def test_objects_in_a_numpy_file_are_refused(tmp_path):
    slides = make_slides()
    foreign.write_torchmil(tmp_path / "theirs", slides)
    np.save(tmp_path / "theirs/features/a.npy", np.array([{"x": 1}], dtype=object), allow_pickle=True)
    result = take_over(tmp_path, "torchmil", slides, **ROWS["torchmil"][2])
    assert ["allow_pickle" in each.reason for each in result.failed] == [True]


def test_other_sources_are_stale(tmp_path):
    slides = make_slides()
    foreign.write_trident(tmp_path / "theirs", slides)
    take_over(tmp_path, "trident", slides, slide_mpp=0.25)
    path = store.features_path(tmp_path / "run", "uni_v1", "a")
    before = path.read_bytes()
    changed = {**slides, "a": (slides["a"][0], slides["a"][1] + 1)}
    foreign.write_trident(tmp_path / "theirs", changed)
    result = take_over(tmp_path, "trident", slides, slide_mpp=0.25)
    assert statuses(result) == {"a": "failed", "b": "skipped"}
    assert "source_digest was" in result.failed[0].reason
    assert path.read_bytes() == before
    result = take_over(tmp_path, "trident", slides, slide_mpp=0.25, overwrite=True)
    assert statuses(result) == {"a": "done", "b": "skipped"}
    assert np.array_equal(store.read_features(path).features, changed["a"][1].astype(np.float16))


def test_another_resolution_is_stale(tmp_path):
    slides = make_slides()
    foreign.write_trident(tmp_path / "theirs", slides)
    take_over(tmp_path, "trident", slides, slide_mpp=0.25)
    result = take_over(tmp_path, "trident", slides, slide_mpp=0.26)
    assert ["mpp was 0.5 and is now 0.52" in each.reason for each in result.failed] == [True, True]


def test_several_encoders_share_their_patches(tmp_path):
    slides = make_slides()
    foreign.write_atlaspatch(tmp_path / "theirs", slides)
    result = take_over(tmp_path, "atlaspatch", slides)
    assert set(statuses(result)) == {"a (uni_v1)", "a (resnet50)", "b (uni_v1)", "b (resnet50)"}
    one, two = (
        store.read_features(store.features_path(tmp_path / "run", e, "a")) for e in ("uni_v1", "resnet50")
    )
    assert np.array_equal(two.features, (slides["a"][1] * 2).astype(np.float16))
    assert one.patches_digest == two.patches_digest
    picked = take_over(tmp_path / "x", "atlaspatch", slides, source=tmp_path / "theirs", encoder="resnet50")
    assert set(statuses(picked)) == {"a", "b"}
    with pytest.raises(ConfigError, match="the files say resnet50, uni_v1"):
        take_over(tmp_path, "atlaspatch", slides, encoder="conch")


def test_features_and_patches_where_either_lacks(tmp_path):
    slides = make_slides(counts=(20, 20, 20, 20))
    theirs = tmp_path / "theirs"
    foreign.write_clam(theirs, slides)
    (theirs / "h5_files/a.h5").unlink()  # pt and patches: the rows of one are those of the other
    for name in ("h5_files/b.h5", "patches/b.h5"):
        (theirs / name).unlink()  # pt alone
    for name in ("h5_files/c.h5", "pt_files/c.pt"):
        (theirs / name).unlink()  # patches alone
    (theirs / "patches/d.h5").unlink()  # features whose file does not say their geometry
    result = take_over(tmp_path, "clam", slides, slide_mpp=0.25, encoder="r50")
    by_id = {each.slide_id: each for each in result.outcomes}
    assert by_id["a"].status == by_id["c"].status == "done"
    assert "h5_files/b.h5 or patches/b.h5" in by_id["pt_files/b.pt"].reason
    assert "the side of the patches in pixels (--patch-px N)" in by_id["d"].reason
    run = tmp_path / "run"
    features = store.read_features(store.features_path(run, "r50", "a"))
    assert np.array_equal(features.features, slides["a"][1].astype(np.float16))
    assert store.patches_path(run, "c").exists()
    assert not store.features_path(run, "r50", "c").exists()
    rows = {row["slide_id"]: row for row in store.read_csv(run / "import" / "slides.csv")}
    assert rows["pt_files/d.pt"]["reason"].startswith("the same features as")
    assert rows["pt_files/d.pt"]["status"] == "skipped"


def test_clam_at_a_level_of_the_pyramid(tmp_path):
    slides = make_slides()
    foreign.write_clam(tmp_path / "theirs", slides, level=1, downsample=2.0, side=256)
    flags = {"slide_mpp": 0.25, "encoder": "r50"}
    with pytest.raises(ConfigError, match="width and height"):  # of level 0; the files say that of level 1
        take_over(tmp_path, "clam", slides, **flags)
    take_over(tmp_path, "clam", slides, slides=True, encoder="r50")
    assert store.read_features(store.features_path(tmp_path / "run", "r50", "a")).geometry == GEOMETRY


def test_grids_that_start_at_each_piece_of_tissue(tmp_path):
    grid = np.stack(np.meshgrid(np.arange(3), np.arange(3), indexing="ij"), -1).reshape(-1, 2) * 512
    coords = np.concatenate([grid + np.array([101, 57]), grid + np.array([3001, 2222])]).astype(np.int64)
    slides = make_slides(dim=4)  # b's grid starts at the corner of the slide, and its step shows
    slides["a"] = coords, np.ones((18, 4), np.float32)
    foreign.write_clam(tmp_path / "theirs", slides)
    flags = {"slide_mpp": 0.25, "mpp": 0.5, "patch_px": 256, "encoder": "r50"}
    with pytest.raises(ConfigError, match=r"do not say: the overlap of neighbouring patches.*--overlap-px N"):
        take_over(tmp_path, "clam", slides, **flags)
    assert not (tmp_path / "run").exists()
    take_over(tmp_path, "clam", slides, overlap_px=0, **flags)
    features = store.read_features(store.features_path(tmp_path / "run", "r50", "a"))
    assert features.geometry == GEOMETRY
    assert features.notes["grid"] == "none"


def test_one_model_needs_one_mpp(tmp_path, capsys):
    slides = make_slides()
    foreign.write_trident(tmp_path / "theirs", slides)
    path = foreign.write_manifest(tmp_path / "m.csv", slides)
    path.write_text(path.read_text().replace("b.svs,0.25", "b.svs,0.2527"))
    take_over(tmp_path, "trident", slides, slides=path)
    assert "2 resolutions, 0.5 to 0.5054" in capsys.readouterr().err
    result = take_over(tmp_path, "trident", slides, slides=path, mpp=0.5, overwrite=True)
    assert not result.failed
    b = store.read_features(store.features_path(tmp_path / "run", "uni_v1", "b"))
    assert (b.geometry.mpp, b.geometry.patch_size_l0, b.notes["mpp_exact"]) == (0.5, 512, 0.5054)
    result = take_over(tmp_path, "trident", slides, slides=path, mpp=0.45, overwrite=True)
    assert "which is 284.444 pixels at --mpp 0.45; wanted 256." in result.failed[0].reason


@pytest.mark.parametrize(("flags", "words"), [
    ({"slide_mpp": 0.5}, "level 0 has 0.25 microns per pixel (file) or 0.5 (given)"),
    ({"patch_px": 224}, "patches of 256 pixels, not --patch-px 224"),
    ({"mpp": 1.0}, "patches at 0.5 microns per pixel, not --mpp 1"),
])  # fmt: skip
def test_flags_do_not_overrule_the_files(tmp_path, flags, words):
    slides = make_slides()
    foreign.write_slide2vec(tmp_path / "theirs", slides)
    result = take_over(tmp_path, "slide2vec", slides, **flags)
    assert [words in each.reason for each in result.failed] == [True, True]


def test_coords_outside_the_slide_are_refused(tmp_path):
    slides = make_slides()
    slides["a"][0][-1] = (9000, 0)
    foreign.write_trident(tmp_path / "theirs", slides)
    result = take_over(tmp_path, "trident", slides, slide_mpp=0.25)
    assert ["lie outside the slide of 8000 x 6000" in each.reason for each in result.failed] == [True]


def test_stamps_older_files(tmp_path):
    slides = make_slides()
    historic = {"tile_size_um": None, "unit": None, "tile_size_px": None, "feat_type": None}
    # in the first format 224 units are 256 um: 256 pixels of 0.5 um are 112 of them
    foreign.write_stamp(tmp_path / "theirs", slides, mpp_l0=0.25 * 224 / 256 * 2, **historic)
    result = take_over(
        tmp_path, "stamp", slides, slides=foreign.write_manifest(tmp_path / "m.csv", slides, 0.5)
    )
    assert not result.failed, [each.reason for each in result.failed]
    found = store.read_features(store.features_path(tmp_path / "run", "uni", "a"))
    assert np.array_equal(found.coords, slides["a"][0])
    assert found.geometry.mpp == 256 / 224
    foreign.write_stamp(tmp_path / "theirs", slides, tile_size_um=None, tile_size=128.0)  # version 2.0
    result = take_over(
        tmp_path / "x",
        "stamp",
        slides,
        source=tmp_path / "theirs",
        slides=foreign.write_manifest(tmp_path / "n.csv", slides),
    )
    assert store.read_features(store.features_path(tmp_path / "x/run", "uni", "a")).geometry == GEOMETRY
    foreign.write_stamp(tmp_path / "theirs", slides, feat_type="patient")
    with pytest.raises(ConfigError, match="none of its files"):
        take_over(tmp_path, "stamp", slides, slides=True)


def test_stamps_blocks_leave_the_grid_where_a_patch_is_no_whole_number(tmp_path):
    size = 256 / 0.2527  # level-0 pixels of 256 um
    x = np.concatenate([np.arange(4) * size, 4056 + np.arange(3) * size])  # a block is 4 x ceil(size) pixels
    coords = np.stack([x, np.zeros(7)], axis=1)
    slides = {"a": (coords, np.ones((7, 4), np.float32))}
    foreign.write_stamp(tmp_path / "theirs", slides, mpp_l0=0.2527, tile_size_um=256.0, tile_size_px=224)
    path = foreign.write_manifest(tmp_path / "m.csv", slides, 0.2527)
    take_over(tmp_path, "stamp", slides, slides=path, overlap_px=0)
    found = store.read_features(store.features_path(tmp_path / "run", "uni", "a"))
    assert np.array_equal(found.coords, np.rint(coords))
    assert found.geometry.patch_size_l0 == pytest.approx(size)
    assert found.notes["grid"] == "none"


def test_slideflow_at_a_magnification_needs_the_mpp(tmp_path):
    slides = make_slides()
    foreign.write_slideflow(tmp_path / "theirs", slides, tile_um="20x")
    with pytest.raises(ConfigError, match=r"microns per pixel of the patches \(--mpp N\)"):
        take_over(tmp_path, "slideflow", slides, slides=True)
    take_over(tmp_path, "slideflow", slides, slides=True, mpp=0.5)
    assert (
        store.read_features(store.features_path(tmp_path / "run", "CTransPathFeatures", "a")).geometry
        == GEOMETRY
    )


def test_unfinished_and_foreign_files_are_named(tmp_path):
    slides = make_slides()
    theirs = tmp_path / "theirs"
    foreign.write_slide2vec(theirs, slides, payload="npz")
    (theirs / "tile_embeddings/a.meta.json").unlink()
    (theirs / "process_list.csv").write_text("x")
    result = take_over(tmp_path, "slide2vec", slides)
    by_id = {each.slide_id: each for each in result.outcomes}
    rows = {row["slide_id"]: row for row in store.read_csv(tmp_path / "run" / "import" / "slides.csv")}
    assert "it is unfinished" in by_id["tile_embeddings/a.npz"].reason
    assert rows["process_list.csv"]["status"] == "skipped"
    assert (by_id["a"].status, by_id["b"].status) == ("done", "done")  # a: its patches
    assert not store.features_path(tmp_path / "run", "h0-mini", "a").exists()


def test_the_same_slide_twice_is_refused(tmp_path):
    slides = make_slides()
    for name in ("one", "two"):
        foreign.write_trident(tmp_path / "theirs" / name, slides)
    result = take_over(tmp_path, "trident", slides, slide_mpp=0.25)
    assert len(result.failed) == 8  # with their patches
    assert all("import one folder at a time" in each.reason for each in result.failed)


def test_a_run_inside_the_other_tools_folder_is_refused(tmp_path):
    slides = make_slides()
    foreign.write_trident(tmp_path / "theirs", slides)
    with pytest.raises(ConfigError, match="its files would be taken for trident's"):
        take_over(tmp_path, "trident", slides, slide_mpp=0.25, run=tmp_path / "theirs" / "run")


def test_nothing_of_that_tool(tmp_path):
    (tmp_path / "theirs").mkdir()
    with pytest.raises(ConfigError, match=r"none of its files are there; wanted h5_files/<id>\.h5"):
        take_over(tmp_path, "clam", {})
    with pytest.raises(ConfigError, match="no such folder"):
        take_over(tmp_path / "x", "clam", {})


def test_the_slides_give_size_and_resolution(tmp_path, make_slide):
    slides = {"a": (np.array([[0, 0], [512, 0], [0, 512]]), np.ones((3, 4), np.float32))}
    make_slide("a.tiff", mpp=0.25)
    foreign.write_stamp(tmp_path / "theirs", slides)
    result = take_over(tmp_path, "stamp", slides, slides=tmp_path / "slides")
    assert not result.failed, [each.reason for each in result.failed]
    found = store.read_patches(store.patches_path(tmp_path / "run", "a"))
    assert (found.geometry.width_l0, found.geometry.height_l0, found.geometry.mpp_l0) == (2048, 1536, 0.25)
    assert (found.slide_path, found.reader) == (tmp_path / "slides" / "a.tiff", "openslide")
    assert found.mpp_source.startswith(("openslide", "tiffslide"))
    result = take_over(tmp_path, "stamp", {}, slides=foreign.write_manifest(tmp_path / "m.csv", {"z": 0}))
    assert "no slide a in --slides" in result.failed[0].reason
    foreign.write_trident(tmp_path / "others", slides)  # says that the slide had another size
    result = take_over(tmp_path, "trident", {}, source=tmp_path / "others", slides=tmp_path / "slides")
    assert "made from a slide of 8000 x 6000 pixels" in result.failed[0].reason


def test_the_command_line(wsi, tmp_path):
    slides = make_slides()
    foreign.write_trident(tmp_path / "theirs", slides)
    code, _, err = wsi("import", "--from", "trident", tmp_path / "theirs", "--run", tmp_path / "run")
    assert (code, "--slide-mpp N" in err) == (2, True)
    arguments = [
        "import",
        "--from",
        "trident",
        tmp_path / "theirs",
        "--run",
        tmp_path / "run",
        "--slide-mpp",
        0.25,
    ]
    code, out, err = wsi(*arguments)
    assert (code, "import: 2 done" in out) == (0, True)
    assert "files are not taken over" in err
    toml = tmp_path / "c.toml"
    toml.write_text(
        f'[import]\ntool = "trident"\nsource = {json.dumps(str(tmp_path / "theirs"))}\n'
        f"run = {json.dumps(str(tmp_path / 'run'))}\nslide_mpp = 0.25\n"
    )
    code, out, _ = wsi("import", "--config", toml, "--workers", 1)
    assert (code, "0 done" in out) == (0, True)
    code, _, err = wsi("import", "--config", toml, tmp_path / "nowhere")
    assert (code, "nowhere: no such folder" in err) == (2, True)
    first_file(tmp_path / "theirs", "trident").write_bytes(b"x")
    code, out, _ = wsi("import", "--config", toml, "--workers", 1)
    assert (code, "1 failed" in out, "not readable as HDF5" in out) == (1, True, True)


def test_clams_patches_are_what_was_read_unless_said_otherwise(tmp_path):
    slides = make_slides()
    foreign.write_clam(tmp_path / "theirs", slides)
    result = take_over(tmp_path, "clam", slides, slide_mpp=0.25, mpp=0.5, encoder="r50")
    assert "which is 256 pixels at --mpp 0.5; wanted 512 (--patch-px, where" in result.failed[0].reason
    take_over(tmp_path, "clam", slides, slide_mpp=0.25, encoder="r50")
    found = store.read_features(store.features_path(tmp_path / "run", "r50", "a")).geometry
    assert (found.mpp, found.patch_px, found.patch_size_l0) == (0.25, 512, 512)


def test_slideflow_steps_by_whole_pixels(tmp_path):
    side = int(302 / 0.2527)  # 1195, and 1195.09 exactly
    coords = np.array([[0, 0], [6, 0], [2, 3]]) * side  # no neighbours
    folder = tmp_path / "theirs"
    foreign.write_slideflow(folder, {"a": (coords, np.ones((3, 4), np.float32))}, tile_um=302)
    np.savez(folder / "a.index", arr_0=coords + int(side / 2))
    path = foreign.write_manifest(tmp_path / "m.csv", {"a": (coords, coords)}, 0.2527)
    result = take_over(tmp_path, "slideflow", {}, slides=path)
    assert not result.failed, [each.reason for each in result.failed]
    found = store.read_features(store.features_path(tmp_path / "run", "CTransPathFeatures", "a"))
    assert np.array_equal(found.coords, coords)
    assert found.geometry.stride_l0 == side
    assert found.geometry.mpp == 302 / 256
    assert "grid" not in found.notes


def test_stamp_may_embed_what_lies_beyond_the_slide(tmp_path):
    coords = np.array([[0, 0], [512, 0], [7680, 512], [8704, 6144]])
    slides = {"a": (coords, np.ones((4, 4), np.float32))}
    foreign.write_stamp(tmp_path / "theirs", slides)
    result = take_over(tmp_path, "stamp", slides, slides=True)
    assert not result.failed, [each.reason for each in result.failed]
    assert store.read_features(store.features_path(tmp_path / "run", "uni", "a")).notes["outside"] == 1
    slides["a"][0][3] = (9216, 0)  # by more than a block
    foreign.write_stamp(tmp_path / "theirs", slides)
    with_reason = take_over(tmp_path, "stamp", slides, slides=True, overwrite=True).failed
    assert ["1 of 4 patches lie outside" in each.reason for each in with_reason] == [True]
