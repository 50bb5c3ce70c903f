"""Features go out in other tools' layouts, and come back the same."""

from dataclasses import asdict, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from tests import foreign
from wsi_mil import store
from wsi_mil.config import ExportConfig, ImportConfig
from wsi_mil.errors import ConfigError
from wsi_mil.exchange import export_run, import_run
from wsi_mil.geometry import PatchGeometry, grid_l0

ENCODER = "timm:resnet50"
WHOLE = {"width_l0": 8000, "height_l0": 6000, "mpp_l0": 0.25, "mpp": 0.5, "patch_px": 256}
GEOMETRIES = {
    "whole": PatchGeometry.plan(**WHOLE),
    "overlap": PatchGeometry.plan(**WHOLE, overlap_px=64),
    "fractions": PatchGeometry.plan(**WHOLE | {"mpp_l0": 0.2527}),
    "coarse": PatchGeometry.plan(**WHOLE | {"mpp_l0": 0.2527, "mpp": 1.0, "patch_px": 224}),
}


def make_run(
    run: Path, geometry: PatchGeometry, dim: int = 8, empty: bool = False
) -> dict[str, store.Features]:
    """Write a run with the features of two slides, and of a third without patches; return them by id."""
    rng = np.random.default_rng(3)
    made = {}
    for name, step in (("a", 1), ("b", 3), *([("empty", 0)] if empty else [])):
        coords = grid_l0(geometry)[::step] if step else np.zeros((0, 2), np.int64)
        made[name] = store.Features(
            slide_id=name, slide_path=Path(f"/slides/{name}.svs"), reader="openslide", geometry=geometry,
            coords=coords, features=rng.normal(0, 3, (len(coords), dim)).astype(np.float16), encoder=ENCODER,
            weights_digest="0123456789abcdef", patches_digest="x", record={"encoder": ENCODER},
        )  # fmt: skip
        store.write_features(store.features_path(run, ENCODER, name), made[name])
    return made


def export(tmp_path: Path, tool: str, **flags: object):
    config = {"tool": tool, "run": tmp_path / "run", "output": tmp_path / "out", "workers": 1} | flags
    return export_run(ExportConfig(**config))


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("tool", ["clam", "trident", "stamp"])
def test_out_and_back_is_the_same(tmp_path, tool, geometry):
    made = make_run(tmp_path / "run", geometry)
    assert export(tmp_path, tool).count("done") == 2
    flags: dict[str, object] = {"slide_mpp": geometry.mpp_l0}
    if tool == "clam":  # says neither; a patch is there a square of level 0
        flags |= {"mpp": geometry.mpp, "patch_px": geometry.patch_px, "encoder": ENCODER}
    if geometry.stride_l0 < geometry.patch_size_l0 and tool != "trident":  # b has no neighbours that show it
        flags |= {"overlap_px": 64}
    if tool == "stamp":  # says nothing of the slide
        flags |= {"slides": tmp_path / "m.csv"}
        rows = [f"{name},x.svs,{geometry.mpp_l0},8000,6000" for name in made]
        (tmp_path / "m.csv").write_text("\n".join(["slide_id,path,mpp,width,height", *rows]))
    result = import_run(
        ImportConfig(tool=tool, source=tmp_path / "out", run=tmp_path / "back", workers=1, **flags)
    )
    assert not result.failed, [each.reason for each in result.failed]
    encoder = "timm_resnet50" if tool == "trident" else ENCODER  # the name of a folder
    for name, features in made.items():
        back = store.read_features(store.features_path(tmp_path / "back", encoder, name))
        assert np.array_equal(back.coords, features.coords)
        assert np.array_equal(back.features, features.features)
        assert asdict(back.geometry) == pytest.approx(asdict(geometry), rel=1e-9)
        assert "grid" not in back.notes


def test_clams_layout(tmp_path):
    made = make_run(tmp_path / "run", GEOMETRIES["whole"], empty=True)
    export(tmp_path, "clam")
    for name, features in made.items():
        tensor = torch.load(tmp_path / "out" / "pt_files" / f"{name}.pt", weights_only=True)
        assert tensor.dtype == torch.float32
        assert np.array_equal(tensor.numpy(), features.features.astype(np.float32))
        with h5py.File(tmp_path / "out" / "h5_files" / f"{name}.h5") as file:
            assert set(file) == {"features", "coords"}
            assert (file["features"].dtype, file["features"].chunks) == (np.float32, (32, 8))
            assert (file["coords"].dtype, file["coords"].chunks, file["coords"].maxshape) == (
                np.int32, (32, 2), (None, 2),
            )  # fmt: skip
            assert np.array_equal(file["coords"], features.coords)
        with h5py.File(tmp_path / "out" / "patches" / f"{name}.h5") as file:
            attrs = file["coords"].attrs
            assert (attrs["patch_size"], attrs["patch_level"], attrs["name"]) == (512, 0, name)
            assert attrs["level_dim"].tolist() == [8000, 6000]
            assert set(attrs) == {
                "patch_size", "patch_level", "downsample", "downsampled_level_dim", "level_dim", "name",
                "save_path",
            }  # fmt: skip


def test_tridents_layout(tmp_path):
    made = make_run(tmp_path / "run", GEOMETRIES["overlap"], empty=True)
    export(tmp_path, "trident")
    base = tmp_path / "out" / "20x_256px_64px_overlap"
    assert sorted(each.name for each in base.iterdir()) == ["features_timm_resnet50", "patches"]
    for name, features in made.items():
        with h5py.File(base / "features_timm_resnet50" / f"{name}.h5") as file:
            assert file["features"].chunks == (1, 8)
            assert dict(file["features"].attrs)["encoder"] == ENCODER
            attrs = dict(file["coords"].attrs)
            assert file["coords"].dtype == np.int64
        with h5py.File(base / "patches" / f"{name}_patches.h5") as file:
            assert dict(file["coords"].attrs) == attrs
            assert np.array_equal(file["coords"], features.coords)
        wanted = {
            "patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40,
            "target_magnification": 20,
            "overlap": 64, "name": name, "level0_width": 8000, "level0_height": 6000,
            "savetodir": "20x_256px_64px_overlap",
        }  # fmt: skip
        assert attrs == wanted


def test_stamps_layout(tmp_path):
    make_run(tmp_path / "run", GEOMETRIES["fractions"], empty=True)
    result = export(tmp_path, "stamp")
    (base,) = (tmp_path / "out").iterdir()
    assert base.name[:-8] == "timm_resnet50-"
    assert int(base.name[-8:], 16) >= 0
    assert sorted(each.name for each in base.iterdir()) == ["a.h5", "b.h5"]
    facts = {each.slide_id: each.facts for each in result.outcomes}
    assert facts["empty"]["reason"] == "0 patches: stamp has no file for such a slide"
    with h5py.File(base / "a.h5") as file:
        assert (file["coords"].dtype, file["feats"].dtype) == (np.float32, np.float16)
        assert dict(file.attrs) == {
            "stamp_version": "2.1.0", "extractor": ENCODER, "unit": "um", "tile_size_um": 128.0,
            "tile_size_px": 256, "code_hash": base.name[-8:], "feat_type": "tile",
        }  # fmt: skip
        # near the origin float32 is exact to a thousandth of a pixel
        pixels = file["coords"][:] / 0.2527
        assert np.abs(pixels - grid_l0(GEOMETRIES["fractions"])).max() < 1e-3


def test_plain_tensors(tmp_path):
    made = make_run(tmp_path / "run", GEOMETRIES["whole"], empty=True)
    export(tmp_path, "pt")
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == ["a.pt", "b.pt", "empty.pt"]
    tensor = torch.load(tmp_path / "out" / "a.pt", weights_only=True)
    assert torch.equal(tensor, torch.from_numpy(made["a"].features).float())


@pytest.mark.parametrize("tool", ["clam", "trident", "stamp", "pt"])
def test_zarr_goes_out_as_hdf5_does(tmp_path, tool):
    made = make_run(tmp_path / "run", GEOMETRIES["whole"], empty=True)
    zarr_features = store.open_features(tmp_path / "zarr", ENCODER, "zarr")
    for features in made.values():
        zarr_features.write(features)
    export(tmp_path, tool)
    count = export(tmp_path, tool, run=tmp_path / "zarr").count(
        "skipped"
    )  # the files are there, all the same
    assert count == (2 if tool == "stamp" else 3)


def test_imports_go_to_the_store_that_is_there(tmp_path):
    slides = foreign.make_slides()
    foreign.write_trident(tmp_path / "theirs", {"a": slides["a"]})
    config = ImportConfig(
        tool="trident", source=tmp_path / "theirs", run=tmp_path / "run", slide_mpp=0.25, workers=1
    )
    import_run(config)
    hdf5 = store.open_features(tmp_path / "run", "uni_v1")
    there = store.open_features(tmp_path / "zarr", "uni_v1", "zarr")
    there.write(hdf5.read("a"))
    foreign.write_trident(tmp_path / "theirs", {"b": slides["b"]})
    result = import_run(replace(config, run=tmp_path / "zarr"))
    assert {each.slide_id: each.status for each in result.outcomes} == {
        "a": "done",
        "b": "done",
    }  # a: patches
    assert there.slide_ids() == ["a", "b"]
    assert np.array_equal(there.read("b").features, slides["b"][1].astype(np.float16))


@pytest.mark.parametrize("tool", ["clam", "trident", "stamp", "pt"])
def test_what_is_there_stays(tmp_path, tool):
    made = make_run(tmp_path / "run", GEOMETRIES["whole"])
    export(tmp_path, tool)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert export(tmp_path, tool).count("skipped") == 2
    changed = replace(made["a"], features=made["a"].features + np.float16(1))
    store.write_features(store.features_path(tmp_path / "run", ENCODER, "a"), changed)
    result = export(tmp_path, tool)
    assert (result.count("failed"), result.count("skipped")) == (1, 1)
    assert "other values. Use another --output, or write it again" in result.failed[0].reason
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert export(tmp_path, tool, overwrite=True).count("done") == 1
    assert export(tmp_path, tool).count("skipped") == 2


def test_a_damaged_file_fails_alone(tmp_path):
    make_run(tmp_path / "run", GEOMETRIES["whole"])
    store.features_path(tmp_path / "run", ENCODER, "a").write_bytes(b"no")
    result = export(tmp_path, "clam")
    assert [each.slide_id for each in result.failed] == ["a"]
    assert (tmp_path / "out/pt_files/b.pt").exists()
    assert not list((tmp_path / "out").rglob("*a.*"))


def test_what_to_export_must_be_there(tmp_path):
    with pytest.raises(ConfigError, match="run `wsi-mil embed` first"):
        export(tmp_path, "clam")
    make_run(tmp_path / "run", GEOMETRIES["whole"])
    with pytest.raises(ConfigError, match="no features"):
        export(tmp_path, "clam", encoder="uni")


def test_a_run_of_imports_trains_and_draws(wsi, tmp_path):
    """Without a slide in sight: TRIDENT's features, labels, a model and heatmaps; then the files of CLAM."""
    slides = foreign.make_slides(counts=(12,) * 12)
    for index, (_, values) in enumerate(slides.values()):
        values[:, 0] += 4 * (index % 2)
    foreign.write_trident(tmp_path / "theirs", slides)
    run = tmp_path / "run"
    code, out, _ = wsi(
        "import", "--from", "trident", tmp_path / "theirs", "--run", run, "--slide-mpp", 0.25, "--workers", 1
    )
    assert (code, "12 done" in out) == (0, True)
    labels = tmp_path / "labels.csv"
    rows = [f"{name},{'np'[index % 2]}" for index, name in enumerate(slides)]
    labels.write_text("\n".join(["slide_id,label", *rows]))
    code, out, err = wsi(
        "train",
        "--run",
        run,
        "--labels",
        labels,
        "--folds",
        2,
        "--members",
        1,
        "--epochs",
        3,
        "--bootstrap",
        100,
    )
    assert code == 0, err
    code, out, _ = wsi("heatmap", "--run", run, "--workers", 1)
    assert code == 0
    assert "note: a: drawn without the slide: slide a is not found: no file of the run says where" in out
    heatmap = store.read_heatmap(run / "heatmaps" / "gated-attention" / "a" / "heatmap.zarr")
    assert np.nansum(heatmap.grid()) == pytest.approx(1, abs=1e-4)
    code, _, _ = wsi("report", "--run", run)
    assert code == 0
    code, out, _ = wsi("export", "--to", "clam", "--run", run, "--output", tmp_path / "out", "--workers", 1)
    assert (code, "export: 12 done" in out) == (0, True)
    with h5py.File(tmp_path / "out" / "h5_files" / "a.h5") as file:
        assert np.array_equal(file["features"], slides["a"][1].astype(np.float16))


def test_the_readmes_commands(wsi, tmp_path, make_slide, monkeypatch):
    make_slide("a.tiff", mpp=0.25)
    coords = np.array([[0, 0], [512, 0], [0, 512]])
    slides = {"a": (coords, np.ones((3, 4), np.float32))}
    foreign.write_trident(tmp_path / "DIR", slides, level0_width=2048, level0_height=1536)
    monkeypatch.chdir(tmp_path)
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    block = readme.split("<!-- exchange -->\n```bash\n")[1].split("```")[0]
    for line in block.splitlines():
        command, *arguments = line.split("#")[0].split()
        assert command == "wsi-mil"
        code, out, err = wsi(*arguments, "--workers", 1)
        assert (code, "1 done" in out) == (0, True), err
    assert (tmp_path / "for_clam" / "pt_files" / "a.pt").exists()


def test_features_of_other_weights_are_not_mixed(wsi, tmp_path):
    slides = foreign.make_slides(counts=(12,) * 4)
    foreign.write_trident(tmp_path / "theirs", slides)
    run = tmp_path / "run"
    wsi("import", "--from", "trident", tmp_path / "theirs", "--run", run, "--slide-mpp", 0.25, "--workers", 1)
    path = store.features_path(run, "uni_v1", "a")
    store.write_features(path, replace(store.read_features(path), weights_digest="0123456789abcdef"))
    labels = tmp_path / "labels.csv"
    labels.write_text("slide_id,label\na,x\nb,y\nc,x\nd,y\n")
    code, _, err = wsi("train", "--run", run, "--labels", labels, "--folds", 2)
    assert code == 1
    assert "weights_digest was '0123456789abcdef' and is now 'imported:trident'" in err
