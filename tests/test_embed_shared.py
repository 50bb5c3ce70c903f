"""Several processes at work on one run: they share it, die, hang, wake up, and nothing breaks."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

from pipelines.pyramid import write_pyramid
from tests.conftest import draw_slide
from wsi_mil import embed, store, tile, verify
from wsi_mil.config import EmbedConfig, TileConfig, VerifyConfig

TINY, SLIDES = "test_resnet", 8


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """A tiled run, weights, and the features of an undisturbed run."""
    folder = tmp_path_factory.mktemp("cohort")
    (folder / "slides").mkdir()
    for i in range(SLIDES):
        image = draw_slide(1024, 768, ((0, 0, 1024, 512 + 64 * (i % 4)),))
        write_pyramid(folder / "slides" / f"s{i}.tiff", image, 0.5)
    torch.manual_seed(0)
    weights = timm.create_model(TINY, num_classes=0).state_dict()
    safetensors.torch.save_file(weights, folder / "tiny.safetensors")
    tile.run(TileConfig(slides=folder / "slides", run=folder / "tiled", workers=1))
    run = copy_of(folder / "tiled", folder / "whole")
    result = embed.run(EmbedConfig(run=run, encoder=TINY, weights=folder / "tiny.safetensors", device="cpu"))
    assert result.count("done") == SLIDES
    return folder


def copy_of(run, target):
    target.mkdir()
    for path in run.rglob("*"):
        if path.is_file():
            (target / path.relative_to(run)).parent.mkdir(parents=True, exist_ok=True)
            (target / path.relative_to(run)).write_bytes(path.read_bytes())
    return target


@pytest.fixture
def run(cohort, tmp_path):
    return copy_of(cohort / "tiled", tmp_path / "run")


EVERYWHERE = """
import os, time
from pathlib import Path
from wsi_mil.readers import job
from wsi_mil.store import claims

gate, expiry, slow = Path(os.environ["GATE"]), float(os.environ["EXPIRY"]), float(os.environ["SLOW"])
claims.EXPIRY_S, claims._TOUCH_S = expiry, expiry / 5
plain = job.check_inside

def check_inside(patches):
    plain(patches)
    with (gate / "log").open("a") as log:
        log.write(f"{patches.slide_id}\\n")
    time.sleep(slow)

job.check_inside = check_inside
"""
"""sitecustomize.py, which every process imports: notes each slide that is opened, and takes its time."""

DRIVER = """
import os, sys, time
from pathlib import Path
from wsi_mil import cli
from wsi_mil.embed import source

source._LOOK_S = 0.1
gate = Path(os.environ["GATE"])
(gate / f"ready-{time.time_ns()}").touch()
while not (gate / "go").exists():
    time.sleep(0.01)
sys.exit(cli.main(sys.argv[1:]))
"""
"""The command, started at a sign; nothing in it spares the processes that it starts from importing it."""


class Driver:
    def __init__(self, cohort, run, tmp_path):
        self.gate, self.cohort, self.run = tmp_path / "gate", cohort, run
        self.gate.mkdir()
        (self.gate / "driver.py").write_text(DRIVER)
        (self.gate / "sitecustomize.py").write_text(EVERYWHERE)
        self.processes = []

    def start(self, *more, expiry=60.0, slow=0.15):
        words = [sys.executable, self.gate / "driver.py", *command(self.cohort, self.run)]
        root = Path(__file__).parents[1]
        environment = os.environ | {
            "GATE": str(self.gate), "EXPIRY": str(expiry), "SLOW": str(slow),
            "PYTHONPATH": f"{self.gate}:{root}",
        }  # fmt: skip
        with (self.gate / f"out-{len(self.processes)}").open("w") as log:
            process = subprocess.Popen(
                [*map(str, words), *more], cwd=root, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True, env=environment,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def go(self, count):
        until(lambda: len(list(self.gate.glob("ready-*"))) >= count)
        (self.gate / "go").touch()

    def log(self):
        return (self.gate / "log").read_text().split() if (self.gate / "log").exists() else []

    def said(self):
        return "\n".join(path.read_text() for path in sorted(self.gate.glob("out-*")))

    def done(self):
        return sorted(path.stem for path in (self.run / "features" / TINY).glob("s*.h5"))


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def command(cohort, run):
    words = (
        "embed",
        "--run",
        run,
        "--encoder",
        TINY,
        "--weights",
        cohort / "tiny.safetensors",
        "--workers",
        1,
    )
    return list(map(str, words))


@pytest.fixture
def driver(cohort, run, tmp_path):
    each = Driver(cohort, run, tmp_path)
    yield each
    for process in each.processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def check_whole(cohort, run):
    """The run's features are those of an undisturbed one, verify is clean, every slide has its figures."""
    found, wanted = (store.open_features(each, TINY, "hdf5") for each in (run, cohort / "whole"))
    assert found.slide_ids() == wanted.slide_ids()
    rows = {row["slide_id"]: row for row in store.read_csv(run / "embed" / "slides.csv")}
    assert sorted(rows) == wanted.slide_ids()
    for slide_id in wanted.slide_ids():
        one, other = found.read(slide_id), wanted.read(slide_id)
        assert np.array_equal(one.features.view(np.uint16), other.features.view(np.uint16))
        assert np.array_equal(one.coords, other.coords)
        assert rows[slide_id]["status"] in {"done", "skipped"}
        assert int(rows[slide_id]["patches"]) == len(other.coords)
        assert rows[slide_id]["checksum"] == wanted.summary(slide_id).checksums["features"]
    assert not verify.run(VerifyConfig(run=run)).failed
    names = [path.name for path in run.rglob("*")]
    assert not [name for name in names if ".tmp" in name or ".claim-" in name or ".clock-" in name]


def test_two_processes_share_a_run(cohort, run, driver):
    driver.start(), driver.start()
    driver.go(2)
    assert [each.wait(120) for each in driver.processes] == [0, 0], driver.said()
    assert Counter(driver.log()) == Counter(f"s{i}" for i in range(SLIDES)), "each slide was opened once"
    shares = Counter(line.split()[2] for line in driver.said().splitlines() if " done " in line)
    assert sum(shares.values()) == SLIDES
    for number in (0, 1):
        assert " done " in (driver.gate / f"out-{number}").read_text(), "both did some"
    check_whole(cohort, run)
    statuses = Counter(row["status"] for row in store.read_csv(run / "embed" / "slides.csv"))
    assert statuses == {"done": SLIDES}


@pytest.mark.slow
def test_both_killed_half_way_a_third_finishes(cohort, run, driver):
    driver.start(), driver.start()
    driver.go(2)
    until(lambda: 2 <= len(driver.done()) < SLIDES - 2)
    for each in driver.processes:
        each.kill()
        each.wait()
    done = driver.done()
    times = {name: (run / "features" / TINY / f"{name}.h5").stat().st_mtime_ns for name in done}
    assert driver.start().wait(120) == 0, driver.said()
    assert {name: (run / "features" / TINY / f"{name}.h5").stat().st_mtime_ns for name in done} == times
    check_whole(cohort, run)


@pytest.mark.slow
def test_one_killed_half_way_the_other_takes_over(cohort, run, driver):
    one, other = driver.start(), driver.start()
    driver.go(2)
    until(lambda: 1 <= len(driver.done()) < SLIDES - 2)
    one.kill()
    one.wait()
    assert other.wait(120) == 0, driver.said()
    check_whole(cohort, run)


@pytest.mark.slow
def test_one_that_hangs_is_taken_over_and_may_wake_up(cohort, run, driver):
    one, other = (driver.start(expiry=1.5) for _ in range(2))
    driver.go(2)
    until(lambda: 1 <= len(driver.done()) < SLIDES - 2)
    os.kill(one.pid, signal.SIGSTOP)
    assert other.wait(120) == 0, driver.said()
    assert len(driver.done()) == SLIDES, "what it held was taken over"
    os.kill(one.pid, signal.SIGCONT)
    assert one.wait(120) == 0, driver.said()
    check_whole(cohort, run)


def children(pid):
    """Return the processes that a command has started, from the command lines of all."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            words = (path / "cmdline").read_bytes()
        except OSError:
            continue
        if parent == pid and b"spawn_main" in words:
            found[int(path.name)] = words
    return sorted(found)


def alive(pids):
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.mark.slow
def test_devices_give_the_same_features_and_news_of_both(cohort, run, driver):
    driver.start("--devices", "cpu,cpu")
    driver.go(1)
    assert driver.processes[0].wait(120) == 0, driver.said()
    assert Counter(driver.log()) == Counter(f"s{i}" for i in range(SLIDES))
    said = driver.said()
    assert all(f" s{i} done " in said for i in range(SLIDES)), said
    assert f"{SLIDES} done, 0 skipped, 0 failed" in said
    check_whole(cohort, run)
    stage = store.read_stage(run, "embed")
    assert stage["device"] == ["cpu", "cpu"]
    assert {"cpu", "cpu (2)"} <= stage.keys(), "both were at work"


@pytest.mark.slow
def test_a_device_process_that_is_killed_is_named_and_its_slide_fails(cohort, run, driver):
    command = driver.start("--devices", "cpu,cpu", slow=0.6)
    driver.go(1)
    until(lambda: len(driver.log()) >= 3)
    workers = children(command.pid)
    assert len(workers) == 2
    holder = next(path for path in (run / "embed" / "claims" / TINY).glob("s*.claim-1"))
    victim = next(pid for pid in workers if f'"pid": {pid}' in holder.read_text())
    os.kill(victim, signal.SIGKILL)
    assert command.wait(120) == 1, driver.said()
    said = driver.said()
    assert "died (exit code -9); the others go on" in said
    failed = [row for row in store.read_csv(run / "embed" / "slides.csv") if row["status"] == "failed"]
    assert len(failed) == 1
    assert "died while it worked on this slide" in failed[0]["reason"]
    assert f"{SLIDES - 1} done, 0 skipped, 1 failed" in said
    assert not alive(workers)
    assert driver.start().wait(120) == 0, driver.said()
    check_whole(cohort, run)


@pytest.mark.slow
def test_a_device_that_does_not_exist_ends_the_command(cohort, run, driver):
    command = driver.start("--devices", "cpu,nonsense")
    driver.go(1)
    until(lambda: len(children(command.pid)) == 2 or command.poll() is not None)
    workers = children(command.pid)
    assert command.wait(120) == 2, driver.said()
    said = driver.said()
    assert said.count("wsi-mil: --device nonsense: not usable here") == 1
    assert "Traceback" not in said
    assert not alive(workers)
    assert driver.start().wait(120) == 0
    check_whole(cohort, run)


@pytest.mark.parametrize(
    ("devices", "early"),
    [
        pytest.param((), False, id="one", marks=pytest.mark.slow),  # its like: test_embed
        pytest.param(("--devices", "cpu"), False, id="one, in a process of its own"),
        pytest.param(("--devices", "cpu,cpu"), False, id="two", marks=pytest.mark.slow),
        pytest.param((), True, id="one, early", marks=pytest.mark.slow),
        pytest.param(("--devices", "cpu,cpu"), True, id="two, early", marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_leaves_nothing_half_written(cohort, run, driver, devices, early):
    command = driver.start(*devices)
    driver.go(1)
    if early and devices:
        until(lambda: len(children(command.pid)) == 2)  # they are loading torch
    else:
        until(lambda: len(driver.log()) >= (1 if early else 4))
    workers = children(command.pid)
    os.killpg(command.pid, signal.SIGINT)
    assert command.wait(120) == 130, driver.said()
    said = driver.said()
    assert "Traceback" not in said, said
    assert "interrupted; give the same command again to go on." in said
    assert not alive(workers)
    assert store.read_stage(run, "embed")["status"] == "interrupted"
    names = [path.name for path in run.rglob("*")]
    assert not [name for name in names if ".tmp" in name or ".claim-" in name or ".clock-" in name]
    assert not verify.run(VerifyConfig(run=run)).failed
    embed.run(EmbedConfig(run=run, encoder=TINY, weights=cohort / "tiny.safetensors", device="cpu"))
    check_whole(cohort, run)
