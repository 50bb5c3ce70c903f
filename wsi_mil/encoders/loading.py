"""From a name to an ``Encoder``: which architecture it means, and where its weights are.

A name is a preset's, one that was registered, timm's (with or without ``timm:``), ``hf-hub:ORG/NAME``,
``onnx:FILE`` or ``torchscript:FILE``. Weights are looked for in this order and nowhere else: ``--weights``,
``--weights-dir``, an installed package, the hub's cache, the hub.
"""

from pathlib import Path

import torch
from torch import nn

from wsi_mil.encoders import foreign, hub
from wsi_mil.encoders.build import (
    Skeleton,
    fill_from,
    fill_from_hub,
    fill_packaged,
    from_description,
    from_preset,
    from_timm,
)
from wsi_mil.encoders.encoder import Encoder
from wsi_mil.encoders.preset import Preset
from wsi_mil.encoders.presets import PACKAGED, PRESETS
from wsi_mil.encoders.registry import OwnEncoder, registered
from wsi_mil.encoders.stain import stain_normalizer
from wsi_mil.encoders.transform import PatchTransform
from wsi_mil.encoders.weights import (
    read_metadata,
    weights_digest,
    weights_path,
    write_weights,
)
from wsi_mil.errors import ConfigError, FormatError


def load_encoder(
    name: str,
    weights: Path | None = None,
    *,
    weights_dir: Path | None = None,
    offline: bool = False,
    stain: str = "none",
) -> Encoder:
    """Return an encoder by name, with its weights and its transform.

    ``weights``: a local file; nothing is downloaded then. ``weights_dir``: a folder with one file per
    encoder (``weights_path``), and nothing is downloaded either. ``offline``: only what is on this machine.
    ``stain``: none, macenko or reinhard, before the normalisation.

    Raises:
        ConfigError: no such encoder, or its weights are not to be had (the missing file is named).
        FormatError: the weights file is damaged, unsafe, or of another architecture.
    """
    normalizer = stain_normalizer(stain)
    if name.startswith(("onnx:", "torchscript:")):
        if weights is not None:
            raise ConfigError(f"--encoder {name} with --weights: the file holds its weights; leave one out.")
        return foreign.load(name, normalizer)
    own = registered(name)
    if own is not None:
        skeleton = _of_own(own, normalizer)
        if weights is not None:
            fill_from(skeleton, weights, name)
        return _checked(name, skeleton, own.mpps, own.castable)
    name = name.removeprefix("timm:")
    preset = PRESETS.get(name)
    file = _local_file(name, weights, weights_dir)
    skeleton = _skeleton(name, preset, file, offline, normalizer)
    if file is not None:
        _check_whose(file, name)
        fill_from(skeleton, file, name)
    elif name == PACKAGED:
        fill_packaged(skeleton, name)
    else:
        fill_from_hub(skeleton, name, offline)
    encoder = _checked(name, skeleton, preset.mpps if preset else ())
    if preset and encoder.dim != preset.dim:
        raise FormatError(f"--encoder {name}: gives {encoder.dim} features; wanted {preset.dim}.")
    return encoder


def download(name: str, weights_dir: Path) -> Path:
    """Fetch the weights of an encoder into a folder that ``load_encoder(weights_dir=...)`` reads.

    The file holds plain tensors under the module's own names; it is complete or not there.

    Raises:
        ConfigError: no such encoder, or the hub does not give its weights.
        FormatError: what the hub gave does not fit.
        StoreError: the folder cannot be written to.
    """
    if name.startswith(("onnx:", "torchscript:")) or registered(name) is not None:
        raise ConfigError(f"--download {name}: it has no place on the hub; it is with you already.")
    name = name.removeprefix("timm:")
    skeleton = _skeleton(name, PRESETS.get(name), None, False, None)
    if name == PACKAGED:
        fill_packaged(skeleton, name)
    else:
        fill_from_hub(skeleton, name, offline=False)
    path = weights_path(weights_dir, name)
    write_weights(path, skeleton.module, {"encoder": name, "source": skeleton.source[0], **skeleton.facts})
    return path


def _local_file(name: str, weights: Path | None, weights_dir: Path | None) -> Path | None:
    """Return the file that --weights or --weights-dir means; a missing one is named."""
    if weights is not None or weights_dir is None:
        return weights
    path = weights_path(weights_dir, name)
    if path.is_file():
        return path
    if name == PACKAGED:
        return None
    raise ConfigError(
        f"--weights-dir {weights_dir}: {path.name} is missing, the weights of --encoder {name}. Make it "
        f"where there is a network with `wsi-mil encoders --download {name} --weights-dir DIR` and copy it."
    )


def _check_whose(file: Path, name: str) -> None:
    """Refuse a file that says it is another encoder's; some have tensors of the same names and shapes."""
    owner = read_metadata(file).get("encoder", name)
    if owner in PRESETS and name in PRESETS and _repo(owner) != _repo(name):
        raise FormatError(f"--weights {file}: says that it holds the weights of {owner}; wanted {name}.")


def _repo(name: str) -> str:
    return PRESETS[name].repo


def _skeleton(
    name: str, preset: Preset | None, file: Path | None, offline: bool, stain: nn.Module | None
) -> Skeleton:
    if preset is not None:
        return from_preset(preset, stain)
    if not name.startswith("hf-hub:"):
        if ":" in name:
            raise ConfigError(
                f"--encoder {name}: what is before the colon is not known; known: timm:NAME, "
                "hf-hub:ORG/NAME, onnx:FILE, torchscript:FILE."
            )
        return from_timm(name, stain)
    repo = name.removeprefix("hf-hub:")
    if file is None:
        text = hub.fetch(name, repo, ("config.json",), offline).read_text(encoding="utf-8")
        return from_description(repo, text, stain)
    text = read_metadata(file).get("timm_config", "")
    if not text:
        raise ConfigError(
            f"--encoder {name} with {file}: which architecture that is, only the hub knows. Name the timm "
            "architecture instead, for instance --encoder vit_large_patch16_224, or make the file with "
            f"`wsi-mil encoders --download {name} --weights-dir DIR`."
        )
    return from_description(repo, text, stain)


def _of_own(own: OwnEncoder, stain: nn.Module | None) -> Skeleton:
    module = own.build()
    if not isinstance(module, nn.Module):
        raise ConfigError(f"--encoder {own.name}: what was registered builds a {type(module).__name__}.")
    transform = PatchTransform(own.input_px, own.mean, own.std, own.interpolation, stain)
    return Skeleton(module, transform, ("", ()))


def _checked(name: str, skeleton: Skeleton, mpps: tuple[float, ...], castable: bool = True) -> Encoder:
    """Return the encoder after one patch has gone through it."""
    digest = weights_digest(skeleton.module)
    module = skeleton.pooled().eval().requires_grad_(False)
    if castable:
        module = module.to(memory_format=torch.channels_last)
    size_px = skeleton.transform.size_px
    with torch.inference_mode():
        patch = torch.zeros(1, size_px, size_px, 3, dtype=torch.uint8)
        shape = tuple(module(skeleton.transform(patch)).shape)
    if len(shape) != 2 or shape[0] != 1:
        raise ConfigError(f"--encoder {name}: gives {shape} for one patch; wanted one vector, (1, D).")
    return Encoder(
        name,
        module,
        skeleton.transform,
        shape[1],
        size_px,
        mpps[0] if mpps else None,
        digest,
        mpps,
        castable,
    )
