"""Slides against labels, by name: what is on both sides, what is not, and which names may mean the same.

Comes in: the ids of either side. Goes out: what is left over, with hints for near misses. A hint is never
acted upon: two names that look alike may be two slides.
"""

import bisect
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from wsi_mil.errors import LabelError
from wsi_mil.manifest.table import read_table, some

_MARKS = re.compile(r"[\s._\-]+")


@dataclass(frozen=True, kw_only=True)
class Reconciled:
    """How many ids are on both sides; those of labels without a slide and of slides without a label, sorted.

    ``near``: for ids that are left over in the labels, the slide that may be meant, and why.
    """

    both: int
    without_slide: tuple[str, ...]
    without_label: tuple[str, ...]
    near: Mapping[str, tuple[str, str]]


def read_label_ids(path: Path) -> tuple[str, ...]:
    """Return the column slide_id of a labels file, whatever its other columns are.

    Raises:
        LabelError: no CSV, no such column, an id empty or twice.
    """
    header, rows = read_table(path)
    if "slide_id" not in header:
        raise LabelError(
            f"{path}: no column slide_id; found {', '.join(map(repr, header)) or 'an empty file'}."
        )
    empty = [f"line {line}" for line, row in rows if not row["slide_id"]]
    if empty:
        raise LabelError(f"{path}: {len(empty)} rows have no slide_id: {some(empty)}.")
    ids = tuple(row["slide_id"] for _, row in rows)
    twice = [slide_id for slide_id, count in Counter(ids).items() if count > 1]
    if twice:
        raise LabelError(f"{path}: {len(twice)} slide ids stand there more than once: {some(twice)}.")
    return ids


def reconcile(label_ids: Collection[str], slide_ids: Collection[str]) -> Reconciled:
    """Return which labels have a slide and which slides a label, by their exact names."""
    labels, slides = set(label_ids), set(slide_ids)
    without_slide = tuple(sorted(labels - slides))
    without_label = tuple(sorted(slides - labels))
    return Reconciled(
        both=len(labels & slides),
        without_slide=without_slide,
        without_label=without_label,
        near=near_misses(without_slide, without_label),
    )


def near_misses(missing: Sequence[str], there: Collection[str]) -> dict[str, tuple[str, str]]:
    """Return for names in ``missing`` the one in ``there`` that may be meant, and in what they differ."""
    known = set(there)
    alike: dict[str, list[str]] = {}
    for name in sorted(known):
        alike.setdefault(_form(name), []).append(name)
    ordered = sorted(known)
    found = {}
    for name in missing:
        hint = _by_path(name, known) or _by_form(name, alike) or _by_start(name, known, ordered)
        if hint:
            found[name] = hint
    return found


def _by_path(name: str, known: set[str]) -> tuple[str, str] | None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.stem in known and path.stem != name:
        return path.stem, "a slide_id is the file name without folder and extension"
    return (path.name, "a slide_id has no folder") if path.name in known and path.name != name else None


def _by_form(name: str, alike: Mapping[str, Sequence[str]]) -> tuple[str, str] | None:
    same = alike.get(_form(name), ())
    if len(same) != 1:
        return None
    numbers = name.lstrip("0") == same[0].lstrip("0")
    return same[0], "they differ in leading zeros" if numbers else "they differ in case, blanks or marks"


def _by_start(name: str, known: set[str], ordered: Sequence[str]) -> tuple[str, str] | None:
    """Find the only name that begins with this one, or with which this one begins, up to a mark."""
    longer: list[str] = []
    for other in ordered[bisect.bisect_left(ordered, name) :]:
        if not other.startswith(name) or len(longer) > 1:
            break
        if len(other) > len(name) and not other[len(name)].isalnum():
            longer.append(other)
    if len(longer) == 1:
        return longer[0], "the slide's name goes on after it"
    cuts = [match.start() for match in re.finditer(r"[^0-9A-Za-z]", name)]
    shorter = [name[:cut] for cut in cuts if name[:cut] in known]
    return (shorter[-1], "it goes on after the slide's name") if shorter else None


def _form(name: str) -> str:
    """Return a name without what people write now so and now so: case, blanks, marks, leading zeros."""
    return _MARKS.sub("-", name.strip()).strip("-").casefold().lstrip("0") or name
