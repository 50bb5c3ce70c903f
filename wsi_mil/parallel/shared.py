"""What a cluster's machines share: a file system, with the same paths.

Comes in: folders and tasks of this machine. Goes out: a file by which a worker tells that it sees the same
folder, and tasks whose paths mean the same in a worker, which stands elsewhere.
"""

import dataclasses
import functools
import os
import re
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wsi_mil.errors import ConfigError
from wsi_mil.parallel.progress import console


def wait_for(path: Path, seconds: float) -> None:
    """Wait for the file that a scheduler writes when it is up: a batch job may have just started it."""
    deadline = time.monotonic() + seconds
    if not path.is_file():
        console.print(f"Dask: waiting for a scheduler to write {path}", markup=False)
    while not path.is_file():
        if time.monotonic() > deadline:
            raise ConfigError(
                f"--scheduler-file {path}: no such file after {seconds:.0f} s; `dask scheduler "
                "--scheduler-file FILE` writes it."
            )
        time.sleep(0.2)


@contextmanager
def beacon_in(folder: Path) -> Iterator[Path]:
    """Yield a new file in a folder: a worker that sees it sees the folder that is meant.

    Its name is that of a temporary file, which a later run removes if this process is killed.
    """
    host = re.sub(r"[^A-Za-z0-9_-]", "_", socket.gethostname()) or "localhost"
    path = folder.absolute() / f".beacon-{uuid.uuid4().hex}.{host}-{os.getpid()}.tmp"
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".beacon-*.{host}-*.tmp"):  # of a command that was killed
        if not Path(f"/proc/{left.stem.rpartition('-')[2]}").exists():
            left.unlink(missing_ok=True)
    path.touch()
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def absolute(task: Any) -> Any:
    """Return a task with the paths in it absolute: a worker stands in another folder."""
    if isinstance(task, Path):
        return task.absolute()
    if isinstance(task, functools.partial):
        return functools.partial(task.func, *(absolute(each) for each in task.args))
    if isinstance(task, tuple) and type(task) is tuple:
        each = tuple(absolute(each) for each in task)
        return task if all(new is old for new, old in zip(each, task, strict=True)) else each
    if dataclasses.is_dataclass(task) and not isinstance(task, type):
        changed = {
            each.name: new
            for each in dataclasses.fields(task)
            if each.init and (new := absolute(old := getattr(task, each.name))) is not old
        }
        return dataclasses.replace(task, **changed) if changed else task
    return task
