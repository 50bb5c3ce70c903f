"""How many microns a level-0 pixel of a slide has: which source in its file says so, and which is believed.

Comes in: the properties that a reader found in a file. Goes out: microns per pixel and where they come from,
or a refusal that says what to do. It knows no file and guesses nothing: a nominal magnification is no
resolution.

The order of the sources, the first of which counts:

1. the reader's own property (``openslide.mpp-x``, ``tiffslide.mpp-x``), which follows the vendor's format;
2. the TIFF resolution tags of level 0 (``tiff.XResolution``), where they have a unit;
3. keys of the vendor or of the program that wrote the file (``_KEYS``), where the reader does not use them.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wsi_mil.config import MPP_MAX, MPP_MIN
from wsi_mil.errors import SlideError

DISAGREEMENT = 0.10
"""Sources of one slide that differ by more than this are refused: one of them is wrong."""

ANISOTROPY = 0.01
"""Pixels whose sides differ by more than this are not square."""

GIVEN = "given"
"""The source of a value that was given with --slide-mpp or in a manifest."""

ADVICE = "Give the true value with --slide-mpp, or in the mpp column of a manifest."

_MICRONS = {"inch": 25_400.0, "centimeter": 10_000.0, "millimeter": 1_000.0, "micrometer": 1.0}
# These write the resolution of another image of the file (label, macro) into the tags, or microns as such.
_OTHER_TAGS = ("trestle", "ventana")
# A name, keys of (x, y), and how many microns the unit is.
_KEYS = (
    ("aperio.MPP", "aperio.MPP", "aperio.MPP", 1.0),
    (
        "mirax.MICROMETER_PER_PIXEL_X",
        "mirax.LAYER_0_LEVEL_0_SECTION.MICROMETER_PER_PIXEL_X",
        "mirax.LAYER_0_LEVEL_0_SECTION.MICROMETER_PER_PIXEL_Y",
        1.0,
    ),
    ("ventana.ScanRes", "ventana.ScanRes", "ventana.ScanRes", 1.0),
    (  # DICOM's spacing is (down, across), in mm
        "dicom.PixelSpacing",
        "dicom.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing[1]",
        "dicom.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing[0]",
        1_000.0,
    ),
)
_OME_UNITS = {"": 1.0, "µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4}
_NUMBER = r"[-+0-9.,eE]+"


@dataclass(frozen=True)
class Statement:
    """What one source says: microns per level-0 pixel ``across`` and ``down`` (NaN: no number), and in which
    words of the file. ``of_tags``: it is the resolution tags, or was made from them."""

    source: str
    across: float
    down: float
    words: str
    of_tags: bool = False

    @property
    def mpp(self) -> float:
        """The mean of both axes."""
        return (self.across + self.down) / 2

    @property
    def is_possible(self) -> bool:
        """Whether a scanner can have such pixels."""
        return all(MPP_MIN <= each <= MPP_MAX for each in (self.across, self.down))

    @property
    def is_default(self) -> bool:
        """Whether it is what programs write into the tags when they know nothing (72 or 96 per inch)."""
        return self.of_tags and min(self.across, self.down) > MPP_MAX

    def __str__(self) -> str:
        """Return the value, the source and its words."""
        value = (
            f"{self.mpp:g}" if math.isclose(self.across, self.down) else f"{self.across:g} x {self.down:g}"
        )
        return f"{value} ({self.source}{': ' if self.words else ''}{self.words})"


@dataclass(frozen=True)
class Resolution:
    """Microns per level-0 pixel, the name of their source, and what a user should know about it, or ""."""

    mpp: float
    source: str
    note: str = ""


def statements(properties: Mapping[str, Any], reader: str, vendor: str) -> tuple[Statement, ...]:
    """Return all that a slide's properties say about its resolution, in the order of the sources."""
    tags = None if vendor in _OTHER_TAGS else _of_tags(properties)
    found = []
    own = _of_keys(properties, f"{reader}.mpp-x", f"{reader}.mpp-x", f"{reader}.mpp-y", 1.0)
    if own:
        same = tags is not None and math.isclose(own.mpp, tags.mpp, rel_tol=1e-3)
        words = tags.words if same and tags else ""
        found.append(Statement(own.source, own.across, own.down, words or own.words, of_tags=same))
    more = [tags, *(_of_keys(properties, *each) for each in _KEYS)]
    more += [_of_philips(properties), *_of_description(str(properties.get("tiff.ImageDescription") or ""))]
    return tuple(found + [each for each in more if each])


def decide(found: Sequence[Statement], where: object, mpp: float | None = None) -> Resolution:
    """Return the resolution of the slide ``where`` from what its sources say; ``mpp`` overrides them.

    Tags of more than ``MPP_MAX`` are a screen's resolution that a program filled in: beside another source
    they are passed over, and that is noted.

    Raises:
        SlideError: nothing says it, the first source says what no scanner has, sources disagree by more than
            ``DISAGREEMENT``, or pixels are not square.
    """
    used = [each for each in found if not each.is_default] or list(found)
    if mpp is not None:
        first = used[0] if used else None
        other = first is not None and first.is_possible and _ratio(first.mpp, mpp) > 1 + DISAGREEMENT
        return Resolution(
            mpp, GIVEN, f"{mpp:g} um per pixel was given; the file says {first}" if other else ""
        )
    if not used:
        raise SlideError(f"{where}: the file does not say its microns per pixel. {ADVICE}")
    first = used[0]
    if not first.is_possible:
        raise SlideError(
            f"{where}: the file says {_impossible(first)} microns per pixel, which no scanner has "
            f"(wanted {MPP_MIN} to {MPP_MAX}){_screen(first)}. {ADVICE}"
        )
    if abs(first.across - first.down) > ANISOTROPY * max(first.across, first.down):
        raise SlideError(
            f"{where}: pixels are not square ({first.across:g} x {first.down:g} um, {first.source}); such "
            f"slides are not read. If they are square and the file is wrong: {ADVICE[0].lower()}{ADVICE[1:]}"
        )
    if any(not each.is_possible or _ratio(each.mpp, first.mpp) > 1 + DISAGREEMENT for each in used):
        raise SlideError(
            f"{where}: the file contradicts itself about its microns per pixel: {', '.join(map(str, used))}; "
            f"they differ by more than {DISAGREEMENT:.0%}. {ADVICE}"
        )
    passed = [each for each in found if each.is_default and each.source.startswith("tiff.")]
    note = "".join(f"its resolution tags ({each.words}) are a screen's: not used" for each in passed)
    return Resolution(first.mpp, first.source, note)


def _of_keys(
    properties: Mapping[str, Any], name: str, key_x: str, key_y: str, unit: float
) -> Statement | None:
    found = [properties.get(key) for key in (key_x, key_y)]
    if any(each is None or not str(each).strip() for each in found):
        return None
    across, down = (_number(each) * unit for each in found)
    words = "" if unit == 1.0 and math.isfinite(across * down) else " x ".join(dict.fromkeys(map(str, found)))
    return Statement(name, across, down, words + (" mm" if unit == 1_000.0 else ""))


def _of_tags(properties: Mapping[str, Any]) -> Statement | None:
    """Return what the resolution tags say; those without a unit are a ratio of the sides and no size."""
    unit = str(properties.get("tiff.ResolutionUnit") or "").lower()
    per_unit = [_number(properties.get(f"tiff.{axis}Resolution") or "") for axis in "XY"]
    if unit not in _MICRONS or not all(math.isfinite(each) and each > 0 for each in per_unit):
        return None
    across, down = (_MICRONS[unit] / each for each in per_unit)
    words = " x ".join(dict.fromkeys(f"{each:.7g}" for each in per_unit)) + f" per {unit}"
    return Statement("tiff.XResolution", across, down, words, of_tags=True)


def _of_philips(properties: Mapping[str, Any]) -> Statement | None:
    """Return Philips' spacing: two quoted numbers, mm, (down, across)."""
    text = str(properties.get("philips.DICOM_PIXEL_SPACING") or "")
    numbers = [_number(each) for each in re.findall(_NUMBER, text)]
    if len(numbers) != 2:
        return None
    return Statement(
        "philips.DICOM_PIXEL_SPACING", numbers[1] * 1e3, numbers[0] * 1e3, text.replace('"', "") + " mm"
    )


def _of_description(text: str) -> list[Statement]:
    """Return what XML in a TIFF's description says: OME's, and the properties that libvips copies."""
    found = []
    pixels = re.search(r"<(?:\w+:)?Pixels\b[^>]*>", text)
    if pixels:
        sizes = [re.search(rf'\bPhysicalSize{axis}="({_NUMBER})"', pixels[0]) for axis in "XY"]
        unit = re.search(r'\bPhysicalSizeXUnit="([^"]*)"', pixels[0])
        micron = _OME_UNITS.get(unit[1] if unit else "")
        if micron is not None and sizes[0] and sizes[1]:
            across, down = (_number(each[1]) * micron for each in sizes if each)
            found.append(Statement("ome.PhysicalSizeX", across, down, ""))
    values = [
        re.search(rf"<name>openslide\.mpp-{axis}</name>\s*<value[^>]*>({_NUMBER})</value>", text)
        for axis in "xy"
    ]
    if values[0] and values[1]:
        across, down = (_number(each[1]) for each in values if each)
        found.append(Statement("vips.openslide.mpp-x", across, down, ""))
    return found


def _number(text: object) -> float:
    """Return a number, which may have a comma before its decimals as some scanners write it; else NaN."""
    try:
        return float(str(text).strip().replace(",", "."))
    except ValueError:
        return math.nan


def _ratio(one: float, other: float) -> float:
    return max(one, other) / min(one, other)


def _impossible(statement: Statement) -> str:
    """Return the value of the axis at fault; the words of the file where they are no number."""
    wrong = [each for each in (statement.across, statement.down) if not MPP_MIN <= each <= MPP_MAX]
    return repr(statement.words) if math.isnan(wrong[0]) else f"{wrong[0]:g}"


def _screen(statement: Statement) -> str:
    return f": its resolution tags, {statement.words}, are a screen's" if statement.is_default else ""
