"""Dask schedulers and workers as processes of their own, as an administrator would start them."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

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
