"""Where the slides of a run lie now: at the places that the run's files name, or where they were moved to.

Comes in: ``--slides`` (a folder, a manifest or a URL), or nothing; and of each slide its id, its fingerprint
and the places that files name. Goes out: the place where it is. This is the only module that looks for a
slide that was tiled before.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from wsi_mil import manifest, store
from wsi_mil.config import Location
from wsi_mil.errors import SlideError, SlideMissingError
from wsi_mil.slide import SUFFIXES, detect, dicom_series, fingerprint, has_fingerprint


@dataclass(frozen=True)
class SlideFinder:
    """What ``--slides`` lists: ``where`` it is (None: not given), and the places ``listed`` by slide id."""

    where: Location | None = None
    listed: Mapping[str, tuple[Location, ...]] = field(default_factory=dict)

    def only(self, slide_id: str) -> "SlideFinder":
        """Return what finds this slide alone, which is small enough to be sent to a process."""
        return SlideFinder(self.where, {slide_id: self.listed.get(slide_id, ())})

    def find(self, slide_id: str, stored: Iterable[Location], wanted: str) -> Location:
        """Return where a slide lies: in ``--slides``, or else at one of the places that are ``stored``.

        ``wanted`` is its fingerprint; where that is "" (files of other tools) the id alone counts.

        Raises:
            SlideMissingError: it is nowhere. SlideError: a file of its name is there and has other bytes,
                cannot be read, or is one of several that nothing tells apart.
        """
        listed = self.listed.get(slide_id, ())
        if len(listed) > 1 and not wanted:
            raise SlideError(
                f"slide {slide_id}: --slides {self.where} has several files of this id "
                f"({manifest.some([str(each) for each in listed])}), and the run holds no fingerprint that "
                "tells which was tiled; give a manifest.csv (slide_id,path)."
            )
        known = [each for each in dict.fromkeys(stored) if each not in ("", Path())]
        looked = [] if self.where is None or listed else [f"not in --slides {self.where}"]
        for places in (listed, known):
            replaced = []
            for path in places:
                try:
                    if _is_it(path, wanted):
                        return path
                    replaced.append(path)
                except SlideMissingError:
                    looked.append(f"{path}: no such file")
            if replaced:
                raise SlideError(
                    f"{manifest.some([str(each) for each in replaced])}: its bytes are not those that were "
                    "tiled: the file was replaced. Tile it again with --overwrite."
                )
        looked += [] if known else ["no file of the run says where the slide lies"]
        raise SlideMissingError(
            f"slide {slide_id} is not found: {'; '.join(looked)}. Say where it is now with --slides: the "
            "folder of the slides, or a manifest.csv (slide_id,path)."
        )

    def read_patches(self, path: Path) -> store.Patches:
        """Read a slide's patches; their ``slide_path`` is where the slide lies now.

        Raises:
            FormatError: as ``store.read_patches``. SlideError, SlideMissingError: as ``find``.
        """
        patches = store.read_patches(path)
        found = self.find(patches.slide_id, [patches.slide_path], patches.slide_fingerprint)
        return replace(patches, slide_path=found)


def slide_finder(slides: Location | None) -> SlideFinder:
    """Look what ``--slides`` holds; with None slides are found only where the run's files say.

    Raises:
        ConfigError, LabelError: there is no such folder, no slide in it, or a manifest that is wrong.
    """
    if slides is None:
        return SlideFinder()
    found = manifest.list_slides(
        slides, suffixes=SUFFIXES, detect=detect, dicom_series=dicom_series, unique=False
    )
    listed: dict[str, tuple[Location, ...]] = defaultdict(tuple)
    for entry in found.entries:
        path = entry.path.absolute() if isinstance(entry.path, Path) else entry.path
        listed[entry.slide_id] += (path,)
    return SlideFinder(slides, dict(listed))


def _is_it(path: Location, wanted: str) -> bool:
    """Tell whether the file at ``path`` is the slide; without a fingerprint it only has to be there."""
    if wanted:
        return has_fingerprint(path, wanted)
    if isinstance(path, Path):
        fingerprint(path)  # says whether it is there and can be read
    return True
