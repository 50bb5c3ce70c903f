"""Dask schedulers and workers as processes of their own, and work for them."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import distributed
from distributed.core import Status

from wsi_mil.errors import ConfigError
from wsi_mil.store import atomic_file

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def until(condition, seconds=60, what="it did not happen"):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, what() if callable(what) else what
        time.sleep(0.02)
    return found


class DaskCluster:
    """A scheduler and its workers; ``folder`` takes their output. A context manager."""

    def __init__(self, folder, *, prefix=()):
        self.folder, self.prefix = Path(folder), prefix
        self.folder.mkdir(exist_ok=True)
        self.scheduler, self.workers = None, []
        self.address = ""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in [*self.workers, self.scheduler]:
            if process is not None:
                stop(process)

    def start_scheduler(self, *more, host="127.0.0.1", prefix=()):
        words = ["scheduler", "--host", host, "--no-show", *more]
        if "--port" not in more:
            words += ["--port", "0", "--dashboard-address", f"{host}:0"]
        self.scheduler = self._start("scheduler", *prefix, sys.executable, "-m", "dask", *words)
        log = self.folder / "scheduler.log"
        found = until(lambda: re.search(r"Scheduler at: *(tcp://\S+)", log.read_text()), what=log.read_text)
        self.address = found[1]
        return self

    def start_worker(self, *more, threads=1, nanny=False, prefix=(), wait=True):
        """Start a worker; without a nanny it is one process, whose death is final."""
        name = f"worker-{len(self.workers)}"
        words = ["worker", self.address, "--nthreads", threads, "--no-dashboard", "--name", name, *more]
        words += [] if nanny else ["--no-nanny"]
        process = self._start(name, *prefix, sys.executable, "-m", "dask", *words)
        self.workers.append(process)
        if wait:
            log = self.folder / f"{name}.log"
            until(lambda: "Registered to" in log.read_text(), what=log.read_text)
        return process

    def _start(self, name, *words):
        with (self.folder / f"{name}.log").open("w") as log:
            return subprocess.Popen(
                [*map(str, words)], cwd=self.folder, env=ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip

    def logs(self):
        return "\n".join(f"== {path.name}\n{path.read_text()}" for path in sorted(self.folder.glob("*.log")))


def stop(process):
    """End a process and all that it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


# What workers do: here, because they must be able to import it -------------------------------------------


def note(task):
    """Write a line to the log, and take a moment."""
    log, slide_id = task
    with Path(log).open("a") as file:
        file.write(f"{os.getpid()} {slide_id}\n")
    time.sleep(0.15)
    return {}


def fail_to_get_ready():
    raise ConfigError("--device cuda: not usable here")


def hold_back():
    """Pause the worker that gets ready, as Dask does where memory is short; wait until it is."""
    worker = distributed.get_worker()

    def pause():
        worker.status = Status.paused

    worker.loop.add_callback(pause)
    until(lambda: worker.status == Status.paused)


def slow(task):
    """Note the process, take a while, and publish a file as the stages do."""
    folder, slide_id, seconds = task
    if slide_id.startswith("poison"):
        with (folder / "poison.log").open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)
    with (folder / f"{slide_id}.begun").open("a") as file:
        file.write(f"{os.getpid()}\n")
    with atomic_file(folder / f"{slide_id}.done") as temporary:
        temporary.write_text("half")
        time.sleep(seconds)
        temporary.write_text("whole")
    return {}


def slow_tasks(folder, count, seconds=0.3):
    folder.mkdir(exist_ok=True)
    return {f"s{i:02d}": (folder, f"s{i:02d}", seconds) for i in range(count)}


def in_background(cluster, folder, count, seconds=0.3, poison=(), prefix=()):
    """Map ``slow`` in a process of its own; return it: its exit code, or 3 where the cluster was lost."""
    code = (
        "import sys, json\nfrom pathlib import Path\nfrom wsi_mil import parallel, errors\n"
        "from wsi_mil.config import ClusterConfig\nfrom tests.clusters import slow, slow_tasks\n"
        f"folder = Path({str(folder)!r})\n"
        f"tasks = slow_tasks(folder, {count}, {seconds})\n"
        f"tasks |= {{each: (folder, each, 0) for each in {list(poison)!r}}}\n"
        f"config = ClusterConfig(scheduler={cluster.address!r}, worker_wait=60)\n"
        "place = parallel.Place(cluster=config, shared=folder)\n"
        "try:\n    out = parallel.map_slides(slow, tasks, title='t', place=place)\n"
        "except errors.ClusterError as error:\n    print('LOST', error); sys.exit(3)\n"
        "except KeyboardInterrupt:\n    sys.exit(130)\n"
        "print(json.dumps({o.slide_id: [o.status, o.reason] for o in out}))\n"
    )
    return subprocess.Popen(
        [*prefix, sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


class Network:
    """Machines with addresses of their own on a switch: network namespaces, which only root may make.

    ``inside(name)`` is what to put before a command, ``address(name)`` where it is then found. All see the
    same disk.
    """

    def __init__(self, names, subnet="10.213.77"):
        self._names, self._subnet, self._bridge = list(names), subnet, f"wmbr{os.getpid() % 10000}"

    def __enter__(self):
        ip("link", "add", self._bridge, "type", "bridge")
        ip("addr", "add", f"{self._subnet}.254/24", "dev", self._bridge)
        ip("link", "set", self._bridge, "up")
        for name in self._names:
            space, here = self._space(name), self._end(name)
            ip("netns", "add", space)
            ip("link", "add", here, "type", "veth", "peer", "name", "eth0", "netns", space)
            ip("link", "set", here, "master", self._bridge, "up")
            ip("-n", space, "addr", "add", f"{self.address(name)}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "eth0", "up")
            ip("-n", space, "link", "set", "lo", "up")
        return self

    def __exit__(self, *_):
        for name in self._names:
            ip("netns", "del", self._space(name), check=False)
            ip("link", "del", self._end(name), check=False)
        ip("link", "del", self._bridge, check=False)

    def inside(self, name):
        return ["ip", "netns", "exec", self._space(name)]

    def address(self, name):
        return f"{self._subnet}.{self._names.index(name) + 1}"

    def unplug(self, name):
        """Take a machine off the network: nobody is told, packets just do not arrive any more."""
        ip("link", "set", self._end(name), "down")

    def _space(self, name):
        return f"wm{os.getpid()}-{name}"

    def _end(self, name):
        return f"wm{os.getpid() % 10000}v{self._names.index(name)}"


def ip(*words, check=True):
    result = subprocess.run(["ip", *map(str, words)], capture_output=True, text=True, check=False)
    assert not check or result.returncode == 0, f"ip {' '.join(map(str, words))}: {result.stderr}"
