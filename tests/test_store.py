import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from wsi_mil import store
from wsi_mil.errors import ConfigError, FormatError, StaleOutputError
from wsi_mil.geometry import PatchGeometry, grid_l0


def some_patches(n: int = 6) -> store.Patches:
    geometry = PatchGeometry.plan(width_l0=2000, height_l0=1600, mpp_l0=0.25, mpp=0.5, patch_px=256)
    return store.Patches(
        slide_id="a b", slide_path=Path("/slides/a b.svs"), reader="openslide", mpp_source="given",
        geometry=geometry, coords=grid_l0(geometry)[:n],
        tissue_fraction=np.linspace(0, 1, n, dtype=np.float32),
        record={"mpp": 0.5, "patch_px": 256},
    )  # fmt: skip


def some_features(n: int = 6) -> store.Features:
    patches = some_patches(n)
    values = np.random.default_rng(0).normal(size=(n, 8)).astype(np.float16)
    return store.Features(
        slide_id="a b", slide_path=patches.slide_path, reader="openslide", geometry=patches.geometry,
        coords=patches.coords, features=values, encoder="net", weights_digest="f00d",
        patches_digest=patches.digest, record={"encoder": "net"}, notes={"precision": "fp32"},
    )  # fmt: skip


@pytest.mark.parametrize("n", [0, 6])
def test_patches_and_features_round_trip(tmp_path, n):
    patches, features = some_patches(n), some_features(n)
    store.write_patches(tmp_path / "p.h5", patches)
    store.write_features(tmp_path / "f.h5", features)
    p, f = store.read_patches(tmp_path / "p.h5"), store.read_features(tmp_path / "f.h5")
    assert (p.coords == patches.coords).all()
    assert (p.tissue_fraction == patches.tissue_fraction).all()
    assert replace(p, coords=patches.coords, tissue_fraction=patches.tissue_fraction) == patches
    assert p.digest == patches.digest == f.patches_digest
    assert (f.features == features.features).all()
    assert f.features.shape == (n, 8)
    assert f.identity == features.identity
    assert f.notes == features.notes
    assert {path.name for path in tmp_path.iterdir()} == {"p.h5", "f.h5"}


def test_files_speak_the_fields_names(tmp_path):
    """What CLAM's and TRIDENT's readers look for."""
    store.write_features(tmp_path / "f.h5", some_features())
    with h5py.File(tmp_path / "f.h5") as file:
        assert file["features"].shape == (6, 8)
        assert file["coords"].dtype == np.int64
        assert file["coords"].attrs["patch_size_level0"] == 512
        assert file["coords"].attrs["level0_width"] == 2000
        assert file.attrs["format"] == "wsi-mil features"
        assert json.loads(file.attrs["config"]) == {"encoder": "net"}
        assert {"mpp", "patch_px", "patch_size_l0", "stride_l0", "mpp_l0"} <= set(file.attrs)


def test_other_patches_have_another_digest():
    patches = some_patches()
    assert patches.digest != replace(patches, coords=patches.coords + 1).digest
    assert patches.digest != replace(patches, record={"mpp": 0.25}).digest


def test_nan_in_features_names_the_patch():
    features = some_features()
    values = features.features.copy()
    values[3, 1] = np.nan
    with pytest.raises(
        FormatError, match=r"1 patches hold NaN or infinity, the first is patch 3 at \[0, 512\]"
    ):
        replace(features, features=values)


def test_features_of_another_count_are_refused():
    with pytest.raises(FormatError, match="for 6 patches"):
        replace(some_features(), features=np.zeros((5, 8), np.float16))


def test_what_is_not_ours_is_refused(tmp_path):
    path = tmp_path / "f.h5"
    with pytest.raises(FormatError, match="no such file; run `wsi-mil embed` first"):
        store.read_features(path)
    path.write_bytes(b"no hdf5")
    with pytest.raises(FormatError, match="not readable as HDF5"):
        store.read_features(path)
    store.write_patches(path, some_patches())
    with pytest.raises(
        FormatError, match="says it is 'wsi-mil patches' version 1; wanted 'wsi-mil features'"
    ):
        store.read_features(path)
    store.write_features(path, some_features())
    with h5py.File(path, "a") as file:
        file.attrs["format_version"] = 2
    with pytest.raises(FormatError, match=r"format version 2, this program knows 1; update wsi-mil"):
        store.read_features(path)


def test_resume_is_by_settings(tmp_path):
    path = tmp_path / "p.h5"
    record = some_patches().record
    assert not store.is_done(path, record, "patches")
    store.write_patches(path, some_patches())
    assert store.is_done(path, record, "patches")
    with pytest.raises(StaleOutputError, match=r"mpp was 0.5 and is now 0.25.*--overwrite"):
        store.is_done(path, record | {"mpp": 0.25}, "patches")
    assert not store.is_done(path, record | {"mpp": 0.25}, "patches", overwrite=True)
    path.write_bytes(b"broken")
    with pytest.raises(FormatError):
        store.is_done(path, record, "patches")
    assert not store.is_done(path, record, "patches", overwrite=True)


def test_a_failure_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    store.write_text(path, "old")
    with pytest.raises(RuntimeError), store.atomic_file(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_appears_whole_and_replaces_the_old_one(tmp_path):
    target = tmp_path / "model"
    for content in ("one", "two"):
        with store.atomic_folder(target) as temporary:
            (temporary / "sub").mkdir()
            (temporary / "sub" / "a.txt").write_text(content)
            assert not target.exists() or (target / "sub" / "a.txt").read_text() == "one"
    assert (target / "sub" / "a.txt").read_text() == "two"
    with pytest.raises(RuntimeError), store.atomic_folder(target):
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert (target / "sub" / "a.txt").read_text() == "two"


def test_what_a_killed_process_leaves_is_swept(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from wsi_mil.store import atomic_file\n"
        "with atomic_file(Path(sys.argv[1]) / 'a.h5') as t:\n"
        "    t.write_text('half'); print('go', flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    store.sweep(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1, "the living keep theirs"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    time.sleep(0.05)
    assert not (tmp_path / "a.h5").exists()
    (tmp_path / ".hidden.tmp").write_text("not ours")
    store.sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [".hidden.tmp"]


def test_a_stage_is_recorded_however_it_ends(tmp_path):
    from wsi_mil.config import EmbedConfig

    config = EmbedConfig(run=tmp_path)
    for error, status in ((None, "done"), (KeyboardInterrupt, "interrupted"), (RuntimeError, "failed")):
        try:
            with store.stage_record(tmp_path, "embed", config):
                if error:
                    raise error
        except (KeyboardInterrupt, RuntimeError):
            pass
        record = store.read_stage(tmp_path, "embed")
        assert record is not None
        assert record["status"] == status
        assert record.get("error") == ("RuntimeError" if status == "failed" else None)
        assert record["config"]["encoder"] == "tf_efficientnet_lite0"
        assert record["versions"]["torch"]


def test_the_only_folder_may_be_left_out(tmp_path):
    with pytest.raises(ConfigError, match="run `wsi-mil embed` first"):
        store.only_folder(tmp_path / "features", "--encoder", "embed")
    (tmp_path / "features" / "one").mkdir(parents=True)
    assert store.only_folder(tmp_path / "features", "--encoder", "embed") == "one"
    (tmp_path / "features" / "two").mkdir()
    with pytest.raises(ConfigError, match="holds several: one, two; say which with --encoder"):
        store.only_folder(tmp_path / "features", "--encoder", "embed")


def test_an_encoders_name_becomes_a_folders(tmp_path):
    assert store.features_folder(tmp_path, "hf-hub:org/name").name == "hf-hub_org_name"
