"""One frozen dataclass per command: the flags, the TOML keys and the Python arguments are the same fields.

Comes in: keyword arguments, or a TOML file with one table per command. Goes out: a checked config, its TOML,
its record (the fields that change results) and the digest of that record. It knows no file format but TOML
and imports nothing heavy, so that ``wsi-mil --help`` is quick.
"""

from wsi_mil.config.base import (
    MPP_MAX,
    MPP_MIN,
    Icc,
    Json,
    Location,
    check_name,
    digest,
    fields_of,
    first_difference,
    flag_of,
    location,
    record,
)
from wsi_mil.config.cluster import PLACE_KEYS, ClusterConfig
from wsi_mil.config.grid import read_grid
from wsi_mil.config.heatmap import HeatmapConfig
from wsi_mil.config.share import share_of
from wsi_mil.config.stages import EmbedConfig, PredictConfig, ReportConfig
from wsi_mil.config.tile import TileConfig
from wsi_mil.config.toml import STAGE_CONFIGS, from_toml, to_toml, toml_tables, toml_values
from wsi_mil.config.tools import (
    EncodersConfig,
    ExportConfig,
    ImportConfig,
    InspectConfig,
    RunConfig,
    VerifyConfig,
    ViewConfig,
)
from wsi_mil.config.train import FOREIGN, MODELS, TrainConfig

__all__ = [
    "FOREIGN",
    "MODELS",
    "MPP_MAX",
    "MPP_MIN",
    "PLACE_KEYS",
    "STAGE_CONFIGS",
    "ClusterConfig",
    "EmbedConfig",
    "EncodersConfig",
    "ExportConfig",
    "HeatmapConfig",
    "Icc",
    "ImportConfig",
    "InspectConfig",
    "Json",
    "Location",
    "PredictConfig",
    "ReportConfig",
    "RunConfig",
    "TileConfig",
    "TrainConfig",
    "VerifyConfig",
    "ViewConfig",
    "check_name",
    "digest",
    "fields_of",
    "first_difference",
    "flag_of",
    "from_toml",
    "location",
    "read_grid",
    "record",
    "share_of",
    "to_toml",
    "toml_tables",
    "toml_values",
]
