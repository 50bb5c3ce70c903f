"""Slides on a Dask cluster: a scheduler and workers that are processes of their own."""

import contextlib
import importlib.util
import json
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from collections import Counter
from pathlib import Path

import distributed
import pytest
import safetensors.torch
import timm
import torch

from pipelines.pyramid import write_pyramid
from tests.clusters import (
    ENVIRONMENT,
    DaskCluster,
    Network,
    fail_to_get_ready,
    hold_back,
    in_background,
    note,
    slow,
    slow_tasks,
    until,
)
from tests.conftest import draw_slide
from tests.test_parallel import TASKS, work
from wsi_mil import embed, parallel, store, tile, verify
from wsi_mil.config import ClusterConfig, EmbedConfig, TileConfig, VerifyConfig
from wsi_mil.errors import ClusterError, ConfigError
from wsi_mil.parallel import Place
from wsi_mil.parallel.cluster import _Work

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    """A scheduler and two workers, for all tests that kill nobody."""
    with DaskCluster(tmp_path_factory.mktemp("cluster")) as cluster:
        cluster.start_scheduler()
        cluster.start_worker(wait=False), cluster.start_worker()
        yield cluster


@pytest.fixture
def cluster(tmp_path):
    """One to be killed."""
    with DaskCluster(tmp_path / "cluster") as each:
        yield each.start_scheduler()


def place(cluster, tmp_path, **more):
    return Place(
        cluster=ClusterConfig(scheduler=cluster.address, worker_wait=30), shared=tmp_path / "run", **more
    )


def shown(err):
    """The lines of a log, without their number and seconds, in any order."""
    lines = [line for line in err.splitlines() if not line.startswith("Dask: ")]
    return sorted(re.sub(r"^t: \d+ |[\d.]+ s$", "", line) for line in lines)


def test_the_same_outcomes_as_anywhere_else(two_workers, tmp_path, capfd):
    here = parallel.map_slides(work, TASKS, title="t", workers=1)
    lines_here = shown(capfd.readouterr().err)
    there = parallel.map_slides(work, TASKS, title="t", place=place(two_workers, tmp_path))
    err = capfd.readouterr().err
    assert [(o.slide_id, o.status, o.reason, o.facts) for o in here] == [
        (o.slide_id, o.status, o.reason, o.facts) for o in there
    ]
    assert "in work" in {o.slide_id: o for o in there}["bug"].traceback, "the traceback comes along"
    pages = "dashboard http://" if importlib.util.find_spec("bokeh") else "no dashboard (it has no bokeh: "
    assert f"Dask: {two_workers.address}, {pages}" in err
    assert shown(err) == lines_here, "and look alike"
    assert not list((tmp_path / "run").iterdir()), "nothing is left in the folder"


@pytest.mark.parametrize("where", ["here", "processes", "cluster"])
def test_the_largest_slide_is_begun_first(where, two_workers, tmp_path, request):
    tasks = {f"s{i}": (str(tmp_path / "log"), f"s{i}") for i in range(5)}
    costs = {"s0": 2.0, "s1": 9.0, "s2": 5.0, "s3": 9.5, "s4": 1.0}
    places = {
        "here": Place(workers=1), "processes": Place(workers=2),
        "cluster": place(two_workers, tmp_path),
    }  # fmt: skip
    outcomes = parallel.map_slides(
        note, tasks, title="t", place=places[where], cost=lambda task: costs[task[1]]
    )
    assert [each.slide_id for each in outcomes] == list(tasks), "told in the order of the tasks"
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    by_process = [[costs[name] for pid, name in lines if pid == each] for each in {pid for pid, _ in lines}]
    assert all(each == sorted(each, reverse=True) for each in by_process), by_process
    assert sum(map(len, by_process)) == 5
    assert len(by_process) == 1 or where != "here"


def test_tile_on_a_cluster_is_tile(two_workers, tmp_path, monkeypatch):
    """Byte for byte, given relative paths while the workers stand elsewhere."""
    (tmp_path / "slides").mkdir()
    for i in range(3):
        image = draw_slide(1024, 768, ((0, 0, 512 + 128 * i, 512),))
        write_pyramid(tmp_path / "slides" / f"s{i}.tiff", image, 0.5)
    monkeypatch.chdir(tmp_path)
    slides = Path("slides")
    tile.run(TileConfig(slides=slides, run=Path("local"), workers=1))
    result = tile.run(TileConfig(slides=slides, run=Path("there"), scheduler=two_workers.address))
    assert result.count("done") == 3, result.failed
    for path in sorted((tmp_path / "local" / "patches").iterdir()):
        other = tmp_path / "there" / "patches" / path.name
        if path.suffix == ".h5":
            one, two = store.read_patches(path), store.read_patches(other)
            assert one.digest == two.digest
            assert (one.coords == two.coords).all()
        elif path.suffix != ".html":  # whose title is the run's
            assert other.read_bytes() == path.read_bytes()
    assert (
        store.read_stage(tmp_path / "there", "tile")["config_digest"]
        == (store.read_stage(tmp_path / "local", "tile")["config_digest"])
    )
    again = tile.run(TileConfig(slides=slides, run=Path("local"), scheduler=two_workers.address))
    assert again.count("skipped") == 3, "it resumes what was begun elsewhere"


def test_no_scheduler_is_said(tmp_path, monkeypatch):
    from wsi_mil.parallel import cluster

    monkeypatch.setattr(cluster, "_CONNECT_S", 0.5)  # nothing will answer: that it asks again takes its time
    config = ClusterConfig(scheduler="tcp://127.0.0.1:9")
    with pytest.raises(ClusterError, match=r"tcp://127.0.0.1:9: no Dask scheduler answers there"):
        parallel.map_slides(work, TASKS, title="t", place=Place(cluster=config))
    config = ClusterConfig(scheduler_file=tmp_path / "none.json", worker_wait=1)
    with pytest.raises(ConfigError, match=r"--scheduler-file .*none.json: no such file after 1 s"):
        parallel.map_slides(work, TASKS, title="t", place=Place(cluster=config))


def test_workers_that_cannot_get_ready_are_named(two_workers, tmp_path):
    with pytest.raises(ClusterError, match=r"can be used: .* --device cuda: not usable here; .* --device"):
        parallel.map_slides(
            work, TASKS, title="t", place=place(two_workers, tmp_path, prepare=fail_to_get_ready)
        )


def test_a_worker_that_dask_holds_back_is_named(cluster, tmp_path, capfd):
    cluster.start_worker("--memory-limit", "48MiB")  # less than Dask itself needs: it is paused at once
    config = ClusterConfig(scheduler=cluster.address, worker_wait=4)
    with pytest.raises(ClusterError, match=r"no worker at .* for 4.* \(1 paused by Dask: see their memory\)"):
        parallel.map_slides(note, {"s": (str(tmp_path / "log"), "s")}, title="t", place=Place(cluster=config))
    (worker,) = re.findall(r"worker (tcp://\S+) is paused by Dask: its memory is near its limit of 0.047 GiB",
                           capfd.readouterr().err)  # fmt: skip
    assert worker != cluster.address
    assert not (tmp_path / "log").exists()


def test_a_slide_that_a_paused_worker_has_not_begun_is_taken_back(cluster, tmp_path, capfd):
    """It is paused after it said what it can do and before its slide comes: the slide would wait for ever."""
    cluster.start_worker("--memory-limit", "0")  # so that Dask itself does not let it go on
    there = Place(cluster=ClusterConfig(scheduler=cluster.address, worker_wait=4), prepare=hold_back)
    with pytest.raises(ClusterError, match=r"no worker .*1 paused by Dask.*1 of 1 slides are left"):
        parallel.map_slides(note, {"s": (str(tmp_path / "log"), "s")}, title="t", place=there)
    assert "is paused by Dask" in capfd.readouterr().err
    assert not (tmp_path / "log").exists()


def test_workers_of_this_machine_have_no_limit_of_memory():
    with parallel.local_cluster(1) as address, distributed.Client(address, set_as_default=False) as client:
        client.wait_for_workers(1, timeout=60)
        (worker,) = client.scheduler_info()["workers"].values()
        assert not worker["memory_limit"]


# From here on somebody is killed ------------------------------------------------------------------------


def begun(folder):
    return sorted(path.stem for path in folder.glob("s*.begun"))


def done(folder):
    return sorted(path.stem for path in folder.glob("s*.done"))


def times_begun(folder):
    return {path.stem: len(path.read_text().split()) for path in folder.glob("s*.begun")}


@pytest.mark.dask
@pytest.mark.parametrize("nanny", [False, True])
def test_a_worker_that_is_killed_loses_only_its_slide_in_flight(cluster, tmp_path, nanny):
    cluster.start_worker(), cluster.start_worker(nanny=nanny)
    client = in_background(cluster, tmp_path / "out", 14)
    until(lambda: len(done(tmp_path / "out")) >= 4)
    lost = victim_of(tmp_path / "out", at_work(cluster))
    out, err = client.communicate(timeout=120)
    outcomes = json.loads(out)
    assert all(status == "done" for status, _ in outcomes.values()), err
    times = times_begun(tmp_path / "out")
    assert {each: count for each, count in times.items() if count > 1} == {lost: 2}, (
        "nothing else is done twice"
    )
    assert f"died; tried again: {lost}" in err
    assert not client.returncode


def at_work(cluster):
    """The processes of a cluster's workers that work on slides: of nannies, or the workers."""
    pids = set()
    for process in cluster.workers:
        command = ["ps", "-o", "pid=", "-g", str(process.pid)]
        listed = subprocess.run(command, capture_output=True, text=True, check=False)
        pids |= set(map(int, listed.stdout.split()))
    return pids


def victim_of(folder, pids):
    """Kill the process that works on a slide that is not done; return the slide."""

    def find():
        for slide_id in begun(folder):
            pid = int((folder / f"{slide_id}.begun").read_text().split()[-1])
            if slide_id not in done(folder) and pid in pids:
                return slide_id, pid
        return None

    slide_id, pid = until(find)
    os.kill(pid, signal.SIGKILL)
    return slide_id


@pytest.mark.dask
def test_a_slide_that_kills_its_workers_is_named_and_the_others_finish(cluster, tmp_path):
    for _ in range(2):
        cluster.start_worker(nanny=True)
    client = in_background(cluster, tmp_path / "out", 10, poison=["poison"])
    out, err = client.communicate(timeout=180)
    outcomes = json.loads(out)
    assert {each for each, (status, _) in outcomes.items() if status == "failed"} == {"poison"}, err
    assert outcomes["poison"][1].startswith("3 workers died while they worked on it (tcp://")
    assert len((tmp_path / "out" / "poison.log").read_text().split()) == 3, "tried three times"
    assert set(times_begun(tmp_path / "out").values()) == {1}


@pytest.mark.dask
def test_the_schedulers_death_ends_the_client_and_the_command_again_finishes(tmp_path):
    slides = tmp_path / "slides"
    slides.mkdir()
    for i in range(24):
        write_pyramid(slides / f"s{i:02d}.tiff", draw_slide(2048, 1536, ((0, 0, 2048, 1024),)), 0.5)
    command = [sys.executable, "-m", "wsi_mil", "tile", "--slides", slides, "--run", tmp_path / "run"]
    with DaskCluster(tmp_path / "one") as cluster:
        cluster.start_scheduler().start_worker()
        client = subprocess.Popen(
            [*map(str, command), "--scheduler", cluster.address], cwd=ROOT, env=ENVIRONMENT,
            stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        patches = tmp_path / "run" / "patches"
        until(lambda: len(list(patches.glob("s*.h5"))) >= 4)
        start = time.monotonic()
        cluster.scheduler.kill()
        _, err = client.communicate(timeout=60)
        assert time.monotonic() - start < 15
        assert client.returncode == 1
        assert f"wsi-mil: the Dask scheduler died: {cluster.address}" in err
        assert "give the command again to go on" in err
        assert "Traceback" not in err, err
        left = len(list(patches.glob("s*.h5")))
        assert left < 24
        assert cluster.workers[0].wait(60) is not None, "its worker ends by itself"
    with DaskCluster(tmp_path / "two") as cluster:
        cluster.start_scheduler().start_worker()
        again = subprocess.run(
            [*map(str, command), "--scheduler", cluster.address], cwd=ROOT, env=ENVIRONMENT,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert again.returncode == 0, again.stderr
    kept = int(again.stdout.split(" done, ")[1].split(" skipped")[0])
    assert left <= kept <= left + 1
    assert len(list(patches.glob("s*.h5"))) == 24
    assert not verify.run(VerifyConfig(run=tmp_path / "run")).failed


@pytest.mark.dask
def test_ctrl_c_cancels_what_waits_and_leaves_no_half_file(cluster, tmp_path):
    cluster.start_worker(), cluster.start_worker()
    out = tmp_path / "out"
    client = in_background(cluster, out, 30)
    until(lambda: len(done(out)) >= 3)
    client.send_signal(signal.SIGINT)
    client.communicate(timeout=30)
    assert client.returncode == 130
    started = len(begun(out))
    assert started < 15
    until(lambda: done(out) == begun(out))
    time.sleep(1)
    assert len(begun(out)) == started, "nothing was begun after it"
    assert {path.read_text() for path in out.glob("s*.done")} == {"whole"}
    assert not [path for path in out.iterdir() if ".tmp" in path.name]
    parallel.map_slides(slow, slow_tasks(out, 2, 0), title="t", place=place(cluster, tmp_path))  # it is free


@pytest.mark.dask
def test_two_clients_at_once_share_the_workers(cluster, tmp_path):
    cluster.start_worker(), cluster.start_worker(threads=2)
    clients = [in_background(cluster, tmp_path / name, 12, 0.2) for name in ("a", "b")]
    for client, name in zip(clients, ("a", "b"), strict=True):
        out, err = client.communicate(timeout=120)
        assert Counter(status for status, _ in json.loads(out).values()) == {"done": 12}, err
        assert set(times_begun(tmp_path / name).values()) == {1}


@pytest.mark.dask
def test_a_worker_that_does_not_see_the_folder_is_left_out(cluster, tmp_path):
    if os.geteuid() or shutil.which("unshare") is None:
        pytest.skip(
            "only root may hide a folder from a process: workers that see another disk were NOT tested"
        )
    shared = tmp_path / "out"
    shared.mkdir()
    hide = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs none {shared} && exec "$@"', "sh"]
    cluster.start_worker(prefix=hide)
    with pytest.raises(ClusterError, match=r"can be used: tcp://\S+ does not see .*: a shared file system"):
        parallel.map_slides(
            slow, slow_tasks(shared, 3, 0), title="t",
            place=Place(cluster=ClusterConfig(scheduler=cluster.address, worker_wait=30), shared=shared),
        )  # fmt: skip
    cluster.start_worker()
    outcomes = parallel.map_slides(
        slow, slow_tasks(shared, 3, 0), title="t",
        place=Place(cluster=ClusterConfig(scheduler=cluster.address, worker_wait=30), shared=shared),
    )  # fmt: skip
    assert [each.status for each in outcomes] == ["done"] * 3
    assert len(done(shared)) == 3, "by the worker that sees it"


@pytest.mark.dask
def test_no_worker_is_said_and_one_that_comes_late_is_used(cluster, tmp_path):
    client = in_background(cluster, tmp_path / "out", 2, 0)
    said = client.stderr.readline() + client.stderr.readline()
    assert f"waiting for workers at {cluster.address}; 2 of 2 slides are left" in said
    cluster.start_worker()
    out, _ = client.communicate(timeout=60)
    assert {status for status, _ in json.loads(out).values()} == {"done"}
    cluster.workers[0].kill()
    cluster.workers[0].wait()
    config = ClusterConfig(scheduler=cluster.address, worker_wait=2)
    with pytest.raises(ClusterError, match=r"no worker at tcp://\S+ for 2 s"):
        parallel.map_slides(slow, slow_tasks(tmp_path / "o", 1), title="t", place=Place(cluster=config))


@pytest.mark.dask
def test_only_workers_with_the_resource_are_asked_where_there_are_some(cluster, tmp_path):
    cluster.start_worker(), cluster.start_worker("--resources", "GPU=1")
    with_gpu = cluster.workers[1].pid
    here = place(cluster, tmp_path, alone=True, resource="GPU")
    parallel.map_slides(slow, slow_tasks(tmp_path / "a", 4, 0), title="t", place=here)
    pids = {path.read_text().strip() for path in (tmp_path / "a").glob("*.begun")}
    assert pids == {str(with_gpu)}
    cluster.workers[1].kill()
    cluster.workers[1].wait()
    parallel.map_slides(slow, slow_tasks(tmp_path / "b", 4, 0), title="t", place=here)
    pids = {path.read_text().strip() for path in (tmp_path / "b").glob("*.begun")}
    assert pids == {str(cluster.workers[0].pid)}, "where there are none, all are"


@pytest.fixture
def network():
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("only root may make network namespaces: machines with own addresses were NOT tested")
    with Network(["scheduler", "one", "two", "client"]) as each:
        yield each


def on_machines(network, folder):
    """A scheduler and two workers, each on a machine of its own."""
    cluster = DaskCluster(folder)
    host = network.address("scheduler")
    cluster.start_scheduler(host=host, prefix=network.inside("scheduler"))
    for name in ("one", "two"):
        cluster.start_worker("--host", network.address(name), prefix=network.inside(name))
    return cluster


@pytest.mark.dask
def test_machines_with_addresses_of_their_own(network, tmp_path):
    with on_machines(network, tmp_path / "cluster") as cluster:
        client = in_background(cluster, tmp_path / "out", 10, prefix=network.inside("client"))
        out, err = client.communicate(timeout=120)
    assert Counter(status for status, _ in json.loads(out).values()) == {"done": 10}, err
    assert f"Dask: tcp://{network.address('scheduler')}:" in err
    assert set(times_begun(tmp_path / "out").values()) == {1}
    pids = Counter(path.read_text() for path in (tmp_path / "out").glob("*.begun"))
    assert len(pids) == 2, "both machines worked"


@pytest.mark.dask
def test_a_machine_that_is_lost_from_the_network_loses_only_its_slide(network, tmp_path):
    """No connection is closed: the scheduler finds out because nothing answers."""
    with on_machines(network, tmp_path / "cluster") as cluster:
        client = in_background(cluster, tmp_path / "out", 40, prefix=network.inside("client"))
        until(lambda: len(done(tmp_path / "out")) >= 6)
        network.unplug("two")
        out, err = client.communicate(timeout=400)
    assert Counter(status for status, _ in json.loads(out).values()) == {"done": 40}, err
    twice = {name for name, count in times_begun(tmp_path / "out").items() if count > 1}
    (again,) = re.findall(
        rf"tcp://{re.escape(network.address('two'))}:\d+ died; tried again: (\S+)$", err, re.M
    )
    assert twice <= {again}, "or it was on its way to the machine when that was lost"
    assert {path.read_text() for path in (tmp_path / "out").glob("s*.done")} == {"whole"}


TINY = "test_resnet"


@pytest.fixture
def tiled(tmp_path):
    """A tiled run of 10 slides, and weights."""
    (tmp_path / "slides").mkdir()
    for i in range(10):
        image = draw_slide(1536, 1024, ((0, 0, 1536, 512 + 40 * i),))
        write_pyramid(tmp_path / "slides" / f"s{i:02d}.tiff", image, 0.5)
    torch.manual_seed(0)
    weights = timm.create_model(TINY, num_classes=0).state_dict()
    safetensors.torch.save_file(weights, tmp_path / "tiny.safetensors")
    tile.run(TileConfig(slides=tmp_path / "slides", run=tmp_path / "run", workers=1))
    shutil.copytree(tmp_path / "run", tmp_path / "here")
    config = EmbedConfig(
        run=tmp_path / "here", encoder=TINY, weights=tmp_path / "tiny.safetensors", precision="fp32"
    )
    assert embed.run(config).count("done") == 10
    return tmp_path, config


@pytest.mark.dask
def test_embed_survives_the_death_of_workers_with_the_same_features(cluster, tiled):
    """A worker is killed while it holds a claim: the next takes it over at once."""
    folder, _ = tiled
    command = [
        *(sys.executable, "-m", "wsi_mil", "embed", "--run", folder / "run", "--encoder", TINY, "--weights"),
        *(folder / "tiny.safetensors", "--precision", "fp32", "--scheduler"),
    ]
    cluster.start_worker(nanny=True)
    features = folder / "run" / "features" / TINY
    client = subprocess.Popen(
        [*map(str, command), cluster.address], cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    until(lambda: len(list(features.glob("s*.h5"))) >= 2, seconds=120)
    claims = folder / "run" / "embed" / "claims" / TINY

    def holder():
        for path in claims.glob("s*.claim-*"):
            with contextlib.suppress(OSError, ValueError):
                return json.loads(path.read_text())["pid"]
        return None

    os.kill(until(holder), signal.SIGKILL)
    out, err = client.communicate(timeout=180)
    assert client.returncode == 0, err
    assert "10 done, 0 skipped, 0 failed" in out
    assert err.count("tried again: ") == 1
    here, there = (store.open_features(folder / name, TINY, "hdf5") for name in ("here", "run"))
    for slide_id in here.slide_ids():
        assert (here.read(slide_id).features == there.read(slide_id).features).all()
    assert not verify.run(VerifyConfig(run=folder / "run")).failed
    assert not [path for path in (folder / "run").rglob("*") if ".tmp" in path.name or ".claim" in path.name]


@pytest.mark.dask
def test_ctrl_c_ends_a_cluster_of_this_machine_without_a_word_more(tmp_path):
    """As a terminal sends it: to all processes at once. A killed command's beacon is removed, too."""
    (tmp_path / "slides").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / f".beacon-0.{socket.gethostname()}-999999999.tmp").touch()
    for i in range(40):
        write_pyramid(tmp_path / "slides" / f"s{i:02d}.tiff", draw_slide(1024, 768, ((0, 0, 512, 512),)), 0.5)
    command = ["tile", "--slides", tmp_path / "slides", "--run", tmp_path / "run", "--dask", "local"]
    client = subprocess.Popen(
        [sys.executable, "-m", "wsi_mil", *map(str, command)], cwd=ROOT, env=ENVIRONMENT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    until(lambda: list((tmp_path / "run" / "patches").glob("s*.h5")), what="no slide was done")
    os.killpg(client.pid, signal.SIGINT)
    _, err = client.communicate(timeout=60)
    assert client.returncode == 130, err
    assert "Traceback" not in err
    assert err.strip().endswith("interrupted; give the same command again to go on.")
    assert not [path for path in (tmp_path / "run").rglob("*") if ".tmp" in path.name]


@pytest.mark.parametrize("closes", [True, False])
def test_a_question_to_workers_while_the_client_is_closed_is_no_crash(closes):
    class Closing:
        """A client that is closed between two lines of Dask's own ``run``."""

        status, scheduler = "running", types.SimpleNamespace(identity=None)

        def sync(self, _function, **_):
            return {"workers": {"tcp://127.0.0.1:1": {"status": "paused"}}}

        def run(self, *_, **__):
            self.scheduler = None
            self.status = "closing" if closes else "running"
            return self.scheduler.broadcast

    asking = object.__new__(_Work)
    asking._client, asking._stop, asking._events = Closing(), threading.Event(), queue.SimpleQueue()
    with contextlib.nullcontext() if closes else pytest.raises(AttributeError):
        asking._look()
