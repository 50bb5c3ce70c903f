"""Tables that people write, slides.csv and labels.csv: checked, and all that is wrong said at once."""

from wsi_mil.manifest.known import in_words, known_targets
from wsi_mil.manifest.labels import Labels, Match, check_splits, match, read_labels
from wsi_mil.manifest.near import Reconciled, read_label_ids, reconcile
from wsi_mil.manifest.patients import by_patient, check_patients, group_remark
from wsi_mil.manifest.slides import (
    Fault,
    Found,
    SlideEntry,
    find_remote_slides,
    find_slides,
    list_slides,
    read_manifest,
    used_twice,
)
from wsi_mil.manifest.table import some
from wsi_mil.manifest.targets import Targets, make_targets

__all__ = [
    "Fault",
    "Found",
    "Labels",
    "Match",
    "Reconciled",
    "SlideEntry",
    "Targets",
    "by_patient",
    "check_patients",
    "check_splits",
    "find_remote_slides",
    "find_slides",
    "group_remark",
    "in_words",
    "known_targets",
    "list_slides",
    "make_targets",
    "match",
    "read_label_ids",
    "read_labels",
    "read_manifest",
    "reconcile",
    "some",
    "used_twice",
]
