import dataclasses
import importlib
import os
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
import safetensors.torch
import tifffile
import timm
import torch

from tests.conftest import break_blocks
from wsi_mil import embed, parallel, store, tile
from wsi_mil.blocks import table
from wsi_mil.config import EmbedConfig, TileConfig
from wsi_mil.encoders import load_encoder
from wsi_mil.errors import ConfigError, FormatError, StaleOutputError
from wsi_mil.slide import open_slide

TINY = "test_resnet"
runs = importlib.import_module("wsi_mil.embed.run")  # the package hands on a function of that name


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "tiny.safetensors"
    safetensors.torch.save_file(timm.create_model(TINY, num_classes=0).state_dict(), path)
    return path


@pytest.fixture
def tiled(make_slide, tmp_path):
    """A run with three tiled slides, one of them without tissue."""
    make_slide("a.svs")
    make_slide("b.tiff", tissue=((0, 0, 700, 700),))
    make_slide("blank.tiff", tissue=())
    run = tmp_path / "run"
    tile.run(TileConfig(slides=tmp_path / "slides", run=run, workers=1))
    return run


def test_features_are_the_encoder_on_what_slide_read_gives(tiled, weights):
    embed.run(EmbedConfig(run=tiled, encoder=TINY, weights=weights, batch_size=5, device="cpu"))
    features = store.read_features(tiled / "features" / TINY / "a.h5")
    patches = store.read_patches(tiled / "patches" / "a.h5")
    assert (features.coords == patches.coords).all()
    assert features.geometry == patches.geometry
    assert features.patches_digest == patches.digest
    encoder = load_encoder(TINY, weights)
    with open_slide(patches.slide_path) as slide, torch.inference_mode():
        pixels = np.stack([slide.read(x, y, 256, 0.5) for x, y in patches.coords.tolist()])
        expected = encoder.module(encoder.transform(torch.from_numpy(pixels))).numpy()
    assert features.features.dtype == np.float16
    assert np.abs(features.features - expected).max() < 2e-3 * np.abs(expected).max() + 1e-3
    assert features.identity == {
        "encoder": TINY, "weights_digest": encoder.weights_digest, "dim": encoder.dim, "mpp": 0.5,
        "patch_px": 256,
    }  # fmt: skip


def test_a_slide_without_tissue_has_features_of_no_patches(tiled, weights):
    embed.run(EmbedConfig(run=tiled, encoder=TINY, weights=weights))
    assert store.read_features(tiled / "features" / TINY / "blank.h5").features.shape == (0, 96)


def test_batch_size_and_threads_do_not_change_features(tiled, weights):
    patches = store.read_patches(tiled / "patches" / "a.h5")
    encoder = load_encoder(TINY, weights)
    with open_slide(patches.slide_path) as slide:
        one, other = (
            embed.embed_slide(slide, patches, encoder, batch_size=b, workers=w).features.astype(float)
            for b, w in ((1, 1), (7, 3))
        )
    assert np.abs(one - other).max() < 1e-2


def test_run_twice_does_nothing_and_other_patches_are_refused(tiled, weights, tmp_path):
    config = EmbedConfig(run=tiled, encoder=TINY, weights=weights)
    assert embed.run(config).count("done") == 3
    assert embed.run(config).count("skipped") == 3
    tile.run(TileConfig(slides=tmp_path / "slides", run=tiled, workers=1, overlap_px=64, overwrite=True))
    with pytest.raises(
        StaleOutputError, match=r"a.h5: made with other settings: patches_digest was .*--overwrite"
    ):
        embed.run(config)
    other = tmp_path / "other.safetensors"
    torch.manual_seed(1)
    safetensors.torch.save_file(timm.create_model(TINY, num_classes=0).state_dict(), other)
    tile.run(TileConfig(slides=tmp_path / "slides", run=tiled, workers=1, overwrite=True))
    with pytest.raises(StaleOutputError, match="weights_digest was"):
        embed.run(EmbedConfig(run=tiled, encoder=TINY, weights=other))


def forget_fingerprint(run, slide_id):
    """Make a slide's patches as an older version wrote them: what changes in the slide's file is not seen."""
    path = store.patches_path(run, slide_id)
    store.write_patches(path, dataclasses.replace(store.read_patches(path), slide_fingerprint=""))


def test_slides_that_vanished_broke_or_were_replaced_fail_alone(tiled, weights, tmp_path, make_slide):
    (tmp_path / "slides" / "b.tiff").unlink()
    make_slide("blank.tiff", tissue=(), width=1000, height=900)
    break_blocks(tmp_path / "slides" / "a.svs")
    result = embed.run(EmbedConfig(run=tiled, encoder=TINY, weights=weights))
    reasons = {each.slide_id: each.reason for each in result.failed}
    assert set(reasons) == {"a", "b", "blank"}
    assert "no such file" in reasons["b"]
    assert "blank.tiff: its bytes are not those that were tiled: the file was replaced" in reasons["blank"]
    assert "a.svs: its bytes are not those that were tiled: the file was replaced" in reasons["a"]
    forget_fingerprint(tiled, "a")
    forget_fingerprint(tiled, "blank")
    result = embed.run(EmbedConfig(run=tiled, encoder=TINY, weights=weights))
    reasons = {each.slide_id: each.reason for each in result.failed}
    assert "is 1000 x 900 pixels and was 2048 x 1536 when it was tiled" in reasons["blank"]
    assert "12 or more of 12 patches cannot be read, more than the 1.00% that may be left out" in reasons["a"]
    assert not list((tiled / "features" / TINY).glob("*"))


def test_slides_that_tile_failed_on_are_named(make_slide, tmp_path, weights, capfd):
    make_slide("a.svs")
    make_slide("no_mpp.svs", mpp=None)
    tile.run(TileConfig(slides=tmp_path / "slides", run=tmp_path / "run", workers=1))
    result = embed.run(EmbedConfig(run=tmp_path / "run", encoder=TINY, weights=weights))
    assert {o.slide_id: o.status for o in result.outcomes} == {"a": "done", "no_mpp": "skipped"}
    assert "left out: no_mpp (no patches, tile failed" in capfd.readouterr().err.replace("\n", " ")


def test_no_patches_and_no_such_device_are_config_errors(tmp_path, tiled, weights):
    with pytest.raises(ConfigError, match="run `wsi-mil tile` first"):
        embed.run(EmbedConfig(run=tmp_path / "empty"))
    with pytest.raises(ConfigError, match="--device nonsense: not usable"):
        embed.run(EmbedConfig(run=tiled, encoder=TINY, weights=weights, device="nonsense"))


def test_bf16_is_close_to_fp32(tiled, weights):
    patches = store.read_patches(tiled / "patches" / "a.h5")
    encoder = load_encoder(TINY, weights)
    with open_slide(patches.slide_path) as slide:
        a, b = (
            embed.embed_slide(slide, patches, encoder, precision=p).features.astype(float)
            for p in ("fp32", "bf16")
        )
    cosine = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosine.min() > 0.99


@pytest.mark.parametrize("how", [pytest.param(signal.SIGKILL, marks=pytest.mark.slow), signal.SIGTERM])
def test_killed_half_way_and_run_again_completes(make_slide, tmp_path, weights, how):
    for i in range(5):
        make_slide(f"s{i}.svs", tissue=((0, 0, 1024, 768),), width=1024, height=768)
    run = tmp_path / "run"
    tile.run(TileConfig(slides=tmp_path / "slides", run=run, workers=1))
    command = [
        sys.executable, "-m", "wsi_mil", "embed", "--run", str(run), "--encoder", TINY,
        "--weights", str(weights), "--workers", "1", "--batch-size", "1",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = run / "features" / TINY
    deadline = time.time() + 120
    while not list(folder.glob("*.h5")) and time.time() < deadline and process.poll() is None:
        time.sleep(0.005)
    os.kill(process.pid, how)
    code = process.wait()
    done = sorted(folder.glob("*.h5"))
    assert 1 <= len(done) < 5, "the kill came half-way"
    assert code == (-signal.SIGKILL if how == signal.SIGKILL else 130)
    if how == signal.SIGTERM:
        assert sorted(folder.iterdir()) == done, "nothing partial"
        assert store.read_stage(run, "embed")["status"] == "interrupted"  # type: ignore[index]
    times = {path: path.stat().st_mtime_ns for path in done}
    assert not embed.run(EmbedConfig(run=run, encoder=TINY, weights=weights, batch_size=1)).failed
    assert sorted(p.name for p in folder.iterdir()) == [f"s{i}.h5" for i in range(5)]
    assert {path: path.stat().st_mtime_ns for path in done} == times, "what was done is not done again"
    assert all(len(store.read_features(path).features) == 12 for path in folder.iterdir())


def break_one_block(path, number):
    """Overwrite a compressed block of the first page with zeros."""
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages[0].dataoffsets[number], tiff.pages[0].databytecounts[number]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(count))


def test_unreadable_patches_are_left_out_counted_and_named(tiled, weights, tmp_path, capfd):
    """Block (row 1, column 2) of a.svs is the patch at (512, 256): the second of 12."""
    path = tmp_path / "slides" / "a.svs"
    patches = store.read_patches(tiled / "patches" / "a.h5")
    encoder = load_encoder(TINY, weights)
    with open_slide(path) as slide:
        whole = embed.embed_slide(slide, patches, encoder)
    break_one_block(path, 8 + 2)
    forget_fingerprint(tiled, "a")
    settings = {"run": tiled, "encoder": TINY, "weights": weights}
    failed = embed.run(EmbedConfig(**settings)).failed
    assert "1 or more of 12 patches cannot be read" in failed[0].reason
    assert "patch 1 at level-0 (512, 256), level 0, block (row 1, column 2): " in failed[0].reason
    assert not (tiled / "features" / TINY / "a.h5").exists()

    capfd.readouterr()
    assert not embed.run(EmbedConfig(**settings, max_broken=0.1, overwrite=True)).failed
    features = store.read_features(tiled / "features" / TINY / "a.h5")
    keep = np.arange(12) != 1
    assert (features.coords == patches.coords[keep]).all()
    assert np.abs(features.features.astype(float) - whole.features[keep].astype(float)).max() < 1e-2
    (left_out,) = features.left_out
    assert (left_out["index"], left_out["x_l0"], left_out["y_l0"]) == (1, 512, 256)
    assert left_out["where"] == "level 0, block (row 1, column 2)"
    with h5py.File(tiled / "features" / TINY / "a.h5") as file:
        assert file.attrs["left_out"] == 1
    row = next(r for r in store.read_csv(tiled / "embed" / "slides.csv") if r["slide_id"] == "a")
    assert (row["status"], row["patches"], row["left_out"], row["read_by"]) == ("done", "11", "1", "blocks")
    assert row["reason"].startswith(
        "left out 1 of 12 patches that cannot be read: patch 1 at level-0 (512, 256)"
    )
    assert "a: left out 1 of 12 patches" in capfd.readouterr().err


def test_features_are_the_same_through_blocks_and_through_slide(tiled, weights, monkeypatch, capfd, tmp_path):
    patches = store.read_patches(tiled / "patches" / "a.h5")
    encoder = load_encoder(TINY, weights)
    geometry = dataclasses.replace(patches.geometry, mpp=0.65, patch_px=128, patch_size_l0=128 * 1.3)
    for each in (patches, dataclasses.replace(patches, geometry=geometry)):
        found = []
        for vendors in (table.PLAIN_VENDORS, ()):
            monkeypatch.setattr(table, "PLAIN_VENDORS", vendors)
            with open_slide(patches.slide_path) as slide:
                found.append(embed.embed_slide(slide, each, encoder))
        assert [e.read_by == "blocks" for e in found] == [True, False]
        a, b = (e.features.astype(float) for e in found)
        cosine = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        assert cosine.min() > 0.9999
        monkeypatch.undo()
    # The readers are processes of their own: they import this as they start.
    (tmp_path / "sitecustomize.py").write_text("from wsi_mil.blocks import table\ntable.PLAIN_VENDORS = ()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    parallel.end_idle()
    embed.run(EmbedConfig(run=tiled, encoder=TINY, weights=weights))
    parallel.end_idle()
    said = "embed: some slides are read through openslide: {} slides have no plain grid of blocks"
    printed = capfd.readouterr().err
    assert [printed.count(said.format(vendor)) for vendor in ("aperio", "generic-tiff")] == [1, 1]


def test_only_the_patches_of_slides_on_their_way_are_in_memory(tiled, weights, monkeypatch, tmp_path):
    plans, make_plan, loaded = [], runs.make_plan, []

    def planning(*arguments):
        plans.append(make_plan(*arguments))
        return plans[0]

    def finished(listener, outcome):
        loaded.append(sum("patches" in vars(job) for job in plans[0].jobs))
        listener.table.add(outcome)

    monkeypatch.setattr(runs, "make_plan", planning)
    monkeypatch.setattr(runs._Listener, "finished", finished)
    assert not embed.run(EmbedConfig(run=tiled, encoder=TINY, weights=weights, batch_size=4)).failed
    assert len(loaded) == 3
    assert max(loaded) <= 2, "the slide that is read, and one whose last batch is full of it"
    assert not [job for job in plans[0].jobs if "patches" in vars(job)]

    # And what is loaded is what was planned, also when tile runs meanwhile.
    tile.run(TileConfig(slides=tmp_path / "slides", run=tiled, workers=1, overlap_px=64, overwrite=True))
    with pytest.raises(FormatError, match="a: its patches changed while the run was under way"):
        _ = next(job for job in plans[0].jobs if job.slide_id == "a").patches
