"""Faults planted in a run, one at a time: each is found and named, and none is reported on a clean run."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr

from tests.conftest import without_roots_powers
from tests.test_embed import weights  # noqa: F401 - a fixture
from tests.test_heatmap import head as model_head
from tests.test_heatmap import random_model
from wsi_mil import config as configs
from wsi_mil import models, store, verify
from wsi_mil.config import VerifyConfig
from wsi_mil.geometry import PatchGeometry, grid_l0
from wsi_mil.store import checksum

SLIDES = ("a", "b", "c d")
KINDS = ("hdf5", "zarr")
GEOMETRY = PatchGeometry.plan(width_l0=9000, height_l0=9000, mpp_l0=0.5, mpp=0.5, patch_px=256)


def patches_of(slide_id: str) -> store.Patches:
    seed = SLIDES.index(slide_id)
    coords = grid_l0(GEOMETRY)[: 700 + seed]
    return store.Patches(
        slide_id=slide_id, slide_path=Path(f"/slides/{slide_id}.svs"), reader="openslide", mpp_source="given",
        geometry=GEOMETRY, coords=coords, tissue_fraction=np.linspace(0.1, 1, len(coords), dtype=np.float32),
        record={"mpp": 0.5},
    )  # fmt: skip


def write_features(features: store.FeatureStore, slide_id: str) -> None:
    patches = patches_of(slide_id)
    rng = np.random.default_rng(SLIDES.index(slide_id))
    values = rng.normal(size=(len(patches.coords), 6)).astype(np.float16)
    head = store.FeaturesHead(
        slide_id=slide_id, slide_path=patches.slide_path, reader="openslide", geometry=GEOMETRY,
        encoder="net", weights_digest="f00d", patches_digest=patches.digest, dim=6, record={"encoder": "net"},
    )  # fmt: skip
    with features.writer(head, patches.coords) as writer:
        writer.put(np.arange(1, len(values)), values[1:])
        writer.leave_out([{"index": 0, "x_l0": 0, "y_l0": 0, "where": "block 1", "reason": "zeros"}])


def make(run: Path, kind: str) -> None:
    """Make what is not there, as the stages do when they are run again."""
    features = store.open_features(run, "net", kind)
    tile, embed = [], []
    for slide_id in SLIDES:
        path = store.patches_path(run, slide_id)
        if not store.is_done(path, {"mpp": 0.5}, "patches"):
            store.write_patches(path, patches_of(slide_id))
        tile.append({"slide_id": slide_id, "status": "done", "patches": len(patches_of(slide_id).coords)})
        if not features.is_done(slide_id, {"encoder": "net"}):
            write_features(features, slide_id)
        summary = features.summary(slide_id)
        embed.append(
            {
                "slide_id": slide_id, "status": "done", "patches": summary.patches,
                "checksum": summary.checksums["features"],
            }
        )  # fmt: skip
        folder = store.heatmap_folder(run, "m", slide_id)
        if not store.heatmap_is_done(folder, {"name": "m"}):
            make_heatmap(folder, slide_id)
    if not store.model_folder(run, "m").exists():
        make_model(store.model_folder(run, "m"))
    columns = ("slide_id", "status", "patches", "checksum", "reason")
    if (run / "tile").exists():
        return
    for stage, rows in (("tile", tile), ("embed", embed), ("heatmap", tile)):
        store.write_csv(run / stage / "slides.csv", columns, rows)
        facts = {"config": {"encoder": "net"}, "model": "m"}
        store.write_text(run / stage / "stage.json", json.dumps(facts))


def make_heatmap(folder: Path, slide_id: str) -> None:
    coords = patches_of(slide_id).coords[1:]
    heatmap = store.Heatmap(
        slide_id=slide_id, geometry=GEOMETRY, coords=coords, record={"name": "m"}, facts={},
        values={"attention": np.full((1, len(coords)), 1 / len(coords), np.float32)}, outputs=("tumor",),
        shown={"quantity": "attention", "output": "tumor"},
    )  # fmt: skip
    with store.atomic_folder(folder) as temporary:
        store.write_heatmap(temporary / "heatmap.zarr", heatmap)
        (temporary / "overlay.jpg").write_bytes(b"\xff\xd8 a picture \xff\xd9")
        (temporary / "heatmap.geojson").write_text("{}")


def make_model(folder: Path) -> None:
    record = {"model": "attention"}
    with store.atomic_folder(folder) as temporary:
        for fold in (0, 1):
            tensors = models.tensors(random_model(fold))
            store.write_fold(temporary / f"fold_{fold}.safetensors", tensors, model_head(fold=fold))
        scores = {"config": record, "config_digest": configs.digest(record)}
        scores |= {"features_digest": "1", "labels_digest": "2"}
        (temporary / "metrics.json").write_text(json.dumps(scores))
        (temporary / "config.toml").write_text("[train]\n")
        (temporary / "splits.csv").write_text("fold,member,slide_id,role\n0,0,a,test\n1,0,b,test\n")
        (temporary / "predictions.csv").write_text("slide_id\na\n")


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> dict[str, Path]:
    runs = {kind: tmp_path_factory.mktemp(kind) / "run" for kind in KINDS}
    for kind, run in runs.items():
        make(run, kind)
    return runs


# The faults: each plants one in a run and returns the file that verify must name.


@dataclass
class Bench:
    """One copy of a run, and the random numbers of one fault."""

    run: Path
    kind: str
    rng: np.random.Generator

    @property
    def features(self) -> store.FeatureStore:
        return store.open_features(self.run, "net", self.kind)

    def slide(self) -> str:
        return SLIDES[self.rng.integers(len(SLIDES))]

    def features_file(self, slide_id: str, name: str = "features") -> Path:
        """The file on disk that holds the values of an array."""
        where = Path(self.features.where(slide_id))
        return where if self.kind == "hdf5" else where / name / "c" / "0" / "0"

    def change(self, where: Path, change: Callable[[object], None]) -> None:
        """Change a slide's features (or a patches file) as a program would that knows of checksums."""
        if where.is_dir():
            node = zarr.open_group(where, mode="a")
            change(node)
            for name in ("coords", "features"):
                node[name].attrs["checksum"] = checksum.of_array(np.asarray(node[name][:]))
            found = {"": node.attrs.asdict()} | {
                name: node[name].attrs.asdict() for name in ("coords", "features", "left_out")
            }
            node.attrs["attributes_checksum"] = checksum.of_attributes(found)
            return
        with h5py.File(where, "a") as node:
            change(node)
            for name in set(node) - {"left_out"}:
                node[name].attrs["checksum"] = checksum.of_array(node[name][:])
            found = {owner: dict(node[owner or "/"].attrs) for owner in ["", *node]}
            node.attrs["attributes_checksum"] = checksum.of_attributes(found)


def flip(path: Path, rng: np.random.Generator, first: int = 0, count: int | None = None) -> None:
    data = bytearray(path.read_bytes())
    at = first + int(rng.integers(count or len(data) - first))
    data[at] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)


def flipped(array: str) -> Callable[[Bench], str]:
    def plant(bench: Bench) -> str:
        slide_id = bench.slide()
        path, first, count = bench.features_file(slide_id, array), 0, None
        if bench.kind == "hdf5":
            with h5py.File(path) as file:
                if array == "coords":
                    first, count = file[array].id.get_offset(), file[array].id.get_storage_size()
                else:
                    info = file[array].id.get_chunk_info(0)
                    first, count = info.byte_offset, info.size
        flip(path, bench.rng, first, count)
        return bench.features.where(slide_id)

    return plant


def flipped_attribute(bench: Bench) -> str:
    """One bit of the text of the settings, as it stands in the file."""
    slide_id = bench.slide()
    where = Path(bench.features.where(slide_id))
    path = where if bench.kind == "hdf5" else where / "zarr.json"
    data = bytearray(path.read_bytes())
    at = data.index(b"f00d") + int(bench.rng.integers(4))
    data[at] ^= 1
    path.write_bytes(data)
    return str(where)


def flipped_in_patches(bench: Bench) -> str:
    path = store.patches_path(bench.run, bench.slide())
    with h5py.File(path) as file:
        name = ("coords", "tissue_fraction")[bench.rng.integers(2)]
        first, count = file[name].id.get_offset(), file[name].id.get_storage_size()
    flip(path, bench.rng, first, count)
    return str(path)


def any_file(bench: Bench) -> tuple[Path, str]:
    """Return a file, and what of it verify names."""
    slide_id = bench.slide()
    if bench.rng.random() < 0.4:
        path = store.patches_path(bench.run, slide_id)
        return path, str(path)
    array = ("features", "coords")[bench.rng.integers(2)]
    return bench.features_file(slide_id, array), bench.features.where(slide_id)


def truncated(bench: Bench) -> str:
    path, named = any_file(bench)
    os.truncate(path, int(path.stat().st_size * bench.rng.uniform(0.05, 0.95)))
    return named


def emptied(bench: Bench) -> str:
    path, named = any_file(bench)
    os.truncate(path, 0)
    return named


def garbage(bench: Bench) -> str:
    path, named = any_file(bench)
    path.write_bytes(bench.rng.bytes(path.stat().st_size))
    return named


def swapped(bench: Bench) -> str:
    one, two = bench.rng.permutation(SLIDES)[:2]
    paths = [store.patches_path(bench.run, each) for each in (one, two)]
    if bench.rng.random() < 0.7:
        paths = [Path(bench.features.where(each)) for each in (one, two)]
    aside = bench.run / "aside"
    paths[0].rename(aside)
    paths[1].rename(paths[0])
    aside.rename(paths[1])
    return str(paths[0])


def missing(bench: Bench) -> str:
    slide_id = bench.slide()
    if bench.rng.random() < 0.3:
        path = store.patches_path(bench.run, slide_id)
        path.unlink()
        return str(path)
    if bench.rng.random() < 0.3:
        folder = store.heatmap_folder(bench.run, "m", slide_id)
        shutil.rmtree(folder)
        return str(folder)
    bench.features.remove(slide_id)
    return bench.features.where(slide_id)


def not_a_number(bench: Bench) -> str:
    where = Path(bench.features.where(bench.slide()))
    row, bad = int(bench.rng.integers(690)), (np.nan, np.inf, -np.inf)[bench.rng.integers(3)]

    def change(node):
        node["features"][row, 3] = bad

    bench.change(where, change)
    return str(where)


def rows_dropped(bench: Bench) -> str:
    where = Path(bench.features.where(bench.slide()))
    keep = int(bench.rng.integers(1, 600))

    def change(node):
        for name in ("coords", "features"):
            values, facts = node[name][:keep], dict(node[name].attrs)
            del node[name]
            if where.is_dir():
                node.create_array(name, data=np.asarray(values), attributes=facts)
            else:
                node.create_dataset(name, data=values).attrs.update(facts)

    bench.change(where, change)
    return str(where)


def wrong_format(bench: Bench) -> str:
    patches = bench.rng.random() < 0.3
    where = store.patches_path(bench.run, "a") if patches else Path(bench.features.where(bench.slide()))
    name, value = (("format", "clam"), ("format_version", 7), ("format_version", 0))[bench.rng.integers(3)]

    def change(node):
        node.attrs[name] = value

    bench.change(where, change)
    return str(where)


def other_settings(bench: Bench) -> str:
    where = Path(bench.features.where(bench.slide()))

    def change(node):
        node.attrs["config"] = json.dumps({"encoder": f"net{bench.rng.integers(99)}"})

    bench.change(where, change)
    return str(where)


def of_other_patches(bench: Bench) -> str:
    where = Path(bench.features.where(bench.slide()))

    def change(node):
        if bench.rng.random() < 0.5:
            node.attrs["patches_digest"] = "0123456789abcdef"
        else:
            coords = node["coords"][:]
            coords[int(bench.rng.integers(len(coords)))] += 256
            node["coords"][:] = coords

    bench.change(where, change)
    return str(where)


def replaced(bench: Bench) -> str:
    """Other values, whole and with checksums: only the stage's table knows better."""
    where = Path(bench.features.where(bench.slide()))

    def change(node):
        node["features"][int(bench.rng.integers(690)), 2] = 9.5

    bench.change(where, change)
    for path in [where, *where.rglob("*")]:
        os.utime(path, (1e9, 1e9))  # the table is what was written last
    return str(where)


def leftover(bench: Bench) -> str:
    process = subprocess.Popen(["true"])
    process.wait()
    host = store.atomic.host()  # type: ignore[attr-defined]
    features = Path(bench.features.place)
    folder = (bench.run / "patches", features, bench.run / "models", bench.run / "heatmaps" / "m", bench.run)
    path = folder[bench.rng.integers(5)] / f".x.h5.{host}-{process.pid}.tmp"
    which = bench.rng.integers(4)
    if which == 0:
        path.mkdir()
        (path / "zarr.json").write_text("{}")
    elif which == 1:
        path = bench.run / "embed" / "claims" / "net" / "a.claim-3"
        path.parent.mkdir(parents=True)
        path.write_text("x")
        os.utime(path, (time.time() - 700,) * 2)
    elif which == 2:
        path = path.with_name(".x.h5.another-computer-77.tmp")
        path.write_text("half")
        os.utime(path, (time.time() - 9000,) * 2)
    else:
        path.write_text("half")
    return str(path)


def broken_model(bench: Bench) -> str:
    folder = store.model_folder(bench.run, "m")
    name = ("fold_0.safetensors", "fold_1.safetensors", "metrics.json")[bench.rng.integers(3)]
    path = folder / name
    os.truncate(path, int(path.stat().st_size * bench.rng.uniform(0, 0.9)))
    return str(path)


def broken_heatmap(bench: Bench) -> str:
    folder = store.heatmap_folder(bench.run, "m", bench.slide())
    name = ("overlay.jpg", "heatmap.geojson", "heatmap.zarr/zarr.json")[bench.rng.integers(3)]
    os.truncate(folder / name, 1)
    return str(folder / name.split("/")[0])


FAULTS: dict[str, tuple[Callable[[Bench], str], set[str]]] = {
    "bit of features": (flipped("features"), {"checksum", "unreadable"}),
    "bit of coords": (flipped("coords"), {"checksum", "unreadable"}),
    "bit of an attribute": (flipped_attribute, {"checksum"}),
    "bit of patches": (flipped_in_patches, {"checksum"}),
    "truncated": (truncated, {"unreadable", "checksum"}),
    "empty": (emptied, {"unreadable", "checksum"}),
    "garbage": (garbage, {"unreadable", "checksum"}),
    "swapped": (swapped, {"wrong name"}),
    "missing": (missing, {"missing"}),
    "not a number": (not_a_number, {"not a number"}),
    "rows dropped": (rows_dropped, {"counts"}),
    "wrong format": (wrong_format, {"wrong format"}),
    "other settings": (other_settings, {"other settings"}),
    "of other patches": (of_other_patches, {"other patches"}),
    "replaced": (replaced, {"checksum"}),
    "leftover": (leftover, {"leftover"}),
    "model": (broken_model, {"unreadable"}),
    "heatmap": (broken_heatmap, {"unreadable"}),
}


def plant_find_repair(clean: dict[str, Path], folder: Path, kind: str, fault: str, seed: int) -> None:
    run = folder / "run"
    shutil.copytree(clean[kind], run)
    plant, kinds = FAULTS[fault]
    named = plant(Bench(run, kind, np.random.default_rng(seed)))
    context = f"{fault} in {kind}, seed {seed}"
    found = problems(run)
    assert [each for each in found if each.file == named and each.kind in kinds], (context, named, found)
    allowed = {"wrong name"} if fault == "swapped" else kinds | {"missing"}
    assert {each.kind for each in found} <= allowed, (context, found)
    assert len({each.file for each in found}) <= 2, (context, found)
    kept = found[0].kind == "wrong format"
    result = verify.run(VerifyConfig(run=run, repair=True))
    assert bool(result.failed) == (fault == "missing" or kept), (context, result.failed)
    if kept:  # whole, and of a newer or of another program: not ours to remove
        assert Path(named).exists()
        return
    make(run, kind)
    assert problems(run) == [], context
    shutil.rmtree(run)


def problems(run: Path) -> list[store.Problem]:
    verification = store.Verification(run)
    for check in verification.checks:
        check()
    return verification.problems


@pytest.mark.parametrize("kind", KINDS)
def test_a_clean_run_has_no_problem(clean, kind, wsi):
    code, out, err = wsi("verify", "--run", clean[kind])
    assert (code, err.count("failed")) == (0, 0), out + err
    assert "verify: 10 done, 0 skipped, 0 failed" in out


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_fault_is_found_named_and_repaired(clean, tmp_path, kind, fault):
    plant_find_repair(clean, tmp_path, kind, fault, seed=11)


@pytest.mark.slow
def test_two_hundred_planted_faults(clean, tmp_path):
    rng = np.random.default_rng(2026)
    for number in range(200):
        fault = list(FAULTS)[number % len(FAULTS)]
        folder = tmp_path / str(number)
        plant_find_repair(clean, folder, KINDS[number // 2 % 2], fault, int(rng.integers(2**31)))
        shutil.rmtree(folder, ignore_errors=True)


def test_what_lives_or_is_not_ours_is_left_alone(clean, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(clean["hdf5"], run)
    process = subprocess.Popen(["sleep", "60"])
    kept = [
        run / "patches" / f".x.h5.{store.atomic.host()}-{process.pid}.tmp",  # type: ignore[attr-defined]
        run / "patches" / ".x.h5.another-computer-77.tmp",
        run / "embed" / "claims" / "net" / "a.claim-1",
        run / "patches" / ".notes.tmp",
        run / "features" / "net" / "README.txt",
    ]
    for path in kept:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    try:
        assert problems(run) == []
        verify.run(VerifyConfig(run=run, repair=True))
        assert all(path.exists() for path in kept)
    finally:
        process.kill()
        process.wait()


def test_nothing_outside_the_run_is_followed_or_removed(clean, tmp_path):
    run, outside = tmp_path / "run", tmp_path / "outside"
    shutil.copytree(clean["hdf5"], run)
    outside.mkdir()
    (run / "features" / "net").rename(outside / "net")
    (run / "features" / "net").symlink_to(outside / "net")
    os.truncate(outside / "net" / "a.h5", 100)
    path = store.patches_path(run, "b")
    path.rename(outside / "b.h5")
    os.truncate(outside / "b.h5", 100)
    path.symlink_to(outside / "b.h5")
    process = subprocess.Popen(["true"])
    process.wait()
    temporary = run / f".x.{store.atomic.host()}-{process.pid}.tmp"  # type: ignore[attr-defined]
    temporary.symlink_to(outside)
    found = problems(run)
    assert {(each.file, each.kind) for each in found} == {
        (str(run / "features" / "net"), "not checked"), (str(path), "not checked"),
        (str(temporary), "leftover"),
    }  # fmt: skip
    verify.run(VerifyConfig(run=run, repair=True))
    assert not temporary.is_symlink()
    assert sorted(each.name for each in outside.rglob("*")) == ["a.h5", "b.h5", "b.h5", "c d.h5", "net"]


def test_features_elsewhere_are_checked_and_never_removed(clean, tmp_path):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    shutil.copytree(clean["zarr"], run)
    features = store.open_features(run, "net")
    shutil.rmtree(features.place)
    other = store.open_features(run, "net", "zarr", str(elsewhere))
    for slide_id in SLIDES:
        write_features(other, slide_id)
    assert problems(run) == []
    flip(elsewhere / "a" / "features" / "c" / "0" / "0", np.random.default_rng(1))
    result = verify.run(VerifyConfig(run=run, repair=True))
    assert [each.slide_id for each in result.failed] == [str(elsewhere / "a")]
    assert other.slide_ids() == sorted(SLIDES)


def test_files_written_before_checksums_are_a_remark(clean, tmp_path, wsi):
    run = tmp_path / "run"
    shutil.copytree(clean["hdf5"], run)
    for path in (store.patches_path(run, "a"), store.features_path(run, "net", "b")):
        with h5py.File(path, "a") as file:
            del file.attrs["attributes_checksum"]
            for name in file:
                if "checksum" in file[name].attrs:
                    del file[name].attrs["checksum"]
    code, out, _ = wsi("verify", "--run", run)
    assert code == 0
    assert "verify: 8 done, 2 skipped, 0 failed" in out
    assert "patches/a.h5: not checked: written before checksums" in out


def test_the_command_says_file_problem_and_what_to_do(clean, tmp_path, wsi):
    run = tmp_path / "run"
    shutil.copytree(clean["hdf5"], run)
    flip_at = store.features_path(run, "net", "c d")
    os.truncate(flip_at, 999)
    store.features_path(run, "net", "a").unlink()
    code, out, _ = wsi("verify", "--run", run)
    assert code == 1
    assert "2 failed" in out
    assert "features/net/c d.h5" in out
    assert "unreadable: not readable as HDF5" in out
    assert "remove it (--repair does), then run `wsi-mil embed` again." in out
    assert "missing: embed/slides.csv says that it is done; run `wsi-mil embed` again." in out
    code, out, _ = wsi("verify", "--run", run, "--repair")
    assert code == 1, "a missing file is beyond it"
    assert "note: features/net/c d.h5: removed (unreadable: " in out
    make(run, "hdf5")
    assert wsi("verify", "--run", run)[0] == 0
    assert wsi("verify", "--run", tmp_path / "nowhere")[0] == 2


@pytest.mark.parametrize(
    ("version", "kind", "words", "kept"),
    [
        (1, "earlier version", "a heatmap of version 1; this program knows 2 and draws it anew", False),
        (99, "wrong format", "of version 99, written by a newer version of this program; .* knows 2", True),
    ],
)
def test_a_heatmap_of_another_version_is_said_to_be_one(clean, tmp_path, version, kind, words, kept):
    run = tmp_path / "run"
    shutil.copytree(clean["hdf5"], run)
    folder = store.heatmap_folder(run, "m", "a")
    head = folder / "heatmap.zarr" / "zarr.json"
    content = json.loads(head.read_text())
    content["attributes"]["format_version"] = version
    head.write_text(json.dumps(content))
    (found,) = problems(run)
    assert (found.file, found.kind) == (str(folder / "heatmap.zarr"), kind)
    assert re.search(words, found.detail)
    assert "wsi-mil heatmap" in found.what_to_do()
    assert found.repair() is not kept
    assert folder.exists() is kept


def test_folders_of_other_tools_are_not_repaired(tmp_path, wsi):
    (tmp_path / "patches").mkdir()
    path = tmp_path / "patches" / "a.h5"
    path.write_bytes(b"theirs")
    code, _, err = wsi("verify", "--run", tmp_path, "--repair")
    assert code == 2
    assert "is no run folder" in err
    assert path.exists()


def test_a_file_without_permission_is_named_and_kept(clean, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(clean["hdf5"], run)
    path = store.features_path(run, "net", "a")
    path.chmod(0)
    with without_roots_powers():
        (problem,) = problems(run)
    assert (problem.kind, problem.removable) == ("no permission", None)


SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
static int refused(const char *path) {
    const char *part = getenv("REFUSED");
    return part && *part && path && strstr(path, part);
}
int flock(int file, int operation) { errno = ENOLCK; return -1; }
#define OPEN(name) int name(const char *path, int flags, ...) { \\
    va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \\
    if (refused(path)) { errno = EIO; return -1; } \\
    int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, #name); \\
    return real(path, flags, mode); }
OPEN(open)
OPEN(open64)
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory) -> Path:
    """A library to preload: no locks are to be had, and files whose path holds $REFUSED give EIO."""
    if shutil.which("gcc") is None or sys.platform != "linux":
        pytest.skip("no gcc: a file system without locks was NOT tested")
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.c").write_text(SHIM)
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-o", folder / "shim.so", folder / "shim.c", "-ldl"], check=True
    )
    return folder / "shim.so"


def without_locks(shim: Path, code: str, *arguments: object, **more: str) -> str:
    environment = os.environ | {"LD_PRELOAD": str(shim), "COLUMNS": "400"} | more
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return f"{done.returncode} {done.stdout} {done.stderr}"


VERIFY = "import sys; from wsi_mil.cli import main; sys.exit(main(['verify', '--run', *sys.argv[1:]]))"


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_opened_is_not_damaged_and_stays(clean, tmp_path, shim, kind):
    run = tmp_path / "run"
    shutil.copytree(clean[kind], run)
    before = {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}

    def kept() -> bool:
        return {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()} == before

    said = without_locks(shim, VERIFY, run, "--repair")
    assert said.startswith("0 "), said
    assert kept()
    # Locks that are insisted on, and are not to be had.
    said = without_locks(shim, VERIFY, run, "--repair", HDF5_USE_FILE_LOCKING="TRUE")
    assert said.startswith("1 "), said
    assert kept(), said
    assert "set HDF5_USE_FILE_LOCKING=FALSE" in said
    assert "nothing is known to be wrong with it" in said
    assert "removed" not in said
    # A disk that gives errors.
    said = without_locks(shim, VERIFY, run, "--repair", REFUSED=str(run / "features"))
    assert said.startswith("1 "), said
    assert kept(), said
    said = without_locks(shim, VERIFY, run, "--repair", REFUSED=str(run))
    assert said.startswith(("1 ", "2 ")), said
    assert kept(), said


def test_files_are_written_and_read_where_there_are_no_locks(clean, tmp_path, shim):
    code = """
import sys
from pathlib import Path
from wsi_mil import store
source, target = map(Path, sys.argv[1:])
store.write_features(target, store.read_features(source))
print(len(store.read_features(target).features))
"""
    source = store.features_path(clean["hdf5"], "net", "a")
    said = without_locks(shim, code, source, tmp_path / "b.h5")
    assert said.startswith(f"0 {len(store.read_features(source).features)}")


@pytest.mark.parametrize("kind", KINDS)
def test_the_stages_make_again_what_repair_removed(wsi, make_slide, weights, tmp_path, kind):  # noqa: F811
    for name in "ab":
        make_slide(f"{name}.tiff", width=1024, height=1024, tissue=((256, 256, 1024, 1024),))
    run = tmp_path / "run"
    stages = (
        ("tile", "--slides", tmp_path / "slides", "--run", run, "--workers", 1),
        ("embed", "--run", run, "--encoder", "test_resnet", "--weights", weights, "--store", kind),
    )

    def stage_all() -> list[np.ndarray]:
        for each in stages:
            code, out, err = wsi(*each)
            assert code == 0, out + err
        features = store.open_features(run, "test_resnet")
        assert (features.kind, features.slide_ids()) == (kind, ["a", "b"])
        return [features.read(each).features for each in ("a", "b")]

    before = stage_all()
    code, out, err = wsi("verify", "--run", run)
    assert (code, "verify: 4 done, 0 skipped, 0 failed" in out) == (0, True), out + err
    os.truncate(store.patches_path(run, "b"), 50)
    where = Path(store.open_features(run, "test_resnet").where("a"))
    os.truncate(where if kind == "hdf5" else where / "features" / "c" / "0" / "0", 700)
    assert wsi("verify", "--run", run)[0] == 1
    code, out, _ = wsi("verify", "--run", run, "--repair")
    assert (code, out.count("removed (")) == (0, 2)
    assert all((one == other).all() for one, other in zip(before, stage_all(), strict=True))
    assert wsi("verify", "--run", run)[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_writer_leaves_only_what_verify_names_and_sweep_removes(tmp_path, kind):
    """Killed at random moments while it writes slide after slide: what is there is whole."""
    code = (
        "import sys; from pathlib import Path; from dataclasses import replace\n"
        "import numpy as np\n"
        "from wsi_mil import store\n"
        "from tests.test_store import some_features\n"
        "features = store.open_features(Path(sys.argv[1]), 'net', sys.argv[2])\n"
        "print('go', flush=True)\n"
        "for number in range(10_000):\n"
        "    head = replace(some_features().head, slide_id=f's{number % 40}', dim=64)\n"
        "    with features.writer(head, np.zeros((4000, 2), np.int64)) as writer:\n"
        "        writer.put(np.arange(4000), np.full((4000, 64), number % 7, np.float16))\n"
    )
    rng, run, left = np.random.default_rng(5), tmp_path / "run", 0
    features = store.open_features(run, "net", kind)
    for _ in range(20):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(run), kind],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[1],
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"go\n"
        time.sleep(float(rng.uniform(0, 0.4)))
        process.kill()
        process.wait()
        process.stdout.close()
        found = [each for each in problems(run) if each.kind != "missing"]  # there are no patches here
        assert {each.kind for each in found} <= {"leftover"}, found
        left += len(found)
        features.sweep()
        assert [each for each in problems(run) if each.kind == "leftover"] == []
        for slide_id in features.slide_ids():
            assert len(np.unique(features.read(slide_id).features)) == 1
    assert left, "not one kill met a file in the making"
    assert features.slide_ids()
