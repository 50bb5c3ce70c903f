"""The whole error tree: what a user can meet, by whose fault it is.

::

    WsiMilError
    ├── ConfigError (ValueError)      a setting is wrong, or settings contradict each other
    ├── SlideError (OSError)          a slide cannot be opened, read or placed (no microns per pixel)
    │   └── SlideMissingError         there is no slide at any of the places where it may lie
    ├── FormatError (ValueError)      a file of ours, or of another tool, is not what it should be
    │   └── StaleOutputError          an output is there, made with other settings or inputs
    ├── LabelError (ValueError)       labels or a manifest do not fit the slides
    ├── StoreError (OSError)          an output cannot be written: disk full, read-only, no permission
    ├── ClusterError (ConnectionError)    a Dask cluster is not to be had, or was lost on the way
    └── TrainingError (ArithmeticError)   a training came to nothing: its loss is no number any more

A message says which file or field, what was found, what was wanted, and what to do. Errors of other
libraries are translated with ``raise ... from``; the only broad catch is per slide, in ``parallel.py``.
"""


class WsiMilError(Exception):
    """Base of every error that wsi-mil raises on purpose."""


class ConfigError(WsiMilError, ValueError):
    """A setting is wrong, or two settings contradict each other."""


class SlideError(WsiMilError, OSError):
    """A slide cannot be opened or read, or does not say (or says nonsense about) its resolution."""


class SlideMissingError(SlideError):
    """No slide is at any of the places where it may lie: it was moved, or its disk is not mounted."""


class FormatError(WsiMilError, ValueError):
    """A file is not of the format, version or content that it should be."""


class StaleOutputError(FormatError):
    """An output exists that other settings or other inputs made."""


class LabelError(WsiMilError, ValueError):
    """Labels or a manifest do not fit the slides, or cannot carry the evaluation asked for."""


class StoreError(WsiMilError, OSError):
    """An output cannot be written: the disk is full, read-only, or does not let us."""


class TrainingError(WsiMilError, ArithmeticError):
    """A training came to nothing: its loss is no number any more."""


class ClusterError(WsiMilError, ConnectionError):
    """A Dask cluster is not to be had, or was lost while slides were worked on."""
