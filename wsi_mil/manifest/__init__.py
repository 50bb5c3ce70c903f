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

__all__ = [
    "Labels",
    "Match",
    "check_patients",
    "check_splits",
    "classes_of",
    "match",
    "read_labels",
    "some",
]
