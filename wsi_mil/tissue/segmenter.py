"""Tissue by a segmenter that the user brings: an ONNX file, run by onnxruntime. Thumbnail in, mask out.

The model takes one float image (1, 3, height, width) of any size and gives probabilities in 0..1 of that
size, (1, K, height, width). How it wants its pixels is said in its metadata, or in a JSON file of the same
name beside it: ``mean`` and ``std`` of RGB in 0..1, ``mpp``, and where K is above 1 the ``channel`` that is
tissue.
"""

import hashlib
import importlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_mil.errors import ConfigError, FormatError
from wsi_mil.tissue.mask import Mask

_KEYS = ("mean", "std", "mpp", "channel", "threshold")
_WANTED = (
    'wanted {"mean": [r, g, b], "std": [r, g, b]} of RGB in 0..1 and "mpp", in the file\'s metadata or in a '
    '.json beside it, and optionally "channel" and "threshold" (0.5)'
)
_MULTIPLE = 32  # networks that halve their input want its sides to be a multiple of this


@dataclass(frozen=True)
class Segmenter:
    """A learned segmenter: its session, and how it wants its thumbnail. ``digest`` says which file it is."""

    path: Path
    session: Any
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    mpp: float
    channel: int | None
    threshold: float
    digest: str

    def mask(self, thumbnail: NDArray[np.uint8]) -> Mask:
        """Return where there is tissue in a thumbnail (height, width, 3) of ``mpp`` microns per pixel.

        Raises:
            FormatError: the model cannot run it, or gives something else than probabilities.
        """
        height, width = thumbnail.shape[:2]
        down, right = -height % _MULTIPLE, -width % _MULTIPLE
        padded = cv2.copyMakeBorder(thumbnail, 0, down, 0, right, cv2.BORDER_REPLICATE)
        pixels = (np.asarray(padded, np.float32) / 255 - self.mean) / self.std
        image = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], dtype=np.float32)
        try:
            found = np.asarray(self.session.run(None, {self.session.get_inputs()[0].name: image})[0])
        except onnx_errors() as error:
            raise FormatError(
                f"--tissue onnx:{self.path}: cannot run {width} x {height} pixels ({_short(error)})."
            ) from error
        if found.ndim == 3:
            found = found[:, None]
        if found.ndim != 4 or found.shape[2:] != image.shape[2:]:
            raise FormatError(
                f"--tissue onnx:{self.path}: gives {found.shape} for {image.shape}; wanted (1, K, height, "
                "width)."
            )
        if self.channel is None and found.shape[1] > 1:
            raise FormatError(
                f"--tissue onnx:{self.path}: gives {found.shape[1]} channels, and nothing says which one is "
                f"tissue; {_WANTED}."
            )
        if (self.channel or 0) >= found.shape[1]:
            raise FormatError(
                f"--tissue onnx:{self.path}: gives {found.shape[1]} channels, not {self.channel}."
            )
        chance = found[0, self.channel or 0, :height, :width]
        if not np.isfinite(chance).all() or chance.min() < -1e-3 or chance.max() > 1 + 1e-3:
            raise FormatError(
                f"--tissue onnx:{self.path}: gives {chance.min():.3g} to {chance.max():.3g}; wanted "
                "probabilities in 0..1 (end the model in a sigmoid or softmax)."
            )
        return np.where(chance > self.threshold, np.uint8(255), np.uint8(0))


def load_segmenter(path: Path) -> Segmenter:
    """Return the segmenter in an ONNX file.

    Raises:
        ConfigError: no such file, no onnxruntime, or nothing says how it wants its pixels.
        FormatError: damaged, or not a model of one image.
    """
    where = f"--tissue onnx:{path}"
    if not path.is_file():
        raise ConfigError(f"{where}: no such file.")
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise ConfigError(f"{where}: needs onnxruntime; pip install 'wsi-mil[onnx]'.") from error
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # what is wrong comes back as an exception
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # slides are what runs side by side
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except onnx_errors() as error:
        raise FormatError(f"{where}: damaged or not such a file ({_short(error)}).") from error
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type != "tensor(float)":
        found = ", ".join(f"{each.name} {each.type} {each.shape}" for each in inputs)
        raise FormatError(f"{where}: takes {found}; wanted one float (1, 3, height, width).")
    facts, text = _facts(where, path, dict(session.get_modelmeta().custom_metadata_map))
    try:
        mean, std = (np.array([float(v) for v in facts[key]], np.float32) for key in ("mean", "std"))
        mpp, threshold = float(facts["mpp"]), float(facts.get("threshold", 0.5))
        channel = None if facts.get("channel") is None else int(facts["channel"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{where}: how pixels are wanted is not said ({error}); {_WANTED}.") from error
    if mean.shape != (3,) or std.shape != (3,) or std.min() <= 0 or not 0.25 <= mpp <= 64:
        raise ConfigError(f"{where}: mean {mean}, std {std} or mpp {mpp:g} make no sense; {_WANTED}.")
    if not 0 < threshold < 1 or (channel or 0) < 0:
        raise ConfigError(f"{where}: threshold {threshold:g} or channel {channel} make no sense; {_WANTED}.")
    digest = hashlib.blake2b(path.read_bytes() + text, digest_size=8).hexdigest()
    return Segmenter(path, session, mean, std, mpp, channel, threshold, digest)


def _facts(where: str, path: Path, metadata: dict[str, str]) -> tuple[dict[str, Any], bytes]:
    """Return what is said of the model, and the bytes of the file beside it; its own metadata win."""
    beside = path.with_suffix(".json")
    text = beside.read_bytes() if beside.is_file() else b""
    try:
        facts = dict(json.loads(text)) if text else {}
        facts |= {key: json.loads(metadata[key]) for key in _KEYS if key in metadata}
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}: its metadata or {beside} are not JSON ({error}); {_WANTED}.") from error
    return facts, text


def onnx_errors() -> tuple[type[Exception], ...]:
    """Return what a run can raise: onnxruntime's exceptions have no base in common but Exception."""
    state = sys.modules.get("onnxruntime.capi.onnxruntime_pybind11_state")
    found = (value for value in vars(state or object).values() if isinstance(value, type))
    return (RuntimeError, *(each for each in found if issubclass(each, Exception)))


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
