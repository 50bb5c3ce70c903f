"""What crashes leave in a run: temporary names whose process is gone, and claims that nobody holds."""

import time
from collections.abc import Iterator
from pathlib import Path

from wsi_mil.store import atomic
from wsi_mil.store.claims import CLOCK
from wsi_mil.store.problems import Problem, inside

CLAIM_SECONDS = 600
"""A claim on a slide that nobody has renewed for so long is a dead process's."""
_ELSEWHERE_SECONDS = 3600  # of another computer, whose processes we cannot see
_CLAIMS = "*.claim-*"


def leftovers(run: Path) -> list[Problem]:
    """Return what crashes left in a run; the living keep theirs."""
    found = []
    for folder in _folders(run):
        for path in sorted(folder.iterdir()):
            words = _dead(path)
            if words:
                found.append(Problem(file=str(path), kind="leftover", detail=words, removable=path))
    return found


def _folders(run: Path) -> Iterator[Path]:
    """Yield the folders where stages write."""
    patterns = (".", "*", "features/*", "heatmaps/*", "embed/claims/*", "train/*")
    seen = set()
    for pattern in patterns:
        for path in [run] if pattern == "." else sorted(run.glob(pattern)):
            hidden = path != run and path.name[0] == "."
            if path.is_dir() and not hidden and path not in seen and inside(run, path):
                seen.add(path)
                yield path


def _dead(path: Path) -> str:
    owner = atomic.owner(path.name)
    if owner is not None:
        if owner == "here":
            return "" if atomic.is_alive(path.name) else "a temporary name whose process is gone"
        age = _age(path)
        return (
            f"a temporary name of another computer, {age / 3600:.0f} h old"
            if age > _ELSEWHERE_SECONDS
            else ""
        )
    clock = CLOCK.match(path.name) if path.parent.parent.name == "claims" else None
    if clock:
        here = clock["host"] == atomic.host()
        gone = not atomic.process_alive(int(clock["pid"])) if here else _age(path) > _ELSEWHERE_SECONDS
        return "the clock of claims whose process is gone" if gone else ""
    if path.match(_CLAIMS) and path.parent.parent.name == "claims" and _age(path) > CLAIM_SECONDS:
        return f"a claim that nobody renewed for {_age(path) / 60:.0f} min"
    return ""


def _age(path: Path) -> float:
    """Return the seconds since anything at or below ``path`` was written."""
    paths = [path, *path.rglob("*")] if path.is_dir() and not path.is_symlink() else [path]
    times = []
    for each in paths:
        try:
            times.append(each.lstat().st_mtime)
        except FileNotFoundError:
            continue  # its process is alive, and has just renamed it
    return time.time() - max(times, default=time.time())
