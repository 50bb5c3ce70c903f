"""What every config has: checks in the flag's words, the record and digest of what changes results."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from wsi_mil.errors import ConfigError

MPP_MIN, MPP_MAX = 0.05, 5.0
"""Microns per pixel outside this range are a wrong tag (a 72-dpi default, a factor of 100), not a scanner."""

Json = Any
Location = str | Path
"""Where a slide is: a path, or a URL (https://, s3://, gs://, ...) as text."""
Icc = Literal["none", "srgb"]
"""What is done with a slide's colours: nothing, or its own ICC profile brings them to sRGB."""
Config = TypeVar("Config")


def neutral(default: Any) -> Any:
    """Mark a field that changes how the work is done and not what comes out; it is not in the digest."""
    return field(default=default, metadata={"neutral": True})


def flag_of(each: dataclasses.Field[Any]) -> str:
    """Return what a field is called on the command line: --its-name, or what its metadata say.

    Metadata ``flag`` gives another word; ``positional`` fields have none, and are shown as that says.
    """
    if each.metadata.get("positional"):
        return str(each.metadata["positional"])
    return f"--{each.metadata.get('flag', each.name).replace('_', '-')}"


def fields_of(config_class: type) -> list[dataclasses.Field[Any]]:
    """Return the fields of a config: its own, then those that it shares with others (a cluster's)."""
    each = dataclasses.fields(config_class)
    own = config_class.__annotations__
    return [f for f in each if f.name in own] + [f for f in each if f.name not in own]


def require(condition: bool, message: str) -> None:
    """Raise ConfigError with ``message`` unless ``condition`` holds."""
    if not condition:
        raise ConfigError(message)


def location(text: str | Path) -> Location:
    """Return a URL as it is and anything else as a path."""
    return text if isinstance(text, Path) or "://" in text else Path(text)


def check_slides(config: Any) -> None:
    """Turn the text of ``slides`` into a path or URL; raise ConfigError where it is neither."""
    value = config.slides
    require(
        value is None or isinstance(value, str | Path),
        f"--slides {value}: wanted a folder, a manifest.csv or a URL. Ids of slides to draw "
        "are given with `heatmap --only`.",
    )
    if value is not None:
        object.__setattr__(config, "slides", location(value))  # the command line gives text


def check_name(flag: str, name: str) -> None:
    """Raise ConfigError where ``name`` cannot be a folder's name."""
    require(
        bool(name) and name not in {".", ".."} and not set(name) & set('/\\\0:*?"<>|'),
        f"{flag} {name!r}: must be usable as a folder's name (no slashes).",
    )


def check_mpp(flag: str, mpp: float) -> None:
    """Raise ConfigError where ``mpp`` cannot be microns per pixel of a slide."""
    require(
        MPP_MIN <= mpp <= MPP_MAX,
        f"{flag} {mpp:g}: microns per pixel must lie between {MPP_MIN} and {MPP_MAX} "
        "(0.5 is about '20x', 0.25 about '40x').",
    )


def record(config: object, **more: Json) -> dict[str, Json]:
    """Return the fields that change results, as plain JSON values, with ``more`` of the caller's."""
    fields = dataclasses.fields(config)  # type: ignore[arg-type]
    kept = {f.name: getattr(config, f.name) for f in fields if not f.metadata.get("neutral")}
    plain: dict[str, Json] = json.loads(json.dumps(kept | more, default=str))
    return plain


def digest(record: Mapping[str, Json]) -> str:
    """Return 16 hexadecimal digits (SHA-256) of a record, independent of the order of its keys."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def first_difference(old: Mapping[str, Json], new: Mapping[str, Json]) -> str | None:
    """Return a phrase that names the first field in which two records differ, or None."""
    for key in [*new, *(k for k in old if k not in new)]:
        if old.get(key) != new.get(key):
            return f"{key} was {old.get(key)!r} and is now {new.get(key)!r}"
    return None


def kinds_of(annotation: Any) -> tuple[Any, ...]:
    """Return the types that a field's annotation joins with ``|``, or its only one."""
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def choices_of(annotation: Any) -> tuple[Any, ...]:
    """Return the values that a field's annotation lists (``Literal``)."""
    return tuple(
        value for kind in kinds_of(annotation) if get_origin(kind) is Literal for value in get_args(kind)
    )


def check_choices(config: object) -> None:
    """Raise ConfigError where a field with choices has another value, which Python lets pass."""
    for each in dataclasses.fields(config):  # type: ignore[arg-type]
        value, choices = getattr(config, each.name), choices_of(each.type)
        types = tuple(kind for kind in kinds_of(each.type) if isinstance(kind, type))
        fits = value in choices or (isinstance(value, types) and not isinstance(value, bool))
        words = [kind.__name__ for kind in types] + [str(choice) for choice in choices]
        require(not choices or fits, f"{flag_of(each)} {value}: unknown; wanted {', '.join(words)}.")
