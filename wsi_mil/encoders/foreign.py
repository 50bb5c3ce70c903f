"""Encoders that a user brings as a file: ONNX (run by onnxruntime) and TorchScript.

Neither file says how patches are normalised. That stands beside it, and where it does not, loading stops:
nothing is guessed. A TorchScript file is a program: loading it runs no Python and unpickles none, but its own
operations run with this process's rights, so load only files of people that you trust.
"""

import hashlib
import importlib
import json
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsi_mil.encoders.encoder import Encoder
from wsi_mil.encoders.transform import PatchTransform
from wsi_mil.errors import ConfigError, FormatError

_WANTED = (
    'wanted {"mean": [r, g, b], "std": [r, g, b]} of RGB in 0..1, with "input_px" where the model does not '
    'say it, and optionally "mpp" and "interpolation" (bicubic or bilinear)'
)


@dataclass(frozen=True)
class Facts:
    """How a model wants its patches."""

    input_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mpps: tuple[float, ...]
    interpolation: str


class OnnxModule(nn.Module):
    """An onnxruntime session as a module: (N, 3, height, width) float32 to (N, D), on the input's device."""

    def __init__(self, path: Path) -> None:
        """Raise ConfigError without onnxruntime, FormatError for a file that is no model of one image."""
        super().__init__()
        try:
            runtime = importlib.import_module("onnxruntime")
        except ImportError as error:
            raise ConfigError(
                f"--encoder onnx:{path}: needs onnxruntime; pip install 'wsi-mil[onnx]'."
            ) from error
        options = runtime.SessionOptions()
        options.log_severity_level = 4  # what is wrong comes back as an exception
        here = runtime.get_available_providers()
        providers = [each for each in ("CUDAExecutionProvider", "CPUExecutionProvider") if each in here]
        try:
            self.session = runtime.InferenceSession(str(path), options, providers=providers)
        except _onnx_errors() as error:
            raise _broken("onnx", path, error) from error
        inputs = self.session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type != "tensor(float)":
            found = ", ".join(f"{each.name} {each.type} {each.shape}" for each in inputs)
            raise FormatError(
                f"--encoder onnx:{path}: takes {found}; wanted one float (N, 3, height, width)."
            )
        self.input_name = inputs[0].name
        batch, _, height, width = inputs[0].shape
        self.batch = batch if isinstance(batch, int) and batch > 0 else None
        self.size_px = height if isinstance(height, int) and height == width and height > 0 else None
        self.metadata: dict[str, str] = dict(self.session.get_modelmeta().custom_metadata_map)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, D); a model of a fixed batch gets batches of that size, the last one filled up."""
        images = x.detach().float().contiguous().cpu().numpy()
        step = self.batch or len(images)
        parts = [self._run(images[start : start + step], step) for start in range(0, len(images), step)]
        return torch.from_numpy(np.concatenate(parts)).to(x.device)

    def _run(self, images: NDArray[np.float32], step: int) -> NDArray[np.float32]:
        count = len(images)
        if count < step:
            images = np.concatenate([images, np.repeat(images[-1:], step - count, axis=0)])
        found: NDArray[np.float32] = self.session.run(None, {self.input_name: images})[0]
        return found[:count].astype(np.float32, copy=False)


def load(name: str, stain: nn.Module | None) -> Encoder:
    """Return the encoder in a file, ``onnx:FILE`` or ``torchscript:FILE``.

    Its facts are the ONNX file's own metadata, or a JSON file of the same name beside it
    (``model.json`` for ``model.onnx``), or wsinfer's ``config.json`` in the same folder.

    Raises:
        ConfigError: no such file, no onnxruntime, or the facts are missing or make no sense.
        FormatError: the file is damaged, or gives something else than one vector per patch.
    """
    kind, _, text = name.partition(":")
    path = Path(text)
    if not path.is_file():
        raise ConfigError(f"--encoder {name}: no such file.")
    module: nn.Module
    if kind == "onnx":
        module = OnnxModule(path)
        facts = _facts(name, path, module.metadata, module.size_px)
    else:
        module = _torchscript(path)
        facts = _facts(name, path, {}, None)
    transform = PatchTransform(facts.input_px, facts.mean, facts.std, facts.interpolation, stain)
    dim = _try(name, module, transform)
    digest = hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
    mpp = facts.mpps[0] if facts.mpps else None
    return Encoder(
        f"{kind}:{path.name}", module, transform, dim, facts.input_px, mpp, digest, facts.mpps, castable=False
    )


def _torchscript(path: Path) -> nn.Module:
    try:
        with warnings.catch_warnings():
            # torch deprecates TorchScript, and users have such files; a user of the file can do nothing.
            warnings.simplefilter("ignore", FutureWarning)
            module: nn.Module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError, OSError) as error:
        raise _broken("torchscript", path, error) from error
    return module.eval()


def _try(name: str, module: nn.Module, transform: PatchTransform) -> int:
    """Return how many features come out for two patches that go in."""
    patches = torch.zeros(2, transform.size_px, transform.size_px, 3, dtype=torch.uint8)
    with torch.inference_mode():
        try:
            found = module(transform(patches))
        except _onnx_errors() as error:
            raise FormatError(
                f"--encoder {name}: cannot run patches of {transform.size_px} px ({_last_line(error)})."
            ) from error
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != 2:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise FormatError(f"--encoder {name}: gives {shape} for two patches; wanted one vector each, (2, D).")
    return int(found.shape[1])


def _facts(name: str, path: Path, metadata: dict[str, str], size_px: int | None) -> Facts:
    """Read how patches are wanted; what the file itself says wins over a JSON beside it."""
    beside = next(
        (each for each in (path.with_suffix(".json"), path.with_name("config.json")) if each.is_file()), None
    )
    if "mean" in metadata and "std" in metadata:
        where, values = "its metadata", _json_values(metadata)
    elif beside is not None:
        where = str(beside)
        try:
            values = json.loads(beside.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"--encoder {name}: {beside} is not JSON ({error}); {_WANTED}.") from error
    else:
        places = f"{path.with_suffix('.json')} is not there"
        if path.suffix == ".onnx":
            places += ", nor has the file's own metadata mean and std"
        raise ConfigError(f"--encoder {name}: how patches are normalised is not said: {places}; {_WANTED}.")
    try:
        if isinstance(values, dict) and "transform" in values:
            values = _wsinfer(values)
        return _checked(values, size_px)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"--encoder {name}: {where}: {error}; {_WANTED}.") from error


def _json_values(metadata: dict[str, str]) -> dict[str, Any]:
    """Return metadata whose values are JSON text; other entries (a producer's notes) are of no concern."""
    known = ("mean", "std", "input_px", "mpp", "interpolation")
    return {
        key: metadata[key] if key == "interpolation" else json.loads(metadata[key])
        for key in known
        if key in metadata
    }


def _checked(values: dict[str, Any], size_px: int | None) -> Facts:
    mean, std = (tuple(float(each) for each in values[key]) for key in ("mean", "std"))
    if len(mean) != 3 or len(std) != 3 or not all(-1 <= each <= 2 for each in mean) or min(std) <= 0:
        raise ValueError(f"mean {list(mean)} and std {list(std)} are not those of RGB in 0..1")
    input_px = int(values.get("input_px") or size_px or 0)
    if input_px < 1:
        raise ValueError("input_px is missing, and the model takes any size")
    if size_px not in {None, input_px}:
        raise ValueError(f"input_px is {input_px}, and the model takes {size_px}")
    interpolation = values.get("interpolation", "bicubic")
    if interpolation not in {"bicubic", "bilinear"}:
        raise ValueError(f"interpolation is {interpolation!r}")
    mpp = values.get("mpp")
    return Facts(input_px, mean, std, () if mpp is None else (float(mpp),), interpolation)


def _wsinfer(config: dict[str, Any]) -> dict[str, Any]:
    """Return what a wsinfer model's config.json says (its schema: a list of named transforms)."""
    values: dict[str, Any] = {}
    for step in config["transform"]:
        arguments = step.get("arguments") or {}
        if step["name"] == "Resize":
            size = arguments["size"]
            values["input_px"] = size if isinstance(size, int) else size[0]
        elif step["name"] == "Normalize":
            values |= {"mean": arguments["mean"], "std": arguments["std"]}
        elif step["name"] != "ToTensor":
            raise ValueError(f"the transform {step['name']!r} is not known here")
    values.setdefault("input_px", config["patch_size_pixels"])
    # Its spacing is that of the patch; ours is what the model sees after the resize.
    values["mpp"] = config["spacing_um_px"] * config["patch_size_pixels"] / values["input_px"]
    return values | {"interpolation": "bilinear"}


def _onnx_errors() -> tuple[type[Exception], ...]:
    """Return what a run can raise: onnxruntime's exceptions have no base in common but Exception."""
    state = sys.modules.get("onnxruntime.capi.onnxruntime_pybind11_state")
    found = (value for value in vars(state or object).values() if isinstance(value, type))
    return (RuntimeError, *(each for each in found if issubclass(each, Exception)))


def _broken(kind: str, path: Path, error: Exception) -> FormatError:
    return FormatError(f"--encoder {kind}:{path}: damaged or not such a file ({_last_line(error)}).")


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
