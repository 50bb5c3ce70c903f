"""One frozen dataclass per command: the flags, the TOML keys and the Python arguments are the same fields.

Comes in: keyword arguments, or a TOML file with one table per command. Goes out: a checked config, its TOML,
its record (the fields that change results) and the digest of that record. It knows no file format but TOML
and imports nothing heavy, so that ``wsi-mil --help`` is quick.
"""

from wsi_mil.config.base import (
    MPP_MAX,
    MPP_MIN,
    Json,
    Location,
    check_name,
    digest,
    first_difference,
    flag_of,
    location,
    record,
)
from wsi_mil.config.grid import read_grid
from wsi_mil.config.heatmap import HeatmapConfig
from wsi_mil.config.stages import EmbedConfig, PredictConfig, ReportConfig, TileConfig
from wsi_mil.config.toml import STAGE_CONFIGS, from_toml, to_toml, toml_values
from wsi_mil.config.tools import EncodersConfig, ExportConfig, ImportConfig, VerifyConfig, ViewConfig
from wsi_mil.config.train import FOREIGN, MODELS, TrainConfig

__all__ = [
    "FOREIGN",
    "MODELS",
    "MPP_MAX",
    "MPP_MIN",
    "STAGE_CONFIGS",
    "EmbedConfig",
    "EncodersConfig",
    "ExportConfig",
    "HeatmapConfig",
    "ImportConfig",
    "Json",
    "Location",
    "PredictConfig",
    "ReportConfig",
    "TileConfig",
    "TrainConfig",
    "VerifyConfig",
    "ViewConfig",
    "check_name",
    "digest",
    "first_difference",
    "flag_of",
    "from_toml",
    "location",
    "read_grid",
    "record",
    "to_toml",
    "toml_values",
]
