"""The files below a folder, each once, and what there cannot be looked at, by name.

Comes in: a folder. Goes out: a ``Walked``. Links are followed, none for ever; run folders of ours are passed
over. It does not know what a slide is.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_STAGES = ("tile", "import", "embed", "train", "heatmap", "predict", "report", "export")
_OUTPUTS = ("patches", "features", "models", "heatmaps", "predictions")


@dataclass
class Walked:
    """What is below a folder: ``files``; what else there is, with the reason why it is not one of them.

    ``broken`` are links to nothing, pipes and devices, and files whose names are no text; ``closed`` are
    folders that cannot be listed; ``notes`` are sentences about folders that were passed over.
    """

    files: list[Path] = field(default_factory=list)
    broken: dict[Path, str] = field(default_factory=dict)
    closed: dict[Path, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def walk(folder: Path) -> Walked:
    """Walk ``folder``, in order of names, without hidden files and the folders that belong to an MRXS.

    A folder that links lead to more than once is walked once. Of run folders (a stage has left its stage.json
    there) nothing is walked; of ``folder`` itself, if it is one, what the stages write is not.
    """
    walked = Walked()
    _walk(folder, walked, {}, passed_over=(*_STAGES, *_OUTPUTS) if is_run(folder) else ())
    return walked


def is_run(folder: Path) -> bool:
    """Tell whether a stage of ours has left its record in a folder."""
    try:
        return any((folder / stage / "stage.json").is_file() for stage in _STAGES)
    except PermissionError:  # it will be said where the folder is listed
        return False


def is_text(path: Path) -> bool:
    """Tell whether a path is text: Linux takes any bytes, which no table could hold."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(path: Path | str) -> str:
    r"""Return a path as text; bytes that are none as \xNN."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _walk(
    folder: Path, walked: Walked, seen: dict[tuple[int, int], Path], passed_over: tuple[str, ...] = ()
) -> None:
    if not _is_new(folder, walked, seen):
        return
    for path in _listed(folder, walked):
        if path.name.startswith("."):
            continue
        try:
            mode = path.stat().st_mode
        except OSError as error:
            reason = f"cannot be looked at ({error.strerror})"
            if not isinstance(error, PermissionError) and path.is_symlink():
                reason = f"a link to {shown(path.readlink())}, which is not there; mend or remove the link"
            walked.broken[path] = reason
            continue
        if stat.S_ISDIR(mode):
            _enter(path, walked, seen, passed_over)
        elif not stat.S_ISREG(mode):
            walked.broken[path] = "a pipe, socket or device, and no regular file; remove it"
        elif not is_text(path):
            walked.broken[path] = "its name is not UTF-8, as tables and files of features need it; rename it"
        else:
            walked.files.append(path)


def _enter(
    path: Path, walked: Walked, seen: dict[tuple[int, int], Path], passed_over: tuple[str, ...]
) -> None:
    """Walk a folder within another, if it is one to be walked."""
    if path.with_name(path.name + ".mrxs").exists():
        return
    if not is_text(path):
        walked.closed[path] = "its name is not UTF-8, as tables and files of features need it; rename it"
    elif is_run(path):
        walked.notes.append(f"{path} is a run folder of wsi-mil; nothing in it is taken for a slide.")
    elif path.name in passed_over:
        walked.notes.append(f"{path} is of a run of wsi-mil; nothing in it is taken for a slide.")
    else:
        _walk(path, walked, seen)


def _is_new(folder: Path, walked: Walked, seen: dict[tuple[int, int], Path]) -> bool:
    """Tell whether a folder was not walked before, under this name or by a link; note where it was."""
    facts = folder.stat()
    first = seen.setdefault((facts.st_dev, facts.st_ino), folder)
    if first is not folder:
        walked.notes.append(f"{folder} is the same folder as {first}, and is walked once.")
    return first is folder


def _listed(folder: Path, walked: Walked) -> Iterator[Path]:
    try:
        yield from sorted(folder.iterdir())
    except OSError as error:
        advice = "change its permissions (chmod)" if isinstance(error, PermissionError) else "see to it"
        walked.closed[folder] = f"a folder that cannot be listed ({error.strerror}); {advice}"
