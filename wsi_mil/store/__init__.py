"""Everything on disk: formats, paths, and the rule that a file appears whole or not at all (FORMATS.md)."""

from wsi_mil.store.atomic import alone, atomic_file, atomic_folder, check_writable, sweep, write_text
from wsi_mil.store.checksum import of_array as checksum_of
from wsi_mil.store.claims import Claims
from wsi_mil.store.disk import disk_errors
from wsi_mil.store.features import FeatureStore, FeaturesWriter
from wsi_mil.store.hdf5 import is_done, read_features, read_patches, write_features, write_patches
from wsi_mil.store.heatmaps import (
    QUANTITIES,
    Heatmap,
    heatmap_has_picture,
    heatmap_is_done,
    read_heatmap,
    write_heatmap,
)
from wsi_mil.store.items import Features, FeaturesHead, FeaturesSummary, Patches
from wsi_mil.store.layout import (
    bags_folder,
    context_run,
    features_folder,
    features_path,
    heatmap_folder,
    model_folder,
    only_folder,
    patches_path,
    predictions_folder,
)
from wsi_mil.store.models import FORMAT_VERSION as METRICS_VERSION
from wsi_mil.store.models import model_digest, read_fold, read_metrics, write_fold
from wsi_mil.store.opening import encoders_in, only_encoder, open_features
from wsi_mil.store.packed import Packed, read_packed, write_packed
from wsi_mil.store.predictions import Predictions, read_predictions, table_checksum, write_predictions
from wsi_mil.store.problems import Problem
from wsi_mil.store.record import read_csv, read_stage, same_record, stage_record, write_csv
from wsi_mil.store.table import write_rows
from wsi_mil.store.verify import Verification

__all__ = [
    "METRICS_VERSION",
    "QUANTITIES",
    "Claims",
    "FeatureStore",
    "Features",
    "FeaturesHead",
    "FeaturesSummary",
    "FeaturesWriter",
    "Heatmap",
    "Packed",
    "Patches",
    "Predictions",
    "Problem",
    "Verification",
    "alone",
    "atomic_file",
    "atomic_folder",
    "bags_folder",
    "check_writable",
    "checksum_of",
    "context_run",
    "disk_errors",
    "encoders_in",
    "features_folder",
    "features_path",
    "heatmap_folder",
    "heatmap_has_picture",
    "heatmap_is_done",
    "is_done",
    "model_digest",
    "model_folder",
    "only_encoder",
    "only_folder",
    "open_features",
    "patches_path",
    "predictions_folder",
    "read_csv",
    "read_features",
    "read_fold",
    "read_heatmap",
    "read_metrics",
    "read_packed",
    "read_patches",
    "read_predictions",
    "read_stage",
    "same_record",
    "stage_record",
    "sweep",
    "table_checksum",
    "write_csv",
    "write_features",
    "write_fold",
    "write_heatmap",
    "write_packed",
    "write_patches",
    "write_predictions",
    "write_rows",
    "write_text",
]
