"""Configs as TOML: one file may hold a table for every command."""

import dataclasses
import tomllib
from pathlib import Path
from typing import Any, get_origin

import tomli_w

from wsi_mil.config.base import Config, Json, choices_of, kinds_of, location, require
from wsi_mil.config.heatmap import HeatmapConfig
from wsi_mil.config.stages import EmbedConfig, PredictConfig, ReportConfig, TileConfig
from wsi_mil.config.tools import EncodersConfig, ExportConfig, ImportConfig, VerifyConfig, ViewConfig
from wsi_mil.config.train import TrainConfig
from wsi_mil.errors import ConfigError

STAGE_CONFIGS: dict[str, type] = {
    "tile": TileConfig,
    "embed": EmbedConfig,
    "train": TrainConfig,
    "heatmap": HeatmapConfig,
    "predict": PredictConfig,
    "report": ReportConfig,
    "view": ViewConfig,
    "encoders": EncodersConfig,
    "verify": VerifyConfig,
    "import": ImportConfig,
    "export": ExportConfig,
}
"""The commands, in the order in which they are listed; a table of a TOML file has the command's name."""


def toml_values(path: Path, stage: str) -> dict[str, Json]:
    """Return the keys of the table ``[stage]`` of a TOML file.

    One file may hold the tables of all stages; every table and every key of this stage's must be known.

    Raises:
        ConfigError: the file is missing or no TOML, or holds an unknown table or key.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {path}: cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: not TOML ({error}).") from error
    for table in content:
        require(
            table in STAGE_CONFIGS,
            f"--config {path}: unknown table or key '{table}' at the top; settings go below a table: "
            + ", ".join(f"[{name}]" for name in STAGE_CONFIGS)
            + ".",
        )
    values = content.get(stage, {})
    known = [f.name for f in dataclasses.fields(STAGE_CONFIGS[stage])]
    for key in values:
        require(
            key in known, f"--config {path}: unknown key '{key}' in [{stage}]; known: {', '.join(known)}."
        )
    return dict(values)


def from_toml(config_class: type[Config], path: Path, **overrides: Json) -> Config:
    """Return a config from its table in a TOML file; ``overrides`` win over the file.

    Raises:
        ConfigError: as ``toml_values``, or a value has the wrong type, or a required field is missing.
    """
    stage = next(name for name, known in STAGE_CONFIGS.items() if known is config_class)
    values = toml_values(path, stage) | overrides
    for each in dataclasses.fields(config_class):  # type: ignore[arg-type]
        if each.name in values:
            values[each.name] = _typed(values[each.name], each.type, f"{path}: [{stage}] {each.name}")
    try:
        return config_class(**values)
    except TypeError as error:
        raise ConfigError(f"--config {path}: [{stage}] {error}.") from error


def _typed(value: Json, annotation: Any, where: str) -> Json:
    """Turn TOML's types into the field's (Path, tuple, float) and refuse what does not fit."""
    kinds = kinds_of(annotation)
    number = isinstance(value, int) and not isinstance(value, bool)
    if any(get_origin(kind) is tuple for kind in kinds):
        return tuple(map(str, value)) if isinstance(value, list | tuple) else (str(value),)
    if Path in kinds and isinstance(value, str):
        return location(value) if str in kinds else Path(value)
    if float in kinds and int not in kinds and number:
        return float(value)
    choices = choices_of(annotation)
    types = tuple(kind for kind in kinds if isinstance(kind, type))
    fits = isinstance(value, types) and (not isinstance(value, bool) or bool in types)
    words = [kind.__name__ for kind in types if kind is not type(None)] + [repr(each) for each in choices]
    require(fits or value in choices, f"{where} = {value!r}: wanted {', '.join(words)}.")
    return value


def to_toml(config: object) -> str:
    """Return the config as TOML under its stage's table; fields that are None are left out."""
    stage = next(name for name, known in STAGE_CONFIGS.items() if type(config) is known)
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}  # type: ignore[arg-type]
    plain = {
        key: str(v) if isinstance(v, Path) else list(v) if isinstance(v, tuple) else v
        for key, v in values.items()
        if v is not None
    }
    return tomli_w.dumps({stage: plain})
