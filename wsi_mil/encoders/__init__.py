"""Encoders: a model, the transform it was trained with and the identity of its weights, in one record.

Comes in: a name and, optionally, a file or folder of weights. Goes out: an ``Encoder`` on a device. A wrong
normalisation raises no error and ruins every feature, so the three travel together.

presets (the records) < registry, transform, weights, hub, stain < build, foreign < loading. What needs torch
is imported when it is asked for, so that ``wsi-mil encoders`` prints its table at once.
"""

import importlib
from typing import TYPE_CHECKING

from wsi_mil.encoders.preset import Preset
from wsi_mil.encoders.presets import LEFT_OUT, PACKAGED, PRESETS
from wsi_mil.encoders.registry import register, registered

if TYPE_CHECKING:
    from wsi_mil.encoders.encoder import TOLERANCE, Encoder, check_fit
    from wsi_mil.encoders.loading import download, load_encoder
    from wsi_mil.encoders.transform import PatchTransform
    from wsi_mil.encoders.weights import packaged_weights, read_weights, weights_digest, weights_path

__all__ = [
    "LEFT_OUT",
    "PACKAGED",
    "PRESETS",
    "TOLERANCE",
    "Encoder",
    "PatchTransform",
    "Preset",
    "check_fit",
    "download",
    "load_encoder",
    "packaged_weights",
    "read_weights",
    "register",
    "registered",
    "weights_digest",
    "weights_path",
]

_HOMES = {
    **dict.fromkeys(("TOLERANCE", "Encoder", "check_fit"), "encoder"),
    **dict.fromkeys(("download", "load_encoder"), "loading"),
    "PatchTransform": "transform",
    **dict.fromkeys(("packaged_weights", "read_weights", "weights_digest", "weights_path"), "weights"),
}


def __getattr__(name: str) -> object:
    """Hand on a name from the module that defines it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
