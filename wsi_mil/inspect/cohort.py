"""Many slides: each looked at by itself, then their ids, their bytes and their labels against each other.

Comes in: a config. Goes out: a ``Cohort``. A slide that kills the process that looks at it is a problem of
that slide.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from wsi_mil import manifest, parallel
from wsi_mil.config import InspectConfig
from wsi_mil.errors import ConfigError
from wsi_mil.inspect.facts import Inspection
from wsi_mil.inspect.look import inspect_slide
from wsi_mil.manifest import Fault, Found, Reconciled, SlideEntry
from wsi_mil.slide import SUFFIXES, bytes_on_disk, detect, dicom_series

FORMAT, FORMAT_VERSION = "wsi-mil inspection", 1
_FEW = 32  # slides that are looked at sooner than other processes have started


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """What is known of many slides.

    ``used_twice``: ids of several slides, and their paths; ``same_bytes``: ids of files that are the same;
    ``others``: files that are no slides; ``labels``: slides against labels, where there are some; ``notes``:
    which folders were passed over.
    """

    slides: tuple[Inspection, ...]
    used_twice: Mapping[str, list[str]]
    same_bytes: tuple[tuple[str, ...], ...]
    others: tuple[str, ...]
    labels: Reconciled | None = None
    labels_path: str = ""
    notes: tuple[str, ...] = ()

    @property
    def failing(self) -> list[Inspection]:
        """The slides that will fail."""
        return [each for each in self.slides if each.problems]

    @property
    def wrong(self) -> int:
        """How many things are wrong: slides that will fail, ids used twice, labels without a slide."""
        return (
            len(self.failing) + len(self.used_twice) + len(self.labels.without_slide if self.labels else ())
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values (FORMATS.md)."""
        labels = self.labels and {
            "path": self.labels_path,
            "both": self.labels.both,
            "without_slide": list(self.labels.without_slide),
            "without_label": list(self.labels.without_label),
            "near": {name: {"slide": slide, "why": why} for name, (slide, why) in self.labels.near.items()},
        }
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "wrong": self.wrong,
            "slides": [each.to_json() for each in self.slides],
            "used_twice": dict(self.used_twice),
            "same_bytes": [list(each) for each in self.same_bytes],
            "not_slides": list(self.others),
            "notes": list(self.notes),
            "labels": labels,
        }


def inspect_slides(config: InspectConfig) -> Cohort:
    """Return what is known of all slides that a config names.

    Raises:
        ConfigError: there is no slide at one of the places.
        LabelError: a manifest or the labels cannot be read.
    """
    label_ids = manifest.read_label_ids(config.labels) if config.labels else None
    entries, others, faults, notes = _find(config)
    twice = manifest.used_twice(entries)
    tasks = {
        f"{entry.slide_id} ({entry.path})" if entry.slide_id in twice else entry.slide_id: (entry, config)
        for entry in entries
    }
    workers = config.workers or (1 if len(tasks) <= _FEW else 0)
    place = parallel.Place(workers=workers, limits=_limits)
    outcomes = parallel.map_slides(_look, tasks, title="inspect", place=place)
    slides = tuple(
        outcome.facts["inspection"]
        if outcome.facts
        else Inspection(slide_id=entry.slide_id, path=str(entry.path), problems=(outcome.reason,))
        for (entry, _), outcome in zip(tasks.values(), outcomes, strict=True)
    ) + tuple(
        Inspection(slide_id=each.slide_id, path=each.path, problems=(f"{each.path}: {each.reason}.",))
        for each in faults
    )
    return Cohort(
        slides=slides,
        used_twice=twice,
        same_bytes=_same_bytes(slides),
        others=tuple(others),
        notes=tuple(notes),
        labels=None if label_ids is None else manifest.reconcile(label_ids, [e.slide_id for e in entries]),
        labels_path=str(config.labels or ""),
    )


def _find(config: InspectConfig) -> tuple[list[SlideEntry], list[str], list[Fault], list[str]]:
    """Return the slides at all places, none twice, the files there that are no slides, faults and notes."""
    entries: dict[tuple[str, str], SlideEntry] = {}
    others: list[str] = []
    faults: list[Fault] = []
    notes: list[str] = []
    for place in config.slides:
        found = _list(place, config)
        entries |= {(each.slide_id, str(each.path)): each for each in found.entries}
        others += [str(path) for path in found.others]
        faults += found.faults
        notes += found.notes
    return (
        list(entries.values()),
        list(dict.fromkeys(others)),
        list(dict.fromkeys(faults)),
        list(dict.fromkeys(notes)),
    )


def _list(place: Any, config: InspectConfig) -> Found:
    limits = parallel.limits_of(config.slide_timeout, config.slide_memory_mib, 1)
    try:
        return manifest.list_slides(
            place,
            pattern=config.pattern,
            suffixes=SUFFIXES,
            detect=parallel.guarded(detect, limits, "unknown"),  # it fails by itself, as a slide
            dicom_series=parallel.guarded(dicom_series, limits, None),
            unique=False,
        )
    except ConfigError as error:
        raise ConfigError(str(error).removeprefix("--slides ")) from error  # they have no flag here


def _limits(task: tuple[SlideEntry, InspectConfig], processes: int) -> parallel.Limits:
    entry, config = task
    size = bytes_on_disk(entry.path)
    return parallel.limits_of(config.slide_timeout, config.slide_memory_mib, processes, size=size)


def _look(task: tuple[SlideEntry, InspectConfig]) -> Mapping[str, Any]:
    entry, config = task
    found = inspect_slide(
        entry.path,
        entry.slide_id,
        reader=config.reader,
        slide_mpp=entry.mpp or config.slide_mpp,
        mpp=config.mpp,
        icc=config.icc,
    )
    return {"inspection": found}


def _same_bytes(slides: Iterable[Inspection]) -> tuple[tuple[str, ...], ...]:
    """Return the slides, by groups, whose files are the same."""
    groups = defaultdict(list)
    for each in slides:
        if each.fingerprint:
            groups[each.fingerprint, each.bytes].append(each)
    alike = [group for group in groups.values() if len(group) > 1]
    return tuple(tuple(f"{each.slide_id} ({each.path})" for each in group) for group in alike)
