"""Configs as TOML: one file may hold a table for every command, and ``[cluster]`` for all that use one."""

import dataclasses
import tomllib
from pathlib import Path
from typing import Any, get_origin

import tomli_w

from wsi_mil.config.base import Config, Json, choices_of, fields_of, kinds_of, location, require
from wsi_mil.config.cluster import CLUSTER_KEYS, PLACE_KEYS, ClusterConfig
from wsi_mil.config.heatmap import HeatmapConfig
from wsi_mil.config.stages import EmbedConfig, PredictConfig, ReportConfig
from wsi_mil.config.tile import TileConfig
from wsi_mil.config.tools import (
    EncodersConfig,
    ExportConfig,
    ImportConfig,
    InspectConfig,
    RunConfig,
    VerifyConfig,
    ViewConfig,
)
from wsi_mil.config.train import TrainConfig
from wsi_mil.errors import ConfigError

STAGE_CONFIGS: dict[str, type] = {
    "inspect": InspectConfig,
    "tile": TileConfig,
    "embed": EmbedConfig,
    "train": TrainConfig,
    "heatmap": HeatmapConfig,
    "predict": PredictConfig,
    "report": ReportConfig,
    "run": RunConfig,
    "view": ViewConfig,
    "encoders": EncodersConfig,
    "verify": VerifyConfig,
    "import": ImportConfig,
    "export": ExportConfig,
}
"""The commands, in the order in which they are listed; a table of a TOML file has the command's name."""


CLUSTER = "cluster"
"""The table that says, once for all stages, which cluster does the work."""


def toml_tables(path: Path) -> dict[str, dict[str, Json]]:
    """Return the tables of a TOML file.

    Raises:
        ConfigError: the file is missing or no TOML, or holds an unknown table.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {path}: cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: not TOML ({error}).") from error
    known = [*(name for name in STAGE_CONFIGS if name != "run"), CLUSTER]
    for table, values in content.items():
        require(
            table in known and isinstance(values, dict),
            f"--config {path}: unknown table or key '{table}' at the top; settings go below a table: "
            + ", ".join(f"[{name}]" for name in known)
            + ".",
        )
    return content


def toml_values(path: Path, stage: str) -> dict[str, Json]:
    """Return the keys of the table ``[stage]`` of a TOML file, and those of ``[cluster]`` where it uses one.

    One file may hold the tables of all stages; every table and every key of this stage's must be known. A
    stage that names a place of its own (``dask = "none"``) does not take that of ``[cluster]``.

    Raises:
        ConfigError: the file is missing or no TOML, or holds an unknown table or key.
    """
    tables = toml_tables(path)
    values = dict(tables.get(stage, {}))
    known = [f.name for f in fields_of(STAGE_CONFIGS[stage])]
    cluster = tables.get(CLUSTER, {})
    for table, keys, wanted in ((stage, values, known), (CLUSTER, cluster, list(CLUSTER_KEYS))):
        for key in keys:
            require(
                key in wanted,
                f"--config {path}: unknown key '{key}' in [{table}]; known: {', '.join(wanted)}.",
            )
    if issubclass(STAGE_CONFIGS[stage], ClusterConfig):
        own = values.keys() & set(PLACE_KEYS)
        values = {k: v for k, v in cluster.items() if not (own and k in PLACE_KEYS)} | values
    return values


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
    values = {f.name: getattr(config, f.name) for f in fields_of(type(config))}
    plain = {
        key: str(v) if isinstance(v, Path) else list(v) if isinstance(v, tuple) else v
        for key, v in values.items()
        if v is not None
    }
    return tomli_w.dumps({stage: plain})
