"""Disks that refuse: full, read-only, limited. Real ones; each test says so where it cannot have one."""

import errno
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import mounted, without_roots_powers
from tests.test_features import KINDS
from tests.test_store import some_features, some_patches
from wsi_mil import store
from wsi_mil.config import EmbedConfig, ExportConfig
from wsi_mil.errors import StoreError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A disk of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with mounted("-t", "tmpfs", "-o", "size=1m", "tmpfs", folder):
        yield folder


def noise(n: int, dim: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(n, dim)).astype(np.float16)


def large(n: int = 4000, dim: int = 500) -> tuple[store.FeaturesHead, np.ndarray, np.ndarray]:
    """4 MB of features, which do not compress."""
    coords = np.stack([np.arange(n), np.arange(n)], axis=1)
    return replace(some_features().head, slide_id="large", dim=dim), coords, noise(n, dim)


def stream(features: store.FeatureStore) -> None:
    head, coords, values = large()
    with features.writer(head, coords) as writer:
        for start in range(0, len(values), 512):
            writer.put(np.arange(start, min(start + 512, len(values))), values[start : start + 512])


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != "zarr.json"]


@pytest.mark.parametrize("spooled", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_fills_up(disk, kind, spooled, monkeypatch):
    from wsi_mil.store import spool

    if spooled:
        monkeypatch.setattr(spool, "IN_MEMORY", 1000)
    features = store.open_features(disk / "run", "net", kind)
    features.write(some_features())
    before = {path: path.read_bytes() for path in files(disk)}
    for _ in range(3):  # the process stays usable
        with pytest.raises(
            StoreError, match=r"the disk is full \(it needs 4.\d MB, .* are free\).*free some"
        ):
            stream(features)
    assert {path: path.read_bytes() for path in files(disk)} == before, "nothing partial, others intact"
    assert features.slide_ids() == ["a b"]
    head, coords, values = large(100)
    features.write(store.Features(
        **{each: getattr(head, each) for each in (
            "slide_id", "slide_path", "reader", "geometry", "encoder", "weights_digest", "patches_digest",
            "record",
        )},
        coords=coords, features=values,
    ))  # fmt: skip
    assert features.slide_ids() == ["a b", "large"]


def test_a_disk_that_is_full_to_the_last_byte(disk):
    """Not even the head of an HDF5 file fits."""
    (disk / "run" / "patches").mkdir(parents=True)
    with suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
        while filler.write(bytes(4096)):
            pass
    for _ in range(2):
        with pytest.raises(StoreError, match=r"a.h5: cannot be written: the disk is full"):
            store.write_patches(disk / "run" / "patches" / "a.h5", some_patches())
        with pytest.raises(StoreError, match="the disk is full"):
            store.write_text(disk / "run" / "slides.csv", "x" * 10_000)
    assert [path.name for path in files(disk)] == ["filler"]
    (disk / "filler").unlink()
    store.write_patches(disk / "run" / "patches" / "a.h5", some_patches())
    assert store.read_patches(disk / "run" / "patches" / "a.h5").slide_id == "a b"


def test_a_disk_that_fills_up_although_room_was_reserved(disk):
    """Some file systems cannot reserve: HDF5 meets the full disk itself, and the process must outlive it."""
    code = (
        "import sys; from pathlib import Path\n"
        "from wsi_mil import store; from wsi_mil.errors import StoreError\n"
        "from wsi_mil.store import hdf5\n"
        "from tests.test_store import some_features\n"
        "from tests.test_store_disk import stream\n"
        "hdf5._reserve = lambda *_: None\n"
        "features = store.open_features(Path(sys.argv[1]), 'net', 'hdf5')\n"
        "features.write(some_features())\n"
        "for _ in range(3):\n"
        "    try: stream(features); print('written')\n"
        "    except StoreError as error: print(error)\n"
        "features.write(some_features()); print(features.slide_ids(), len(features.read('a b').features))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(disk / "run")],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    *refused, last = result.stdout.splitlines()
    assert len(refused) == 3
    assert all("large.h5: cannot be written: the disk is full" in line for line in refused)
    assert last == "['a b'] 6"
    assert [path.name for path in files(disk)] == ["a b.h5"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_limit_on_the_size_of_files(tmp_path, kind):
    code = (
        "import sys; from pathlib import Path\n"
        "from wsi_mil import store; from wsi_mil.errors import StoreError\n"
        "from tests.test_store import some_features\n"
        "from tests.test_store_disk import stream\n"
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
        "features = store.open_features(Path(sys.argv[1]), 'net', sys.argv[2])\n"
        "for _ in range(2):\n"
        "    try: stream(features); print('written')\n"
        "    except StoreError as error: print(error)\n"
        "features.write(some_features()); print(features.slide_ids())\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), kind],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    first, second, third = result.stdout.splitlines()
    assert "larger than files may be here (it needs 4.1 MB)" in first
    assert "ulimit -f" in first
    assert first == second
    assert third == "['a b']"
    assert result.stderr == ""


@pytest.mark.parametrize("kind", KINDS)
def test_a_read_only_run(disk, kind):
    run = disk / "run"
    store.open_features(run, "net", kind).write(some_features())
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    features = store.open_features(run, "net", kind)
    refused: list[Callable[[], object]] = [
        lambda: features.write(some_features()),
        lambda: features.remove("a b"),
        lambda: stream(features),
        lambda: store.open_features(run, "other", kind).write(replace(some_features(), encoder="other")),
        lambda: store.write_patches(run / "patches" / "a.h5", some_patches()),
        lambda: store.write_text(run / "embed" / "slides.csv", "x"),
    ]
    for act in refused:
        with pytest.raises(StoreError, match=r"cannot be written: the file system is read-only\. .*--run"):
            act()
    assert len(features.read("a b").features) == 6, "reading goes on"


STAGES = ("tile", "import", "embed", "train", "heatmap", "predict", "report", "export")


def begin(stage: str, run: Path) -> None:
    config = ExportConfig(run=run, tool="pt", output=run / "exported") if stage == "export" else None
    config = config or EmbedConfig(run=run)
    with store.stage_record(run, stage, config):
        pytest.fail("the stage began")


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_begins_on_a_disk_that_takes_nothing(disk, stage, there):
    run = disk / "run"
    if there:
        (run / stage).mkdir(parents=True)
    with suppress(OSError), (disk / "full").open("wb") as file:
        file.write(bytes(2_000_000))
    with pytest.raises(StoreError, match=rf"{stage}: cannot be written: the disk is full"):
        begin(stage, run)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(StoreError, match=rf"{stage}: cannot be written: the file system is read-only"):
        begin(stage, run)


@pytest.mark.parametrize(
    ("stage", "folder"),
    [("tile", "patches"), ("embed", "features"), ("embed", "features/tf_efficientnet_lite0"),
     ("train", "models"), ("heatmap", "heatmaps"), ("predict", "predictions"), ("export", "exported")],
)  # fmt: skip
def test_no_stage_begins_where_it_may_not_write_its_outputs(tmp_path, stage, folder):
    place = tmp_path / folder
    place.mkdir(parents=True)
    place.chmod(0o500)
    with (
        without_roots_powers(),
        pytest.raises(StoreError, match=f"{folder}: cannot be written: no permission"),
    ):
        begin(stage, tmp_path)
    assert not list(place.iterdir())


def test_a_read_only_run_is_found_before_any_slide_is_tiled(make_slide, tmp_path, wsi):
    slides = make_slide("a.tiff", width=768, height=512, tissue=((128, 128, 500, 400),)).parent
    run = tmp_path / "run"
    run.mkdir(mode=0o500)
    with without_roots_powers():
        code, out, err = wsi("tile", "--slides", slides, "--run", run, "--workers", 1)
    assert code == 1
    assert "cannot be written: no permission to write there" in err
    assert "failed a:" not in out + err
    assert not list(run.iterdir())


def test_a_folder_that_is_not_ours(tmp_path):
    (tmp_path / "features").mkdir(mode=0o500)
    for kind in KINDS:
        with without_roots_powers(), pytest.raises(StoreError, match="no permission to write there"):
            store.open_features(tmp_path, "net", kind).write(some_features())


def test_other_errors_of_the_system_stay_what_they_are(tmp_path):
    with pytest.raises(OSError, match="else") as caught, store.atomic_file(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "something else", "/another/disk/file")
    assert not isinstance(caught.value, StoreError)
    with pytest.raises(FileNotFoundError), store.atomic_file(tmp_path / "a"):
        raise FileNotFoundError(errno.ENOENT, "gone")
