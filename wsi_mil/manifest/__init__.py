"""Tables that people write, slides.csv and labels.csv: checked, and all that is wrong said at once."""

from wsi_mil.manifest.labels import (
    Labels,
    Match,
    check_patients,
    check_splits,
    classes_of,
    match,
    read_labels,
    some,
)
from wsi_mil.manifest.slides import Found, SlideEntry, find_remote_slides, find_slides, read_manifest

__all__ = [
    "Found",
    "Labels",
    "Match",
    "SlideEntry",
    "check_patients",
    "check_splits",
    "classes_of",
    "find_remote_slides",
    "find_slides",
    "match",
    "read_labels",
    "read_manifest",
    "some",
]
