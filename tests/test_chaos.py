"""Files that hang, crash or starve who reads them, for real: a library that is preloaded strikes by name."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from pipelines.pyramid import write_pyramid
from tests.conftest import draw_slide
from tests.test_parallel import is_running
from wsi_mil import embed, store, tile
from wsi_mil.config import EmbedConfig, TileConfig

TINY = "test_resnet.r160_in1k"
FAULTS = {
    "hang": "no progress for 4 s (--slide-timeout)",
    "segv": "a library crashed (SIGSEGV)",
    "abort": "a library gave up (SIGABRT)",
    "eat": "of --slide-memory-mib",
    "eio": "Input/output error|cannot be opened|cannot be read",
}


@pytest.fixture(scope="session")
def shim(tmp_path_factory):
    """The library to preload; it is compiled here."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc here: files that hang, crash or eat memory were NOT tested")
    path = tmp_path_factory.mktemp("shim") / "chaos.so"
    source = Path(__file__).with_name("chaos.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-w", "-o", path, source, "-ldl"], check=True)
    return path


def draw(folder, sound, each_fault):
    """Write slides: ``sound`` ones, and so many with each fault, half of them (rounded up) late."""
    folder.mkdir()
    image = draw_slide(2048, 1536, ((0, 0, 2048, 1100),))
    write_pyramid(folder / "s00.tiff", image, 0.5)
    for k in range(1, sound):
        shutil.copy(folder / "s00.tiff", folder / f"s{k:02}.tiff")
    for fault in FAULTS:
        for k in range(each_fault):
            late = "-late" if k % 2 else ""
            shutil.copy(folder / "s00.tiff", folder / f"chaos-{fault}{late}-{k}.tiff")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Few slides, tiled and embedded while nothing strikes: what the sound ones must come to."""
    folder = tmp_path_factory.mktemp("chaos")
    draw(folder / "slides", 2, 2)
    torch.manual_seed(0)
    weights = timm.create_model(TINY, num_classes=0).state_dict()
    safetensors.torch.save_file(weights, folder / "tiny.safetensors")
    (folder / "early").mkdir()
    for path in (folder / "slides").glob("*.tiff"):
        if "late" not in path.name:  # tile reads too few blocks for that
            (folder / "early" / path.name).hardlink_to(path)
    tile.run(TileConfig(slides=folder / "early", run=folder / "alone-tile", workers=1))
    tile.run(TileConfig(slides=folder / "slides", run=folder / "alone", workers=1))
    config = EmbedConfig(
        run=folder / "alone",
        encoder=TINY,
        weights=folder / "tiny.safetensors",
        device="cpu",
        precision="fp32",
    )
    assert not embed.run(config).failed
    return folder


def command(shim, *words):
    """Start the command line with the library preloaded."""
    environment = os.environ | {
        "LD_PRELOAD": str(shim), "CHAOS": "25", "PYTHONPATH": str(Path(__file__).parents[1]),
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "wsi_mil", *map(str, words)], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


LIMITS = ("--slide-timeout", 4, "--slide-memory-mib", 1000)


def stages(cohort, run):
    """The commands that read slides, by name, with the folder and the kind of file that they make."""
    tiling = "tile", "--slides", cohort / "early", "--run", run, "--workers", 2
    embedding = (
        *("embed", "--run", run, "--encoder", TINY, "--weights", cohort / "tiny.safetensors"),
        *("--device", "cpu", "--precision", "fp32", "--readers", 2),
    )
    return {"tile": (tiling, "patches"), "embed": (embedding, f"features/{TINY}")}


def check(cohort, run, stage, folder):
    """The sound slides are there with the bytes they have alone; the others failed by their own reasons."""
    rows = {row["slide_id"]: row for row in store.read_csv(run / stage / "slides.csv")}
    slides = cohort / ("early" if stage == "tile" else "slides")
    assert len(rows) == len(list(slides.glob("*.tiff")))
    for slide_id, row in rows.items():
        made = run / folder / f"{slide_id}.h5"
        if slide_id.startswith("s"):
            assert row["status"] in {"done", "skipped"}
            alone = cohort / ("alone-tile" if stage == "tile" else "alone")
            assert made.read_bytes() == (alone / folder / f"{slide_id}.h5").read_bytes()
        else:
            fault = slide_id.split("-")[1]
            assert row["status"] == "failed", slide_id
            words = FAULTS[fault].split("|") + ([FAULTS["hang"]] if fault == "eat" else [])
            assert any(each in row["reason"] for each in words), row["reason"]
            assert not made.exists()
    assert not list(run.rglob("*.tmp"))


@pytest.mark.parametrize("stage", ["tile", "embed"])
def test_each_fault_fails_its_slide_and_no_other(shim, cohort, tmp_path, stage):
    run = tmp_path / "run"
    if stage == "embed":
        shutil.copytree(cohort / "alone" / "patches", run / "patches")
    words, folder = stages(cohort, run)[stage]
    process = command(shim, *words, *LIMITS)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1, said
    assert f"2 done, 0 skipped, {5 if stage == 'tile' else 10} failed" in said
    check(cohort, run, stage, folder)
    if stage == "embed":  # mid-way: it says where
        (row,) = [r for r in store.read_csv(run / "embed" / "slides.csv") if "segv-late" in r["slide_id"]]
        assert "while reading the patch at level-0 (" in row["reason"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_command_while_every_reader_hangs(shim, cohort, tmp_path, number):
    slides = tmp_path / "slides"
    slides.mkdir()
    for name in ("chaos-hang-a", "chaos-hang-b"):
        shutil.copy(cohort / "slides" / "s00.tiff", slides / f"{name}.tiff")
    run = tmp_path / "run"
    process = command(shim, "tile", "--slides", slides, "--run", run, "--workers", 2)
    deadline = time.monotonic() + 60
    while len(readers := children_of(process.pid)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(2.0)  # until they hang
    process.send_signal(number)
    start = time.monotonic()
    said, _ = process.communicate(timeout=30)
    assert time.monotonic() - start < 3
    assert process.returncode == 130, said
    assert len(readers) == 2
    assert not any(is_running(each) for each in readers)
    assert not list(run.rglob("*.tmp"))


def children_of(pid):
    found = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(each) for path in found for each in path.read_text().split()]


@pytest.fixture(scope="module")
def large_cohort(tmp_path_factory):
    """Sixty slides, three with each fault; and the sound ones' features."""
    folder = tmp_path_factory.mktemp("large")
    draw(folder / "slides", 45, 3)
    torch.manual_seed(0)
    weights = timm.create_model(TINY, num_classes=0).state_dict()
    safetensors.torch.save_file(weights, folder / "tiny.safetensors")
    (folder / "early").symlink_to(folder / "slides")
    tile.run(TileConfig(slides=folder / "slides", run=folder / "alone"))
    shutil.copytree(folder / "alone", folder / "alone-tile")
    config = EmbedConfig(
        run=folder / "alone",
        encoder=TINY,
        weights=folder / "tiny.safetensors",
        device="cpu",
        precision="fp32",
    )
    start = time.monotonic()
    assert not embed.run(config).failed
    return folder, time.monotonic() - start


@pytest.mark.chaos
@pytest.mark.parametrize("place", ["here", "dask", "two"])
def test_sixty_slides_of_which_fifteen_strike(shim, large_cohort, tmp_path, place):
    cohort, sound_s = large_cohort
    run = tmp_path / "run"
    shutil.copytree(cohort / "alone" / "patches", run / "patches")
    words, folder = stages(cohort, run)["embed"]
    more = ("--dask", "local") if place == "dask" else ()
    start = time.monotonic()
    processes = [command(shim, *words, *LIMITS, *more) for _ in range(2 if place == "two" else 1)]
    said = [each.communicate(timeout=900)[0] for each in processes]
    seconds = time.monotonic() - start
    assert 1 in {each.returncode for each in processes}, said
    check(cohort, run, "embed", folder)
    print(f"{place}: {seconds:.0f} s; alone without faults {sound_s:.0f} s")
