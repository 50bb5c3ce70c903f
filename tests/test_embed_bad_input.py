"""What goes wrong around `wsi-mil embed`: each through the command line, with its message and exit code."""

import os
import pickle
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from pipelines.pyramid import write_pyramid
from tests.conftest import draw_slide, mounted
from wsi_mil import encoders, store

TINY = "test_resnet"
SIDE = 1024


def draw(path, tissue=((0, 0, SIDE, SIDE),)):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_pyramid(path, draw_slide(SIDE, SIDE, tissue), 0.5)
    return path


@pytest.fixture(scope="module")
def tiled(tmp_path_factory):
    """Four slides of 16 patches, tiled, and weights: copied for every test."""
    from wsi_mil import tile
    from wsi_mil.config import TileConfig

    folder = tmp_path_factory.mktemp("tiled")
    for name in "abcd":
        draw(folder / "slides" / f"{name}.tiff")
    torch.manual_seed(0)
    weights = timm.create_model(TINY, num_classes=0).state_dict()
    safetensors.torch.save_file(weights, folder / "tiny.safetensors")
    tile.run(TileConfig(slides=folder / "slides", run=folder / "run", workers=1))
    return folder


@pytest.fixture
def run(tiled, tmp_path):
    shutil.copytree(tiled / "run", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def embed(wsi, run, tiled):
    """Run the command; no message may be a traceback."""

    def call(*flags, weights=tiled / "tiny.safetensors", encoder=TINY, run=run):
        given = ("--weights", weights) if weights else ()
        code, out, err = wsi(
            "embed", "--run", run, "--encoder", encoder, *given, "--device", "cpu", "--workers", 1, *flags
        )
        assert "Traceback" not in out + err
        return code, out, err

    return call


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def times(folder):
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*.h5")}


# Weights and encoders


def test_weights_that_are_truncated(embed, run, tiled, tmp_path):
    path = tmp_path / "cut.safetensors"
    path.write_bytes((tiled / "tiny.safetensors").read_bytes()[:-1000])
    code, _, err = embed(weights=path)
    assert code == 1
    assert re.search(r"wsi-mil: --weights .*cut.safetensors: damaged or not a weights file", err)
    assert not (run / "features").exists()


def test_weights_of_another_architecture(embed, run, tmp_path):
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file(timm.create_model("test_vit", num_classes=0).state_dict(), path)
    code, _, err = embed(weights=path)
    assert code == 1
    assert re.search(r"no tensor 'conv1.*', which test_resnet has .*of another architecture", err)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("container", ["plain pickle", "torch.save"])
def test_a_pickle_with_code_in_it_is_refused_and_does_not_run(embed, tmp_path, container):
    path, proof = tmp_path / "evil.pt", tmp_path / "proof"
    content = {"conv1.weight": Evil(proof)}
    if container == "torch.save":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    code, _, err = embed(weights=path)
    assert code == 1
    assert re.search(r"evil.pt: not a plain file of tensors; a pickle can run code and is refused", err)
    assert not proof.exists(), "the code did not run"
    pickle.loads(pickle.dumps(Evil(proof)))
    assert proof.exists(), "and it would have"


def test_weights_with_nan(embed, tiled, tmp_path):
    tensors = safetensors.torch.load_file(tiled / "tiny.safetensors")
    tensors["conv1.0.weight" if "conv1.0.weight" in tensors else next(iter(tensors))][0] = float("nan")
    path = tmp_path / "nan.safetensors"
    safetensors.torch.save_file(tensors, path)
    code, _, err = embed(weights=path)
    assert code == 1
    assert "holds NaN or infinite values; the file is damaged" in err


def test_an_encoder_that_does_not_exist(embed, run):
    code, _, err = embed(weights=None, encoder="resnet5O")
    assert code == 2
    assert re.search(r"--encoder resnet5O: timm has no such model .*Close: .*resnet50", err)
    assert not (run / "features").exists()


def test_offline_names_the_file_and_opens_no_slide(embed, run, tiled, monkeypatch):
    from wsi_mil.parallel import children

    monkeypatch.setattr(children, "take", lambda: pytest.fail("a reader was started"))
    code, _, err = embed("--offline", weights=None, encoder="hf-hub:nobody/no-such-encoder")
    assert code == 2
    assert re.search(r"config.json of hf-hub:nobody/no-such-encoder is not in the cache .*--offline", err)
    code, _, err = embed("--offline", weights=None, encoder="resnet50.a1_in1k")
    assert code == 2
    assert re.search(r"model.safetensors .*hf-hub:timm/resnet50.a1_in1k is not in the cache", err)


class Overflows(nn.Module):
    """Features beyond float16 for patches as dark as tissue."""

    def forward(self, x):
        mean = x.mean((2, 3))
        return torch.where(mean < 0.8, mean * 1e6, mean)


def test_features_that_overflow_fail_their_slide_and_name_the_patch(wsi, run, tiled, tmp_path):
    slides = tmp_path / "slides"
    draw(slides / "dark.tiff", ((0, 512, SIDE, SIDE),))
    draw(slides / "pale.tiff", ())
    code, *_ = wsi("tile", "--slides", slides, "--run", tmp_path / "new", "--min-tissue", 0, "--workers", 1)
    assert code == 0
    encoders.register("overflows", Overflows, input_px=64, mean=(0, 0, 0), std=(1, 1, 1))
    code, out, err = wsi("embed", "--run", tmp_path / "new", "--encoder", "overflows", "--precision", "fp32")
    assert code == 1
    assert re.search(
        r"failed dark: dark: the features of 8 patches hold NaN or infinity, the first is patch 8 at "
        r"\[0, 512\]",
        err,
    )
    assert "1 done, 0 skipped, 1 failed" in out
    assert names(tmp_path / "new" / "features" / "overflows") == ["pale.h5"]


# Slides and patches


def test_a_slide_that_vanished(embed, run, tiled, tmp_path):
    moved = tiled / "slides" / "b.tiff"
    moved.rename(tmp_path / "b.tiff")
    try:
        code, out, err = embed()
        assert code == 1
        assert re.search(r"failed b: .*b.tiff: no such file", err)
        assert "3 done, 0 skipped, 1 failed" in out
    finally:
        (tmp_path / "b.tiff").rename(moved)
    code, out, _ = embed()
    assert (code, "1 done, 3 skipped, 0 failed" in out) == (0, True)


def test_a_slide_that_was_replaced_by_one_of_the_same_name_and_size(wsi, tmp_path, tiled):
    slides, run = tmp_path / "slides", tmp_path / "run"
    path = draw(slides / "a.tiff")
    draw(slides / "b.tiff")

    def tile(*flags):
        return wsi("tile", "--slides", slides, "--run", run, "--workers", 1, *flags)

    def embed(*flags):
        weights = tiled / "tiny.safetensors"
        return wsi("embed", "--run", run, "--encoder", TINY, "--weights", weights, "--workers", 1, *flags)

    assert tile()[0] == 0
    size = path.stat().st_size
    draw(path, ((0, 0, 512, SIDE),))
    assert path.stat().st_size < size
    os.truncate(path, size)
    code, out, err = embed()
    assert code == 1
    assert re.search(
        "failed a: .*a.tiff: its bytes are not those that were tiled: the file was replaced. Tile it again "
        "with --overwrite", err,
    )  # fmt: skip
    assert "1 done, 0 skipped, 1 failed" in out
    code, _, err = tile()
    assert code == 1
    assert re.search(r"a.h5: made with other settings: slide_fingerprint was .*--overwrite", err)
    code, out, _ = tile("--overwrite")
    assert (code, "1 done, 1 skipped" in out) == (0, True), out
    code, out, _ = embed()
    assert (code, "1 done, 1 skipped, 0 failed" in out) == (0, True)
    assert len(store.read_features(run / "features" / TINY / "a.h5").features) == 8


def test_coords_outside_of_the_slide(embed, run):
    path = store.patches_path(run, "c")
    patches = store.read_patches(path)
    patches.coords[3] = (5 * SIDE, 0)
    store.write_patches(path, patches)
    code, out, err = embed()
    assert code == 1
    assert re.search(
        r"failed c: c: 1 of 16 patches lie outside of the slide, the first is patch 3 at level-0 \[5120, 0\]",
        err,
    )
    assert "3 done, 0 skipped, 1 failed" in out


@pytest.mark.parametrize("what", ["truncated", "garbage", "empty", "of another slide"])
def test_a_patches_file_that_is_damaged_fails_alone(embed, run, what):
    path = store.patches_path(run, "b")
    whole = path.read_bytes()
    if what == "of another slide":
        shutil.copyfile(store.patches_path(run, "a"), path)
    else:
        path.write_bytes({"truncated": whole[:-900], "garbage": os.urandom(5000), "empty": b""}[what])
    code, out, err = embed()
    assert code == 1
    words = r"b.h5: (not readable as HDF5|damaged).*remove it and run"
    assert re.search(r"b.h5: says that it is of slide a" if what == "of another slide" else words, err), err
    assert "3 done, 0 skipped, 1 failed" in out
    assert re.search(r"1 failed.*\bb\b.*b.h5", out)
    rows = {row["slide_id"]: row["status"] for row in store.read_csv(run / "embed" / "slides.csv")}
    assert rows == {"a": "done", "b": "failed", "c": "done", "d": "done"}
    path.write_bytes(whole)
    code, out, _ = embed()
    assert (code, "1 done, 3 skipped, 0 failed" in out) == (0, True)


@pytest.mark.slow
def test_a_patches_file_that_is_damaged_with_several_devices(wsi, run, tiled):
    store.patches_path(run, "b").write_bytes(b"garbage")
    code, out, err = wsi(
        "embed", "--run", run, "--encoder", TINY, "--weights", tiled / "tiny.safetensors", "--devices", "cpu"
    )
    assert code == 1
    assert err.count("failed b: ") == 1
    assert "3 done, 0 skipped, 1 failed" in out


def test_a_features_file_that_is_damaged_fails_alone_and_overwrite_makes_it_again(embed, run):
    assert embed()[0] == 0
    path = run / "features" / TINY / "b.h5"
    path.write_bytes(path.read_bytes()[:3000])
    store.patches_path(run, "c")
    code, out, err = embed()
    assert code == 1
    assert re.search(r"failed b: .*b.h5: not readable as HDF5.*remove it and run the stage again", err)
    assert "0 done, 3 skipped, 1 failed" in out
    code, out, _ = embed("--overwrite")
    assert (code, "1 done, 3 skipped, 0 failed" in out) == (0, True)


# Stores and flags


@pytest.mark.parametrize(("first", "then"), [("hdf5", "zarr"), ("zarr", "hdf5")])
def test_another_kind_of_store_than_the_run_has(embed, run, first, then):
    assert embed("--store", first)[0] == 0
    code, _, err = embed("--store", then)
    assert code == 2
    assert re.search(
        rf"--store {then}: the run has features of test_resnet as {first} already, in .*--store {first}", err
    )


def test_a_url_without_zarr(embed):
    code, _, err = embed("--store-url", "s3://bucket/prefix")
    assert code == 2
    assert "--store-url s3://bucket/prefix: only a zarr store can lie elsewhere; add --store zarr." in err


# Disks


@pytest.mark.parametrize(("kind", "room"), [("hdf5", 300_000), ("zarr", 80_000)])
def test_a_disk_that_fills_up_in_the_middle(embed, run, tiled, tmp_path, kind, room):
    small = tmp_path / "small"
    small.mkdir()
    with mounted("-t", "tmpfs", "-o", "size=3m", "tmpfs", small):
        shutil.copytree(run, small / "run")
        filler = small / "filler"
        filler.write_bytes(bytes(shutil.disk_usage(small).free - room))
        code, out, err = embed("--store", kind, run=small / "run")
        print(out, err)
        assert code == 1
        failed = set(re.findall(r"failed ([abcd]): ", err))
        reasons = (
            r"failed [abcd]: \S+/features/test_resnet\S*/[abcd](\.h5)?: cannot be written: the disk is full"
        )
        assert len(re.findall(reasons, err)) == len(failed), err
        features = store.open_features(small / "run", TINY, kind)
        assert 1 <= len(failed) <= 3
        assert set(features.slide_ids()) == set("abcd") - failed, "others are there"
        before = {slide_id: features.read(slide_id).features for slide_id in features.slide_ids()}
        left = names(small / "run")
        assert not [name for name in left if ".tmp" in name or ".claim-" in name or ".clock-" in name], left
        filler.unlink()
        code, out, err = embed("--store", kind, run=small / "run")
        assert code == 0, err
        assert f"{len(failed)} done, {4 - len(failed)} skipped, 0 failed" in out
        assert all((features.read(each).features == values).all() for each, values in before.items())
        assert features.slide_ids() == list("abcd")


def test_a_disk_that_is_full_from_the_start(embed, run, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    with mounted("-t", "tmpfs", "-o", "size=3m", "tmpfs", small):
        shutil.copytree(run, small / "run")
        (small / "filler").write_bytes(bytes(shutil.disk_usage(small).free))
        code, _, err = embed(run=small / "run")
        assert code == 1
        assert "the disk is full" in err
        assert not list((small / "run").rglob("*.tmp")) + list((small / "run").rglob("*.claim-*"))
        (small / "filler").unlink()
        assert embed(run=small / "run")[0] == 0


@pytest.mark.parametrize("flags", [(), ("--devices", "cpu")], ids=["one", "devices"])
def test_a_run_folder_that_is_read_only(wsi, run, tiled, flags):
    with mounted("--bind", run, run):
        subprocess.run(["mount", "-o", "remount,ro,bind", str(run)], check=True)
        before = names(run)
        code, out, err = wsi(
            "embed", "--run", run, "--encoder", TINY, "--weights", tiled / "tiny.safetensors", *flags
        )
        assert names(run) == before
    assert code == 1
    assert "Traceback" not in out + err
    assert len(re.findall("wsi-mil: ", err)) == 1
    assert re.search(r"wsi-mil: .*cannot be written: the file system is read-only", err)


# Runs that follow


def test_run_twice_add_slides_and_overwrite(wsi, embed, tiled, tmp_path):
    run = tmp_path / "grows"
    slides = tmp_path / "slides"
    slides.mkdir()
    for name in "ab":
        shutil.copyfile(tiled / "slides" / f"{name}.tiff", slides / f"{name}.tiff")
    assert wsi("tile", "--slides", slides, "--run", run, "--workers", 1)[0] == 0
    assert embed(run=run)[0] == 0
    table, made = store.read_csv(run / "embed" / "slides.csv"), times(run / "features")
    assert {row["status"] for row in table} == {"done"}

    def figures(rows):
        return [{key: value for key, value in row.items() if key != "status"} for row in rows]

    start = time.perf_counter()
    code, out, _ = embed(run=run)
    assert time.perf_counter() - start < 5
    assert (code, "0 done, 2 skipped, 0 failed" in out) == (0, True)
    assert times(run / "features") == made
    again = store.read_csv(run / "embed" / "slides.csv")
    assert {row["status"] for row in again} == {"skipped"}
    assert figures(again) == figures(table), "the figures of the run that did the work"

    shutil.copyfile(tiled / "slides" / "c.tiff", slides / "c.tiff")
    assert wsi("tile", "--slides", slides, "--run", run, "--workers", 1)[0] == 0
    code, out, _ = embed(run=run)
    assert (code, "1 done, 2 skipped, 0 failed" in out) == (0, True)
    assert {key: value for key, value in times(run / "features").items() if key in made} == made
    assert figures(store.read_csv(run / "embed" / "slides.csv"))[:2] == figures(table)

    made = times(run / "features")
    assert "0 done, 3 skipped" in embed("--overwrite", run=run)[1]
    assert times(run / "features") == made
    code, _, err = embed("--max-broken", 0.5, run=run)
    assert code == 1
    assert "made with other settings: max_broken was 0.01" in err
    assert "3 done, 0 skipped" in embed("--max-broken", 0.5, "--overwrite", run=run)[1]
    assert not set(times(run / "features").values()) & set(made.values())


def test_figures_that_a_killed_run_did_not_write_are_taken_from_the_features(embed, run):
    assert embed()[0] == 0
    table = store.read_csv(run / "embed" / "slides.csv")
    (run / "embed" / "slides.csv").unlink()
    assert embed()[0] == 0
    for before, row in zip(table, store.read_csv(run / "embed" / "slides.csv"), strict=True):
        for name in ("slide_id", "patches", "left_out", "checksum", "encoder"):
            assert row[name] == before[name]


def test_the_table_is_of_one_encoder(wsi, embed, run, tmp_path):
    """Embedded with one, with another, and again with the first: its figures are its own."""
    path = tmp_path / "vit.safetensors"
    safetensors.torch.save_file(timm.create_model("test_vit", num_classes=0).state_dict(), path)
    assert embed()[0] == 0
    first = store.read_csv(run / "embed" / "slides.csv")
    assert embed(encoder="test_vit", weights=path)[0] == 0
    assert embed()[0] == 0
    again = store.read_csv(run / "embed" / "slides.csv")
    assert [row["checksum"] for row in again] == [row["checksum"] for row in first]
    code, out, _ = wsi("verify", "--run", run)
    assert code == 0, out


# Leaks


def numbers():
    status = Path("/proc/self/status").read_text()
    memory = int(re.search(r"VmRSS:\s+(\d+)", status)[1])
    return memory, len(list(Path("/proc/self/fd").iterdir())), threading.active_count()


def many(tiled, run, count):
    """Make a run of so many slides out of one: each has its own link and patches."""
    import dataclasses

    patches = store.read_patches(store.patches_path(tiled / "run", "a"))
    for i in range(count):
        one = dataclasses.replace(patches, slide_id=f"s{i:02}")
        store.write_patches(store.patches_path(run, one.slide_id), one)
    return run


def measured(tiled, run, monkeypatch, kind):
    from wsi_mil import embed
    from wsi_mil.config import EmbedConfig
    from wsi_mil.embed.run import _Listener

    found = []
    finished = _Listener.finished

    def counting(self, outcome):
        finished(self, outcome)
        found.append(numbers())

    monkeypatch.setattr(_Listener, "finished", counting)
    embed.run(EmbedConfig(
        run=run, encoder=TINY, weights=tiled / "tiny.safetensors", device="cpu", workers=1, store=kind,
    ))  # fmt: skip
    return np.array(found)


@pytest.mark.parametrize("kind", ["hdf5", "zarr"])
def test_files_and_threads_do_not_grow(tiled, tmp_path, monkeypatch, kind):
    found = measured(tiled, many(tiled, tmp_path / "many", 16), monkeypatch, kind)
    assert len(found) == 16
    # One or two come and go with the moment; what every slide leaves behind would be eight.
    assert found[-4:, 1].max() <= found[2:6, 1].max() + 2, "files"
    assert found[-4:, 2].max() <= found[2:6, 2].max() + 2, "threads"
    before = numbers()
    monkeypatch.undo()
    measured(tiled, many(tiled, tmp_path / "more", 3), monkeypatch, kind)
    time.sleep(0.1)
    after = numbers()
    assert after[1:] == before[1:], "and the command leaves none"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hdf5", "zarr"])
def test_memory_does_not_grow(tiled, tmp_path, monkeypatch, kind):
    found = measured(tiled, many(tiled, tmp_path / "many", 60), monkeypatch, kind)
    print(found[::10, 0])
    assert found[59, 0] < 1.05 * found[19, 0]
